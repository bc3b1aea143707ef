"""The page of a report on scored images: its sections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple
from html import escape

from kernel.report.data import ReportData
from kernel.report.html_parts import plot_figures, plural, show_number, show_percent, table, tiles
from kernel.report.image_sections import image_link, image_pictures, image_table
from kernel.report.shell import html_page
from kernel.scoring.lost_points import FOUND_ABOVE
from kernel.scoring.mask_quality import BOUNDARY_TOLERANCE, QualitySummary
from kernel.tuning.surface import AXES


def render_page(data: ReportData) -> str:
    """The page as HTML text."""
    footer = (
        "This page is complete in itself. The folder <code>report</code> beside it holds its tables as CSV and its\n"
        "plots and pictures as PNG."
    )
    return html_page(data.title, _subtitle(data), _sections(data), footer)


def _subtitle(data: ReportData) -> str:
    if not data.records:
        return "No image was scored." if not data.surfaces else "Thresholds only: no image was scored."
    types = ", ".join(f"{len(group)} {escape(cell_type)}" for cell_type, group in data.by_type().items())
    return f"{plural(len(data.records), 'annotated image')}: {types}"


def _sections(data: ReportData) -> Iterator[tuple[str, str, str]]:
    yield "scores", "Scores", _scores(data) if data.records else ""
    yield "curves", "Precision, recall, counts, boundaries", plot_figures(data.plots)
    yield "types", "Cell types, true and found", _confusion(data) if data.records else ""
    yield "thresholds", "Thresholds", _thresholds(data) if data.surfaces else ""
    yield "images", "Every image", image_table(data) if data.records else ""
    yield "pictures", "Worst and best images", image_pictures(data) if data.examples else ""
    yield "definitions", "What the figures mean", _definitions()


SUMMARY_HEADINGS = (
    "images", "score", "precision", "recall", "AP 0.5", "AP 0.75", "AP", "annotated", "found", "count error",
    "relative", "bias", "mean IoU", "boundary F",
)  # fmt: skip


def _scores(data: ReportData) -> str:
    summaries = data.summaries()
    return _score_tiles(data, summaries["all"]) + _score_table(summaries) + _lost_points(summaries)


def _score_tiles(data: ReportData, overall: QualitySummary) -> str:
    ap = overall.average_precision
    right = sum(record.found_type == record.cell_type for record in data.records)
    seconds = sum(record.seconds for record in data.records) / len(data.records)
    worst = min(data.records, key=lambda record: record.quality.score)
    entries = (
        ("Score", show_number(overall.score, 4), f"mean of {plural(overall.images, 'image')}"),
        ("AP at IoU 0.5", show_number(ap[0]), f"at 0.75: {show_number(ap[5])}"),
        ("Cells found", f"{overall.found_cells}", f"of {overall.cells} annotated"),
        ("Boundary F", show_number(overall.boundary_f), f"within {BOUNDARY_TOLERANCE:g} pixels"),
        ("Cell type right", f"{right} of {len(data.records)}", "images"),
        ("Time", f"{seconds:.1f} s", "per image"),
        ("Worst image", show_number(worst.quality.score), image_link(data, worst)),
    )
    return tiles(entries)


def _rows_of(summaries: Mapping[str, QualitySummary]) -> Iterator[tuple[str, QualitySummary]]:
    """Those to show: of one cell type alone, the row of all would say the same twice."""
    return ((name, summary) for name, summary in summaries.items() if name != "all" or len(summaries) > 2)


def _lost_points(summaries: Mapping[str, QualitySummary]) -> str:
    rows = []
    for name, summary in _rows_of(summaries):
        cells = "".join(
            f"<td>{show_number(after, 4)}"
            f' <span class="soft">{show_number(after - summary.score, 4, sign=True)}</span></td>'
            for after in astuple(summary.mended)
        )
        mark = ' class="all"' if name == "all" else ""
        rows.append(
            f'<tr{mark}><th scope="row">{escape(name)}</th><td>{show_number(summary.score, 4)}</td>{cells}</tr>'
        )
    head = '<th scope="col" class="text">cell type</th>' + "".join(
        f'<th scope="col">{name}</th>'
        for name in ("score", "found cells with exact masks", "without false alarms", "nothing missed")
    )
    caption = "Where points are lost: the score with one kind of error mended, and all others left."
    return table("lost-points", caption, head, rows)


def _score_table(summaries: Mapping[str, QualitySummary]) -> str:
    rows = []
    for name, s in _rows_of(summaries):
        ap = s.average_precision
        numbers = (
            s.images, show_number(s.score, 4), show_number(s.precision[0]), show_number(s.recall[0]),
            show_number(ap[0]), show_number(ap[5]), show_number(ap.mean()), s.cells, s.found_cells,
            show_number(s.count_error, 1), show_percent(s.relative_count_error),
            show_number(s.count_bias, 1, sign=True), show_number(s.mean_iou), show_number(s.boundary_f),
        )  # fmt: skip
        cells = "".join(f"<td>{number}</td>" for number in numbers)
        mark = ' class="all"' if name == "all" else ""
        rows.append(f'<tr{mark}><th scope="row">{escape(name)}</th>{cells}</tr>')
    head = '<th scope="col" class="text">cell type</th>' + "".join(
        f'<th scope="col">{name}</th>' for name in SUMMARY_HEADINGS
    )
    caption = "By cell type. Precision and recall at an IoU of 0.5; AP without a number is the mean from 0.5 to 0.95."
    return table("by-type", caption, head, rows)


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
    return table(
        "confusion", "Images by their true type and the type that was found.", head, rows, "confusion", "scroll narrow"
    )


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
    return table("best-thresholds", caption, head, rows) + plot_figures(data.cuts)


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
        (
            "where points are lost",
            f"For this table alone, a found and an annotated cell belong together from an IoU of {FOUND_ABOVE:g} on: a "
            "found cell with a poor mask is then not a false alarm beside a miss. The gains do not add up.",
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
