"""Mask networks beside detectors: averaged with their masks, asked about nothing else, never alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_detectors import tiny_detector

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.members import Member
from kernel.ensemble.networks import Tiling
from kernel.ensemble.quality_levels import ensemble_at, quality_levels
from kernel.ensemble.tiles import predict_whole_or_tiled
from kernel.errors import InputError
from kernel.manifest.types import PLAIN_ENCODER, MemberEntry
from kernel.models.crop_unet import CropUNet
from kernel.runtime.memory import plan_memory
from kernel.settings import CELL_TYPES, MASKS_ALONE, EnsembleSettings, StageWeights, Thresholds

pytestmark = pytest.mark.usefixtures("wheels_site")

ALL_TYPES = frozenset(CELL_TYPES)
LIMITS = Thresholds(rpn_max_per_img=40, rcnn_iou_threshold=0.5, rcnn_score_threshold=0.1)
SETTINGS = EnsembleSettings(thresholds=dict.fromkeys(CELL_TYPES, LIMITS))
NOTHING = EnsembleSettings(thresholds=dict.fromkeys(CELL_TYPES, Thresholds(rpn_score_threshold=1.0)))


def detector(masks: float = 1.0) -> Member:
    return Member("detector", "maskrcnn", tiny_detector("maskrcnn"), ALL_TYPES, StageWeights(masks=masks))


def network(weight: float = 1.0, seed: int = 0) -> Member:
    torch.manual_seed(seed)
    return Member("masks", "unet", CropUNet(8), ALL_TYPES, replace(MASKS_ALONE, masks=weight))


def random_image(height: int = 48, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("weight", [1.0, 3.0])
def test_boxes_are_the_detectors_and_masks_the_weighted_mean(first: bool, weight: float) -> None:
    one, other = detector(), network(weight)
    image = random_image()
    both = Ensemble([other, one] if first else [one, other], SETTINGS).predict(image)
    alone = Ensemble([one], SETTINGS).predict(image)
    masked = Ensemble([detector(masks=0), other], SETTINGS).predict(image)
    assert len(alone.scores) > 3
    for found in (both, masked):
        assert torch.equal(found.boxes_xyxy, alone.boxes_xyxy)
        assert torch.equal(found.scores, alone.scores)
        assert torch.equal(found.labels, alone.labels)
        assert (found.cell_type, found.level_counts) == (alone.cell_type, alone.level_counts)
    expected = (alone.mask_probs + weight * masked.mask_probs) / (1 + weight)
    torch.testing.assert_close(both.mask_probs, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(alone.mask_probs, masked.mask_probs, atol=0.01)


def test_no_cells_take_no_masks() -> None:
    found = Ensemble([network(), detector()], NOTHING).predict(random_image())
    assert found.mask_probs.shape == (0, 28, 28)


def test_tiles_have_the_masks_of_the_whole() -> None:
    ensemble = Ensemble([network(), detector()], SETTINGS)
    image = random_image(600, 640)
    ensemble.tiling = Tiling(whole_pixels=600 * 600, side=512, feature_bytes=1 << 30)
    tiled = predict_whole_or_tiled(ensemble, image)
    assert tiled.mask_probs.shape == (len(tiled.scores), 28, 28)
    assert set(tiled.members) == {"detector", "masks"}
    assert len(tiled.scores) > 3


def test_alone_it_is_refused() -> None:
    with pytest.raises(InputError, match=r"have the weight 0 for proposals"):
        Ensemble([network()], SETTINGS)
    with pytest.raises(InputError, match=r"have the weight 0 for proposals"):
        Ensemble([network(), detector()], SETTINGS).alone("masks")


def test_its_mask_size_must_be_the_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "kernel.ensemble.members.mask_size", lambda one: (14, 14) if isinstance(one, CropUNet) else (28, 28)
    )
    with pytest.raises(InputError, match=r"detector and masks cannot be averaged: their mask size differ"):
        Ensemble([network(), detector()], SETTINGS)


def test_memory_is_planned_with_it() -> None:
    ensemble = Ensemble([network(), detector()], SETTINGS)
    alone = Ensemble([detector()], SETTINGS)
    plan, without = (plan_memory(each, (520, 704), 4 << 30) for each in (ensemble, alone))
    views, pixels = 4, 544 * 704
    assert plan.wanted_bytes - without.wanted_bytes == views * pixels * 4  # a gray level in float32
    assert plan.tiling.whole_pixels == without.tiling.whole_pixels


def test_when_time_is_short_the_detector_stays() -> None:
    entries = [
        MemberEntry("masks", "unet", PLAIN_ENCODER, CELL_TYPES, weights=MASKS_ALONE, worth=9.0),
        MemberEntry("detector", "maskrcnn", "resnet18_narrow", CELL_TYPES, worth=1.0),
    ]
    ensemble = Ensemble([network(), detector()], SETTINGS)
    for level in quality_levels(entries, SETTINGS):
        assert "detector" in level.uses
        assert len(ensemble_at(ensemble, level).predict(random_image()).scores) > 3
