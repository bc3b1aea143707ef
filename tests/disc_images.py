"""Training images of bright discs, which a tiny detector can learn."""

from __future__ import annotations

import cv2
import numpy as np

from kernel.training.samples import TrainingImage


def disc_image(seed: int, side: int, cells: int, kind: str = "cort", label: int = 2) -> TrainingImage:
    """Bright discs on noise, each a cell."""
    rng = np.random.default_rng(seed)
    pixels = rng.normal(110, 8, (side, side)).clip(0, 255).astype(np.uint8)
    crops, offsets = [], []
    for _ in range(cells):
        radius = int(rng.integers(6, 11))
        y, x = rng.integers(radius, side - radius, 2).tolist()
        cv2.circle(pixels, (x, y), radius, 230, -1)
        disc = np.zeros((2 * radius + 1, 2 * radius + 1), np.uint8)
        cv2.circle(disc, (radius, radius), radius, 1, -1)
        crops.append(disc[: side - y + radius, : side - x + radius].astype(bool))
        offsets.append((y - radius, x - radius))
    return TrainingImage(
        np.repeat(pixels[..., None], 3, axis=2),
        tuple(crops),
        np.array(offsets, np.int64).reshape(-1, 2),
        np.full(cells, label),
        kind,
    )
