"""RoIAlign on the CPU against torchvision's, and against mmdet's extractor over several levels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_detectors import tiny_detector
from torchvision.ops import RoIAlign

from kernel.models import roi_align as module
from kernel.models.roi_align import align_rois, pool_rois


def random_rois(rng: np.random.Generator, count: int, maps: int, extent: float) -> torch.Tensor:
    """RoIs of all sizes, some beyond the borders, some without width or height."""
    corners = rng.uniform(-0.1 * extent, 1.1 * extent, (count, 2))
    sides = rng.uniform(0, 1, (count, 2)) ** 3 * extent * (rng.random((count, 2)) > 0.1)
    index = rng.integers(0, maps, (count, 1))
    return torch.from_numpy(np.concatenate([index, corners, corners + sides], axis=1)).float()


def assert_like_torchvision(fmap: torch.Tensor, rois: torch.Tensor, size: int, scale: float) -> None:
    expected = RoIAlign(size, spatial_scale=scale, sampling_ratio=0, aligned=True)(fmap, rois)
    found = align_rois(fmap, rois, size, scale).permute(0, 3, 1, 2)
    # A sampling point within rounding of -1 counts or not; elsewhere positions differ by 1e-5 of a feature pixel.
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


@pytest.mark.parametrize(("channels_last", "scale"), [(True, 0.5), (False, 0.25)])
def test_gradients_are_torchvisions(channels_last: bool, scale: float) -> None:
    rng = np.random.default_rng(2)
    order = torch.channels_last if channels_last else torch.contiguous_format
    fmap = torch.from_numpy(rng.standard_normal((2, 8, 30, 40))).float().contiguous(memory_format=order)
    rois = random_rois(rng, 60, 2, 60.0)
    push = torch.from_numpy(rng.standard_normal((60, 8, 7, 7))).float()
    gradients = []
    for pool in (
        lambda maps: align_rois(maps, rois, 7, scale).permute(0, 3, 1, 2),
        lambda maps: RoIAlign(7, spatial_scale=scale, sampling_ratio=0, aligned=True)(maps, rois),
    ):
        leaf = fmap.clone().requires_grad_()
        pool(leaf).backward(push)
        assert leaf.grad is not None
        gradients.append(leaf.grad)
    assert gradients[0].abs().max() > 1
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=0)


@given(st.integers(0, 2**32 - 1), st.sampled_from([7, 14]), st.sampled_from([0.5, 0.25, 0.0625]))
def test_it_is_torchvisions(seed: int, size: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 24, 2)
    fmap = torch.from_numpy(rng.standard_normal((2, 3, height, width))).float()
    rois = random_rois(rng, 20, 2, 24 / scale)
    assert_like_torchvision(fmap.contiguous(memory_format=torch.channels_last), rois, size, scale)


def test_half_pixel_offsets_by_hand() -> None:
    """A ramp's value is its x: bins of two pixels of a RoI from 2 to 6, sampled at pixels' centres, have its means."""
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    found = align_rois(ramp, torch.tensor([[0.0, 2, 2, 6, 6]]), size=2, scale=1.0)
    assert found.shape == (1, 2, 2, 1)
    torch.testing.assert_close(found[0, :, :, 0], torch.tensor([[2.5, 4.5], [2.5, 4.5]]))


def test_rois_without_sampling_points_are_zeros_and_take_no_gradient() -> None:
    fmap = torch.ones(1, 3, 8, 8, requires_grad=True)
    rois = torch.tensor([[0.0, 2, 2, 2, 6], [0, 6, 2, 2, 6], [0, 3, 3, 3, 3], [0, 2, 7, 6, 1]])
    found = align_rois(fmap, rois, 7, 1.0)
    torch.testing.assert_close(found, torch.zeros(4, 7, 7, 3))
    found.sum().backward()
    torch.testing.assert_close(fmap.grad, torch.zeros(1, 3, 8, 8))


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    fmap, rois = torch.from_numpy(rng.standard_normal((2, 4, 30, 40))).float(), random_rois(rng, 50, 2, 60.0)
    whole = align_rois(fmap, rois, 7, 0.5)
    monkeypatch.setattr(module, "POSITIONS_AT_ONCE", 300)
    torch.testing.assert_close(align_rois(fmap, rois, 7, 0.5), whole, atol=0, rtol=0)
    assert_like_torchvision(fmap, rois, 7, 0.5)


@pytest.mark.parametrize("count", [0, 60])
def test_levels_are_chosen_as_mmdet_does(count: int, wheels_site: object) -> None:
    head = tiny_detector("htc").roi_head
    rng = np.random.default_rng(1)
    levels = [torch.from_numpy(rng.standard_normal((2, 16, 256 // s, 320 // s))).float() for s in (2, 4, 8, 16)]
    rois = torch.cat([random_rois(rng, count, 2, extent) for extent in (256.0, 1500.0)])
    for extractor, maps in (
        (head.bbox_roi_extractor[0], levels),
        (head.mask_roi_extractor[0], levels),
        (head.semantic_roi_extractor, levels[1:2]),
    ):
        found, expected = pool_rois(extractor, maps, rois), extractor(maps, rois)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    if count:
        assert len(set(head.bbox_roi_extractor[0].map_roi_levels(rois, 4).tolist())) == 4
