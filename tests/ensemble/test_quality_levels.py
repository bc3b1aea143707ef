"""Quality levels: their order, their work, and that each is an ensemble with those settings and members."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_detectors import tiny_detector

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.members import Member
from kernel.ensemble.quality_levels import ensemble_at, quality_levels, uses_left
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import PLAIN_ENCODER, MemberEntry
from kernel.segment import segment_image
from kernel.settings import CELL_TYPES, CLS_USE, EQUAL_WEIGHTS, MASKS_ALONE, EnsembleSettings, StageWeights, Thresholds

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Thresholds(rpn_max_per_img=40, rcnn_iou_threshold=0.5, rcnn_score_threshold=0.1, confidence=0.1, min_size=0)
SETTINGS = EnsembleSettings(thresholds=dict.fromkeys(CELL_TYPES, LIMITS))
KINDS = ("maskrcnn", "cascade", "htc")


def entry(
    name: str,
    uses: tuple[str, ...] = CELL_TYPES,
    worth: float | None = None,
    weights: StageWeights = EQUAL_WEIGHTS,
) -> MemberEntry:
    return MemberEntry(name, "maskrcnn", "resnet18_narrow", uses, worth=worth, weights=weights)


def test_the_order_of_three_members() -> None:
    levels = quality_levels([entry(name) for name in "abc"], EnsembleSettings())
    told = [(level.settings.use_tta, level.settings.use_tta_masks, "".join(level.uses)) for level in levels]
    assert told == [
        (True, True, "abc"),
        (True, False, "abc"),
        (False, False, "abc"),
        (False, False, "ab"),
        (False, False, "a"),
    ]
    assert [level.name for level in levels] == [
        "full",
        "masks from the identity view alone",
        "boxes from the identity view alone",
        "at most 2 member(s)",
        "at most 1 member(s)",
    ]


def test_steps_that_change_nothing_are_passed_over() -> None:
    without = EnsembleSettings(use_tta=False, use_tta_masks=False)
    assert [level.name for level in quality_levels([entry("a")], without)] == ["full"]
    assert len(quality_levels([entry("a")], EnsembleSettings(use_tta_masks=False))) == 2


def test_the_least_worthy_go_first() -> None:
    members = [entry("a", worth=0.1), entry("b"), entry("c", worth=0.3), entry("d", worth=0.1), entry("e")]
    left = ["".join(uses_left(members, dropped)) for dropped in range(7)]
    assert left == ["abcde", "abcd", "acd", "ac", "c", "c", "c"]


def test_each_type_keeps_its_best_member() -> None:
    members = [entry("a", ("astro",)), entry("b", ("cort", "shsy5y", CLS_USE)), entry("c", ("astro", CLS_USE))]
    assert uses_left(members, 9) == {"a": {"astro"}, "b": {"cort", "shsy5y", CLS_USE}}


def test_where_the_best_has_no_weight_the_next_one_stays_too() -> None:
    no_masks, only_masks = StageWeights(masks=0), StageWeights(proposals=0, boxes=0)
    members = [entry("a", weights=no_masks), entry("b"), entry("c")]
    assert ["".join(uses_left(members, dropped)) for dropped in range(4)] == ["abc", "ab", "ab", "ab"]
    members = [entry("a", weights=only_masks), entry("b", weights=only_masks), entry("c", weights=no_masks)]
    assert ["".join(uses_left(members, dropped)) for dropped in range(3)] == ["abc", "abc", "ac"]
    # The first pass takes no masks.
    members = [entry("a", (*CELL_TYPES, CLS_USE), weights=no_masks), entry("b"), entry("c", ("cort", CLS_USE))]
    assert uses_left(members, 9) == {"a": {*CELL_TYPES, CLS_USE}, "b": {*CELL_TYPES}}


def test_mask_networks_go_after_all_detectors_but_the_last() -> None:
    """They take a fraction of a detector's time, whatever their place in the manifest and their worth."""
    masks = MemberEntry("m", "unet", PLAIN_ENCODER, CELL_TYPES, weights=MASKS_ALONE)
    members = [masks, entry("a", worth=0.1), entry("b"), entry("c", worth=0.3)]
    assert ["".join(uses_left(members, dropped)) for dropped in range(5)] == ["mabc", "mac", "mc", "c", "c"]
    last = replace(masks, worth=0.9, use_for=("cort",))
    left = [uses_left([entry("a"), entry("b", ("astro",)), last], dropped) for dropped in range(3)]
    assert [sorted(uses) for uses in left] == [["a", "b", "m"], ["a"], ["a"]]


def test_mask_networks_have_no_features() -> None:
    masks = MemberEntry("m", "unet", PLAIN_ENCODER, CELL_TYPES, weights=MASKS_ALONE)
    full = quality_levels([entry("a"), entry("b"), masks], EnsembleSettings())[0]
    assert full.stage_work("cort") == {"features": 8, "proposals": 2, "boxes": 8, "masks": 12, "other": 1}


def test_no_level_has_a_first_pass_where_full_quality_has_none() -> None:
    members = [entry("a"), entry("b"), entry("c", (*CELL_TYPES, CLS_USE))]
    for level in quality_levels(members, EnsembleSettings()):
        assert all(uses == {*CELL_TYPES} for uses in level.uses.values())


def test_members_without_weight_are_no_work() -> None:
    members = [entry("a", weights=StageWeights(masks=0)), entry("b", weights=StageWeights(boxes=0))]
    for level in quality_levels(members, EnsembleSettings(use_tta=False, use_tta_masks=False)):
        assert level.stage_work("cort") == {"features": 2, "proposals": 2, "boxes": 1, "masks": 1, "other": 1}


@pytest.mark.parametrize(
    "name", ["weights_manifest.json", *(f"bundle/{each}/manifest.json" for each in ("synthetic", "members"))]
)
def test_work_falls_from_level_to_level(name: str) -> None:
    manifest = read_manifest(ROOT / name)
    levels = quality_levels(manifest.members, manifest.ensemble)
    for cell_type in CELL_TYPES:
        work = [level.stage_work(cell_type) for level in levels]
        for above, below in itertools.pairwise(work):
            assert all(below[stage] <= above[stage] for stage in above) and below != above
        assert all(value >= 1 for value in work[-1].values())


def test_work_of_the_published_ensemble() -> None:
    manifest = read_manifest(ROOT / "weights_manifest.json")
    full = quality_levels(manifest.members, manifest.ensemble)[0]
    first, cort = {m.name for m in manifest.members_for(CLS_USE)}, {m.name for m in manifest.members_for("cort")}
    work = full.stage_work("cort")
    assert work["masks"] == 4 * len(cort) and work["features"] == 4 * len(cort | first)
    assert work["boxes"] == 4 * (len(cort) + len(first)) and work["proposals"] == len(cort) + len(first)


@pytest.mark.usefixtures("wheels_site")
def test_a_level_is_an_ensemble_with_its_settings_and_members() -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3)).astype(np.uint8)
    uses = dict(zip(KINDS, [{*CELL_TYPES, CLS_USE}, {"shsy5y", "astro"}, {*CELL_TYPES}], strict=True))
    members = [Member(kind, kind, tiny_detector(kind), frozenset(uses[kind])) for kind in KINDS]
    whole = Ensemble(members, SETTINGS, views_per_batch=2, feature_budget_bytes=12345)
    entries = [entry(kind, tuple(uses[kind])) for kind in KINDS]
    for level in quality_levels(entries, SETTINGS):
        lowered = ensemble_at(whole, level)
        kept = [replace(each, use_for=level.uses[each.name]) for each in members if each.name in level.uses]
        assert (lowered.views_per_batch, lowered.feature_budget_bytes) == (2, 12345)
        found = segment_image(lowered, image).masks.rles()
        assert found == segment_image(Ensemble(kept, level.settings, views_per_batch=2), image).masks.rles()
        assert len(found) > 3
