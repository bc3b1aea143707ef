"""Augmentation: nothing is drawn where nothing is asked for; masks, boxes and semantic map follow the pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from slow_samples import assert_equal_samples

from kernel.training.augment import Augmentation, resized, transposed
from kernel.training.crops import CropDataset
from kernel.training.samples import MIN_CELL_PIXELS, Sample, TrainingImage, cut_sample

CLASSES = 3


def cell_image(cells: tuple[tuple[int, int, int, int], ...]) -> TrainingImage:
    """Bright rectangles (y, x, height, width) on a dark ground of 160 x 200 pixels, of classes 0, 1, 2, 0, ..."""
    pixels = np.full((160, 200, 3), 60, np.uint8)
    for y, x, height, width in cells:
        pixels[y : y + height, x : x + width] = 200
    crops = tuple(np.ones(cell[2:], bool) for cell in cells)
    offsets = np.array([cell[:2] for cell in cells], np.int64).reshape(-1, 2)
    return TrainingImage(pixels, crops, offsets, np.arange(len(cells)) % CLASSES, "cort")


CELLS = ((10, 20, 24, 40), (60, 70, 33, 17), (100, 12, 12, 60), (90, 120, 40, 40))


def sample_of(size: int = 128, cells: tuple[tuple[int, int, int, int], ...] = CELLS) -> Sample:
    return cut_sample(cell_image(cells), 0, 0, size, (False, False), CLASSES)


def assert_boxes_fit(sample: Sample) -> None:
    """Each box ends where its mask does."""
    for (x0, y0, x1, y1), mask in zip(sample.boxes_xyxy.int().tolist(), sample.masks, strict=True):
        rows, columns = np.nonzero(mask)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def assert_bright_where_masked(sample: Sample) -> None:
    """But for the pixels at the edges, those of cells are bright and no others are."""
    bright = sample.image[0] > 0
    assert (bright.numpy() != sample.masks.any(axis=0)).mean() < 0.02


def test_without_augmentation_the_crops_are_as_ever() -> None:
    image = cell_image(CELLS)
    augmentation, rng = Augmentation(), np.random.default_rng(0)
    before = rng.bit_generator.state
    assert augmentation.draw_side(rng, 128) == 128
    sample = sample_of()
    assert augmentation.apply(sample, rng, 128, CLASSES) is sample
    assert rng.bit_generator.state == before
    plain, same = (CropDataset([image], 8, 64, CLASSES, 3, **given) for given in ({}, {"augmentation": augmentation}))
    for index in range(8):
        assert_equal_samples(plain[index], same[index])


def test_transposition_mirrors_all_at_the_diagonal() -> None:
    sample = sample_of()
    mirrored = transposed(sample)
    assert_boxes_fit(mirrored)
    assert_bright_where_masked(mirrored)
    assert mirrored.boxes_xyxy[0].tolist() == [10, 20, 34, 60] and sample.boxes_xyxy[0].tolist() == [20, 10, 60, 34]
    assert torch.equal(mirrored.semantic[0], sample.semantic[0].T)
    assert_equal_samples(transposed(mirrored), sample)


@pytest.mark.parametrize("size", [64, 96, 160, 256])
def test_resizing_moves_pixels_masks_and_boxes_alike(size: int) -> None:
    sample = sample_of()
    other = resized(sample, size, CLASSES)
    assert other.image.shape == (3, size, size) and other.semantic.shape == (1, size // 4, size // 4)
    assert other.masks.shape == (len(CELLS), size, size)
    assert_boxes_fit(other)
    assert_bright_where_masked(other)
    torch.testing.assert_close(other.boxes_xyxy, sample.boxes_xyxy * size / 128, atol=1.0, rtol=0)
    assert torch.equal(other.labels, sample.labels)
    share = np.count_nonzero(other.semantic) / other.semantic.numel()
    assert share == pytest.approx(np.count_nonzero(sample.semantic) / sample.semantic.numel(), rel=0.15)


def test_cells_that_become_too_small_are_left_out() -> None:
    sample = sample_of(cells=((10, 10, 4, 4), (40, 40, 30, 30)))
    assert len(sample.labels) == 2
    smaller = resized(sample, 64, CLASSES)
    assert smaller.labels.tolist() == [1] and np.count_nonzero(smaller.masks) >= MIN_CELL_PIXELS


def test_a_sample_without_cells_stays_one() -> None:
    empty = resized(transposed(sample_of(cells=())), 64, CLASSES)
    assert empty.masks.shape == (0, 64, 64) and empty.boxes_xyxy.shape == (0, 4) and len(empty.labels) == 0
    assert not empty.semantic.any()


def test_contrast_spreads_gray_levels_about_their_mean() -> None:
    sample = sample_of()
    rng = np.random.default_rng(0)
    spreads = []
    for _ in range(200):
        found = Augmentation(contrast=2.0).apply(sample, rng, 128, CLASSES)
        torch.testing.assert_close(found.image.mean(dim=(1, 2)), sample.image.mean(dim=(1, 2)), atol=1e-4, rtol=0)
        spreads.append(float(found.image.std() / sample.image.std()))
        assert_equal_samples(replace(found, image=sample.image), sample)
    assert 0.5 <= min(spreads) < 0.6 and 1.8 < max(spreads) <= 2.01


def test_zoom_draws_squares_of_all_sizes_about_the_crops() -> None:
    rng = np.random.default_rng(0)
    sides = [Augmentation(zoom=1.5).draw_side(rng, 90) for _ in range(500)]
    assert 60 <= min(sides) < 65 and 125 < max(sides) <= 136 and not any(side % 4 for side in sides)
    assert abs(np.log(np.array(sides) / 90).mean()) < 0.03


def test_augmented_crops_depend_on_seed_and_index_alone_and_are_whole() -> None:
    augmentation = Augmentation(transpose=True, zoom=1.5, contrast=1.5)
    one, two = (CropDataset([cell_image(CELLS)], 30, 64, CLASSES, 3, augmentation=augmentation) for _ in range(2))
    for index in range(30):
        sample = one[index]
        assert sample.image.shape == (3, 64, 64) and sample.semantic.shape == (1, 16, 16)
        assert_boxes_fit(sample)
        assert_equal_samples(sample, two[index])
