"""The competition's metric: mean over IoU thresholds of TP / (TP + FP + FN), per image, per cell type and overall.

A truth is hit where exactly one prediction has an IoU *strictly above* the threshold. False positives are the
predictions that hit nothing, and the truths that are hit more than once (impossible where predictions do not overlap);
false negatives are the truths that nothing hits. The class is not scored.

Empty images: without truth and without prediction there is nothing to be wrong about, 1; with only one of them, 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from kernel.masks.instances import CellMasks
from kernel.postprocess.mask_nms import count_common_pixels, windows_common_area

#: 0.5 to 0.95 by 0.05, as quotients, so that an IoU of exactly 3/5 is not above "0.6".
IOU_THRESHOLDS = np.arange(10, 20) / 20


@dataclass(frozen=True)
class MetricScores:
    """Mean scores of a set of images: all images alike, and each cell type's own."""

    overall: float
    per_type: dict[str, float]
    images: int


def iou_matrix(pred: CellMasks, truth: CellMasks) -> np.ndarray:
    """Mask IoU of predictions and truths of one image.

    Returns:
        (P, T) float64; 0 for an empty mask.

    Raises:
        ValueError: the images differ in shape.
    """
    if pred.image_shape != truth.image_shape:
        raise ValueError(f"predictions in an image of {pred.image_shape}, truth in one of {truth.image_shape}")
    common = np.zeros((len(pred), len(truth)))
    pred_windows, truth_windows = pred.windows, truth.windows
    truth_rows = truth_windows.tolist()
    for index, (crop, window) in enumerate(zip(pred.crops, pred_windows.tolist(), strict=True)):
        for other in np.flatnonzero(windows_common_area(pred_windows[index], truth_windows)).tolist():
            common[index, other] = count_common_pixels(crop, window, truth.crops[other], truth_rows[other])
    union = pred.sizes[:, None] + truth.sizes[None] - common
    return common / np.maximum(union, 1)


def score_from_iou(iou: np.ndarray) -> float:
    """The image's score, 0 to 1, from the IoU (P, T) of predictions and truths."""
    predictions, truths = iou.shape
    if predictions == 0 or truths == 0:
        return float(predictions == truths)
    hits = iou[None] > IOU_THRESHOLDS[:, None, None]  # (thresholds, P, T)
    hits_of_truth = hits.sum(axis=1)
    true_positives = (hits_of_truth == 1).sum(axis=1)
    false_positives = (~hits.any(axis=2)).sum(axis=1) + (hits_of_truth > 1).sum(axis=1)
    false_negatives = (hits_of_truth == 0).sum(axis=1)
    return float(np.mean(true_positives / (true_positives + false_positives + false_negatives)))


def image_score(pred: CellMasks, truth: CellMasks) -> float:
    """The score of one image's masks, 0 to 1. Truth may overlap; see the module on empty images.

    Raises:
        ValueError: the images differ in shape.
    """
    return score_from_iou(iou_matrix(pred, truth))


def mean_scores(scores: Iterable[tuple[str, float]]) -> MetricScores:
    """Means of (cell type, image's score): every image counts the same; NaN for no images."""
    by_type: dict[str, list[float]] = {}
    for cell_type, score in scores:
        by_type.setdefault(cell_type, []).append(score)
    everything = [score for group in by_type.values() for score in group]
    return MetricScores(
        overall=float(np.mean(everything)) if everything else float("nan"),
        per_type={cell_type: float(np.mean(group)) for cell_type, group in by_type.items()},
        images=len(everything),
    )
