"""Boxes: what all members and views say of the same proposals, averaged; then one NMS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torchvision.ops import clip_boxes_to_image, nms

from kernel.ensemble.views import View, boxes_into_view, flip_boxes
from kernel.models.detectors import DETECTOR_KINDS, Detector, ViewFeatures
from kernel.settings import Thresholds


@dataclass(frozen=True)
class MergedBoxes:
    """The mean answer to each proposal, row by row."""

    boxes_xyxy: torch.Tensor  # (N, 4) float32 pixels
    scores: torch.Tensor  # (N, classes) float32 probabilities, not renormalised


@dataclass(frozen=True)
class Detections:
    """Boxes that stay, best first."""

    boxes_xyxy: torch.Tensor  # (N, 4) float32 pixels
    scores: torch.Tensor  # (N,) float32
    labels: torch.Tensor  # (N,) int64


def predict_view_boxes(
    kind: str,
    detector: Detector,
    features: ViewFeatures,
    views: tuple[View, ...],
    boxes_xyxy: torch.Tensor,
    image_shape: tuple[int, int],
    num_classes: int,
) -> MergedBoxes:
    """One member's mean over `views`, whose features are batched in `features`, for boxes (N, 4) of the image."""
    in_views = torch.stack([boxes_into_view(boxes_xyxy, view, image_shape) for view in views])
    refined, scores = DETECTOR_KINDS[kind].predict_boxes(detector, features, in_views, image_shape, num_classes)
    back = torch.stack([flip_boxes(boxes, view, image_shape) for boxes, view in zip(refined, views, strict=True)])
    return MergedBoxes(back.mean(dim=0), scores.mean(dim=0))


def merge_boxes(predictions: Iterable[tuple[float, MergedBoxes]]) -> MergedBoxes:
    """Average predictions of the same proposals, each given with its weight: its member's, times its views."""
    predictions = list(predictions)
    total = sum(weight for weight, _ in predictions)
    return MergedBoxes(
        torch.stack([p.boxes_xyxy * (weight / total) for weight, p in predictions]).sum(dim=0),
        torch.stack([p.scores * (weight / total) for weight, p in predictions]).sum(dim=0),
    )


def select_boxes(merged: MergedBoxes, thresholds: Thresholds, bbox_nms: bool) -> Detections:
    """Label each box by its best class; NMS over all classes together; then the score threshold; best first.

    Without `bbox_nms` there is no NMS; the score threshold applies all the same.
    """
    boxes = merged.boxes_xyxy
    if len(boxes) == 0:
        return Detections(boxes, boxes.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=boxes.device))
    scores, labels = merged.scores.max(dim=1)
    if bbox_nms:
        kept = nms(boxes, scores, thresholds.rcnn_iou_threshold)
    else:
        kept = scores.argsort(descending=True, stable=True)
    kept = kept[scores[kept] > thresholds.rcnn_score_threshold]
    return Detections(boxes[kept], scores[kept], labels[kept])


def scale_boxes(boxes_xyxy: torch.Tensor, scale: float, image_shape: tuple[int, int]) -> torch.Tensor:
    """Boxes (N, 4) made `scale` times as wide and high about their centres, clipped to `image_shape` (H, W)."""
    if scale == 1:
        return boxes_xyxy
    centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    halves = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * (scale / 2)
    return clip_boxes_to_image(torch.cat([centres - halves, centres + halves], dim=1), image_shape)
