"""Settings replayed from one run of an image equal ensembles with these settings, and ask the network nothing twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from limited_ensembles import limit_ensembles
from tiny_detectors import tiny_detector

import kernel.ensemble.ensemble
import kernel.ensemble.features
import kernel.ensemble.networks
from kernel.data.annotated import AnnotatedImage, list_annotated
from kernel.data.annotations import ImageAnnotations
from kernel.data.synthetic.generate import write_dataset
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.members import Member
from kernel.errors import InputError
from kernel.masks.rle import encode_rle
from kernel.postprocess.clean import postprocess_instances
from kernel.scoring.metric import image_score
from kernel.scoring.scores import validate_ensemble
from kernel.segment import instances_of_prediction, segment_image
from kernel.settings import CELL_TYPES, CLS_USE, CellTypeRule, EnsembleSettings, StageWeights, Thresholds
from kernel.tuning.plan import TuningPlan
from kernel.tuning.stage_scores import (
    DEFAULT_STAGE_GRID,
    STAGE_THRESHOLDS,
    ReplayedEnsemble,
    RowAnswers,
    StageCache,
    StagePoint,
    replay,
    score_stages,
    stage_points,
)
from kernel.tuning.stage_tuning import tune_stages

pytestmark = pytest.mark.usefixtures("wheels_site")

LIMITS = Thresholds(
    rpn_max_per_img=30, rpn_score_threshold=0.5, rcnn_iou_threshold=0.5, rcnn_score_threshold=0.1,
    mask_nms_threshold=0.3, confidence=0.1, min_size=4,
)  # fmt: skip
#: By which every image counts as shsy5y.
RULE = CellTypeRule(score=1, astro_above=0, cort_below_total=0)
SETTINGS = EnsembleSettings(thresholds=dict.fromkeys(CELL_TYPES, LIMITS), cell_type_rule=RULE)
GRID: dict[str, tuple[Any, ...]] = {
    "rpn_nms_pre": (20, 1000),
    "rpn_iou_threshold": (0.3,),
    "rcnn_iou_threshold": (0.4, 0.8),
    "rcnn_score_threshold": (0.35,),
    "use_tta_masks": (True, False),
}


def random_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 80, 3)).astype(np.uint8)


def member(name: str, kind: str, seed: int = 0, uses: Sequence[str] = CELL_TYPES) -> Member:
    return Member(name, kind, tiny_detector(kind, seed), frozenset(uses))


@pytest.fixture(scope="module")
def members(wheels_site: Path) -> list[Member]:
    return [
        member("one", "cascade"),
        replace(member("two", "maskrcnn", 1), weights=StageWeights(boxes=2, masks=0.5)),
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts RoIs of box and mask heads (times views), RPN runs and views through encoders, from now on."""
    counts: Counter[str] = Counter()

    def counted(function: Any, what: str, size: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            counts[what] += size(arguments)
            return function(*arguments, **options)

        return call

    def rois(arguments: Any) -> int:
        return len(arguments[2]) * len(arguments[3])

    for module, name, what, size in (
        (kernel.ensemble.ensemble, "predict_view_boxes", "boxes", rois),
        (kernel.ensemble.ensemble, "predict_view_masks", "masks", rois),
        (kernel.ensemble.features, "compute_rpn_maps", "rpn", lambda arguments: 1),
        (kernel.ensemble.networks, "compute_features", "views", lambda arguments: len(arguments[1])),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name), what, size))
    return counts


def plain(ensemble: Ensemble, point: StagePoint, cell_type: str, image: np.ndarray) -> Prediction:
    """The slow way: an ensemble made for these settings alone."""
    thresholds = replace(ensemble.settings.thresholds[cell_type], **point.thresholds)
    settings = replace(
        ensemble.settings,
        thresholds={**ensemble.settings.thresholds, cell_type: thresholds},
        use_tta_masks=point.use_tta_masks,
    )
    members = []
    for each in ensemble.members:
        uses = set(each.use_for)
        if point.members is not None:
            uses.discard(cell_type)
            uses |= {cell_type} if each.name in point.members else set()
        if uses:
            members.append(replace(each, use_for=frozenset(uses)))
    return Ensemble(members, settings, views_per_batch=ensemble.views_per_batch).predict(image)


def replayed(ensembles: Sequence[ReplayedEnsemble], image: np.ndarray) -> Iterator[Prediction]:
    """`replay` of an image that nothing is known of."""
    return replay(ensembles, StageCache(ensembles[0], image))


def assert_equal(found: Prediction, expected: Prediction) -> None:
    assert (found.cell_type, found.level_counts) == (expected.cell_type, expected.level_counts)
    for name in ("boxes_xyxy", "scores", "labels", "mask_probs"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("step", [1, 3])
def test_every_point_is_what_an_ensemble_of_its_settings_predicts(members: list[Member], step: int) -> None:
    ensemble, image = Ensemble(members, SETTINGS, views_per_batch=step), random_image()
    points = [*stage_points(GRID, SETTINGS), StagePoint(True, {"mask_box_scale": 1.4})]
    assert len(points) == 11
    found = list(replayed([point.apply(ensemble, "shsy5y") for point in points], image))
    counts = set()
    for prediction, point in zip(found, points, strict=True):
        assert_equal(prediction, plain(ensemble, point, "shsy5y", image))
        counts.add(len(prediction.scores))
    assert len(counts) > 2  # the settings matter


def test_without_bbox_nms_the_score_threshold_is_replayed_too(members: list[Member]) -> None:
    ensemble, image = Ensemble(members, replace(SETTINGS, bbox_nms=False)), random_image()
    scores = ensemble.predict(image).scores
    middle = float(scores[9:11].mean())
    points = [StagePoint(True, {"rcnn_score_threshold": value}) for value in (0.0, middle, 1.0)]
    found = list(replayed([point.apply(ensemble, "shsy5y") for point in points], image))
    for prediction, point in zip(found, points, strict=True):
        assert_equal(prediction, plain(ensemble, point, "shsy5y", image))
    assert [len(prediction.scores) for prediction in found] == [LIMITS.rpn_max_per_img, 10, 0]


def test_settings_of_another_type_change_nothing(members: list[Member]) -> None:
    ensemble, image = Ensemble(members, SETTINGS), random_image()
    points = [StagePoint(True), StagePoint(True, {"rpn_nms_pre": 1, "rcnn_score_threshold": 1.0})]
    for cell_type, same in (("cort", True), ("shsy5y", False)):
        first, second = replayed([point.apply(ensemble, cell_type) for point in points], image)
        assert (len(first.scores) == len(second.scores)) == same


def test_nothing_is_asked_twice(members: list[Member], asked: Counter[str]) -> None:
    """Every RoI of the union once for each member and view; the oracle of the union is the plain ensembles' boxes."""
    ensemble, image = Ensemble(members, SETTINGS, views_per_batch=1), random_image()
    points = stage_points(GRID, SETTINGS)
    proposals: set[bytes] = set()
    boxes: dict[bool, set[bytes]] = {True: set(), False: set()}
    for point in points:
        alone = point.apply(ensemble, "shsy5y")
        alike, features = Ensemble(ensemble.members, alone.settings), ensemble.image_features(image)
        proposed = alike.propose(features, members)
        found = alike.detect(features, members, proposed, proposed.cell_type)
        proposals |= {row.numpy().tobytes() for row in proposed.boxes_xyxy}
        # The same box merged in other company may differ in its last bits.
        rows = torch.cat([found.boxes_xyxy, found.labels[:, None]], dim=1).mul(100).round().long()
        boxes[point.use_tta_masks] |= {row.numpy().tobytes() for row in rows}
    asked.clear()
    predictions = list(replayed([point.apply(ensemble, "shsy5y") for point in points], image))
    assert asked["views"] == 2 * 4
    assert asked["rpn"] == 2
    assert asked["boxes"] == 2 * 4 * len(proposals)
    assert asked["masks"] == 2 * (len(boxes[True] | boxes[False]) + 3 * len(boxes[True]))
    assert sum(len(found.scores) for found in predictions) > 2 * len(boxes[True])  # one by one it were more


@pytest.mark.parametrize("views", [True, False])
def test_a_single_point_costs_what_its_prediction_costs(
    members: list[Member], views: bool, asked: Counter[str]
) -> None:
    ensemble = Ensemble(members, replace(SETTINGS, use_tta_masks=views))
    ensemble.predict(random_image())
    expected = Counter(asked)
    asked.clear()
    list(replayed([StagePoint(views).apply(ensemble, "shsy5y")], random_image()))
    assert asked == expected


def test_members_of_a_type_are_settings_as_well(asked: Counter[str]) -> None:
    """With a first pass, whose own answers follow the point's thresholds too."""
    every = [
        member("first", "maskrcnn", 2, [CLS_USE]),
        member("one", "cascade", 0, [CLS_USE, *CELL_TYPES]),
        member("two", "htc", 1),
        member("three", "maskrcnn", 3, ["astro"]),
    ]
    settings = replace(SETTINGS, use_tta=False, use_tta_masks=False)
    ensemble, image = Ensemble(every, settings), random_image()
    cell_type = ensemble.predict(image).cell_type
    sets = [("one",), ("two", "three"), ("first", "one", "two")]
    points = stage_points({"rpn_iou_threshold": (0.4, 0.7), "rcnn_iou_threshold": (0.5,)}, settings, sets)
    assert len(points) == 9
    asked.clear()
    found = list(replayed([point.apply(ensemble, cell_type) for point in points], image))
    assert (asked["views"], asked["rpn"]) == (4, 4)
    for prediction, point in zip(found, points, strict=True):
        assert_equal(prediction, plain(ensemble, point, cell_type, image))
    assert len({len(prediction.scores) for prediction in found}) > 2


def test_members_that_are_not_there_are_told(members: list[Member]) -> None:
    ensemble = Ensemble(members, SETTINGS)
    with pytest.raises(InputError, match=r"no member is called three; the ensemble's are one, two"):
        StagePoint(True, members=("one", "three")).apply(ensemble, "cort")
    with pytest.raises(InputError, match="no member is used for 'cls'"):
        StagePoint(True, members=("one",)).apply(ensemble, "cort")


def test_an_image_without_proposals_or_boxes(members: list[Member]) -> None:
    ensemble = Ensemble(members, SETTINGS)
    points = [
        StagePoint(True, {"rpn_score_threshold": 1.0}),
        StagePoint(False, {"rcnn_score_threshold": 1.0}),
        StagePoint(True),
    ]
    for some in (points[:1], points[:2], points):
        found = list(replayed([point.apply(ensemble, "shsy5y") for point in some], random_image()))
        assert [len(prediction.scores) > 3 for prediction in found] == [False, False, True][: len(some)]
        assert all(prediction.mask_probs.shape[1:] == (28, 28) for prediction in found)
    assert list(replay([], StageCache(ensemble, random_image()))) == []


def test_a_replayed_ensemble_needs_a_cache(members: list[Member]) -> None:
    alone = StagePoint(True).apply(Ensemble(members, SETTINGS), "cort")
    with pytest.raises(TypeError, match="works on a StageCache"):
        alone.predict(random_image())
    assert len(alone.predict(StageCache(alone, random_image())).scores) > 3


def test_answers_to_rows_are_remembered() -> None:
    asked: list[list[float]] = []

    def double(rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        asked.append(rows[:, 0].tolist())
        return rows * 2, rows.sum(dim=1)

    known = RowAnswers()
    for wanted in ([], [1.0, 2.0, 1.0], [2.0], [3.0, 1.0], []):
        rows = torch.tensor(wanted).reshape(-1, 1)
        doubled, sums = known.get(rows, double)
        assert doubled[:, 0].tolist() == [2 * value for value in wanted]
        assert sums.tolist() == wanted
    assert [sorted(rows) for rows in asked] == [[], [1.0, 2.0], [3.0]]


# --- scores and choice -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[AnnotatedImage]:
    folder = tmp_path_factory.mktemp("cells")
    write_dataset(folder, {"shsy5y": 2, "cort": 1}, seed=1, shape=(64, 64))
    return list_annotated(folder)


def test_scores_are_those_of_the_submissions(members: list[Member], images: list[AnnotatedImage]) -> None:
    ensemble = Ensemble(members, SETTINGS)
    points = stage_points({"rpn_iou_threshold": (0.3,), "rcnn_iou_threshold": (0.2, 0.8)}, SETTINGS)
    ((kind, scored),) = score_stages([(ensemble, images)], points).items()
    assert kind == "shsy5y" and scored.scores.shape == (3, 3)  # by RULE
    assert scored.image_ids == tuple(entry.image_id for entry in images)
    for entry, row in zip(images, scored.scores, strict=True):
        for point, score in zip(points, row, strict=True):
            found = instances_of_prediction(plain(ensemble, point, kind, entry.read()))
            masks = postprocess_instances(found, ensemble.settings.thresholds)
            assert score == pytest.approx(image_score(masks, entry.masks()))


def found_image(ensemble: Ensemble, path: Path, seed: int, cell_type: str) -> AnnotatedImage:
    """Noise, said to be of a cell type; "annotated" is what the ensemble finds in it."""
    assert cv2.imwrite(str(path), random_image(seed))
    empty = AnnotatedImage(path, ImageAnnotations(path.stem, cell_type, (48, 80), ()))
    masks = segment_image(ensemble, empty.read()).masks
    rles = tuple(encode_rle(crop, at, (48, 80)) for crop, at in zip(masks.crops, masks.offsets_yx, strict=True))
    return replace(empty, annotations=replace(empty.annotations, rles=rles))


def test_an_image_counts_for_the_type_whose_thresholds_it_meets(
    members: list[Member], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Counted as shsy5y, an image of cort takes shsy5y's thresholds: what `tune` promises is what `validate` finds."""
    ensemble, now, better = Ensemble(members, SETTINGS), StagePoint(True), StagePoint(True, {"mask_box_scale": 1.4})
    best = better.thresholds_of(LIMITS)
    of_best = Ensemble(members, replace(SETTINGS, thresholds=dict.fromkeys(CELL_TYPES, best)))
    kinds = ["shsy5y", "cort", "shsy5y"]
    images = [found_image(of_best, tmp_path / f"{seed}.png", seed, kind) for seed, kind in enumerate(kinds)]
    scored = score_stages([(ensemble, images)], [now, better])
    assert "1 image(s) count for the type that the members find: 1, cort found as shsy5y" in caplog.text
    tuning = tune_stages([now, better], scored, SETTINGS.thresholds, TuningPlan(significance=0.2))
    assert tuning.choice.points == {"shsy5y": 1}
    thresholds = {**SETTINGS.thresholds, "shsy5y": tuning.chosen_point("shsy5y").thresholds_of(LIMITS)}
    for found, limits in (
        (tuning.types["shsy5y"].before, SETTINGS.thresholds),
        (tuning.types["shsy5y"].after, thresholds),
    ):
        results = validate_ensemble(Ensemble(members, replace(SETTINGS, thresholds=limits)), images)
        assert found.tolist() == pytest.approx([each.score for each in results])
    assert tuning.assessment.before < tuning.assessment.after == 1


def test_with_a_first_pass_its_type_counts(members: list[Member], images: list[AnnotatedImage]) -> None:
    uses = [replace(each, use_for=frozenset(use)) for each, use in zip(members, (["astro"], CELL_TYPES), strict=True)]
    ensemble = Ensemble([member("first", "maskrcnn", 2, [CLS_USE]), *uses], SETTINGS)
    expected: dict[str, list[str]] = {}
    for entry in images:
        expected.setdefault(ensemble.predict(entry.read()).cell_type, []).append(entry.image_id)
    scored = score_stages([(ensemble, images)], [StagePoint(True)])
    assert {kind: list(each.image_ids) for kind, each in scored.items()} == expected
    assert set(expected) != {"shsy5y"}  # as the counts have it


def test_an_image_that_overflows_or_lacks_memory_is_scored_all_the_same(
    members: list[Member],
    images: list[AnnotatedImage],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    points, image = stage_points({"rcnn_iou_threshold": (0.2, 0.8)}, SETTINGS), images[:1]
    expected = score_stages([(Ensemble(members, SETTINGS), image)], points)["shsy5y"]
    limit_ensembles(monkeypatch)
    ensemble = Ensemble(members, SETTINGS, dtype=torch.bfloat16, views_per_batch=3)
    found = score_stages([(ensemble, image)], points)["shsy5y"]
    assert np.array_equal(found.scores, expected.scores)
    assert "trying again in float32" in caplog.text and "trying again view by view" in caplog.text


def test_no_images_have_no_scores(members: list[Member]) -> None:
    assert score_stages([(Ensemble(members, SETTINGS), [])], [StagePoint(True)]) == {}


def test_points_begin_with_the_settings_as_they_are() -> None:
    points = stage_points(DEFAULT_STAGE_GRID, SETTINGS)
    assert points[0] == StagePoint(True)
    assert points[0].thresholds_of(LIMITS) == LIMITS
    assert len(points) == 1 + 2 * 3 * 3 * 3
    assert points[1].thresholds_of(LIMITS).rpn_iou_threshold == 0.6
    assert stage_points({"use_tta_masks": (True, False)}, SETTINGS) == [StagePoint(True), StagePoint(False)]
    both = stage_points({"rpn_nms_pre": (7,), "use_tta_masks": (False,)}, SETTINGS)
    assert both == [StagePoint(True), StagePoint(False), StagePoint(False, {"rpn_nms_pre": 7})]
    assert set(DEFAULT_STAGE_GRID) <= set(STAGE_THRESHOLDS)
