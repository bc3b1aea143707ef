"""Cells measured by scikit-image, in pixels and, where the size of a pixel is known, in micrometres."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from skimage.measure import regionprops

from kernel.masks.instances import CellMasks

#: regionprops' names, ours, and the power of a pixel's side that is their unit.
SHAPES = (
    ("area", "area", 2),
    ("perimeter", "perimeter", 1),
    ("equivalent_diameter_area", "equivalent_diameter", 1),
    ("axis_major_length", "major_axis", 1),
    ("axis_minor_length", "minor_axis", 1),
)
UNITLESS = ("eccentricity", "solidity")
COLUMNS = (
    "centre_x", "centre_y", "x1", "y1", "x2", "y2",
    *(f"{name}_px" for _, name, _ in SHAPES),
    *(f"{name}_um{power if power > 1 else ''}" for _, name, power in SHAPES),
    *UNITLESS, "orientation_degrees", "mean_intensity", "intensity_deviation", "on_border",
)  # fmt: skip


def measure_cells(masks: CellMasks, gray: np.ndarray, pixel_um: float | None = None) -> list[list[Any]]:
    """A row of COLUMNS for each cell.

    Places are pixels from the image's top left corner; the centre is that of the pixels' area. The orientation is the
    angle of the major axis against the x axis, from -90 to 90 degrees, counterclockwise as the image is shown.

    Args:
        masks: of the image; none is empty.
        gray: (H, W), whose values are the intensities.
        pixel_um: the side of a pixel in micrometres; None: those columns are empty.
    """
    height, width = masks.image_shape
    rows = []
    for crop, (y0, x0, y1, x1) in zip(masks.crops, masks.windows.tolist(), strict=True):
        (region,) = regionprops(crop.astype(np.uint8))
        top, left, bottom, right = (edge + start for edge, start in zip(region.bbox, (y0, x0, y0, x0), strict=True))
        values = gray[y0:y1, x0:x1][crop]
        sizes = [(getattr(region, name), power) for name, _, power in SHAPES]
        on_border = top == 0 or left == 0 or bottom == height or right == width
        rows.append(
            [
                f"{x0 + region.centroid[1] + 0.5:.2f}",
                f"{y0 + region.centroid[0] + 0.5:.2f}",
                left, top, right, bottom,
                *(f"{size:.6g}" for size, _ in sizes),
                *("" if pixel_um is None else f"{size * pixel_um**power:.6g}" for size, power in sizes),
                *(f"{getattr(region, name):.4f}" for name in UNITLESS),
                f"{degrees_from_x(region.orientation):.1f}",
                f"{values.mean():.2f}",
                f"{values.std():.2f}",
                int(on_border),
            ]
        )  # fmt: skip
    return rows


def degrees_from_x(orientation: float) -> float:
    """regionprops' angle, against the y axis, as one against the x axis, in (-90, 90]."""
    degrees = math.degrees(orientation) + 90
    return degrees - 180 if degrees > 90 else degrees
