"""Training crops the slow, obvious way: every cell decoded to a full frame for each crop, then cut and sorted out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from oracles import decode_rle

from kernel.data.synthetic.generate import generate_image
from kernel.ensemble.views import PAD_VALUE
from kernel.masks.rle import encode_rle
from kernel.settings import COMPETITION_SHAPE, PIXEL_MEAN, PIXEL_STD
from kernel.training.samples import MIN_CELL_PIXELS, Sample, TrainingImage


def crowded_image(count: int) -> TrainingImage:
    """A synthetic image of 520 x 704 pixels with `count` cells, 514 at most."""
    made = generate_image("shsy5y", 4, COMPETITION_SHAPE)
    cells = made.masks[:count]
    assert len(cells) == count, f"the image has {len(cells)} cells, not {count}"
    return TrainingImage(
        np.repeat(made.image[..., None], 3, axis=2),
        tuple(crop for crop, _ in cells),
        np.array([corner for _, corner in cells], np.int64).reshape(-1, 2),
        np.zeros(count, np.int64),
        made.cell_type,
    )


def encoded_cells(image: TrainingImage) -> list[str]:
    """The competition's run lengths of an image's cells."""
    height, width = image.image_bgr.shape[:2]
    return [
        encode_rle(crop, corner, (height, width)) for crop, corner in zip(image.crops, image.offsets_yx, strict=True)
    ]


def flipped(array: np.ndarray, flips: tuple[bool, bool]) -> np.ndarray:
    """(..., H, W) mirrored by `flips` (x, y)."""
    flip_x, flip_y = flips
    return array[..., :: -1 if flip_y else 1, :: -1 if flip_x else 1]


def slow_masks(
    frames: np.ndarray, labels: np.ndarray, top: int, left: int, size: int, flips: tuple[bool, bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Masks (M, S, S) and their labels: what is beyond the image's end is empty, at the right and below."""
    masks, kept = [], []
    for frame, label in zip(frames, labels, strict=True):
        inside = flipped(frame[top : top + size, left : left + size], flips)
        mask = np.zeros((size, size), np.uint8)
        mask[: inside.shape[0], : inside.shape[1]] = inside
        if mask.sum() >= MIN_CELL_PIXELS:
            masks.append(mask)
            kept.append(label)
    return np.array(masks, np.uint8).reshape(-1, size, size), np.array(kept, np.int64)


def slow_boxes(masks: np.ndarray) -> np.ndarray:
    """(N, 4) x1 y1 x2 y2 around the pixels, x2 and y2 one past the last."""
    places = [np.nonzero(mask) for mask in masks]
    return np.array([(xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) for ys, xs in places]).reshape(-1, 4)


def decoded_sample(
    image_bgr: np.ndarray,
    rles: Sequence[str],
    labels: np.ndarray,
    place: tuple[int, int],
    size: int,
    flips: tuple[bool, bool],
) -> Sample:
    """What `cut_sample` gives at `place` (top, left), all cells decoded from their run lengths first."""
    (top, left), (height, width) = place, image_bgr.shape[:2]
    frames = np.stack([decode_rle(text, (height, width)) for text in rles])
    masks, kept = slow_masks(frames, labels, top, left, size, flips)
    square = np.full((3, size, size), PAD_VALUE, np.uint8)
    pixels = flipped(image_bgr[top : top + size, left : left + size, ::-1].transpose(2, 0, 1), flips)
    square[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    return Sample(
        image=(torch.from_numpy(square).float() - mean) / std,
        boxes_xyxy=torch.from_numpy(slow_boxes(masks).astype(np.float32)),
        labels=torch.from_numpy(kept),
        masks=masks,
        name="",
    )


def assert_equal_samples(found: Sample, expected: Sample) -> None:
    """Raise AssertionError unless they agree, to the bit, in all but their names."""
    torch.testing.assert_close(found.image, expected.image, rtol=0, atol=0)
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes_xyxy, rtol=0, atol=0)
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_array_equal(found.masks, expected.masks)
