"""Folders with a mask file for each cell of one image, as those of the Data Science Bowl of 2018."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage.measure import label, regionprops

from kernel.data.mask_files.found import FoundMasks, MaskCell
from kernel.data.mask_files.label_arrays import LARGE_PIECE, MOST_PIECES, as_plane
from kernel.data.mask_files.label_images import read_labels
from kernel.data.mask_files.taken import FIRST_PLANE, TakenPlane
from kernel.errors import InputError
from kernel.images.listing import IMAGE_SUFFIXES, is_hidden


def read_cell_masks(folder: Path, image_shape: tuple[int, int], _plane: TakenPlane = FIRST_PLANE) -> FoundMasks:
    """The cells of a folder of masks, in the order of the files' names; those of others are left out by name."""
    cells, flaws = [], []
    for path in cell_mask_files(folder):
        try:
            cells.append(read_cell_mask(path, image_shape))
        except InputError as error:
            flaws.append((path.name, str(error)))
    return FoundMasks(tuple(cells), tuple(flaws))


def cell_mask_files(folder: Path) -> list[Path]:
    """The files of a folder that may be masks, in the order of their names."""
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path.name)
    )


def read_cell_mask(path: Path, image_shape: tuple[int, int]) -> MaskCell:
    """The cell that a mask file's one value marks. Errors as `read_label_image`, or it marks none, or several.

    A cell may be in a few pieces, as `kernel.data.mask_files.label_arrays` has it.
    """
    plane = as_plane(read_labels(path), image_shape)
    values = np.unique(plane[plane != 0])
    if not len(values):
        raise InputError("no pixel is marked")
    if len(values) > 1:
        raise InputError(
            f"it has {len(values)} values beside 0: the mask of one cell has one, and a label image of many is called "
            "as its image is"
        )
    pieces = sorted(piece.area for piece in regionprops(label(plane != 0, connectivity=2)))
    large = sum(area >= LARGE_PIECE * pieces[-1] for area in pieces)
    if large > MOST_PIECES:
        raise InputError(f"it is in {large} pieces: each cell needs a mask file of its own, or a number in one for all")
    rows, columns = (np.flatnonzero((plane != 0).any(axis=axis)) for axis in (1, 0))
    crop = plane[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] != 0
    return MaskCell(path.name, crop, (int(rows[0]), int(columns[0])))
