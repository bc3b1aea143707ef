"""Training crops against the slow, obvious way: every mask as a full frame, then cut, flipped and sorted out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import full_frames, random_instances
from slow_samples import assert_equal_samples, crowded_image, decoded_sample, encoded_cells, slow_boxes, slow_masks
from torch.utils.data import DataLoader

from kernel.data.synthetic.generate import write_dataset
from kernel.ensemble.views import ALL_VIEWS, view_images
from kernel.errors import InputError
from kernel.postprocess.clean import binarise
from kernel.settings import CELL_TYPES, PIXEL_MEAN, PIXEL_STD
from kernel.training.augment import Augmentation
from kernel.training.crops import CropDataset
from kernel.training.samples import (
    MIN_CELL_PIXELS,
    Sample,
    TrainingImage,
    cells_meeting,
    collate,
    count_small_cells,
    cut_sample,
    flip_paste,
    read_training_images,
    semantic_maps,
)

FLIPS = [(False, False), (True, False), (False, True), (True, True)]


def random_image(seed: int, shape: tuple[int, int], cells: int = 14) -> tuple[TrainingImage, np.ndarray]:
    """Noise with small cells, some overlapping, some of no pixel; and their masks as full frames (N, H, W) bool."""
    rng = np.random.default_rng(seed)
    masks = binarise(random_instances(rng, cells, shape), 0.4)
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    return TrainingImage(pixels, masks.crops, masks.offsets_yx, masks.labels, "cort"), full_frames(masks)


def slow_semantic(masks: np.ndarray, labels: np.ndarray, num_classes: int, stride: int) -> np.ndarray:
    """The last cell that covers the pixel in the middle of each square of side `stride`."""
    size = masks.shape[-1] // stride
    result = np.zeros((1, size, size), np.int64)
    for y in range(size):
        for x in range(size):
            for mask, label in zip(masks, labels, strict=True):
                if mask[stride * y + stride // 2, stride * x + stride // 2]:
                    result[0, y, x] = min(label + 1, num_classes - 1)
    return result


def square_image(
    place: tuple[int, int] | None, side: int, shape: tuple[int, int], gray: int, kind: str = "cort"
) -> TrainingImage:
    """One square cell at `place`, or none, in an image of one gray level."""
    pixels = np.full((*shape, 3), gray, np.uint8)
    if place is None:
        return TrainingImage(pixels, (), np.zeros((0, 2), np.int64), np.zeros(0, np.int64), kind)
    label = np.array([CELL_TYPES.index(kind)])
    return TrainingImage(pixels, (np.ones((side, side), bool),), np.array([place]), label, kind)


def gray_of(sample: Sample) -> int:
    """The gray level of a sample of `square_image`."""
    return round(float(sample.image[0, 0, 0]) * PIXEL_STD[0] + PIXEL_MEAN[0])


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 2**32 - 1), flips=st.sampled_from(FLIPS))
def test_a_crop_is_what_the_slow_way_gives(data: st.DataObject, seed: int, flips: tuple[bool, bool]) -> None:
    size = data.draw(st.sampled_from([16, 32, 64]))
    shape = data.draw(st.tuples(st.integers(10, 70), st.integers(10, 70)))
    top, left = (data.draw(st.integers(0, max(side - size, 0))) for side in shape)
    image, frames = random_image(seed, shape)
    sample = cut_sample(image, top, left, size, flips)

    masks, labels = slow_masks(frames, image.labels, top, left, size, flips)
    np.testing.assert_array_equal(sample.masks, masks)
    assert sample.masks.dtype == np.uint8
    assert sample.labels.tolist() == labels.tolist()
    assert sample.boxes_xyxy.dtype == torch.float32
    np.testing.assert_array_equal(sample.boxes_xyxy.numpy(), slow_boxes(masks))


def test_a_crop_of_a_crowded_image_is_what_decoding_gives() -> None:
    image = crowded_image(40)
    rles = encoded_cells(image)
    for place, flips in zip([(0, 0), (100, 300), (264, 448), (7, 11)], FLIPS, strict=True):
        slow = decoded_sample(image.image_bgr, rles, image.labels, place, 256, flips)
        assert_equal_samples(cut_sample(image, *place, 256, flips), slow)
        assert len(slow.labels) > 3


def test_the_random_cells_are_worth_comparing() -> None:
    kept, dropped = 0, 0
    for seed in range(20):
        image, frames = random_image(seed, (70, 60))
        masks, _ = slow_masks(frames, image.labels, 20, 10, 32, (False, False))
        kept += len(masks)
        dropped += sum(0 < frame[20:52, 10:42].sum() < MIN_CELL_PIXELS for frame in frames)
    assert kept > 40
    assert dropped > 10


@pytest.mark.parametrize("flips", FLIPS)
@pytest.mark.parametrize(
    ("shape", "size"), [((80, 100), 64), ((64, 64), 64), ((50, 100), 64), ((80, 41), 64), ((20, 33), 96)]
)
def test_pixels_are_those_of_inference(shape: tuple[int, int], size: int, flips: tuple[bool, bool]) -> None:
    image, _ = random_image(1, shape)
    top, left = (max(side - size, 0) // 2 for side in shape)
    sample = cut_sample(image, top, left, size, flips)
    view = next(view for view in ALL_VIEWS if (view.flip_x, view.flip_y) == flips)
    expected = view_images(np.ascontiguousarray(image.image_bgr[top : top + size, left : left + size]), (view,))[0]
    assert (sample.image.shape, sample.image.dtype) == ((3, size, size), torch.float32)
    height, width = expected.shape[1:]
    torch.testing.assert_close(sample.image[:, :height, :width], expected, rtol=0, atol=0)


def test_a_flip_keeps_mask_and_pixels_together_in_a_padded_crop() -> None:
    image = square_image((2, 3), 6, (20, 30), gray=100)
    image.image_bgr[2:8, 3:9] = 250
    for flips in FLIPS:
        sample = cut_sample(image, 0, 0, 64, flips)
        bright = sample.image[0] > 2
        np.testing.assert_array_equal(sample.masks[0], bright.numpy())


@pytest.mark.parametrize(
    ("side", "offset", "kept"),
    [
        (6, (0, 0), True),
        (6, (-4, 0), True),  # 2 x 6 are left
        (6, (-5, 0), False),
        (6, (0, -4), True),
        (6, (0, -5), False),
        (6, (30, 0), True),
        (6, (31, 0), False),
        (6, (40, 0), False),
        (3, (10, 10), False),
    ],
)
def test_what_is_left_at_the_edge_counts_by_its_pixels(side: int, offset: tuple[int, int], kept: bool) -> None:
    place = (50 + offset[0], 60 + offset[1])
    sample = cut_sample(square_image(place, side, (200, 200), 100), 50, 60, 32, (False, False))
    assert len(sample.labels) == len(sample.masks) == len(sample.boxes_xyxy) == kept


@pytest.mark.parametrize(("side", "kept"), [(3, False), (4, True)])
def test_cells_that_are_told_to_be_too_small_are_in_no_crop_whatever_the_zoom(side: int, kept: bool) -> None:
    offsets = np.array([(8 * row + 2, 8 * column + 2) for row in range(8) for column in range(8)])
    image = TrainingImage(
        np.zeros((64, 64, 3), np.uint8), (np.ones((side, side), bool),) * 64, offsets, np.zeros(64, np.int64), "cort"
    )
    dataset = CropDataset([image], 30, 32, seed=0, augmentation=Augmentation(rotate=True, zoom=2.0))
    assert any(len(dataset[index].labels) for index in range(30)) == kept
    assert count_small_cells(image) == (0 if kept else 64)


def test_only_cells_at_the_square_are_looked_at() -> None:
    crops = (np.ones((5, 5), bool),) * 5
    offsets = np.array([[0, 0], [15, 20], [14, 19], [40, 40], [52, 20]])
    image = TrainingImage(np.zeros((100, 100, 3), np.uint8), crops, offsets, np.zeros(5, np.int64), "cort")
    assert cells_meeting(image, 20, 20, 32).tolist() == [3]
    assert cells_meeting(image, 19, 20, 32).tolist() == [1, 3]
    assert cells_meeting(image, 18, 20, 34).tolist() == [1, 2, 3]
    assert cells_meeting(image, 18, 20, 35).tolist() == [1, 2, 3, 4]
    assert cells_meeting(square_image(None, 0, (50, 50), 0), 0, 0, 50).tolist() == []


@pytest.mark.parametrize("flips", FLIPS)
def test_a_crop_without_cells_is_empty_in_the_right_shapes(flips: tuple[bool, bool]) -> None:
    sample = cut_sample(square_image((0, 0), 10, (200, 200), 100), 100, 100, 32, flips)
    assert (tuple(sample.boxes_xyxy.shape), sample.boxes_xyxy.dtype) == ((0, 4), torch.float32)
    assert (tuple(sample.labels.shape), sample.labels.dtype) == ((0,), torch.int64)
    assert (sample.masks.shape, sample.masks.dtype) == ((0, 32, 32), np.uint8)


@pytest.mark.parametrize(("num_classes", "expected"), [(3, [1, 2, 2]), (8, [1, 2, 3])])
def test_semantic_classes_fit_the_semantic_head(num_classes: int, expected: list[int], wheels_site: Path) -> None:
    masks = np.zeros((3, 32, 32), np.uint8)
    for index, mask in enumerate(masks):
        mask[:, 8 * index : 8 * index + 8] = 1
    boxes = torch.from_numpy(slow_boxes(masks).astype(np.float32))
    sample = Sample(torch.zeros(3, 32, 32), boxes, torch.tensor([0, 1, 2]), masks, "")
    (found,) = semantic_maps(collate([sample]), num_classes, 4)
    assert found[0].tolist() == [[*(label for label in expected for _ in range(2)), 0, 0]] * 8


@pytest.mark.parametrize(("num_classes", "stride"), [(3, 4), (8, 4), (3, 8)])
def test_a_later_cell_covers_an_earlier_one_in_the_semantic_map(
    num_classes: int, stride: int, wheels_site: Path
) -> None:
    samples = [
        cut_sample(random_image(seed, (64, 80), cells)[0], 0, 0, 64, (False, False))
        for seed, cells in [(3, 60), (4, 0)]
    ]
    found = semantic_maps(collate(samples), num_classes, stride)
    assert (found.shape, found.dtype) == ((2, 1, 64 // stride, 64 // stride), torch.int64)
    assert (samples[0].masks.sum(axis=0) > 1).any(), "no cells overlap"
    for each, sample in zip(found, samples, strict=True):
        np.testing.assert_array_equal(each, slow_semantic(sample.masks, sample.labels.numpy(), num_classes, stride))
    assert not found[1].any()


def test_samples_depend_on_seed_and_index_alone() -> None:
    images = [random_image(seed, (80, 90))[0] for seed in range(3)]
    first, second = (CropDataset(images, 12, 32, seed=5) for _ in range(2))
    forward = [first[index] for index in range(12)]
    backward = [second[index] for index in reversed(range(12))][::-1]
    for one, other in zip(forward, backward, strict=True):
        assert_equal_samples(one, other)
    pixels = {sample.image.numpy().tobytes() for sample in forward}
    assert len(pixels) == 12
    others = CropDataset(images, 12, 32, seed=6)
    assert not pixels & {others[index].image.numpy().tobytes() for index in range(12)}


def test_samples_do_not_depend_on_workers() -> None:
    images = [random_image(seed, (80, 90))[0] for seed in range(2)]
    dataset = CropDataset(images, 6, 32, seed=5)
    torch.manual_seed(1)
    made = [sample for batch in DataLoader(dataset, 2, collate_fn=list, num_workers=2) for sample in batch]
    assert len(made) == len(dataset) == 6
    for index, sample in enumerate(made):
        assert_equal_samples(sample, dataset[index])


def test_cell_types_are_drawn_equally_often_and_images_of_a_type_too() -> None:
    kinds = {10: "shsy5y", 20: "shsy5y", 30: "astro", 40: "cort", 50: "cort", 60: "cort"}
    images = [square_image((0, 0), 32, (32, 32), gray, kind) for gray, kind in kinds.items()]
    dataset = CropDataset(images, 360, 32, seed=0)
    drawn = Counter(gray_of(dataset[index]) for index in range(360))
    by_type = Counter()
    for gray, count in drawn.items():
        by_type[kinds[gray]] += count
        alike = sum(kind == kinds[gray] for kind in kinds.values())
        assert 0.6 * 120 / alike <= count <= 1.4 * 120 / alike
    assert by_type == {"shsy5y": 120, "astro": 120, "cort": 120}


def test_cell_types_come_together_in_all_combinations() -> None:
    """In a fixed turn, a batch of four of eight types would hold one and the same four every other time."""
    images = [square_image(None, 0, (32, 32), 10 * place, f"type{place}") for place in range(8)]
    dataset = CropDataset(images, 8 * 40, 32, seed=0)
    types = [dataset.cell_type(index) for index in range(len(dataset))]
    assert all(len(set(types[start : start + 8])) == 8 for start in range(0, len(types), 8))
    assert len({frozenset(types[start : start + 4]) for start in range(0, len(types), 4)}) > 30
    assert gray_of(dataset[5]) == 10 * int(types[5][-1])


def test_all_places_and_flips_are_drawn() -> None:
    image = square_image((0, 0), 40, (40, 40), 0)
    # The lowest gray level tells the place, the direction in which they rise the flips.
    image.image_bgr[:] = (9 * np.arange(40)[:, None] // 2 + np.arange(40))[..., None]
    dataset = CropDataset([image], 400, 32, seed=0)
    flips, lowest = Counter(), set()
    for index in range(400):
        red = dataset[index].image[0] * PIXEL_STD[0] + PIXEL_MEAN[0]
        flips[bool(red[0, 1] < red[0, 0]), bool(red[1, 0] < red[0, 0])] += 1
        lowest.add(round(float(red.min())))
    assert all(flips[flip] > 60 for flip in FLIPS)
    assert lowest == {9 * top // 2 + left for top in range(9) for left in range(9)}


def test_crops_without_cells_are_drawn_again() -> None:
    # About a third of the places meet the cell.
    dataset = CropDataset([square_image((0, 0), 40, (128, 100), 100)], 50, 32, seed=0)
    assert all(len(dataset[index].labels) == 1 for index in range(50))


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(rotate=True, zoom=2.0)])
def test_a_cell_that_is_hardly_met_by_chance_is_drawn_around(augmentation: Augmentation) -> None:
    """A place in a thousand meets one of these; another is too small for any crop."""
    offsets = np.array([[200, 300], [600, 995], [3, 500]])
    cells = (np.ones((9, 7), bool), np.ones((40, 5), bool), np.ones((3, 3), bool))
    image = TrainingImage(np.zeros((1000, 1000, 3), np.uint8), cells, offsets, np.array([0, 1, 2]), "cort")
    dataset = CropDataset([image], 100, 32, seed=0, augmentation=augmentation)
    samples = [dataset[index] for index in range(100)]
    assert all(len(sample.labels) for sample in samples)
    assert {label for sample in samples for label in sample.labels.tolist()} == {0, 1}
    corners = {tuple(sample.boxes_xyxy[0, :2].int().tolist()) for sample in samples if sample.labels[0] == 0}
    assert len(corners) > 20, "the cell lies anywhere in the crop"


def test_an_image_of_small_cells_alone_gives_empty_samples() -> None:
    dataset = CropDataset([square_image((9, 9), 3, (64, 64), 77)], 10, 32, seed=0)
    assert not any(len(dataset[index].labels) for index in range(10))


def test_an_image_without_a_cell_gives_empty_samples() -> None:
    dataset = CropDataset([square_image(None, 0, (70, 70), 77), square_image((0, 0), 70, (70, 70), 99)], 20, 32, 0)
    found = {gray_of(sample): len(sample.labels) for sample in (dataset[index] for index in range(20))}
    assert found == {77: 0, 99: 1}


def test_a_batch_is_what_mmdet_takes(wheels_site: Path) -> None:
    images = [random_image(3, (80, 90), cells=40)[0], square_image(None, 0, (64, 64), 9)]
    samples = [cut_sample(image, 0, 0, 64, (False, False)) for image in images]
    batch = collate(samples)
    assert tuple(batch["images"].shape) == (2, 3, 64, 64)
    count = len(samples[0].labels)
    assert count > 5
    assert [len(boxes) for boxes in batch["gt_bboxes"]] == [count, 0]
    assert [len(labels) for labels in batch["gt_labels"]] == [count, 0]
    assert [masks.masks.shape for masks in batch["gt_masks"]] == [(count, 64, 64), (0, 64, 64)]
    np.testing.assert_array_equal(batch["gt_masks"][0].masks, samples[0].masks)
    assert [meta["img_shape"] for meta in batch["img_metas"]] == [(64, 64, 3)] * 2
    assert batch["img_metas"][0] is not batch["img_metas"][1]


def test_a_folder_is_read_with_its_holes_filled(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    pixels = np.arange(60, dtype=np.uint8).reshape(6, 10)
    assert cv2.imwrite(str(tmp_path / "train" / "a.png"), pixels)
    ring = "12 4 22 1 25 1 32 4"  # rows 1 to 3, columns 1 to 4, the two in the middle left out
    (tmp_path / "train.csv").write_text(
        f"id,annotation,width,height,cell_type\na,{ring},10,6,astro\na,60 1,10,6,astro\n", encoding="utf-8"
    )
    (image,) = read_training_images(tmp_path)
    np.testing.assert_array_equal(image.image_bgr, np.repeat(pixels[..., None], 3, axis=2))
    assert [crop.tolist() for crop in image.crops] == [[[True] * 4] * 3, [[True]]]
    assert image.offsets_yx.tolist() == [[1, 1], [5, 9]]
    assert image.labels.tolist() == [1, 1]
    assert image.cell_type == "astro"


def test_a_synthetic_folder_gives_samples_of_every_type(tmp_path: Path) -> None:
    write_dataset(tmp_path, dict.fromkeys(CELL_TYPES, 1), seed=2, shape=(96, 128))
    dataset = CropDataset(read_training_images(tmp_path), 12, 64, seed=0)
    labels = {label for index in range(12) for label in dataset[index].labels.tolist()}
    assert labels == {0, 1, 2}


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read annotations from .*none"):
        read_training_images(tmp_path / "none")


def test_a_flip_pasted_crop_has_the_cells_of_both_sides() -> None:
    image, _ = random_image(3, (64, 64))
    one, other = (cut_sample(image, 0, 0, 64, (flip_x, True)) for flip_x in (False, True))
    both = flip_paste(image, 0, 0, 64, (False, True))
    torch.testing.assert_close(both.image, (one.image + other.image) / 2)
    np.testing.assert_array_equal(both.masks, np.concatenate([one.masks, other.masks]))
    np.testing.assert_array_equal(both.masks[: len(one.masks)], other.masks[:, :, ::-1])
    assert both.labels.tolist() == one.labels.tolist() * 2 and len(one.labels) > 0
    np.testing.assert_array_equal(both.boxes_xyxy, slow_boxes(both.masks))


@pytest.mark.parametrize(
    ("kind", "chance", "share"), [("cort", 0.3, 0.3), ("cort", 0, 0), ("astro", 1, 0), ("cort", 1, 1)]
)
def test_only_cort_crops_are_pasted(kind: str, chance: float, share: float) -> None:
    dataset = CropDataset([square_image((0, 0), 40, (40, 40), 100, kind)], 200, 32, 0, chance)
    pasted = np.mean([dataset[index].name.endswith("mirror image") for index in range(200)])
    assert pasted == pytest.approx(share, abs=0.1 if 0 < share < 1 else 0)
