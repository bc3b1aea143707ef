"""Label images, held in memory, as cells: each value but 0 is a cell."""

from __future__ import annotations

from typing import cast

import numpy as np
from scipy.ndimage import find_objects, label

from kernel.data.mask_files.found import FoundMasks, MaskCell
from kernel.errors import InputError

#: Separate pieces of a single cell, above which its one value is taken for "cell", and not for a cell's number.
MOST_PIECES = 2


def cells_of_labels(labels: np.ndarray, image_shape: tuple[int, int]) -> FoundMasks:
    """The cells of a label image, in the order of their values; a cell may have several pieces.

    Args:
        labels: (H, W), or with further axes of length 1, of whole numbers from 0 on, in any dtype.
        image_shape: H, W of the image.

    Raises:
        InputError: another shape, values that number no cells, or a picture of cells and background alone.
    """
    plane = as_plane(labels, image_shape)
    if plane.dtype.kind not in "uib" and not (plane.dtype.kind == "f" and (plane == np.floor(plane)).all()):
        raise InputError(f"it holds {plane.dtype} that are no whole numbers: a label image has a number for each cell")
    if plane.size and plane.min() < 0:
        raise InputError(
            f"it holds negative values, {plane.min():.0f} for one: 0 is background, and cells count from 1"
        )
    values, numbers = np.unique(plane, return_inverse=True)
    numbers = numbers.reshape(plane.shape) + (values[:1] != 0).sum()  # 0 is background also where nothing is
    values = values[values != 0]
    if len(values) == 1:
        refuse_binary(plane)
    cells = []
    for value, window in zip(values.tolist(), find_objects(numbers), strict=True):
        number = len(cells) + 1
        crop = numbers[window] == number
        cells.append(MaskCell(f"value {int(value)}", crop, (window[0].start, window[1].start)))
    return FoundMasks(tuple(cells))


def as_plane(labels: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    """The labels as (H, W).

    Raises:
        InputError: there are several planes, or colours; or H and W are others.
    """
    if [side for side in labels.shape if side != 1] == [side for side in image_shape if side != 1]:
        return labels.reshape(image_shape)
    if labels.shape[:2] == image_shape and labels.ndim == 3 and labels.shape[2] in (3, 4):
        if (labels[..., :3] == labels[..., :1]).all():
            return labels[..., 0]
        raise InputError("it is a picture of colours, and no label image, which has a number for each cell")
    sides = [side for side in labels.shape if side != 1]
    if len(sides) == 2:
        raise InputError(f"it is {sides[0]} x {sides[1]}, and its image {image_shape[0]} x {image_shape[1]}")
    raise InputError(f"it has the shape {labels.shape}: a single plane is needed, as its image is")


def refuse_binary(plane: np.ndarray) -> None:
    """Refuse a label image of one value that marks several cells.

    Raises:
        InputError: it is one.
    """
    found = plane != 0
    value = plane[found][0]
    most = True if plane.dtype == bool else np.iinfo(plane.dtype).max if plane.dtype.kind in "ui" else None
    _, pieces = cast(tuple[np.ndarray, int], label(found, np.ones((3, 3))))
    if pieces > (1 if value == most else MOST_PIECES):
        raise InputError(
            f"all its {pieces} pieces have the value {int(value)}: it tells cells from background, and not one "
            "cell from the next; number them, as Fiji does by Analyze Particles with count masks"
        )
