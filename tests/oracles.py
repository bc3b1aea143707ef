"""Slow, obvious, full-frame versions of what the package does on crops; and cells to compare them on.

Full-frame masks here are bool (N, H, W), in the order of their scores, best first, unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from kernel.masks.instances import Instances, MaskCrops, tight_window
from kernel.masks.rle import decode_rle_crop
from kernel.postprocess.submission import SubmissionWriter
from kernel.settings import Thresholds


def full_frames(masks: MaskCrops) -> np.ndarray:
    """(N, H, W), of the crops' dtype: each cell in its whole image."""
    frames = np.zeros((len(masks), *masks.image_shape), masks.crop_dtype)
    for frame, crop, (y0, x0, y1, x1) in zip(frames, masks.crops, masks.windows, strict=True):
        frame[y0:y1, x0:x1] = crop
    return frames


def crop_instances(soft: np.ndarray, boxes_xyxy: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Instances:
    """Instances of full frames (N, H, W) uint8, probability x 255, with boxes (N, 4), scores and labels (N,)."""
    windows = [tight_window(frame) for frame in soft]
    return Instances(
        crops=tuple(frame[y0:y1, x0:x1].copy() for frame, (y0, x0, y1, x1) in zip(soft, windows, strict=True)),
        offsets_yx=np.array([window[:2] for window in windows]),
        boxes_xyxy=boxes_xyxy,
        scores=scores,
        labels=labels,
        image_shape=(soft.shape[1], soft.shape[2]),
    )


def decode_rle(text: str, image_shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: a mask's whole frame from its run lengths, by `decode_rle_crop`, whose errors it raises."""
    crop, (top, left) = decode_rle_crop(text, image_shape)
    frame = np.zeros(image_shape, dtype=bool)
    frame[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return frame


def write_submission(
    path: Path, rows: Iterable[tuple[str, Iterable[str]]], image_shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Write a submission of (image id, run lengths) by `SubmissionWriter`, for the images in `image_shapes`."""
    writer = SubmissionWriter(image_shapes)
    for image_id, rles in rows:
        writer.add(image_id, rles, image_shapes.get(image_id, (0, 0)))
    writer.write(path)


def random_soft_frames(rng: np.random.Generator, count: int, shape: tuple[int, int]) -> np.ndarray:
    """(N, H, W) uint8: blurred blobs of odd outlines, some touching the borders, some with holes, some empty."""
    height, width = shape
    frames = np.zeros((count, height, width), np.uint8)
    for frame in frames:
        canvas = np.zeros(shape, np.float32)
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        for _ in range(rng.integers(0, 4)):
            centre = (int(x + rng.normal(0, 4)), int(y + rng.normal(0, 4)))
            axes = (int(rng.integers(1, 9)), int(rng.integers(1, 5)))
            cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, -1)
        if rng.random() < 0.3:
            cv2.circle(canvas, (int(x), int(y)), 2, 0.0, -1)
        noise = rng.uniform(0.6, 1.0, shape).astype(np.float32)
        frame[:] = (cv2.GaussianBlur(canvas, (0, 0), 1.0) * noise * 255).astype(np.uint8)
    return frames


def random_instances(
    rng: np.random.Generator, count: int, shape: tuple[int, int], soft: np.ndarray | None = None
) -> Instances:
    """Cells in random order with different scores, labels of all types, and boxes that only tell them apart."""
    soft = random_soft_frames(rng, count, shape) if soft is None else soft
    scores = (rng.permutation(count) + 1) / (count + 1)
    boxes = np.repeat(np.arange(count)[:, None], 4, axis=1)
    return crop_instances(soft, boxes, scores, rng.integers(0, 3, count))


def full_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M) IoU; 0 where both are empty."""
    iou = np.zeros((len(first), len(second)))
    for row, one in enumerate(first):
        for column, other in enumerate(second):
            union = (one | other).sum()
            iou[row, column] = (one & other).sum() / union if union else 0
    return iou


def full_mask_nms(masks: np.ndarray, threshold: float) -> list[int]:
    """Indices of the kept masks."""
    if threshold == 0:
        return list(range(len(masks)))
    kept: list[int] = []
    for index in range(len(masks)):
        if not (full_iou(masks[index : index + 1], masks[kept]) > threshold).any():
            kept.append(index)
    return kept


def full_corrupt(mask: np.ndarray) -> np.ndarray:
    """(H, W) bool, each outline of the whole frame's mask filled as if convex."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)
    filled = np.zeros(mask.shape, np.uint8)
    for contour in contours:
        cv2.fillConvexPoly(filled, contour, 1)
    return filled > 0


def full_remove_overlaps(masks: np.ndarray) -> np.ndarray:
    """Every mask without the pixels of all better ones."""
    return np.array([mask & ~masks[:index].any(axis=0) for index, mask in enumerate(masks)], dtype=bool).reshape(
        masks.shape
    )


def full_rle(mask: np.ndarray) -> str:
    """Run lengths, pixel by pixel."""
    numbers: list[int] = []
    inside = False
    for place, pixel in enumerate(mask.ravel(), start=1):
        if pixel and not inside:
            numbers += [place, 0]
        inside = bool(pixel)
        if inside:
            numbers[-1] += 1
    return " ".join(map(str, numbers))


def full_postprocess(soft: np.ndarray, scores: np.ndarray, thresholds: Thresholds) -> tuple[np.ndarray, np.ndarray]:
    """Masks (M, H, W) bool and their indices in the input, for one cell type's thresholds."""
    masks = soft > thresholds.mask_threshold * 255
    order = np.array([index for index in np.argsort(-scores, kind="stable") if scores[index] >= thresholds.confidence])
    order = order.astype(int)
    order = order[full_mask_nms(masks[order], thresholds.mask_nms_threshold)]
    sizes = masks[order].sum(axis=(1, 2))
    if (sizes > thresholds.min_size).any():
        order = order[sizes > thresholds.min_size]
    elif len(order):
        order = order[[sizes.argmax()]]
    masks = masks[order]
    if thresholds.corrupt:
        masks = np.array([full_corrupt(mask) for mask in masks], dtype=bool).reshape(masks.shape)
    masks = full_remove_overlaps(masks)
    kept = masks.any(axis=(1, 2))
    return masks[kept], order[kept]


def full_score(pred: np.ndarray, truth: np.ndarray) -> float:
    """The metric, by counting; pred (P, H, W) and truth (T, H, W) bool, not both empty."""
    iou = full_iou(truth, pred)
    parts = []
    for threshold in (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95):
        right = wrong = missed = 0
        for row in iou:
            hits = sum(value > threshold for value in row)
            right += hits == 1
            wrong += hits > 1
            missed += hits == 0
        wrong += sum(not (column > threshold).any() for column in iou.T)
        parts.append(right / (right + wrong + missed))
    return sum(parts) / len(parts)
