"""What images cost: weighted means against their definition, and a warm-up that is forgotten."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.runtime.image_costs import OUTLIER_FACTOR, WORST_FACTOR, ImageCosts, LevelCosts, MovingAverage, image_size

VALUES = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]


@pytest.mark.parametrize("half_life", [1.0, 3.0, 1e9])
def test_a_moving_average_is_the_weighted_mean(half_life: float) -> None:
    average = MovingAverage(half_life)
    for value in VALUES:
        average.add(value)
    weights = [0.5 ** ((len(VALUES) - 1 - place) / half_life) for place in range(len(VALUES))]
    mean = sum(map(math.prod, zip(weights, VALUES, strict=True))) / sum(weights)
    count = sum(weights) ** 2 / sum(weight * weight for weight in weights)
    variance = sum(weight * (value - mean) ** 2 for weight, value in zip(weights, VALUES, strict=True)) / sum(weights)
    assert average.mean == pytest.approx(mean)
    assert average.count == pytest.approx(count)
    # The prior: two images whose standard deviation is half of the mean.
    assert average.deviation == pytest.approx(math.sqrt((count * variance + 2 * (mean / 2) ** 2) / (count + 2)))


def test_a_forecast_knows_that_images_differ_and_that_their_mean_is_an_estimate() -> None:
    average = MovingAverage(1e9)
    for value in VALUES:
        average.add(value)
    forecast = average.forecast([2.0, 1.0])
    assert forecast.mean == pytest.approx(3 * average.mean)
    # Of the images themselves 2² + 1², of their mean (2 + 1)² / 6.
    assert forecast.deviation == pytest.approx(average.deviation * math.sqrt(5 + 9 / 6))
    nothing = average.forecast([])
    assert (nothing.mean, nothing.deviation) == (0, 0)


def test_a_slow_turn_raises_the_cautious_mean_at_once_and_the_worst_for_forty_images() -> None:
    costs = LevelCosts()
    for cost in [1.0] * 30 + [7.0]:
        costs.add(cost)
    assert costs.cautious_mean > 2 > costs.usual.mean
    for _ in range(39):
        costs.add(1.0)
    assert costs.worst == pytest.approx(7 * WORST_FACTOR)
    costs.add(1.0)
    assert costs.worst == pytest.approx(WORST_FACTOR)
    assert costs.cautious_mean == costs.usual.mean  # the slow one weighs more there by now


@pytest.mark.parametrize("devices", [1, 3])
def test_the_first_image_of_each_device_counts_until_another_is_measured(devices: int) -> None:
    costs = ImageCosts(2, devices)
    for _ in range(devices):
        costs.add([50.0, 5.0])
    for place in range(devices):
        assert costs[0].usual.mean > 10 and costs[1].usual.mean > 1
        costs.add([10.0, 1.0])
        assert costs.images == devices + place + 1
    assert (costs[0].usual.mean, costs[1].usual.mean) == (pytest.approx(10), pytest.approx(1))
    costs.add([20.0, 2.0])
    assert 10 < costs[0].usual.mean < 20 and costs[0].worst == pytest.approx(20 * WORST_FACTOR)


# --- one image alone ---------------------------------------------------------------------------------------------


def test_a_stall_of_one_image_says_little_of_the_others_and_a_second_one_counts() -> None:
    costs = LevelCosts()
    for cost in [1.0] * 30 + [500.0]:
        costs.add(cost)
    assert costs.usual.mean < 1.5 and costs.cautious_mean < 4
    assert costs.worst == pytest.approx(OUTLIER_FACTOR * WORST_FACTOR)
    costs.add(500.0)
    assert costs.usual.mean > 15 and costs.worst == pytest.approx(500 * WORST_FACTOR)


@given(
    odd=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    overhead=st.floats(0.02, 2.0),
    place=st.integers(2, 19),
    sides=st.lists(st.integers(450, 1100), min_size=20, max_size=20),
)
def test_a_tiny_image_anywhere_hardly_changes_the_forecast(
    odd: tuple[int, int], overhead: float, place: int, sides: list[int]
) -> None:
    """Its time is all overhead, which a cost per pixel would make hours of."""

    def forecast(shapes: list[tuple[int, int]]) -> float:
        costs = LevelCosts()
        for height, width in shapes:
            costs.add((overhead + 7e-6 * height * width) / image_size((height, width)))
        return costs.usual.forecast([image_size((520, 704))] * 100).mean

    shapes = [(side, 704) for side in sides]
    without, with_it = forecast(shapes), forecast([*shapes[:place], odd, *shapes[place:]])
    assert 0.7 * without < with_it < 1.5 * without
