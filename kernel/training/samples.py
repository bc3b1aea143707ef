"""Training samples: crops of annotated images, as mmdet's losses take them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from tqdm import tqdm

from kernel.data.annotated import AnnotatedImage, list_annotated
from kernel.data.pictures import PictureIndex, picture_of
from kernel.ensemble.views import ALL_VIEWS, PAD_VALUE, view_images
from kernel.errors import InputError
from kernel.log import LOG
from kernel.settings import PIXEL_MEAN, PIXEL_STD
from kernel.text import first_names

#: Cells of fewer pixels than this inside a crop are left out: what is left at the crop's edge.
MIN_CELL_PIXELS = 12


@dataclass(frozen=True)
class TrainingImage:
    """An image and its cells, each a crop of its mask."""

    image_bgr: np.ndarray  # (H, W, 3) uint8
    crops: tuple[np.ndarray, ...]  # (h, w) bool each
    offsets_yx: np.ndarray  # (N, 2) int64, top-left of each crop in the image
    labels: np.ndarray  # (N,) int64
    cell_type: str
    name: str = ""  # for messages
    pixel_um: float | None = None  # the side of a pixel in micrometres; None: not known


def read_training_images(folder: Path) -> list[TrainingImage]:
    """The annotated images of a folder, a competition's or a prepared one, the holes of their cells filled.

    Raises:
        InputError: as `list_annotated` and `read_image` do.
    """
    return read_entries(list_annotated(folder))


def read_entries(entries: Sequence[AnnotatedImage]) -> list[TrainingImage]:
    """The pixels and cells of `entries`, holes filled.

    Raises:
        InputError: as `AnnotatedImage.read` and `.masks` do.
    """
    images = []
    for entry in tqdm(entries, unit="image", desc="reading", mininterval=1):
        masks = entry.masks(fill_holes=True)
        images.append(
            TrainingImage(
                entry.read(),
                masks.crops,
                masks.offsets_yx,
                masks.labels,
                entry.cell_type,
                entry.image_id,
                entry.pixel_um,
            )
        )
    return images


def leave_out_pictures(images: Sequence[TrainingImage], held_out: PictureIndex, source: object) -> list[TrainingImage]:
    """The images without those whose pictures are held out, under whatever ids; a warning names these.

    Args:
        images: to train on.
        held_out: the pictures to score.
        source: of the images, for the warning.

    Raises:
        InputError: no image is left.
    """
    kept, dropped = [], []
    for image in images:
        same = held_out.find(picture_of(image.name, image.image_bgr)) if held_out.pictures else None
        if same is None:
            kept.append(image)
        else:
            dropped.append(f"{image.name} is {same.image_id}")
    if dropped and not kept:
        raise InputError(f"{source}: all images are pictures of the validation fold too ({dropped[0]} first)")
    if dropped:
        LOG.warning(
            "%s: %d images are pictures of the validation fold too, and are not trained on: %s",
            source, len(dropped), first_names(dropped),
        )  # fmt: skip
    return kept


def large_cells(image: TrainingImage) -> np.ndarray:
    """Indices of the cells that are large enough for a crop: others are left out as they are cut, before any zoom."""
    return np.flatnonzero([np.count_nonzero(crop) >= MIN_CELL_PIXELS for crop in image.crops])


def count_small_cells(image: TrainingImage) -> int:
    """How many cells of an image are too small for any crop."""
    return len(image.crops) - len(large_cells(image))


def images_digest(images: Sequence[TrainingImage]) -> str:
    """A hash of all that a training sees of the images, and tells of them in its weights, in their order."""
    digest = hashlib.sha256()
    for image in images:
        arrays = (image.image_bgr, image.offsets_yx, image.labels, *image.crops)
        shapes = [array.shape for array in arrays]
        # Where the size of pixels is not known, runs are the same ones that they were before it counted.
        pixel = [] if image.pixel_um is None else [image.pixel_um]
        digest.update(json.dumps([image.name, image.cell_type, shapes, *pixel]).encode())
        for array in arrays:
            digest.update(array.tobytes())
    return digest.hexdigest()


def check_classes(images: Sequence[TrainingImage], num_classes: int) -> None:
    """Refuse labels that a detector of `num_classes` has no output for.

    Raises:
        InputError: names the highest class.
    """
    highest = max((int(image.labels.max()) for image in images if len(image.labels)), default=-1)
    if highest >= num_classes:
        raise InputError(
            f"the training images have cells of class {highest + 1}, and the detector has {num_classes} classes: "
            "raise num_classes in the recipe's [detector] (LIVECell has 8)"
        )


@dataclass(frozen=True)
class Sample:
    """One training crop."""

    image: torch.Tensor  # (3, S, S) float32, normalised RGB
    boxes_xyxy: torch.Tensor  # (N, 4) float32 pixels of the crop
    labels: torch.Tensor  # (N,) int64
    masks: np.ndarray  # (N, S, S) uint8
    name: str  # image and place, for messages


def cut_sample(image: TrainingImage, top: int, left: int, size: int, flips: tuple[bool, bool]) -> Sample:
    """Cut the square of `size` pixels at (top, left) and flip it by `flips` (x, y).

    Only cells that meet the square are looked at, and of each only its own window: a full mask is written once, where
    its pixels are. The square may reach beyond a smaller image: what lies outside is padded as in inference.
    """
    pixels = image.image_bgr[top : top + size, left : left + size]
    # The pixels are flipped before they are padded, so a padded crop's masks are flipped within the pixels.
    height, width = pixels.shape[:2]
    flip_x, flip_y = flips
    windows, boxes, labels = [], [], []
    for index in cells_meeting(image, top, left, size).tolist():
        y, x = (image.offsets_yx[index] - (top, left)).tolist()
        inside = image.crops[index][max(-y, 0) : size - y, max(-x, 0) : size - x]
        if np.count_nonzero(inside) < MIN_CELL_PIXELS:
            continue
        x0, y0, w, h = cv2.boundingRect(inside.view(np.uint8))
        windows.append(inside[y0 : y0 + h, x0 : x0 + w][:: -1 if flip_y else 1, :: -1 if flip_x else 1])
        x0, y0 = x0 + max(x, 0), y0 + max(y, 0)
        if flip_x:
            x0 = width - x0 - w
        if flip_y:
            y0 = height - y0 - h
        boxes.append((x0, y0, x0 + w, y0 + h))
        labels.append(image.labels[index])
    masks = np.zeros((len(windows), size, size), np.uint8)
    for mask, window, (x0, y0, x1, y1) in zip(masks, windows, boxes, strict=True):
        mask[y0:y1, x0:x1] = window
    return Sample(
        image=normalised_square(pixels, size, flips),
        boxes_xyxy=torch.from_numpy(np.asarray(boxes, np.float32).reshape(-1, 4)),
        labels=torch.from_numpy(np.asarray(labels, np.int64)),
        masks=masks,
        name=f"{image.name or image.cell_type} at row {top}, column {left}",
    )


def normalised_square(pixels_bgr: np.ndarray, size: int, flips: tuple[bool, bool]) -> torch.Tensor:
    """(3, size, size) float32 of pixels (H, W, 3) uint8, no side above `size`; flipped and padded as in inference."""
    view = next(v for v in ALL_VIEWS if (v.flip_x, v.flip_y) == flips)
    tensor = view_images(pixels_bgr, (view,))[0]
    if tensor.shape[1:] == (size, size):
        return tensor
    padding = torch.tensor([(PAD_VALUE - mean) / std for mean, std in zip(PIXEL_MEAN, PIXEL_STD, strict=True)])
    padded = padding[:, None, None].repeat(1, size, size)
    padded[:, : tensor.shape[1], : tensor.shape[2]] = tensor[:, :size, :size]
    return padded


def flip_paste(image: TrainingImage, top: int, left: int, size: int, flips: tuple[bool, bool]) -> Sample:
    """The crop of `cut_sample` averaged with its mirror image (left to right), with the cells of both."""
    one = cut_sample(image, top, left, size, flips)
    other = cut_sample(image, top, left, size, (not flips[0], flips[1]))
    return Sample(
        # Normalising is linear, so the mean may be taken after it.
        image=(one.image + other.image) / 2,
        boxes_xyxy=torch.cat([one.boxes_xyxy, other.boxes_xyxy]),
        labels=torch.cat([one.labels, other.labels]),
        masks=np.concatenate([one.masks, other.masks]),
        name=f"{one.name}, with its mirror image",
    )


def cells_meeting(image: TrainingImage, top: int, left: int, size: int) -> np.ndarray:
    """Indices of the cells whose box meets the square."""
    if len(image.crops) == 0:
        return np.zeros(0, np.int64)
    sizes = np.array([crop.shape for crop in image.crops])
    starts, ends = image.offsets_yx, image.offsets_yx + sizes
    corner = np.array([top, left])
    return np.flatnonzero(((starts < corner + size) & (ends > corner)).all(axis=1))


def collate(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch in mmdet's terms."""
    from mmdet.core import BitmapMasks

    size = samples[0].image.shape[-1]
    meta = {
        "img_shape": (size, size, 3),
        "ori_shape": (size, size, 3),
        "pad_shape": (size, size, 3),
        "batch_input_shape": (size, size),
        "scale_factor": 1.0,
        "flip": False,
    }
    return {
        "images": torch.stack([s.image for s in samples]),
        "img_metas": [dict(meta) for _ in samples],
        "gt_bboxes": [s.boxes_xyxy for s in samples],
        "gt_labels": [s.labels for s in samples],
        "gt_masks": [BitmapMasks(s.masks, size, size) for s in samples],
        "names": [s.name for s in samples],
    }


def packed(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch of `collate` with arrays in its tensors' place.

    Between processes arrays go through a pipe. Tensors would go through /dev/shm, which is small in containers: where
    it is full, the batch is lost without a word, and its reader waits for ever.
    """
    return batch | {
        "images": batch["images"].numpy(),
        **{name: [value.numpy() for value in batch[name]] for name in ("gt_bboxes", "gt_labels")},
    }


def unpacked(batch: dict[str, Any]) -> dict[str, Any]:
    """What `packed` was made of."""
    return batch | {
        "images": torch.from_numpy(batch["images"]),
        **{name: [torch.from_numpy(value) for value in batch[name]] for name in ("gt_bboxes", "gt_labels")},
    }


def semantic_maps(batch: dict[str, Any], num_classes: int, stride: int) -> torch.Tensor:
    """The class of every `stride`-th pixel of a batch of `collate`, (B, 1, S / stride, S / stride) int64: 0 is
    background, 1 + label a cell; a later cell covers an earlier one.

    A semantic head of `num_classes` has that many outputs, background included, so the last two classes share one; the
    head only has to tell cells from background.
    """
    maps = []
    for cells, labels in zip(batch["gt_masks"], batch["gt_labels"], strict=True):
        found = np.zeros((cells.height // stride, cells.width // stride), np.int64)
        first = stride // 2
        for mask, label in zip(cells.masks, labels.tolist(), strict=True):
            found[mask[first::stride, first::stride] > 0] = min(label + 1, num_classes - 1)
        maps.append(torch.from_numpy(found)[None])
    return torch.stack(maps)
