"""The masks of one image in the formats of other programs: a label image, GeoJSON outlines, rows of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kernel.images.pixel_size import PixelSize
from kernel.images.writing import write_image_file
from kernel.masks.instances import CellMasks
from kernel.masks.labels import label_image
from kernel.postprocess.clean import most_frequent_cell_type
from kernel.postprocess.outlines import mask_polygons
from kernel.settings import CELL_TYPES
from kernel.text import spreadsheet_cell

#: What `kernel.export.measurements` measures.
MEASUREMENT_COLUMNS = (
    "perimeter_px", "equivalent_diameter_px", "major_axis_px", "minor_axis_px", "eccentricity", "solidity",
    "orientation_degrees", "mean_intensity", "intensity_deviation", "on_border",
)  # fmt: skip
#: In micrometres, what `MEASUREMENT_COLUMNS` have in pixels; empty where the size of a pixel is not known.
LENGTHS_PX = ("perimeter_px", "equivalent_diameter_px", "major_axis_px", "minor_axis_px")
LENGTHS_UM = tuple(name.replace("_px", "_um") for name in LENGTHS_PX)
TABLE_COLUMNS = (
    "image", "cell", "cell_type", "cell_label", "score", "area_px", "centre_x", "centre_y", "x1", "y1", "x2", "y2",
    *MEASUREMENT_COLUMNS, "area_um2", *LENGTHS_UM,
)  # fmt: skip


def write_labels(masks: CellMasks, path: Path) -> None:
    """Write a label image (H, W) uint16: the pixels of the n-th mask, counted from 1, have the value n.

    Where 16 bits cannot number the cells of a large image, it is float32, which other programs read as well.
    """
    labels = label_image(masks)
    write_image_file(path, labels if labels.dtype == np.uint16 else labels.astype(np.float32))


def image_type(masks: CellMasks) -> str:
    """The cell type of an image with cells: by the vote of all that was detected in it, else of the masks."""
    return masks.cell_type or most_frequent_cell_type(masks.labels) or ""


def outlines_of(masks: CellMasks, pixel: PixelSize | None = None) -> dict[str, Any]:
    """The masks as GeoJSON, in pixels from the image's top left corner; areas in micrometres too, where it is known.

    Each cell is a Polygon, or a MultiPolygon where it has several pieces, that covers exactly the mask's pixels; see
    `mask_polygons`.
    """
    features = []
    for number, (crop, offset, score, label) in enumerate(
        zip(masks.crops, masks.offsets_yx, masks.scores, masks.labels, strict=True), start=1
    ):
        polygons = mask_polygons(crop, offset)
        area = int(crop.sum())
        measured: dict[str, float] = {"score": round(float(score), 4), "area_px": area}
        if pixel is not None:
            measured["area_um2"] = round(area * pixel.area_um2, 2)
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
                    "classification": {"name": image_type(masks)},
                    "measurements": measured,
                    "metadata": {"cell_label": CELL_TYPES[int(label)]},
                },
            }
        )
    return {"type": "FeatureCollection", "features": features}


def table_rows(name: str, masks: CellMasks, stored: np.ndarray, pixel: PixelSize | None = None) -> list[list[Any]]:
    """The rows of cells.csv of an image (H, W, C) as its file has it, as `TABLE_COLUMNS` names them."""
    from kernel.export.measurements import lengths_um, measure_cells  # scikit-image takes a second

    rows = []
    measured = measure_cells(masks, stored, pixel)
    for number, (crop, (y0, x0), score, label, more) in enumerate(
        zip(masks.crops, masks.offsets_yx.tolist(), masks.scores, masks.labels, measured, strict=True), start=1
    ):
        ys, xs = np.nonzero(crop)
        centre = [f"{x0 + xs.mean() + 0.5:.2f}", f"{y0 + ys.mean() + 0.5:.2f}"]
        # Not the crop's window, which is wider than the mask where a better cell has taken its pixels.
        box = [x0 + int(xs.min()), y0 + int(ys.min()), x0 + int(xs.max()) + 1, y0 + int(ys.max()) + 1]
        cell = [spreadsheet_cell(name), number, image_type(masks), CELL_TYPES[int(label)], f"{float(score):.4f}"]
        sizes = [""] * (1 + len(LENGTHS_UM))
        if pixel is not None:
            sizes = [f"{len(ys) * pixel.area_um2:.2f}", *lengths_um(crop, pixel)]
        rows.append([*cell, len(ys), *centre, *box, *more, *sizes])
    return rows
