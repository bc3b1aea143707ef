"""A report that people look at: one HTML page, and beside it the same as CSV and PNG.

    builder = ReportBuilder()
    for ...:
        builder.add(scored)
    builder.write(folder)

Images are taken one by one. Of each only figures are kept; pixels and masks stay of the worst and the best of each
cell type alone, so that memory and page are bounded for any number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from kernel.files import whole_file
from kernel.report.data import ImageRecord, ReportData
from kernel.report.page import render_page
from kernel.report.pictures import Example, write_png
from kernel.report.plots import draw_plots, file_name, quality_plots
from kernel.report.surfaces import TUNING_CSV, surface_plots, tuning_rows
from kernel.report.tables import write_table, write_tables
from kernel.scoring.mask_quality import measure_image
from kernel.scoring.scores import ScoredImage
from kernel.settings import CELL_TYPES
from kernel.tuning.surface import ThresholdSurface

#: What `ReportBuilder.write` puts into a folder.
REPORT_PAGE, REPORT_FOLDER = "report.html", "report"


class ReportBuilder:
    """Collects images and writes the report.

    Args:
        title: of the page.
        examples: how many of the worst, and of the best, images of each cell type are shown; 0: no pictures.

    Raises:
        ValueError: a negative number of examples.
    """

    def __init__(self, title: str = "Cells found and missed", examples: int = 2) -> None:
        if examples < 0:
            raise ValueError(f"examples is {examples}: give how many of the worst, and of the best, to show, from 0 on")
        self.title = title
        self.examples = examples
        self._records: list[ImageRecord] = []
        #: Per cell type, the record and example of at most 2 x examples images, worst first.
        self._shown: dict[str, list[tuple[ImageRecord, Example]]] = {}

    def add(self, scored: ScoredImage) -> None:
        """Measure an image, and keep its figures; its pixels only where it is among the worst or the best so far.

        Raises:
            ValueError: masks and truth differ in shape.
            InputError: as `AnnotatedImage.read`.
        """
        result, masks, truth = scored.result, scored.masks, scored.truth
        quality = measure_image(masks, truth)
        number = len(self._records) + 1
        record = ImageRecord(number, result.image_id, result.cell_type, result.found_type, result.seconds, quality)
        self._records.append(record)
        shown = self._shown.setdefault(record.cell_type, [])
        place = sum(other.quality.score <= quality.score for other, _ in shown)
        if len(shown) == 2 * self.examples and place == self.examples:
            return  # neither worse than the worst kept nor better than the best
        shown.insert(place, (record, Example(scored.entry.read(), masks, truth, quality)))
        if len(shown) > 2 * self.examples:
            del shown[self.examples]

    def data(self, surfaces: Sequence[ThresholdSurface] = ()) -> ReportData:
        """What the page shows: known cell types first, others by name."""
        order = {cell_type: place for place, cell_type in enumerate(CELL_TYPES)}
        records = sorted(self._records, key=lambda r: (order.get(r.cell_type, len(order)), r.cell_type, r.number))
        examples = {record.number: example for shown in self._shown.values() for record, example in shown}
        return ReportData(self.title, records, examples, surfaces)

    def write(self, folder: Path, surfaces: Sequence[ThresholdSurface] = ()) -> Path:
        """Write report.html, and tables and pictures into the new folder `report` beside it; returns the page's path.

        Args:
            folder: exists, and holds no `report`.
            surfaces: of the tuning, to be shown as well.
        """
        data = self.data(surfaces)
        data = replace(
            data,
            plots=draw_plots(quality_plots(data.quality_by_type())),
            cuts=draw_plots(surface_plots(surfaces)),
        )
        beside = folder / REPORT_FOLDER
        beside.mkdir()
        write_tables(beside, data)
        if surfaces:
            write_table(beside / TUNING_CSV, tuning_rows(surfaces))
        for plot in (*data.plots, *data.cuts):
            (beside / f"{plot.name}.png").write_bytes(plot.light)
        for record in data.records:
            if record.number in data.examples:
                name = file_name("image", str(record.number), record.cell_type, record.image_id)
                write_png(beside / f"{name}.png", data.examples[record.number])
        page = folder / REPORT_PAGE
        with whole_file(page) as path:
            path.write_text(render_page(data), encoding="utf-8", newline="\n")
        return page
