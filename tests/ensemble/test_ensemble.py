"""The ensemble with tiny detectors: which members run how often, what may not change results, and what is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from golden_ensemble import assert_same_boxes, to_rows
from tiny_detectors import tiny_detector

from kernel.ensemble.boxes import Detections, scale_boxes, select_boxes
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.masks import maskness
from kernel.ensemble.members import Member
from kernel.ensemble.networks import NotFiniteError
from kernel.ensemble.views import ALL_VIEWS, IDENTITY
from kernel.errors import InputError
from kernel.models.detectors import Detector
from kernel.settings import CELL_TYPES, CLS_USE, CellTypeRule, EnsembleSettings, StageWeights, Thresholds

pytestmark = pytest.mark.usefixtures("wheels_site")

KINDS = ("maskrcnn", "cascade", "htc")
ALL_TYPES = frozenset(CELL_TYPES)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]
#: Few, far apart boxes: enough to see, quick to mask.
LIMITS = Thresholds(rpn_max_per_img=40, rcnn_iou_threshold=0.5, rcnn_score_threshold=0.1)
SETTINGS = EnsembleSettings(thresholds=dict.fromkeys(CELL_TYPES, LIMITS))
NOTHING = EnsembleSettings(thresholds=dict.fromkeys(CELL_TYPES, Thresholds(rpn_score_threshold=1.0)))
BUDGET = 1 << 30


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """TF32 would make results depend on which kernel a batch size picks."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def random_image(height: int = 48, width: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def member(name: str, kind: str = "maskrcnn", uses: frozenset[str] | set[str] = ALL_TYPES, seed: int = 0) -> Member:
    return Member(name, kind, tiny_detector(kind, seed), frozenset(uses))


def prefer(labelled: Member, label: int) -> Member:
    """The same member, all of whose boxes get `label`."""
    heads = labelled.detector.roi_head.bbox_head
    for head in heads if labelled.kind != "maskrcnn" else [heads]:
        head.fc_cls.bias.data[label] += 50
    return labelled


def count_runs(members: Sequence[Member], monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts, from now on, how many images go through each member's encoder."""
    runs: Counter[str] = Counter()

    def counted(name: str, extract: Any) -> Any:
        def extract_feat(images: torch.Tensor) -> Any:
            runs[name] += len(images)
            return extract(images)

        return extract_feat

    for each in members:
        monkeypatch.setattr(each.detector, "extract_feat", counted(each.name, each.detector.extract_feat))
    return runs


def assert_same_prediction(found: Prediction, expected: Prediction) -> None:
    """Same cells up to rounding: boxes as sets, masks where the boxes are in the same order."""
    assert found.cell_type == expected.cell_type
    assert found.level_counts == expected.level_counts
    assert len(expected.scores) > 3
    found_rows = to_rows(found.boxes_xyxy, found.scores, found.labels)
    expected_rows = to_rows(expected.boxes_xyxy, expected.scores, expected.labels)
    assert_same_boxes(found_rows, expected_rows, "boxes", labelled=True)
    same = np.abs(found_rows[:, None, :4] - expected_rows[None, :, :4]).max(axis=2) < 1e-2
    for row, column in zip(*np.nonzero(same), strict=True):
        if found.labels[row] == expected.labels[column]:
            torch.testing.assert_close(found.mask_probs[row], expected.mask_probs[column], atol=1e-3, rtol=0)
    assert same.any(axis=0).mean() > 0.9


# --- results -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_is_whole_and_in_order(kind: str, device: str) -> None:
    image = random_image()
    found = Ensemble([member("one", kind)], SETTINGS, device=device).predict(image)
    count = len(found.scores)
    assert count > 3
    assert found.image_shape == (48, 80)
    assert found.cell_type in CELL_TYPES
    assert found.members == ("one",)
    assert found.boxes_xyxy.shape == (count, 4)
    assert found.mask_probs.shape == (count, 28, 28)
    for tensor in (found.boxes_xyxy, found.scores, found.mask_probs):
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
        assert tensor.isfinite().all()
    assert found.labels.dtype == torch.int64
    assert set(found.labels.tolist()) <= {0, 1, 2}
    assert (found.scores.diff() <= 0).all()
    assert (found.scores > LIMITS.rcnn_score_threshold).all()
    assert found.mask_probs.amin() >= 0
    assert found.mask_probs.amax() <= 1
    assert found.boxes_xyxy.amin() >= 0
    assert (found.boxes_xyxy.amax(dim=0) <= torch.tensor([80, 48, 80, 48])).all()
    assert set(found.seconds) == {"features", "proposals", "boxes", "masks"}
    assert all(seconds >= 0 for seconds in found.seconds.values())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_batching_the_views_changes_nothing(kind: str, device: str) -> None:
    one, image = member("one", kind), random_image()
    alone = Ensemble([one], SETTINGS, device=device, views_per_batch=1).predict(image)
    for step in (2, 3, 4):
        assert_same_prediction(Ensemble([one], SETTINGS, device=device, views_per_batch=step).predict(image), alone)


@pytest.mark.parametrize("device", DEVICES)
def test_the_feature_budget_changes_nothing(device: str) -> None:
    members, image = [member("one", "htc"), member("two", "maskrcnn", seed=1)], random_image()
    kept = Ensemble(members, SETTINGS, device=device, feature_budget_bytes=BUDGET).predict(image)
    for budget in (0, 400_000):
        anew = Ensemble(members, SETTINGS, device=device, feature_budget_bytes=budget).predict(image)
        assert_same_prediction(anew, kept)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_identical_members_are_as_good_as_one(kind: str, device: str) -> None:
    one, image = member("one", kind), random_image()
    single = Ensemble([one], SETTINGS, device=device).predict(image)
    double = Ensemble([one, member("same", kind)], SETTINGS, device=device).predict(image)
    assert_same_prediction(double, single)
    assert double.members == ("one", "same")


@torch.inference_mode()
def test_the_mean_of_two_members_is_between_them() -> None:
    members, image = [member("one", "cascade"), member("two", "cascade", seed=1)], random_image()
    boxes = torch.tensor([[5.0, 5, 25, 30], [30, 10, 60, 40]])
    detections = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 2]))
    both = Ensemble(members, SETTINGS)
    features = both.image_features(image)
    apart = [both.box(features, [each], boxes) for each in members]
    together = both.box(features, members, boxes)
    torch.testing.assert_close(together.boxes_xyxy, (apart[0].boxes_xyxy + apart[1].boxes_xyxy) / 2)
    torch.testing.assert_close(together.scores, (apart[0].scores + apart[1].scores) / 2)
    assert (apart[0].scores - apart[1].scores).abs().max() > 1e-2
    masks = [both.mask(features, [each], detections) for each in members]
    torch.testing.assert_close(both.mask(features, members, detections), (masks[0] + masks[1]) / 2)
    assert (masks[0] - masks[1]).abs().max() > 1e-2


@torch.inference_mode()
def test_every_view_weighs_the_same_whatever_the_batches() -> None:
    """Batches of 1, 2 and 1 views: the mean over views, not over batches."""
    one, image = member("one"), random_image()
    boxes = torch.tensor([[5.0, 5, 25, 30], [30, 10, 60, 40]])
    detections = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 2]))
    ensembles = [Ensemble([one], SETTINGS, views_per_batch=step) for step in (1, 2, 3)]
    found = [each.box(each.image_features(image), [one], boxes) for each in ensembles]
    masks = [each.mask(each.image_features(image), [one], detections) for each in ensembles]
    for place in (1, 2):
        torch.testing.assert_close(found[place].boxes_xyxy, found[0].boxes_xyxy, atol=1e-3, rtol=0)
        torch.testing.assert_close(found[place].scores, found[0].scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(masks[place], masks[0], atol=1e-5, rtol=0)


def test_stages_one_by_one_are_the_prediction() -> None:
    members, image = [member("one", "cascade"), member("two", "htc", seed=1)], random_image()
    ensemble = Ensemble(members, SETTINGS)
    expected = ensemble.predict(image)
    with torch.inference_mode():
        features = ensemble.image_features(image)
        proposals = ensemble.propose(features, members)
        merged = ensemble.box(features, members, proposals.boxes_xyxy)
        boxes = select_boxes(merged, LIMITS, bbox_nms=True)
        masks = ensemble.mask(features, members, boxes)
    assert proposals.cell_type == expected.cell_type
    assert proposals.level_counts == expected.level_counts
    torch.testing.assert_close(boxes.boxes_xyxy, expected.boxes_xyxy)
    torch.testing.assert_close(boxes.scores, expected.scores)
    torch.testing.assert_close(masks, expected.mask_probs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(33, 65), (32, 32), (1, 1), (20, 100)])
@pytest.mark.parametrize("kind", KINDS)
def test_images_of_any_size(kind: str, shape: tuple[int, int], device: str) -> None:
    settings = replace(SETTINGS, thresholds=dict.fromkeys(CELL_TYPES, replace(LIMITS, rpn_max_per_img=10)))
    found = Ensemble([member("one", kind)], settings, device=device).predict(random_image(*shape))
    assert found.image_shape == shape
    assert found.mask_probs.shape == (len(found.scores), 28, 28)
    if shape != (1, 1):
        assert len(found.scores) > 0
    assert (found.boxes_xyxy <= torch.tensor([shape[1], shape[0]] * 2)).all()
    assert (found.boxes_xyxy >= 0).all()


@torch.inference_mode()
@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.bfloat16),
        *[pytest.param("cuda", t, marks=DEVICES[1].marks) for t in (torch.float16, torch.bfloat16)],
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_close(kind: str, device: str, dtype: torch.dtype) -> None:
    one, image = member("one", kind), random_image()
    exact, half = Ensemble([one], SETTINGS, device=device), Ensemble([one], SETTINGS, device=device, dtype=dtype)
    exact_features, half_features = exact.image_features(image), half.image_features(image)
    pairs = list(
        zip(exact_features.get(one, (IDENTITY,)).levels, half_features.get(one, (IDENTITY,)).levels, strict=True)
    )
    for expected, found in pairs:
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 0.02 * expected.norm()
    assert any(not torch.equal(found, expected) for expected, found in pairs)  # it was used
    boxes = torch.tensor([[5.0, 5, 25, 30], [30, 10, 60, 40], [0, 0, 80, 48]], device=device)
    expected, found = exact.box(exact_features, [one], boxes), half.box(half_features, [one], boxes)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, atol=1.0, rtol=0)
    torch.testing.assert_close(found.scores, expected.scores, atol=0.03, rtol=0)
    detections = Detections(boxes, boxes[:, 0], torch.tensor([0, 1, 2], device=device))
    masks = half.mask(half_features, [one], detections)
    torch.testing.assert_close(masks, exact.mask(exact_features, [one], detections), atol=0.03, rtol=0)
    prediction = half.predict(image)
    assert len(prediction.scores) > 3
    assert prediction.mask_probs.dtype == prediction.boxes_xyxy.dtype == torch.float32


# --- weights -----------------------------------------------------------------------------------------------------


def weighted(given: Member, *weights: float) -> Member:
    return replace(given, weights=StageWeights(*weights))


def test_a_member_of_weight_two_is_the_same_member_twice() -> None:
    one, other, image = member("one", "cascade"), member("other", "htc", seed=1), random_image()
    twice = Ensemble([one, replace(one, name="again"), other], SETTINGS).predict(image)
    double = Ensemble([weighted(one, 2, 2, 2), other], SETTINGS).predict(image)
    assert_same_prediction(double, twice)
    plain = Ensemble([one, other], SETTINGS).predict(image)
    assert plain.scores.shape != double.scores.shape or (plain.scores - double.scores).abs().max() > 1e-3


@torch.inference_mode()
@pytest.mark.parametrize("stage", ["proposals", "boxes", "masks"])
def test_weights_are_of_each_stage(stage: str) -> None:
    """Weights 3 and 1 at one stage: its mean is theirs, the other stages' means are plain."""
    members = [member("one", "cascade"), member("two", "htc", seed=1)]
    uneven = [replace(members[0], weights=StageWeights(**{stage: 3})), members[1]]
    ensemble, boxes = Ensemble(members, SETTINGS), torch.tensor([[5.0, 5, 25, 30], [30, 10, 60, 40]])
    detections = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 2]))

    def answers(given: list[Member]) -> dict[str, torch.Tensor]:
        features = ensemble.image_features(random_image())
        merged = ensemble.box(features, given, boxes)
        return {
            "proposals": torch.cat([level.flatten() for level in ensemble.merge_maps(features, given).deltas]),
            "boxes": torch.cat([merged.boxes_xyxy, merged.scores], dim=1),
            "masks": ensemble.mask(features, given, detections),
        }

    first, second, found = answers(members[:1]), answers(members[1:]), answers(uneven)
    for name, tensor in found.items():
        share = 3 / 4 if name == stage else 1 / 2
        torch.testing.assert_close(tensor, share * first[name] + (1 - share) * second[name], atol=1e-4, rtol=1e-5)
        assert (first[name] - second[name]).abs().max() > 1e-2


@pytest.mark.parametrize("weight", [0.1, 3, 1000])
def test_equal_weights_change_no_bit(weight: float) -> None:
    members = [member(name, kind, seed=seed) for seed, (name, kind) in enumerate(zip("abc", KINDS, strict=True))]
    plain = Ensemble(members, SETTINGS).predict(random_image())
    equal = Ensemble([weighted(each, weight, weight, weight) for each in members], SETTINGS).predict(random_image())
    for name in ("boxes_xyxy", "scores", "labels", "mask_probs"):
        assert torch.equal(getattr(equal, name), getattr(plain, name)), name
    assert len(plain.scores) > 3


def test_a_member_of_weight_zero_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    members, image = [member("one", "cascade"), weighted(member("idle", "htc", seed=1), 0, 0, 0)], random_image()
    runs = count_runs(members, monkeypatch)
    ensemble = Ensemble(members, SETTINGS, feature_budget_bytes=BUDGET)
    found, alone = ensemble.predict(image), Ensemble(members[:1], SETTINGS).predict(image)
    assert runs["idle"] == 0
    assert found.members == ("one",)
    for name in ("boxes_xyxy", "scores", "labels", "mask_probs"):
        assert torch.equal(getattr(found, name), getattr(alone, name)), name


@pytest.mark.parametrize(
    ("weights", "calls", "views"),
    [((1, 1, 0), {"rpn", "boxes"}, 4), ((1, 0, 0), {"rpn"}, 1), ((0, 1, 0), {"boxes"}, 4), ((0, 0, 1), {"masks"}, 4)],
)
def test_what_weighs_nothing_is_not_computed(
    weights: tuple[float, ...], calls: set[str], views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [member("one", "cascade"), weighted(member("part"), *weights)]
    runs = count_runs(members, monkeypatch)
    called: set[str] = set()
    detector = members[1].detector
    parts = {"rpn": detector.rpn_head, "boxes": detector.roi_head.bbox_head, "masks": detector.roi_head.mask_head}
    for name, part in parts.items():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    found = Ensemble(members, SETTINGS, feature_budget_bytes=BUDGET).predict(random_image())
    assert len(found.scores) > 0
    assert called == calls
    assert runs == {"one": 4, "part": views}


@pytest.mark.parametrize(
    ("uses", "stage", "told"),
    [
        (CELL_TYPES, "masks", "all members used for 'shsy5y' have the weight 0 for masks"),
        ((CLS_USE,), "boxes", "all members used for 'cls' have the weight 0 for boxes"),
    ],
)
def test_a_stage_needs_a_member_that_counts(uses: tuple[str, ...], stage: str, told: str) -> None:
    members = [member("one", uses=frozenset(uses)), *([member("two")] if CLS_USE in uses else [])]
    Ensemble(members, SETTINGS)
    with pytest.raises(InputError, match=told):
        Ensemble([replace(members[0], weights=StageWeights(**{stage: 0})), *members[1:]], SETTINGS)


# --- nothing found -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_tta", [True, False])
def test_no_proposals_give_an_empty_prediction(kind: str, use_tta: bool, device: str) -> None:
    settings = replace(NOTHING, use_tta=use_tta, use_tta_masks=use_tta)
    found = Ensemble([member("one", kind), member("two", kind, seed=1)], settings, device=device).predict(
        random_image()
    )
    assert_is_empty(found)


@pytest.mark.parametrize("kind", KINDS)
def test_no_boxes_above_the_threshold_give_an_empty_prediction(kind: str) -> None:
    thresholds = dict.fromkeys(CELL_TYPES, replace(LIMITS, rcnn_score_threshold=1.0))
    found = Ensemble([member("one", kind)], replace(SETTINGS, thresholds=thresholds)).predict(random_image())
    assert_is_empty(found)


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_where_the_first_pass_finds_nothing_the_counts_decide(cell_type: str) -> None:
    rules = {
        "astro": CellTypeRule(score=0, astro_above=0),
        "cort": CellTypeRule(score=1, astro_above=0),
        "shsy5y": CellTypeRule(score=1, astro_above=0, cort_below_total=0),
    }
    members = [member("first", uses={CLS_USE}), *(member(each, uses={each}, seed=1) for each in CELL_TYPES)]
    found = Ensemble(members, replace(NOTHING, cell_type_rule=rules[cell_type])).predict(random_image())
    assert_is_empty(found)
    assert found.cell_type == cell_type
    assert found.members == ("first", cell_type)


def assert_is_empty(found: Prediction) -> None:
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.scores.shape == (0,)
    assert found.labels.shape == (0,)
    assert found.labels.dtype == torch.int64
    assert found.mask_probs.shape == (0, 28, 28)
    assert found.image_shape == (48, 80)
    assert found.cell_type in CELL_TYPES


@torch.inference_mode()
def test_stages_take_no_boxes() -> None:
    one = member("one", "htc")
    ensemble = Ensemble([one], SETTINGS)
    features = ensemble.image_features(random_image())
    merged = ensemble.box(features, [one], torch.zeros(0, 4))
    assert merged.boxes_xyxy.shape == (0, 4)
    assert merged.scores.shape == (0, 3)
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert ensemble.mask(features, [one], none).shape == (0, 28, 28)
    assert features.used == []  # no encoder was run for nothing


# --- settings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("use_tta", "use_tta_masks", "images"),
    [(True, True, 4), (True, False, 4), (False, True, 4), (False, False, 1)],
)
@pytest.mark.parametrize("step", [1, 2, 3])
def test_each_view_is_computed_once_and_only_if_used(
    use_tta: bool, use_tta_masks: bool, images: int, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [member("one", "htc"), member("two")]
    settings = replace(SETTINGS, use_tta=use_tta, use_tta_masks=use_tta_masks)
    ensemble = Ensemble(members, settings, views_per_batch=step, feature_budget_bytes=BUDGET)
    runs = count_runs(members, monkeypatch)
    assert len(ensemble.predict(random_image()).scores) > 0
    assert runs == {"one": images, "two": images}
    ensemble.predict(random_image(seed=1))
    assert runs == {"one": 2 * images, "two": 2 * images}  # another image, other features


@pytest.mark.parametrize(("use_tta", "use_tta_masks", "images"), [(True, True, 9), (True, False, 6), (False, True, 6)])
def test_without_a_budget_features_are_computed_anew(
    use_tta: bool, use_tta_masks: bool, images: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = member("one")
    settings = replace(SETTINGS, use_tta=use_tta, use_tta_masks=use_tta_masks)
    ensemble = Ensemble([one], settings, feature_budget_bytes=0)
    runs = count_runs([one], monkeypatch)
    found = ensemble.predict(random_image())
    assert runs == {"one": images}
    assert found.members == ("one",)  # named once however often it ran


def test_the_budget_is_never_exceeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of one view of 48 x 80, padded to 64 x 96: 16 channels of 4 bytes at five levels."""
    one = member("one")
    view = 64 * 4 * sum((64 // stride) * (96 // stride) for stride in (2, 4, 8, 16, 32)) // 4
    for views_kept, images in ((0, 9), (1, 7), (2, 6), (4, 4)):
        ensemble = Ensemble([one], SETTINGS, feature_budget_bytes=views_kept * view)
        with monkeypatch.context() as patch:
            runs = count_runs([one], patch)
            ensemble.predict(random_image())
        assert runs == {"one": images}, views_kept


@torch.inference_mode()
def test_without_tta_the_identity_view_alone_counts() -> None:
    one, image = member("one"), random_image()
    boxes = torch.tensor([[5.0, 5, 25, 30], [30, 10, 60, 40]])
    detections = Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([1, 2]))
    results = {}
    for use_tta, use_tta_masks in ((True, False), (False, True)):
        ensemble = Ensemble([one], replace(SETTINGS, use_tta=use_tta, use_tta_masks=use_tta_masks))
        features = ensemble.image_features(image)
        results[use_tta] = ensemble.box(features, [one], boxes).scores, ensemble.mask(features, [one], detections)
        assert [len(each) for each in ensemble.view_batches(use_tta)] == [1] * (4 if use_tta else 1)
    assert (results[True][0] - results[False][0]).abs().max() > 1e-3
    assert (results[True][1] - results[False][1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("step", "expected"), [(1, [1, 1, 1, 1]), (2, [1, 2, 1]), (3, [1, 3]), (4, [1, 3]), (100, [1, 3])]
)
def test_identity_is_a_batch_of_its_own(step: int, expected: list[int]) -> None:
    ensemble = Ensemble([member("one")], SETTINGS, views_per_batch=step)
    batches = ensemble.view_batches(all_views=True)
    assert [len(batch) for batch in batches] == expected
    assert batches[0] == (IDENTITY,)
    assert tuple(view for batch in batches for view in batch) == ALL_VIEWS
    assert ensemble.view_batches(all_views=False) == ((IDENTITY,),)


def test_without_bbox_nms_every_proposal_stays_that_scores_above_the_threshold() -> None:
    lenient = replace(LIMITS, rcnn_score_threshold=0.0)
    settings = replace(SETTINGS, bbox_nms=False, thresholds=dict.fromkeys(CELL_TYPES, lenient))
    every = Ensemble([member("one")], settings).predict(random_image())
    assert len(every.scores) == LIMITS.rpn_max_per_img
    assert (every.scores.diff() <= 0).all()
    middle = float(every.scores[10:12].mean())
    strict = dict.fromkeys(CELL_TYPES, replace(LIMITS, rcnn_score_threshold=middle))
    found = Ensemble([member("one")], replace(settings, thresholds=strict)).predict(random_image())
    assert len(found.scores) == 11
    torch.testing.assert_close(found.boxes_xyxy, every.boxes_xyxy[:11])
    torch.testing.assert_close(found.mask_probs, every.mask_probs[:11])


def test_masks_have_a_say_in_scores_where_the_settings_want_it() -> None:
    plain = Ensemble([member("one")], SETTINGS).predict(random_image())
    found = Ensemble([member("one")], replace(SETTINGS, mask_score_power=3.0)).predict(random_image())
    expected = plain.scores * maskness(plain.mask_probs) ** 3
    order = expected.argsort(descending=True, stable=True)
    assert len(expected) > 3 and order.tolist() != sorted(order.tolist())
    torch.testing.assert_close(found.scores, expected[order])
    torch.testing.assert_close(found.mask_probs, plain.mask_probs[order])
    torch.testing.assert_close(found.boxes_xyxy, plain.boxes_xyxy[order])


def test_masks_are_predicted_in_boxes_as_large_as_the_settings_say() -> None:
    one = member("one")
    plain = Ensemble([one], SETTINGS).predict(random_image())
    wider = {name: replace(LIMITS, mask_box_scale=1.5) for name in CELL_TYPES}
    ensemble = Ensemble([one], replace(SETTINGS, thresholds=wider))
    found = ensemble.predict(random_image())
    assert len(found.scores) > 3
    torch.testing.assert_close(found.boxes_xyxy, scale_boxes(plain.boxes_xyxy, 1.5, plain.image_shape))
    torch.testing.assert_close(found.scores, plain.scores)
    boxes = Detections(found.boxes_xyxy, found.scores, found.labels)
    with torch.inference_mode():
        expected = ensemble.mask(ensemble.image_features(random_image()), [one], boxes)
    torch.testing.assert_close(found.mask_probs, expected)
    assert not torch.allclose(found.mask_probs, plain.mask_probs)


# --- members and cell types --------------------------------------------------------------------------------------


def typed_members(label: int) -> list[Member]:
    """One that decides that all cells are of type `label`, and a pair for each type, "shared" with two of them."""
    return [
        prefer(member("first", "cascade", {CLS_USE}), label),
        member("shared", "maskrcnn", {"shsy5y", "astro"}),
        member("for shsy5y", "htc", {"shsy5y"}, seed=1),
        member("for astro", "maskrcnn", {"astro"}, seed=1),
        member("for cort", "cascade", {"cort"}, seed=1),
    ]


@pytest.mark.parametrize(
    ("label", "names"),
    [
        (0, ("first", "shared", "for shsy5y")),
        (1, ("first", "shared", "for astro")),
        (2, ("first", "for cort")),
    ],
)
def test_only_the_members_of_the_cells_type_run(
    label: int, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = typed_members(label)
    ensemble = Ensemble(members, SETTINGS, feature_budget_bytes=BUDGET)
    runs = count_runs(members, monkeypatch)
    found = ensemble.predict(random_image())
    assert ensemble.needs_first_pass
    assert found.cell_type == CELL_TYPES[label]
    assert found.members == names
    assert runs == dict.fromkeys(names, 4)
    # After the first pass it is as if the others were not there.
    chosen = [replace(each, use_for=ALL_TYPES) for each in members if each.name in names[1:]]
    alone = Ensemble(chosen, SETTINGS).predict(random_image())
    torch.testing.assert_close(found.boxes_xyxy, alone.boxes_xyxy)
    torch.testing.assert_close(found.mask_probs, alone.mask_probs)
    assert found.level_counts == alone.level_counts


def test_a_known_cell_type_needs_no_first_pass_and_begun_features_are_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first pass would say shsy5y; the astro members' features are those of the first prediction."""
    ensemble = Ensemble(typed_members(0), SETTINGS, feature_budget_bytes=BUDGET)
    image = random_image()
    features = ensemble.image_features(image)
    known = ensemble.predict(features, "astro")
    assert (known.cell_type, known.members) == ("astro", ("shared", "for astro"))
    assert_same_prediction(known, ensemble.predict(image, "astro"))
    runs = count_runs(ensemble.members, monkeypatch)
    assert_same_prediction(ensemble.predict(features, "astro"), known)
    assert not runs
    assert ensemble.predict(features).cell_type == "shsy5y"
    assert runs == {"first": 4, "for shsy5y": 4}


def test_a_member_of_both_passes_computes_its_features_once(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [
        prefer(member("both", "cascade", {CLS_USE, *CELL_TYPES}), 2),
        member("for cort", uses={"cort"}),
        member("for astro", uses={"astro"}),
    ]
    runs = count_runs(members, monkeypatch)
    found = Ensemble(members, SETTINGS, feature_budget_bytes=BUDGET).predict(random_image())
    assert found.cell_type == "cort"
    assert found.members == ("both", "for cort")
    assert runs == {"both": 4, "for cort": 4}


def test_the_most_frequent_label_is_the_type_whatever_the_counts_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thirds of the boxes are cort, one third scores better and is astro; the counts say shsy5y."""
    members = [member("first", uses={CLS_USE}), *(member(each, uses={each}) for each in CELL_TYPES)]
    rule = CellTypeRule(score=1, astro_above=0, cort_below_total=0)
    settings = replace(SETTINGS, cell_type_rule=rule)
    ensemble = Ensemble(members, settings)
    features = ensemble.image_features(random_image())
    assert ensemble.propose(features, members[:1]).cell_type == "shsy5y"

    def labelled(merged: Any, thresholds: Thresholds, bbox_nms: bool) -> Detections:
        return Detections(torch.zeros(6, 4), torch.arange(6, 0, -1) / 6, torch.tensor([1, 1, 2, 2, 2, 2]))

    monkeypatch.setattr("kernel.ensemble.ensemble.select_boxes", labelled)
    assert ensemble.decide_cell_type(features) == "cort"
    assert features.used == ["first"]


def test_rpn_thresholds_follow_the_counts_and_box_thresholds_the_type() -> None:
    """The counts say astro and the labels cort: astro's 12 proposals, of which cort's thresholds keep all or none."""
    members = [prefer(member("first", uses={CLS_USE}), 2), *(member(each, uses={each}) for each in CELL_TYPES)]
    for score_threshold, count in ((0.0, 12), (0.99, 0)):
        # Only the first member, so sure of its label, scores above 0.99.
        limits = {
            "shsy5y": Thresholds(rpn_max_per_img=3, rcnn_iou_threshold=1.0, rcnn_score_threshold=0.0),
            "astro": Thresholds(rpn_max_per_img=12, rcnn_iou_threshold=0.0, rcnn_score_threshold=0.99),
            "cort": Thresholds(rpn_max_per_img=7, rcnn_iou_threshold=1.0, rcnn_score_threshold=score_threshold),
        }
        settings = EnsembleSettings(thresholds=limits, cell_type_rule=CellTypeRule(score=0, astro_above=0))
        found = Ensemble(members, settings).predict(random_image())
        assert found.cell_type == "cort"
        assert found.members == ("first", "cort")
        assert len(found.scores) == count


def test_where_all_types_share_all_members_there_is_no_first_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [prefer(member("one", uses={CLS_USE, *CELL_TYPES}), 2), prefer(member("two", seed=1), 2)]
    rule = CellTypeRule(score=0, astro_above=0)  # counts say astro, labels cort
    ensemble = Ensemble(members, replace(SETTINGS, cell_type_rule=rule))
    monkeypatch.setattr(ensemble, "decide_cell_type", lambda features: pytest.fail("there was a first pass"))
    found = ensemble.predict(random_image())
    assert not ensemble.needs_first_pass
    assert found.cell_type == "astro"
    assert set(found.labels.tolist()) == {2}
    assert found.members == ("one", "two")


# --- members that do not fit together ----------------------------------------------------------------------------


def other_anchors(detector: Detector) -> None:
    detector.rpn_head.prior_generator.base_anchors[2] *= 2


def other_strides(detector: Detector) -> None:
    detector.rpn_head.prior_generator.strides[4] = (64, 64)


def other_mask_size(detector: Detector) -> None:
    detector.roi_head.mask_head.roi_feat_size = (7, 7)


@pytest.mark.parametrize(
    ("change", "what"), [(other_anchors, "anchors"), (other_strides, "strides"), (other_mask_size, "mask size")]
)
def test_members_that_cannot_be_averaged_are_both_named(change: Any, what: str) -> None:
    members = [member("alpha", "cascade"), member("beta", "htc"), member("gamma", "maskrcnn")]
    Ensemble(members, SETTINGS)  # as they are, they can
    change(members[2].detector)
    with pytest.raises(InputError, match=f"members alpha and gamma cannot be averaged: their {what} differ.*manifest"):
        Ensemble(members, SETTINGS)


def test_members_of_other_numbers_of_classes_are_both_named() -> None:
    other = Member("beta", "maskrcnn", tiny_detector("maskrcnn", num_classes=8), ALL_TYPES)
    with pytest.raises(InputError, match=r"members alpha and beta .* number of classes differ \(3 and 8\)"):
        Ensemble([member("alpha"), other], SETTINGS)
    assert Ensemble([other], SETTINGS).predict(random_image()).labels.max() <= 2  # alone it may have more


def test_too_few_classes_are_refused() -> None:
    small = Member("alpha", "cascade", tiny_detector("cascade", num_classes=2), ALL_TYPES)
    with pytest.raises(
        InputError, match="member alpha knows 2 classes, the ensemble needs 3: take it out of the manifest"
    ):
        Ensemble([small], SETTINGS)


@pytest.mark.parametrize(
    ("uses", "missing"),
    [
        ([{"shsy5y", "astro"}], "cort"),
        ([{"astro", CLS_USE}, {"cort"}], "shsy5y"),
        ([{CLS_USE}], "shsy5y"),
        ([set()], "shsy5y"),
        ([], "shsy5y"),
        ([{"shsy5y"}, {"astro", "cort"}], CLS_USE),  # they differ by type, so one must decide the type
        ([set(CELL_TYPES), {"cort"}], CLS_USE),
    ],
)
def test_a_use_without_a_member_is_named(uses: list[set[str]], missing: str) -> None:
    members = [member(f"member {place}", uses=each) for place, each in enumerate(uses)]
    with pytest.raises(InputError, match=f"no member is used for '{missing}'"):
        Ensemble(members, SETTINGS)


def test_where_the_members_do_not_differ_by_type_none_need_decide_it() -> None:
    ensemble = Ensemble([member("one"), member("two", seed=1)], SETTINGS)
    assert [each.name for each in ensemble.members_for("astro")] == ["one", "two"]
    assert ensemble.members_for(CLS_USE) == ()
    assert not ensemble.needs_first_pass


def test_two_members_of_one_name_are_refused() -> None:
    """Features are kept by name."""
    with pytest.raises(InputError, match="two members are called 'one'"):
        Ensemble([member("one"), member("one", seed=1)], EnsembleSettings())


@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ("backbone.conv1.weight", "features of two"),
        ("neck.fpn_convs.3.conv.bias", "features of two"),
        ("rpn_head.rpn_reg.bias", "merged RPN maps"),
        ("roi_head.bbox_head.fc_cls.bias", "merged boxes"),
        ("roi_head.mask_head.conv_logits.bias", "merged masks"),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_told_and_not_averaged_away(parameter: str, told: str, value: float) -> None:
    members = [member("one"), member("two", seed=1)]
    weights = dict(members[1].detector.named_parameters())[parameter]
    weights.data.view(-1)[0] = value
    if parameter.startswith("roi_head.mask"):
        weights.data[:] = torch.nan  # an infinite logit is a sure pixel
    with pytest.raises(NotFiniteError, match=told):
        Ensemble(members, SETTINGS).predict(random_image())
