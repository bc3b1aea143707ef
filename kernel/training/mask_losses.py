"""The loss of a mask network: of windows around annotated cells, whose boxes are moved as detectors err."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torchvision.ops import RoIAlign

from kernel.models.crop_unet import WINDOW_SIDE, CropUNet, windows
from kernel.models.rois import boxes_to_rois, enlarge_boxes

#: The deviation of a box's sides from the cell's, over its width or height, and the most of it. In the mean such a box
#: has an IoU of 0.74 with the cell's; the boxes that detectors find here have 0.6 to 0.75.
SIDE_DEVIATION, MOST_DEVIATION = 0.1, 0.25
#: Boxes are up to so many times as large afterwards, as a `mask_box_scale` makes them.
MOST_SCALE = 1.3


def mask_network_losses(network: CropUNet, batch: dict[str, Any], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The loss of a batch of `collate`: cross-entropy and Dice's (Milletari et al., 2016), in the mean over cells.

    Of each crop `network.cells_per_crop` cells are drawn, by torch. The network runs in `dtype`, the loss in float32.
    """
    device = next(network.parameters()).device
    rois, targets = [], []
    for index, (boxes, cells) in enumerate(zip(batch["gt_bboxes"], batch["gt_masks"], strict=True)):
        chosen = torch.randperm(len(boxes))[: network.cells_per_crop]
        around = moved_boxes(boxes[chosen])
        rois.append(F.pad(around, (1, 0), value=index))
        masks = torch.from_numpy(cells.masks[chosen.numpy()]).float()
        targets.append(window_targets(masks, around))
    rois, targets = torch.cat(rois).to(device), torch.cat(targets).to(device)
    if not len(rois):
        return {"loss_mask": torch.stack([parameter.sum() for parameter in network.parameters()]).sum() * 0}
    gray = network.features(batch["images"].to(device, non_blocking=True))
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        logits = network.window_logits(gray, rois)
    return {"loss_mask": F.binary_cross_entropy_with_logits(logits, targets) + dice_loss(logits.sigmoid(), targets)}


def moved_boxes(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """Boxes (N, 4) with each side moved by chance, and then enlarged by chance."""
    sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).repeat(1, 2)
    shifts = (torch.randn_like(boxes_xyxy) * SIDE_DEVIATION).clamp(-MOST_DEVIATION, MOST_DEVIATION)
    moved = boxes_xyxy + shifts * sizes
    return enlarge_boxes(moved, 1 + torch.rand(len(boxes_xyxy), 1) * (MOST_SCALE - 1))


def window_targets(masks: torch.Tensor, boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """(N, 1, 40, 40) how much of each place in the window around a box (N, 4) its cell covers; masks (N, H, W)."""
    rois = boxes_to_rois(boxes_xyxy[:, None])  # each in its own mask
    return RoIAlign(WINDOW_SIDE, 1.0, sampling_ratio=0, aligned=True)(masks[:, None], windows(rois))


def dice_loss(probabilities: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """One less Dice's coefficient, in the mean over cells; both (N, 1, h, w) from 0 to 1."""
    both, sums = (each.sum(dim=(1, 2, 3)) for each in (probabilities * targets, probabilities + targets))
    return (1 - (2 * both + 1) / (sums + 1)).mean()
