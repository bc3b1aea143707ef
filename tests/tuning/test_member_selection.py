"""The selection of members against an oracle that scores all subsets plainly, one ensemble after the other."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from limited_ensembles import limit_ensembles
from tiny_detectors import tiny_detector

import kernel.ensemble.features
import kernel.ensemble.networks
from kernel.data.annotated import AnnotatedImage
from kernel.data.annotations import ImageAnnotations
from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.members import Member
from kernel.errors import InputError
from kernel.masks.rle import encode_rle
from kernel.models.crop_unet import CropUNet
from kernel.models.detectors import Detector
from kernel.postprocess.clean import postprocess_instances
from kernel.scoring.metric import image_score
from kernel.segment import instances_of_prediction
from kernel.settings import (
    CELL_TYPES,
    CLS_USE,
    MASKS_ALONE,
    CellTypeRule,
    EnsembleSettings,
    StageWeights,
    Thresholds,
)
from kernel.tuning import member_selection as module
from kernel.tuning.member_selection import (
    MemberCost,
    MemberSet,
    Selection,
    best_member_set,
    seconds_of_type,
    select_for_type,
    select_members,
    uses_of_selections,
)
from kernel.tuning.member_selection_output import describe_selection, draw_selections, selections_to_csv

LIMITS = Thresholds(
    rpn_max_per_img=25, rpn_score_threshold=0.5, rcnn_iou_threshold=0.5, rcnn_score_threshold=0.1,
    mask_nms_threshold=0.3, confidence=0.1, min_size=4,
)  # fmt: skip
#: By which every image counts as shsy5y.
RULE = CellTypeRule(score=1, astro_above=0, cort_below_total=0)
SETTINGS = EnsembleSettings(
    use_tta=False, use_tta_masks=False, thresholds=dict.fromkeys(CELL_TYPES, LIMITS), cell_type_rule=RULE
)
SHAPE = (48, 64)
NAMES = ("stranger", "first", "second")


def near_detector(seed: int) -> Detector:
    """Nearly the detector of seed 0: several of these find a little of what the others find, and score accordingly."""
    detector, generator = tiny_detector("maskrcnn"), torch.Generator().manual_seed(seed)
    for parameter in detector.parameters():
        parameter.data *= 1 + 0.02 * torch.randn(parameter.shape, generator=generator)
    return detector


@pytest.fixture(scope="module")
def ensemble(wheels_site: Path) -> Ensemble:
    """Members that are now used each for a type of its own: the selection is free of that."""
    detectors = [tiny_detector("maskrcnn", 1), near_detector(1), near_detector(2)]
    uses = [{"shsy5y", CLS_USE}, {"astro"}, {"cort"}]
    members = [
        Member(name, "maskrcnn", detector, frozenset(use))
        for name, detector, use in zip(NAMES, detectors, uses, strict=True)
    ]
    return Ensemble(members, SETTINGS)


def plain_masks(ensemble: Ensemble, names: Sequence[str], image: np.ndarray) -> Any:
    """The slow way: the masks of an ensemble of these members, used for all types."""
    members = [replace(m, use_for=frozenset(CELL_TYPES)) for m in ensemble.members if m.name in names]
    found = Ensemble(members, ensemble.settings).predict(image)
    return postprocess_instances(instances_of_prediction(found), ensemble.settings.thresholds)


@pytest.fixture(scope="module")
def images(ensemble: Ensemble, tmp_path_factory: pytest.TempPathFactory) -> list[AnnotatedImage]:
    """Noise; "annotated" is what two of the members find in it together, so that the best set is known to be theirs."""
    folder, annotated = tmp_path_factory.mktemp("noise"), []
    for seed in range(2):
        path = folder / f"{seed}.png"
        assert cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8))
        empty = AnnotatedImage(path, ImageAnnotations(path.stem, "shsy5y", SHAPE, ()))
        masks = plain_masks(ensemble, ("first", "second"), empty.read())
        assert len(masks) > 2
        rles = tuple(encode_rle(crop, at, SHAPE) for crop, at in zip(masks.crops, masks.offsets_yx, strict=True))
        annotated.append(AnnotatedImage(path, ImageAnnotations(path.stem, "shsy5y", SHAPE, rles)))
    return annotated


@pytest.fixture(scope="module")
def oracle(ensemble: Ensemble, images: list[AnnotatedImage]) -> dict[frozenset[str], float]:
    """The mean score of every subset."""
    return {
        frozenset(names): float(
            np.mean([image_score(plain_masks(ensemble, names, entry.read()), entry.masks()) for entry in images])
        )
        for count in (1, 2, 3)
        for names in combinations(NAMES, count)
    }


def test_a_mask_network_can_be_added_and_not_be_the_first(ensemble: Ensemble, images: list[AnnotatedImage]) -> None:
    torch.manual_seed(0)
    every_type = frozenset(CELL_TYPES)
    network = Member("masks", "unet", CropUNet(8), every_type, MASKS_ALONE)
    pair = Ensemble([network, replace(ensemble.members[1], use_for=every_type)], SETTINGS)
    selection = select_for_type([(pair, images)], "shsy5y")
    assert [each.members for each in selection.rounds[0]] == [("first",)]
    assert [each.members for each in selection.rounds[1]] == [("first", "masks")]
    expected = np.mean([image_score(plain_masks(pair, ("first", "masks"), e.read()), e.masks()) for e in images])
    assert selection.rounds[1][0].score == pytest.approx(expected)
    assert set(selection.costs["masks"].heads) == {"masks"} and selection.costs["masks"].seconds > 0


def test_what_overflows_or_lacks_memory_is_selected_by_all_the_same(
    ensemble: Ensemble, images: list[AnnotatedImage], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    network = Member("masks", "unet", CropUNet(8), frozenset(CELL_TYPES), MASKS_ALONE)
    members = [network, replace(ensemble.members[1], use_for=frozenset(CELL_TYPES))]
    expected = select_for_type([(Ensemble(members, SETTINGS), images[:1])], "shsy5y")
    limit_ensembles(monkeypatch)
    half = Ensemble(members, SETTINGS, dtype=torch.bfloat16, views_per_batch=3)
    found = select_for_type([(half, images[:1])], "shsy5y")
    assert [[each.scores for each in tried] for tried in found.rounds] == [
        [each.scores for each in tried] for tried in expected.rounds
    ]
    assert [each.getMessage().count("again") for each in caplog.records] == [1] * 6, "alone, masks alone, both"


def greedy(oracle: Mapping[frozenset[str], float]) -> list[frozenset[str]]:
    """The steps that the selection must take, by the scores of all subsets."""
    steps = [max((each for each in oracle if len(each) == 1), key=lambda each: oracle[each])]
    while larger := [each for each in oracle if steps[-1] < each and len(each) == len(steps[-1]) + 1]:
        best = max(larger, key=lambda each: oracle[each])
        if oracle[best] <= oracle[steps[-1]]:
            break
        steps.append(best)
    return steps


def test_the_selection_is_the_oracles(
    ensemble: Ensemble,
    images: list[AnnotatedImage],
    oracle: dict[frozenset[str], float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    views: Counter[int] = Counter()
    rpn_runs: Counter[int] = Counter()
    features, maps = kernel.ensemble.networks.compute_features, kernel.ensemble.features.compute_rpn_maps

    def count_views(detector: Any, batch: torch.Tensor) -> Any:
        views[id(detector)] += len(batch)
        return features(detector, batch)

    def count_rpn_runs(detector: Any, levels: Any) -> Any:
        rpn_runs[id(detector)] += 1
        return maps(detector, levels)

    monkeypatch.setattr(kernel.ensemble.networks, "compute_features", count_views)
    monkeypatch.setattr(kernel.ensemble.features, "compute_rpn_maps", count_rpn_runs)
    selections = select_members({"shsy5y": [(ensemble, images)]})
    assert list(selections) == ["shsy5y"]
    found = selections["shsy5y"]
    assert [frozenset(step.members) for step in found.steps] == greedy(oracle)
    assert set(found.members) == {"first", "second"}  # the third is of no use
    assert 0 < found.steps[0].score < found.steps[1].score == 1
    assert len(found.rounds) == 3
    for tried in found.rounds:
        for candidate in tried:
            assert candidate.score == pytest.approx(oracle[frozenset(candidate.members)], abs=1e-6)
    assert [len(tried) for tried in found.rounds] == [3, 2, 1]
    # Once for a member, image and round, however many sets it is in.
    assert set(views.values()) == set(rpn_runs.values()) == {len(found.rounds) * len(images)}
    assert all(cost.features > 0 and min(cost.heads.values()) >= 0 for cost in found.costs.values())
    last = found.steps[-1]
    assert last.seconds == pytest.approx(sum(found.costs[name].seconds for name in last.members))


def test_there_are_no_more_members_than_wanted(ensemble: Ensemble, images: list[AnnotatedImage]) -> None:
    found = select_for_type([(ensemble, images[:1])], "shsy5y", max_members=1)
    assert len(found.members) == len(found.rounds) == 1


def test_a_copy_of_a_member_gains_nothing_and_of_two_the_cheaper_is_taken(
    ensemble: Ensemble, images: list[AnnotatedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = ensemble.members[1]
    copies = [replace(one, name=name, use_for=frozenset(CELL_TYPES)) for name in ("slow", "quick")]
    seconds = iter([9.0] * 4 + [1.0] * 4)
    monkeypatch.setattr(module, "median_seconds", lambda images, stage: next(seconds))
    found = select_for_type([(Ensemble(copies, SETTINGS), images[:1])], "shsy5y")
    assert found.members == ("quick",)
    assert len(found.rounds) == 2
    assert [candidate.score for candidate in found.rounds[0]] == [found.steps[0].score] * 2


def test_weights_are_kept_and_only_sets_that_stand_begin(ensemble: Ensemble, images: list[AnnotatedImage]) -> None:
    weights = dict(zip(NAMES, (StageWeights(masks=0), StageWeights(boxes=3), StageWeights(proposals=0)), strict=True))
    every_use = frozenset(CELL_TYPES)
    members = [replace(m, weights=weights[m.name], use_for=every_use) for m in ensemble.members]
    weighted = Ensemble(members, SETTINGS)
    found = select_for_type([(weighted, images[:1])], "shsy5y")
    assert [candidate.members for candidate in found.rounds[0]] == [("first",)]
    assert set(found.costs["stranger"].heads) == {"proposals", "boxes"}
    for candidate in found.rounds[1]:
        masks = plain_masks(weighted, candidate.members, images[0].read())
        assert candidate.score == pytest.approx(image_score(masks, images[0].masks()), abs=1e-6)
    members[1] = replace(members[1], weights=StageWeights(boxes=0))
    with pytest.raises(InputError, match="the selection starts with one member, and none has a weight above 0"):
        select_for_type([(Ensemble(members, SETTINGS), images[:1])], "shsy5y")


def test_other_cell_types_are_refused(ensemble: Ensemble, images: list[AnnotatedImage]) -> None:
    foreign = replace(images[0], annotations=replace(images[0].annotations, cell_type="bv2"))
    with pytest.raises(InputError, match="the images are of bv2"):
        select_members({foreign.cell_type: [(ensemble, [foreign])]})
    assert select_members({}) == {}


# --- on figures --------------------------------------------------------------------------------------------------


def member_set(score: float, seconds: float, *names: str) -> MemberSet:
    return MemberSet(names, (score,), seconds * 0.75, seconds * 0.25)


def test_the_best_score_then_the_cheapest_then_the_first() -> None:
    slow, quick, same = member_set(0.5, 4, "a"), member_set(0.5 + 1e-15, 2, "b"), member_set(0.5, 2, "c")
    assert best_member_set([slow, member_set(0.4, 1, "d"), quick, same]) is quick
    assert best_member_set([same, quick]) is same
    assert best_member_set([member_set(0.6, 9, "e"), quick]).members == ("e",)


def selection_of(cell_type: str, *names: str) -> Selection:
    """A selection in which member a takes 1 s, b 2 s, c 3 s: half of it features."""
    costs = {
        name: MemberCost(seconds / 2, {"proposals": 0.0, "boxes": seconds / 4, "masks": seconds / 4})
        for name, seconds in (("a", 1.0), ("b", 2.0), ("c", 3.0))
    }
    steps, tried = [], []
    for count in range(1, len(names) + 1):
        seconds = sum(costs[name].seconds for name in names[:count])
        steps.append(member_set(0.5 + count / 10, seconds, *names[:count]))
        tried.append((steps[-1], member_set(0.1, 9.0, *names[: count - 1], "other")))
    return Selection(cell_type, 4, costs, (*tried, (member_set(0.2, 9, *names, "more"),)), tuple(steps))


@pytest.mark.parametrize(
    ("now", "chosen", "expected"),
    [
        (  # all alike: no first pass
            {},
            {"shsy5y": "ab", "astro": "ab", "cort": "ab"},
            {"a": CELL_TYPES, "b": CELL_TYPES, "c": ()},
        ),
        (  # they differ: the member of most types decides
            {},
            {"shsy5y": "ab", "astro": "b", "cort": "c"},
            {"a": ("shsy5y",), "b": ("shsy5y", "astro", CLS_USE), "c": ("cort",)},
        ),
        (  # of equals the cheapest
            {},
            {"shsy5y": "b", "astro": "c", "cort": "a"},
            {"a": ("cort", CLS_USE), "b": ("shsy5y",), "c": ("astro",)},
        ),
        (  # or who does already; who is not used for a type decides none
            {"c": {CLS_USE, "cort"}, "a": {CLS_USE}},
            {"shsy5y": "b", "astro": "b", "cort": "c"},
            {"a": (), "b": ("shsy5y", "astro"), "c": ("cort", CLS_USE)},
        ),
        (  # a type without images stays
            {"a": {"cort"}, "b": {"cort"}, "c": {"shsy5y", "astro", CLS_USE}},
            {"shsy5y": "a", "astro": "a"},
            {"a": (*CELL_TYPES, CLS_USE), "b": ("cort",), "c": ()},
        ),
    ],
)
def test_uses_follow_the_selections(
    ensemble: Ensemble, now: dict[str, set[str]], chosen: dict[str, str], expected: dict[str, tuple[str, ...]]
) -> None:
    selections = {kind: selection_of(kind, *names) for kind, names in chosen.items()}
    assert uses_of_selections(ensemble_used(ensemble, now), selections) == expected


@pytest.mark.parametrize("stages", [("masks",), ("boxes", "masks"), ("proposals", "masks")])
def test_a_first_pass_has_all_its_stages(ensemble: Ensemble, stages: tuple[str, ...]) -> None:
    """A mask network that is marked "cls", as `members add` marks all, or a detector without weight in a stage."""
    chosen = {"shsy5y": "ac", "astro": "ac", "cort": "bc"}
    selections = {kind: selection_of(kind, *names) for kind, names in chosen.items()}
    for selection in selections.values():
        selection.costs["c"] = MemberCost(1.5, dict.fromkeys(stages, 0.5))  # type: ignore[index]
    assert uses_of_selections(ensemble_used(ensemble, {"c": {*CELL_TYPES, CLS_USE}}), selections) == {
        "a": ("shsy5y", "astro", CLS_USE),
        "b": ("cort",),
        "c": (*CELL_TYPES, CLS_USE),
    }


def ensemble_used(ensemble: Ensemble, now: Mapping[str, set[str]]) -> Ensemble:
    """Members a, b and c with these uses, or all types."""
    members = [
        replace(member, name=name, use_for=frozenset(now.get(name, CELL_TYPES)))
        for name, member in zip("abc", ensemble.members, strict=True)
    ]
    several = Ensemble([replace(m, use_for=frozenset(CELL_TYPES)) for m in members], SETTINGS)
    several.members = tuple(members)
    return several


def test_the_first_pass_is_paid_for() -> None:
    chosen = selection_of("astro", "a", "b")
    alike = {"a": CELL_TYPES, "b": CELL_TYPES, "c": ()}
    assert seconds_of_type(chosen, alike) == 3.0
    # b's boxes once more; c's features and boxes on top.
    assert seconds_of_type(chosen, {"a": ("astro",), "b": (*CELL_TYPES, CLS_USE), "c": ()}) == 3.5
    assert seconds_of_type(chosen, {"a": CELL_TYPES, "b": ("astro",), "c": ("cort", CLS_USE)}) == 3.0 + 1.5 + 0.75


def test_the_table_shows_score_against_time() -> None:
    lines = describe_selection(selection_of("astro", "a", "b"), budget=2.0)
    assert lines[0] == "astro, 4 images"
    assert lines[2].split() == ["a", "0.6000", "1.00", "=", "0.75", "+", "0.25,", "fits"]
    assert lines[3].split() == ["+", "b", "0.7000", "+0.1000", "3.00", "=", "2.25", "+", "0.75,", "too", "slow"]
    assert lines[4] == "  no gain by another: at best 0.2000 with more"


def test_what_was_tried_becomes_rows_and_a_picture(tmp_path: Path) -> None:
    selections = {kind: selection_of(kind, *names) for kind, names in {"astro": "ab", "cort": "c"}.items()}
    rows = list(csv.DictReader(io.StringIO(selections_to_csv(selections, budget=2.0))))
    assert len(rows) == 5 + 3
    assert rows[2] == {
        "cell_type": "astro",
        "count": "2",
        "members": "a b",
        "score": "0.700000",
        "seconds": "3.000",
        "features_seconds": "2.250",
        "heads_seconds": "0.750",
        "fits": "0",
        "chosen": "1",
    }
    assert [row["members"] for row in rows if row["chosen"] == "1"] == ["a", "a b", "c"]
    for budget in (2.0, 1e6):
        draw_selections(tmp_path / "selection.png", selections, budget)
        picture = cv2.imread(str(tmp_path / "selection.png"))
        assert picture is not None and picture.shape[1] == 2 * 5 * 120
        assert np.ptp(picture.astype(int), axis=2).max() > 50
