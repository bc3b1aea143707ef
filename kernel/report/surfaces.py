"""Threshold surfaces for people: what the grid search has seen, as plots and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from kernel.report.plots import Plot, Theme, file_name
from kernel.tuning.surface import AXES, ThresholdSurface

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TUNING_CSV = "tuning.csv"


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
