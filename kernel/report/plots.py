"""Plots of the report, drawn with matplotlib, light for files and in both themes for the page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kernel.scoring.mask_quality import ImageQuality, precision_recall, summarise_quality
from kernel.scoring.metric import IOU_THRESHOLDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches and dots per inch: 480 pixels wide on the page, legible when a phone shows it at 340, and sharp at twice that.
SIZE = (4.8, 3.3)
DPI = 200


@dataclass(frozen=True)
class Theme:
    """Colours of a plot; `series` are of Okabe and Ito's palette, lighter on dark."""

    background: str
    ink: str
    grid: str
    series: tuple[str, ...]


LIGHT = Theme("#ffffff", "#1c2126", "#c9ced4", ("#0072b2", "#d55e00", "#008060", "#a8518a", "#8a6d00", "#5b6570"))
DARK = Theme("#1b2026", "#e6e9ec", "#454d56", ("#56b4e9", "#f0a04b", "#2fc79a", "#e39ac5", "#f0e442", "#a9b4bf"))
#: Besides colour, what tells series apart.
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)))

Groups = Mapping[str, Sequence[ImageQuality]]  # images by cell type, in the order of the page


@dataclass(frozen=True)
class Plot:
    """A plot to be drawn: `name` is its file's, `alt` says in words what it shows."""

    name: str
    title: str
    alt: str
    draw: Callable[[Axes, Theme], None]

    def render(self, theme: Theme) -> bytes:
        """The plot as PNG."""
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        ink = ("axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "text.color", "xtick.color", "ytick.color")
        settings = dict.fromkeys(ink, theme.ink) | {
            "axes.facecolor": theme.background,
            "figure.facecolor": theme.background,
            "legend.facecolor": theme.background,
            "legend.edgecolor": theme.grid,
            "grid.color": theme.grid,
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
        with rc_context(settings):
            figure = Figure(figsize=SIZE, layout="constrained")
            FigureCanvasAgg(figure)
            axes = figure.subplots()
            axes.set_axisbelow(True)
            self.draw(axes, theme)
            axes.set_title(self.title, fontsize=11)
            stream = io.BytesIO()
            figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
        return stream.getvalue()


@dataclass(frozen=True)
class DrawnPlot:
    """A plot as PNG in both themes."""

    name: str
    alt: str
    light: bytes
    dark: bytes


def draw_plots(plots: Sequence[Plot]) -> list[DrawnPlot]:
    """Draw each plot once in each theme."""
    return [DrawnPlot(plot.name, plot.alt, plot.render(LIGHT), plot.render(DARK)) for plot in plots]


def file_name(*parts: str) -> str:
    """The parts as one name that every file system takes: identifiers and cell types may hold anything."""
    return re.sub(r"[^\w.-]+", "_", "_".join(parts))


def quality_plots(groups: Groups) -> list[Plot]:
    """The plots of a set of images, none for no images."""
    images = [image for group in groups.values() for image in group]
    if not images:
        return []
    return [
        _scores_plot(groups),
        *(_against_iou(name, groups) for name in ("precision", "recall", "average_precision")),
        _curve_plot(groups),
        _counts_plot(groups),
        _boundary_plot(groups),
    ]


def _series(groups: Groups) -> dict[str, Sequence[ImageQuality]]:
    """All images first, then each type, unless there is only one."""
    everything = [image for group in groups.values() for image in group]
    return {"all": everything, **groups} if len(groups) > 1 else dict(groups)


def _style(names: Sequence[str], name: str, theme: Theme) -> dict:
    if name == "all":
        return {"color": theme.ink, "linewidth": 2.2, "linestyle": "-"}
    index = [other for other in names if other != "all"].index(name)
    return {
        "color": theme.series[index % len(theme.series)],
        "linewidth": 1.5,
        "linestyle": LINES[index % len(LINES)],
    }


def _marker(index: int) -> str:
    return MARKERS[index % len(MARKERS)]


def _against_iou(name: str, groups: Groups) -> Plot:
    summaries = {label: summarise_quality(images) for label, images in _series(groups).items()}
    values = {label: getattr(summary, name) for label, summary in summaries.items()}
    label_y = "AP" if name == "average_precision" else name
    title = label_y[0].upper() + label_y[1:]

    def draw(axes: Axes, theme: Theme) -> None:
        for index, (label, line) in enumerate(values.items()):
            axes.plot(
                IOU_THRESHOLDS, line, label=label, marker=_marker(index), markersize=4,
                **_style(list(values), label, theme),
            )  # fmt: skip
        axes.set(xlabel="IoU threshold", ylabel=label_y, ylim=(-0.02, 1.02), xticks=IOU_THRESHOLDS[::2])
        axes.grid()
        axes.legend(fontsize=9, loc="lower left")

    figures = "; ".join(f"{label} {_number(v[0])}, {_number(v[5])}, {_number(v[8])}" for label, v in values.items())
    return Plot(
        name, f"{title} against IoU", f"{title} falls with the IoU threshold. At 0.5, 0.75 and 0.9: {figures}.", draw
    )


def _curve_plot(groups: Groups) -> Plot:
    curves = {
        label: precision_recall(images)
        for label, images in _series(groups).items()
        if sum(image.cells for image in images)
    }
    figures = "; ".join(
        f"{label}: recall ends at {_number(recall[0, -1])} with precision {_number(precision[0, -1])}"
        for label, (precision, recall) in curves.items()
        if precision.shape[1]
    )

    def draw(axes: Axes, theme: Theme) -> None:
        for label, (precision, recall) in curves.items():
            axes.plot(recall[0], precision[0], label=label, **_style(list(curves), label, theme))
        axes.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.grid()
        if curves:
            axes.legend(fontsize=9, loc="lower left")

    alt = f"Precision against recall at an IoU of 0.5, from the surest cell down. {figures or 'Nothing is found'}."
    return Plot("precision_recall", "Precision and recall at IoU 0.5", alt, draw)


def _scores_plot(groups: Groups) -> Plot:
    scores = {label: np.array([image.score for image in images]) for label, images in groups.items()}
    figures = "; ".join(f"{k} {v.min():.2f} to {v.max():.2f}, mean {v.mean():.3f}" for k, v in scores.items())
    return _strip_plot(
        "scores", "Score of each image", "score", scores, f"The score of each image, by type: {figures}."
    )


def _boundary_plot(groups: Groups) -> Plot:
    values = {label: np.concatenate([image.match_boundary_f for image in images]) for label, images in groups.items()}
    figures = "; ".join(
        f"{k} median {np.median(v):.2f}, a tenth below {np.quantile(v, 0.1):.2f}" if len(v) else f"{k} none"
        for k, v in values.items()
    )
    alt = f"The boundary F of each matched cell, by type: {figures}."
    return _strip_plot("boundary_f", "Boundary F of each matched cell", "boundary F", values, alt)


def _strip_plot(name: str, title: str, label: str, values: Mapping[str, np.ndarray], alt: str) -> Plot:
    """A point per value, beside each other by chance (the same chance each time), and the mean as a line."""

    def draw(axes: Axes, theme: Theme) -> None:
        rng = np.random.default_rng(0)
        for index, points in enumerate(values.values()):
            colour = theme.series[index % len(theme.series)]
            size, alpha = (22, 0.8) if len(points) <= 200 else (8, 0.25)
            axes.scatter(
                index + rng.uniform(-0.25, 0.25, len(points)), points,
                s=size, alpha=alpha, color=colour, marker=_marker(index), linewidths=0,
            )  # fmt: skip
            if len(points):
                axes.hlines(points.mean(), index - 0.38, index + 0.38, color=theme.ink, linewidth=2)
        axes.set(ylabel=label, ylim=(-0.02, 1.02), xlim=(-0.6, len(values) - 0.4))
        axes.set_xticks(range(len(values)), list(values))
        axes.grid(axis="y")

    return Plot(name, f"{title} (line: mean)", alt, draw)


def _counts_plot(groups: Groups) -> Plot:
    counts = {
        label: np.array([(image.cells, image.found_cells) for image in images]) for label, images in groups.items()
    }

    def draw(axes: Axes, theme: Theme) -> None:
        highest = max(int(points.max()) for points in counts.values()) * 1.15 + 1
        axes.plot([0, highest], [0, highest], color=theme.ink, linewidth=1)
        for index, (label, points) in enumerate(counts.items()):
            colour = theme.series[index % len(theme.series)]
            axes.scatter(
                points[:, 0], points[:, 1], s=26, alpha=0.8, color=colour, marker=_marker(index), label=label,
                linewidths=0,
            )  # fmt: skip
        # Types differ tenfold in their counts; symlog shows an image without a cell as well.
        axes.set_xscale("symlog", linthresh=10)
        axes.set_yscale("symlog", linthresh=10)
        ticks = [tick for tick in (0, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if tick <= highest]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks, [str(tick) for tick in ticks])
            axis.set_ticks([], minor=True)
        axes.set(xlabel="annotated", ylabel="found", xlim=(-0.5, highest), ylim=(-0.5, highest))
        axes.grid()
        axes.legend(fontsize=9, loc="upper left")

    figures = "; ".join(f"{k} found {v[:, 1].sum()} of {v[:, 0].sum()} annotated" for k, v in counts.items())
    return Plot("counts", "Cells of each image (line: equal)", f"Cells found against cells annotated: {figures}.", draw)


def _number(value: float) -> str:
    return "undefined" if np.isnan(value) else f"{value:.2f}"
