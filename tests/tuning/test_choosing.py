"""Choosing on surfaces whose optimum is known, on pure noise, and the same in plain loops."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from kernel.tuning.choosing import (
    FLIPS,
    Candidates,
    Choice,
    adjusted_p_values,
    assess,
    choose_point,
    cross_validate,
    draw_folds,
    estimate_mean,
    make_candidates,
    scores_of_choice,
    smooth,
    standard_errors,
)
from kernel.tuning.plan import TuningPlan, folds_of, units_of

SHAPE = (5, 7)
POSITIONS = np.array(list(product(*map(range, SHAPE))), dtype=float)


def surface_candidates(
    surface: np.ndarray, noise: float, images: int = 24, current: tuple[int, int] = (0, 0), seed: int = 0
) -> Candidates:
    """Scores of images that differ in level and, at each point anew, by noise; the current settings are a point."""
    rng = np.random.default_rng(seed)
    scores = surface.ravel() + rng.normal(0, 0.1, (images, 1)) + rng.normal(0, noise, (images, surface.size))
    place = np.ravel_multi_index(current, surface.shape)
    return make_candidates(scores, scores[:, place], POSITIONS, np.array(current, dtype=float))


def hill(centre: tuple[float, float], height: float = 0.2, width: float = 2.0) -> np.ndarray:
    away = ((POSITIONS - centre) ** 2).sum(axis=1)
    return 0.3 + (height * np.exp(-away / (2 * width**2))).reshape(SHAPE)


def test_smoothing_is_a_weighted_mean_over_neighbours_on_the_grid() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((3, *SHAPE))
    found = smooth(scores.reshape(3, -1), POSITIONS).reshape(scores.shape)
    for image, y, x in product(range(3), *map(range, SHAPE)):
        total = weight = 0.0
        for dy, dx in product((-1, 0, 1), repeat=2):
            if 0 <= y + dy < SHAPE[0] and 0 <= x + dx < SHAPE[1]:
                part = (2 - abs(dy)) * (2 - abs(dx))
                total, weight = total + part * scores[image, y + dy, x + dx], weight + part
        assert found[image, y, x] == pytest.approx(total / weight)


def test_smoothing_in_parts_is_the_same() -> None:
    rng = np.random.default_rng(1)
    positions, scores = rng.uniform(0, 20, (1500, 3)), rng.random((2, 1500))
    found = smooth(scores, positions)
    for point in (0, 700, 1499):
        weights = np.maximum(1 - np.abs(positions - positions[point]) / 2, 0).prod(axis=1)
        np.testing.assert_allclose(found[:, point], scores @ weights / weights.sum())


@pytest.mark.parametrize("seed", range(5))
def test_a_known_optimum_is_found(seed: int) -> None:
    candidates = surface_candidates(hill((3, 4), width=1.5), noise=0.002, seed=seed)
    choice = choose_point(candidates)
    assert choice.point is not None and choice.counting > 5 and choice.p_value == 1 / (FLIPS + 1)
    assert tuple(POSITIONS[choice.point]) == (3, 4)
    np.testing.assert_array_equal(scores_of_choice(candidates, choice), candidates.scores[:, choice.point])


def test_a_plateau_is_preferred_to_a_higher_peak_beside_nothing() -> None:
    surface = np.full(SHAPE, 0.3)
    surface[1:4, 3:6] = 0.40
    surface[2, 1] = 0.42
    choice = choose_point(surface_candidates(surface, noise=0.002))
    assert choice.peak is not None and tuple(POSITIONS[choice.peak]) == (2, 4)
    assert choice.point is not None and tuple(POSITIONS[choice.point])[1] >= 3


def test_within_noise_of_the_optimum_the_least_change_is_made() -> None:
    # A ridge along the second axis: noise decides where on it the best lies, and no change is needed along it.
    surface = np.full(SHAPE, 0.3)
    surface[2:5] = 0.4
    surface[1] = 0.33
    chosen, best = [], []
    for seed in range(20):
        candidates = surface_candidates(surface, noise=0.02, current=(0, 3), seed=seed)
        choice = choose_point(candidates)
        assert choice.point is not None and choice.peak is not None
        assert surface.ravel()[choice.point] == 0.4
        assert candidates.distances[choice.point] <= candidates.distances[choice.peak]
        chosen.append(candidates.distances[choice.point])
        best.append(candidates.distances[candidates.scores.mean(axis=0).argmax()])
    assert np.mean(chosen) < np.mean(best) - 0.5


def test_noise_is_reported_as_no_gain_but_for_the_stated_rate() -> None:
    trials = 400
    gains = sum(
        choose_point(surface_candidates(np.full(SHAPE, 0.3), 0.05, images=9, seed=seed), seed=seed).point is not None
        for seed in range(trials)
    )
    # 5 % of 400 is 20; 3 standard deviations of the binomial are 13. It must not be far below either: power is lost.
    assert 5 <= gains <= 33


def test_more_points_are_no_more_gains() -> None:
    trials, gains = 100, 0
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        scores = rng.random((12, 600))
        choice = choose_point(
            make_candidates(scores, rng.random(12), np.arange(600.0)[:, None], np.zeros(1)), seed=seed
        )
        gains += choice.point is not None
    assert gains <= 11  # 5 expected, 3 standard deviations are 6.5


def test_p_values_are_those_of_all_flips_counted_one_by_one() -> None:
    rng = np.random.default_rng(5)
    differences = rng.normal(0.5, 1, (6, 4))
    differences[:, 3] = 0
    lengths = np.sqrt((differences**2).sum(axis=0))

    def largest(signs: tuple[int, ...]) -> float:
        means = [sum(s * d for s, d in zip(signs, column, strict=True)) for column in differences.T]
        return max(mean / length if length else 0.0 for mean, length in zip(means, lengths, strict=True))

    everything = [largest(signs) for signs in product((1, -1), repeat=6)]
    expected = []
    for column, length in zip(differences.T, lengths, strict=True):
        seen = column.sum() / length if length else 0.0
        expected.append(sum(value >= seen - 1e-12 for value in everything) / len(everything))
    np.testing.assert_allclose(adjusted_p_values(differences, np.arange(6), 0), expected)
    drawn = adjusted_p_values(rng.normal(0, 1, (30, 4)), np.arange(30), 3)
    np.testing.assert_array_equal(drawn >= 1 / (FLIPS + 1), True)


@pytest.mark.parametrize("count", [7, 12])  # all flips, and drawn ones
def test_an_image_repeated_in_its_well_tells_nothing_more(count: int) -> None:
    rng = np.random.default_rng(2)
    scores, current, positions = rng.normal(0, 1, (count, 9)), rng.normal(0, 1, count), np.arange(9.0)[:, None]
    scores[:, 4] += 1.4
    once = make_candidates(scores, current, positions, np.zeros(1))
    order = rng.permutation(np.repeat(np.arange(count), 4))
    often = make_candidates(scores[order], current[order], positions, np.zeros(1), order)
    differences = scores - current[:, None]
    expected = adjusted_p_values(differences, np.arange(count), 5)
    assert 0.01 < expected.min() < 0.1 and len(set(expected)) > 4
    np.testing.assert_array_equal(adjusted_p_values(differences[order], order, 5), expected)
    assert choose_point(often, significance=0.1) == choose_point(once, significance=0.1)
    assert adjusted_p_values(differences[order], np.arange(4 * count), 5).min() < 0.005
    found, single = estimate_mean(current[order], 3, order), estimate_mean(current, 3)
    assert (found.mean, found.low, found.high) == pytest.approx((single.mean, single.low, single.high))
    one = estimate_mean(current, 3, np.zeros(count, int))
    assert np.isnan([one.low, one.high]).all()


def test_standard_errors_are_those_of_means_over_wells_of_equal_size() -> None:
    values, wells = np.random.default_rng(0).normal(0, 1, (24, 3)), np.tile(np.arange(6), 4)
    of_wells = values.reshape(4, 6, 3).mean(axis=0)
    np.testing.assert_allclose(standard_errors(values, wells), of_wells.std(axis=0, ddof=1) / np.sqrt(6))
    np.testing.assert_allclose(standard_errors(values, np.arange(24)), values.std(axis=0, ddof=1) / np.sqrt(24))
    assert standard_errors(values, np.zeros(24, int)).tolist() == [0, 0, 0]


def test_wells_that_differ_are_no_gain_but_for_the_stated_rate() -> None:
    """Noise that four images of a well share in part: taken as independent they are believed far too often."""
    trials, gains = 100, {"wells": 0, "images": 0}
    wells = np.repeat(np.arange(10), 4)
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        scores = rng.normal(0, np.sqrt(0.25), (10, 60))[wells] + rng.normal(0, np.sqrt(0.75), (40, 60))
        for name, units in (("wells", wells), ("images", np.arange(40))):
            gains[name] += bool(adjusted_p_values(scores, units, seed).min() <= 0.05)
    assert gains["wells"] <= 11  # 5 expected, 3 standard deviations are 6.5
    assert gains["images"] >= 25


def test_a_gain_needs_five_images_or_wells() -> None:
    for images, expected in ((1, None), (4, None), (5, 0)):
        candidates = make_candidates(np.full((images, 1), 0.9), np.full(images, 0.1), np.ones((1, 1)), np.zeros(1))
        assert choose_point(candidates) == Choice(expected, expected, 0.5**images, int(expected is not None), images)
        often = make_candidates(
            np.full((images * 3, 1), 0.9), np.full(images * 3, 0.1), np.ones((1, 1)), np.zeros(1),
            np.arange(images * 3) % images,
        )  # fmt: skip
        assert choose_point(often) == choose_point(candidates)


def test_no_images_and_no_points() -> None:
    candidates = make_candidates(np.zeros((0, 3)), np.zeros(0), np.zeros((3, 1)), np.zeros(1))
    assert choose_point(candidates) == Choice(None, None, 1.0, 0, 0)
    candidates = make_candidates(np.zeros((6, 0)), np.zeros(6), np.zeros((0, 1)), np.zeros(1))
    nothing_tried = Choice(None, None, 1.0, 0, 6)
    assert choose_point(candidates) == nothing_tried
    assert scores_of_choice(candidates, nothing_tried).tolist() == [0] * 6
    nothing = estimate_mean(np.zeros(0))
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


@pytest.mark.parametrize(
    ("scores", "current", "positions", "units", "told"),
    [
        (np.zeros((2, 3)), np.zeros(3), np.zeros((3, 1)), np.arange(2), "current scores"),
        (np.zeros((2, 3)), np.zeros(2), np.zeros((3, 1)), np.arange(3), r"units \(2,\), got \(2,\) and \(3,\)"),
        (np.zeros((2, 3)), np.zeros(2), np.zeros((2, 1)), np.arange(2), "positions"),
        (np.full((2, 3), np.nan), np.zeros(2), np.zeros((3, 1)), np.arange(2), "not a finite number"),
    ],
)
def test_what_does_not_fit_is_refused(
    scores: np.ndarray, current: np.ndarray, positions: np.ndarray, units: np.ndarray, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        make_candidates(scores, current, positions, np.zeros(1), units)


def test_folds_are_drawn_of_equal_size_and_anew() -> None:
    folds = draw_folds(13, seed=1, folds=5, repeats=4)
    assert folds.shape == (4, 13)
    for repeat in folds:
        assert sorted(np.bincount(repeat)) == [2, 2, 3, 3, 3]
    assert len({tuple(repeat) for repeat in folds}) == 4
    np.testing.assert_array_equal(folds, draw_folds(13, seed=1, folds=5, repeats=4))
    assert draw_folds(3, seed=0).tolist() == [[0, 1, 2]]
    alone = [f"image {number}" for number in range(13)]
    np.testing.assert_array_equal(folds, draw_folds(13, seed=1, folds=5, repeats=4, groups=alone))
    wells = [f"well {number // 2}" for number in range(24)]
    folds_of_wells = draw_folds(24, seed=1, folds=5, repeats=4, groups=wells)
    assert folds_of_wells.shape == (4, 24) and {len(set(repeat)) for repeat in folds_of_wells.tolist()} == {5}
    np.testing.assert_array_equal(folds_of_wells[:, ::2], folds_of_wells[:, 1::2])
    assert draw_folds(4, seed=0, groups=["b", "a", "b", "b"]).tolist() == [[1, 0, 1, 1]]
    assert draw_folds(0, seed=0).shape == (1, 0)


def test_cross_validation_is_choosing_again_on_copies_without_the_images() -> None:
    candidates = surface_candidates(hill((3, 4), height=0.05), noise=0.04, images=17)
    folds = draw_folds(17, seed=2, folds=4, repeats=3)
    found = cross_validate(
        lambda images: choose_point(candidates, images),
        lambda choice, images: scores_of_choice(candidates, choice, images),
        folds,
    )
    expected = np.zeros(17)
    for repeat in range(3):
        for fold in range(4):
            seen = [image for image in range(17) if folds[repeat][image] != fold]
            alone = make_candidates(candidates.scores[seen], candidates.current[seen], POSITIONS, np.zeros(2))
            choice = choose_point(alone)
            for image in range(17):
                if image not in seen:
                    chosen = candidates.current if choice.point is None else candidates.scores[:, choice.point]
                    expected[image] += chosen[image]
            assert found.chosen[repeat][fold] == choice
    np.testing.assert_allclose(found.scores, expected / 3)
    assert {choice.point for repeat in found.chosen for choice in repeat} != {None}


def test_held_out_images_cannot_tell_what_is_chosen() -> None:
    candidates = surface_candidates(hill((3, 4)), noise=0.05, images=15)
    folds = draw_folds(15, seed=0, repeats=1)
    held_out = np.flatnonzero(folds[0] == 2)
    scores, current = candidates.scores.copy(), candidates.current.copy()
    scores[held_out] = np.random.default_rng(9).random((len(held_out), scores.shape[1])) * 100
    current[held_out] = -100
    poisoned = make_candidates(scores, current, POSITIONS, np.zeros(2))
    seen = np.flatnonzero(folds[0] != 2)
    assert choose_point(poisoned, seen) == choose_point(candidates, seen)
    assert choose_point(poisoned) != choose_point(candidates)


def test_cross_validation_shows_the_overfitting_of_taking_the_best() -> None:
    """Taking the best of 300 useless points looks like a gain on its own images, and is none on others."""
    looks, is_worth = [], []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scores = rng.random((20, 300))
        found = cross_validate(
            lambda images, scores=scores: int(scores[images].mean(axis=0).argmax()),
            lambda point, images, scores=scores: scores[images, point],
            draw_folds(20, seed, repeats=2),
        )
        looks.append(scores.mean(axis=0).max() - 0.5)
        is_worth.append(found.scores.mean() - 0.5)
    assert np.mean(looks) > 0.15
    assert abs(np.mean(is_worth)) < 0.04


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(100):
        found = estimate_mean(np.random.default_rng(seed).normal(0.3, 0.1, 30), seed)
        assert found.low <= found.mean <= found.high
        covered += found.low <= 0.3 <= found.high
    assert 85 <= covered <= 100


def test_an_assessment_is_paired() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(20)  # images differ much more than the gain
    found = assess(before, before + 0.03, before + 0.02 + rng.normal(0, 0.001, 20), seed=4)
    assert found.images == 20 and found.after - found.before == pytest.approx(0.03)
    assert found.expected.mean - found.before == pytest.approx(found.gain.mean)
    assert 0.018 < found.gain.low < 0.02 < found.gain.high < 0.022
    assert found.expected.high - found.expected.low > 0.1
    alone = assess(np.array([0.5]), np.array([0.6]), np.array([0.5]))
    assert (alone.expected.mean, alone.gain.mean) == (0.5, 0) and np.isnan(alone.gain.low)


def test_images_of_one_well_are_held_out_together() -> None:
    """In folds of a file made elsewhere that tears it, too: the first image's fold is the well's."""
    names = ["a", "b", "c", "d", "e"]
    wells = {"a": "one", "d": "one", "b": "two"}
    plan = TuningPlan(folds={"a": 0, "b": 1, "c": 1, "d": 1, "e": 2}, groups=wells)
    folds, given = folds_of(names, plan)
    assert given and folds.tolist() == [[0, 1, 1, 0, 2]]
    drawn, given = folds_of(names, replace(plan, folds=None))
    assert not given and all(repeat[0] == repeat[3] for repeat in drawn.tolist())
    assert len(np.unique(drawn[0])) == 4
    assert units_of(names, plan).tolist() == [0, 1, 2, 0, 3]
    assert units_of(names, TuningPlan()).tolist() == [0, 1, 2, 3, 4]
    # Where all are of one well, nothing else can be held out than images.
    drawn, _ = folds_of(names, TuningPlan(groups=dict.fromkeys(names, "one")))
    assert drawn.tolist() == [[0, 1, 2, 3, 4]]
