"""What few images need beyond the published flips: crops mirrored at the diagonal, zoomed, of more or less contrast."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from kernel.training.samples import MIN_CELL_PIXELS, SEMANTIC_STRIDE, Sample, semantic_map


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for each crop. The defaults draw nothing, and leave the random numbers of all else alone."""

    transpose: bool = False  # one crop of two is mirrored at its diagonal: with the flips, all eight symmetries
    zoom: float = 1.0  # cells appear from 1 / zoom to zoom times their size
    contrast: float = 1.0  # gray levels spread about their mean, from 1 / contrast to contrast times

    def draw_side(self, rng: np.random.Generator, size: int) -> int:
        """Side of the square to cut for a crop of `size` pixels, a multiple of the semantic map's stride as that is."""
        if self.zoom == 1:
            return size
        return SEMANTIC_STRIDE * round(size * self.zoom ** rng.uniform(-1, 1) / SEMANTIC_STRIDE)

    def apply(self, sample: Sample, rng: np.random.Generator, size: int, num_classes: int) -> Sample:
        """A sample of a square of `draw_side` pixels as one of `size` pixels, with what is drawn here."""
        if sample.image.shape[-1] != size:
            sample = resized(sample, size, num_classes)
        if self.transpose and rng.integers(2):
            sample = transposed(sample)
        if self.contrast != 1:
            mean = sample.image.mean(dim=(1, 2), keepdim=True)
            factor = self.contrast ** rng.uniform(-1, 1)
            sample = replace(sample, image=mean + (sample.image - mean) * factor)
        return sample


def transposed(sample: Sample) -> Sample:
    """The sample mirrored at its diagonal: x and y change places."""
    return replace(
        sample,
        image=sample.image.transpose(1, 2).contiguous(),
        boxes_xyxy=sample.boxes_xyxy[:, [1, 0, 3, 2]],
        masks=np.ascontiguousarray(sample.masks.transpose(0, 2, 1)),
        semantic=sample.semantic.transpose(1, 2).contiguous(),
    )


def resized(sample: Sample, size: int, num_classes: int) -> Sample:
    """The sample at `size` x `size` pixels; boxes are those of the new masks, cells that became too small left out."""
    interpolation = cv2.INTER_AREA if sample.image.shape[-1] > size else cv2.INTER_LINEAR
    pixels = cv2.resize(sample.image.permute(1, 2, 0).numpy(), (size, size), interpolation=interpolation)
    masks = np.zeros((len(sample.masks), size, size), np.uint8)
    for mask, given in zip(masks, sample.masks, strict=True):
        mask[:] = cv2.resize(given * np.uint8(255), (size, size), interpolation=interpolation) > 127
    kept = np.array([np.count_nonzero(mask) >= MIN_CELL_PIXELS for mask in masks], bool)
    masks, labels = masks[kept], sample.labels[torch.from_numpy(kept)]
    boxes = np.zeros((len(masks), 4), np.int64)
    for box, mask in zip(boxes, masks, strict=True):
        x, y, width, height = cv2.boundingRect(mask)
        box[:] = x, y, x + width, y + height
    return replace(
        sample,
        image=torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
        boxes_xyxy=torch.from_numpy(boxes.astype(np.float32)),
        labels=labels,
        masks=masks,
        semantic=semantic_map(masks, boxes, labels.numpy(), num_classes),
    )
