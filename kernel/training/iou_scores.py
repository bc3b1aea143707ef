"""Box heads that learn to score how well a box fits its cell, not only that it meets one.

As published, a box of IoU 0.5 with its cell is to score 1, and so is one that fits exactly: scores then hardly tell
which of several boxes of a cell is the best. With the IoU as the class's target (the soft label of "Generalized Focal
Loss", Li et al. 2020, in a softmax), they estimate it, and NMS keeps better boxes. Confidences are to be tuned anew.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kernel.models.detectors import Detector


def learn_iou_scores(detector: Detector) -> None:
    """Let all box heads learn by `loss_of_iou_scores`."""
    of_stages = detector.roi_head.bbox_head
    heads: list[Any] = list(of_stages) if isinstance(of_stages, nn.ModuleList) else [of_stages]
    for head in heads:
        head.loss = partial(loss_of_iou_scores, head, head.loss)


def loss_of_iou_scores(
    head: Any,
    loss: Any,
    cls_score: torch.Tensor,
    bbox_pred: torch.Tensor,
    rois: torch.Tensor,
    labels: torch.Tensor,
    label_weights: torch.Tensor,
    bbox_targets: torch.Tensor,
    bbox_weights: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """As mmdet's `BBoxHead.loss`, which is `loss` of `head`, with IoUs in the place of 1 as the classes' targets.

    Args:
        head: of C classes, whose boxes are of each class or of none.
        loss: of the boxes, and of classes; the latter is replaced.
        cls_score: (M, C + 1) logits, the background's last.
        bbox_pred: (M, 4 C) or (M, 4) deltas.
        rois: (M, 5), the image's number before the box in pixels.
        labels: (M,) int64, C where there is no cell.
        label_weights: (M,), 0 for what does not count.
        bbox_targets: (M, 4) deltas.
        bbox_weights: (M, 4), for `loss`.
    """
    losses = loss(cls_score, bbox_pred, rois, labels, label_weights, bbox_targets, bbox_weights)
    log_chances = F.log_softmax(cls_score.float(), dim=1)
    of_background = log_chances[:, head.num_classes]
    # Where there is no cell, the IoU is 0, and any class will do.
    own_class = labels.clamp(max=head.num_classes - 1)[:, None]
    ious = torch.where(labels < head.num_classes, refined_ious(head, bbox_pred, rois, own_class, bbox_targets), 0)
    entropies = -(ious * log_chances.gather(1, own_class)[:, 0] + (1 - ious) * of_background)
    return losses | {"loss_cls": (entropies * label_weights).sum() / (label_weights > 0).sum().clamp(min=1)}


@torch.no_grad()
def refined_ious(
    head: Any, bbox_pred: torch.Tensor, rois: torch.Tensor, own_class: torch.Tensor, bbox_targets: torch.Tensor
) -> torch.Tensor:
    """(M,) IoUs of the boxes that a head makes of RoIs with those that it should make; arguments as above."""
    deltas = bbox_pred.float().view(len(rois), -1, 4)
    if deltas.shape[1] > 1:
        deltas = deltas.gather(1, own_class[:, :, None].expand(-1, 1, 4))
    boxes = head.bbox_coder.decode(rois[:, 1:], deltas[:, 0])
    cells = head.bbox_coder.decode(rois[:, 1:], bbox_targets)
    common = (torch.minimum(boxes[:, 2:], cells[:, 2:]) - torch.maximum(boxes[:, :2], cells[:, :2])).clamp(min=0)
    area = common.prod(dim=1)
    either = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) + (cells[:, 2:] - cells[:, :2]).prod(dim=1) - area
    return area / either
