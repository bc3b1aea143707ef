"""Pieces of the report's HTML: tables, plots, figures and words."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

from kernel.report.plots import DrawnPlot


def table(name: str, caption: str, head: str, rows: Sequence[str], css_class: str = "", scroll: str = "scroll") -> str:
    """A table in a box of its own that scrolls, also by keyboard; the caption stays where it is."""
    return (
        f'<p class="caption" id="{name}-caption">{caption}</p>'
        f'<div class="{scroll}" role="region" tabindex="0" aria-labelledby="{name}-caption">'
        f'<table class="{css_class}" aria-labelledby="{name}-caption">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table></div>"
    )


def plot_figures(plots: Sequence[DrawnPlot]) -> str:
    """Plots side by side, each in the theme that the reader's system asks for; nothing where there are none."""
    if not plots:
        return ""
    return '<div class="plots">' + "".join(f"<figure>{_picture(plot)}</figure>\n" for plot in plots) + "</div>"


def _picture(plot: DrawnPlot) -> str:
    light, dark = (data_uri("image/png", content) for content in (plot.light, plot.dark))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{escape(plot.alt)}" width="960" height="660"></picture>'
    )


def tiles(entries: Sequence[tuple[str, str, str]]) -> str:
    """Figures side by side, each with its name and a line of more below it, in HTML."""
    shown = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>" for name, value, more in entries)
    return f'<dl class="tiles">{shown}</dl>'


def sortable_head(headings: Sequence[tuple[str, str]], first: str) -> str:
    """The headings of a table that sorts: of each its name and what it sorts by, "text" or "number".

    Args:
        headings: of all columns.
        first: the heading by which the rows are sorted, rising, when the page opens.
    """
    return "".join(
        f'<th scope="col" data-sort="{order}"{" class=text" if order == "text" else ""}'
        f"{' aria-sort=ascending' if name == first else ''}>{name}</th>"
        for name, order in headings
    )


def number_cell(value: float, digits: int) -> str:
    """A number as a table's cell, which sorts by all its digits."""
    return f'<td data-value="{"" if math.isnan(value) else f"{value:.6g}"}">{show_number(value, digits)}</td>'


def data_uri(media_type: str, content: bytes) -> str:
    """The content itself as an address, for `src`."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def show_number(value: float, digits: int = 3, *, sign: bool = False) -> str:
    """A number rounded to `digits`, with a real minus sign; a dash for NaN."""
    if math.isnan(value):
        return "&ndash;"
    return f"{value:{'+' if sign else ''}.{digits}f}".replace("-", "\N{MINUS SIGN}")


def show_percent(value: float) -> str:
    """A share as a percentage; a dash for NaN."""
    return "&ndash;" if math.isnan(value) else f"{100 * value:.1f} %"


def plural(count: int, one: str, many: str | None = None) -> str:
    """The count with its noun: "1 miss", "2 misses"."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th ..."""
    return f"{number}{'th' if number % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"
