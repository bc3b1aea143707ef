"""Boxes: all members' and views' answers to the same proposals, averaged; then one NMS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torchvision.ops import clip_boxes_to_image, nms

from kernel.ensemble.members import Member, weighted_mean
from kernel.ensemble.views import View, boxes_into_view, flip_boxes
from kernel.models.detectors import DETECTOR_KINDS, ViewFeatures
from kernel.models.rois import enlarge_boxes
from kernel.settings import Thresholds


@dataclass(frozen=True)
class MergedBoxes:
    """Refined boxes and class scores of proposals, row by row: one member's, or the mean of several."""

    boxes_xyxy: torch.Tensor  # (N, 4) float32 pixels
    scores: torch.Tensor  # (N, classes) float32 probabilities, not renormalised


@dataclass(frozen=True)
class Detections:
    """Final boxes, each of one class, best first."""

    boxes_xyxy: torch.Tensor  # (N, 4) float32 pixels
    scores: torch.Tensor  # (N,) float32
    labels: torch.Tensor  # (N,) int64

    def to(self, device: torch.device) -> Detections:
        """The same on a device."""
        return Detections(self.boxes_xyxy.to(device), self.scores.to(device), self.labels.to(device))


def predict_view_boxes(
    member: Member,
    features: ViewFeatures,
    views: tuple[View, ...],
    boxes_xyxy: torch.Tensor,
    image_shape: tuple[int, int],
    num_classes: int,
) -> MergedBoxes:
    """One member's answers to boxes (N, 4) of the image, averaged over views.

    Args:
        member: who is asked.
        features: the member's, the views as one batch.
        views: of the same order.
        boxes_xyxy: (N, 4) pixels of the image.
        image_shape: (H, W), unpadded.
        num_classes: the first so many classes count.
    """
    predict_boxes = DETECTOR_KINDS[member.kind].predict_boxes
    in_views = torch.stack([boxes_into_view(boxes_xyxy, view, image_shape) for view in views])
    refined, scores = predict_boxes(member.detector, features, in_views, image_shape, num_classes)
    back = torch.stack([flip_boxes(boxes, view, image_shape) for boxes, view in zip(refined, views, strict=True)])
    return MergedBoxes(back.mean(dim=0), scores.mean(dim=0))


def merge_boxes(predictions: Iterable[tuple[float, MergedBoxes]]) -> MergedBoxes:
    """Average answers to the same proposals, each given with its weight: its member's, times its views."""
    predictions = list(predictions)
    return MergedBoxes(
        weighted_mean((weight, answer.boxes_xyxy) for weight, answer in predictions),
        weighted_mean((weight, answer.scores) for weight, answer in predictions),
    )


def select_boxes(merged: MergedBoxes, thresholds: Thresholds, bbox_nms: bool) -> Detections:
    """Final boxes: each box's best class, NMS over all classes together (if `bbox_nms`), then the score threshold."""
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
    """Make boxes (N, 4) `scale` times as wide and high about their centres; clip them to `image_shape` (H, W)."""
    if scale == 1:
        return boxes_xyxy
    return clip_boxes_to_image(enlarge_boxes(boxes_xyxy, scale), image_shape)
