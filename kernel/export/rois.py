"""Masks as ImageJ's regions of interest: a zip that Fiji's ROI Manager opens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from roifile import ROI_TYPE, ImagejRoi, roiwrite

from kernel.errors import InputError
from kernel.masks.instances import CellMasks
from kernel.postprocess.outlines import Ring, mask_polygons

#: ImageJ keeps places in 16 bits.
LARGEST_SIDE = 2**15 - 1
#: ImageJ's words for the parts of a path: java.awt.geom.PathIterator's.
MOVE_TO, LINE_TO, CLOSE = 0, 1, 4


def write_rois(masks: CellMasks, path: Path) -> None:
    """Write a zip of a ROI per cell, named `cell 1`, `cell 2`, ... in the masks' order.

    A cell of one piece without holes is a traced ROI, as ImageJ's wand makes it; another is a composite one. Both cover
    exactly the mask's pixels. Without cells the zip is empty.

    Raises:
        InputError: the image is larger than ImageJ's ROIs can tell.
    """
    refuse_too_large(masks.image_shape)
    path.unlink(missing_ok=True)  # roifile adds to a zip that is there
    roiwrite(path, list(rois_of(masks)), mode="w")


def refuse_too_large(shape: tuple[int, ...]) -> None:
    """Raise InputError for an image of this height and width where ImageJ's ROIs do not reach all of it."""
    if max(shape[:2]) > LARGEST_SIDE:
        raise InputError(
            f"the image of {shape[0]} x {shape[1]} pixels is larger than ImageJ's regions of interest reach, "
            f"{LARGEST_SIDE}: export labels or geojson instead of rois"
        )


def rois_of(masks: CellMasks) -> Iterator[ImagejRoi]:
    """The masks' ROIs."""
    for number, (crop, offset) in enumerate(zip(masks.crops, masks.offsets_yx, strict=True), start=1):
        rings = list(chain.from_iterable(mask_polygons(crop, offset)))
        roi = traced_roi(rings[0]) if len(rings) == 1 else composite_roi(rings)
        roi.name = f"cell {number}"
        yield roi


def traced_roi(ring: Ring) -> ImagejRoi:
    """A ROI of one ring along pixels' edges."""
    roi = ImagejRoi.frompoints(np.array(ring[:-1], dtype=np.int32))
    roi.roitype = ROI_TYPE.TRACED
    return roi


def composite_roi(rings: list[Ring]) -> ImagejRoi:
    """A ROI of several rings, of which every second around a pixel is a hole."""
    path: list[float] = []
    for ring in rings:
        for operation, point in zip([MOVE_TO, *[LINE_TO] * (len(ring) - 2)], ring[:-1], strict=True):
            path += [operation, *point]
        path.append(CLOSE)
    points = np.array(list(chain.from_iterable(rings)))
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    roi = ImagejRoi(roitype=ROI_TYPE.RECT, left=left, top=top, right=right, bottom=bottom)
    roi.multi_coordinates = np.array(path, dtype=np.float32)
    roi.shape_roi_size = len(path)
    return roi
