"""The preparation: masks decoded, mended and checked by several processes; what was read, mended and dropped is told.

source = read_competition(Path("data"), astro_fix=Path("data/hck_fix"))
report = prepare(source, Path("prepared"), split="group", folds=5, workers=4)
"""

from __future__ import annotations

import json
import multiprocessing
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import binary_fill_holes
from tqdm import tqdm

from kernel.data.coco import (
    PREPARED_NAME,
    PreparedDataset,
    PreparedImage,
    decode_segmentation,
    encode_cell,
    sound_polygons,
    write_prepared,
)
from kernel.data.images import read_image
from kernel.data.sources import DroppedCell, DroppedImage, Source, SourceCell, SourceImage
from kernel.data.splits import FOLDS_NAME, SampledImage, Split, make_split, write_folds
from kernel.data.tables import whole_text
from kernel.errors import InputError, RunError
from kernel.postprocess.rle import decode_rle_crop

REPORT_NAME = "report.json"

#: Entries of each list that the printed report shows; report.json has all.
_SHOWN = 10
#: What two reasons of the same kind differ in: what is quoted, and words with a digit or of a path.
_NAME_OR_NUMBER = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[\d/\\]\S*")
#: Images handed to a worker at a time.
_CHUNK = 4
#: Windows waits for no more processes than these.
_MOST_WORKERS = 61


@dataclass(frozen=True)
class PreparedResult:
    """What came of one image."""

    image: PreparedImage | None  # None: dropped
    reason: str = ""  # why
    dropped: tuple[DroppedCell, ...] = ()
    partial: tuple[DroppedCell, ...] = ()  # cells that are kept without a part that cannot be read
    empty: tuple[DroppedCell, ...] = ()  # masks without a pixel, from the start or after the correction
    filled_cells: int = 0
    filled_pixels: int = 0
    cleared_cells: int = 0
    cleared_pixels: int = 0
    corrected: bool = False
    correction_flaw: str = ""  # why the image's correction was not applied


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
    reason: str  # as told of the first of them: names and numbers in it differ
    first: str  # which one that is


@dataclass(frozen=True)
class PrepareReport:
    """What was read, mended and dropped. Every row read is a cell written, or a dropped cell, or an empty mask,
    or one of the rows of a dropped image.
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
            ("images without annotations, passed over", list(self.images_without_annotations)),
        )
        for title, entries in lists:
            if entries:
                lines.append(f"{title}: {len(entries)}")
                lines.extend(f"  {entry}" for entry in entries[:_SHOWN])
                if len(entries) > _SHOWN:
                    lines.append(f"  and {len(entries) - _SHOWN} more, all of them in {REPORT_NAME}")
        if len(self.dropped_images) + len(self.dropped_cells) + len(self.empty_masks) > _SHOWN:
            lines += ["what was left out, by reason:", *_reason_lines(self.reasons)]
        if self.split:
            sizes = ", ".join(map(str, self.split["images"]))
            lines.append(f"split {self.split['name']}: {self.split['folds']} folds of {sizes} images")
            lines.extend(f"  not a better one: {reason}" for reason in self.split["passed_over"])
        return "\n".join(lines)


def _reason_lines(reasons: Sequence[ReasonCount]) -> list[str]:
    """A line for each of the commonest reasons."""
    lines = [f"  {one.what}: {one.count}, {one.first} first: {one.reason}" for one in reasons[:_SHOWN]]
    return lines + [f"  and {len(reasons) - _SHOWN} other reasons"][: len(reasons) > _SHOWN]


def _cell_line(cell: DroppedCell) -> str:
    return f"{_place(cell)}: {cell.reason}"


def _place(cell: DroppedCell) -> str:
    return f"{cell.place} ({cell.image_id})" if cell.image_id else cell.place


def prepare(
    source: Source,
    out: Path,
    split: str | None = "group",
    folds: int = 5,
    *,
    or_next_best: bool = False,
    workers: int = 1,
) -> PrepareReport:
    """Prepare a source and write annotations.json, report.json and, with a split, folds.csv into `out`.

    What can be wrong as a whole is looked for first; nothing is written then. The files do not depend on `workers`.

    Args:
        source: of `read_competition`, `read_livecell` or `read_pseudo_labels`.
        out: the prepared folder; files of those names in it are replaced.
        split, folds, or_next_best: as `make_split` takes them; None: no folds.
        workers: processes; 1: this one alone.

    Raises:
        InputError: no image is left (report.json, which says why, is written all the same), the split is not possible,
            or `out` is the competition's folder or cannot be written.
        RunError: a worker process died, or the disk is full.
    """
    if (out / "train.csv").exists():
        raise InputError(
            f"{out} holds a train.csv: choose another folder, so that it stays clear which of the two is read"
        )
    made = None
    if split and source.images:  # what is not possible is better told now than at the end
        lost = _count_reasons(source.dropped_cells, (), source.dropped_images)
        made = _split(source.images, lost, split, folds, or_next_best=or_next_best)
    results = list(prepare_images(source.images, workers))
    kept = [task for task, result in zip(source.images, results, strict=True) if result.image]
    dataset = PreparedDataset(source.class_names, tuple(result.image for result in results if result.image))
    report = _report(source, results)
    if not kept:
        raise InputError(_nothing_left(report, out))
    if split and len(kept) < len(source.images):
        made = _split(kept, report.reasons, split, folds, or_next_best=or_next_best)
    if made:
        report = replace(report, split=_describe_split(made))
    write_prepared(out, dataset, f"{source.name}, prepared by python -m kernel prepare")
    if made:
        write_folds(out / FOLDS_NAME, made.rows)
    else:
        (out / FOLDS_NAME).unlink(missing_ok=True)  # an earlier preparation's would name other images
    _write_report(report, out)
    return report


def _write_report(report: PrepareReport, out: Path) -> None:
    with whole_text(out / REPORT_NAME) as stream:
        stream.write(json.dumps(asdict(report), indent=1) + "\n")


def _nothing_left(report: PrepareReport, out: Path) -> str:
    """The message where every image was left out. The report is written; where it cannot be, the message says so."""
    lines = [f"no image is left to prepare, of {report.rows_read} rows read", *_reason_lines(report.reasons)]
    try:
        _write_report(report, out)
    except (InputError, RunError) as error:
        lines.append(str(error))
    else:
        earlier = f" ({PREPARED_NAME} beside it is of an earlier run)" if (out / PREPARED_NAME).exists() else ""
        lines.append(f"each of them is in {out / REPORT_NAME}{earlier}")
    return "\n".join(lines)


def _split(
    images: Sequence[SourceImage], lost: Sequence[ReasonCount], name: str, folds: int, *, or_next_best: bool
) -> Split:
    """`make_split`; where it fails, what was left out before is told as well, for that may be the cause."""
    sampled = [SampledImage(image.image_id, image.cell_type, image.sample_id) for image in images]
    try:
        return make_split(sampled, name, folds, or_next_best=or_next_best)
    except InputError as error:
        raise InputError("\n".join([str(error), *_reason_lines(lost)])) from error


def prepare_images(images: Sequence[SourceImage], workers: int) -> Iterator[PreparedResult]:
    """`prepare_image` of each, in order, by `workers` processes, with a progress bar.

    Raises:
        InputError: fewer than one worker.
        RunError: a worker process died.
    """
    if workers < 1:
        raise InputError(f"{workers} workers: at least 1 is needed")
    workers = min(workers, _MOST_WORKERS, -(-len(images) // _CHUNK))
    progress = {"total": len(images), "unit": "image", "desc": "preparing", "mininterval": 1}
    if workers <= 1:
        yield from tqdm(map(prepare_image, images), **progress)
        return
    # Spawned: a forked child may inherit locks that OpenCV's or torch's threads hold.
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield from tqdm(pool.map(prepare_image, images, chunksize=_CHUNK), **progress)
        except BrokenProcessPool as error:
            raise RunError("a worker process died, of too little memory most likely: try fewer workers") from error


def prepare_image(task: SourceImage) -> PreparedResult:
    """Read an image, decode its masks, fill their holes, apply its correction, encode them again."""
    try:
        shape = read_image(task.path).shape[:2]
    except InputError as error:
        return PreparedResult(None, str(error))
    height, width = shape
    if task.image_shape not in (None, (height, width)):
        return PreparedResult(None, f"the file is {height} x {width}, and annotated as {task.image_shape}")
    outside, flaw = _outside_correction(task, (height, width))
    cells, dropped, partial, empty = [], [], [], []
    filled, cleared = Counter[str](), Counter[str]()
    for cell in task.cells:
        try:
            crop, offset, unread = _decode(cell, (height, width))
        except InputError as error:
            dropped.append(DroppedCell(task.image_id, cell.place, str(error)))
            continue
        reason = "its mask has no pixel"
        if crop.size:
            whole = binary_fill_holes(crop)
            assert whole is not None
            _count(filled, np.count_nonzero(whole) - np.count_nonzero(crop))
            crop = whole
            if outside is not None:
                y, x = offset
                left = crop & ~outside[y : y + crop.shape[0], x : x + crop.shape[1]]
                _count(cleared, np.count_nonzero(crop) - np.count_nonzero(left))
                crop, reason = left, "the corrected mask has none of its pixels"
        encoded = encode_cell(crop, offset, (height, width), cell.label)
        if encoded is None:
            empty.append(DroppedCell(task.image_id, cell.place, reason))
        else:
            cells.append(encoded)
            if unread:
                partial.append(DroppedCell(task.image_id, cell.place, unread))
    return PreparedResult(
        image=PreparedImage(task.path, task.cell_type, (height, width), tuple(cells)) if cells else None,
        reason="" if cells else "no cell is left",
        dropped=tuple(dropped),
        partial=tuple(partial),
        empty=tuple(empty),
        filled_cells=filled["cells"],
        filled_pixels=filled["pixels"],
        cleared_cells=cleared["cells"],
        cleared_pixels=cleared["pixels"],
        corrected=outside is not None,
        correction_flaw=flaw,
    )


def _count(counter: Counter[str], pixels: int) -> None:
    counter["cells"] += pixels > 0
    counter["pixels"] += int(pixels)


def _decode(cell: SourceCell, image_shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int], str]:
    """The mask's crop and its top left pixel, and what is wrong with polygons that were left out of it, or ""."""
    if isinstance(cell.outline, str):
        return *decode_rle_crop(cell.outline, image_shape), ""
    outline, flaws = cell.outline, []
    if isinstance(outline, list):
        sound, flaws = sound_polygons(outline, image_shape)
        outline = sound or outline  # of which the decoding says what is wrong, if none is sound
    return *decode_segmentation(outline, image_shape), "; ".join(flaws)


def _outside_correction(task: SourceImage, image_shape: tuple[int, int]) -> tuple[np.ndarray | None, str]:
    """Where the corrected mask has no cell, (H, W) bool, or None; and why it could not be applied, or "".

    Of the file as OpenCV reads it, B, G, R, the third channel counts: red.
    """
    if task.correction is None:
        return None, ""
    try:
        pixels = read_image(task.correction, only_eight_bit=True)
    except InputError as error:
        return None, str(error)
    if pixels.shape[:2] != image_shape:
        return None, f"{task.correction} is {pixels.shape[0]} x {pixels.shape[1]}, its image {image_shape}"
    return pixels[..., 2] == 0, ""


def _count_reasons(
    dropped_cells: Sequence[DroppedCell], empty_masks: Sequence[DroppedCell], dropped_images: Sequence[DroppedImage]
) -> tuple[ReasonCount, ...]:
    """Reasons that differ in names and numbers alone, counted: of cells, masks, images; the commonest of each first."""
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


def _describe_split(split: Split) -> dict[str, Any]:
    sizes = Counter(row.fold for row in split.rows)
    return {
        "name": split.name,
        "folds": split.folds,
        "images": [sizes[fold] for fold in range(split.folds)],
        "passed_over": list(split.passed_over),
    }


def _report(source: Source, results: Sequence[PreparedResult]) -> PrepareReport:
    """The report but for the split."""
    pairs = list(zip(source.images, results, strict=True))
    dropped_images = list(source.dropped_images)
    for task, result in pairs:
        if result.image is None:
            told = len(result.dropped) + len(result.empty)
            dropped_images.append(DroppedImage(task.image_id, result.reason, len(task.cells) - told))
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
        reasons=_count_reasons(dropped_cells, empty_masks, dropped_images),
        notes=source.notes,
        images_without_annotations=source.images_without_annotations,
        split=None,
    )
