"""A folder of images segmented into files that other programs open (Fiji, QuPath, napari), a table and pictures."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kernel.ensemble.ensemble import Ensemble
from kernel.export.formats import TABLE_COLUMNS, outlines_of, table_rows, write_labels
from kernel.images.reading import largest_image_shape
from kernel.log import LOG
from kernel.masks.instances import CellMasks
from kernel.postprocess.pictures import draw_picture
from kernel.runtime.failures import FailedImage, attempt, attempt_image
from kernel.runtime.memory import apply_plan, free_memory, plan_memory

#: File systems take names of 255 bytes, endings included; the longest of ours is ".geojson".
LONGEST_NAME_BYTES = 255 - len(".geojson")


def predict_folder(
    ensemble: Ensemble,
    images: Sequence[Path],
    out: Path,
    finished: Callable[[Path], list[list[Any]] | None] = lambda path: None,
    on_finished: Callable[[Path, list[list[Any]]], None] = lambda path, rows: None,
) -> dict[str, FailedImage]:
    """Segment images and write what is found into the existing folder `out`.

    - `labels/<name>.tif`: (H, W) uint16 (float32 for more cells than that numbers), 0 background, cell n has the
      value n; Fiji, QuPath, napari, CellProfiler
    - `outlines/<name>.geojson`: a polygon per cell, as QuPath imports it
    - `pictures/<name>.png`: the image with outlines
    - `cells.csv`: a row per cell; areas in pixels, places in pixels from the top left corner

    Args:
        ensemble: the networks.
        images: the images' files.
        out: a folder; it may hold the files of an earlier run that was stopped.
        finished: gives the rows of cells.csv of an image whose files are there already; None where they are not.
        on_finished: takes the rows of an image whose files are written.

    Returns:
        The images that have none of these, by name: they could not be read, or failed.
    """
    for folder in ("labels", "outlines", "pictures"):
        (out / folder).mkdir(exist_ok=True)
    apply_plan(ensemble, plan_memory(ensemble, largest_image_shape(images), free_memory(ensemble.device)))
    failed: dict[str, FailedImage] = {}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(TABLE_COLUMNS)
    for path in tqdm(images, unit="image", mininterval=2):
        rows = finished(path)
        if rows is not None:
            writer.writerows(rows)
            continue
        outcome = attempt_image(ensemble, path)
        if isinstance(outcome, FailedImage):
            if outcome.wrong_input:  # other failures are in the log already, with their traceback
                LOG.error("%s", outcome.reason)
            failed[path.stem] = outcome
            continue
        image, result = outcome
        rows = attempt(path.stem, partial(write_image, image, result.masks, path.stem, out))
        if isinstance(rows, FailedImage):
            failed[path.stem] = rows
            for written in image_files(path.stem, out):
                with contextlib.suppress(OSError):  # what cannot be written may not be there to be deleted
                    written.unlink(missing_ok=True)
        else:
            writer.writerows(rows)
            on_finished(path, rows)
    (out / "cells.csv").write_text(table.getvalue(), encoding="utf-8", newline="\n")
    return failed


def image_files(name: str, out: Path) -> tuple[Path, Path, Path]:
    """The paths of an image's label image, outlines and picture; where its name is too long for them, of its start.

    A hash of the whole name follows then.
    """
    if len(os.fsencode(name)) > LONGEST_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
        start = os.fsencode(name)[: LONGEST_NAME_BYTES - 13].decode("utf-8", "ignore")
        name = f"{start}~{digest}"
    return out / "labels" / f"{name}.tif", out / "outlines" / f"{name}.geojson", out / "pictures" / f"{name}.png"


def write_image(image_bgr: np.ndarray, masks: CellMasks, name: str, out: Path) -> list[list[Any]]:
    """Write the files of an image (H, W, 3) uint8 BGR, and return its rows of cells.csv."""
    labels, outlines, picture = image_files(name, out)
    write_labels(masks, labels)
    outlines.write_text(json.dumps(outlines_of(masks)) + "\n", encoding="utf-8", newline="\n")
    caption = f"{name}: {len(masks)} cells" + (f", {masks.cell_type}" if masks.cell_type else "")
    draw_picture(picture, image_bgr, masks.rles(), caption)
    return table_rows(name, masks)
