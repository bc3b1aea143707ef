"""Mixed precision: the heads' layers in bfloat16 or float16, boxes, targets and losses in float32.

And what is slow on a CPU: in bfloat16 some depthwise convolutions and a transposed convolution's bias, and in any dtype
the gradient of GroupNorm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kernel.models.detectors import Detector


def head_modules(detector: Detector) -> list[nn.Module]:
    """The RPN's, box, mask and semantic heads of a detector, each stage's own."""
    roi_head = detector.roi_head
    found = [detector.rpn_head, roi_head.bbox_head, roi_head.mask_head]
    if getattr(roi_head, "with_semantic", False):
        found.append(roi_head.semantic_head)
    return [head for some in found for head in (some if isinstance(some, nn.ModuleList) else [some])]


@contextmanager
def heads_in(detector: Detector, dtype: torch.dtype) -> Iterator[None]:
    """In the block, the heads' convolutions and linear layers compute in `dtype`, and the heads' outputs are float32.

    What mmdet computes from the outputs, the boxes, targets and losses, is then float32: in bfloat16 a box of an image
    of 256 pixels would be off by up to a pixel. With float32 nothing changes.
    """
    heads = head_modules(detector) if dtype != torch.float32 else []
    device = next(detector.parameters()).device
    for head in heads:
        head.forward = computing_in(head.forward, device, dtype)
    try:
        yield
    finally:
        for head in heads:
            del head.forward  # the class's own is there again


def computing_in(forward: Callable[..., Any], device: torch.device, dtype: torch.dtype) -> Callable[..., Any]:
    """`forward` under autocast, its output in float32."""

    def compute(*given: Any, **named: Any) -> Any:
        with torch.autocast(device.type, dtype):
            return in_float32(forward(*given, **named))

    return compute


def in_float32(value: Any) -> Any:
    """The same tensors, lists and tuples, in float32."""
    if isinstance(value, torch.Tensor):
        return value.float()
    if isinstance(value, (list, tuple)):
        return type(value)(in_float32(part) for part in value)
    return value


def keep_depthwise_wide(detector: Detector) -> None:
    """Let large and strided depthwise convolutions compute in float32 under autocast, for the CPU.

    In bfloat16 their gradients are computed by a kernel that is two to fifteen times slower than float32's: a third of
    the time of a step of efficientnet_lite0. Those of 3 x 3 and stride 1 are quicker in bfloat16.
    """
    for module in detector.backbone.modules():
        if (
            isinstance(module, nn.Conv2d)
            and 1 < module.groups == module.in_channels
            and (max(module.kernel_size) > 3 or max(module.stride) > 1)
        ):
            module.forward = computing_wide(module.forward)


def computing_wide(forward: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """`forward` in float32, its output in the dtype of its input."""

    def compute(given: torch.Tensor) -> torch.Tensor:
        with torch.autocast(given.device.type, enabled=False):
            return forward(given.float()).to(given.dtype)

    return compute


def add_upsampling_biases_apart(detector: Detector) -> None:
    """Let the mask heads' transposed convolutions add their bias after they are done, for the CPU.

    In bfloat16 and channels last its gradient is else computed by oneDNN's reference code: a twelfth of the time of a
    step. The sum that PyTorch takes for an addition's is quick.
    """
    for module in detector.modules():
        if isinstance(module, nn.ConvTranspose2d) and module.bias is not None:
            module.forward = partial(upsample_then_add_bias, module)


def upsample_then_add_bias(module: Any, given: torch.Tensor) -> torch.Tensor:
    """What a transposed convolution makes of (N, C, h, w)."""
    upsampled = F.conv_transpose2d(
        given,
        module.weight,
        None,
        module.stride,
        module.padding,
        module.output_padding,
        module.groups,
        module.dilation,
    )
    return upsampled + module.bias.to(upsampled.dtype)[:, None, None]


def norm_groups_quickly(detector: Detector) -> None:
    """Let the neck's GroupNorm compute its gradient by `QuickGroupNorm`, for the CPU."""
    for module in detector.neck.modules():
        if isinstance(module, nn.GroupNorm) and module.affine:
            module.forward = partial(quick_group_norm, module)


def quick_group_norm(module: Any, given: torch.Tensor) -> torch.Tensor:
    """What an affine GroupNorm makes of (N, C, H, W)."""
    normed: Any = QuickGroupNorm.apply(given, module.weight, module.bias, module.num_groups, module.eps)
    return normed


class QuickGroupNorm(torch.autograd.Function):
    """PyTorch's GroupNorm, whose gradient is computed in three passes over maps in channels last.

    PyTorch's own takes six times as long there, an eighth of the time of a step. Sums are taken in float32.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, given: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float
    ) -> torch.Tensor:
        """As `torch.nn.functional.group_norm`, of (N, C, H, W)."""
        batch, channels, height, width = given.shape
        normed, mean, scale = torch.native_group_norm(given, weight, bias, batch, channels, height * width, groups, eps)
        ctx.save_for_backward(given, weight, mean, scale)
        return normed

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of maps, weight and bias.

        With x' = (x - mean) * scale, of each group, and g that of the output, the maps' gradient is
        scale * (weight * g - mean(weight * g) - x' * mean(weight * g * x')), the means over the group.
        """
        given, weight, mean, scale = ctx.saved_tensors
        batch, channels, height, width = given.shape
        groups = mean.shape[1]
        maps, of_output = (
            each.permute(0, 2, 3, 1).reshape(batch, height * width, channels).float() for each in (given, gradient)
        )
        mean, scale = (each.float().repeat_interleave(channels // groups, 1) for each in (mean, scale))  # (N, C)
        sums = of_output.sum(1)
        normed_sums = ((of_output * maps).sum(1) - sums * mean) * scale

        def group_means(each: torch.Tensor) -> torch.Tensor:
            means = (each * weight).view(batch, groups, -1).mean(2) / (height * width)
            return means.repeat_interleave(channels // groups, 1)

        slope = -group_means(normed_sums) * scale.square()
        constant = -group_means(sums) * scale - slope * mean
        of_maps = torch.addcmul(constant[:, None], maps, slope[:, None])
        of_maps.addcmul_(of_output, (scale * weight)[:, None])
        of_maps = of_maps.to(given.dtype).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return of_maps, normed_sums.sum(0), sums.sum(0), None, None
