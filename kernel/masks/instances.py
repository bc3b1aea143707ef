"""Cells as crops: each a small array and its place in the image, never a full frame, with a score and a label.

`Instances` hold soft masks (probability x 255), `CellMasks` binary ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from kernel.masks.rle import encode_rle

#: The window of an empty crop.
_NO_WINDOW = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class MaskCrops:
    """N cells of one image, as `Instances` or `CellMasks`.

    Args:
        crops: N arrays (h, w) of `crop_dtype`; a crop may be empty (no pixel at all).
        offsets_yx: (N, 2) int64, row and column in the image of each crop's top left pixel.
        boxes_xyxy: (N, 4) float32 pixels, the detector's boxes (not the crops' windows).
        scores: (N,) float32.
        labels: (N,) int64, a cell type's place in `kernel.settings.CELL_TYPES`.
        image_shape: height, width.

    Raises:
        ValueError: the fields differ in length, a crop leaves the image or has another dtype, a score is NaN.
    """

    crop_dtype: ClassVar[type[np.generic]]

    crops: tuple[np.ndarray, ...]
    offsets_yx: np.ndarray
    boxes_xyxy: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image_shape: tuple[int, int]

    def __post_init__(self) -> None:
        count = len(self.crops)
        for name, dtype, shape in (
            ("offsets_yx", np.int64, (count, 2)),
            ("boxes_xyxy", np.float32, (count, 4)),
            ("scores", np.float32, (count,)),
            ("labels", np.int64, (count,)),
        ):
            values = np.asarray(getattr(self, name), dtype=dtype)
            if values.shape != shape and not (count == 0 and values.size == 0):
                raise ValueError(f"{name} has shape {values.shape}; {count} crops need {shape}")
            object.__setattr__(self, name, values.reshape(shape))
        height, width = (int(side) for side in self.image_shape)
        object.__setattr__(self, "image_shape", (height, width))
        object.__setattr__(self, "crops", tuple(self.crops))
        if np.isnan(self.scores).any():
            raise ValueError("a score is not a number")
        if (self.labels < 0).any():
            raise ValueError(f"labels must not be negative, got {self.labels.min()}")
        for index, crop in enumerate(self.crops):
            if crop.ndim != 2 or crop.dtype != self.crop_dtype:
                raise ValueError(
                    f"crop {index} is {crop.dtype} with shape {crop.shape}; expected (h, w) {np.dtype(self.crop_dtype)}"
                )
        windows = self.windows
        outside = (windows[:, :2] < 0).any(1) | (windows[:, 2] > height) | (windows[:, 3] > width)
        if outside.any():
            index = int(np.flatnonzero(outside)[0])
            raise ValueError(
                f"crop {index} covers rows and columns {windows[index].tolist()} (y0, x0, y1, x1), "
                f"which leaves the image of {height} x {width}"
            )

    @classmethod
    def empty(cls, image_shape: tuple[int, int]) -> Self:
        """No cells in an image of this height and width."""
        none = np.zeros(0)
        return cls((), none, none, none, none, image_shape)

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def windows(self) -> np.ndarray:
        """(N, 4) int64 y0, x0, y1, x1 of each crop in the image, the end exclusive."""
        shapes = np.array([crop.shape for crop in self.crops], dtype=np.int64).reshape(len(self), 2)
        return np.concatenate([self.offsets_yx, self.offsets_yx + shapes], axis=1)

    def select(self, indices: np.ndarray | Iterable[int]) -> Self:
        """The cells at `indices`, in that order."""
        chosen = np.fromiter(indices, dtype=np.int64)
        return replace(
            self,
            crops=tuple(self.crops[index] for index in chosen),
            offsets_yx=self.offsets_yx[chosen],
            boxes_xyxy=self.boxes_xyxy[chosen],
            scores=self.scores[chosen],
            labels=self.labels[chosen],
        )


@dataclass(frozen=True, eq=False)
class Instances(MaskCrops):
    """Cells with soft masks: crops are uint8, the probability x 255, truncated."""

    crop_dtype = np.uint8


@dataclass(frozen=True, eq=False)
class CellMasks(MaskCrops):
    """Cells with binary masks: crops are bool.

    Args:
        cell_type: of the whole image, after post-processing; None: before it, or where nothing was detected.
        others: as in `MaskCrops`.
    """

    crop_dtype = np.bool_

    cell_type: str | None = None

    @property
    def sizes(self) -> np.ndarray:
        """(N,) int64, the pixels of each mask."""
        return np.array([np.count_nonzero(crop) for crop in self.crops], dtype=np.int64)

    def with_crops(self, crops: Iterable[np.ndarray]) -> Self:
        """The same cells with other masks in the same windows."""
        return replace(self, crops=tuple(crops))

    def rles(self) -> list[str]:
        """The run lengths of each mask, as the submission has them."""
        return [
            encode_rle(crop, offset, self.image_shape) for crop, offset in zip(self.crops, self.offsets_yx, strict=True)
        ]


def tight_window(mask: np.ndarray) -> tuple[int, int, int, int]:
    """y0, x0, y1, x1 (end exclusive) around the pixels of a mask (h, w) that are not zero; all 0 without any."""
    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0:
        return _NO_WINDOW
    columns = np.flatnonzero(mask.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _paste_weights(low: float, high: float, start: int, stop: int, bins: int) -> np.ndarray:
    """(stop - start, bins) float32: the weight of each mask row (or column) in each image row (or column).

    Bilinear with half-pixel centres: the centre of image pixel p is at (p + 0.5 - low) / (high - low) * bins - 0.5 in
    the mask, and is a mean of the two mask pixels around it; outside the mask there is zero.
    """
    centres = np.arange(start, stop, dtype=np.float64) + 0.5
    position = (centres - low) / (high - low) * bins - 0.5
    return np.maximum(1 - np.abs(position[:, None] - np.arange(bins)), 0).astype(np.float32)


def paste_instances(
    mask_probs: np.ndarray,
    boxes_xyxy: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    image_shape: tuple[int, int],
) -> Instances:
    """Paste each box's mask into the image, as mmdet does on the CPU, but without the full frame.

    A bilinear resize is separable, so a crop is two small matrix products: rows x mask x columns. As in mmdet it
    reaches from one pixel before the box to one after it, clipped to the image. A box without area, not finite or
    outside the image gives an empty crop.

    Args:
        mask_probs: (N, M, M') float, probabilities 0 to 1, on a grid over the box.
        boxes_xyxy: (N, 4) float pixels.
        scores: (N,) float.
        labels: (N,) int.
        image_shape: height, width.

    Returns:
        N instances in the same order.

    Raises:
        ValueError: the arguments differ in length.
    """
    height, width = image_shape
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    mask_probs = np.asarray(mask_probs, dtype=np.float32)
    if len(mask_probs) != len(boxes):
        raise ValueError(f"{len(mask_probs)} masks for {len(boxes)} boxes")
    crops: list[np.ndarray] = []
    offsets = np.zeros((len(boxes), 2), dtype=np.int64)
    for index, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        crop = np.zeros((0, 0), np.uint8)
        if np.isfinite((x0, y0, x1, y1)).all() and x1 > x0 and y1 > y0:
            left, right = max(int(np.floor(x0)) - 1, 0), min(int(np.ceil(x1)) + 1, width)
            top, bottom = max(int(np.floor(y0)) - 1, 0), min(int(np.ceil(y1)) + 1, height)
            if right > left and bottom > top:
                probs = mask_probs[index]
                rows = _paste_weights(y0, y1, top, bottom, probs.shape[0])
                columns = _paste_weights(x0, x1, left, right, probs.shape[1])
                # Rounding may lift a probability of 1 just above 255, which would wrap around to 0.
                crop = np.clip(rows @ probs @ columns.T * 255, 0, 255).astype(np.uint8)
                offsets[index] = top, left
        crops.append(crop)
    return Instances(tuple(crops), offsets, boxes, scores, labels, (height, width))
