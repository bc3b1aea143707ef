"""Scores over the thresholds that a tuning tried."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernel.tuning.threshold_grid import ThresholdGrid

#: The grid's axes, in the order of its scores' dimensions.
AXES = ("mask threshold", "mask NMS", "minimum size", "confidence")


@dataclass(frozen=True, eq=False)
class ThresholdSurface:
    """Mean scores of one cell type's images at every point of a grid: float64 of `grid.shape`.

    Raises:
        ValueError: the scores are not of the grid's shape.
    """

    cell_type: str
    grid: ThresholdGrid
    scores: np.ndarray

    def __post_init__(self) -> None:
        if self.scores.shape != self.grid.shape:
            raise ValueError(f"{self.cell_type}: scores of shape {self.scores.shape} for a grid of {self.grid.shape}")

    @property
    def values(self) -> tuple[tuple[float, ...], ...]:
        """The values tried, axis by axis as in AXES."""
        return self.grid.axes

    @property
    def best(self) -> tuple[int, ...] | None:
        """The place of the best point, the first of equally good ones; None: all NaN or empty."""
        if not self.scores.size or np.isnan(self.scores).all():
            return None
        return tuple(int(place) for place in np.unravel_index(np.nanargmax(self.scores), self.scores.shape))

    def line(self, axis: int) -> np.ndarray:
        """(values,) scores along an axis, the other three staying at the best point; empty without one."""
        if self.best is None:
            return np.zeros(0)
        return self.scores[tuple(slice(None) if other == axis else self.best[other] for other in range(len(AXES)))]

    def at_edge(self, axis: int) -> bool:
        """Whether scores still rise at the end of the values tried: a better one may lie outside, but not below 0."""
        line = self.line(axis)
        if self.best is None or len(line) < 2:
            return False
        place = self.best[axis]
        inner = {0: 1, len(line) - 1: len(line) - 2}.get(place)
        return inner is not None and self.values[axis][place] > 0 and bool(line[place] > line[inner])

    def spread(self, axis: int) -> float:
        """What the best and the worst value of an axis differ by, the other three staying: how much it matters."""
        line = self.line(axis)
        return float(np.nanmax(line) - np.nanmin(line)) if len(line) else float("nan")
