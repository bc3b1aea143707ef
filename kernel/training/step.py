"""The losses of one training step, and how a detector is set up for it."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from kernel.models.crop_unet import CropUNet
from kernel.models.detectors import Detector
from kernel.training.mask_losses import mask_network_losses
from kernel.training.precision import heads_in
from kernel.training.samples import semantic_maps
from kernel.training.settings import TrainSettings


def compute_losses(
    detector: Detector, batch: dict, dtype: torch.dtype, heads_dtype: torch.dtype = torch.float32
) -> dict:
    """mmdet's losses of a batch of `collate`, by their names in mmdet; of a mask network `mask_network_losses`.

    Encoder and neck run in `dtype`, as does a mask network; the heads' layers in `heads_dtype`, the losses in float32.
    """
    if isinstance(detector, CropUNet):
        return mask_network_losses(detector, batch, dtype)
    device = next(detector.parameters()).device
    images = batch["images"].to(device, memory_format=torch.channels_last, non_blocking=True)
    boxes = [b.to(device) for b in batch["gt_bboxes"]]
    labels = [b.to(device) for b in batch["gt_labels"]]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        levels = detector.extract_feat(images)
    levels = tuple(level.float() for level in levels)
    extra = {}
    if getattr(detector.roi_head, "with_semantic", False):
        (stride,) = detector.roi_head.semantic_roi_extractor.featmap_strides  # 4, or 8 where the stem keeps its stride
        extra["gt_semantic_seg"] = semantic_maps(batch, detector.roi_head.semantic_head.num_classes, stride).to(device)
    with heads_in(detector, heads_dtype):
        rpn_losses, proposals = detector.rpn_head.forward_train(
            levels, batch["img_metas"], boxes, proposal_cfg=detector.train_cfg.rpn_proposal
        )
        roi_losses = detector.roi_head.forward_train(
            levels, batch["img_metas"], proposals, boxes, labels, None, batch["gt_masks"], **extra
        )
    return {**rpn_losses, **roi_losses}


def set_proposal_counts(detector: Detector, settings: TrainSettings) -> None:
    """Set how many proposals the RPN makes, how many RoIs each stage's sampler draws of them per image, and how many of
    the positive ones go through mask heads.

    A mask network is shown as many cells as are positive among these at most: a quarter.
    """
    if isinstance(detector, CropUNet):
        detector.cells_per_crop = max(settings.rois_per_image // 4, 1)
        return
    detector.train_cfg.rpn_proposal.nms_pre = settings.rpn_nms_pre
    samplers = detector.roi_head.bbox_sampler
    for sampler in samplers if isinstance(samplers, list) else [samplers]:
        sampler.num = settings.rois_per_image
    if settings.mask_rois_per_image:
        roi_head: Any = detector.roi_head
        roi_head._mask_forward_train = partial(
            train_masks_of_some, roi_head._mask_forward_train, settings.mask_rois_per_image
        )


def train_masks_of_some(train_masks: Any, count: int, *given: Any, **named: Any) -> Any:
    """mmdet's `_mask_forward_train`, for at most `count` positive RoIs of each image, chosen by `some_positives`.

    The sampler's results stand at different places among the arguments of the kinds of detectors.
    """
    from mmdet.core.bbox.samplers.sampling_result import SamplingResult

    def thinned(argument: Any) -> Any:
        if not isinstance(argument, list) or not all(isinstance(each, SamplingResult) for each in argument):
            return argument
        return [some_positives(result, count) for result in argument]

    return train_masks(*map(thinned, given), **named)


def some_positives(result: Any, count: int) -> Any:
    """What mask heads are given of a `SamplingResult`, of at most `count` of its positive RoIs, drawn by torch.

    Of a cell many boxes are positive, and they show the mask head nearly the same. So no cell has a second one before
    each has its first.
    """
    cells = result.pos_assigned_gt_inds
    order = torch.randperm(len(cells)).to(cells.device)
    chosen = order[turns_of_cells(cells[order]).argsort(stable=True)[:count]]
    return SimpleNamespace(
        **{name: getattr(result, name)[chosen] for name in ("pos_bboxes", "pos_assigned_gt_inds", "pos_gt_labels")}
    )


def turns_of_cells(cells: torch.Tensor) -> torch.Tensor:
    """How many of the same number stand before each in `cells`, (n,)."""
    ordered, order = cells.sort(stable=True)
    starts = torch.searchsorted(ordered, ordered)  # where each one's number begins
    turns = torch.empty_like(order)
    turns[order] = torch.arange(len(cells), device=cells.device) - starts
    return turns


def set_training_mode(detector: Detector, is_norm_frozen: bool) -> None:
    """Training mode; with `is_norm_frozen`, BatchNorm stays in eval mode and keeps its running statistics."""
    detector.train()
    if is_norm_frozen:
        for module in detector.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
