"""Encoders: twice the usual resolution, their channels, and a table that tells them apart by their weights' shapes.

Built on the meta device, where a resnext101 takes no memory and a forward pass no time.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from kernel.models.encoders import (
    ENCODER_SIGNATURES,
    ENCODER_STRIDES,
    RESNET_PLANS,
    TIMM_NAMES,
    build_encoder,
    encoder_signature,
)

pytestmark = pytest.mark.usefixtures("wheels_site")

ENCODER_NAMES = (*RESNET_PLANS, *TIMM_NAMES)
RESNET_CHANNELS = (256, 512, 1024, 2048)
# EfficientNets': the solution's own figures (reduction 4, 8, 16, 32).
CHANNELS = {
    "resnet18_narrow": (24, 48, 96, 192),
    "resnet50": RESNET_CHANNELS,
    "resnet101": RESNET_CHANNELS,
    "resnext50": RESNET_CHANNELS,
    "resnext101": RESNET_CHANNELS,
    "resnext101_64x4": RESNET_CHANNELS,
    "resnext101_32x8": RESNET_CHANNELS,
    "efficientnet_lite0": (24, 40, 112, 320),
    "efficientnet_b4": (32, 56, 160, 448),
    "efficientnet_b5": (40, 64, 176, 512),
    "efficientnet_b6": (40, 72, 200, 576),
}


def build_on_meta(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    with torch.device("meta"):
        encoder, channels = build_encoder(name)
    encoder.eval()  # mmdet's ResNet returns nothing from it
    return encoder, channels


def backbone_shapes(encoder: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of the encoder's state dict, by the keys that they have in a detector's."""
    return {f"backbone.{key}": tuple(value.shape) for key, value in encoder.state_dict().items()}


def test_every_encoder_has_its_channels_listed_here() -> None:
    assert set(CHANNELS) == set(ENCODER_NAMES)


@pytest.mark.parametrize("name", ENCODER_NAMES)
def test_the_first_convolution_has_stride_1(name: str) -> None:
    encoder, _ = build_on_meta(name)
    first = next(module for module in encoder.modules() if isinstance(module, nn.Conv2d))
    assert first.in_channels == 3
    assert first.stride == (1, 1)


@pytest.mark.parametrize("name", ENCODER_NAMES)
def test_feature_maps_have_the_strides_and_the_channels_told(name: str) -> None:
    encoder, channels = build_on_meta(name)
    features = encoder(torch.zeros(2, 3, 64, 96, device="meta"))
    assert [tuple(fmap.shape) for fmap in features] == [
        (2, depth, 64 // stride, 96 // stride) for depth, stride in zip(CHANNELS[name], (2, 4, 8, 16), strict=True)
    ]
    assert channels == CHANNELS[name]
    assert ENCODER_STRIDES == (2, 4, 8, 16)


@pytest.mark.parametrize("name", ["resnet18_narrow", "efficientnet_lite0"])
def test_small_encoders_run_on_real_numbers(name: str) -> None:
    torch.manual_seed(0)
    encoder, _ = build_encoder(name)
    encoder.eval()
    with torch.inference_mode():
        features = encoder(torch.randn(1, 3, 32, 64))
    assert [fmap.shape[-2:] for fmap in features] == [(16, 32), (8, 16), (4, 8), (2, 4)]
    assert all(fmap.isfinite().all() and fmap.std() > 0 for fmap in features)


@pytest.mark.parametrize("name", ENCODER_NAMES)
def test_only_resnet50_and_101_keep_their_batch_statistics_in_training(name: str) -> None:
    encoder, _ = build_on_meta(name)
    encoder.train()
    norms = {module.training for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms == {name not in ("resnet50", "resnet101")}
    assert all(parameter.requires_grad for parameter in encoder.parameters())  # nothing is frozen


def test_the_table_of_signatures_is_what_the_built_encoders_say() -> None:
    derived = {encoder_signature(backbone_shapes(build_on_meta(name)[0])): name for name in ENCODER_NAMES}
    assert len(derived) == len(ENCODER_NAMES)  # no two look alike
    assert derived == ENCODER_SIGNATURES


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"neck.fpn_convs.0.conv.weight": (256, 256, 3, 3)},
        {"backbone.layer1.0.conv2.weight": (64, 64, 3, 3)},
        {"backbone.layer1.0.conv1.weight": (64, 64, 1, 1)},
        {"backbone.effnet.conv_stem.weight": (48, 3, 3, 3)},
        {"backbone.blocks.0.attn.qkv.weight": (2304, 768)},
    ],
    ids=["nothing", "no encoder", "one block", "no width", "no blocks", "another layout"],
)
def test_unknown_layouts_match_no_signature(shapes: dict[str, tuple[int, ...]]) -> None:
    assert encoder_signature(shapes) not in ENCODER_SIGNATURES


def test_a_missing_block_changes_the_signature() -> None:
    shapes = backbone_shapes(build_on_meta("resnet50")[0])
    assert ENCODER_SIGNATURES[encoder_signature(shapes)] == "resnet50"
    fewer = {key: shape for key, shape in shapes.items() if not key.startswith("backbone.layer3.5.")}
    assert encoder_signature(fewer) not in ENCODER_SIGNATURES
