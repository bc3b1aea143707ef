"""Label images, held in memory, as cells: each value but 0 is a cell."""

from __future__ import annotations

from typing import cast

import numpy as np
from scipy.ndimage import find_objects, label
from skimage.measure import label as label_equal

from kernel.data.mask_files.found import FoundMasks, MaskCell
from kernel.errors import InputError

#: Separate pieces of a single cell, above which its one value is taken for "cell", and not for a cell's number.
MOST_PIECES = 2
#: The share of a value's largest piece from which on another one counts beside it: smaller ones are a cell's fragments.
LARGE_PIECE = 0.1
#: What stands for "cell" in binary masks of any dtype: with several large pieces, and no other value, it is no number.
BINARY_VALUES = (1, 255)
#: The numbers of cells that 8 bits hold.
BYTE_CELLS = 255
#: Pieces far from their value's largest, above which numbers beyond BYTE_CELLS have begun again or ended there. In
#: thousands of annotated cells no image has more than one: a cell over another parts it, but not by more than its size.
MOST_FAR_PIECES = 3
#: The share of all found pixels that values of many pieces have where they tell classes, and are not some specks.
CLASS_SHARE = 0.1
#: The share of the image that a value covers where it is background, and not a cell.
BACKGROUND_SHARE = 0.5


def cells_of_labels(labels: np.ndarray, image_shape: tuple[int, int]) -> FoundMasks:
    """The cells of a label image, in the order of their values; a cell may have several pieces.

    Args:
        labels: (H, W), or with further axes of length 1, of whole numbers from 0 on, in any dtype.
        image_shape: H, W of the image.

    Raises:
        InputError: another shape, or values that number no cells: of classes, of a smoothed mask, of 8 bits for more
            cells than they hold, or with a background that is not 0.
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
    elif len(values):
        refuse_background(plane, numbers, values)
        refuse_classes(numbers, values)
    cells = []
    for value, window in zip(values.tolist(), find_objects(numbers), strict=True):
        number = len(cells) + 1
        crop = numbers[window] == number
        cells.append(MaskCell(f"value {int(value)}", crop, (window[0].start, window[1].start)))
    return FoundMasks(tuple(cells))


def as_plane(labels: np.ndarray, image_shape: tuple[int, int]) -> np.ndarray:
    """The labels as (H, W).

    Raises:
        InputError: as `refuse_shape`, or they have colours.
    """
    refuse_shape(labels.shape, image_shape)
    if labels.size == image_shape[0] * image_shape[1]:
        return labels.reshape(image_shape)
    if (labels[..., :3] == labels[..., :1]).all():
        return labels[..., 0]
    raise InputError("it is a picture of colours, and no label image, which has a number for each cell")


def refuse_shape(shape: tuple[int, ...], image_shape: tuple[int, int]) -> None:
    """Refuse labels whose shape shows, before they are read, that they are not of an image of H, W.

    Raises:
        InputError: H and W are others, or there are several planes.
    """
    sides = [side for side in shape if side != 1]
    if sides == [side for side in image_shape if side != 1] or (shape[:2] == image_shape and shape[2:] in ((3,), (4,))):
        return
    if len(sides) == 2:
        raise InputError(f"it is {sides[0]} x {sides[1]}, and its image {image_shape[0]} x {image_shape[1]}")
    raise InputError(f"it has the shape {shape}: a single plane is needed, as its image is")


def refuse_binary(plane: np.ndarray) -> None:
    """Refuse a label image of one value that marks several cells.

    Raises:
        InputError: it is one.
    """
    found = plane != 0
    value = plane[found][0]
    most = True if plane.dtype == bool else np.iinfo(plane.dtype).max if plane.dtype.kind in "ui" else None
    numbers, pieces = cast(tuple[np.ndarray, int], label(found, np.ones((3, 3))))
    sizes = np.sort(np.bincount(numbers.ravel())[1:])
    fragments = np.count_nonzero(np.cumsum(sizes) < LARGE_PIECE * sizes[-1])  # the smallest, together
    large = pieces - fragments
    if (pieces > 1) if value == most else (large > (1 if value in BINARY_VALUES else MOST_PIECES)):
        raise InputError(
            f"all its {pieces} pieces have the value {int(value)}: it tells cells from background, and not one "
            "cell from the next; number them, as Fiji does by Analyze Particles with count masks"
            + ("; if they are of one cell, give it the number 2" if large <= MOST_PIECES else "")
        )


def refuse_background(plane: np.ndarray, numbers: np.ndarray, values: np.ndarray) -> None:
    """Refuse a label image without 0 in which one value lies around the others.

    Args:
        plane: (H, W), the label image.
        numbers: (H, W), the place from 1 of each pixel's value among `values`.
        values: (N,), N at least 2.

    Raises:
        InputError: it is one.
    """
    if not plane.all():
        return
    edges = (numbers[0], numbers[-1], numbers[:, 0], numbers[:, -1])
    counts = np.bincount(numbers.ravel())
    most = int(counts.argmax())
    if counts[most] > BACKGROUND_SHARE * plane.size and all((edge == most).any() for edge in edges):
        raise InputError(
            f"no pixel is 0, and value {int(values[most - 1])} covers {counts[most] / plane.size:.0%} of the image, to "
            "all of its edges, as background does: that must be 0; export instance labels, which number each cell"
        )


def refuse_classes(numbers: np.ndarray, values: np.ndarray) -> None:
    """Refuse a label image whose values tell classes of pixels or shades, or begin again after 255.

    A cell may be in several pieces; so it is refused only where the pieces of such values are more than all values. Two
    pieces are many where no value has a single one: of cells over each other, one is whole.

    Args:
        numbers: (H, W), 0 or the place from 1 of each pixel's value among `values`.
        values: (N,) of cells.

    Raises:
        InputError: it is one.
    """
    pieces = np.asarray(label_equal(numbers, background=0, connectivity=2))
    value_of = np.zeros(int(pieces.max()) + 1, np.int64)
    value_of[pieces] = numbers  # of each piece
    value_of, sizes = value_of[1:], np.bincount(pieces.ravel())[1:]
    largest = np.zeros(len(values) + 1, np.int64)  # of each value, its largest piece
    by_size = np.argsort(sizes, kind="stable")
    largest[value_of[by_size]] = by_size
    counted = sizes >= LARGE_PIECE * sizes[largest[value_of]]
    counts = np.bincount(value_of[counted], minlength=len(values) + 1)
    in_many = counts > (1 if counts[1:].min() > 1 else MOST_PIECES)
    if counts[in_many].sum() > len(values) and sizes[in_many[value_of]].sum() > CLASS_SHARE * sizes.sum():
        most = int(counts.argmax())
        raise InputError(
            f"its {len(values)} values mark {int(counts.sum())} pieces, value {int(values[most - 1])} alone "
            f"{counts[most]}: they tell classes (cell, border), or shades of a smoothed mask, and not one cell from "
            f"the next; export instance labels, which number each cell, with 16 bits for more than {BYTE_CELLS}"
        )
    if len(values) != BYTE_CELLS or values[-1] != BYTE_CELLS:
        return
    boxes = np.array([[(axis.start, axis.stop) for axis in box] for box in find_objects(pieces)])  # (P, 2, 2)
    others = boxes[largest[value_of]]
    gaps = (np.maximum(boxes, others)[..., 0] - np.minimum(boxes, others)[..., 1]).max(axis=1)
    is_far = counted & (gaps > (others[..., 1] - others[..., 0]).max(axis=1))
    if is_far.sum() > MOST_FAR_PIECES:
        raise InputError(
            f"it has all numbers from 1 to {BYTE_CELLS}, the last of 8 bits, and {is_far.sum()} pieces have one that a "
            f"piece far from them has, {value_of[is_far][0]} for one: further cells have got the numbers of others; "
            "export instance labels with 16 bits"
        )
