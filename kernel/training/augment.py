"""Augmentation beyond the published flips, for few images: crops at any angle, zoomed, of more or less contrast, and
drawn towards the edges of images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from kernel.training.samples import MIN_CELL_PIXELS, Sample


@dataclass(frozen=True)
class Turn:
    """How a crop lies in its image: turned by `angle` radians, with cells at `zoom` times their size."""

    angle: float = 0.0
    zoom: float = 1.0

    def side(self, size: int) -> int:
        """Side of the smallest upright square that holds a crop of `size` pixels."""
        spread = abs(math.cos(self.angle)) + abs(math.sin(self.angle))
        return math.ceil(size * spread / self.zoom - 1e-9)

    def matrix(self, side: int, size: int) -> np.ndarray:
        """(2, 3) float64, from pixel x, y of a square of `side` to that of a crop of `size` with the same centre."""
        cosine, sine = math.cos(self.angle) * self.zoom, math.sin(self.angle) * self.zoom
        linear = np.array([[cosine, -sine], [sine, cosine]])
        shift = (size - 1) / 2 - linear @ np.full(2, (side - 1) / 2)
        return np.column_stack([linear, shift])


NO_TURN = Turn()


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each crop. The defaults draw nothing, so that all other random numbers are as without it.

    Half of the crops are turned and zoomed by `rotate` and `zoom`. The others keep their pixels as they are, and lie at
    a right angle: predictions are made of such, and interpolation blurs (a third of an image's detail is lost).
    """

    rotate: bool = False  # crops lie at any angle
    zoom: float = 1.0  # cells appear from 1 / zoom to zoom times their size
    contrast: float = 1.0  # gray levels spread about their mean, from 1 / contrast to contrast times

    @property
    def turns(self) -> bool:
        """Whether crops may be turned or zoomed."""
        return self.rotate or self.zoom != 1

    def draw_turn(self, rng: np.random.Generator) -> Turn:
        """How the next crop lies."""
        if not self.turns:
            return NO_TURN
        if rng.random() < 0.5:
            return Turn(int(rng.integers(4)) * math.pi / 2 if self.rotate else 0.0)
        zoom = 1.0 if self.zoom == 1 else self.zoom ** rng.uniform(-1, 1)
        return Turn(rng.uniform(0, 2 * math.pi) if self.rotate else 0.0, zoom)

    def draw_start(self, rng: np.random.Generator, length: int, side: int) -> int:
        """Where along an axis of `length` pixels the next square of `side` begins.

        Every place inside the image is equally likely. With turned crops, half a square more counts at either end, and
        what would begin there begins at the edge: a turned crop is the middle of its square, so it never shows what
        lies there.
        """
        last = max(length - side, 0)
        if not self.turns:
            return int(rng.integers(last + 1))
        return int(np.clip(rng.integers(-(side // 2), last + side // 2 + 1), 0, last))

    def apply(self, sample: Sample, turn: Turn, rng: np.random.Generator, size: int) -> Sample:
        """A sample of a square of `turn.side(size)` pixels, turned to one of `size` pixels and changed in contrast."""
        if turn != NO_TURN:
            sample = turned(sample, turn, size)
        if self.contrast != 1:
            mean = sample.image.mean(dim=(1, 2), keepdim=True)
            factor = self.contrast ** rng.uniform(-1, 1)
            sample = replace(sample, image=mean + (sample.image - mean) * factor)
        return sample


def turned(sample: Sample, turn: Turn, size: int) -> Sample:
    """The middle of the sample as a crop of `size` pixels that lies as `turn` says.

    Boxes are those of the new masks; cells of fewer than MIN_CELL_PIXELS are left out. Of each mask only its own box is
    warped.
    """
    matrix = turn.matrix(sample.image.shape[-1], size)
    pixels = cv2.warpAffine(
        sample.image.permute(1, 2, 0).numpy(),
        matrix,
        (size, size),
        flags=cv2.INTER_CUBIC,  # bilinear blurs twice as much
        borderMode=cv2.BORDER_REFLECT,
    )
    masks, kept = np.zeros((len(sample.masks), size, size), np.uint8), []
    boxes = np.zeros((len(masks), 4), np.float32)
    for index, (mask, box) in enumerate(zip(sample.masks, sample.boxes_xyxy.long().tolist(), strict=True)):
        x, y, window = turned_window(mask, box, matrix, size)
        if np.count_nonzero(window) < MIN_CELL_PIXELS:
            continue
        masks[len(kept), y : y + window.shape[0], x : x + window.shape[1]] = window
        left, top, width, height = cv2.boundingRect(window)
        boxes[len(kept)] = x + left, y + top, x + left + width, y + top + height
        kept.append(index)
    return replace(
        sample,
        image=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
        boxes_xyxy=torch.from_numpy(boxes[: len(kept)]),
        labels=sample.labels[kept],
        masks=masks[: len(kept)],
    )


def turned_window(mask: np.ndarray, box_xyxy: list[int], matrix: np.ndarray, size: int) -> tuple[int, int, np.ndarray]:
    """Where a mask, which is empty outside its box, comes to lie: x, y of a window, and the window (h, w) uint8."""
    x0, y0, x1, y1 = box_xyxy
    corners = matrix @ np.array([[x0, x1, x0, x1], [y0, y0, y1, y1], [1, 1, 1, 1]], np.float64)
    left, top = np.clip(np.floor(corners.min(axis=1)).astype(int) - 1, 0, size).tolist()
    right, bottom = np.clip(np.ceil(corners.max(axis=1)).astype(int) + 1, 0, size).tolist()
    if left >= right or top >= bottom:
        return left, top, np.zeros((0, 0), np.uint8)
    shift = matrix[:, :2] @ np.array([x0, y0]) + matrix[:, 2] - (left, top)
    window = cv2.warpAffine(
        mask[y0:y1, x0:x1] * np.uint8(255),
        np.column_stack([matrix[:, :2], shift]),
        (right - left, bottom - top),
        flags=cv2.INTER_LINEAR,
    )
    return left, top, (window > 127).astype(np.uint8)
