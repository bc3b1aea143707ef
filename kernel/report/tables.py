"""The report's tables as CSV; a figure that is not defined is an empty field."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path

import numpy as np

from kernel.report.data import ReportData
from kernel.scoring.mask_quality import summarise_quality
from kernel.scoring.metric import IOU_THRESHOLDS
from kernel.text import spreadsheet_cell

Rows = Iterable[Sequence[object]]


def write_table(path: Path, rows: Rows) -> None:
    """Write rows, a header first, as CSV."""
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([spreadsheet_cell(value) for value in row] for row in rows)


def write_tables(folder: Path, data: ReportData) -> None:
    """Write summary.csv, iou.csv, images.csv and confusion.csv."""
    write_table(folder / "summary.csv", summary_rows(data))
    write_table(folder / "iou.csv", iou_rows(data))
    write_table(folder / "images.csv", image_rows(data))
    write_table(folder / "confusion.csv", confusion_rows(data))


def summary_rows(data: ReportData) -> Rows:
    """Of all images and of each type."""
    yield (
        "cell_type", "images", "score", "precision_50", "recall_50", "ap_50", "ap_75", "ap_50_95", "cells",
        "found_cells", "count_error", "relative_count_error", "count_bias", "mean_iou", "boundary_f",
        "score_exact_masks", "score_no_false_alarms", "score_nothing_missed",
    )  # fmt: skip
    for name, s in data.summaries().items():
        ap = s.average_precision
        figures = (s.count_error, s.relative_count_error, s.count_bias, s.mean_iou, s.boundary_f)
        yield [
            name, s.images, *_figures([s.score, s.precision[0], s.recall[0], ap[0], ap[5], ap.mean()]),
            s.cells, s.found_cells, *_figures([*figures, *astuple(s.mended)]),
        ]  # fmt: skip


def iou_rows(data: ReportData) -> Rows:
    """Precision, recall and AP of all images and of each type at each IoU threshold."""
    yield "cell_type", "iou", "precision", "recall", "ap"
    for name, summary in data.summaries().items():
        columns = zip(IOU_THRESHOLDS, summary.precision, summary.recall, summary.average_precision, strict=True)
        for threshold, *figures in columns:
            yield [name, f"{threshold:.2f}", *_figures(figures)]


def image_rows(data: ReportData) -> Rows:
    """Every image, with its precision and recall at each IoU threshold."""
    percents = [f"{threshold * 100:.0f}" for threshold in IOU_THRESHOLDS]
    yield (
        "id", "cell_type", "found_type", "score", "cells", "found_cells", "count_error", "ap_50", "ap_75", "mean_iou",
        "boundary_f", *(f"precision_{iou}" for iou in percents), *(f"recall_{iou}" for iou in percents), "seconds",
    )  # fmt: skip
    for r in data.records:
        s = summarise_quality([r.quality])
        yield [
            r.image_id, r.cell_type, r.found_type or "", *_figures([s.score]), s.cells, s.found_cells,
            s.found_cells - s.cells, *_figures([s.average_precision[0], s.average_precision[5]]),
            *_figures([s.mean_iou, s.boundary_f, *s.precision, *s.recall]), f"{r.seconds:.2f}",
        ]  # fmt: skip


def confusion_rows(data: ReportData) -> Rows:
    """Images by true type (rows) and found type (columns)."""
    columns, counts = data.confusion()
    yield ["cell_type", *columns]
    for cell_type, numbers in counts.items():
        yield [cell_type, *numbers]


def _figures(values: Iterable[float]) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.6f}" for value in values]
