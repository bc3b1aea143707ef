"""Mixed precision in the heads: their layers in a short dtype, all that is made of their answers in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
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
    """Within, the heads' convolutions and linear layers compute in `dtype`, and the heads answer in float32.

    What mmdet makes of the answers, the boxes, targets and losses, is then float32 as ever: in bfloat16 a box of an
    image of 256 pixels would be off by up to a pixel. With float32 nothing changes.
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
    """`forward` under autocast, its answer in float32."""

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
