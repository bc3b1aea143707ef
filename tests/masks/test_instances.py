from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles import crop_instances, full_frames
from torch.nn import functional

from kernel.masks.instances import CellMasks, Instances, paste_instances, tight_window

SHAPE = (40, 60)


def paste_full_frame(probs: np.ndarray, boxes: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """(N, H, W) float: every mask sampled over the whole image by grid_sample, box by box on -1 to 1."""
    frames = []
    for prob, (x0, y0, x1, y1) in zip(probs, boxes, strict=True):
        y = (torch.arange(shape[0]) + 0.5 - y0) / (y1 - y0) * 2 - 1
        x = (torch.arange(shape[1]) + 0.5 - x0) / (x1 - x0) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None].float()
        frames.append(functional.grid_sample(torch.from_numpy(prob)[None, None], grid, align_corners=False)[0, 0])
    return torch.stack(frames).numpy()


@pytest.mark.parametrize("grid", [(28, 28), (14, 14), (7, 9)])
def test_pasting_equals_grid_sample_over_the_whole_frame(grid):
    rng = np.random.default_rng(0)
    count = 60
    probs = rng.random((count, *grid)).astype(np.float32)
    start = rng.uniform((-10, -10), (70, 45), (count, 2))  # some boxes cross the border, some are outside
    boxes = np.concatenate([start, start + rng.uniform(0.3, 40, (count, 2))], axis=1).astype(np.float32)
    expected = paste_full_frame(probs, boxes, SHAPE) * 255
    for frame, (x0, y0, x1, y1) in zip(expected, boxes, strict=True):
        # mmdet samples, on the CPU, from one pixel before the box to one after, though a mask pixel may reach further.
        rows, columns = np.arange(SHAPE[0])[:, None], np.arange(SHAPE[1])
        frame *= (rows >= np.floor(y0) - 1) & (rows < np.ceil(y1) + 1)
        frame *= (columns >= np.floor(x0) - 1) & (columns < np.ceil(x1) + 1)
    pasted = paste_instances(probs, boxes, np.ones(count), np.zeros(count), SHAPE)
    difference = expected - full_frames(pasted)
    assert difference.min() > -0.01 and difference.max() < 1.01  # truncated, not rounded
    assert 0 < sum(crop.size == 0 for crop in pasted.crops) < count


def test_a_mask_as_large_as_its_box_is_copied():
    # A 2 x 3 mask on the box x 4 to 7, y 1 to 3: each mask pixel is exactly one image pixel.
    probs = np.array([[[0.2, 0.4, 0.6], [0.8, 1.0, 0.0]]], dtype=np.float32)
    pasted = paste_instances(probs, np.array([[4, 1, 7, 3]]), np.ones(1), np.zeros(1), (6, 10))
    frame = full_frames(pasted)[0]
    assert frame[1:3, 4:7].tolist() == [[51, 102, 153], [204, 255, 0]]
    assert frame.sum() == 51 + 102 + 153 + 204 + 255
    assert pasted.windows.tolist() == [[0, 3, 4, 8]]


@pytest.mark.parametrize(
    "box",
    [
        (5, 5, 5, 9),
        (5, 5, 9, 5),
        (9, 9, 5, 5),
        (100, 5, 120, 9),
        (-30, -30, -10, -10),
        (np.nan, 0, 3, 3),
        (0, 0, np.inf, 3),
    ],
)
def test_boxes_without_a_place_in_the_image_give_empty_crops(box):
    pasted = paste_instances(np.ones((1, 28, 28), np.float32), np.array([box]), np.ones(1), np.zeros(1), SHAPE)
    assert len(pasted) == 1
    assert pasted.crops[0].size == 0
    assert pasted.offsets_yx.tolist() == [[0, 0]]


def test_no_boxes_paste_to_no_instances():
    pasted = paste_instances(np.zeros((0, 28, 28)), np.zeros((0, 4)), np.zeros(0), np.zeros(0), SHAPE)
    assert len(pasted) == 0
    assert pasted.image_shape == SHAPE
    assert full_frames(pasted).shape == (0, *SHAPE)


def test_masks_and_boxes_must_agree():
    with pytest.raises(ValueError, match="2 masks for 1 boxes"):
        paste_instances(np.zeros((2, 28, 28)), np.zeros((1, 4)), np.ones(1), np.zeros(1), SHAPE)


@pytest.mark.parametrize("kind", [Instances, CellMasks])
def test_empty_sets(kind):
    empty = kind.empty(SHAPE)
    assert len(empty) == 0
    assert empty.windows.shape == (0, 4)
    assert len(empty.select([])) == 0
    assert (empty.boxes_xyxy.shape, empty.offsets_yx.shape) == ((0, 4), (0, 2))
    assert kind is not CellMasks or empty.sizes.shape == (0,)


def test_cropping_full_frames_and_back():
    soft = np.zeros((3, *SHAPE), np.uint8)
    soft[0, 3:6, 10:20] = 9
    soft[2, -1, -1] = 255
    instances = crop_instances(soft, np.zeros((3, 4)), [0.1, 0.2, 0.3], [0, 1, 2])
    assert instances.windows.tolist() == [[3, 10, 6, 20], [0, 0, 0, 0], [39, 59, 40, 60]]
    np.testing.assert_array_equal(full_frames(instances), soft)
    chosen = instances.select([2, 0])
    np.testing.assert_array_equal(full_frames(chosen), soft[[2, 0]])
    assert chosen.labels.tolist() == [2, 0]
    assert len(crop_instances(soft[:0], np.zeros((0, 4)), [], [])) == 0


def test_tight_window_of_nothing():
    assert tight_window(np.zeros((0, 0), bool)) == tight_window(np.zeros((4, 5), bool)) == (0, 0, 0, 0)


GOOD = {
    "crops": (np.zeros((2, 3), np.uint8),),
    "offsets_yx": [[1, 1]],
    "boxes_xyxy": [[0, 0, 1, 1]],
    "scores": [0.5],
    "labels": [0],
    "image_shape": SHAPE,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [0.5, 0.6]}, "scores has shape"),
        ({"boxes_xyxy": [[0, 0, 1]]}, "boxes_xyxy has shape"),
        ({"scores": [np.nan]}, "not a number"),
        ({"labels": [-1]}, "labels must not be negative"),
        ({"crops": (np.zeros((2, 3)),)}, "crop 0 is float64"),
        ({"crops": (np.zeros(3, np.uint8),)}, "crop 0 is uint8 with shape"),
        ({"offsets_yx": [[-1, 0]]}, "leaves the image"),
        ({"offsets_yx": [[39, 0]]}, "leaves the image"),
        ({"offsets_yx": [[0, 58]]}, "leaves the image"),
    ],
)
def test_wrong_instances_are_refused(change, message):
    Instances(**GOOD)
    with pytest.raises(ValueError, match=message):
        Instances(**{**GOOD, **change})
