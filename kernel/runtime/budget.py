"""Time budget: the quality level of each image, chosen so that all images are done by the deadline.

The images done so far forecast what those still waiting will take. An image gets the best quality level that two rules
both allow:

- *forecast*: quality is lowered only where the forecast exceeds the time left, and by more than its uncertainty. It is
  raised again as soon as the forecast fits.
- *reserve*: however long this image and the running ones take, the time left must still suffice for all others at the
  lowest quality level, estimated pessimistically.

The first rule keeps the quality, the second the deadline. No clock is read here: callers pass the time, so that tests
simulate hours in milliseconds.

An image far larger than most, a *giant*, does not count for the others: it would lower all of them, and its header may
lie. Giants come last, and share what time is left then.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernel.ensemble.quality_levels import QualityLevel
from kernel.log import LOG
from kernel.runtime.image_costs import Forecast, ImageCosts, LevelCosts, image_size
from kernel.settings import COMPETITION_SHAPE

#: *forecast*: quality stays full until this share of the images is done, since the first ones are often slow.
LEARNING_SHARE = 0.1
#: *forecast*: it must exceed the time left by this many standard deviations, and by more while few images are done:
#: after `FEW_IMAGES` by twice as many.
CONFIDENCE = 1.0
FEW_IMAGES = 8.0
#: *reserve*: this many standard deviations are added to the mean, and the sum is multiplied by a margin: costs at the
#: lowest quality level are mostly inferred from images done at others.
CAUTION = 2.0
RESERVE_FACTOR = 1.5
#: A running image's process hangs where it takes longer than this, and than so many times the costliest image before,
#: for its size. One that does not fit onto its GPU after all is done on the CPU, and may well take fifty times as long.
#: Where none was done before, it is so long for each image of the competition that it is as large as: one core needs a
#: few minutes. Between the two times it is *late*: it may hang.
HANG_SECONDS = 1800.0
HANG_FACTOR = 100.0
USUAL_SIZE = image_size(COMPETITION_SHAPE)
#: An image is a giant if it is so many times as large as the median.
GIANT_FACTOR = 16.0
#: Forecasts are logged at each change of the quality level, and about this many times besides.
LOGGED_FORECASTS = 20


class TimeBudget:
    """Chooses the quality level of each image.

    An image's cell type is not known before it is done, so the images done stand for those to come: their spread, over
    types and numbers of cells, is the forecast's uncertainty. Sizes are known beforehand, and costs are taken as
    proportional to them. Where only some images must be lowered, it is the largest ones: then the fewest are.

    Args:
        levels: the quality levels, the best first. Elsewhere here, `quality` is the index of one.
        sizes: the size of every image by id, for example in pixels.
        deadline: when all images must be done, in seconds of the callers' clock.
        devices: how many images are done at a time; may be set anew while the run goes on.
    """

    def __init__(self, levels: Sequence[QualityLevel], sizes: Mapping[str, float], deadline: float, devices: int = 1):
        self.levels = tuple(levels)
        self.deadline = deadline
        self.devices = devices
        self.forecasts: list[dict[str, Any]] = []  # for summary.json
        self._sizes = dict(sizes)
        self._waiting = dict(sizes)
        self._running: dict[str, tuple[float, int]] = {}  # when it was begun, its quality level
        self._costs = ImageCosts(len(self.levels), devices)
        typical = statistics.median(self._sizes.values()) if self._sizes else 0.0
        self._giants = {image_id for image_id, size in self._sizes.items() if size > GIANT_FACTOR * typical}
        self._largest = max((size for each, size in self._sizes.items() if each not in self._giants), default=0.0)
        self._current = 0  # the quality level of the image begun last
        self._log_every = max(1, len(self._sizes) // LOGGED_FORECASTS)

    def giants_last(self, paths: Sequence[Path]) -> list[Path]:
        """Paths of the images in the order in which to begin them: as given, but giants after all others."""
        return sorted(paths, key=lambda path: path.stem in self._giants)

    def begin(self, image_id: str, now: float) -> int:
        """Take note that an image is begun now, and return its quality level."""
        quality = self.choose_level(image_id, now)
        self._log(quality, now)
        self._current = quality
        self._waiting.pop(image_id, None)
        self._running[image_id] = now, quality
        return quality

    def finish(self, image_id: str, now: float, cell_type: str, stage_seconds: Mapping[str, float]) -> None:
        """Take note that an image is done, and infer its cost at every quality level from its seconds per stage."""
        begun, quality = self._running.pop(image_id)
        other = max(0.0, now - begun - sum(stage_seconds.values()))
        seconds = {**stage_seconds, "other": other}
        work_done = self.levels[quality].stage_work(cell_type)
        size = self._sizes[image_id]
        self._costs.add(
            [
                sum(spent * work[stage] / work_done[stage] for stage, spent in seconds.items()) / size
                for work in (level.stage_work(cell_type) for level in self.levels)
            ]
        )

    def resume(self, image_id: str, now: float) -> None:
        """Count a running image's time from now on: until now its device was also at the image before."""
        _, quality = self._running[image_id]
        self._running[image_id] = now, quality

    def drop(self, image_id: str, wait: bool = False) -> None:
        """Take note that an image has failed, or will never be begun; with `wait`, that it is to be begun again."""
        self._running.pop(image_id, None)
        self._waiting.pop(image_id, None)
        if wait:
            self._waiting[image_id] = self._sizes[image_id]

    def is_late(self, image_id: str, now: float) -> bool:
        """Whether a running image takes longer than any before it, for its size: its process may hang."""
        return self.is_overdue(image_id, now, 1.0)

    def is_overdue(self, image_id: str, now: float, factor: float = HANG_FACTOR) -> bool:
        """Whether a running image takes so much longer than any before it that its process must hang.

        A first image is judged by its size.
        """
        if image_id not in self._running:
            return False
        begun, quality = self._running[image_id]
        longest = HANG_SECONDS / USUAL_SIZE
        if self._costs.images:
            longest = factor * self._costs[quality].worst
        return now - begun > max(HANG_SECONDS, longest * self._sizes[image_id])

    def choose_level(self, image_id: str, now: float) -> int:
        """The best quality level that both rules allow for a waiting image; the lowest where they allow none."""
        if not self._costs.images:
            return 0
        lowest = len(self.levels) - 1
        left = self._expected_left(now)
        sizes = self._waiting_with(image_id)
        quality = 0
        if self._costs.images >= LEARNING_SHARE * len(self._sizes):
            quality = next((k for k in range(lowest + 1) if self._excess(sizes, k, left) <= 0), lowest)
        if quality > 0 and not self._is_among_lowered(image_id, sizes, quality, left):
            quality -= 1
        while quality < lowest and not self._leaves_reserve(image_id, sizes, quality, now):
            quality += 1
        return quality

    def forecast(self, quality: int) -> Forecast:
        """What the waiting images take at a quality level; giants count when they alone are left."""
        return self._forecast(self._waiting_with(), quality)

    def _waiting_with(self, image_id: str | None = None) -> Mapping[str, float]:
        """The sizes of the waiting images that count for an image: giants do for each other, and where none but giants
        waits."""
        others = {each: size for each, size in self._waiting.items() if each not in self._giants}
        return self._waiting if image_id in self._giants or not others else others

    def _forecast(self, sizes: Mapping[str, float], quality: int) -> Forecast:
        return self._costs[quality].usual.forecast(sizes.values())

    def _excess(self, sizes: Mapping[str, float], quality: int, left: float) -> float:
        """*forecast*: the seconds by which images of these sizes exceed the time left at a quality level.

        They fit at 0 or less.

        A quality level better than the current one fits where the mean does. The current one and those below fit unless
        the forecast exceeds the time left by more than its uncertainty. So the quality does not go up and down.
        """
        forecast = self._forecast(sizes, quality)
        deviations = CONFIDENCE * (1 + FEW_IMAGES / self._costs.images) if quality >= self._current else 0.0
        return forecast.mean - deviations * forecast.deviation - left

    def _is_among_lowered(self, image_id: str, sizes: Mapping[str, float], quality: int, left: float) -> bool:
        """Whether lowering the larger images to this quality level is not enough, so that this one must be as well."""
        saved = self._costs[quality - 1].usual.mean - self._costs[quality].usual.mean
        own = self._waiting[image_id]
        larger = sum(size for size in sizes.values() if size > own)
        return larger * saved < self._excess(sizes, quality - 1, left)

    def _leaves_reserve(self, image_id: str, sizes: Mapping[str, float], quality: int, now: float) -> bool:
        """*reserve*: whether all others can still be done in time after this image, however long it takes."""
        left = self.deadline - now
        own = self._costs[quality].worst * self._waiting[image_id]
        running = self._running_seconds(now, lambda costs: costs.worst)
        low = self._costs[-1]
        others = [size for other, size in sizes.items() if other != image_id]
        cautious = low.cautious_mean * sum(others) + CAUTION * low.usual.forecast(others).deviation
        # Devices do not end together: while one is at its last image, the others may have none left.
        largest = max([self._largest, *(self._sizes[each] for each in self._running)])
        idle = (self.devices - 1) * low.worst * largest
        return own <= left and own + running + idle + RESERVE_FACTOR * cautious <= self.devices * left

    def _expected_left(self, now: float) -> float:
        """The seconds of all devices until the deadline, less what the running images are expected to take."""
        running = self._running_seconds(now, lambda costs: costs.usual.mean)
        return self.devices * (self.deadline - now) - running

    def _running_seconds(self, now: float, cost: Callable[[LevelCosts], float]) -> float:
        """What the running images still take, if each has this cost at its quality level."""
        return sum(
            max(0.0, cost(self._costs[quality]) * self._sizes[image_id] - (now - begun))
            for image_id, (begun, quality) in self._running.items()
        )

    def _log(self, quality: int, now: float) -> None:
        """Log the forecast at a change of the quality level and now and then, and keep it for summary.json."""
        done = len(self._sizes) - len(self._waiting) - len(self._running)
        changed = quality != self._current
        if not self._costs.images or not (changed or done % self._log_every == 0):
            return
        full, here = self.forecast(0), self.forecast(quality)
        left = self.deadline - now
        self.forecasts.append(
            {
                "images_done": done,
                "seconds_left": round(left, 1),
                "level": self.levels[quality].name,
                "seconds_at_full": [round(full.mean / self.devices, 1), round(full.deviation / self.devices, 1)],
                "seconds_at_level": [round(here.mean / self.devices, 1), round(here.deviation / self.devices, 1)],
            }
        )
        rest = f"{len(self._waiting)} images to do in {duration(left)}; in full quality they take {self._text(full)}"
        if quality > self._current:
            LOG.warning("time is short: %s; from here on %s (%s)", rest, self.levels[quality].name, self._text(here))
        elif changed:
            LOG.info("time is enough again: %s; from here on %s", rest, self.levels[quality].name)
        else:
            LOG.info("time: %s; quality: %s", rest, self.levels[quality].name)

    def _text(self, forecast: Forecast) -> str:
        """A forecast for people, shared over the devices."""
        return f"{duration(forecast.mean / self.devices)} ± {duration(forecast.deviation / self.devices)}"


def duration(seconds: float) -> str:
    """A time for people, in the unit that fits."""
    for unit, length in (("h", 3600), ("min", 60)):
        if abs(seconds) >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
