"""Greedy non-maximum suppression by mask IoU, on crops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from kernel.masks.instances import CellMasks

#: The side of the blocks in which masks are looked up, in pixels: several cells wide.
BLOCK_SIDE = 128

CropWindow = Sequence[int]  # y0, x0, y1, x1 of a crop in its image, the end exclusive


def common_slices(window: CropWindow, other: CropWindow) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """The common pixels of two crops, as slices into the one and into the other; None if there are none."""
    top, left = max(window[0], other[0]), max(window[1], other[1])
    bottom, right = min(window[2], other[2]), min(window[3], other[3])
    if top >= bottom or left >= right:
        return None
    ours = slice(top - window[0], bottom - window[0]), slice(left - window[1], right - window[1])
    theirs = slice(top - other[0], bottom - other[0]), slice(left - other[1], right - other[1])
    return ours, theirs


def count_common_pixels(crop: np.ndarray, window: CropWindow, other_crop: np.ndarray, other: CropWindow) -> int:
    """The number of pixels that two masks share, given their crops (bool) and windows."""
    slices = common_slices(window, other)
    return int(np.count_nonzero(crop[slices[0]] & other_crop[slices[1]])) if slices else 0


def windows_common_area(window: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """(N,) int64: the number of pixels that a window (4,) shares with each of `windows` (N, 4); y0, x0, y1, x1."""
    height = np.minimum(window[2], windows[:, 2]) - np.maximum(window[0], windows[:, 0])
    width = np.minimum(window[3], windows[:, 3]) - np.maximum(window[1], windows[:, 1])
    return np.maximum(height, 0) * np.maximum(width, 0)


class MaskOverlaps:
    """Counts of the pixels that pairs of masks share, each counted when it is first needed.

    One NMS needs only the few pairs that are near each other.
    """

    def __init__(self, masks: CellMasks) -> None:
        self.masks = masks
        self.sizes = masks.sizes
        self.windows = masks.windows
        self._window_rows = self.windows.tolist()  # plain integers: indexing arrays one by one is slow
        self._known: dict[tuple[int, int], int] = {}

    def common_pixels(self, first: int, second: int) -> int:
        """The number of pixels that the masks at two indices share."""
        pair = (first, second) if first < second else (second, first)
        if pair not in self._known:
            self._known[pair] = count_common_pixels(
                self.masks.crops[pair[0]], self._window_rows[pair[0]],
                self.masks.crops[pair[1]], self._window_rows[pair[1]],
            )  # fmt: skip
        return self._known[pair]

    def exceeds(self, index: int, others: np.ndarray, iou_threshold: float) -> bool:
        """Whether the IoU of mask `index` with any of `others` is strictly above the threshold."""
        size, sizes = self.sizes[index], self.sizes[others]
        bound = np.minimum(windows_common_area(self.windows[index], self.windows[others]), np.minimum(size, sizes))
        # The IoU is highest where the windows' common area, or the whole smaller mask, is shared.
        possible = (bound > 0) & (bound > iou_threshold * (size + sizes - bound) * (1 - 1e-9))
        for other in others[possible].tolist():
            common = self.common_pixels(index, other)
            if common / (size + self.sizes[other] - common) > iou_threshold:
                return True
        return False

    def intersects(self, index: int, others: np.ndarray) -> np.ndarray:
        """(len(others),) bool: whether each mask of `others` shares a pixel with mask `index`."""
        near = windows_common_area(self.windows[index], self.windows[others]) > 0
        near[near] = [self.common_pixels(index, other) > 0 for other in others[near].tolist()]
        return near


def best_first(masks: CellMasks) -> np.ndarray:
    """(N,) int64 indices by falling score; masks of equal scores by size, place and pixels.

    The result thus does not depend on the order of the input.
    """
    sizes, offsets, scores = masks.sizes.tolist(), masks.offsets_yx.tolist(), masks.scores.tolist()

    def key(index: int) -> tuple:
        crop = masks.crops[index]
        return -scores[index], -sizes[index], offsets[index], crop.shape, crop.tobytes()

    return np.array(sorted(range(len(masks)), key=key), dtype=np.int64)


def mask_nms(masks: CellMasks, iou_threshold: float) -> np.ndarray:
    """Greedy NMS over all classes: a mask goes if its IoU with a better, kept one is strictly above the threshold.

    An empty mask has an IoU of 0 with every other.

    Args:
        masks: N masks in any order.
        iou_threshold: 0 to 1; 0: no NMS, all are kept.

    Returns:
        Indices of the kept masks, best first, int64.
    """
    order = best_first(masks)
    if iou_threshold == 0:
        return order
    overlaps = MaskOverlaps(masks)
    blocks = blocks_of(overlaps.windows)
    kept: list[int] = []
    kept_in: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for index in order.tolist():
        near = {other for block in blocks[index] for other in kept_in[block]}
        if not overlaps.exceeds(index, np.fromiter(near, np.int64, len(near)), iou_threshold):
            kept.append(index)
            for block in blocks[index]:
                kept_in[block].append(index)
    return np.array(kept, dtype=np.int64)


def blocks_of(windows: np.ndarray) -> list[list[tuple[int, int]]]:
    """For each window (N, 4), y0, x0, y1, x1, the blocks of the image that it reaches into; none where it is empty.

    Windows that share a pixel share a block. So NMS need not look at all masks of a large image for each one.
    """
    first, last = windows[:, :2] // BLOCK_SIDE, (windows[:, 2:] - 1) // BLOCK_SIDE
    return [
        [(row, column) for row in range(top, bottom + 1) for column in range(left, right + 1)]
        if y1 > y0 and x1 > x0
        else []
        for (top, left), (bottom, right), (y0, x0, y1, x1) in zip(
            first.tolist(), last.tolist(), windows.tolist(), strict=True
        )
    ]
