"""The metric on COCO's run lengths, by pycocotools: what the metric on crops is compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from oracles import full_frames
from pycocotools import mask as coco_mask

from kernel.masks.instances import CellMasks, tight_window
from kernel.scoring.metric import score_from_iou

CocoRle = Any  # {"size": [H, W], "counts": ...}; pycocotools keeps its own type private


def as_coco(masks: CellMasks) -> list[CocoRle]:
    return [coco_mask.encode(np.asfortranarray(frame.astype(np.uint8))) for frame in full_frames(masks)]


def masks_from_coco(rles: Sequence[CocoRle], image_shape: tuple[int, int]) -> CellMasks:
    """COCO RLE as crops; scores are 1, labels 0 and boxes those of the masks."""
    crops, windows = [], np.zeros((len(rles), 4), dtype=np.int64)
    for index, rle in enumerate(rles):
        frame = coco_mask.decode(rle)
        assert frame.shape == tuple(image_shape), f"mask {index} is of an image of {frame.shape}"
        windows[index] = y0, x0, y1, x1 = tight_window(frame)
        crops.append(frame[y0:y1, x0:x1].astype(bool))
    return CellMasks(
        crops=tuple(crops),
        offsets_yx=windows[:, :2],
        boxes_xyxy=windows[:, [1, 0, 3, 2]],
        scores=np.ones(len(crops)),
        labels=np.zeros(len(crops)),
        image_shape=image_shape,
    )


def coco_iou_matrix(pred: Sequence[CocoRle], truth: Sequence[CocoRle]) -> np.ndarray:
    """(P, T) float64 mask IoU of COCO RLE."""
    if not len(pred) or not len(truth):
        return np.zeros((len(pred), len(truth)))
    return np.asarray(coco_mask.iou(list(pred), list(truth), [0] * len(truth)))


def image_score_coco(pred: Sequence[CocoRle], truth: Sequence[CocoRle]) -> float:
    """`image_score` for COCO RLE."""
    return score_from_iou(coco_iou_matrix(pred, truth))
