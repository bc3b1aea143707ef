"""The report's sections on single images: the table of all, and the pictures of the worst and the best."""

from __future__ import annotations

from html import escape

from kernel.export.svg import encode_jpeg
from kernel.report.data import ImageRecord, ReportData
from kernel.report.html_parts import data_uri, number_cell, ordinal, plural, sortable_head, table
from kernel.report.pictures import OUTLINE_STYLES, Example, to_svg
from kernel.scoring.mask_quality import summarise_quality

#: Heading and what the column sorts by.
IMAGE_HEADINGS = (
    ("image", "text"), ("type", "text"), ("found as", "text"), ("score", "number"), ("annotated", "number"),
    ("found", "number"), ("hits", "number"), ("misses", "number"), ("false alarms", "number"), ("AP 0.5", "number"),
    ("mean IoU", "number"), ("boundary F", "number"), ("seconds", "number"),
)  # fmt: skip


def image_table(data: ReportData) -> str:
    """Every image with its figures, worst first; the script sorts by other columns."""
    rows = []
    for record in sorted(data.records, key=lambda record: (record.quality.score, record.number)):
        summary = summarise_quality([record.quality])
        hits = len(record.quality.matches)
        numbers = (
            (summary.score, 4), (summary.cells, 0), (summary.found_cells, 0), (hits, 0), (summary.cells - hits, 0),
            (summary.found_cells - hits, 0), (summary.average_precision[0], 3), (summary.mean_iou, 3),
            (summary.boundary_f, 3), (record.seconds, 1),
        )  # fmt: skip
        cells = "".join(number_cell(value, digits) for value, digits in numbers)
        found = record.found_type or "nothing"
        mark = "text" if record.found_type == record.cell_type else "text wrong"
        rows.append(
            f'<tr id="row-{record.number}" tabindex="-1"><th scope="row">{image_link(data, record)}</th>'
            f'<td class="text">{escape(record.cell_type)}</td><td class="{mark}">{escape(found)}</td>{cells}</tr>'
        )
    head = sortable_head(IMAGE_HEADINGS, "score")
    caption = (
        "Worst first; a click on a heading sorts. Hits, misses and false alarms at an IoU of 0.5. Linked images are "
        "shown below."
    )
    return table("every-image", caption, head, rows, "sortable", "scroll tall")


def image_link(data: ReportData, record: ImageRecord) -> str:
    """The image's name, as a link where its picture is shown."""
    name = escape(record.image_id)
    return f'<a href="#image-{record.number}">{name}</a>' if record.number in data.examples else name


def image_pictures(data: ReportData) -> str:
    """The pictures kept, by cell type and worst first, with what switches outlines on and off."""
    choices = "".join(
        f'<label><input type="checkbox" id="show-{style.name}" checked>'
        f'<svg width="34" height="18" viewBox="0 0 34 18" aria-hidden="true">'
        f'<path class="{style.name}" d="M4 4h26v10h-26z{"M14 6l6 6m0 -6l-6 6" if style.crossed else ""}"/></svg>'
        f"{escape(style.meaning)}</label>"
        for style in reversed(OUTLINE_STYLES)
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
    outcome = (
        f"score {quality.score:.4f}: {plural(hits, 'hit')}, {plural(quality.cells - hits, 'miss', 'misses')}, "
        f"{plural(quality.found_cells - hits, 'false alarm')}"
    )
    if record.found_type != record.cell_type:
        outcome += f", found as {escape(record.found_type)}" if record.found_type else ", nothing found"
    place = "worst" if rank == 1 else f"{ordinal(rank)} worst" if 2 * rank <= images else ""
    from_top = images + 1 - rank
    place = place or ("best" if from_top == 1 else f"{ordinal(from_top)} best")
    place = place if images > 1 else "the only one"
    height, width = example.pixels.shape[:2]
    alt = f"Image {record.image_id}, {record.cell_type}, with its outlines; {outcome}"
    return (
        f'<article id="image-{number}" tabindex="-1" aria-labelledby="image-{number}-heading">'
        f'<h4 id="image-{number}-heading">{escape(record.image_id)} <span class="badge">{place} of {images}</span></h4>'
        f'<p>{outcome}. <a href="#row-{number}">Row in the table'
        f'<span class="unseen">: {escape(record.image_id)}</span></a></p>'
        f'<div class="view" tabindex="0" role="region" aria-label="Picture of {escape(record.image_id)}">'
        f'<div class="layers"><img src="{data_uri("image/jpeg", encode_jpeg(example.pixels))}" alt="{escape(alt)}" '
        f'width="{width}" height="{height}">{to_svg(example)}</div></div></article>\n'
    )
