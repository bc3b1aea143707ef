"""What images cost, in seconds per unit of image size, and what others will take by that.

No single image may spoil what is known of the others: a tiny one, whose time is all overhead, or one that a stall has
held up.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

#: An image weighs half as much as one that came this many images later: devices slow down, and images that are alike
#: come one after another.
HALF_LIFE_IMAGES = 20.0
#: The same for the mean of the last few images.
RECENT_HALF_LIFE = 3.0
#: A prior for the first images: a standard deviation of half the mean, weighted as if two images had shown it.
PRIOR_VARIATION = 0.5
PRIOR_IMAGES = 2.0
#: What every image takes whatever its size (reading, starting each network), as so many pixels: about a sixth of an
#: image of the competition.
FIXED_PIXELS = 256 * 256
#: A cost counts at most as so many times the highest of the other late ones, once there are a few.
OUTLIER_FACTOR = 10.0
OUTLIER_AFTER = 3
#: The worst cost is that of this many last images, times a margin.
WORST_OF = 40
WORST_FACTOR = 1.25


def image_size(shape: tuple[int, int]) -> float:
    """The size of an image (H, W) to which its cost is proportional."""
    return float(FIXED_PIXELS + shape[0] * shape[1])


@dataclass(frozen=True)
class Forecast:
    """What some images take at one quality level, in seconds of one device."""

    mean: float
    deviation: float  # one standard deviation: images differ, and their mean is an estimate


class MovingAverage:
    """Exponentially weighted mean and standard deviation.

    Args:
        half_life: a value weighs half as much as one that came this many values later.
    """

    def __init__(self, half_life: float):
        self.decay = 0.5 ** (1 / half_life)
        self.weight = self.squared_weight = self.total = self.squares = 0.0

    def add(self, value: float) -> None:
        """Add the next value; all earlier ones lose weight."""
        self.weight = self.decay * self.weight + 1
        self.squared_weight = self.decay**2 * self.squared_weight + 1
        self.total = self.decay * self.total + value
        self.squares = self.decay * self.squares + value * value

    @property
    def count(self) -> float:
        """The effective sample size: how many values of equal weight would tell as much."""
        return self.weight**2 / self.squared_weight

    @property
    def mean(self) -> float:
        """The weighted mean."""
        return self.total / self.weight

    @property
    def deviation(self) -> float:
        """The standard deviation of the values, drawn towards the prior while there are few."""
        variance = max(0.0, self.squares / self.weight - self.mean**2)
        prior = PRIOR_IMAGES * (PRIOR_VARIATION * self.mean) ** 2
        return math.sqrt((self.count * variance + prior) / (self.count + PRIOR_IMAGES))

    def forecast(self, sizes: Collection[float]) -> Forecast:
        """What images of these sizes take, where the values are costs."""
        total, squares = sum(sizes), sum(size * size for size in sizes)
        return Forecast(self.mean * total, self.deviation * math.sqrt(squares + total * total / self.count))


class LevelCosts:
    """What images cost at one quality level; for an image done at another, what it would have cost."""

    def __init__(self) -> None:
        self.usual = MovingAverage(HALF_LIFE_IMAGES)
        self.recent = MovingAverage(RECENT_HALF_LIFE)
        self._last: deque[float] = deque(maxlen=WORST_OF)

    def add(self, cost: float) -> None:
        """Add another image's cost. One that is far above all late ones counts in full when a second one is."""
        counted = min(cost, OUTLIER_FACTOR * max(self._last)) if len(self._last) >= OUTLIER_AFTER else cost
        self.usual.add(counted)
        self.recent.add(counted)
        self._last.append(cost)

    @property
    def cautious_mean(self) -> float:
        """The mean, or that of the last few images where it is higher."""
        return max(self.usual.mean, self.recent.mean)

    @property
    def worst(self) -> float:
        """The highest cost to expect of a single image."""
        *others, highest = sorted(self._last)
        if len(others) >= OUTLIER_AFTER:
            highest = min(highest, OUTLIER_FACTOR * others[-1])
        return WORST_FACTOR * highest


class ImageCosts:
    """What images cost at every quality level.

    The first image on each device is slow, for kernels are loaded meanwhile. So the images measured first count only
    until as many others are measured.

    Args:
        level_count: the number of quality levels.
        devices: how many images are the first of their device.
    """

    def __init__(self, level_count: int, devices: int):
        self.images = 0  # measured so far, the first ones included
        self._levels = [LevelCosts() for _ in range(level_count)]
        self._warm_up = devices
        self._early: list[Sequence[float]] = []  # the costs of the first 2 * devices images, by quality level

    def __getitem__(self, quality: int) -> LevelCosts:
        return self._levels[quality]

    def add(self, by_level: Sequence[float]) -> None:
        """Add another image's cost at each quality level."""
        self.images += 1
        self._add(by_level)
        if self.images > 2 * self._warm_up:
            return
        self._early.append(by_level)
        if self.images == 2 * self._warm_up:
            self._levels = [LevelCosts() for _ in self._levels]
            for later in self._early[self._warm_up :]:
                self._add(later)

    def _add(self, by_level: Sequence[float]) -> None:
        for costs, cost in zip(self._levels, by_level, strict=True):
            costs.add(cost)
