"""Masks as a label image, the form in which most programs take cells."""

from __future__ import annotations

import numpy as np

from kernel.masks.instances import CellMasks


def label_image(masks: CellMasks) -> np.ndarray:
    """(H, W) uint16, or uint32 where there are more cells than 16 bits can number: the n-th cell, from 1, has the value
    n; 0 is background."""
    dtype = np.uint16 if len(masks) <= np.iinfo(np.uint16).max else np.uint32
    labels = np.zeros(masks.image_shape, dtype)
    for number, (crop, (y0, x0, y1, x1)) in enumerate(zip(masks.crops, masks.windows, strict=True), start=1):
        labels[y0:y1, x0:x1][crop] = number
    return labels
