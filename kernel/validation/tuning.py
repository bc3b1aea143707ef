"""The score of an image at every point of a grid of the post-processing's thresholds.

Each score is, to the last bit, that of the very functions that make the submission (`score_at`). What neighbouring
points have in common is done once: binarising, sorting, corruption and the pixels that masks share per mask threshold;
IoUs with the truth per mask and the better neighbours that cut it, which are the same at most points; and a higher
confidence only cuts the tail, since masks are worked on best first, so that running sums tell all confidences at once.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from kernel.postprocess.clean import binarise, corrupt_masks, is_confident, is_large_enough, postprocess_instances
from kernel.postprocess.instances import CellMasks, Instances
from kernel.postprocess.mask_nms import (
    MaskOverlaps,
    best_first,
    common_slices,
    count_common_pixels,
    windows_common_area,
)
from kernel.settings import Thresholds
from kernel.validation.metric import IOU_THRESHOLDS, image_score

_IOU_LEVELS = IOU_THRESHOLDS.tolist()

#: "submission": exactly `postprocess_instances`. "original": what the published solution's tuning did instead, as far
#: as its description and its figures tell: small masks removed before the cut by confidence, overlaps cut away only
#: from pairs that had overlapped before the corruption, and masks that end empty counted as predictions.
GridOrder = Literal["submission", "original"]


#: What is tuned of `Thresholds`, in the order of the grid's axes.
TUNED_FIELDS = ("mask_threshold", "mask_nms_threshold", "min_size", "confidence")


@dataclass(frozen=True)
class ThresholdGrid:
    """The values to try; every combination is scored."""

    mask_thresholds: tuple[float, ...]
    nms_thresholds: tuple[float, ...]
    min_sizes: tuple[int, ...]
    confidences: tuple[float, ...]

    @property
    def axes(self) -> tuple[tuple[float, ...], ...]:
        """The values along each axis, in the order of `TUNED_FIELDS`."""
        return self.mask_thresholds, self.nms_thresholds, self.min_sizes, self.confidences

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.mask_thresholds), len(self.nms_thresholds), len(self.min_sizes), len(self.confidences)

    def positions(self) -> np.ndarray:
        """(P, 4) float64: the place of each point along each axis, in steps; points are counted as `ravel` does."""
        return np.indices(self.shape).reshape(4, -1).T.astype(np.float64)

    def position_of(self, thresholds: Thresholds) -> np.ndarray:
        """(4,) float64: the place of any thresholds; between values by interpolation, beyond the ends at the ends.

        The values must rise along each axis.
        """
        return np.array(
            [
                np.interp(getattr(thresholds, name), values, np.arange(len(values)))
                for name, values in zip(TUNED_FIELDS, self.axes, strict=True)
            ]
        )

    def including(self, thresholds: Thresholds) -> ThresholdGrid:
        """This grid with the values of `thresholds` as well, so that any of them can stay; axes in rising order."""
        masks, nms, sizes, confidences = (
            tuple(sorted({*values, getattr(thresholds, name)}))
            for name, values in zip(TUNED_FIELDS, self.axes, strict=True)
        )
        return ThresholdGrid(masks, nms, tuple(int(size) for size in sizes), confidences)

    def thresholds_at(self, point: int, base: Thresholds) -> Thresholds:
        """`base` with the values of a point put in."""
        places = np.unravel_index(point, self.shape)
        values = [axis[int(place)] for axis, place in zip(self.axes, places, strict=True)]
        return replace(base, **dict(zip(TUNED_FIELDS, values, strict=True)))


@dataclass(frozen=True)
class _Hits:
    """One prediction against the truths, where its IoU is above the metric's lowest threshold."""

    counts: bool  # whether it is a prediction: a submission has no rows for empty masks, the original counted them
    truths: tuple[int, ...]
    levels: tuple[int, ...]  # for each of them, how many of the metric's thresholds the IoU is above: 1 to 10

    @property
    def best_level(self) -> int:
        return max(self.levels, default=0)


class _MaskThresholdStage:
    """All that does not change while only NMS, minimum size and confidence do. Masks are sorted, best first."""

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
        """`mask_nms` of the stage's masks, from IoUs that are counted once for all thresholds: indices, rising."""
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
        truths, levels = [], []
        for truth in np.flatnonzero(possible).tolist():
            common = count_common_pixels(crop, window, self.truth.crops[truth], self.truth_rows[truth])
            iou = common / max(size + int(self.truth_sizes[truth]) - common, 1)
            level = bisect_left(_IOU_LEVELS, iou)
            if level:
                truths.append(truth)
                levels.append(level)
        return _Hits(size > 0 or self.order == "original", tuple(truths), tuple(levels))

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

        A worse mask takes nothing from a better one, so that one pass over the masks tells all prefixes.
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
        levels = np.array([level for hits in found for level in hits.levels], dtype=np.int64)
        best_levels = np.array([hits.best_level for hits in found], dtype=np.int64)

        thresholds = np.arange(len(IOU_THRESHOLDS))
        hit = levels[:, None] > thresholds  # (hits, thresholds), by rank
        # How many hits a truth has had by then: the sum down its own rows, which lie together, in order of rank.
        together = np.argsort(truths, kind="stable")
        sums = np.cumsum(hit[together], axis=0, dtype=np.int64)
        starts = np.searchsorted(truths[together], truths[together])
        ordinals = np.empty_like(sums)
        ordinals[together] = sums - np.where(starts[:, None] > 0, sums[starts - 1], 0)

        places = np.searchsorted(ranks, counts)  # hits of the first `counts` masks come before these places
        hit_once = _counts_before(hit & (ordinals == 1), places)
        hit_again = _counts_before(hit & (ordinals == 2), places)
        missing = _counts_before(predictions[:, None] & (best_levels[:, None] <= thresholds), counts)
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
    """
    if order not in get_args(GridOrder):
        raise ValueError(f"order '{order}' is not one of {get_args(GridOrder)}")
    scores = np.zeros(grid.shape)
    for row, mask_threshold in enumerate(grid.mask_thresholds):
        stage = _MaskThresholdStage(instances, truth, mask_threshold, corrupt, order)
        for column, nms_threshold in enumerate(grid.nms_thresholds):
            kept = stage.nms(nms_threshold)
            for depth, min_size in enumerate(grid.min_sizes):
                scores[row, column, depth] = stage.scores(kept, min_size, grid.confidences)
    return scores


def score_at(instances: Instances, truth: CellMasks, thresholds: Thresholds) -> float:
    """The metric of one image, 0 to 1, by the submission's own functions."""
    return image_score(postprocess_instances(instances, thresholds).masks, truth)


def score_grids(images: Iterable[tuple[Instances, CellMasks]], grid: ThresholdGrid, *, corrupt: bool) -> np.ndarray:
    """(images, points of the grid) float64: `score_grid` of each (instances, truth), points counted as `ravel` does.

    Images are taken one at a time, so that a generator need not hold more than one.
    """
    rows = [score_grid(instances, truth, grid, corrupt=corrupt).ravel() for instances, truth in images]
    return np.stack(rows) if rows else np.zeros((0, int(np.prod(grid.shape))))


#: What `python -m kernel tune` tries.
DEFAULT_GRID = ThresholdGrid(
    mask_thresholds=(0.35, 0.4, 0.45, 0.5, 0.55),
    nms_thresholds=(0.05, 0.1, 0.15, 0.2, 0.3),
    min_sizes=(0, 20, 40, 70, 100, 150),
    confidences=tuple(step / 20 for step in range(2, 18)),
)
