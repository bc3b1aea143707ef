"""The score of an image at every point of a grid of the post-processing's thresholds.

Each score is, to the last bit, that of the very functions that make the submission (`score_at`). What neighbouring
points have in common is done once:

- for each mask threshold: binarising, sorting, corruption, and the pixels that masks share;
- for each mask and the better masks that take pixels from it, which are the same at most points: its IoU with the
  truth;
- for all confidences together: a higher one only removes the worst masks, and masks are worked on best first, so that
  running sums give the score at each confidence.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from kernel.masks.instances import CellMasks, Instances
from kernel.postprocess.clean import binarise, corrupt_masks, is_confident, is_large_enough, postprocess_instances
from kernel.postprocess.mask_nms import (
    MaskOverlaps,
    best_first,
    common_slices,
    count_common_pixels,
    windows_common_area,
)
from kernel.scoring.metric import IOU_THRESHOLDS, image_score
from kernel.settings import Thresholds
from kernel.tuning.threshold_grid import ThresholdGrid

_IOU_THRESHOLDS = IOU_THRESHOLDS.tolist()

#: "submission": exactly `postprocess_instances`. "original": what the published solution's tuning did instead, as
#: far as its description and its figures show: small masks removed before the cut by confidence, overlaps cut away only
#: from pairs that had overlapped before the corruption, and masks that end empty counted as predictions.
GridOrder = Literal["submission", "original"]


@dataclass(frozen=True)
class _Hits:
    """One prediction against the truths, where its IoU is above the metric's lowest threshold."""

    counts: bool  # whether it is a prediction: a submission has no rows for empty masks, the original counted them
    truths: tuple[int, ...]
    passed: tuple[int, ...]  # for each of them, how many of the metric's thresholds the IoU is above: 1 to 10

    @property
    def most_passed(self) -> int:
        return max(self.passed, default=0)


class _BinarisedImage:
    """An image at one mask threshold: all that NMS, minimum size and confidence do not change. Best mask first."""

    def __init__(
        self, instances: Instances, truth: CellMasks, mask_threshold: float, corrupt: bool, order: GridOrder
    ) -> None:
        masks = binarise(instances, mask_threshold)
        self.masks = masks.select(best_first(masks))
        self.sizes = self.masks.sizes
        self.finished = corrupt_masks(self.masks) if corrupt else self.masks
        self.windows = self.masks.windows
        self.window_rows = self.windows.tolist()
        self.truth = truth
        self.truth_windows = truth.windows
        self.truth_rows = self.truth_windows.tolist()
        self.truth_sizes = truth.sizes
        self.order = order
        overlaps = MaskOverlaps(self.masks)
        overlapping = _better_neighbours(overlaps)
        #: For each mask, the better ones that share a pixel with it, and the IoU.
        self.ious = [
            [(other, self._iou(overlaps.common_pixels(index, other), index, other)) for other in better]
            for index, better in enumerate(overlapping)
        ]
        #: For each mask, the better ones that may take pixels from it: the original asked before the corruption.
        self.better = (
            _better_neighbours(MaskOverlaps(self.finished)) if corrupt and order == "submission" else overlapping
        )
        self._known_hits: dict[tuple[int, ...], _Hits] = {}

    def _iou(self, common: int, index: int, other: int) -> float:
        return common / int(self.sizes[index] + self.sizes[other] - common)

    def nms(self, iou_threshold: float) -> np.ndarray:
        """`mask_nms` of these masks, from IoUs that are counted once for all thresholds: indices, rising."""
        if iou_threshold == 0:
            return np.arange(len(self.masks))
        kept = [False] * len(self.masks)
        for index, neighbours in enumerate(self.ious):
            kept[index] = not any(kept[other] and iou > iou_threshold for other, iou in neighbours)
        return np.flatnonzero(kept)

    def hits(self, index: int, better: tuple[int, ...]) -> _Hits:
        """What mask `index` hits once the masks `better` have taken their pixels.

        Most masks meet the same few neighbours at most points of the grid, so that this is remembered.
        """
        key = (index, *better)
        if key not in self._known_hits:
            self._known_hits[key] = self._count_hits(index, better)
        return self._known_hits[key]

    def _count_hits(self, index: int, better: tuple[int, ...]) -> _Hits:
        crop, window = self.finished.crops[index], self.window_rows[index]
        if better:
            crop = crop.copy()
        for other in better:
            slices = common_slices(window, self.window_rows[other])
            if slices:
                crop[slices[0]] &= ~self.finished.crops[other][slices[1]]
        size = int(np.count_nonzero(crop))
        # The IoU cannot be more than if the smaller of the two, or all of the windows' common area, were shared.
        bound = np.minimum(
            windows_common_area(self.windows[index], self.truth_windows), np.minimum(self.truth_sizes, size)
        )
        possible = bound > IOU_THRESHOLDS[0] * (size + self.truth_sizes - bound) * (1 - 1e-9)
        truths, passed = [], []
        for truth in np.flatnonzero(possible).tolist():
            common = count_common_pixels(crop, window, self.truth.crops[truth], self.truth_rows[truth])
            iou = common / max(size + int(self.truth_sizes[truth]) - common, 1)
            count = bisect_left(_IOU_THRESHOLDS, iou)
            if count:
                truths.append(truth)
                passed.append(count)
        return _Hits(size > 0 or self.order == "original", tuple(truths), tuple(passed))

    def scores(self, kept: np.ndarray, min_size: int, confidences: tuple[float, ...]) -> np.ndarray:
        """The image's score at each confidence, for the masks that NMS kept: indices, rising."""
        confident = np.array([np.count_nonzero(is_confident(self.masks.scores, value)) for value in confidences])
        if self.order == "original":
            large = kept[is_large_enough(self.sizes[kept], min_size)]
            return self._prefix_scores(large, np.searchsorted(large, confident))
        large = kept[self.sizes[kept] > min_size]
        counts = np.searchsorted(large, confident)
        scores = self._prefix_scores(large, counts)
        # Where no confident mask is large enough, the largest of them stays: another one at each confidence.
        for place in np.flatnonzero(counts == 0).tolist():
            few = kept[: np.searchsorted(kept, confident[place])]
            largest = few[is_large_enough(self.sizes[few], min_size)]
            scores[place] = self._prefix_scores(largest, np.array([len(largest)]))[0]
        return scores

    def _prefix_scores(self, chosen: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Scores (C,) of the first `counts` (C,) of the masks `chosen`, as `score_from_iou` gives them.

        A worse mask takes nothing from a better one, so that one pass over the masks gives all prefixes.
        """
        inside = set(chosen.tolist())
        found = [
            self.hits(index, tuple(other for other in self.better[index] if other in inside))
            for index in chosen.tolist()
        ]
        predictions = np.array([hits.counts for hits in found], dtype=bool)
        if not len(self.truth):
            return (_counts_before(predictions, counts) == 0).astype(float)
        ranks = np.repeat(np.arange(len(found)), [len(hits.truths) for hits in found])
        truths = np.array([truth for hits in found for truth in hits.truths], dtype=np.int64)
        passed = np.array([count for hits in found for count in hits.passed], dtype=np.int64)
        most_passed = np.array([hits.most_passed for hits in found], dtype=np.int64)

        thresholds = np.arange(len(IOU_THRESHOLDS))
        hit = passed[:, None] > thresholds  # (hits, thresholds), by rank
        # How many hits a truth has had by then: the sum down its own rows, which lie together, in order of rank.
        together = np.argsort(truths, kind="stable")
        sums = np.cumsum(hit[together], axis=0, dtype=np.int64)
        starts = np.searchsorted(truths[together], truths[together])
        ordinals = np.empty_like(sums)
        ordinals[together] = sums - np.where(starts[:, None] > 0, sums[starts - 1], 0)

        places = np.searchsorted(ranks, counts)  # hits of the first `counts` masks come before these places
        hit_once = _counts_before(hit & (ordinals == 1), places)
        hit_again = _counts_before(hit & (ordinals == 2), places)
        missing = _counts_before(predictions[:, None] & (most_passed[:, None] <= thresholds), counts)
        true_positives = hit_once - hit_again
        false_positives = missing + hit_again
        false_negatives = len(self.truth) - hit_once
        return np.mean(true_positives / (true_positives + false_positives + false_negatives), axis=1)


def _better_neighbours(overlaps: MaskOverlaps) -> list[list[int]]:
    """For each mask of a list sorted best first, the better ones that share a pixel with it."""
    return [
        np.flatnonzero(overlaps.intersects(index, np.arange(index))).tolist() for index in range(len(overlaps.sizes))
    ]


def _counts_before(events: np.ndarray, places: np.ndarray) -> np.ndarray:
    """(C, ...) how many of the first `places` (C,) rows of `events` (M, ...) bool are true."""
    sums = np.zeros((len(events) + 1, *events.shape[1:]), dtype=np.int64)
    np.cumsum(events, axis=0, out=sums[1:])
    return sums[places]


def score_grid(
    instances: Instances,
    truth: CellMasks,
    grid: ThresholdGrid,
    *,
    corrupt: bool,
    order: GridOrder = "submission",
) -> np.ndarray:
    """The metric of one image at every point of the grid.

    Args:
        instances: N detected cells in any order.
        truth: T annotated masks, which may overlap.
        grid: the thresholds to try.
        corrupt: whether masks are corrupted, as for astro.
        order: see `GridOrder`; leave it alone but to compare with the published solution.

    Returns:
        Scores of shape `grid.shape`: mask threshold, NMS, minimum size, confidence; float64.

    Raises:
        ValueError: an unknown order.
    """
    if order not in get_args(GridOrder):
        raise ValueError(f"order '{order}' is not one of {get_args(GridOrder)}")
    scores = np.zeros(grid.shape)
    for row, mask_threshold in enumerate(grid.mask_thresholds):
        image = _BinarisedImage(instances, truth, mask_threshold, corrupt, order)
        for column, nms_threshold in enumerate(grid.nms_thresholds):
            kept = image.nms(nms_threshold)
            for depth, min_size in enumerate(grid.min_sizes):
                scores[row, column, depth] = image.scores(kept, min_size, grid.confidences)
    return scores


def score_at(instances: Instances, truth: CellMasks, thresholds: Thresholds) -> float:
    """The metric of one image, 0 to 1, by the submission's own functions."""
    return image_score(postprocess_instances(instances, thresholds), truth)


def score_grids(images: Iterable[tuple[Instances, CellMasks]], grid: ThresholdGrid, *, corrupt: bool) -> np.ndarray:
    """`score_grid` of each image, as (instances, truth), one after the other: a generator need not hold more than one.

    Returns:
        (images, points of the grid) float64; points are counted as `ravel` does.
    """
    rows = [score_grid(instances, truth, grid, corrupt=corrupt).ravel() for instances, truth in images]
    return np.stack(rows) if rows else np.zeros((0, int(np.prod(grid.shape))))
