"""The time budget, played through on a clock of its own: in time wherever it can be, and in full quality."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kernel.runtime.budget import TimeBudget, duration

IMAGES = 240
#: An image's seconds by stage, in full quality; light ones have few cells.
LIGHT = {"features": 5.0, "proposals": 0.3, "boxes": 1.5, "masks": 1.5, "other": 0.5}


@dataclass(frozen=True)
class Level:
    """A level as the ensemble's: 6 members, 4 views."""

    name: str
    members: int = 6
    box_views: int = 4
    mask_views: int = 4

    def stage_work(self, cell_type: str) -> Mapping[str, float]:
        assert cell_type
        return {
            "features": self.members * max(self.box_views, self.mask_views),
            "proposals": self.members,
            "boxes": self.members * self.box_views,
            "masks": self.members * self.mask_views,
            "other": 1,
        }


LEVELS = (
    Level("full"),
    Level("masks", mask_views=1),
    Level("boxes", box_views=1, mask_views=1),
    *(Level(f"{count} members", count, 1, 1) for count in (5, 4, 3, 2, 1)),
)
FULL = LEVELS[0].stage_work("any")


def seconds_at(level: int, scale: float) -> dict[str, float]:
    """What an image takes at a level, by stage; "other" among them."""
    work = LEVELS[level].stage_work("any")
    return {stage: scale * spent * work[stage] / FULL[stage] for stage, spent in LIGHT.items()}


@dataclass
class Night:
    """What came of a simulated run."""

    end: float = 0.0
    levels: list[int] = field(default_factory=list)
    budget: TimeBudget | None = None


def play(
    scale: Callable[[int, float], float],
    limit: float,
    devices: int = 1,
    images: int = IMAGES,
    sizes: list[float] | None = None,
) -> Night:
    """Do images that take `scale(number, share of the time gone)` times a light one's seconds."""
    names = [f"image{number}" for number in range(images)]
    known = dict(zip(names, sizes or [1.0] * images, strict=True))
    night = Night(budget=TimeBudget(LEVELS, known, limit, devices))
    assert night.budget
    free = [(0.0, device) for device in range(devices)]
    running: list[tuple[float, int, str, dict[str, float]]] = []
    for number, name in enumerate(names):
        now, device = min(free)
        for end, _, other, spent in sorted(entry for entry in running if entry[0] <= now):
            stages = {stage: seconds for stage, seconds in spent.items() if stage != "other"}
            night.budget.finish(other, end, "cort", stages)
            running = [entry for entry in running if entry[2] != other]
        level = night.budget.begin(name, now)
        spent = seconds_at(level, scale(number, now / limit) * known[name])
        end = now + sum(spent.values())
        free[free.index((now, device))] = end, device
        running.append((end, device, name, spent))
        night.levels.append(level)
        night.end = max(night.end, end)
    return night


def light_seconds() -> float:
    return sum(LIGHT.values())


def mixed(seed: int, heavy_share: float = 0.25, heavy: float = 4.0, spread: float = 0.2) -> list[float]:
    """Images of two kinds, in random order."""
    rng = random.Random(seed)
    return [(heavy if rng.random() < heavy_share else 1.0) * rng.uniform(1 - spread, 1 + spread) for _ in range(IMAGES)]


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_with_time_enough_nothing_is_lowered(seed: int, devices: int) -> None:
    """A limit a third above what full quality takes, and two very different kinds of images."""
    scales = mixed(seed)
    limit = 1.33 * sum(scales) * light_seconds() / devices
    night = play(lambda number, _: scales[number], limit, devices)
    assert set(night.levels) == {0} and night.end <= limit


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.9, 0.7, 0.4, 0.2])
def test_with_too_little_time_all_images_are_done(seed: int, share: float, devices: int) -> None:
    """The time is used, not saved: quality is lowered no further than needed."""
    scales = mixed(seed)
    limit = share * sum(scales) * light_seconds() / devices
    night = play(lambda number, _: scales[number], limit, devices)
    assert night.end <= limit
    assert night.end >= 0.75 * limit
    assert max(night.levels) > 0


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("slow_images", [1, 3, 8])
def test_a_slow_start_alone_lowers_nothing(slow_images: int, devices: int) -> None:
    """The first images take five times as long, as they do while a GPU's kernels are loaded."""
    total = (IMAGES - slow_images + 5 * slow_images) * light_seconds() / devices
    night = play(lambda number, _: 5.0 if number < slow_images else 1.0, 2.0 * total, devices)
    assert set(night.levels) == {0}


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("factor", [5.0, 40.0])
def test_a_first_image_of_each_device_however_slow_is_forgotten(factor: float, devices: int) -> None:
    """Little more than the time that all takes: lowered are only images begun before each device had done a second."""
    limit = 1.1 * (IMAGES - devices + factor * devices) * light_seconds() / devices
    night = play(lambda number, _: factor if number < devices else 1.0, limit, devices)
    assert set(night.levels[3 * devices :]) == {0} and night.end <= limit


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("when", [0.1, 0.5, 0.8, 0.9])
@pytest.mark.parametrize("factor", [2.0, 3.0, 6.0])
def test_a_sudden_slowdown_is_caught(when: float, factor: float, devices: int) -> None:
    """Full quality would just have done."""
    limit = 1.1 * IMAGES * light_seconds() / devices
    night = play(lambda _, gone: factor if gone > when else 1.0, limit, devices)
    assert night.end <= limit
    assert night.levels[:10] == [0] * 10
    if when < 0.9:  # by then nearly all is done
        assert max(night.levels) > 0


@pytest.mark.parametrize("first", [60, 120, 200])
def test_ten_times_heavier_images_at_the_end_are_caught(first: int) -> None:
    limit = 1.2 * IMAGES * light_seconds()
    night = play(lambda number, _: 1.0 if number < first else 10.0, limit)
    assert night.end <= limit
    assert set(night.levels[:first]) == {0} and max(night.levels) > 0


def test_quality_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    """Heavy images first, light ones later."""
    limit = 0.5 * (60 * 10 + 180) * light_seconds()
    with caplog.at_level("INFO", logger="kernel"):
        night = play(lambda number, _: 10.0 if number < 60 else 1.0, limit)
    assert night.end <= limit
    assert max(night.levels[:60]) > 0 and set(night.levels[-60:]) == {0}
    assert "time is short: " in caplog.text and "time is enough again: " in caplog.text
    assert "from here on masks" in caplog.text


@pytest.mark.parametrize("seed", range(60))
def test_any_night_that_can_be_in_time_is(seed: int) -> None:
    """Random speeds, mixes, slowdowns, devices and limits: in time where half of it does for the lowest level."""
    rng = random.Random(seed)
    scales = mixed(seed, rng.random(), rng.uniform(1, 10), rng.uniform(0, 0.5))
    when, factor = rng.random(), rng.uniform(1, 4)
    devices = rng.choice([1, 2, 4])
    slow = rng.randrange(4)

    def scale(number: int, gone: float) -> float:
        return scales[number] * (factor if gone > when else 1.0) * (5.0 if number < slow else 1.0)

    worst = sum(scales) * factor + 5 * 10 * slow
    lowest = sum(seconds_at(len(LEVELS) - 1, worst).values()) / devices
    limit = max(2 * lowest, rng.uniform(0.1, 1.5) * sum(scales) * light_seconds() / devices)
    # Nothing is known of the first image on each device: it is done in full, and must fit.
    limit += 2 * 50 * factor * light_seconds()
    night = play(scale, limit, devices)
    assert night.end <= limit
    full = (sum(scales) * factor + 5 * 10 * slow) * light_seconds() / devices
    if limit > 2 * full:
        assert set(night.levels) == {0}


def test_the_largest_images_are_lowered() -> None:
    """Where a few must be, lowering these saves most."""
    sizes = [4.0 if number % 10 == 5 else 1.0 for number in range(IMAGES)]
    limit = 0.97 * sum(sizes) * light_seconds()
    night = play(lambda *_: 1.0, limit, sizes=sizes)
    assert night.end <= limit
    lowered = [sizes[number] for number, level in enumerate(night.levels) if level > 0]
    assert len(lowered) > 0 and sum(size > 1 for size in lowered) > 0.6 * len(lowered)


def test_where_even_the_lowest_level_is_too_slow_it_is_used() -> None:
    limit = 0.02 * IMAGES * light_seconds()
    night = play(lambda *_: 1.0, limit)
    assert set(night.levels[1:]) == {len(LEVELS) - 1} and night.end > limit


def test_a_single_level_is_all_there_is() -> None:
    budget = TimeBudget(LEVELS[:1], {"a": 1.0, "b": 1.0}, 1.0)
    assert budget.begin("a", 0.0) == 0
    budget.finish("a", 5.0, "cort", {"features": 4.0})
    assert budget.begin("b", 5.0) == 0


def test_costs_of_other_levels_follow_from_the_work() -> None:
    budget = TimeBudget(LEVELS, {"a": 2.0, "b": 2.0, "c": 4.0}, 1000.0)
    budget.begin("a", 0.0)
    stages = {stage: seconds for stage, seconds in seconds_at(0, 1.0).items() if stage != "other"}
    budget.finish("a", light_seconds(), "cort", stages)
    for level in range(len(LEVELS)):
        assert budget.forecast(level).mean == pytest.approx(3 * sum(seconds_at(level, 1.0).values()))
        assert budget.forecast(level).deviation > 0


def test_images_that_fail_or_come_again() -> None:
    budget = TimeBudget(LEVELS, {"a": 1.0, "b": 1.0, "c": 1.0}, 1000.0)
    for name in "ab":
        budget.begin(name, 0.0)
    budget.finish("a", 10.0, "cort", {"features": 9.0})
    assert budget.forecast(0).mean == pytest.approx(10.0)
    budget.drop("b", wait=True)
    assert budget.forecast(0).mean == pytest.approx(20.0)
    budget.drop("c")
    assert budget.forecast(0).mean == pytest.approx(10.0)
    assert budget.begin("b", 10.0) == 0
    budget.drop("b")
    assert budget.forecast(0).mean == 0


def test_forecasts_are_kept_for_the_summary() -> None:
    night = play(lambda *_: 1.0, 0.5 * IMAGES * light_seconds())
    assert night.budget
    forecasts = night.budget.forecasts
    assert len(forecasts) >= 20 and forecasts[0]["level"] == "full"
    assert {"images_done", "seconds_left", "level", "seconds_at_full", "seconds_at_level"} == set(forecasts[0])
    assert forecasts[-1]["seconds_at_full"][0] < forecasts[0]["seconds_at_full"][0]


def test_times_for_people() -> None:
    assert [duration(seconds) for seconds in (0.51, 90, 180, 9000, -9000)] == [
        "0.5 s",
        "90.0 s",
        "3.0 min",
        "2.5 h",
        "-2.5 h",
    ]


def test_a_warm_up_is_forgotten_even_if_a_device_is_lost() -> None:
    names = [f"image{number}" for number in range(6)]
    budget = TimeBudget(LEVELS[:1], dict.fromkeys(names, 1.0), 1e9, devices=2)
    for number, name in enumerate(names[:5]):
        budget.begin(name, 0.0)
        budget.finish(name, 60.0 if number < 2 else 1.0, "cort", {})
        budget.devices = 1
    assert budget.forecast(0).mean == pytest.approx(1.0)


def test_a_resumed_image_is_charged_from_then_on() -> None:
    """It is begun when the networks are done with the one before, and resumed when that one is finished."""
    budget = TimeBudget(LEVELS[:1], dict.fromkeys("abc", 1.0), 1e9)
    budget.begin("a", 0.0)
    budget.begin("b", 2.0)
    budget.finish("a", 3.0, "cort", {})
    budget.resume("b", 3.0)
    budget.finish("b", 5.0, "cort", {})
    assert budget.forecast(0).mean == pytest.approx(2.0)  # the first is forgotten


def test_a_resumed_image_keeps_its_level() -> None:
    """What it took is that of its own level, not of the best one."""
    budget = TimeBudget(LEVELS, dict.fromkeys("abc", 1.0), 10.0)
    lowest = len(LEVELS) - 1
    budget.begin("a", 0.0)
    budget.finish("a", 9.0, "cort", {})
    assert budget.begin("b", 9.0) == lowest
    budget.resume("b", 9.5)
    budget.finish("b", 10.0, "cort", {"features": 0.5})
    full = 0.5 * FULL["features"] / LEVELS[-1].stage_work("any")["features"]
    assert budget.forecast(lowest).mean == pytest.approx(0.5) and budget.forecast(0).mean == pytest.approx(full)


def light_stages(scale: float = 1.0) -> dict[str, float]:
    """What a light image takes in full quality, by measured stage."""
    return {stage: seconds for stage, seconds in seconds_at(0, scale).items() if stage != "other"}


@pytest.mark.parametrize("devices", [1, 2])
def test_the_last_image_leaves_time_for_one_that_the_other_device_is_still_at(devices: int) -> None:
    """The largest one has already taken longer than any did, so nothing is known of how long it still will."""
    sizes = {"a": 1.0, "b": 1.0, "c": 1.0, "d": 1.0, "largest": 30.0, "last": 1.0}
    deadline = 1000.0
    budget = TimeBudget(LEVELS, sizes, deadline, 2)
    for name in "abcd":
        budget.begin(name, 0.0)
        budget.finish(name, light_seconds(), "cort", light_stages())
    assert budget.begin("largest", 0.0) == 0
    budget.devices = devices  # with one device there is no other that could be late
    now = deadline - 1.5 * light_seconds()
    assert budget.choose_level("last", now) == (0 if devices == 1 else len(LEVELS) - 1)


def forty_of_sixty_done() -> tuple[TimeBudget, list[str]]:
    """A budget that knows forty equal images well, and the names of twenty that wait."""
    names = [f"image{number}" for number in range(60)]
    budget = TimeBudget(LEVELS, dict.fromkeys(names, 1.0), 1000.0)
    for name in names[:40]:
        budget.begin(name, 0.0)
        budget.finish(name, light_seconds(), "cort", light_stages())
    return budget, names[40:]


def test_of_equal_images_all_that_come_are_lowered() -> None:
    """None is larger, so none may count on another's being lowered first."""
    budget, waiting = forty_of_sixty_done()
    full, masks = budget.forecast(0), budget.forecast(1)
    left = (full.mean - 1.5 * full.deviation + masks.mean) / 2
    assert masks.mean < left < full.mean - 1.5 * full.deviation
    assert [budget.choose_level(name, 1000.0 - left) for name in waiting] == [1] * 20


def test_quality_goes_when_failing_is_sure_and_comes_back_when_success_is_likely() -> None:
    """With the same little doubt about the time, full quality stays where it is, and is not taken up again."""
    budget, waiting = forty_of_sixty_done()

    def level_with(spare: float) -> int:
        """The next image's, where the time left is the forecast's mean and so many deviations."""
        full = budget.forecast(0)
        return budget.choose_level(waiting[-1], 1000.0 - full.mean - spare * full.deviation)

    assert (level_with(0.1), level_with(-0.5)) == (0, 0)
    full = budget.forecast(0)
    assert budget.begin(waiting[0], 1000.0 - full.mean + 1.5 * full.deviation) == 1
    budget.drop(waiting[0])
    assert (level_with(0.1), level_with(-0.5)) == (0, 1)


def test_where_time_does_nothing_is_told_to_be_short(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="kernel"):
        play(lambda *_: 1.0, 2 * IMAGES * light_seconds())
    assert len(caplog.messages) > 10 and {record.levelname for record in caplog.records} == {"INFO"}
    assert all(text.startswith("time: ") and text.endswith("; quality: full") for text in caplog.messages)


# --- one image of an odd size ------------------------------------------------------------------------------------


def play_in_order(sizes: dict[str, float], done: dict[str, bool], limit: float, devices: int) -> dict[str, int]:
    """The level of each image that can be done, in a run that begins giants last; others take no time, and fail."""
    budget = TimeBudget(LEVELS, sizes, limit, devices)
    now, levels = 0.0, {}
    for path in budget.giants_last([Path(f"{name}.png") for name in sizes]):
        if now > limit:
            break
        level = budget.begin(path.stem, now)
        if not done[path.stem]:
            budget.drop(path.stem)
            continue
        levels[path.stem] = level
        spent = seconds_at(level, sizes[path.stem])
        now += sum(spent.values()) / devices
        budget.finish(path.stem, now, "cort", {stage: each for stage, each in spent.items() if stage != "other"})
    return levels


@pytest.mark.parametrize("readable", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_one_image_of_any_size_lowers_no_other(seed: int, readable: bool) -> None:
    """Random mixes, with time for all others and little more: the odd one may lie, or be far too large."""
    rng = random.Random(seed)
    sizes = {
        f"image{number}": rng.choice([1.0, 1.0, 2.0]) * rng.uniform(0.7, 1.4) for number in range(rng.randint(8, 60))
    }
    devices = rng.choice([1, 2])
    limit = 1.5 * sum(sizes.values()) * light_seconds() / devices
    alone = play_in_order(sizes, dict.fromkeys(sizes, True), limit, devices)
    names = [*sizes]
    names.insert(rng.randrange(len(names) + 1), "odd")
    mixed_sizes = {**sizes, "odd": rng.choice([40.0, 300.0, 10_000.0])}
    mixed_sizes = {name: mixed_sizes[name] for name in names}
    levels = play_in_order(mixed_sizes, {**dict.fromkeys(sizes, True), "odd": readable}, limit, devices)
    assert set(alone.values()) == {0} and ("odd" in levels) == readable
    assert {name: level for name, level in levels.items() if name != "odd"} == alone


def test_giants_share_the_time_that_is_left() -> None:
    """Two of thirty times the usual size: at the level at which both can be done."""
    sizes = {**{f"image{number}": 1.0 for number in range(20)}, "one": 30.0, "two": 30.0}
    sizes = dict(sorted(sizes.items(), reverse=True))
    limit = 50 * light_seconds()
    levels = play_in_order(sizes, dict.fromkeys(sizes, True), limit, 1)
    assert {levels[f"image{number}"] for number in range(20)} == {0}
    assert levels["one"] > 0 and levels["two"] > 0 and list(levels)[-2:] == ["two", "one"]


def test_giants_are_begun_last_and_are_few() -> None:
    """Many large images are no giants: half of all are no larger than the median."""
    paths = [Path(f"image{number}.png") for number in range(3)]
    few = TimeBudget(LEVELS, {"image0": 30.0, "image1": 1.0, "image2": 1.0}, 100.0)
    assert [path.stem for path in few.giants_last(paths)] == ["image1", "image2", "image0"]
    for sizes in ((30.0, 30.0, 1.0), (30.0, 30.0, 30.0), (1.0, 10.0, 1.0)):
        known = {path.stem: size for path, size in zip(paths, sizes, strict=True)}
        assert TimeBudget(LEVELS, known, 100.0).giants_last(paths) == paths
    assert TimeBudget(LEVELS, {}, 100.0).giants_last([]) == []
