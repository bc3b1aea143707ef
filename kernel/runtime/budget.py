"""Time: what the images so far took tells what the rest will, and how well they can be done in the time that is left.

Two rules choose an image's level of quality, the mildest one that both allow:

- *need*: quality is lowered only where the forecast says with some confidence that the time does not do otherwise; it
  comes back as soon as the forecast does.
- *reserve*: whatever this image and those being done may take, the time must then still do for all others at the
  lowest level, judged pessimistically.

The first keeps the quality, the second the deadline. No clock is read here: callers say what time it is, so that a
night can be played through in milliseconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kernel.runtime.log import LOG

#: An image counts half as much as one that came so many later: devices slow down, and kinds of images come in runs.
HALF_LIFE_IMAGES = 20.0
#: Before much was seen, costs are taken to vary by half of their mean, as if so many images had shown it.
PRIOR_VARIATION = 0.5
PRIOR_IMAGES = 2.0
#: *need*: nothing is lowered before this share of the images is done, since the first ones are often slow; and then
#: the forecast must lie so many standard deviations beyond the time left, more while few images are known.
LEARNING_SHARE = 0.1
CONFIDENCE = 1.0
FEW_IMAGES = 8.0
#: *reserve*: so many standard deviations above the mean the rest may come, and then this much more: what the lowest
#: level takes is mostly inferred from the others. The mean is that of the last few images where it is higher.
CAUTION = 2.0
RESERVE_FACTOR = 1.5
RECENT_HALF_LIFE = 3.0
#: *reserve*: an image may take as much more than the worst of the last so many.
WORST_OF = 40
WORST_FACTOR = 1.25
#: Forecasts are noted whenever the level changes, and so many times besides.
NOTED_FORECASTS = 20


class LevelOfQuality(Protocol):
    """What the budget must know of a level."""

    @property
    def name(self) -> str:
        """What people are told."""
        ...

    def stage_work(self, cell_type: str) -> Mapping[str, float]:
        """Units of work per stage of an image of a cell type; "other" is what is not measured by stage."""
        ...


class FadingMean:
    """Mean and variance of figures of which the earlier ones count less and less."""

    def __init__(self, half_life: float):
        self.keep = 0.5 ** (1 / half_life)
        self.weight = self.squared_weight = self.total = self.squares = 0.0

    def add(self, figure: float) -> None:
        """The next figure; all earlier ones lose weight."""
        self.weight = self.keep * self.weight + 1
        self.squared_weight = self.keep**2 * self.squared_weight + 1
        self.total = self.keep * self.total + figure
        self.squares = self.keep * self.squares + figure * figure

    @property
    def count(self) -> float:
        """How many figures of equal weight would tell as much."""
        return self.weight**2 / self.squared_weight

    @property
    def mean(self) -> float:
        """The weighted mean."""
        return self.total / self.weight

    @property
    def deviation(self) -> float:
        """One standard deviation of the figures, with what is assumed of them before many are known."""
        variance = max(0.0, self.squares / self.weight - self.mean**2)
        prior = PRIOR_IMAGES * (PRIOR_VARIATION * self.mean) ** 2
        return math.sqrt((self.count * variance + prior) / (self.count + PRIOR_IMAGES))


class LevelCosts:
    """What images take per unit of size at one level: as it was, or as it would have been for those done at another."""

    def __init__(self) -> None:
        self.usual = FadingMean(HALF_LIFE_IMAGES)
        self.recent = FadingMean(RECENT_HALF_LIFE)
        self._last: deque[float] = deque(maxlen=WORST_OF)

    def add(self, cost: float) -> None:
        """Another image's cost."""
        self.usual.add(cost)
        self.recent.add(cost)
        self._last.append(cost)

    @property
    def cautious_mean(self) -> float:
        """The mean, or that of the last few images where it is higher."""
        return max(self.usual.mean, self.recent.mean)

    @property
    def worst(self) -> float:
        """What an image may take."""
        return WORST_FACTOR * max(self._last)


@dataclass(frozen=True)
class Forecast:
    """What images that are not begun take, at one level, in seconds of one device."""

    mean: float
    deviation: float  # one standard deviation: of the images' differences, and of not knowing their mean


class TimeBudget:
    """Chooses the level at which each image is done.

    The cell type of an image is not known before it is done, so the images done stand for those to come: their spread,
    over types and numbers of cells, is the forecast's uncertainty. Sizes are known beforehand: costs are taken as
    proportional to them, and where only some images must be lowered, it is the largest ones, since so the fewest are.

    Parameters:
        levels: the best first.
        sizes: every image's size by id, in the order in which they are done: pixels, say.
        deadline: when all must be done, in seconds of the callers' clock.
        devices: how many images are done at a time.
    """

    def __init__(self, levels: Sequence[LevelOfQuality], sizes: Mapping[str, float], deadline: float, devices: int = 1):
        self.levels = tuple(levels)
        self.deadline = deadline
        self.devices = devices
        self.forecasts: list[dict[str, Any]] = []  # for the summary
        self._sizes = dict(sizes)
        self._waiting = dict(sizes)
        self._running: dict[str, tuple[float, int]] = {}  # begun when, at which level
        self._costs = [LevelCosts() for _ in self.levels]
        self._warm_up = devices  # so many images are the first of their device
        self._first: list[list[float]] = []  # costs by level of the images measured first, until they are enough
        self._known = 0  # images that were measured
        self._largest = max(self._sizes.values(), default=0.0)
        self._level = 0  # of the image begun last
        self._note_every = max(1, len(self._sizes) // NOTED_FORECASTS)

    def begin(self, image_id: str, now: float) -> int:
        """An image is about to be done: returns the index of its level."""
        level = self.choose_level(image_id, now)
        self._note(level, now)
        self._level = level
        self._waiting.pop(image_id, None)
        self._running[image_id] = now, level
        return level

    def finish(self, image_id: str, now: float, cell_type: str, stage_seconds: Mapping[str, float]) -> None:
        """An image is done; what it took, by stage, tells what it would have taken at every level."""
        begun, level = self._running.pop(image_id)
        other = max(0.0, now - begun - sum(stage_seconds.values()))
        seconds = {**stage_seconds, "other": other}
        done = self.levels[level].stage_work(cell_type)
        size = self._sizes[image_id]
        by_level = [
            sum(spent * work[stage] / done[stage] for stage, spent in seconds.items()) / size
            for work in (quality.stage_work(cell_type) for quality in self.levels)
        ]
        self._known += 1
        self._learn(by_level)
        self._forget_warm_up(by_level)

    def _learn(self, by_level: Sequence[float]) -> None:
        """Another image's cost at each level."""
        for costs, cost in zip(self._costs, by_level, strict=True):
            costs.add(cost)

    def _forget_warm_up(self, by_level: list[float]) -> None:
        """Once each device has done a second image, leave out the first ones: kernels were loaded in their time."""
        if self._known > 2 * self._warm_up:
            return
        self._first.append(by_level)
        if self._known == 2 * self._warm_up:
            self._costs = [LevelCosts() for _ in self.levels]
            for later in self._first[self._warm_up :]:
                self._learn(later)
            self._first.clear()

    def resume(self, image_id: str, now: float) -> None:
        """Charge a running image from now on only: what its device did until now is charged to the one just done."""
        _, level = self._running[image_id]
        self._running[image_id] = now, level

    def drop(self, image_id: str, wait: bool = False) -> None:
        """An image has failed, or will never be begun; `wait`: it is begun again later."""
        self._running.pop(image_id, None)
        self._waiting.pop(image_id, None)
        if wait:
            self._waiting[image_id] = self._sizes[image_id]

    def choose_level(self, image_id: str, now: float) -> int:
        """The mildest level that *need* and *reserve* allow for a waiting image; the lowest, if none is."""
        if not self._known:
            return 0
        lowest = len(self.levels) - 1
        left = self._expected_left(now)
        level = 0
        if self._known >= LEARNING_SHARE * len(self._sizes):
            level = next((k for k in range(lowest + 1) if self._excess(k, left) <= 0), lowest)
        if level > 0 and not self._is_among_lowered(image_id, level, left):
            level -= 1
        while level < lowest and not self._leaves_reserve(image_id, level, now):
            level += 1
        return level

    def forecast(self, level: int) -> Forecast:
        """What all waiting images take at a level."""
        usual = self._costs[level].usual
        total, squares = sum(self._waiting.values()), sum(size * size for size in self._waiting.values())
        return Forecast(usual.mean * total, usual.deviation * math.sqrt(squares + total * total / usual.count))

    def _excess(self, level: int, left: float) -> float:
        """*need*: by how much all waiting images at a level exceed the time left; 0 or less where it does.

        To stay, or to go down no further than needed, it must not be sure to fail; to go up again, it must be likely.
        """
        forecast = self.forecast(level)
        sureness = CONFIDENCE * (1 + FEW_IMAGES / self._known) if level >= self._level else 0.0
        return forecast.mean - sureness * forecast.deviation - left

    def _is_among_lowered(self, image_id: str, level: int, left: float) -> bool:
        """Whether an image is one of the largest, which must be at this level for all others to be one above it."""
        saved = self._costs[level - 1].usual.mean - self._costs[level].usual.mean
        own = self._waiting[image_id]
        larger = sum(size for size in self._waiting.values() if size > own)
        return larger * saved < self._excess(level - 1, left)

    def _leaves_reserve(self, image_id: str, level: int, now: float) -> bool:
        """*reserve*: whether the others can still be done in time after this image at a level, whatever it takes."""
        left = self.deadline - now
        size = self._waiting[image_id]
        own = self._costs[level].worst * size
        running = sum(
            max(0.0, self._costs[k].worst * self._sizes[other] - (now - begun))
            for other, (begun, k) in self._running.items()
        )
        low = self._costs[-1]
        total = sum(self._waiting.values()) - size
        squares = sum(other * other for other in self._waiting.values()) - size * size
        doubt = low.usual.deviation * math.sqrt(max(0.0, squares) + total * total / low.usual.count)
        # The devices do not end together: one may still be at an image when the others have none left.
        uneven = (self.devices - 1) * low.worst * self._largest
        needed = own + running + uneven + RESERVE_FACTOR * (low.cautious_mean * total + CAUTION * doubt)
        return own <= left and needed <= self.devices * left

    def _expected_left(self, now: float) -> float:
        """Seconds of all devices until the deadline, less what the images being done will still take."""
        running = sum(
            max(0.0, self._costs[level].usual.mean * self._sizes[image_id] - (now - begun))
            for image_id, (begun, level) in self._running.items()
        )
        return self.devices * (self.deadline - now) - running

    def _note(self, level: int, now: float) -> None:
        """Log a change of level, and keep the forecast for the summary."""
        done = len(self._sizes) - len(self._waiting) - len(self._running)
        changed = level != self._level
        if not self._known or not (changed or done % self._note_every == 0):
            return
        full, here = self.forecast(0), self.forecast(level)
        left = self.deadline - now
        self.forecasts.append(
            {
                "images_done": done,
                "seconds_left": round(left, 1),
                "level": self.levels[level].name,
                "seconds_at_full": [round(full.mean / self.devices, 1), round(full.deviation / self.devices, 1)],
                "seconds_at_level": [round(here.mean / self.devices, 1), round(here.deviation / self.devices, 1)],
            }
        )
        rest = f"{len(self._waiting)} images to do in {told_time(left)}; in full quality they take {self._told(full)}"
        if level > self._level:
            LOG.warning("time is short: %s; from here on %s (%s)", rest, self.levels[level].name, self._told(here))
        elif changed:
            LOG.info("time is enough again: %s; from here on %s", rest, self.levels[level].name)
        else:
            LOG.info("time: %s; quality: %s", rest, self.levels[level].name)

    def _told(self, forecast: Forecast) -> str:
        """A forecast for people."""
        return f"{told_time(forecast.mean / self.devices)} ± {told_time(forecast.deviation / self.devices)}"


def told_time(seconds: float) -> str:
    """A time for people, in the unit that fits."""
    for unit, length in (("h", 3600), ("min", 60)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
