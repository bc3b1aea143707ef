"""Tuning on instances whose best thresholds are known, on noise, by both searches; grids in TOML."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kernel.tuning.grid_scores
from kernel.errors import InputError
from kernel.masks.instances import CellMasks, Instances
from kernel.postprocess.clean import postprocess_instances
from kernel.scoring.metric import image_score
from kernel.settings import Thresholds
from kernel.tuning.choosing import choose_point, estimate_mean, make_candidates
from kernel.tuning.descriptions import describe_tuning
from kernel.tuning.grid_scores import score_grid
from kernel.tuning.plan import SearchName, TuningPlan
from kernel.tuning.threshold_grid import DEFAULT_GRID, ThresholdGrid, read_grids
from kernel.tuning.threshold_search import OptunaSearch, TuningImage
from kernel.tuning.threshold_tuning import assess_together, tune_cell_type

SHAPE = (60, 90)
GRID = ThresholdGrid(
    mask_thresholds=(0.3, 0.4, 0.5, 0.6, 0.7),
    nms_thresholds=(0.05, 0.1, 0.3),
    min_sizes=(0, 20, 40, 60),
    confidences=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
)
OLD = Thresholds(mask_threshold=0.4, mask_nms_threshold=0.1, min_size=20, confidence=0.2)


def known_image(seed: int) -> TuningImage:
    """Cells as discs whose values fall outwards; the truth is where they are above 0.6, and wrong ones score below 0.4.

    So the best thresholds are a mask threshold of 0.6 and a confidence of 0.4; sizes and NMS do not matter.
    """
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:15, :15] - 7
    crops, offsets, scores, truths = [], [], [], []
    for place in range(12):
        radius = rng.uniform(5.5, 6.5)
        soft = np.clip(1 - 0.4 * np.hypot(rows, columns) / radius, 0, 1)  # 0.6 at the radius
        crop = (soft * 255).astype(np.uint8)
        crop[np.hypot(rows, columns) > 7.4] = 0
        wrong = place % 3 == 0
        crops.append(crop)
        offsets.append((place // 6 * 20 + rng.integers(0, 4), place % 6 * 15))
        scores.append(rng.uniform(0.25, 0.395) if wrong else rng.uniform(0.405, 0.9))
        truths.append(None if wrong else crop > 0.6 * 255)
    kept = [index for index, truth in enumerate(truths) if truth is not None]
    count = len(crops)
    instances = Instances(
        tuple(crops), np.array(offsets), np.zeros((count, 4)), np.array(scores), np.zeros(count), SHAPE
    )
    truth = CellMasks(
        tuple(truths[index] for index in kept), np.array(offsets)[kept], np.zeros((len(kept), 4)),
        np.ones(len(kept)), np.zeros(len(kept)), SHAPE,
    )  # fmt: skip
    return TuningImage(f"image{seed}", instances, truth)


@pytest.fixture(scope="module")
def images() -> list[TuningImage]:
    return [known_image(seed) for seed in range(10)]


def submission_scores(images: list[TuningImage], thresholds: Thresholds) -> list[float]:
    return [image_score(postprocess_instances(image.instances, thresholds), image.truth) for image in images]


def test_known_thresholds_are_found_and_scores_are_the_submissions(images: list[TuningImage]) -> None:
    tuning = tune_cell_type("shsy5y", images, OLD, TuningPlan(grid=GRID))
    # What makes no difference stays as it was.
    assert tuning.new == replace(OLD, mask_threshold=0.6, confidence=0.4)
    assert tuning.after.tolist() == submission_scores(images, tuning.new) == [1.0] * 10
    assert tuning.before.tolist() == submission_scores(images, OLD)
    point = tuning.found.choice.point
    assert point is not None and tuning.found.candidates.scores[:, point].tolist() == tuning.after.tolist()
    assert tuning.found.values[point].tolist() == [0.6, 0.1, 20, 0.4]
    assert tuning.validation.folds.shape == (10, 10) and not tuning.folds_given
    assert tuning.assessment.expected.mean == 1 and tuning.assessment.gain.low > 0.3


def test_cross_validation_chooses_without_the_images_held_out(images: list[TuningImage]) -> None:
    folds = {f"image{seed}": seed % 3 for seed in range(10)}
    tuning = tune_cell_type("shsy5y", images, OLD, TuningPlan(grid=GRID, folds=folds, seed=3))
    assert tuning.folds_given and tuning.validation.folds.tolist() == [[seed % 3 for seed in range(10)]]
    for fold, found in enumerate(tuning.validation.chosen[0]):
        seen = [image for seed, image in enumerate(images) if seed % 3 != fold]
        scores = [score_grid(image.instances, image.truth, GRID, corrupt=False).ravel() for image in seen]
        alone = make_candidates(
            np.array(scores), np.array(submission_scores(seen, OLD)), GRID.positions(), GRID.position_of(OLD)
        )
        choice = choose_point(alone, seed=3)
        assert choice.point is not None and found.thresholds == GRID.thresholds_at(choice.point, OLD)
        held_out = [image for seed, image in enumerate(images) if seed % 3 == fold]
        assert tuning.validation.scores[fold::3].tolist() == submission_scores(held_out, found.thresholds)


def test_the_best_thresholds_stay(images: list[TuningImage]) -> None:
    best = replace(OLD, mask_threshold=0.6, confidence=0.4)
    tuning = tune_cell_type("shsy5y", images, best, TuningPlan(grid=GRID))
    assert not tuning.has_gain and tuning.new == best and tuning.found.choice.p_value == 1
    assert (tuning.assessment.gain.mean, tuning.assessment.gain.low, tuning.assessment.gain.high) == (0, 0, 0)


def test_optuna_finds_what_the_grid_finds_and_twice_the_same(images: list[TuningImage]) -> None:
    pytest.importorskip("optuna", reason="optuna is not installed, as requirements.txt has it")
    plan = TuningPlan(grid=GRID, search="optuna", trials=30, folds={f"image{seed}": seed % 2 for seed in range(10)})
    tuning = tune_cell_type("shsy5y", images, OLD, plan)
    assert tuning.has_gain and tuning.assessment.after > 0.6 > 3 * tuning.assessment.before
    assert "optuna looks on where these images scored well" in describe_tuning([tuning], plan)
    assert abs(tuning.new.mask_threshold - 0.6) < 0.1 and 0.25 < tuning.new.confidence < 0.55
    assert tuning.after.tolist() == submission_scores(images, tuning.new)
    assert tuning.found.values[0].tolist() == [0.4, 0.1, 20, 0.2]  # where it stands is tried first
    lows, highs = np.array([(axis[0], axis[-1]) for axis in GRID.axes]).T
    assert len(tuning.found.values) <= 30
    assert (tuning.found.values >= lows).all() and (tuning.found.values <= highs).all()
    assert tuning.new.confidence == round(tuning.new.confidence, 4) and type(tuning.new.min_size) is int
    again = OptunaSearch(images, OLD, GRID, plan).choose(np.arange(10))
    np.testing.assert_array_equal(again.values, tuning.found.values)
    assert again.thresholds == tuning.new
    # Without a fold, the search sees the other images alone.
    for fold, found in enumerate(tuning.validation.chosen[0]):
        seen = [image for index, image in enumerate(images) if index % 2 != fold]
        alone = OptunaSearch(seen, OLD, GRID, plan).choose(np.arange(5))
        np.testing.assert_array_equal(alone.values, found.values)
        assert alone.thresholds == found.thresholds
        assert found.candidates.scores.shape[0] == 5
        held_out = images[fold::2]
        assert tuning.validation.scores[fold::2].tolist() == submission_scores(held_out, found.thresholds)


@pytest.mark.parametrize("search", ["grid", "optuna"])
def test_no_image_is_scored_twice_with_the_same_thresholds(
    images: list[TuningImage], search: SearchName, monkeypatch: pytest.MonkeyPatch
) -> None:
    if search == "optuna":
        pytest.importorskip("optuna", reason="optuna is not installed, as requirements.txt has it")
    scored: Counter[tuple[int, Thresholds]] = Counter()

    def postprocess(instances: Instances, thresholds: Thresholds) -> CellMasks:
        scored[id(instances), thresholds] += 1
        return postprocess_instances(instances, thresholds)

    monkeypatch.setattr(kernel.tuning.grid_scores, "postprocess_instances", postprocess)
    tuning = tune_cell_type("shsy5y", images, OLD, TuningPlan(grid=GRID, search=search, trials=8))
    assert tuning.has_gain and tuning.before.tolist() == submission_scores(images, OLD)
    assert tuning.after.tolist() == submission_scores(images, tuning.new)
    assert set(scored.values()) == {1}
    assert len(scored) == len(images) if search == "grid" else len(scored) > len(images)


@pytest.mark.parametrize("search", ["grid", "optuna"])
def test_images_of_four_wells_are_too_few(images: list[TuningImage], search: str) -> None:
    if search == "optuna":
        pytest.importorskip("optuna", reason="optuna is not installed, as requirements.txt has it")
    plan = TuningPlan(grid=GRID, search=search, trials=8, groups={f"image{seed}": f"w{seed % 4}" for seed in range(10)})
    tuning = tune_cell_type("shsy5y", images, OLD, plan)
    assert not tuning.has_gain and tuning.found.choice.units == 4 and tuning.found.choice.p_value == 1 / 16
    assert "no gain: so few images cannot tell one from noise (those of a well" in describe_tuning([tuning], plan)
    assert tune_cell_type("shsy5y", images, OLD, replace(plan, groups={})).has_gain
    by_well = estimate_mean(tuning.before, 0, np.arange(10) % 4)
    assert by_well == tuning.assessment.expected == assess_together([tuning], plan).expected
    assert by_well != estimate_mean(tuning.before, 0)


@pytest.mark.parametrize("search", ["grid", "optuna"])
def test_no_image_and_one_image(images: list[TuningImage], search) -> None:
    if search == "optuna":
        pytest.importorskip("optuna", reason="optuna is not installed, as requirements.txt has it")
    plan = TuningPlan(grid=GRID, search=search, trials=3)
    nothing = tune_cell_type("cort", [], OLD, plan)
    assert nothing.new == OLD and nothing.assessment.images == 0 and np.isnan(nothing.assessment.gain.mean)
    one = tune_cell_type("cort", images[:1], OLD, plan)
    assert one.new == OLD and one.validation.scores.tolist() == one.before.tolist() == one.after.tolist()
    assert one.assessment.gain.mean == 0 and np.isnan(one.assessment.gain.low)
    assert np.isnan(assess_together([], plan).before)
    both = assess_together([one, nothing], plan)
    assert (both.images, both.before) == (1, one.before[0])


def test_an_image_in_no_fold_is_told(images: list[TuningImage]) -> None:
    with pytest.raises(InputError, match="the folds lack 9 of the images, 'image1' first"):
        tune_cell_type("cort", images, OLD, TuningPlan(grid=GRID, folds={"image0": 1}))
    # One fold leaves nothing to choose by: folds are drawn.
    tuning = tune_cell_type("cort", images[:2], OLD, TuningPlan(grid=GRID, folds={"image0": 1, "image1": 1}))
    assert not tuning.folds_given and tuning.validation.folds.tolist() == [[0, 1]]


def test_grids_are_read_by_type(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(
        "confidence = [0.2, 0.3]\nmin_size = [0, 50]\n[cort]\nconfidence = [0.5, 0.6, 1]\n", encoding="utf-8"
    )
    common, own = read_grids(path)
    assert common == replace(DEFAULT_GRID, confidences=(0.2, 0.3), min_sizes=(0, 50))
    assert own == {"cort": replace(common, confidences=(0.5, 0.6, 1))}
    plan = TuningPlan(grid=common, grid_of_type=own)
    assert plan.grid_for("astro") == common and plan.grid_for("cort") == own["cort"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("confidence = 0.3", "confidence: found 0.3, expected a list, each a number from 0 to 1"),
        ("confidence = []", "confidence: found .*, expected a list"),
        ("confidence = [0.3, 1.5]", "expected a list, each a number from 0 to 1"),
        ("confidence = [nan]", "expected a list, each a number from 0 to 1"),
        ("confidence = [0.3, 0.2]", "must rise from value to value"),
        ("min_size = [0.5]", "each an integer from 0"),
        (
            "rpn_nms_pre = [1]",
            "unknown key 'rpn_nms_pre'; known are mask_threshold, .*, and tables of these for",
        ),
        ("[cort]\nsize = [1]", r"\[cort\]: unknown key 'size'; known are mask_threshold"),
        ("[livecell]\nconfidence = [1]", r"\[livecell\] is no cell type; the types are shsy5y, astro, cort"),
        ("confidence", "is no grid, which is a TOML file"),
    ],
)
def test_a_wrong_grid_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_grids(path)
    with pytest.raises(InputError, match="cannot read the grid"):
        read_grids(tmp_path / "none.toml")
