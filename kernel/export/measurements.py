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
#: Of B, G, R in a gray value, as OpenCV weighs them.
GRAY_WEIGHTS = (0.114, 0.587, 0.299)


def measure_cells(masks: CellMasks, stored: np.ndarray, pixel: PixelSize | None = None) -> list[list[Any]]:
    """A row of MEASUREMENT_COLUMNS (`kernel.export.formats`) for each cell.

    The orientation is the angle of the major axis against the x axis, above -90 and up to 90 degrees, counterclockwise
    as the image is shown; it and the eccentricity are of the cell itself where pixels are known not to be square.
    Intensities are of the values that the file has, which compare between images: what members see of more than 8 bits
    is stretched for each image by itself. Colours count by their gray.

    Args:
        masks: of the image; none is empty.
        stored: (H, W, C) of any real type, C 1 or 3 in the order B, G, R.
        pixel: the size of a pixel, where it is known.
    """
    rows = []
    for crop, (y0, x0, y1, x1), cut in zip(masks.crops, masks.windows.tolist(), on_border(masks), strict=True):
        (region,) = regionprops(crop.astype(np.uint8))
        ellipse = region
        if pixel is not None and not pixel.is_square:
            (ellipse,) = regionprops(crop.astype(np.uint8), spacing=(pixel.y_um, pixel.x_um))
        rows.append(
            [
                *(f"{getattr(region, name):.2f}" for name in LENGTHS),
                f"{ellipse.eccentricity:.4f}",
                f"{region.solidity:.4f}",
                f"{degrees_from_x(ellipse.orientation):.1f}",
                *intensities(stored[y0:y1, x0:x1][crop]),
                int(cut),
            ]
        )
    return rows


def intensities(values: np.ndarray) -> list[str]:
    """The mean and standard deviation of a cell's values (N, C), without those that are no numbers, or infinite."""
    if values.shape[1] == 1:
        gray = values[:, 0].astype(np.float64)
    elif values.dtype == np.uint8:
        gray = cv2.cvtColor(values[None], cv2.COLOR_BGR2GRAY)[0].astype(np.float64)
    else:
        gray = values.astype(np.float64) @ GRAY_WEIGHTS
    gray = gray[np.isfinite(gray)]
    if not gray.size:
        return ["", ""]
    digits = ".6g" if values.dtype.kind == "f" else ".2f"  # floats may all lie between 0 and 1
    return [f"{gray.mean():{digits}}", f"{gray.std():{digits}}"]


def lengths_um(crop: np.ndarray, pixel: PixelSize) -> list[str]:
    """LENGTHS of a mask (h, w) bool in micrometres. A perimeter is told for square pixels alone."""
    spacing = (pixel.side_um, pixel.side_um) if pixel.is_square else (pixel.y_um, pixel.x_um)
    (region,) = regionprops(crop.astype(np.uint8), spacing=spacing)
    return ["" if name == "perimeter" and not pixel.is_square else f"{getattr(region, name):.2f}" for name in LENGTHS]


def degrees_from_x(orientation: float) -> float:
    """regionprops' angle, against the y axis, as one against the x axis, in (-90, 90]."""
    degrees = math.degrees(orientation) + 90
    return degrees - 180 if degrees > 90 else degrees
