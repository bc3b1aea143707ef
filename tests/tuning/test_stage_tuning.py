"""Settings of the stages chosen from made-up scores: views for all types, thresholds by type, only beyond noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernel.errors import InputError
from kernel.settings import Thresholds
from kernel.tuning.choosing import choose_point, estimate_mean, make_candidates, smooth
from kernel.tuning.plan import TuningPlan
from kernel.tuning.stage_scores import StagePoint, StageScores
from kernel.tuning.stage_tuning import StageTuning, point_positions, tune_stages

BASE = {"astro": Thresholds(rpn_nms_pre=5), "cort": Thresholds(rpn_nms_pre=2)}
POINTS = [
    StagePoint(True),
    StagePoint(False),
    *(StagePoint(views, {"rpn_nms_pre": value}) for value in (1, 3, 9) for views in (True, False)),
]
RNG = np.random.default_rng(1)
NOISE = {name: RNG.normal(0, 0.02, (8, len(POINTS))) for name in BASE}


def scores_of(views: float, **gains: float) -> dict[str, np.ndarray]:
    """Eight images of each type: `views` is gained without the flips, a type's gain with rpn_nms_pre = 3."""
    without = np.array([not point.use_tta_masks for point in POINTS])
    better = np.array([point.thresholds.get("rpn_nms_pre") == 3 for point in POINTS])
    return {name: 0.4 + views * without + gain * better + NOISE[name] for name, gain in gains.items()}


def tune(scores: dict[str, np.ndarray], **plan: Any) -> StageTuning:
    scored = {name: StageScores(tuple(f"{name}{index}" for index in range(8)), rows) for name, rows in scores.items()}
    return tune_stages(POINTS, scored, BASE, TuningPlan(**plan))


def test_positions_are_steps_and_members_no_neighbours() -> None:
    points = [*POINTS[:4], StagePoint(True, {"rpn_nms_pre": 9}, ("one",)), StagePoint(True, {}, ("two",))]
    assert point_positions(points, BASE["astro"]).tolist() == [
        [1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [2, 2, 0], [1, 0, 2],
    ]  # fmt: skip
    weights = smooth(np.eye(6), point_positions(points, BASE["astro"]))
    assert (weights[4:, :4] == 0).all() and weights[4, 5] == weights[5, 4] == 0
    assert point_positions(POINTS[:1], BASE["astro"]).shape == (1, 0)


def test_each_type_takes_what_is_better_for_it_and_noise_changes_nothing() -> None:
    found = tune(scores_of(0.0, astro=0.3, cort=0.0))
    assert found.choice.points == {"astro": 4, "cort": 0} and found.choice.base == 0
    astro = found.types["astro"]
    np.testing.assert_array_equal(astro.after, scores_of(0.0, astro=0.3)["astro"][:, 4])
    # Without some of the images other views may be taken by luck, but the gain of 0.3 is never missed.
    np.testing.assert_allclose(astro.unseen, 0.7, atol=0.06)
    assert astro.assessment.gain.low > 0.25 and found.assessment.images == 16
    np.testing.assert_array_equal(found.types["cort"].after, found.types["cort"].before)
    assert found.folds.shape == (10, 16) and not found.folds_given


def test_a_types_choice_is_that_of_its_scores_alone() -> None:
    scores = scores_of(0.0, astro=0.05, cort=0.04)
    found = tune(scores)
    kept = [place for place, point in enumerate(POINTS) if point.use_tta_masks]
    for name, rows in scores.items():
        positions = point_positions(POINTS, BASE[name])
        candidates = make_candidates(rows[:, kept], rows[:, 0], positions[kept], positions[0])
        choice = choose_point(candidates)
        assert found.choice.of_type[name] == choice
        assert found.choice.points[name] == (0 if choice.point is None else kept[choice.point])


def test_the_views_of_the_masks_are_chosen_for_all_types_together() -> None:
    found = tune(scores_of(0.2, astro=0.3, cort=0.0))
    assert found.choice.base == 1 and found.choice.views.point == 1
    assert found.choice.points == {"astro": 5, "cort": 1}
    assert found.types["cort"].assessment.gain.mean == pytest.approx(0.2, abs=0.02)
    # Better for one and as much worse for the other: as they are.
    scores = scores_of(0.2, astro=0.0) | scores_of(-0.2, cort=0.0)
    assert tune(scores).choice.points == {"astro": 0, "cort": 0}


def test_given_folds_are_held_out() -> None:
    scores = scores_of(0.0, astro=0.3)
    scores["astro"][:4, 4] = scores["astro"][:4, 0]  # the first four gain nothing
    folds = {f"astro{index}": index // 4 for index in range(8)}
    found = tune(scores, folds=folds, significance=0.07)
    assert found.folds_given and found.folds.tolist() == [[0] * 4 + [1] * 4]
    # Of the last four the gain is seen, of the first four none.
    np.testing.assert_array_equal(found.types["astro"].unseen, scores["astro"][:, 0])
    with pytest.raises(InputError, match="the folds lack 1 of the images, 'astro7' first"):
        tune(scores, folds={name: fold for name, fold in folds.items() if name != "astro7"})


def test_images_of_a_well_count_as_one() -> None:
    scores = scores_of(0.2, astro=0.3, cort=0.3)
    four = {f"{name}{index}": f"{name} {index // 2}" for name in scores for index in range(8)}
    found = tune(scores, groups=four)
    assert {name: (found.choice.points[name], each.units) for name, each in found.choice.of_type.items()} == {
        "astro": (1, 4), "cort": (1, 4),  # of eight wells the views can be chosen
    }  # fmt: skip
    assert found.choice.views.units == 8 and tune(scores).choice.points == {"astro": 5, "cort": 5}
    wells = np.arange(8) // 2
    for type_found in found.types.values():
        assert type_found.assessment.expected == estimate_mean(type_found.unseen, 0, wells)
    unseen = np.concatenate([each.unseen for each in found.types.values()])
    assert found.assessment.expected == estimate_mean(unseen, 0, np.arange(16) // 2)


def test_no_images() -> None:
    found = tune({})
    assert found.choice.points == {} and found.choice.base == 0 and found.types == {} and found.assessment.images == 0
    empty = tune_stages(POINTS, {"cort": StageScores((), np.zeros((0, len(POINTS))))}, BASE, TuningPlan())
    assert empty.choice.points == {"cort": 0} and len(empty.types["cort"].unseen) == 0
