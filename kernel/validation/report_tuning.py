"""Threshold surfaces for people: what the grid search has seen, as plots and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from kernel.validation.report_plots import Plot, Theme, file_name
from kernel.validation.tuning import ThresholdGrid

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The grid's axes, in the order of its scores' dimensions.
AXES = ("mask threshold", "mask NMS", "minimum size", "confidence")
TUNING_CSV = "tuning.csv"


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
        grid = self.grid
        return grid.mask_thresholds, grid.nms_thresholds, grid.min_sizes, grid.confidences

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


def surface_plots(surfaces: Sequence[ThresholdSurface]) -> list[Plot]:
    """Per cell type two cuts through the best point; none for a type without a score."""
    return [
        _cut_plot(surface, surface.best, y, x)
        for surface in surfaces
        if surface.best is not None
        for y, x in ((0, 3), (1, 2))
    ]


def _cut_plot(surface: ThresholdSurface, best: tuple[int, ...], y: int, x: int) -> Plot:
    """Scores over axes y < x, the other two at the best point."""
    cut = surface.scores[tuple(slice(None) if axis in (y, x) else best[axis] for axis in range(len(AXES)))]
    fixed = ", ".join(f"{AXES[axis]} {surface.values[axis][best[axis]]:g}" for axis in range(4) if axis not in (x, y))

    def draw(axes: Axes, theme: Theme) -> None:
        # Cells of equal size whatever the steps; cividis looks alike to people of all kinds of colour vision.
        shown = axes.imshow(cut, origin="lower", aspect="auto", cmap="cividis", interpolation="nearest")
        axes.plot(best[x], best[y], marker="*", markersize=15, color="#ffffff", markeredgecolor="#000000")
        for axis, place, ticks in ((axes.xaxis, x, 8), (axes.yaxis, y, 8)):
            values = surface.values[place]
            shown_places = range(0, len(values), -(-len(values) // ticks))
            axis.set_ticks(list(shown_places), [f"{values[index]:g}" for index in shown_places])
        axes.set(xlabel=f"{AXES[x]}   (at {fixed})", ylabel=AXES[y])
        axes.xaxis.label.set_fontsize(9)
        bar = axes.figure.colorbar(shown, ax=axes, label="mean score")
        bar.ax.tick_params(color=theme.ink)

    place = f"{AXES[x]} {surface.values[x][best[x]]:g} and {AXES[y]} {surface.values[y][best[y]]:g}"
    alt = (
        f"Mean score of {surface.cell_type} over {AXES[x]} and {AXES[y]}, {np.nanmin(cut):.3f} to {np.nanmax(cut):.3f},"
        f" at {fixed}; the best, marked by a star, is at {place}."
    )
    name = file_name("tuning", surface.cell_type, AXES[y], AXES[x])
    return Plot(name, f"{surface.cell_type} (star: best)", alt, draw)


def tuning_rows(surfaces: Sequence[ThresholdSurface]) -> Iterator[list[str]]:
    """The table of all points: a header, then a row per point, `score` empty where there is none."""
    yield ["cell_type", *(name.replace(" ", "_") for name in AXES), "score"]
    for surface in surfaces:
        for point, score in zip(product(*surface.values), surface.scores.ravel().tolist(), strict=True):
            yield [surface.cell_type, *(f"{value:g}" for value in point), "" if np.isnan(score) else f"{score:.6f}"]
