"""Masks: what all members and views predict for the same final boxes, un-flipped and averaged."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from kernel.ensemble.boxes import Detections
from kernel.ensemble.views import View, boxes_into_view, masks_out_of_view
from kernel.models.detectors import DETECTOR_KINDS, Detector, ViewFeatures


def predict_view_masks(
    kind: str,
    detector: Detector,
    features: ViewFeatures,
    views: tuple[View, ...],
    boxes_xyxy: torch.Tensor,
    labels: torch.Tensor,
    image_shape: tuple[int, int],
) -> torch.Tensor:
    """One member's mean mask probabilities (N, 28, 28) over `views`, for boxes (N, 4) of the image.

    Each box's own class `labels` (N,) int64 is predicted and no other: all members are asked about the same class,
    so choosing it before the average changes nothing.
    """
    in_views = torch.stack([boxes_into_view(boxes_xyxy, view, image_shape) for view in views])
    masks = DETECTOR_KINDS[kind].predict_masks(detector, features, in_views, labels)
    return torch.stack([masks_out_of_view(m, view) for m, view in zip(masks, views, strict=True)]).mean(dim=0)


def merge_masks(predictions: Iterable[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """Average mask probabilities (N, 28, 28), each given with its weight: its member's, times its views."""
    predictions = list(predictions)
    total = sum(weight for weight, _ in predictions)
    return torch.stack([masks * (weight / total) for weight, masks in predictions]).sum(dim=0)


def mask_sureness(mask_probs: torch.Tensor) -> torch.Tensor:
    """Mean probability (N,) of each mask's pixels above one half, of (N, 28, 28); 0 where none is.

    The "maskness" of SOLO (Wang et al., 2020): a mask whose inside is only just inside is seldom a good one, however
    sure the box head is that a cell is there.
    """
    inside = mask_probs > 0.5
    count = inside.flatten(1).sum(dim=1)
    return (mask_probs * inside).flatten(1).sum(dim=1) / count.clamp(min=1)


def score_masks(detections: Detections, mask_probs: torch.Tensor, power: float) -> tuple[Detections, torch.Tensor]:
    """Boxes and masks (N, 28, 28), best first by the boxes' scores times their masks' sureness to `power`."""
    if power == 0:
        return detections, mask_probs
    scores = detections.scores * mask_sureness(mask_probs) ** power
    order = scores.argsort(descending=True, stable=True)
    return Detections(detections.boxes_xyxy[order], scores[order], detections.labels[order]), mask_probs[order]
