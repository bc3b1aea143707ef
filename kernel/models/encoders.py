"""Encoders: the networks that turn an image into feature maps. They are built with random weights, offline.

Our encoders' first convolution has its stride removed, so that its feature maps have twice the usual
resolution and the smallest cells are found: strides 2, 4, 8 and 16 instead of 4, 8, 16 and 32. Others' members
may have the usual ones: their weights have the same shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from kernel.manifest.types import TIMM_PREFIX
from kernel.models.mmdet_imports import import_mmdet
from kernel.models.timm_encoders import TimmFeatures, timm_plan

#: Strides of the four feature maps after the first convolution's stride is removed.
ENCODER_STRIDES = (2, 4, 8, 16)


@dataclass(frozen=True)
class ResNetPlan:
    """One network of the ResNet family, in the terms of mmdet's `ResNet` and `ResNeXt`."""

    depth: int
    groups: int = 1  # above 1: a ResNeXt of this many groups ...
    base_width: int = 64  # ... of this width each
    base_channels: int = 64
    norm_eval: bool = False  # BatchNorm keeps its running statistics in training


RESNET_PLANS: Mapping[str, ResNetPlan] = {
    "resnet50": ResNetPlan(50, norm_eval=True),
    "resnet101": ResNetPlan(101, norm_eval=True),
    "resnext50": ResNetPlan(50, groups=32, base_width=4),
    "resnext101": ResNetPlan(101, groups=32, base_width=4),
    "resnext101_64x4": ResNetPlan(101, groups=64, base_width=4),
    "resnext101_32x8": ResNetPlan(101, groups=32, base_width=8),
    # A third of the width of a resnet18: small enough to come with the tests, quick enough for two cores.
    "resnet18_narrow": ResNetPlan(18, base_channels=24),
}

#: timm's names. The published EfficientNets were trained from noisy-student weights; the architecture is the same.
TIMM_NAMES: Mapping[str, str] = {
    "efficientnet_b4": "tf_efficientnet_b4",
    "efficientnet_b5": "tf_efficientnet_b5",
    "efficientnet_b6": "tf_efficientnet_b6",
    "efficientnet_lite0": "efficientnet_lite0",
}


class TimmEncoder(nn.Module):
    """A timm EfficientNet that returns its last feature map of each reduction 4, 8, 16 and 32.

    timm's `conv_head`, `bn2` and `classifier` are kept, though they are never run: the published checkpoints hold them.
    """

    def __init__(self, timm_name: str, stem_stride: int = 1):
        super().__init__()
        self.effnet: Any = timm.create_model(timm_name, pretrained=False)
        self.effnet.conv_stem.stride = (stem_stride, stem_stride)
        last_of_reduction = {
            info["reduction"]: (int(info["module"].split(".")[1]), info["num_chs"])
            for info in self.effnet.feature_info
            if info["reduction"] >= 4
        }
        self.stages = tuple(stage for stage, _ in last_of_reduction.values())
        self.channels = tuple(channels for _, channels in last_of_reduction.values())

    def init_weights(self) -> None:
        """mmdet calls this on every part; timm has drawn its weights already."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map normalised images (B, 3, H, W) to four feature maps of strides 2, 4, 8, 16 (or twice these)."""
        x = self.effnet.bn1(self.effnet.conv_stem(x))
        features = []
        for stage, blocks in enumerate(self.effnet.blocks):
            x = blocks(x)
            if stage in self.stages:
                features.append(x)
        return tuple(features)


def build_encoder(name: str, stem_stride: int = 1) -> tuple[nn.Module, tuple[int, ...]]:
    """Build an encoder with random weights.

    Args:
        name: one of `RESNET_PLANS` or `TIMM_NAMES`, or a name of timm's after "timm:".
        stem_stride: of the first convolution, 1 or 2.

    Returns:
        The module, which maps (B, 3, H, W) to four feature maps of `stem_stride` times the strides `ENCODER_STRIDES`;
        and their channels.

    Raises:
        InputError: as `timm_plan`, or the stem does not allow the stride.
    """
    if name.startswith(TIMM_PREFIX):
        plan = timm_plan(name.removeprefix(TIMM_PREFIX))
        return TimmFeatures(plan, stem_stride), plan.channels
    if name in TIMM_NAMES:
        encoder = TimmEncoder(TIMM_NAMES[name], stem_stride)
        return encoder, encoder.channels
    import_mmdet()
    from mmdet.models.backbones import ResNet, ResNeXt

    plan = RESNET_PLANS[name]
    options: dict[str, Any] = dict(
        depth=plan.depth,
        base_channels=plan.base_channels,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=plan.norm_eval,
        style="pytorch",
    )
    if plan.groups > 1:
        resnet = ResNeXt(groups=plan.groups, base_width=plan.base_width, **options)
    else:
        resnet = ResNet(**options)
    resnet.conv1.stride = (stem_stride, stem_stride)
    expansion = resnet.block.expansion
    return resnet, tuple(plan.base_channels * expansion * 2**stage for stage in range(4))


def smallest_stem_stride(name: str) -> int:
    """The smallest stride that an encoder's stem allows: 1, or 2 for some of timm's.

    Raises:
        InputError: as `timm_plan`.
    """
    return timm_plan(name.removeprefix(TIMM_PREFIX)).stem_stride if name.startswith(TIMM_PREFIX) else 1


def encoder_signature(shapes: Mapping[str, tuple[int, ...]]) -> tuple[Any, ...]:
    """What tells encoders apart in a detector's state dict: the number of blocks per stage, and one layer's shape.

    Args:
        shapes: of the detector's tensors, by key; the encoder's keys are `backbone.*`.

    Returns:
        A key of `ENCODER_SIGNATURES`; another value for an unknown encoder.
    """
    if "backbone.effnet.conv_stem.weight" in shapes:
        stage_prefix, width_key = "backbone.effnet.blocks.", "backbone.effnet.conv_stem.weight"
    else:
        stage_prefix, width_key = "backbone.layer", "backbone.layer1.0.conv2.weight"
    blocks = {tuple(key[len(stage_prefix) :].split(".")[:2]) for key in shapes if key.startswith(stage_prefix)}
    stages = sorted({stage for stage, _ in blocks})
    depths = tuple(sum(1 for stage, _ in blocks if stage == wanted) for wanted in stages)
    return (stage_prefix, depths, shapes.get(width_key))


_RESNET_LAYER, _EFFNET_BLOCKS = "backbone.layer", "backbone.effnet.blocks."

#: The signature of each encoder. A test derives the table anew from the built encoders.
ENCODER_SIGNATURES: Mapping[tuple[Any, ...], str] = {
    (_RESNET_LAYER, (2, 2, 2, 2), (24, 24, 3, 3)): "resnet18_narrow",
    (_RESNET_LAYER, (3, 4, 6, 3), (64, 64, 3, 3)): "resnet50",
    (_RESNET_LAYER, (3, 4, 23, 3), (64, 64, 3, 3)): "resnet101",
    (_RESNET_LAYER, (3, 4, 6, 3), (128, 4, 3, 3)): "resnext50",
    (_RESNET_LAYER, (3, 4, 23, 3), (128, 4, 3, 3)): "resnext101",
    (_RESNET_LAYER, (3, 4, 23, 3), (256, 4, 3, 3)): "resnext101_64x4",
    (_RESNET_LAYER, (3, 4, 23, 3), (256, 8, 3, 3)): "resnext101_32x8",
    (_EFFNET_BLOCKS, (1, 2, 2, 3, 3, 4, 1), (32, 3, 3, 3)): "efficientnet_lite0",
    (_EFFNET_BLOCKS, (2, 4, 4, 6, 6, 8, 2), (48, 3, 3, 3)): "efficientnet_b4",
    (_EFFNET_BLOCKS, (3, 5, 5, 7, 7, 9, 3), (48, 3, 3, 3)): "efficientnet_b5",
    (_EFFNET_BLOCKS, (3, 6, 6, 8, 8, 11, 3), (56, 3, 3, 3)): "efficientnet_b6",
}
