"""BatchNorms in their convolutions: none is left, and no output changes beyond rounding."""

from __future__ import annotations

import pytest
import torch
from tiny_detectors import tiny_detector
from torch import nn

from kernel.models.detectors import compute_features
from kernel.models.encoders import build_encoder
from kernel.models.fusion import fuse_batch_norms

pytestmark = pytest.mark.usefixtures("wheels_site")


def count_norms(module: nn.Module) -> int:
    return sum(isinstance(each, nn.BatchNorm2d) for each in module.modules())


def with_drawn_statistics(module: nn.Module) -> nn.Module:
    """New BatchNorms of mean 0 and variance 1 would hide a mistake."""
    torch.manual_seed(0)
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            for values, mean in ((each.running_mean, 0.0), (each.running_var, 1.0), (each.weight, 1.0), (each.bias, 0)):
                assert values is not None
                values.data.uniform_(mean - 0.3, mean + 0.3)
    module.eval()  # what mmdet's ResNet returns here is not itself
    return module


@torch.inference_mode()
@pytest.mark.parametrize("name", ["resnet18_narrow", "resnet50", "resnext50", "efficientnet_lite0", "efficientnet_b4"])
def test_encoders_say_the_same(name: str) -> None:
    encoder = with_drawn_statistics(build_encoder(name)[0])
    images = torch.randn(1, 3, 64, 64)
    expected, norms = encoder(images), count_norms(encoder)
    assert fuse_batch_norms(encoder) == norms > 10
    assert count_norms(encoder) == 0
    for ours, theirs in zip(encoder(images), expected, strict=True):
        assert (ours - theirs).norm() < 1e-4 * theirs.norm()


@torch.inference_mode()
def test_a_whole_detector_says_the_same() -> None:
    detector = with_drawn_statistics(tiny_detector("htc"))
    images = torch.randn(2, 3, 64, 96)
    expected = compute_features(detector, images)
    assert fuse_batch_norms(detector) > 0
    found = compute_features(detector, images)
    for ours, theirs in zip(found.levels, expected.levels, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert fuse_batch_norms(detector) == 0
