"""Masks: one member's, un-flipped and averaged over views; and scores that follow from them."""

from __future__ import annotations

import torch

from kernel.ensemble.boxes import Detections
from kernel.ensemble.members import Member
from kernel.ensemble.views import View, boxes_into_view, masks_out_of_view
from kernel.models.detectors import ViewFeatures, predict_masks


def predict_view_masks(
    member: Member,
    features: ViewFeatures,
    views: tuple[View, ...],
    boxes_xyxy: torch.Tensor,
    labels: torch.Tensor,
    image_shape: tuple[int, int],
) -> torch.Tensor:
    """One member's mask probabilities (N, 28, 28) for boxes (N, 4) of the image, averaged over views.

    Only the mask of each box's own class, `labels` (N,) int64, is predicted: all members are asked about the same
    class, so choosing it before the average changes nothing. The other arguments are those of `predict_view_boxes`.
    """
    in_views = torch.stack([boxes_into_view(boxes_xyxy, view, image_shape) for view in views])
    masks = predict_masks(member.kind, member.detector, features, in_views, labels)
    return torch.stack([masks_out_of_view(m, view) for m, view in zip(masks, views, strict=True)]).mean(dim=0)


def maskness(mask_probs: torch.Tensor) -> torch.Tensor:
    """(N,) mean probability of each mask's pixels above one half, of masks (N, 28, 28); 0 where none is.

    As in SOLO (Wang et al., 2020): a mask whose pixels are hardly above one half is seldom a good one, however
    confident the box head is that a cell is there.
    """
    inside = mask_probs > 0.5
    count = inside.flatten(1).sum(dim=1)
    return (mask_probs * inside).flatten(1).sum(dim=1) / count.clamp(min=1)


def score_by_masks(boxes: Detections, mask_probs: torch.Tensor, power: float) -> tuple[Detections, torch.Tensor]:
    """Boxes and masks (N, 28, 28), scored by the box's score times the mask's `maskness` to `power`; best first."""
    if power == 0:
        return boxes, mask_probs
    scores = boxes.scores * maskness(mask_probs) ** power
    order = scores.argsort(descending=True, stable=True)
    return Detections(boxes.boxes_xyxy[order], scores[order], boxes.labels[order]), mask_probs[order]
