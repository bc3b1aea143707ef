"""Augmentation: nothing is drawn where nothing is asked for; masks and boxes follow the pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from slow_samples import assert_equal_samples

from kernel.settings import PIXEL_MEAN, PIXEL_STD
from kernel.training.augment import NO_TURN, Augmentation, Turn, turned
from kernel.training.crops import CropDataset
from kernel.training.samples import MIN_CELL_PIXELS, Sample, TrainingImage, cut_sample


def cell_image(cells: tuple[tuple[int, int, int, int], ...]) -> TrainingImage:
    """Bright rectangles (y, x, height, width) on a dark ground of 160 x 200 pixels, of classes 0, 1, 2, 0, ..."""
    pixels = np.full((160, 200, 3), 60, np.uint8)
    for y, x, height, width in cells:
        pixels[y : y + height, x : x + width] = 200
    crops = tuple(np.ones(cell[2:], bool) for cell in cells)
    offsets = np.array([cell[:2] for cell in cells], np.int64).reshape(-1, 2)
    return TrainingImage(pixels, crops, offsets, np.arange(len(cells)) % 3, "cort")


CELLS = ((10, 20, 24, 40), (60, 70, 33, 17), (100, 12, 12, 60), (90, 120, 40, 40))


def sample_of(size: int = 128, cells: tuple[tuple[int, int, int, int], ...] = CELLS) -> Sample:
    return cut_sample(cell_image(cells), 0, 0, size, (False, False))


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
    turn = augmentation.draw_turn(rng)
    assert turn.side(128) == 128
    sample = sample_of()
    assert augmentation.apply(sample, turn, rng, 128) is sample
    assert rng.bit_generator.state == before
    plain, same = (CropDataset([image], 8, 64, 3, **given) for given in ({}, {"augmentation": augmentation}))
    for index in range(8):
        assert_equal_samples(plain[index], same[index])


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_quarter_turn_moves_pixels_and_changes_none(quarters: int) -> None:
    sample = sample_of()
    other = turned(sample, Turn(quarters * math.pi / 2), 128)
    torch.testing.assert_close(other.image, sample.image.rot90(-quarters, (1, 2)), atol=1e-4, rtol=0)
    assert np.array_equal(other.masks, np.rot90(sample.masks, -quarters, (1, 2)))
    assert_boxes_fit(other)
    assert_bright_where_masked(other)


def test_a_quarter_turn_is_clockwise() -> None:
    """The box from (20, 10) to (60, 34) of 128 pixels, by hand."""
    assert sample_of().boxes_xyxy[0].tolist() == [20, 10, 60, 34]
    assert turned(sample_of(), Turn(math.pi / 2), 128).boxes_xyxy[0].tolist() == [94, 20, 118, 60]


@pytest.mark.parametrize("zoom", [0.5, 0.75, 1.25, 2.0])
def test_zoom_scales_pixels_masks_and_boxes_alike(zoom: float) -> None:
    sample, size = sample_of(), round(128 * zoom)
    other = turned(sample, Turn(zoom=zoom), size)
    assert Turn(zoom=zoom).side(size) == 128
    assert other.image.shape == (3, size, size)
    assert other.masks.shape == (len(CELLS), size, size)
    assert_boxes_fit(other)
    assert_bright_where_masked(other)
    torch.testing.assert_close(other.boxes_xyxy, sample.boxes_xyxy * zoom, atol=1.0, rtol=0)
    assert torch.equal(other.labels, sample.labels)


@given(angle=st.floats(0, 2 * math.pi), zoom=st.floats(0.5, 2.0), size=st.sampled_from([32, 64, 96]))
def test_any_turn_is_what_whole_masks_would_give(angle: float, zoom: float, size: int) -> None:
    """The oracle warps each whole mask; at the edges OpenCV rounds places to a thirty-second of a pixel."""
    turn = Turn(angle, zoom)
    side = turn.side(size)
    sample = sample_of(side)
    other = turned(sample, turn, size)
    assert_boxes_fit(other)
    matrix = turn.matrix(side, size)
    whole = [cv2.warpAffine(mask * np.uint8(255), matrix, (size, size)) > 127 for mask in sample.masks]
    for mask in other.masks:
        assert min(np.count_nonzero(mask != other_mask) / mask.sum() for other_mask in whole) < 0.1
    sure = [mask for mask in whole if np.count_nonzero(mask) >= 2 * MIN_CELL_PIXELS]
    assert len(sure) <= len(other.masks) <= len(whole)


@pytest.mark.parametrize("angle", np.linspace(0, 6, 13).tolist())
def test_a_turned_crop_lies_within_its_square(angle: float) -> None:
    """Nothing from beyond the square is shown: its corners are where the crop's corners come from."""
    turn, size = Turn(angle, 0.8), 64
    side = turn.side(size)
    inverse = np.linalg.inv(np.vstack([turn.matrix(side, size), [0, 0, 1]]))
    corners = inverse @ np.array([[-0.5, size - 0.5, -0.5, size - 0.5], [-0.5, -0.5, size - 0.5, size - 0.5], [1] * 4])
    assert corners[:2].min() >= -0.5 - 1e-6 and corners[:2].max() <= side - 0.5 + 1e-6
    assert corners[:2].min() < 1


def test_cells_that_become_too_small_are_left_out() -> None:
    sample = sample_of(cells=((10, 10, 4, 4), (40, 40, 30, 30)))
    assert len(sample.labels) == 2
    smaller = turned(sample, Turn(zoom=0.5), 64)
    assert smaller.labels.tolist() == [1] and np.count_nonzero(smaller.masks) >= MIN_CELL_PIXELS


def test_a_sample_without_cells_stays_one() -> None:
    empty = turned(sample_of(cells=()), Turn(1.0, 0.5), 64)
    assert empty.masks.shape == (0, 64, 64) and empty.boxes_xyxy.shape == (0, 4) and len(empty.labels) == 0


def test_contrast_spreads_gray_levels_about_their_mean() -> None:
    sample = sample_of()
    rng = np.random.default_rng(0)
    spreads = []
    for _ in range(200):
        found = Augmentation(contrast=2.0).apply(sample, NO_TURN, rng, 128)
        torch.testing.assert_close(found.image.mean(dim=(1, 2)), sample.image.mean(dim=(1, 2)), atol=1e-4, rtol=0)
        spreads.append(float(found.image.std() / sample.image.std()))
        assert_equal_samples(replace(found, image=sample.image), sample)
    assert 0.5 <= min(spreads) < 0.6 and 1.8 < max(spreads) <= 2.01


def test_half_of_the_crops_keep_their_pixels_and_the_others_are_turned_evenly() -> None:
    rng = np.random.default_rng(0)
    turns = [Augmentation(zoom=1.5, rotate=True).draw_turn(rng) for _ in range(1000)]
    plain = [turn for turn in turns if turn.zoom == 1]
    assert 450 < len(plain) < 550
    right_angles = np.array([turn.angle / (math.pi / 2) for turn in plain])
    assert np.array_equal(right_angles, right_angles.round()) and np.bincount(right_angles.astype(int)).min() > 90
    turned_ones = [turn for turn in turns if turn.zoom != 1]
    zooms = np.array([turn.zoom for turn in turned_ones])
    assert 1 / 1.5 <= zooms.min() < 0.7 and 1.45 < zooms.max() <= 1.5 and abs(np.log(zooms).mean()) < 0.03
    assert np.histogram([turn.angle for turn in turned_ones], 4, (0, 2 * math.pi))[0].min() > 90
    assert {Augmentation(zoom=1.5).draw_turn(rng).angle for _ in range(9)} == {0.0}
    assert {Augmentation(rotate=True).draw_turn(rng).zoom for _ in range(9)} == {1.0}


def test_the_whole_image_is_shown_its_corners_too() -> None:
    """Crops of 64 pixels in 160 x 200: turned crops alone would leave their corners to a hundredth of the rest."""
    height, width = 160, 200
    rows, columns = np.mgrid[:height, :width]
    image = cell_image(((0, 0, height, width),))
    image.image_bgr[..., 0], image.image_bgr[..., 1] = rows, columns  # each pixel tells where it is from
    seen = np.zeros((height, width))
    dataset = CropDataset([image], 1000, 64, 3, augmentation=Augmentation(rotate=True, zoom=1.5))
    for index in range(1000):
        channels = zip(dataset[index].image, PIXEL_MEAN, PIXEL_STD, strict=True)
        _, green, blue = (value * std + mean for value, mean, std in channels)
        inside = (blue > -0.5) & (blue < height - 0.5) & (green > -0.5) & (green < width - 0.5)
        np.add.at(seen, (blue[inside].round().long().numpy(), green[inside].round().long().numpy()), 1)
    share = seen / seen.mean()
    corners = [share[y, x] for y in (slice(0, 16), slice(-16, None)) for x in (slice(0, 16), slice(-16, None))]
    assert min(corner.mean() for corner in corners) > 0.15
    assert share.max() < 3


def test_without_turns_places_are_as_published() -> None:
    rng, other = np.random.default_rng(1), np.random.default_rng(1)
    starts = [Augmentation(contrast=1.5).draw_start(rng, 100, 64) for _ in range(200)]
    assert starts == [int(other.integers(37)) for _ in range(200)]
    assert Augmentation(rotate=True).draw_start(rng, 50, 64) == 0  # the square holds the whole image


def test_a_turned_crop_keeps_its_detail() -> None:
    """Noise, the finest detail there is, loses a quarter of its deviation; by bilinear interpolation 40 %."""
    rng = np.random.default_rng(0)
    sample = sample_of(181, cells=())
    sample = replace(sample, image=torch.from_numpy(rng.normal(size=(3, 181, 181)).astype(np.float32)))
    assert turned(sample, Turn(math.pi / 4), 128).image.std() > 0.75


def test_augmented_crops_depend_on_seed_and_index_alone_and_are_whole() -> None:
    augmentation = Augmentation(rotate=True, zoom=1.5, contrast=1.5)
    one, two = (CropDataset([cell_image(CELLS)], 30, 64, 3, augmentation=augmentation) for _ in range(2))
    for index in range(30):
        sample = one[index]
        assert sample.image.shape == (3, 64, 64)
        assert_boxes_fit(sample)
        assert_equal_samples(sample, two[index])
