"""Pictures for people: an image with the outlines of its masks."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from kernel.images.writing import write_image_file
from kernel.masks.rle import decode_rle_crop

#: Pictures are enlarged to about this many pixels on the longer side, so that outlines stay thin beside cells.
PICTURE_SIDE = 1400
CAPTION_HEIGHT = 44


def draw_picture(path: Path, image_bgr: np.ndarray, rles: Sequence[str], caption: str) -> None:
    """Write a PNG of an image (H, W, 3) uint8 BGR, each mask's outline in a colour of its own, and a caption below.

    OpenCV's fonts have ASCII alone, and half of a character ends its process: others become question marks.
    """
    height, width = image_bgr.shape[:2]
    scale = max(1, round(PICTURE_SIDE / max(height, width)))
    picture = cv2.resize(stretch_gray(image_bgr), (width * scale, height * scale), interpolation=cv2.INTER_LINEAR)
    for index, text in enumerate(rles):
        crop, (top, left) = decode_rle_crop(text, (height, width))
        enlarged = np.kron(crop.astype(np.uint8), np.ones((scale, scale), np.uint8))
        outlines, _ = cv2.findContours(
            enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE, offset=(left * scale, top * scale)
        )
        cv2.drawContours(picture, outlines, -1, outline_colour(index), 1)
    strip = np.full((CAPTION_HEIGHT, picture.shape[1], 3), 24, np.uint8)
    text = caption.encode("ascii", "replace").decode("ascii")
    cv2.putText(strip, text, (12, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (240, 240, 240), 1, cv2.LINE_AA)
    write_image_file(path, np.vstack([picture, strip]))


def stretch_gray(image: np.ndarray) -> np.ndarray:
    """An image uint8 with its gray levels stretched: the 0.5th percentile is black, the 99.5th white."""
    low, high = np.percentile(image, (0.5, 99.5))
    levels = np.arange(256, dtype=np.float32)
    # Each level once: float32 of a large image would take four times its memory.
    return np.clip((levels - low) * (255 / max(high - low, 1)), 0, 255).astype(np.uint8)[image]


def outline_colour(index: int) -> tuple[int, int, int]:
    """A bright BGR colour that differs from those before it: hues a golden section apart."""
    red, green, blue = colorsys.hsv_to_rgb((index * 0.618034) % 1, 0.85, 1.0)
    return round(blue * 255), round(green * 255), round(red * 255)
