"""From detected cells to the masks of a submission: the post-processing of one image, step by step.

Every step is a public function, since the tuning must call the very same ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from kernel.errors import InputError
from kernel.postprocess.instances import CellMasks, Instances, tight_window
from kernel.postprocess.mask_nms import best_first, mask_nms
from kernel.postprocess.rle import encode_rle
from kernel.settings import CELL_TYPES, Thresholds


@dataclass(frozen=True, eq=False)
class ImageMasks:
    """What is found in one image: masks that do not overlap, best first, none empty.

    `cell_type` is None where nothing was detected.
    """

    cell_type: str | None
    masks: CellMasks

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def crops(self) -> tuple[np.ndarray, ...]:
        return self.masks.crops

    @property
    def offsets_yx(self) -> np.ndarray:
        return self.masks.offsets_yx

    @property
    def boxes_xyxy(self) -> np.ndarray:
        return self.masks.boxes_xyxy

    @property
    def scores(self) -> np.ndarray:
        return self.masks.scores

    @property
    def labels(self) -> np.ndarray:
        return self.masks.labels

    @property
    def sizes(self) -> np.ndarray:
        return self.masks.sizes

    @property
    def image_shape(self) -> tuple[int, int]:
        return self.masks.image_shape

    def rles(self) -> list[str]:
        """One text of run lengths per mask, as the submission wants them."""
        return [
            encode_rle(crop, offset, self.image_shape) for crop, offset in zip(self.crops, self.offsets_yx, strict=True)
        ]


def most_frequent_cell_type(labels: np.ndarray) -> str | None:
    """The cell type of most labels (N,); the first in `CELL_TYPES` where several are equally frequent; None for none.

    Raises:
        ValueError: a label is no cell type's.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if labels.size == 0:
        return None
    label = int(np.bincount(labels).argmax())
    if label >= len(CELL_TYPES):
        raise ValueError(f"label {label} is no cell type; the types are {CELL_TYPES}")
    return CELL_TYPES[label]


def binarise(instances: Instances, mask_threshold: float) -> CellMasks:
    """Pixels whose value is strictly above `mask_threshold` x 255; the crops become tight."""
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
    """(N,) bool: scores (N,) not below `confidence`, compared in the scores' own precision."""
    return scores >= np.asarray(confidence, dtype=scores.dtype)


def is_large_enough(sizes: np.ndarray, min_size: int) -> np.ndarray:
    """(N,) bool: sizes (N,) above `min_size` pixels; the largest one (the first of equals) in any case."""
    large = sizes > min_size
    if sizes.size and not large.any():
        large[sizes.argmax()] = True
    return large


def remove_small(masks: CellMasks, min_size: int) -> CellMasks:
    """Without masks of `min_size` pixels or fewer; where all are so small, the largest stays."""
    return masks.select(np.flatnonzero(is_large_enough(masks.sizes, min_size)))


def corrupt_mask(crop: np.ndarray) -> np.ndarray:
    """The mask (h, w) bool as the competition's astro annotations have it: each outline filled as if it were convex.

    Holes are outlines too, so that they fill up; concave parts become what OpenCV's filling of convex polygons makes
    of them.
    """
    if crop.size == 0:
        return crop
    contours, _ = cv2.findContours(crop.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros(crop.shape, np.uint8)
    for contour in contours:
        cv2.fillConvexPoly(filled, contour, 1)
    return filled.astype(bool)


def corrupt_masks(masks: CellMasks) -> CellMasks:
    """`corrupt_mask` for each."""
    return masks.with_crops(corrupt_mask(crop) for crop in masks.crops)


def remove_overlaps(masks: CellMasks) -> CellMasks:
    """Each pixel goes to the first mask that has it. Masks stay in number and order; some may end empty."""
    taken = np.zeros(masks.image_shape, dtype=bool)
    crops = []
    for crop, (y0, x0, y1, x1) in zip(masks.crops, masks.windows.tolist(), strict=True):
        window = taken[y0:y1, x0:x1]
        crops.append(crop & ~window)
        window |= crop
    return masks.with_crops(crops)


def drop_empty(masks: CellMasks) -> CellMasks:
    """Without masks of no pixel."""
    return masks.select(np.flatnonzero(masks.sizes))


def thresholds_for(thresholds: Thresholds | Mapping[str, Thresholds], cell_type: str) -> Thresholds:
    """The thresholds of a cell type: its own, or the one set for all.

    Raises:
        InputError: there are none for this type.
    """
    if isinstance(thresholds, Thresholds):
        return thresholds
    if cell_type not in thresholds:
        raise InputError(
            f"no thresholds for cell type '{cell_type}', only for {sorted(thresholds)}; "
            f"give them for each of {', '.join(CELL_TYPES)}"
        )
    return thresholds[cell_type]


def postprocess_instances(instances: Instances, thresholds: Thresholds | Mapping[str, Thresholds]) -> ImageMasks:
    """All steps for one image: cell type, binarise, sort, confidence, mask NMS, small masks, corruption, overlaps.

    Args:
        instances: N detected cells in any order.
        thresholds: one set for all, or by cell type.

    Returns:
        At most N masks, best first, that do not overlap and are not empty.

    Raises:
        InputError: no thresholds for the image's cell type.
    """
    cell_type = most_frequent_cell_type(instances.labels)
    if cell_type is None:
        return ImageMasks(None, CellMasks.empty(instances.image_shape))
    chosen = thresholds_for(thresholds, cell_type)
    confident = instances.select(np.flatnonzero(is_confident(instances.scores, chosen.confidence)))
    masks = binarise(confident, chosen.mask_threshold)
    masks = masks.select(best_first(masks))
    masks = masks.select(mask_nms(masks, chosen.mask_nms_threshold))
    masks = remove_small(masks, chosen.min_size)
    if chosen.corrupt:
        masks = corrupt_masks(masks)
    return ImageMasks(cell_type, drop_empty(remove_overlaps(masks)))
