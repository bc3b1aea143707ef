"""From detected cells to the masks of a submission: the post-processing of one image, step by step.

Each step is a function of its own: the tuning calls the same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import cv2
import numpy as np

from kernel.errors import InputError
from kernel.masks.instances import CellMasks, Instances, tight_window
from kernel.postprocess.mask_nms import best_first, mask_nms
from kernel.settings import CELL_TYPES, Thresholds


def most_frequent_cell_type(labels: np.ndarray) -> str | None:
    """The cell type of most labels (N,); of equally frequent ones the first in `CELL_TYPES`; None without labels.

    Raises:
        ValueError: a label stands for no cell type.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if labels.size == 0:
        return None
    label = int(np.bincount(labels).argmax())
    if label >= len(CELL_TYPES):
        raise ValueError(f"label {label} is no cell type; the types are {CELL_TYPES}")
    return CELL_TYPES[label]


def binarise(instances: Instances, mask_threshold: float) -> CellMasks:
    """Binary masks of the pixels strictly above `mask_threshold` x 255, in tight crops."""
    limit = mask_threshold * 255
    crops, offsets = [], instances.offsets_yx.copy()
    for index, soft in enumerate(instances.crops):
        mask = soft > limit
        y0, x0, y1, x1 = tight_window(mask)
        crops.append(mask[y0:y1, x0:x1].copy())
        offsets[index] += (y0, x0)
    return CellMasks(
        tuple(crops), offsets, instances.boxes_xyxy, instances.scores, instances.labels, instances.image_shape
    )


def is_confident(scores: np.ndarray, confidence: float) -> np.ndarray:
    """(N,) bool: whether scores (N,) are at least `confidence`, compared in the scores' precision."""
    return scores >= np.asarray(confidence, dtype=scores.dtype)


def is_large_enough(sizes: np.ndarray, min_size: int) -> np.ndarray:
    """(N,) bool: whether sizes (N,) are above `min_size` pixels; where none is, only the (first) largest."""
    large = sizes > min_size
    if sizes.size and not large.any():
        large[sizes.argmax()] = True
    return large


def remove_small(masks: CellMasks, min_size: int) -> CellMasks:
    """Drop masks of `min_size` pixels or fewer; where all are so small, the largest stays."""
    return masks.select(np.flatnonzero(is_large_enough(masks.sizes, min_size)))


def corrupt_mask(crop: np.ndarray) -> np.ndarray:
    """Fill each outline of a mask (h, w) bool as if it were convex, as the competition's astro annotations are.

    Holes have outlines too, so they are filled; concave parts become what OpenCV's filling of convex polygons makes of
    them.
    """
    if crop.size == 0:
        return crop
    contours, _ = cv2.findContours(crop.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros(crop.shape, np.uint8)
    for contour in contours:
        cv2.fillConvexPoly(filled, contour, 1)
    return filled.astype(bool)


def corrupt_masks(masks: CellMasks) -> CellMasks:
    """Apply `corrupt_mask` to each mask."""
    return masks.with_crops(corrupt_mask(crop) for crop in masks.crops)


def remove_overlaps(masks: CellMasks) -> CellMasks:
    """Give each pixel to the first mask that has it. Number and order of the masks stay; some may end empty."""
    taken = np.zeros(masks.image_shape, dtype=bool)
    crops = []
    for crop, (y0, x0, y1, x1) in zip(masks.crops, masks.windows.tolist(), strict=True):
        window = taken[y0:y1, x0:x1]
        crops.append(crop & ~window)
        window |= crop
    return masks.with_crops(crops)


def drop_empty(masks: CellMasks) -> CellMasks:
    """Drop masks without pixels."""
    return masks.select(np.flatnonzero(masks.sizes))


def thresholds_for(thresholds: Thresholds | Mapping[str, Thresholds], cell_type: str) -> Thresholds:
    """The thresholds of a cell type.

    Raises:
        InputError: there are none for it.
    """
    if isinstance(thresholds, Thresholds):
        return thresholds
    if cell_type not in thresholds:
        raise InputError(
            f"no thresholds for cell type '{cell_type}', only for {sorted(thresholds)}; "
            f"give them for each of {', '.join(CELL_TYPES)}"
        )
    return thresholds[cell_type]


def postprocess_instances(instances: Instances, thresholds: Thresholds | Mapping[str, Thresholds]) -> CellMasks:
    """All steps for one image: cell type, confidence, binarise, sort, mask NMS, small masks, corruption, overlaps.

    Args:
        instances: N detected cells in any order.
        thresholds: one set for all, or by cell type.

    Returns:
        At most N masks with the image's cell type, best first; none overlap, none is empty.

    Raises:
        InputError: no thresholds for the image's cell type.
    """
    cell_type = most_frequent_cell_type(instances.labels)
    if cell_type is None:
        return CellMasks.empty(instances.image_shape)
    chosen = thresholds_for(thresholds, cell_type)
    confident = instances.select(np.flatnonzero(is_confident(instances.scores, chosen.confidence)))
    masks = binarise(confident, chosen.mask_threshold)
    masks = masks.select(best_first(masks))
    masks = masks.select(mask_nms(masks, chosen.mask_nms_threshold))
    masks = remove_small(masks, chosen.min_size)
    if chosen.corrupt:
        masks = corrupt_masks(masks)
    return replace(drop_empty(remove_overlaps(masks)), cell_type=cell_type)
