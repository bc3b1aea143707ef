"""All that the report shows: what is kept of every image, and what follows from it for each cell type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kernel.report.pictures import Example
from kernel.report.plots import DrawnPlot
from kernel.scoring.mask_quality import ImageQuality, QualitySummary, summarise_quality
from kernel.tuning.surface import ThresholdSurface


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
