"""The report's page: one HTML file that needs nothing else, neither network nor neighbours.

Styles, the few lines of script, plots and pictures are in it; a content security policy forbids whatever is not.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from kernel.validation.quality import BOUNDARY_TOLERANCE, ImageQuality, QualitySummary, summarise_quality
from kernel.validation.report_pictures import OUTLINE_KINDS, Example, to_jpeg, to_svg
from kernel.validation.report_plots import DrawnPlot
from kernel.validation.report_tuning import AXES, ThresholdSurface


@dataclass(frozen=True)
class ImageRecord:
    """What the report keeps of every image."""

    number: int  # from 1, in the order in which the images came
    image_id: str
    cell_type: str  # the true one
    found_type: str | None  # None where nothing was found
    seconds: float
    quality: ImageQuality


@dataclass(frozen=True, eq=False)
class ReportData:
    """All that the page shows.

    Attributes:
        title: of the page.
        records: every image, types in the order of the page.
        examples: the pictures kept, by the number of the record.
        surfaces: of the tuning, where there was one.
        plots: of the images' figures.
        cuts: through the surfaces.
    """

    title: str
    records: Sequence[ImageRecord]
    examples: Mapping[int, Example]
    surfaces: Sequence[ThresholdSurface] = ()
    plots: Sequence[DrawnPlot] = ()
    cuts: Sequence[DrawnPlot] = ()

    def by_type(self) -> dict[str, list[ImageRecord]]:
        """The records of each cell type."""
        groups: dict[str, list[ImageRecord]] = {}
        for record in self.records:
            groups.setdefault(record.cell_type, []).append(record)
        return groups

    def quality_by_type(self) -> dict[str, list[ImageQuality]]:
        """Their figures alone."""
        return {cell_type: [record.quality for record in group] for cell_type, group in self.by_type().items()}

    def summaries(self) -> dict[str, QualitySummary]:
        """Of "all" images, then of each type."""
        everything = [record.quality for record in self.records]
        by_type = {cell_type: summarise_quality(group) for cell_type, group in self.quality_by_type().items()}
        return {"all": summarise_quality(everything), **by_type}

    def confusion(self) -> tuple[list[str], dict[str, list[int]]]:
        """Found types, then per true type the images found as each; "nothing" where no cell was."""
        found = dict.fromkeys(self.by_type()) | dict.fromkeys(r.found_type for r in self.records if r.found_type)
        columns = [*found, "nothing"]
        counts = {cell_type: [0] * len(columns) for cell_type in self.by_type()}
        for record in self.records:
            counts[record.cell_type][columns.index(record.found_type or "nothing")] += 1
        return columns, counts


def render_page(data: ReportData) -> str:
    """The page as HTML text."""
    style = _beside("report.css")
    script = _beside("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    sections = [(name, heading, body) for name, heading, body in _sections(data) if body]
    links = "".join(f'<li><a href="#{name}">{heading}</a></li>' for name, heading, _ in sections)
    parts = "\n".join(
        f'<section id="{name}" aria-labelledby="{name}-heading"><h2 id="{name}-heading">{heading}</h2>{body}</section>'
        for name, heading, body in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(data.title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header>
<h1>{escape(data.title)}</h1>
<p class="soft">{_subtitle(data)}</p>
<nav aria-label="Contents"><ul>{links}</ul></nav>
</header>
<main id="main" tabindex="-1">
{parts}
</main>
<footer><p>This page is complete in itself. The folder <code>report</code> beside it holds its tables as CSV and its
plots and pictures as PNG.</p></footer>
<script>{script}</script>
</body>
</html>
"""


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _subtitle(data: ReportData) -> str:
    if not data.records:
        return "No image was scored." if not data.surfaces else "Thresholds only: no image was scored."
    types = ", ".join(f"{len(group)} {escape(cell_type)}" for cell_type, group in data.by_type().items())
    return f"{_plural(len(data.records), 'annotated image')}: {types}"


def _sections(data: ReportData) -> Iterator[tuple[str, str, str]]:
    yield "scores", "Scores", _scores(data) if data.records else ""
    yield "curves", "Precision, recall, counts, boundaries", _plots(data.plots) if data.plots else ""
    yield "types", "Cell types, true and found", _confusion(data) if data.records else ""
    yield "thresholds", "Thresholds", _thresholds(data) if data.surfaces else ""
    yield "images", "Every image", _images(data) if data.records else ""
    yield "pictures", "Worst and best images", _pictures(data) if data.examples else ""
    yield "definitions", "What the figures mean", _definitions()


# Scores


SUMMARY_HEADINGS = (
    "images", "score", "precision", "recall", "AP 0.5", "AP 0.75", "AP", "annotated", "found", "count error",
    "relative", "bias", "mean IoU", "boundary F",
)  # fmt: skip


def _scores(data: ReportData) -> str:
    summaries = data.summaries()
    overall = summaries["all"]
    right = sum(record.found_type == record.cell_type for record in data.records)
    seconds = sum(record.seconds for record in data.records) / len(data.records)
    worst = min(data.records, key=lambda record: record.quality.score)
    tiles = (
        ("Score", _figure(overall.score, 4), f"mean of {_plural(overall.images, 'image')}"),
        ("AP at IoU 0.5", _figure(overall.average_precision[0]), f"at 0.75: {_figure(overall.average_precision[5])}"),
        ("Cells found", f"{overall.found_cells}", f"of {overall.cells} annotated"),
        ("Boundary F", _figure(overall.boundary_f), f"within {BOUNDARY_TOLERANCE:g} pixels"),
        ("Cell type right", f"{right} of {len(data.records)}", "images"),
        ("Time", f"{seconds:.1f} s", "per image"),
        ("Worst image", _figure(worst.quality.score), _image_link(data, worst)),
    )
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in tiles)
    rows = []
    for name, s in summaries.items():
        if name == "all" and len(summaries) == 2:  # one type: the row would say the same twice
            continue
        numbers = (
            s.images, _figure(s.score, 4), _figure(s.precision[0]), _figure(s.recall[0]),
            _figure(s.average_precision[0]), _figure(s.average_precision[5]), _figure(s.average_precision.mean()),
            s.cells, s.found_cells, _figure(s.count_error, 1), _percent(s.relative_count_error),
            _figure(s.count_bias, 1, sign=True), _figure(s.mean_iou), _figure(s.boundary_f),
        )  # fmt: skip
        cells = "".join(f"<td>{number}</td>" for number in numbers)
        mark = ' class="all"' if name == "all" else ""
        rows.append(f'<tr{mark}><th scope="row">{escape(name)}</th>{cells}</tr>')
    head = '<th scope="col" class="text">cell type</th>' + "".join(
        f'<th scope="col">{name}</th>' for name in SUMMARY_HEADINGS
    )
    caption = "By cell type. Precision and recall at an IoU of 0.5; AP without a number is the mean from 0.5 to 0.95."
    return f'<dl class="tiles">{shown}</dl>' + _table("by-type", caption, head, rows)


def _table(name: str, caption: str, head: str, rows: Sequence[str], kind: str = "", scroll: str = "scroll") -> str:
    """A table in a box of its own that scrolls, also by keyboard; the caption stays where it is."""
    return (
        f'<p class="caption" id="{name}-caption">{caption}</p>'
        f'<div class="{scroll}" role="region" tabindex="0" aria-labelledby="{name}-caption">'
        f'<table class="{kind}" aria-labelledby="{name}-caption">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


# Plots


def _plots(plots: Sequence[DrawnPlot]) -> str:
    return '<div class="plots">' + "".join(f"<figure>{_picture(plot)}</figure>\n" for plot in plots) + "</div>"


def _picture(plot: DrawnPlot) -> str:
    light, dark = (_data_uri("image/png", content) for content in (plot.light, plot.dark))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(plot.alt)}" width="960" height="660"></picture>'
    )


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


# Cell types


def _confusion(data: ReportData) -> str:
    columns, counts = data.confusion()
    rows = []
    for cell_type, numbers in counts.items():
        cells = []
        for found, number in zip(columns, numbers, strict=True):
            mark = "" if not number else ' class="right"' if found == cell_type else ' class="wrong"'
            cells.append(f"<td{mark}>{number}</td>")
        rows.append(f'<tr><th scope="row">{escape(cell_type)}</th>{"".join(cells)}</tr>')
    head = '<th scope="col" class="text">true type</th>' + "".join(
        f'<th scope="col">{escape("found as " + name if name != "nothing" else "nothing found")}</th>'
        for name in columns
    )
    return _table(
        "confusion", "Images by their true type and the type that was found.", head, rows, "confusion", "scroll narrow"
    )


# Thresholds


def _thresholds(data: ReportData) -> str:
    rows = []
    for surface in data.surfaces:
        best = surface.best
        if best is None:
            rows.append(
                f'<tr><th scope="row">{escape(surface.cell_type)}</th>'
                f'<td class="text" colspan="{1 + len(AXES)}">no image to tune on</td></tr>'
            )
            continue
        cells = "".join(
            f"<td>{surface.values[axis][best[axis]]:g}{' (edge)' if surface.at_edge(axis) else ''}"
            f' <span class="soft">&Delta; {surface.spread(axis):.4f}</span></td>'
            for axis in range(len(AXES))
        )
        score = f"<td>{surface.scores[best]:.4f}</td>"
        rows.append(f'<tr><th scope="row">{escape(surface.cell_type)}</th>{score}{cells}</tr>')
    head = '<th scope="col" class="text">cell type</th><th scope="col">best score</th>' + "".join(
        f'<th scope="col">{name}</th>' for name in AXES
    )
    caption = (
        "The best point of the grid, on the images tuned on. &Delta;: what the best and the worst choice of this value "
        "differ by in score, the others staying. &ldquo;Edge&rdquo;: scores still rise at the end of the values tried, "
        "so a better one may lie outside."
    )
    return _table("best-thresholds", caption, head, rows) + _plots(data.cuts)


# Images


IMAGE_HEADINGS = (
    ("image", "text"), ("type", "text"), ("found as", "text"), ("score", "number"), ("annotated", "number"),
    ("found", "number"), ("hits", "number"), ("misses", "number"), ("false alarms", "number"), ("AP 0.5", "number"),
    ("mean IoU", "number"), ("boundary F", "number"), ("seconds", "number"),
)  # fmt: skip


def _images(data: ReportData) -> str:
    rows = []
    for record in sorted(data.records, key=lambda record: (record.quality.score, record.number)):
        summary = summarise_quality([record.quality])
        hits = len(record.quality.matches)
        numbers = (
            (summary.score, 4), (summary.cells, 0), (summary.found_cells, 0), (hits, 0), (summary.cells - hits, 0),
            (summary.found_cells - hits, 0), (summary.average_precision[0], 3), (summary.mean_iou, 3),
            (summary.boundary_f, 3), (record.seconds, 1),
        )  # fmt: skip
        cells = "".join(
            f'<td data-value="{"" if math.isnan(value) else f"{value:.6g}"}">{_figure(value, digits)}</td>'
            for value, digits in numbers
        )
        found = record.found_type or "nothing"
        mark = "text" if record.found_type == record.cell_type else "text wrong"
        rows.append(
            f'<tr id="row-{record.number}" tabindex="-1"><th scope="row">{_image_link(data, record)}</th>'
            f'<td class="text">{escape(record.cell_type)}</td><td class="{mark}">{escape(found)}</td>{cells}</tr>'
        )
    head = "".join(
        f'<th scope="col" data-sort="{kind}"{" class=text" if kind == "text" else ""}'
        f"{' aria-sort=ascending' if name == 'score' else ''}>{name}</th>"
        for name, kind in IMAGE_HEADINGS
    )
    caption = (
        "Worst first; a click on a heading sorts. Hits, misses and false alarms at an IoU of 0.5. Linked images are "
        "shown below."
    )
    return _table("every-image", caption, head, rows, "sortable", "scroll tall")


def _image_link(data: ReportData, record: ImageRecord) -> str:
    name = escape(record.image_id)
    return f'<a href="#image-{record.number}">{name}</a>' if record.number in data.examples else name


def _pictures(data: ReportData) -> str:
    choices = "".join(
        f'<label><input type="checkbox" id="show-{kind.name}" checked>'
        f'<svg width="34" height="18" viewBox="0 0 34 18" aria-hidden="true">'
        f'<path class="{kind.name}" d="M4 4h26v10h-26z{"M14 6l6 6m0 -6l-6 6" if kind.crossed else ""}"/></svg>'
        f"{escape(kind.meaning)}</label>"
        for kind in reversed(OUTLINE_KINDS)
    )
    parts = [
        f"<fieldset><legend>Outlines shown</legend>{choices}"
        '<label><input type="checkbox" id="enlarge">enlarge the pictures (they scroll)</label></fieldset>'
        '<p class="soft">A pointer held over an outline tells its score and IoU.</p>'
    ]
    for cell_type, group in data.by_type().items():
        ranked = sorted(group, key=lambda record: (record.quality.score, record.number))
        shown = "".join(
            _article(record, data.examples[record.number], rank, len(ranked))
            for rank, record in enumerate(ranked, start=1)
            if record.number in data.examples
        )
        parts.append(f'<h3>{escape(cell_type)}</h3>\n<div class="pair">{shown}</div>')
    return "\n".join(parts)


def _article(record: ImageRecord, example: Example, rank: int, images: int) -> str:
    number, quality = record.number, record.quality
    hits = len(quality.matches)
    told = (
        f"score {quality.score:.4f}: {_plural(hits, 'hit')}, {_plural(quality.cells - hits, 'miss', 'misses')}, "
        f"{_plural(quality.found_cells - hits, 'false alarm')}"
    )
    if record.found_type != record.cell_type:
        told += f", found as {escape(record.found_type)}" if record.found_type else ", nothing found"
    place = "worst" if rank == 1 else f"{_ordinal(rank)} worst" if 2 * rank <= images else ""
    from_top = images + 1 - rank
    place = place or ("best" if from_top == 1 else f"{_ordinal(from_top)} best")
    place = place if images > 1 else "the only one"
    height, width = example.pixels.shape[:2]
    alt = f"Image {record.image_id}, {record.cell_type}, with its outlines; {told}"
    return (
        f'<article id="image-{number}" tabindex="-1" aria-labelledby="image-{number}-heading">'
        f'<h4 id="image-{number}-heading">{escape(record.image_id)} <span class="badge">{place} of {images}</span></h4>'
        f'<p>{told}. <a href="#row-{number}">Row in the table'
        f'<span class="unseen">: {escape(record.image_id)}</span></a></p>'
        f'<div class="view" tabindex="0" role="region" aria-label="Picture of {escape(record.image_id)}">'
        f'<div class="layers"><img src="{_data_uri("image/jpeg", to_jpeg(example.pixels))}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">{to_svg(example)}</div></div></article>\n'
    )


def _definitions() -> str:
    entries = (
        (
            "score",
            "The competition's metric: the mean, over IoU thresholds from 0.5 to 0.95 by 0.05, of TP / (TP + FP + FN). "
            "A truth is hit if exactly one found cell has an IoU strictly above the threshold. Of a set: the mean over "
            "its images. The class is not scored.",
        ),
        (
            "hit, miss, false alarm",
            "Cells are matched one to one by COCO's rule: the surest found cell chooses first, and takes the free "
            "annotated cell of the highest IoU, if that is at least the threshold. What takes none is a false alarm; "
            "what is not taken, a miss.",
        ),
        (
            "precision, recall",
            "Hits as a share of the found cells, and of the annotated ones; of a set: of all its cells.",
        ),
        (
            "AP",
            "Average precision as COCO defines it: all cells of the set ranked by score, the precision made falling, "
            "read at 101 recalls from 0 to 1. The cells are those of the submission, so recall ends where the "
            "confidence threshold cut.",
        ),
        (
            "count error, relative, bias",
            "Mean over images of the difference between cells found and annotated: without its sign, the same as a "
            "share of the annotated cells, and with its sign (above 0: too many).",
        ),
        ("mean IoU", "Of the hits at an IoU of 0.5."),
        (
            "boundary F",
            f"Of each hit at an IoU of 0.5: the share of the found boundary's pixels within {BOUNDARY_TOLERANCE:g} "
            "pixels of the annotated boundary, and the reverse, in their harmonic mean. 1: the outlines agree within "
            "the tolerance.",
        ),
        ("&ndash;", "Not defined: a quotient of nothing, as the recall of an image without an annotated cell."),
    )
    listed = "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in entries)
    return f"<details><summary>Definitions</summary><dl>{listed}</dl></details>"


# Words and figures


def _figure(value: float, digits: int = 3, *, sign: bool = False) -> str:
    if math.isnan(value):
        return "&ndash;"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _percent(value: float) -> str:
    return "&ndash;" if math.isnan(value) else f"{100 * value:.1f} %"


def _plural(count: int, one: str, many: str | None = None) -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _ordinal(number: int) -> str:
    return f"{number}{'th' if number % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
