"""Training samples: random crops of annotated images, as mmdet's losses take them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from kernel.data.annotated import list_annotated
from kernel.ensemble.views import ALL_VIEWS, PAD_VALUE, PIXEL_MEAN, PIXEL_STD, view_images
from kernel.errors import InputError

#: Cells of fewer pixels than this inside a crop are left out: what is left at the crop's edge.
MIN_CELL_PIXELS = 12
#: How often a crop without a cell is drawn again.
CROP_TRIES = 20
#: The semantic map is this much smaller than the crop: HTC's semantic head works at stride 4.
SEMANTIC_STRIDE = 4


@dataclass(frozen=True)
class TrainingImage:
    """An image and its cells, each a crop of its mask."""

    image_bgr: np.ndarray  # (H, W, 3) uint8
    crops: tuple[np.ndarray, ...]  # (h, w) bool each
    offsets_yx: np.ndarray  # (N, 2) int64, top-left of each crop in the image
    labels: np.ndarray  # (N,) int64
    cell_type: str
    name: str = ""  # for messages


def read_training_images(
    folder: Path, folds: Collection[int] | None = None, folds_csv: Path | None = None
) -> list[TrainingImage]:
    """The annotated images of a folder, a competition's or a prepared one, the holes of their cells filled.

    `folds` and `folds_csv` select images as in `list_annotated`. Raises InputError as `list_annotated` and
    `read_image` do.
    """
    images = []
    for entry in tqdm(list_annotated(folder, folds, folds_csv), unit="image", desc="reading", mininterval=1):
        masks = entry.masks(fill_holes=True)
        images.append(
            TrainingImage(
                entry.read(),
                masks.crops,
                masks.offsets_yx,
                masks.labels,
                entry.cell_type,
                entry.image_id,
            )
        )
    return images


def check_classes(images: Sequence[TrainingImage], num_classes: int) -> None:
    """Raise InputError for a label that a detector of so many classes has no output for."""
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
    semantic: torch.Tensor  # (1, S / 4, S / 4) int64: 0 background, else 1 + class
    name: str  # image and place, for messages


def cut_sample(
    image: TrainingImage, top: int, left: int, size: int, flips: tuple[bool, bool], num_classes: int
) -> Sample:
    """Cut the square of `size` pixels at (top, left) and flip it by `flips` (x, y).

    Only cells that meet the square are looked at. The square may reach beyond a smaller image: what lies outside
    is padded as in inference.
    """
    pixels = image.image_bgr[top : top + size, left : left + size]
    masks, labels = [], []
    for index in cells_meeting(image, top, left, size):
        crop, (y0, x0) = image.crops[index], image.offsets_yx[index] - (top, left)
        mask = np.zeros((size, size), np.uint8)
        ys, xs = max(y0, 0), max(x0, 0)
        mask[ys : max(y0 + crop.shape[0], 0), xs : max(x0 + crop.shape[1], 0)] = crop[
            ys - y0 : size - y0, xs - x0 : size - x0
        ]
        if int(mask.sum()) >= MIN_CELL_PIXELS:
            masks.append(mask)
            labels.append(image.labels[index])
    stacked = np.stack(masks) if masks else np.zeros((0, size, size), np.uint8)
    flip_x, flip_y = flips
    # The pixels are flipped before they are padded, so a padded crop's masks must be flipped within the pixels.
    height, width = pixels.shape[:2]
    inside = stacked[:, :height, :width]
    stacked[:, :height, :width] = inside[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1].copy()
    view = next(v for v in ALL_VIEWS if (v.flip_x, v.flip_y) == flips)
    tensor = view_images(pixels, (view,))[0]
    padding = torch.tensor([(PAD_VALUE - mean) / std for mean, std in zip(PIXEL_MEAN, PIXEL_STD, strict=True)])
    padded = padding[:, None, None].repeat(1, size, size)
    padded[:, : tensor.shape[1], : tensor.shape[2]] = tensor[:, :size, :size]
    label_array = np.asarray(labels, np.int64)
    return Sample(
        image=padded,
        boxes_xyxy=torch.from_numpy(boxes_of_masks(stacked)),
        labels=torch.from_numpy(label_array),
        masks=stacked,
        semantic=semantic_map(stacked, label_array, num_classes),
        name=f"{image.name or image.cell_type} at row {top}, column {left}",
    )


def flip_paste(
    image: TrainingImage, top: int, left: int, size: int, flips: tuple[bool, bool], num_classes: int
) -> Sample:
    """The crop of `cut_sample` averaged with its mirror image (left to right); the cells of both are there."""
    one = cut_sample(image, top, left, size, flips, num_classes)
    other = cut_sample(image, top, left, size, (not flips[0], flips[1]), num_classes)
    masks, labels = np.concatenate([one.masks, other.masks]), torch.cat([one.labels, other.labels])
    return Sample(
        # Normalising is linear, so the mean may be taken after it.
        image=(one.image + other.image) / 2,
        boxes_xyxy=torch.cat([one.boxes_xyxy, other.boxes_xyxy]),
        labels=labels,
        masks=masks,
        semantic=semantic_map(masks, labels.numpy(), num_classes),
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


def boxes_of_masks(masks: np.ndarray) -> np.ndarray:
    """Tight boxes (N, 4) float32 x1 y1 x2 y2 of non-empty masks (N, H, W); x2 and y2 are one past the last pixel."""
    boxes = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(boxes, masks, strict=True):
        ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box[:] = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    return boxes


def semantic_map(masks: np.ndarray, labels: np.ndarray, num_classes: int) -> torch.Tensor:
    """The class of every fourth pixel, (1, S / 4, S / 4) int64: 0 is background, 1 + label a cell.

    The semantic head has as many outputs as there are classes and none for the background, so the last two classes
    share one; what it is for is telling cells from background.
    """
    step = SEMANTIC_STRIDE
    result = np.zeros(tuple(side // step for side in masks.shape[1:]), np.int64)
    for mask, label in zip(masks, labels, strict=True):
        result[mask[step // 2 :: step, step // 2 :: step] > 0] = min(int(label) + 1, num_classes - 1)
    return torch.from_numpy(result)[None]


class CropDataset(Dataset[Sample]):
    """Random crops: sample `index` is a function of the seed and the index alone, whatever worker makes it.

    Cell types are drawn equally often, images of a type as well. `paste_chance` is that of `flip_paste`, which only
    cort images take part in: their cells are sparse.
    """

    def __init__(
        self,
        images: Sequence[TrainingImage],
        length: int,
        crop_size: int,
        num_classes: int,
        seed: int,
        paste_chance: float = 0.0,
    ):
        self.by_type: dict[str, list[TrainingImage]] = {}
        for image in images:
            self.by_type.setdefault(image.cell_type, []).append(image)
        self.length = length
        self.crop_size = crop_size
        self.num_classes = num_classes
        self.seed = seed
        self.paste_chance = paste_chance

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        images = self.by_type[sorted(self.by_type)[index % len(self.by_type)]]
        image = images[rng.integers(len(images))]
        height, width = image.image_bgr.shape[:2]
        may_paste = self.paste_chance > 0 and image.cell_type == "cort"
        cut = flip_paste if may_paste and rng.random() < self.paste_chance else cut_sample
        sample = None
        for _ in range(CROP_TRIES):
            top = int(rng.integers(max(height - self.crop_size, 0) + 1))
            left = int(rng.integers(max(width - self.crop_size, 0) + 1))
            flips = (bool(rng.integers(2)), bool(rng.integers(2)))
            sample = cut(image, top, left, self.crop_size, flips, self.num_classes)
            if len(sample.labels):
                break
        assert sample is not None
        return sample


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
        "gt_semantic_seg": torch.stack([s.semantic for s in samples]),
        "names": [s.name for s in samples],
    }
