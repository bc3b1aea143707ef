"""Images segmented into files that other programs open (Fiji, QuPath, napari), a table and pictures."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from kernel.data.image_names import composed
from kernel.ensemble.fallbacks import means_lost_device
from kernel.errors import InputError, RunError
from kernel.export.coco import coco_cells, coco_file
from kernel.export.formats import TABLE_COLUMNS, table_rows
from kernel.export.inputs import InputImage
from kernel.export.kinds import DEFAULT_EXPORTS, IMAGE_EXPORTS, IMAGES_TABLE, SET_EXPORTS, FoundCells
from kernel.export.progress import Progress
from kernel.files import is_full
from kernel.images.gray_matching import KNOWN_GRAYS, far_grays, grays_text, matched_grays
from kernel.images.pixel_size import PixelSize, counted_pixel
from kernel.images.planes import PlaneChoice
from kernel.images.reading import largest_image_shape
from kernel.images.stacks import Picture, read_picture
from kernel.images.zoom import NO_ZOOM, zoom_of, zoom_text
from kernel.log import LOG
from kernel.masks.choosing import keep_cells
from kernel.patience import may_pass
from kernel.postprocess.submission import SubmissionWriter
from kernel.runtime.failures import FailedImage, attempt
from kernel.runtime.rereading import Rereading
from kernel.scale import ScaledEnsemble, cell_size
from kernel.text import first_names, spreadsheet_cell

#: File systems take names of 255 bytes, endings included.
LONGEST_NAME_BYTES = 255 - max(len(kind.ending) for kind in IMAGE_EXPORTS.values())
#: Of images.csv. The density is that of cells in a square millimetre: as the confluence of all that were found, also of
#: those that are not wanted, for these cover the image as well.
IMAGE_COLUMNS = (
    "image", "file", "frame", "height", "width", "cells", "cell_type", "confluence", "density_per_mm2", "pixel_um",
    "zoom", "seconds", "failure",
)  # fmt: skip
#: What an image gives to the files of all images, as JSON has it.
Record = dict[str, Any]
#: What comes of an image: its record, or why there is none.
Outcome = Record | FailedImage


@dataclass(frozen=True)
class Wanted:
    """What is wanted of each image, and how it is read.

    Attributes:
        exports: what to write, names of IMAGE_EXPORTS and SET_EXPORTS.
        choice: of the planes of images that have several.
        pixel_um: the side of a pixel, for what files tell; None: as they tell.
        zoom: by how much images are stretched for the members; None: by the size of their pixels.
        exclude_edges: leave out cells that the image's edge cuts.
        min_area: leave out cells of fewer pixels. Neither changes an image's confluence and density.
        match_gray: bring images of 8 bits to the gray levels that members know.
    """

    exports: Sequence[str] = DEFAULT_EXPORTS
    choice: PlaneChoice = field(default_factory=PlaneChoice)
    pixel_um: float | None = None
    zoom: float | None = None
    exclude_edges: bool = False
    min_area: int = 0
    match_gray: bool = field(default=False, repr=False)  # a journal's head has it where it is on


class LostDeviceError(RunError):
    """An image has cost a process its GPU.

    Args:
        image: its name.
        reason: why it has no result.
    """

    def __init__(self, image: str, reason: str):
        super().__init__(f"{image}: {reason}: no image can be done on this GPU before a new start")
        self.image, self.reason = image, reason

    def __reduce__(self) -> tuple[type[LostDeviceError], tuple[str, str]]:
        """As it comes from another process."""
        return LostDeviceError, (self.image, self.reason)


@dataclass(frozen=True)
class ImageWork:
    """Segments an image and writes its files. Other processes can be sent it: each loads the ensemble once.

    Attributes:
        run: a name that no other run has.
        load: gives the ensemble.
        largest: height and width of the largest image of the run, for which the memory is planned.
        wanted: of each image.
        out: where its files go.
    """

    run: str
    load: Callable[[], ScaledEnsemble]
    largest: tuple[int, int]
    wanted: Wanted
    out: Path

    def __call__(self, image: InputImage) -> Outcome:
        """The image's record, its files written; or why there is none.

        Raises:
            LostDeviceError: the GPU is lost, and with it all that this process could do.
            OSError, RunError: the disk is full, for all others as well.
        """
        ensemble, teller = self.loaded()
        outcome = attempt(image.name, partial(segment_input, ensemble, image, self.wanted, teller, self.out), is_full)
        if isinstance(outcome, FailedImage) and means_lost_device(outcome.reason):
            raise LostDeviceError(image.name, outcome.reason)
        return outcome

    def loaded(self) -> tuple[ScaledEnsemble, Teller]:
        """The run's ensemble in this process; that of an earlier run goes."""
        if self.run not in _LOADED:
            _LOADED.clear()
            ensemble = self.load()
            ensemble.plan(self.largest)
            _LOADED[self.run] = ensemble, Teller()
        return _LOADED[self.run]


#: The ensemble of the run that this process works for.
_LOADED: dict[str, tuple[ScaledEnsemble, Teller]] = {}


@dataclass(frozen=True)
class RunResult:
    """What came of each image of a run, by its name.

    Attributes:
        records: of those whose files are written.
        failed: of the others: they could not be read, or failed.
    """

    records: Mapping[str, Record]
    failed: Mapping[str, FailedImage]


def predict_images(
    outcomes: Callable[[Iterator[InputImage]], Iterable[tuple[InputImage, Outcome]]],
    images: Sequence[InputImage],
    out: Path,
    wanted: Wanted,
    progress: Progress,
    finished: Callable[[InputImage], Outcome | None] = lambda image: None,
    on_finished: Callable[[InputImage, Record], None] = lambda image, record: None,
) -> RunResult:
    """Segment images and write what is found into the existing folder `out`.

    Those that cannot be read are tried again after all others, as in the kernel.

    - labels: `labels/<name>.tif`, (H, W) uint16 (float32 for more cells than that numbers), 0 background, cell n has
      the value n; Fiji, QuPath, napari, CellProfiler
    - geojson: `outlines/<name>.geojson`, a polygon per cell, as QuPath imports it
    - pictures: `pictures/<name>.png`, the image with outlines
    - rois: `rois/<name>.zip`, for Fiji's ROI Manager
    - seg-npy: `seg-npy/<name>_seg.npy`, for correction in Cellpose's window
    - ome-tiff, ome-zarr: label images in these formats, with the size of a pixel where it is known
    - tables: `cells.csv`, a row per cell; places in pixels from the top left corner; areas and lengths in pixels, and
      in micrometres where the size of a pixel is known
    - report: `report/<name>.svg`, the image with outlines as any browser shows it; the command writes their page
    - coco: `coco.json`
    - submission: `submission.csv`, as the competition's, with an empty row for an image without cells or that failed
    - always: `images.csv`, a row per image: its size, cells, cell type, the share of its pixels that lie in cells and
      cells per square millimetre (both with cells that are left out), zoom, seconds, and why it has none of the above

    A name may have folders in it, which are made.

    Args:
        outcomes: does an `ImageWork` for each of the images that it is given, here or elsewhere, and takes each when it
            is about to be done; gives each with its outcome, in any order.
        images: what to segment.
        out: a folder; it may hold the files of an earlier run that was stopped.
        wanted: of each image.
        progress: is told of each.
        finished: gives the record of an image whose files are there already, or why it is not tried any more; None
            where it is to be done.
        on_finished: takes the record of an image whose files are written.

    Raises:
        InputError, RunError: as `outcomes` does, LostDeviceError among them.
        OSError: a file cannot be written, or the disk is full.
    """
    failed: dict[str, FailedImage] = {}
    records: dict[str, Record] = {}

    def unfinished() -> Iterator[InputImage]:
        """Each is asked for when its turn comes: a journal then reads the whole file, which all at once takes hours."""
        for image in images:
            if (outcome := finished(image)) is None:
                yield image
            elif isinstance(outcome, FailedImage):
                failed[image.name] = outcome
                LOG.error("image %s: %s", image.name, outcome.reason)
                progress.done(image.name, "failed, see above")
            else:
                records[image.name] = outcome
                progress.finished_before()

    waiting, rereading = unfinished(), Rereading[InputImage]()
    while True:
        for image, outcome in outcomes(waiting):
            if not isinstance(outcome, FailedImage):
                records[image.name] = outcome
                on_finished(image, outcome)
                progress.done(image.name, f"{outcome['cells']} cells{kind_of(outcome)}, {outcome['seconds']} s")
            elif not rereading.takes(image, outcome):
                failed[image.name] = outcome
                if outcome.wrong_input:  # other failures are in the log already, with their traceback
                    LOG.error("%s", outcome.reason)
                progress.done(image.name, "failed, see above")
        if not rereading.unread:
            break
        time.sleep(rereading.pause())
        waiting = iter(rereading.release())
    remove_other_files(out, wanted.exports, records)
    write_set(images, records, wanted.exports, out)
    with (out / IMAGES_TABLE).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(image_rows(images, records, failed))
    warn_of_scale(records)
    warn_of_grays(records)
    return RunResult(records, failed)


def largest_input(images: Sequence[InputImage]) -> tuple[int, int]:
    """Height and width of the largest image, as far as headers tell."""
    return largest_image_shape(image.path for image in images if image.path.is_file())


def segment_input(ensemble: ScaledEnsemble, image: InputImage, wanted: Wanted, teller: Teller, out: Path) -> Outcome:
    """Read an image, find its cells and write its files: its record, or why there is none."""
    start = time.monotonic()
    try:
        picture = read_picture(image.path, wanted.choice, image.frame)
        image_bgr = matched_grays(picture.image_bgr) if wanted.match_gray else picture.image_bgr
        pixel = known_pixel(picture, wanted, image, teller)
        zoom = zoom_of(pixel, ensemble.member_um, wanted.zoom)
        if "rois" in wanted.exports:  # told before the image's networks, which take long for so large a one
            from kernel.export.rois import refuse_too_large

            refuse_too_large(image_bgr.shape)
    except InputError as error:
        reason = str(error) if image.path.name in str(error) else f"{image.path}: {error}"
        return FailedImage(reason, wrong_input=True, may_pass=may_pass(error))
    if picture.told:
        teller.tell(picture.told, image.name)
    if zoom != NO_ZOOM:
        teller.tell(f"zoom {zoom_text(zoom)}" + (f", of pixels of {pixel}" if wanted.zoom is None else ""), image.name)
    if image_bgr is not picture.image_bgr:
        teller.tell("its gray levels are matched to those that members know", image.name)
    masks = ensemble.segment(image_bgr, zoom).masks
    doubt = cell_size(masks, ensemble.member_um) if pixel is None and wanted.zoom is None else None
    kept = keep_cells(masks, wanted.exclude_edges, wanted.min_area)
    found = FoundCells(image.path, image.name, image_bgr, picture.stored, kept, pixel, picture.is_whole)
    try:
        record = write_image(found, wanted.exports, out)
    except BaseException:
        for name in wanted.exports:
            if name in IMAGE_EXPORTS:
                remove_export(image_file(name, image.name, out))
        raise
    record["all_cells"] = len(masks)
    record["confluence"] = int(masks.sizes.sum()) / math.prod(masks.image_shape)
    if doubt is not None and doubt.is_far:
        record["doubt"] = [doubt.diameter_px, doubt.usual_px]
    if not wanted.match_gray and (grays := far_grays(image_bgr)) is not None:
        record["grays"] = grays
    record["pixel"] = [pixel.y_um, pixel.x_um] if pixel else None
    record["zoom"] = zoom_text(zoom)
    record["seconds"] = round(time.monotonic() - start, 2)
    return record


class Teller:
    """Says in the log what was decided for an image, once for all of which it is true."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, text: str, name: str) -> None:
        """Say it, and of which image, unless it was said before."""
        if text not in self._told:
            self._told.add(text)
            LOG.info("%s: %s (and so with others alike)", name, text)


def known_pixel(picture: Picture, wanted: Wanted, image: InputImage, teller: Teller) -> PixelSize | None:
    """The size of an image's pixels: as it is given, else as the file tells it, if a microscope's are like that."""
    pixel, told = counted_pixel(picture.pixel, wanted.pixel_um), picture.pixel
    if pixel is None and told is not None:
        teller.tell(
            f"its pixels would be of {told} by {told.source}, as no microscope's are: that is passed over", image.name
        )
    return pixel


def kind_of(record: Record) -> str:
    """The cell type of an image's record, as the end of a phrase."""
    return f" of {record['cell_type']}" if record["cell_type"] else ""


def warn_of_scale(records: Mapping[str, Record]) -> None:
    """Say in one line that images were likely segmented at a wrong scale, where the cells that were found are."""
    doubts = [record["doubt"] for record in records.values() if "doubt" in record]
    if not doubts:
        return
    found, usual = (float(np.median(column)) for column in zip(*doubts, strict=True))
    LOG.warning(
        "%d of %d image(s) were segmented without knowing the size of their pixels, and their cells are far from what "
        "the members know (median diameter %.0f pixels, usual %.0f): give --pixel-size in micrometres, or --zoom %.2g",
        len(doubts), len(records), found, usual, usual / found,
    )  # fmt: skip


def warn_of_grays(records: Mapping[str, Record]) -> None:
    """Say in one line that images have gray levels at which members are likely to miss cells, and which images."""
    far = [f"{name} ({grays_text(*record['grays'])})" for name, record in records.items() if "grays" in record]
    if far:
        LOG.warning(
            "%d of %d image(s) have gray levels far from what the members know (%s), and cells are likely missed: %s; "
            "--match-gray brings them to what is known",
            len(far), len(records), KNOWN_GRAYS, first_names(far, 3),
        )  # fmt: skip


def image_file(export: str, name: str, out: Path) -> Path:
    """The path of an image's export. A name that is too long for it is cut, and a hash of all of it follows."""
    folder, _, last = name.rpartition("/")
    if len(os.fsencode(last)) > LONGEST_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(last)).hexdigest()[:12]
        start = os.fsencode(last)[: LONGEST_NAME_BYTES - 13].decode("utf-8", "ignore")
        last = f"{start}~{digest}"
    kind = IMAGE_EXPORTS[export]
    return out / kind.folder / folder / f"{last}{kind.ending}"


def remove_export(path: Path) -> None:
    """Delete a file or folder that may be there, or in part."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # what cannot be written may not be there to be deleted
        path.unlink(missing_ok=True)


def remove_other_files(out: Path, exports: Sequence[str], records: Mapping[str, Record]) -> None:
    """Delete files of images that are not among the records: those that an earlier go on the same folder had."""
    for export in exports:
        if export not in IMAGE_EXPORTS:
            continue
        kind = IMAGE_EXPORTS[export]
        top = out / kind.folder
        top.mkdir(exist_ok=True)
        wanted = {file_key(image_file(export, name, out)) for name in records}
        mirrored = {parent for path in wanted for parent in path.parents}  # an input's folder may be called "day1.tif"
        for parent, folders, files in os.walk(top):
            for name in [*folders, *files]:
                key = file_key(Path(parent, name))
                if name.endswith(kind.ending) and key not in wanted and key not in mirrored:
                    remove_export(Path(parent, name))
            folders[:] = [
                name for name in folders if not name.endswith(kind.ending) or file_key(Path(parent, name)) in mirrored
            ]


def file_key(path: Path) -> Path:
    """A path in one form of Unicode: some file systems list accented names in another one than they were given."""
    return Path(composed(str(path)))


def write_image(found: FoundCells, exports: Sequence[str], out: Path) -> Record:
    """Write an image's files, and return its record."""
    for export in exports:
        if export in IMAGE_EXPORTS:
            path = image_file(export, found.name, out)
            path.parent.mkdir(parents=True, exist_ok=True)
            IMAGE_EXPORTS[export].write(found, path)
    height, width = found.masks.image_shape
    record: Record = {
        "height": height,
        "width": width,
        "cells": len(found.masks),
        "cell_type": found.masks.cell_type,
    }
    if "tables" in exports:
        record["rows"] = table_rows(found.name, found.masks, found.stored, found.pixel)
    if "report" in exports:
        record["areas"] = found.masks.sizes.tolist()
    if "coco" in exports:
        record["coco"] = coco_cells(found.masks)
    if "submission" in exports:
        record["rles"] = found.masks.rles()
    return record


def write_set(images: Sequence[InputImage], records: Mapping[str, Record], exports: Sequence[str], out: Path) -> None:
    """Write the files of all images together, from the records of those that have one."""
    done = [(image, records[image.name]) for image in images if image.name in records]
    if "tables" in exports:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(TABLE_COLUMNS)
        for _, record in done:
            writer.writerows(record["rows"])
        (out / SET_EXPORTS["tables"]).write_text(table.getvalue(), encoding="utf-8", newline="\n")
    if "coco" in exports:
        told = coco_file((coco_image(image, record), record["coco"]) for image, record in done)
        (out / SET_EXPORTS["coco"]).write_text(json.dumps(told) + "\n", encoding="utf-8", newline="\n")
    if "submission" in exports:
        submission = SubmissionWriter(image.name for image in images)
        for image, record in done:
            submission.add(image.name, record["rles"], (record["height"], record["width"]))
        submission.write(out / SET_EXPORTS["submission"])


def coco_image(image: InputImage, record: Record) -> dict[str, Any]:
    """What COCO's file tells of an image, but for its number."""
    frame = {} if image.frame is None else {"frame": image.frame}
    return {"file_name": image.file, "height": record["height"], "width": record["width"], **frame}


def image_rows(
    images: Sequence[InputImage], records: Mapping[str, Record], failed: Mapping[str, FailedImage]
) -> Iterator[Sequence[Any]]:
    """The rows of images.csv, a header first."""
    yield IMAGE_COLUMNS
    for image in images:
        frame = "" if image.frame is None else image.frame
        names = [spreadsheet_cell(image.name), spreadsheet_cell(image.file), frame]
        record = records.get(image.name)
        if record is None:
            reason = spreadsheet_cell(failed[image.name].reason)
            yield [*names, *[""] * (len(IMAGE_COLUMNS) - len(names) - 1), reason]
            continue
        density, side = "", ""
        if record["pixel"]:
            y_um, x_um = record["pixel"]
            pixel = PixelSize(y_um, x_um, "an earlier image")
            side = f"{pixel.side_um:.4g}"
            density = f"{record['all_cells'] / (record['height'] * record['width'] * pixel.area_um2) * 1e6:.1f}"
        counts = [record["height"], record["width"], record["cells"], record["cell_type"] or ""]
        shares = [f"{record['confluence']:.4f}", density]
        yield [*names, *counts, *shares, side, record["zoom"], record["seconds"], ""]
