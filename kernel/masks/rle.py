"""The competition's run lengths: "start length start length ...", 1-based and row-major.

The competition's page says from top to bottom, then left to right: that is wrong and scores 0.
"""

from __future__ import annotations

import numpy as np

from kernel.errors import InputError


def encode_rle(crop: np.ndarray, offset_yx: tuple[int, int] | np.ndarray, image_shape: tuple[int, int]) -> str:
    """The run lengths of one mask in its image.

    Args:
        crop: (h, w) bool.
        offset_yx: the row and column of the crop's top left pixel in the image.
        image_shape: height, width of the image.

    Returns:
        "start length ..."; a run that goes on in the next row is one run. "" for an empty mask.
    """
    height, width = crop.shape
    edges = np.zeros((height, width + 2), dtype=np.int8)
    edges[:, 1:-1] = crop
    steps = np.diff(edges, axis=1)
    # In row-major order the n-th start and the n-th end belong together.
    first_pixel = (np.arange(height) + int(offset_yx[0])) * image_shape[1] + int(offset_yx[1])
    rows, columns = np.nonzero(steps == 1)
    starts = first_pixel[rows] + columns
    rows, columns = np.nonzero(steps == -1)
    ends = first_pixel[rows] + columns
    if starts.size == 0:
        return ""
    apart = starts[1:] != ends[:-1]
    starts = starts[np.concatenate([[True], apart])]
    ends = ends[np.concatenate([apart, [True]])]
    return " ".join(map(str, np.stack([starts + 1, ends - starts], axis=1).ravel().tolist()))


def parse_rle(text: str, image_shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The first pixel and the end (exclusive) of each run, both (R,) int64, 0-based in row-major order.

    Raises:
        InputError: not pairs of whole numbers, runs that are empty, out of order, overlapping or outside the image.
    """
    words = text.split()
    try:
        numbers = np.array([int(word) for word in words], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise InputError(f"run lengths must be whole numbers, got '{text[:60]}'") from error
    if numbers.size % 2:
        raise InputError(f"run lengths must be pairs of start and length, got {numbers.size} numbers: '{text[:60]}'")
    starts, lengths = numbers[::2] - 1, numbers[1::2]
    pixels = image_shape[0] * image_shape[1]
    if (lengths < 1).any():
        raise InputError(f"a run has length {lengths.min()}; every run has at least one pixel")
    if (starts < 0).any() or (lengths > pixels - starts).any():
        raise InputError(f"a run leaves the image: starts and ends must lie in 1 to {pixels} for {image_shape}")
    ends = starts + lengths
    if (starts[1:] < ends[:-1]).any():
        raise InputError("runs must be in increasing order and must not overlap")
    return starts, ends


def decode_rle_crop(text: str, image_shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """A mask's tight crop (h, w) bool and the crop's top left pixel (y, x) in the image; for "" an empty one at (0, 0).

    Raises:
        InputError: see `parse_rle`.
    """
    starts, ends = parse_rle(text, image_shape)
    if starts.size == 0:
        return np.zeros((0, 0), dtype=bool), (0, 0)
    width = image_shape[1]
    top, bottom = int(starts[0]) // width, int(ends[-1] - 1) // width + 1
    steps = np.zeros((bottom - top) * width + 1, dtype=np.int8)
    steps[starts - top * width] += 1
    steps[ends - top * width] -= 1
    strip = np.cumsum(steps[:-1], dtype=np.int8).reshape(bottom - top, width).astype(bool)
    columns = np.flatnonzero(strip.any(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    return strip[:, left:right].copy(), (top, left)


def common_pixels(starts: np.ndarray, ends: np.ndarray, owners: np.ndarray) -> list[tuple[int, int, int]]:
    """Pairs of owners that have a pixel in common, the greater one first, each with the first such pixel.

    Args:
        starts, ends: (R,) int64, the first pixel and the end (exclusive) of runs; those of one owner are apart.
        owners: (R,) int64.

    Returns:
        At least one pair for each owner whose runs meet those of another one.
    """
    order = np.argsort(starts, kind="stable")
    starts, ends, owners = starts[order], ends[order], owners[order]
    reach = np.maximum.accumulate(ends)
    # The run that reaches farthest of those before each one.
    farthest = np.maximum.accumulate(np.where(ends == reach, np.arange(len(ends)), 0))
    pairs: dict[tuple[int, int], int] = {}
    for place in np.flatnonzero(starts[1:] < reach[:-1]) + 1:
        one, other = int(owners[place]), int(owners[farthest[place - 1]])
        pairs.setdefault((max(one, other), min(one, other)), int(starts[place]))
    return [(one, other, pixel) for (one, other), pixel in pairs.items() if one != other]
