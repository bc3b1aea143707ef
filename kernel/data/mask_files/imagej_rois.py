"""ImageJ's regions of interest: a zip of the ROI Manager, or a single .roi file."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from kernel.data.mask_files.found import FoundMasks, MaskCell
from kernel.data.mask_files.rings import fill_rings
from kernel.data.mask_files.taken import FIRST_PLANE, TakenPlane
from kernel.data.zip_files import read_entry
from kernel.errors import InputError

#: What reading raises for bytes that are no ROI.
DAMAGED_ROI_ERRORS = (
    ValueError, TypeError, LookupError, RuntimeError, OverflowError, MemoryError, OSError, struct.error, zlib.error,
    zipfile.BadZipFile, EOFError,
)  # fmt: skip
#: Bytes of a ROI, and of all of a file, unpacked: a small zip may hold any number.
LARGEST_ROI = 64 << 20
LARGEST_ROIS = 1 << 30
#: Corners of an oval; its pixels are then those of the true ellipse but for a thousandth of its size.
OVAL_CORNERS = 720


def read_imagej_rois(path: Path, image_shape: tuple[int, int], plane: TakenPlane = FIRST_PLANE) -> FoundMasks:
    """The cells of ROIs that have an area: polygon, freehand, traced, rectangle, oval, composite.

    Others, and those that tell another slice of a stack, are named. Errors as a `MaskForm`'s reader.
    """
    import roifile

    cells, flaws = [], []
    for number, (name, content) in enumerate(roi_contents(path), start=1):
        place = f"ROI {number} '{name}'"
        try:
            roi = roifile.ImagejRoi.frombytes(content)
            flaw = flaw_of(roi, plane)
            rings = [] if flaw else rings_of(roi)
        except DAMAGED_ROI_ERRORS as error:
            flaw, rings = f"it cannot be read ({error})", []
        if not flaw and not all(np.isfinite(ring).all() for ring in rings):
            flaw = "a corner of it is no number"
        if flaw:
            flaws.append((place, flaw))
        else:
            cells.append(MaskCell(place, *fill_rings(rings, image_shape)))
    return FoundMasks(tuple(cells), tuple(flaws))


def roi_contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each ROI of a file, one in memory at a time.

    Raises:
        InputError: it is no zip that can be read, or holds no ROI, or larger ones than cells have.
    """
    try:
        if path.suffix.lower() != ".zip":
            yield path.stem, path.read_bytes()
            return
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if is_roi(name)]
            sizes = [archive.getinfo(name).file_size for name in names]
            if max(sizes, default=0) > LARGEST_ROI:
                raise InputError(f"a ROI in it is larger than {LARGEST_ROI >> 20} MB, which no outline of a cell is")
            if sum(sizes) > LARGEST_ROIS:
                raise InputError(f"its ROIs are larger than {LARGEST_ROIS >> 20} MB, which no image's outlines are")
            if archive.namelist() and not names:
                raise InputError("it is a zip without any ROI (.roi) in it")
            for name in names:
                yield Path(name).stem, read_entry(archive, name)
    except DAMAGED_ROI_ERRORS as error:
        raise InputError(f"it is no readable zip of ROIs ({error}): save it again") from error


def is_roi(name: str) -> bool:
    """Whether an entry of a zip is a ROI; macOS adds files of its own."""
    return name.lower().endswith(".roi") and not name.startswith("__MACOSX/") and not Path(name).name.startswith(".")


def flaw_of(roi: Any, plane: TakenPlane) -> str:
    """Why a ROI is no cell of the image's plane, or ""."""
    from roifile import ROI_TYPE

    with_area = (ROI_TYPE.POLYGON, ROI_TYPE.RECT, ROI_TYPE.OVAL, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED)
    if roi.roitype not in with_area:
        return f"it is of the type {roi.roitype.name.lower()}, which has no area"
    # Counted from 1; 0 tells nothing. In a hyperstack a slice has no number of its own.
    position, z, frame = (place - 1 if place > 0 else None for place in (roi.position, roi.z_position, roi.t_position))
    return plane.flaw(z, frame, position if z is None and frame is None else None)


def rings_of(roi: Any) -> list[np.ndarray]:
    """The rings (N, 2) of x, y around a ROI's area, of which every second around a point is a hole."""
    from roifile import ROI_TYPE

    if roi.multi_coordinates is not None:
        return [np.asarray(ring, float) for ring in roi.path2coords(roi.multi_coordinates)]
    if roi.roitype not in (ROI_TYPE.RECT, ROI_TYPE.OVAL):
        return [np.asarray(roi.coordinates(), float)]
    left, top, width, height = roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top
    if roi.subpixelrect:
        left, top, width, height = roi.xd, roi.yd, roi.widthd, roi.heightd
    if roi.roitype == ROI_TYPE.RECT:
        corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], float)
    else:
        angles = np.arange(OVAL_CORNERS) * 2 * np.pi / OVAL_CORNERS
        corners = np.stack([np.cos(angles), np.sin(angles)], axis=1) / 2 + 0.5
    return [corners * [width, height] + [left, top]]
