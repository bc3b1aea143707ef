"""A folder of images to masks that other programs open: label images (Fiji), outlines (QuPath), a table, pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from kernel.attempt import FailedImage, attempt, attempt_image
from kernel.data.images import largest_image_shape
from kernel.ensemble.ensemble import Ensemble
from kernel.errors import RunError
from kernel.postprocess.clean import ImageMasks
from kernel.postprocess.outlines import mask_polygons
from kernel.runtime.log import LOG
from kernel.runtime.memory import apply_plan, free_memory, plan_memory
from kernel.runtime.pictures import draw_picture, write_image_file
from kernel.settings import CELL_TYPES

TABLE_COLUMNS = ("image", "cell", "cell_type", "score", "area_px", "centre_x", "centre_y", "x1", "y1", "x2", "y2")


def predict_folder(ensemble: Ensemble, images: Sequence[Path], out: Path) -> dict[str, FailedImage]:
    """Segment images and write, into the existing folder `out`:

    - `labels/<name>.tif`: (H, W) uint16, 0 background, cell n has the value n; Fiji, QuPath, napari, CellProfiler
    - `outlines/<name>.geojson`: a polygon per cell, as QuPath imports it
    - `pictures/<name>.png`: the image with outlines
    - `cells.csv`: a row per cell; areas in pixels, places in pixels from the top left corner

    An image that cannot be read, or that fails, has none of these. Returns why, by name; empty where all went well.
    """
    for folder in ("labels", "outlines", "pictures"):
        (out / folder).mkdir()
    apply_plan(ensemble, plan_memory(ensemble, largest_image_shape(images), free_memory(ensemble.device)))
    failed: dict[str, FailedImage] = {}
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(TABLE_COLUMNS)
    for path in tqdm(images, unit="image", mininterval=2):
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
                written.unlink(missing_ok=True)
        else:
            writer.writerows(rows)
    (out / "cells.csv").write_text(table.getvalue(), encoding="utf-8", newline="\n")
    return failed


def image_files(name: str, out: Path) -> tuple[Path, Path, Path]:
    """The label image, outlines and picture of an image."""
    return out / "labels" / f"{name}.tif", out / "outlines" / f"{name}.geojson", out / "pictures" / f"{name}.png"


def write_image(image_bgr: np.ndarray, masks: ImageMasks, name: str, out: Path) -> list[list[Any]]:
    """Write an image's files; returns its rows of cells.csv."""
    labels, outlines, picture = image_files(name, out)
    write_labels(masks, labels)
    outlines.write_text(json.dumps(outlines_of(masks)) + "\n", encoding="utf-8", newline="\n")
    caption = f"{name}: {len(masks)} cells" + (f", {masks.cell_type}" if masks.cell_type else "")
    draw_picture(picture, image_bgr, masks.rles(), caption)
    return table_rows(name, masks)


def write_labels(masks: ImageMasks, path: Path) -> None:
    """Write a label image: the pixels of the n-th mask, from 1, have the value n."""
    if len(masks) > np.iinfo(np.uint16).max:
        raise RunError(f"{path.name}: {len(masks)} cells are more than a label image of 16 bits can number")
    labels = np.zeros(masks.image_shape, np.uint16)
    for number, (crop, (y0, x0, y1, x1)) in enumerate(zip(masks.crops, masks.masks.windows, strict=True), start=1):
        labels[y0:y1, x0:x1][crop] = number
    write_image_file(path, labels)


def outlines_of(masks: ImageMasks) -> dict[str, Any]:
    """The masks as GeoJSON, in pixels from the image's top left corner: per cell a Polygon, or a MultiPolygon where it
    is in several pieces, that covers exactly the mask's pixels; see `mask_polygons`."""
    features = []
    for number, (crop, offset, score, label) in enumerate(
        zip(masks.crops, masks.offsets_yx, masks.scores, masks.labels, strict=True), start=1
    ):
        polygons = mask_polygons(crop, offset)
        geometry = (
            {"type": "Polygon", "coordinates": polygons[0]}
            if len(polygons) == 1
            else {"type": "MultiPolygon", "coordinates": polygons}
        )
        features.append(
            {
                "type": "Feature",
                "geometry": geometry,
                "properties": {
                    "objectType": "annotation",
                    "name": f"cell {number}",
                    "classification": {"name": CELL_TYPES[int(label)]},
                    "measurements": {"score": round(float(score), 4), "area_px": int(crop.sum())},
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def table_rows(name: str, masks: ImageMasks) -> list[list[Any]]:
    """The rows of cells.csv for one image."""
    rows = []
    for number, (crop, (y0, x0, y1, x1), score, label) in enumerate(
        zip(masks.crops, masks.masks.windows.tolist(), masks.scores, masks.labels, strict=True), start=1
    ):
        ys, xs = np.nonzero(crop)
        place = [f"{x0 + xs.mean() + 0.5:.2f}", f"{y0 + ys.mean() + 0.5:.2f}", x0, y0, x1, y1]
        rows.append([name, number, CELL_TYPES[int(label)], f"{float(score):.4f}", len(ys), *place])
    return rows
