"""COCO segmentations (polygons, run lengths) to masks and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from pycocotools import mask as mask_utils

from kernel.errors import InputError
from kernel.masks.instances import tight_window

#: Of a number's last characters; none of 64 bits has more, and one that goes on for ever takes time without end.
LARGEST_SHIFT = 60


def encode_crop(crop: np.ndarray, window: Sequence[int], image_shape: tuple[int, int]) -> Any:
    """pycocotools' run lengths of a crop (h, w) bool that lies at `window` (y0, x0, y1, x1) of an image.

    The image is never made whole: only its columns with the crop are.
    """
    y0, x0, y1, x1 = window
    height, width = image_shape
    strip = np.zeros((height, x1 - x0), bool)
    strip[y0:y1] = crop
    # Runs go down the columns: those before the crop and after it only make the first and the last run longer.
    changes = np.flatnonzero(np.diff(np.concatenate([[False], strip.ravel(order="F"), [False]])))
    runs = np.diff(np.concatenate([[0], changes + x0 * height, [height * width]]))
    counts = runs.tolist() if runs[-1] else runs[:-1].tolist()
    return mask_utils.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def decode_columns(counts: str, image_shape: tuple[int, int], left: int, width: int) -> tuple[np.ndarray, int]:
    """(H, width) bool of the columns from `left` on of compressed run lengths, and how many pixels all columns have.

    Raises:
        InputError: as `decode_counts`.
    """
    runs = _filling_runs(counts, image_shape)
    height = image_shape[0]
    ends = (np.cumsum(runs) - left * height).clip(0, width * height)
    steps = np.zeros(width * height + 1, np.int8)
    np.add.at(steps, ends[:-1:2], 1)  # where runs of ones begin
    np.add.at(steps, ends[1::2], -1)
    return np.cumsum(steps[:-1], dtype=np.int8).reshape(width, height).T.astype(bool), sum(runs[1::2])


def _filling_runs(counts: str, image_shape: tuple[int, int]) -> list[int]:
    """The runs that the text holds; errors as `decode_counts`."""
    runs = parse_counts(counts)
    if sum(runs) != image_shape[0] * image_shape[1]:
        raise InputError(f"'{counts[:60]}': run lengths of an image of another size than {image_shape}")
    return runs


def decode_counts(counts: str, image_shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of compressed run lengths.

    Raises:
        InputError: they are no run lengths, or do not fill the image.
    """
    _filling_runs(counts, image_shape)  # pycocotools does not look: the rest would be whatever the memory holds
    return mask_utils.decode(cast(Any, {"size": list(image_shape), "counts": counts})).astype(bool)


def parse_counts(counts: str) -> list[int]:
    """The lengths of the runs, of zeros and ones in turn, that COCO's compressed text holds.

    Each number is written in characters of six bits from "0" on, five of them value, lowest first, the sixth "more
    follows", the sign in the last value bit; from the fourth run on it is the difference to the run before the last.

    Raises:
        InputError: it is no such text.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > LARGEST_SHIFT:
            raise InputError(f"'{counts[:60]}' are no compressed run lengths of COCO")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value, shift = 0, 0
    if shift or min(runs, default=0) < 0:
        raise InputError(f"'{counts[:60]}' are no compressed run lengths of COCO")
    return runs


def decode_segmentation(segmentation: Any, image_shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """Any of COCO's three forms (polygons, run lengths as numbers or compressed) as a tight crop and its corner.

    Returns:
        crop (h, w) bool and its top left pixel (y, x) in the image; (0, 0) in size for a mask without a pixel.

    Raises:
        InputError: it is none of the three forms.
    """
    mask = _segmentation_mask(segmentation, image_shape)
    y0, x0, y1, x1 = tight_window(mask)
    return mask[y0:y1, x0:x1].copy(), (y0, x0)


def _segmentation_mask(segmentation: Any, image_shape: tuple[int, int]) -> np.ndarray:
    height, width = image_shape
    if isinstance(segmentation, list) and segmentation:
        for polygon in segmentation:
            flaw = _polygon_flaw(polygon, max(height, width))
            if flaw:
                raise InputError(flaw)
        rle = mask_utils.merge(cast(Any, mask_utils.frPyObjects(segmentation, height, width)))
        return mask_utils.decode(rle).astype(bool)
    if isinstance(segmentation, dict) and segmentation.get("size") == [height, width]:
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            return decode_counts(counts, image_shape)
        whole = isinstance(counts, list) and all(isinstance(run, int) and run >= 0 for run in counts)
        if whole and sum(cast(list[int], counts)) == height * width:
            rle = mask_utils.frPyObjects(cast(Any, segmentation), height, width)
            return mask_utils.decode(cast(Any, rle)).astype(bool)
    raise InputError(
        f"a segmentation must be a list of polygons, or run lengths that fill the image of {height} x {width}, "
        f"got {str(segmentation)[:60]}"
    )


def sound_polygons(segmentation: list[Any], image_shape: tuple[int, int]) -> tuple[list[Any], list[str]]:
    """Of a list of polygons those that can be drawn, and what is wrong with each of the others.

    Tools leave fragments of one or two corners beside a cell's outline, and a cell in two parts has two polygons.
    """
    flaws = [_polygon_flaw(polygon, max(image_shape)) for polygon in segmentation]
    return [polygon for polygon, flaw in zip(segmentation, flaws, strict=True) if not flaw], [*filter(None, flaws)]


def _polygon_flaw(polygon: Any, side: int) -> str:
    """Why a polygon cannot be drawn, or "": pycocotools takes some for a box, or for a line across the memory."""
    if not isinstance(polygon, list) or len(polygon) < 6:
        flat = "; a segmentation is a list of polygons, [[x, y, ...], ...]" if isinstance(polygon, (int, float)) else ""
        return f"a polygon needs x and y of at least three corners, got {str(polygon)[:60]}{flat}"
    if len(polygon) % 2:
        return f"a polygon needs x and y of each corner, got an odd number of values ({len(polygon)})"
    for value in polygon:
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            return f"a polygon's corners are numbers, got {value!r}"
        if not -side <= value <= 2 * side:
            return f"a polygon's corner at {value:g} lies far outside the image"
    return ""
