"""mmcv._ext over torchvision.ops: the operators that our detectors need, without compiled code of mmcv.

In the repacked wheel this file is mmcv/_ext.py. mmcv's Python side calls it as it calls its own binary:
operators take their outputs as arguments and fill them. What is not here raises when called, by name.

CPU and CUDA; float32 and float64 as they come, float16 and bfloat16 computed in float32: torchvision has no
such kernels for some of them, and half a mantissa places RoIAlign's sampling points (at pixel 700) half a
pixel apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
import torchvision
from torch import Tensor

_HALF_TYPES = (torch.float16, torch.bfloat16)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in _HALF_TYPES else tensor


def nms(bboxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        bboxes: (N, 4) x1, y1, x2, y2.
        scores: (N,); of equal scores the earlier box goes first.
        iou_threshold: a box whose IoU with a better, kept one is above this goes.
        offset: 0, or 1 for the old convention in which x2 and y2 are the last pixels inside.

    Returns:
        (K,) int64, the kept boxes' indices, best first.
    """
    if offset not in (0, 1):
        raise ValueError(f"nms: offset must be 0 or 1, and is {offset!r}")
    if bboxes.numel() == 0:
        return torch.zeros(0, dtype=torch.int64, device=bboxes.device)
    dtype = torch.promote_types(torch.promote_types(bboxes.dtype, scores.dtype), torch.float32)
    bboxes, scores = bboxes.to(dtype), scores.to(dtype)
    if offset:
        # Widths and overlaps of x2 - x1 + 1 are those of boxes that end one pixel later.
        bboxes = bboxes + bboxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    # mmcv's kernels hold the threshold as float32, torchvision's on the CPU as float64: for an IoU
    # of exactly 0.6 they would disagree.
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torchvision.ops.nms(bboxes, scores, threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign into `output`.

    Args:
        input: (B, C, H, W) features.
        rois: (N, 5) image index, x1, y1, x2, y2 in pixels of the image.
        output: (N, C, aligned_height, aligned_width), overwritten.
        argmax_y, argmax_x: for max pooling only; not touched.
        aligned_height, aligned_width: bins per RoI.
        spatial_scale: feature pixels per image pixel.
        sampling_ratio: points per bin and axis; 0: as many as the bin has feature pixels.
        pool_mode: 1, average. 0, maximum, raises NotImplementedError.
        aligned: take off half a pixel, so that a pixel's value is at its centre.
    """
    _check_average_pooling("roi_align_forward", pool_mode)
    if output.numel() == 0:
        return
    features = _at_least_float32(input)
    pooled = torchvision.ops.roi_align(
        features,
        rois.to(features.dtype),
        (aligned_height, aligned_width),
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,
        aligned=bool(aligned),
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """The gradient of RoIAlign with respect to its features, into `grad_input` (B, C, H, W); see roi_align_forward."""
    _check_average_pooling("roi_align_backward", pool_mode)
    if grad_output.numel() == 0 or grad_input.numel() == 0:
        grad_input.zero_()
        return
    grad = _at_least_float32(grad_output)
    batch, channels, height, width = grad_input.shape
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad,
            rois.to(grad.dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            batch,
            channels,
            height,
            width,
            sampling_ratio,
            bool(aligned),
        )
    )


def _check_average_pooling(operator: str, pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            f"mmcv._ext.{operator}: pool_mode='max' is not among the operators of this wheel. "
            f"Use pool_mode='avg', or install a compiled mmcv-full."
        )


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of each logit, unreduced, into `output`.

    Args:
        input: (N, C) logits.
        target: (N,) int64 class indices; C is background: negative for each class.
        weight: (C,) a factor by the target's class, 1 for background, or empty: none.
        output: (N, C), overwritten.
        gamma: exponent of the modulating factor.
        alpha: weight of the positives; negatives have 1 - alpha.
    """
    output.copy_(_focal_loss(_at_least_float32(input), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The derivative of each loss by its own logit, into `grad_input` (N, C); see sigmoid_focal_loss_forward."""
    with torch.enable_grad():
        logits = _at_least_float32(input.detach()).clone().requires_grad_()
        loss = _focal_loss(logits, target, weight, gamma, alpha)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
    grad_input.copy_(grad)


def _focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    classes = torch.arange(logits.shape[1], device=logits.device)
    positive = (target[:, None] == classes).to(logits.dtype)
    loss = torchvision.ops.sigmoid_focal_loss(logits, positive, alpha=alpha, gamma=gamma, reduction="none")
    if weight.numel():
        loss = loss * torch.cat([weight, weight.new_ones(1)]).to(logits.dtype)[target][:, None]
    return loss


def get_compiler_version() -> str:
    """What stands in the place of mmcv's compiler in its report of the environment."""
    return f"none: operators of torchvision {torchvision.__version__}"


def get_compiling_cuda_version() -> str:
    """The CUDA version of torch, whose operators these are."""
    return torch.version.cuda or "not available"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    # mmcv asks at import, by hasattr, whether each of its operators is there. Special names must
    # fail as usual, or the import system would believe that this module has a __path__ or __spec__ of ours.
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def missing_operator(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"mmcv's operator {name} is not in this wheel, which has nms, roi_align (average) and "
            f"sigmoid_focal_loss over torchvision. Build the detector without it, or install a compiled mmcv-full."
        )

    missing_operator.__name__ = name
    return missing_operator
