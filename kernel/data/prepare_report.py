"""The report of a preparation: what was read, mended and dropped, and for what reasons."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kernel.data.prepare_image import PreparedResult
from kernel.data.prepared import PreparedImage
from kernel.data.sources import DroppedCell, DroppedImage, Source
from kernel.data.splits import Split, sample_of
from kernel.data.tables import whole_text

REPORT_NAME = "report.json"

#: Entries of each list that the printed report shows; report.json has all.
_SHOWN = 10
#: What two reasons alike differ in: what is quoted, and words with a digit or of a path.
_NAME_OR_NUMBER = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[\d/\\]\S*")


@dataclass(frozen=True)
class TypeFigures:
    """Images and cells of one cell type, as read and as written."""

    images_read: int
    cells_read: int
    images_written: int
    cells_written: int


@dataclass(frozen=True)
class ReasonCount:
    """How often something was left out for the same reason."""

    what: str  # "cells dropped", "empty masks" or "images dropped"
    count: int
    reason: str  # that of the first one: the others' differ in names and numbers
    first: str  # which one that is


@dataclass(frozen=True)
class PrepareReport:
    """What was read, mended and dropped.

    Every row that was read is a cell written, or a dropped cell, or an empty mask, or one of the rows of a dropped
    image, or says that nothing is in its image.
    """

    source: str
    class_names: tuple[str, ...]
    rows_read: int
    images: int  # written
    cells: int  # written
    by_type: dict[str, TypeFigures]
    filled_cells: int
    filled_pixels: int
    corrected_images: int
    cleared_cells: int
    cleared_pixels: int
    without_correction: tuple[str, ...]
    correction_flaws: dict[str, str]  # by image
    dropped_images: tuple[DroppedImage, ...]
    dropped_cells: tuple[DroppedCell, ...]
    empty_masks: tuple[DroppedCell, ...]
    cells_in_part: tuple[DroppedCell, ...]  # of those written
    reasons: tuple[ReasonCount, ...]  # of all that was left out
    notes: tuple[str, ...]
    images_without_annotations: tuple[str, ...]
    images_without_cells: tuple[str, ...]  # of those written: nothing is in them
    same_pictures: tuple[tuple[str, str], ...]  # an image and an earlier one of equal or nearly equal pixels
    split: dict[str, Any] | None  # name, folds, images of each fold, passed_over

    def describe(self) -> str:
        """The report in words, long lists shortened."""
        lines = [f"{self.source}: {self.images} images and {self.cells} cells, of {self.rows_read} rows read"]
        for cell_type, figures in self.by_type.items():
            lines.append(
                f"  {cell_type}: {figures.images_written} of {figures.images_read} images, "
                f"{figures.cells_written} of {figures.cells_read} cells"
            )
        lines.extend(self.notes)
        lines.append(f"holes filled: {self.filled_pixels} pixels in {self.filled_cells} cells")
        if self.corrected_images or self.without_correction or self.correction_flaws:
            lines.append(
                f"corrected masks: {self.corrected_images} images, {self.cleared_pixels} pixels cleared "
                f"in {self.cleared_cells} cells"
            )
        lists = (
            ("astro images without a corrected mask, kept as they are", list(self.without_correction)),
            ("corrected masks not applied", [f"{key}: {flaw}" for key, flaw in self.correction_flaws.items()]),
            (
                "images dropped",
                [f"{image.image_id}: {image.reason} ({image.rows} rows)" for image in self.dropped_images],
            ),
            ("cells dropped", [_cell_line(cell) for cell in self.dropped_cells]),
            ("empty masks", [_cell_line(cell) for cell in self.empty_masks]),
            ("cells kept in part", [_cell_line(cell) for cell in self.cells_in_part]),
            ("images without cells, kept: what is found in them is wrong", list(self.images_without_cells)),
            (
                "the same pictures under several ids, kept together in one fold",
                [f"{name} is {first}" for name, first in self.same_pictures],
            ),
            ("images without annotations, passed over", list(self.images_without_annotations)),
        )
        for title, entries in lists:
            if entries:
                lines.append(f"{title}: {len(entries)}")
                lines.extend(f"  {entry}" for entry in entries[:_SHOWN])
                if len(entries) > _SHOWN:
                    lines.append(f"  and {len(entries) - _SHOWN} more, all of them in {REPORT_NAME}")
        if len(self.dropped_images) + len(self.dropped_cells) + len(self.empty_masks) > _SHOWN:
            lines += ["what was left out, by reason:", *reason_lines(self.reasons)]
        if self.split:
            sizes = ", ".join(map(str, self.split["images"]))
            lines.append(f"split {self.split['name']}: {self.split['folds']} folds of {sizes} images")
            lines.extend(f"  not a better one: {reason}" for reason in self.split["passed_over"])
        return "\n".join(lines)


def reason_lines(reasons: Sequence[ReasonCount]) -> list[str]:
    """A line for each of the commonest reasons."""
    lines = [f"  {one.what}: {one.count}, {one.first} first: {one.reason}" for one in reasons[:_SHOWN]]
    return lines + [f"  and {len(reasons) - _SHOWN} other reasons"][: len(reasons) > _SHOWN]


def _cell_line(cell: DroppedCell) -> str:
    return f"{_place(cell)}: {cell.reason}"


def _place(cell: DroppedCell) -> str:
    return f"{cell.place} ({cell.image_id})" if cell.image_id else cell.place


def count_reasons(
    dropped_cells: Sequence[DroppedCell], empty_masks: Sequence[DroppedCell], dropped_images: Sequence[DroppedImage]
) -> tuple[ReasonCount, ...]:
    """How often cells, masks and images were left out for reasons alike but for names and numbers; commonest first."""
    counted: list[ReasonCount] = []
    for what, entries in (
        ("cells dropped", [(cell.reason, _place(cell)) for cell in dropped_cells]),
        ("empty masks", [(cell.reason, _place(cell)) for cell in empty_masks]),
        ("images dropped", [(image.reason, image.image_id) for image in dropped_images]),
    ):
        alike: dict[str, list[tuple[str, str]]] = {}
        for reason, place in entries:
            alike.setdefault(_NAME_OR_NUMBER.sub("", reason), []).append((reason, place))
        groups = sorted(alike.values(), key=len, reverse=True)
        counted.extend(ReasonCount(what, len(group), *group[0]) for group in groups)
    return tuple(counted)


def split_record(split: Split) -> dict[str, Any]:
    """A split as the report has it."""
    sizes = Counter(row.fold for row in split.rows)
    return {
        "name": split.name,
        "folds": split.folds,
        "images": [sizes[fold] for fold in range(split.folds)],
        "passed_over": list(split.passed_over),
    }


def build_report(source: Source, results: Sequence[PreparedResult]) -> PrepareReport:
    """The report of a source and what came of each of its images, in their order; without the split."""
    pairs = list(zip(source.images, results, strict=True))
    dropped_images = list(source.dropped_images)
    for task, result in pairs:
        if result.image is None:
            listed = len(result.dropped) + len(result.empty)
            dropped_images.append(DroppedImage(task.image_id, result.reason, len(task.cells) - listed))
    written = [result.image for result in results if result.image]
    by_type = {}
    for cell_type in source.class_names:
        read = [task for task in source.images if task.cell_type == cell_type]
        kept = [image for image in written if image.cell_type == cell_type]
        if read:
            by_type[cell_type] = TypeFigures(
                len(read), sum(len(task.cells) for task in read), len(kept), sum(len(image.cells) for image in kept)
            )
    dropped_cells = (*source.dropped_cells, *(cell for result in results for cell in result.dropped))
    empty_masks = tuple(cell for result in results for cell in result.empty)
    return PrepareReport(
        source=source.name,
        class_names=source.class_names,
        rows_read=source.rows,
        images=len(written),
        cells=sum(len(image.cells) for image in written),
        by_type=by_type,
        filled_cells=sum(result.filled_cells for result in results),
        filled_pixels=sum(result.filled_pixels for result in results),
        corrected_images=sum(result.corrected for result in results),
        cleared_cells=sum(result.cleared_cells for result in results),
        cleared_pixels=sum(result.cleared_pixels for result in results),
        without_correction=source.without_correction,
        correction_flaws={task.image_id: result.correction_flaw for task, result in pairs if result.correction_flaw},
        dropped_images=tuple(dropped_images),
        dropped_cells=dropped_cells,
        empty_masks=empty_masks,
        cells_in_part=tuple(cell for result in results for cell in result.partial),
        reasons=count_reasons(dropped_cells, empty_masks, dropped_images),
        notes=(*source.notes, *shown_lines(results), *sample_lines(written)),
        images_without_annotations=source.images_without_annotations,
        images_without_cells=tuple(image.image_id for image in written if not image.cells),
        same_pictures=(),
        split=None,
    )


def shown_lines(results: Sequence[PreparedResult]) -> list[str]:
    """How many images members are shown otherwise than their files are, and how."""
    told = Counter(result.told for result in results if result.told)
    return [f"shown to members by {how}: {count} images" for how, count in told.most_common(_SHOWN)]


def sample_lines(images: Sequence[PreparedImage]) -> list[str]:
    """How many images are of no sample that is known."""
    alone = sum(sample_of(image) is None for image in images)
    if not alone:
        return []
    return [f"sample: nothing says that of {alone} of {len(images)} images, so each of these counts by itself"]


def is_report(path: Path) -> bool:
    """Whether a file is a report.json of an earlier preparation."""
    try:
        return "rows_read" in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def write_report(report: PrepareReport, folder: Path) -> None:
    """Write report.json into `folder`, whole or not at all.

    Raises:
        InputError: the folder cannot be written.
        RunError: the disk is full.
    """
    with whole_text(folder / REPORT_NAME) as stream:
        stream.write(json.dumps(asdict(report), indent=1) + "\n")
