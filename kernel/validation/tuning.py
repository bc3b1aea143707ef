"""Grid search for the post-processing's thresholds of one cell type.

Scores come from the very functions that make the submission. What neighbouring points of the grid have in common is
done once: binarising, sorting, corruption and the pixels that masks share per mask threshold, NMS per NMS threshold,
overlaps and IoU per minimum size. A higher confidence only cuts the tail, since masks are worked on best first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from kernel.postprocess.clean import binarise, corrupt_masks, is_confident, is_large_enough, remove_overlaps
from kernel.postprocess.instances import CellMasks, Instances
from kernel.postprocess.mask_nms import MaskOverlaps, best_first, common_slices, mask_nms
from kernel.runtime.files import whole_file
from kernel.settings import Thresholds
from kernel.validation.metric import iou_matrix, score_from_iou

#: "submission": exactly `postprocess_instances`. "original": what the published solution's tuning did instead, as far
#: as its description and its figures tell: small masks removed before the cut by confidence, and overlaps cut away only
#: from pairs that had overlapped before the corruption.
GridOrder = Literal["submission", "original"]


@dataclass(frozen=True)
class ThresholdGrid:
    """The values to try; every combination is scored."""

    mask_thresholds: tuple[float, ...]
    nms_thresholds: tuple[float, ...]
    min_sizes: tuple[int, ...]
    confidences: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.mask_thresholds), len(self.nms_thresholds), len(self.min_sizes), len(self.confidences)


class _MaskThresholdStage:
    """All that does not change while only NMS, minimum size and confidence do."""

    def __init__(
        self, instances: Instances, truth: CellMasks, mask_threshold: float, corrupt: bool, order: GridOrder
    ) -> None:
        masks = binarise(instances, mask_threshold)
        self.masks = masks.select(best_first(masks))
        self.sizes = self.masks.sizes
        self.overlaps = MaskOverlaps(self.masks)
        self.finished = corrupt_masks(self.masks) if corrupt else self.masks
        self.truth = truth
        self.order = order

    def is_confident(self, indices: np.ndarray, confidence: float) -> np.ndarray:
        return indices[is_confident(self.masks.scores[indices], confidence)]

    def is_large_enough(self, indices: np.ndarray, min_size: int) -> np.ndarray:
        return indices[is_large_enough(self.sizes[indices], min_size)]

    def iou(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """IoU (len(indices), T) with the truth once the masks at `indices`, best first, are freed of overlaps.

        And which of them (bool) keep a pixel: an emptied mask is not written, so it is no prediction.
        """
        chosen = self.finished.select(indices)
        if self.order == "submission":
            chosen = remove_overlaps(chosen)
        else:
            chosen = self._remove_earlier_overlaps(chosen, indices)
        return iou_matrix(chosen, self.truth), chosen.sizes > 0

    def _remove_earlier_overlaps(self, chosen: CellMasks, indices: np.ndarray) -> CellMasks:
        windows = chosen.windows.tolist()
        crops = []
        for rank, crop in enumerate(chosen.crops):
            crop = crop.copy()
            for better in np.flatnonzero(self.overlaps.intersects(int(indices[rank]), indices[:rank])).tolist():
                slices = common_slices(windows[rank], windows[better])
                if slices:
                    crop[slices[0]] &= ~chosen.crops[better][slices[1]]
            crops.append(crop)
        return chosen.with_crops(crops)

    def scores(self, kept: np.ndarray, min_size: int, confidences: tuple[float, ...]) -> list[float]:
        """The image's score at each confidence, for the masks that NMS kept."""
        large = self.is_large_enough(kept, min_size)
        iou, written = self.iou(large)
        scores = []
        for confidence in confidences:
            chosen, chosen_iou, chosen_written = self.is_confident(large, confidence), iou, written
            if self.order == "submission":
                # The rule that one mask stays sees only confident ones: where it applies, it may keep another.
                expected = self.is_large_enough(self.is_confident(kept, confidence), min_size)
                if not np.array_equal(expected, chosen):
                    chosen = expected
                    chosen_iou, chosen_written = self.iou(expected)
            count = len(chosen)
            scores.append(score_from_iou(chosen_iou[:count][chosen_written[:count]]))
        return scores


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
            kept = mask_nms(stage.masks, nms_threshold, stage.overlaps)
            for depth, min_size in enumerate(grid.min_sizes):
                scores[row, column, depth] = stage.scores(kept, min_size, grid.confidences)
    return scores


def mean_score_grid(
    images: Iterable[tuple[Instances, CellMasks]],
    grid: ThresholdGrid,
    *,
    corrupt: bool,
    order: GridOrder = "submission",
) -> np.ndarray:
    """`score_grid`, averaged over the (instances, truth) of one cell type's images; NaN without images.

    Images are taken one at a time, so that a generator need not hold more than one.
    """
    total, count = np.zeros(grid.shape), 0
    for instances, truth in images:
        total += score_grid(instances, truth, grid, corrupt=corrupt, order=order)
        count += 1
    return total / count if count else np.full(grid.shape, np.nan)


#: What `python -m kernel tune` tries.
DEFAULT_GRID = ThresholdGrid(
    mask_thresholds=(0.35, 0.4, 0.45, 0.5, 0.55),
    nms_thresholds=(0.05, 0.1, 0.15, 0.2, 0.3),
    min_sizes=(0, 20, 40, 70, 100, 150),
    confidences=tuple(step / 20 for step in range(2, 18)),
)


def write_thresholds(path: Path, tuned: Mapping[str, Thresholds]) -> None:
    """Put thresholds by cell type into the manifest file `path`, all else in it left as it is; whole or not at all."""
    data = json.loads(path.read_text(encoding="utf-8"))
    by_type = data.setdefault("ensemble", {}).setdefault("thresholds", {})
    for cell_type, thresholds in tuned.items():
        by_type.setdefault(cell_type, {}).update(
            mask_threshold=thresholds.mask_threshold,
            mask_nms_threshold=thresholds.mask_nms_threshold,
            min_size=thresholds.min_size,
            confidence=thresholds.confidence,
        )
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def best_thresholds(grid: ThresholdGrid, scores: np.ndarray, base: Thresholds) -> Thresholds:
    """`base` with the grid's best point put in; the first of equally good ones.

    Raises:
        ValueError: the scores are not of the grid's shape or none is a number.
    """
    if scores.shape != grid.shape or np.isnan(scores).all():
        raise ValueError(f"no scores of shape {grid.shape} to choose from, got {scores.shape}")
    row, column, depth, last = np.unravel_index(np.nanargmax(scores), scores.shape)
    return replace(
        base,
        mask_threshold=grid.mask_thresholds[row],
        mask_nms_threshold=grid.nms_thresholds[column],
        min_size=grid.min_sizes[depth],
        confidence=grid.confidences[last],
    )
