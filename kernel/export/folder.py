"""A folder of images segmented into files that other programs open (Fiji, QuPath, napari), a table and pictures."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kernel.ensemble.ensemble import Ensemble
from kernel.export.coco import coco_cells, coco_file
from kernel.export.formats import TABLE_COLUMNS, table_rows
from kernel.export.kinds import DEFAULT_EXPORTS, IMAGE_EXPORTS, IMAGES_TABLE, SET_EXPORTS, FoundCells
from kernel.images.reading import largest_image_shape
from kernel.log import LOG
from kernel.postprocess.submission import SubmissionWriter
from kernel.runtime.failures import FailedImage, attempt, attempt_image
from kernel.runtime.memory import apply_plan, free_memory, plan_memory
from kernel.runtime.rereading import Rereading
from kernel.text import spreadsheet_cell

#: File systems take names of 255 bytes, endings included.
LONGEST_NAME_BYTES = 255 - max(len(kind.ending) for kind in IMAGE_EXPORTS.values())
#: What an image gives to the files of all images, as JSON has it.
Record = dict[str, Any]


def predict_folder(
    ensemble: Ensemble,
    images: Sequence[Path],
    out: Path,
    exports: Sequence[str] = DEFAULT_EXPORTS,
    finished: Callable[[Path], Record | None] = lambda path: None,
    on_finished: Callable[[Path, Record], None] = lambda path, record: None,
) -> dict[str, FailedImage]:
    """Segment images and write what is found into the existing folder `out`.

    Those that cannot be read are tried again after all others, as in the kernel.

    - labels: `labels/<name>.tif`, (H, W) uint16 (float32 for more cells than that numbers), 0 background, cell n has
      the value n; Fiji, QuPath, napari, CellProfiler
    - geojson: `outlines/<name>.geojson`, a polygon per cell, as QuPath imports it
    - pictures: `pictures/<name>.png`, the image with outlines
    - rois: `rois/<name>.zip`, for Fiji's ROI Manager
    - seg-npy: `seg-npy/<name>_seg.npy`, for correction in Cellpose's window
    - ome-tiff, ome-zarr: label images in these formats
    - tables: `cells.csv`, a row per cell; areas in pixels, places in pixels from the top left corner
    - coco: `coco.json`
    - submission: `submission.csv`, as the competition's, with an empty row for an image without cells or that failed
    - always: `images.csv`, a row per image: its size, cells, cell type, the share of its pixels that lie in cells, and
      why it has none of the above

    Args:
        ensemble: the networks.
        images: the images' files.
        out: a folder; it may hold the files of an earlier run that was stopped.
        exports: what to write, names of IMAGE_EXPORTS and SET_EXPORTS.
        finished: gives the record of an image whose files are there already; None where they are not.
        on_finished: takes the record of an image whose files are written.

    Returns:
        The images that have none of these, by name: they could not be read, or failed.
    """
    for name in exports:
        if name in IMAGE_EXPORTS:
            (out / IMAGE_EXPORTS[name].folder).mkdir(exist_ok=True)
    apply_plan(ensemble, plan_memory(ensemble, largest_image_shape(images), free_memory(ensemble.device)))
    failed: dict[str, FailedImage] = {}
    records: dict[str, Record] = {}
    waiting, rereading = deque(images), Rereading()
    with tqdm(total=len(images), unit="image", mininterval=2) as progress:
        while waiting or rereading.unread:
            if not waiting:
                time.sleep(rereading.pause())
                waiting.extend(rereading.release())
            path = waiting.popleft()
            outcome = finished(path) or predict_file(ensemble, path, out, exports)
            if isinstance(outcome, FailedImage):
                if rereading.takes(path, outcome):
                    continue
                if outcome.wrong_input:  # other failures are in the log already, with their traceback
                    LOG.error("%s", outcome.reason)
                failed[path.stem] = outcome
            else:
                if finished(path) is None:
                    on_finished(path, outcome)
                records[path.stem] = outcome
            progress.update()
    write_set(images, records, exports, out)
    with (out / IMAGES_TABLE).open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(image_rows(images, records, failed))
    return {path.stem: failed[path.stem] for path in images if path.stem in failed}


def predict_file(ensemble: Ensemble, path: Path, out: Path, exports: Sequence[str]) -> Record | FailedImage:
    """Segment an image and write its files; returns its record, or why there are none."""
    outcome = attempt_image(ensemble, path)
    if isinstance(outcome, FailedImage):
        return outcome
    image, result = outcome
    record = attempt(path.stem, partial(write_image, FoundCells(path, image, result.masks), exports, out))
    if isinstance(record, FailedImage):
        for name in exports:
            if name in IMAGE_EXPORTS:
                remove_export(image_file(name, path.stem, out))
    return record


def image_file(export: str, name: str, out: Path) -> Path:
    """The path of an image's export. A name that is too long for it is cut, and a hash of all of it follows."""
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
        start = os.fsencode(name)[: LONGEST_NAME_BYTES - 13].decode("utf-8", "ignore")
        name = f"{start}~{digest}"
    kind = IMAGE_EXPORTS[export]
    return out / kind.folder / f"{name}{kind.ending}"


def remove_export(path: Path) -> None:
    """Delete a file or folder that may be there, or in part."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # what cannot be written may not be there to be deleted
        path.unlink(missing_ok=True)


def write_image(found: FoundCells, exports: Sequence[str], out: Path) -> Record:
    """Write an image's files, and return its record."""
    for name in exports:
        if name in IMAGE_EXPORTS:
            IMAGE_EXPORTS[name].write(found, image_file(name, found.path.stem, out))
    height, width = found.masks.image_shape
    record: Record = {
        "height": height,
        "width": width,
        "cells": len(found.masks),
        "cell_type": found.masks.cell_type,
        "confluence": int(found.masks.sizes.sum()) / (height * width),
    }
    if "tables" in exports:
        record["rows"] = table_rows(found.path.stem, found.masks, found.image_bgr)
    if "coco" in exports:
        record["coco"] = coco_cells(found.masks)
    if "submission" in exports:
        record["rles"] = found.masks.rles()
    return record


def write_set(images: Sequence[Path], records: Mapping[str, Record], exports: Sequence[str], out: Path) -> None:
    """Write the files of all images together, from the records of those that have one."""
    done = [(path, records[path.stem]) for path in images if path.stem in records]
    if "tables" in exports:
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(TABLE_COLUMNS)
        for _, record in done:
            writer.writerows(record["rows"])
        (out / SET_EXPORTS["tables"]).write_text(table.getvalue(), encoding="utf-8", newline="\n")
    if "coco" in exports:
        told = coco_file((path.name, (each["height"], each["width"]), each["coco"]) for path, each in done)
        (out / SET_EXPORTS["coco"]).write_text(json.dumps(told) + "\n", encoding="utf-8", newline="\n")
    if "submission" in exports:
        submission = SubmissionWriter(path.stem for path in images)
        for path, record in done:
            submission.add(path.stem, record["rles"], (record["height"], record["width"]))
        submission.write(out / SET_EXPORTS["submission"], so_far=True)


def image_rows(
    images: Sequence[Path], records: Mapping[str, Record], failed: Mapping[str, FailedImage]
) -> Iterator[Sequence[Any]]:
    """The rows of images.csv, a header first."""
    yield "image", "file", "height", "width", "cells", "cell_type", "confluence", "failure"
    for path in images:
        names = [spreadsheet_cell(path.stem), spreadsheet_cell(path.name)]
        record = records.get(path.stem)
        if record is None:
            yield [*names, *[""] * 5, spreadsheet_cell(failed[path.stem].reason)]
        else:
            size = [record["height"], record["width"]]
            yield [*names, *size, record["cells"], record["cell_type"] or "", f"{record['confluence']:.4f}", ""]
