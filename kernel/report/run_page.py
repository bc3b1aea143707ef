"""The page of a run of `predict`: how many cells, of what sizes, and each image with its outlines to look at.

Nothing is scored here, for nothing is annotated. The page holds all it needs, as the report on scored images does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kernel.export.folder import RunResult, image_file
from kernel.export.inputs import InputImage
from kernel.files import whole_file
from kernel.images.pixel_size import PixelSize
from kernel.log import printable_name
from kernel.report.html_parts import number_cell, plot_figures, plural, show_number, show_percent, sortable_head, table
from kernel.report.html_parts import tiles as tiles_of
from kernel.report.plots import Plot, Theme, draw_plots
from kernel.report.shell import html_page

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of so many images the picture is on the page: of about 0.2 MB each. Those of the others lie beside it.
SHOWN_IMAGES = 100


@dataclass(frozen=True)
class RunImage:
    """An image of the run, and what was found in it.

    Attributes:
        name: as the tables call it.
        areas: of each cell, in pixels.
        cell_type: by the vote of all that was detected; None: nothing was, or a failure.
        confluence: the share of the pixels that lie in cells, also in those that are left out.
        pixel_size_um: micrometres a pixel; None: not known.
        picture: its SVG, of `kernel.export.svg`; None: there is none.
        failure: why nothing is known of it; None: it was segmented.
    """

    name: str
    areas: Sequence[int] = ()
    cell_type: str | None = None
    confluence: float = 0.0
    pixel_size_um: float | None = None
    picture: Path | None = None
    failure: str | None = None

    @property
    def diameters(self) -> np.ndarray:
        """Of circles of the cells' areas, in pixels."""
        return np.sqrt(np.asarray(self.areas, dtype=np.float64) * (4 / math.pi))


def run_images(images: Sequence[InputImage], result: RunResult, out: Path) -> list[RunImage]:
    """The images of a run that wrote its pictures (`report` among its exports) into the folder `out`."""
    told = []
    for image in images:
        name = printable_name(image.name)
        record = result.records.get(image.name)
        if record is None:
            told.append(RunImage(name, failure=printable_name(result.failed[image.name].reason)))
            continue
        pixel = PixelSize(record["pixel"][0], record["pixel"][1], "").side_um if record["pixel"] else None
        picture = image_file("report", image.name, out)
        told.append(RunImage(name, record["areas"], record["cell_type"], record["confluence"], pixel, picture))
    return told


HEADINGS = (
    ("image", "text"), ("cells", "number"), ("cell type", "text"), ("confluence", "number"),
    ("median diameter", "number"), ("smallest", "number"), ("largest", "number"), ("failure", "text"),
)  # fmt: skip


def write_run_page(page: Path, title: str, images: Sequence[RunImage]) -> None:
    """Write the page of these images, which may be none.

    Raises:
        OSError: a picture cannot be read, or the page not written.
    """
    footer = (
        "This page is complete in itself. The same figures stand in <code>images.csv</code>, those of single cells in "
        "<code>cells.csv</code>, if that was asked for."
    )
    with whole_file(page) as path:
        path.write_text(html_page(title, _subtitle(images), _sections(images), footer), encoding="utf-8", newline="\n")


def _subtitle(images: Sequence[RunImage]) -> str:
    failed = sum(image.failure is not None for image in images)
    cells = sum(len(image.areas) for image in images)
    return f"{plural(len(images), 'image')}, {plural(cells, 'cell')}" + (
        f"; {plural(failed, 'image')} could not be segmented" if failed else ""
    )


def _sections(images: Sequence[RunImage]) -> Iterator[tuple[str, str, str]]:
    unit, scale = _unit(images)
    yield "figures", "Figures", _tiles(images, unit, scale) if images else ""
    yield "sizes", "Sizes and counts", plot_figures(draw_plots(_plots(images, unit, scale)))
    yield "images", "Every image", _image_table(images, unit, scale) if images else ""
    yield "pictures", "Pictures", _pictures(images)


def _unit(images: Sequence[RunImage]) -> tuple[str, list[float]]:
    """What lengths are told in, and of each image the factor from pixels: micrometres where all images have them."""
    sizes = [image.pixel_size_um for image in images if image.failure is None]
    if sizes and all(size is not None for size in sizes):
        return "µm", [image.pixel_size_um or 1.0 for image in images]
    return "pixels", [1.0] * len(images)


def _tiles(images: Sequence[RunImage], unit: str, scale: Sequence[float]) -> str:
    done = [image for image in images if image.failure is None]
    counts = [len(image.areas) for image in done]
    diameters = np.concatenate([image.diameters * factor for image, factor in zip(images, scale, strict=True)])
    low, middle, high = np.percentile(diameters, (10, 50, 90)) if len(diameters) else [math.nan] * 3
    types = Counter(image.cell_type for image in done if image.areas and image.cell_type)
    named = ", ".join(f"{escape(name)}: {count}" for name, count in sorted(types.items()))
    entries = [
        ("Images", f"{len(done)}", f"{plural(len(images) - len(done), 'failure')}"),
        ("Cells", f"{sum(counts)}", f"median {show_number(float(np.median(counts)), 0)} an image" if done else ""),
        ("Diameter", f"{show_number(middle, 1)}", f"{unit}; 80 % from {show_number(low, 1)} to {show_number(high, 1)}"),
        ("Confluence", show_percent(_mean([image.confluence for image in done])), "mean of the images"),
    ]
    return tiles_of([*entries, ("Cell type", f"{len(types)}", named)] if named else entries)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _plots(images: Sequence[RunImage], unit: str, scale: Sequence[float]) -> list[Plot]:
    pairs = [(image, factor) for image, factor in zip(images, scale, strict=True) if image.areas]
    if not pairs:
        return []
    diameters = np.concatenate([image.diameters * factor for image, factor in pairs])
    counts = [len(image.areas) for image in images if image.failure is None]
    return [
        _histogram("diameters", "Diameters of cells", f"diameter of a circle of the same area ({unit})", diameters),
        _histogram("counts", "Cells of an image", "cells", np.asarray(counts, dtype=np.float64), "images"),
    ]


def _histogram(name: str, title: str, along: str, values: np.ndarray, counted: str = "cells") -> Plot:
    def draw(axes: Axes, theme: Theme) -> None:
        axes.hist(values, bins=min(40, max(5, round(math.sqrt(len(values))))), color=theme.series[0])
        axes.set_xlabel(along)
        axes.set_ylabel(counted)
        axes.grid(axis="y")

    low, high = values.min(), values.max()
    alt = f"Histogram: {title.lower()}, {len(values)} from {low:.1f} to {high:.1f}, median {np.median(values):.1f}"
    return Plot(name, title, alt, draw)


def _image_table(images: Sequence[RunImage], unit: str, scale: Sequence[float]) -> str:
    shown = _shown(images)
    rows = []
    for number, (image, factor) in enumerate(zip(images, scale, strict=True), start=1):
        name = escape(image.name)
        link = f'<a href="#image-{number}">{name}</a>' if number in shown else name
        diameters = image.diameters * factor
        some = len(diameters) > 0
        figures = (
            (float(len(diameters)) if image.failure is None else math.nan, 0),
            (100 * image.confluence if image.failure is None else math.nan, 1),
            (float(np.median(diameters)) if some else math.nan, 1),
            (float(diameters.min()) if some else math.nan, 1),
            (float(diameters.max()) if some else math.nan, 1),
        )
        count, *others = (number_cell(value, digits) for value, digits in figures)
        mark = "text wrong" if image.failure is not None else "text"
        rows.append(
            f'<tr id="row-{number}" tabindex="-1"><th scope="row">{link}</th>{count}'
            f'<td class="text">{escape(image.cell_type or "")}</td>{"".join(others)}'
            f'<td class="{mark}">{escape(image.failure or "")}</td></tr>'
        )
    caption = (
        "In the order of the run; a click on a heading sorts. Confluence in percent, of all cells found, with "
        "those that --exclude-edges and --min-area leave out; diameters, of circles of the cells' areas, in "
        f"{unit}. Linked images are shown below."
    )
    return table("every-image", caption, sortable_head(HEADINGS, ""), rows, "sortable", "scroll tall")


def _shown(images: Sequence[RunImage]) -> list[int]:
    """The numbers, from 1, of the images whose pictures are on the page."""
    return [number for number, image in enumerate(images, start=1) if image.picture is not None][:SHOWN_IMAGES]


def _pictures(images: Sequence[RunImage]) -> str:
    shown = _shown(images)
    if not shown:
        return ""
    left = sum(image.picture is not None for image in images) - len(shown)
    more = f"<p>The first {len(shown)} images; {left} more lie in the folder <code>report</code>.</p>" if left else ""
    articles = "".join(_article(number, images[number - 1]) for number in shown)
    return (
        "<fieldset><legend>Shown</legend>"
        '<label><input type="checkbox" id="show-found" checked>outlines of cells</label>'
        '<label><input type="checkbox" id="enlarge">enlarge the pictures (they scroll)</label></fieldset>'
        '<p class="soft">A pointer held over a cell tells its number, area, score and type.</p>'
        f'{more}<div class="pair">{articles}</div>'
    )


def _article(number: int, image: RunImage) -> str:
    assert image.picture is not None
    name = escape(image.name)
    told = plural(len(image.areas), "cell") + (f", {escape(image.cell_type)}" if image.cell_type else "")
    drawn = image.picture.read_text(encoding="utf-8")
    return (
        f'<article id="image-{number}" tabindex="-1" aria-labelledby="image-{number}-heading">'
        f'<h3 id="image-{number}-heading">{name}</h3>'
        f'<p>{told}. <a href="#row-{number}">Row in the table<span class="unseen">: {name}</span></a></p>'
        f'<div class="view" tabindex="0" role="region" aria-label="Picture of {name}">'
        f'<div class="layers whole">{drawn}</div></div></article>\n'
    )
