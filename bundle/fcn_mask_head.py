"""FCNMaskHead with masks as one tensor on the device, beside mmdet's lists per class of arrays on the host.

In the repacked wheel this file is mmdet/models/roi_heads/mask_heads/fcn_mask_head.py; mmdet's own, unchanged,
is mmdet_fcn_mask_head.py beside it. Parameters, state dict, losses and arguments are mmdet's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.builder import HEADS
from torch import Tensor

from .mmdet_fcn_mask_head import BYTES_PER_FLOAT, GPU_MEM_LIMIT, _do_paste_mask
from .mmdet_fcn_mask_head import FCNMaskHead as MmdetFCNMaskHead

__all__ = ["BYTES_PER_FLOAT", "GPU_MEM_LIMIT", "FCNMaskHead", "_do_paste_mask"]

# Pasting one pixel of one mask holds the sampling grid (x and y) and the sampled value.
_FLOATS_PER_PASTED_PIXEL = 3


@HEADS.register_module(force=True)
class FCNMaskHead(MmdetFCNMaskHead):
    """mmdet's FCNMaskHead whose `get_seg_masks` can leave the masks on the device and takes no detections."""

    def get_seg_masks(
        self,
        mask_pred: Tensor | np.ndarray,
        det_bboxes: Tensor,
        det_labels: Tensor,
        rcnn_test_cfg: Any,
        ori_shape: Sequence[int],
        scale_factor: Tensor | np.ndarray | float,
        rescale: bool,
        return_per_class: bool = True,
    ) -> list[list[np.ndarray]] | Tensor:
        """Paste the predicted masks into the image.

        Args:
            mask_pred: (N, C or 1, h, w) logits, or, as an array, probabilities (mmdet's augmented test).
            det_bboxes: (N, 4 or 5) x1, y1, x2, y2 in pixels of the network's input.
            det_labels: (N,) int64.
            rcnn_test_cfg: with `mask_thr_binary`: binarise at this probability (or above it); negative: do not.
            ori_shape: height, width, ... of the original image.
            scale_factor: input pixels per original pixel, (4,) for x, y, x, y.
            rescale: paste into the original image, not into the network's input.
            return_per_class: as in mmdet, or one tensor.

        Returns:
            With `return_per_class`, for each class a list of arrays (H, W) on the host; without, one
            tensor (N, H, W) on the device of `mask_pred` (of `det_bboxes` for an array), in the order of
            the detections. Either way bool, or uint8 of probability x 255, truncated, where
            `mask_thr_binary` is negative. In the tensor, a box outside the image or without width or height
            has no pixels.
        """
        if return_per_class:
            if len(mask_pred) == 0:  # mmdet's own cannot split nothing into chunks
                return [[] for _ in range(self.num_classes)]
            return super().get_seg_masks(
                mask_pred, det_bboxes, det_labels, rcnn_test_cfg, ori_shape, scale_factor, rescale
            )

        if isinstance(mask_pred, Tensor):
            probs = mask_pred.sigmoid()
        else:
            probs = det_bboxes.new_tensor(mask_pred)
        boxes = det_bboxes[:, :4].to(probs.device)
        factor = torch.as_tensor(scale_factor, dtype=torch.float32).expand(4)
        if rescale:
            height, width = int(ori_shape[0]), int(ori_shape[1])
            boxes = boxes / factor.to(boxes)
        else:
            width, height = (round(ori_shape[1 - i] * factor[i].item()) for i in (0, 1))
        if not self.class_agnostic:
            probs = probs[torch.arange(len(probs), device=probs.device), det_labels.to(probs.device)][:, None]
        return _paste_masks(probs, boxes, height, width, rcnn_test_cfg.mask_thr_binary)


def _paste_masks(probs: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """(N, 1, h, w) probabilities in (N, 4) boxes as (N, height, width) bool or uint8; see get_seg_masks."""
    dtype = torch.bool if threshold >= 0 else torch.uint8
    masks = torch.zeros(len(probs), height, width, dtype=dtype, device=probs.device)
    x1, y1, x2, y2 = boxes.float().unbind(1)
    visible = (x2 > x1) & (y2 > y1) & (x2 > 0) & (y2 > 0) & (x1 < width) & (y1 < height)
    drawn = visible.nonzero().squeeze(1)
    chunk_size = _boxes_at_once(probs.device, height, width)
    for inds in drawn.split(chunk_size) if len(drawn) else ():
        pasted, region = _do_paste_mask(probs[inds], boxes[inds], height, width, skip_empty=probs.device.type == "cpu")
        if threshold >= 0:
            masks[(inds, *region)] = pasted >= threshold
        else:
            masks[(inds, *region)] = (pasted * 255).to(torch.uint8)
    return masks


def _boxes_at_once(device: torch.device, height: int, width: int) -> int:
    # On the CPU one box at a time costs least, for only its surroundings are sampled; elsewhere whole
    # images are, as many as the memory limit has room for.
    if device.type == "cpu":
        return 1
    bytes_per_mask = max(height * width, 1) * BYTES_PER_FLOAT * _FLOATS_PER_PASTED_PIXEL
    return max(GPU_MEM_LIMIT // bytes_per_mask, 1)
