"""Cells measured by scikit-image."""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from skimage.measure import regionprops

from kernel.images.pixel_size import PixelSize
from kernel.masks.choosing import on_border
from kernel.masks.instances import CellMasks

#: regionprops' names of lengths in pixels, and ours.
LENGTHS = {
    "perimeter": "perimeter_px",
    "equivalent_diameter_area": "equivalent_diameter_px",
    "axis_major_length": "major_axis_px",
    "axis_minor_length": "minor_axis_px",
}
RATIOS = ("eccentricity", "solidity")


def measure_cells(masks: CellMasks, image_bgr: np.ndarray) -> list[list[Any]]:
    """A row of MEASUREMENT_COLUMNS (`kernel.export.formats`) for each cell.

    The orientation is the angle of the major axis against the x axis, above -90 and up to 90 degrees, counterclockwise
    as the image is shown. Intensities are of the image as its detectors see it: 8 bits, and gray where it has colours.

    Args:
        masks: of the image; none is empty.
        image_bgr: (H, W, 3) uint8.
    """
    gray = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)
    rows = []
    for crop, (y0, x0, y1, x1), cut in zip(masks.crops, masks.windows.tolist(), on_border(masks), strict=True):
        (region,) = regionprops(crop.astype(np.uint8))
        values = gray[y0:y1, x0:x1][crop]
        rows.append(
            [
                *(f"{getattr(region, name):.2f}" for name in LENGTHS),
                *(f"{getattr(region, name):.4f}" for name in RATIOS),
                f"{degrees_from_x(region.orientation):.1f}",
                f"{values.mean():.2f}",
                f"{values.std():.2f}",
                int(cut),
            ]
        )
    return rows


def lengths_um(crop: np.ndarray, pixel: PixelSize) -> list[str]:
    """LENGTHS of a mask (h, w) bool in micrometres. A perimeter is told for square pixels alone."""
    spacing = (pixel.side_um, pixel.side_um) if pixel.is_square else (pixel.y_um, pixel.x_um)
    (region,) = regionprops(crop.astype(np.uint8), spacing=spacing)
    return ["" if name == "perimeter" and not pixel.is_square else f"{getattr(region, name):.2f}" for name in LENGTHS]


def degrees_from_x(orientation: float) -> float:
    """regionprops' angle, against the y axis, as one against the x axis, in (-90, 90]."""
    degrees = math.degrees(orientation) + 90
    return degrees - 180 if degrees > 90 else degrees
