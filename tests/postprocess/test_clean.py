from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import (
    crop_instances,
    full_corrupt,
    full_frames,
    full_postprocess,
    full_rle,
    random_instances,
    random_soft_frames,
)

from kernel.errors import InputError
from kernel.masks.instances import CellMasks, Instances
from kernel.postprocess.clean import (
    binarise,
    corrupt_mask,
    corrupt_masks,
    drop_empty,
    is_confident,
    is_large_enough,
    most_frequent_cell_type,
    postprocess_instances,
    remove_overlaps,
    remove_small,
    thresholds_for,
)
from kernel.settings import CELL_TYPES, DEFAULT_THRESHOLDS, Thresholds

SHAPE = (40, 52)
seeds = st.integers(0, 2**32 - 1)
any_thresholds = st.builds(
    Thresholds,
    mask_threshold=st.sampled_from([0.2, 0.45, 0.6]),
    mask_nms_threshold=st.sampled_from([0.0, 0.05, 0.1, 0.5]),
    confidence=st.sampled_from([0.0, 0.3, 0.9]),
    min_size=st.sampled_from([0, 5, 25, 1000]),
    corrupt=st.booleans(),
)


def masks_of(*frames: np.ndarray) -> CellMasks:
    """Binary masks with falling scores."""
    count = len(frames)
    soft = np.array(frames, dtype=np.uint8).reshape(count, *SHAPE) * 255
    return binarise(crop_instances(soft, np.zeros((count, 4)), 1 - np.arange(count) / 10, np.zeros(count)), 0.5)


def rectangle(y0: int, x0: int, y1: int, x1: int) -> np.ndarray:
    frame = np.zeros(SHAPE, bool)
    frame[y0:y1, x0:x1] = True
    return frame


@settings(max_examples=60, deadline=None)
@given(seeds, any_thresholds)
def test_equals_the_full_frame_oracle(seed, thresholds):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 20))
    soft = random_soft_frames(rng, count, SHAPE)
    instances = random_instances(rng, count, SHAPE, soft)
    found = postprocess_instances(instances, thresholds)
    masks, indices = full_postprocess(soft, instances.scores, thresholds)
    np.testing.assert_array_equal(full_frames(found), masks)
    np.testing.assert_array_equal(found.boxes_xyxy[:, 0], indices)
    np.testing.assert_array_equal(found.scores, instances.scores[indices])
    np.testing.assert_array_equal(found.labels, instances.labels[indices])
    np.testing.assert_array_equal(found.sizes, masks.sum(axis=(1, 2)))
    assert found.rles() == [full_rle(mask) for mask in masks]
    assert found.cell_type == most_frequent_cell_type(instances.labels)
    # What a submission demands: no two masks share a pixel, and none is empty.
    assert (full_frames(found).sum(axis=0) <= 1).all()
    assert (found.sizes > 0).all()


@settings(max_examples=30, deadline=None)
@given(seeds, any_thresholds)
def test_independent_of_the_input_order(seed, thresholds):
    rng = np.random.default_rng(seed)
    instances = random_instances(rng, 12, SHAPE)
    shuffled = instances.select(rng.permutation(12))
    assert postprocess_instances(instances, thresholds).rles() == postprocess_instances(shuffled, thresholds).rles()


@pytest.mark.parametrize("thresholds", [DEFAULT_THRESHOLDS, Thresholds(), Thresholds(corrupt=True)])
def test_nothing_detected(thresholds):
    found = postprocess_instances(Instances.empty(SHAPE), thresholds)
    assert (found.cell_type, len(found), found.rles(), found.image_shape) == (None, 0, [], SHAPE)
    assert found.crops == () and found.offsets_yx.shape == (0, 2) and found.sizes.shape == (0,)


def test_every_step_takes_no_masks():
    none = CellMasks.empty(SHAPE)
    for result in (
        binarise(Instances.empty(SHAPE), 0.5),
        remove_small(none, 50),
        corrupt_masks(none),
        remove_overlaps(none),
        drop_empty(none),
    ):
        assert len(result) == 0 and result.image_shape == SHAPE
    assert is_large_enough(none.sizes, 0).shape == is_confident(none.scores, 0.5).shape == (0,)
    assert corrupt_mask(np.zeros((0, 0), bool)).shape == (0, 0)
    assert not corrupt_mask(np.zeros((3, 4), bool)).any()


def test_all_below_the_confidence_keeps_the_cell_type():
    instances = random_instances(np.random.default_rng(0), 5, SHAPE)
    found = postprocess_instances(instances, Thresholds(confidence=1.0))
    assert len(found) == 0 and found.cell_type in CELL_TYPES


def test_thresholds_follow_the_cell_type():
    cells = np.stack([rectangle(1, 1, 9, 9), rectangle(20, 20, 29, 29), rectangle(30, 40, 38, 48)])
    instances = crop_instances(cells * np.uint8(255), np.zeros((3, 4)), [0.9, 0.8, 0.6], [2, 2, 0])
    by_type = {name: replace(chosen, min_size=0) for name, chosen in DEFAULT_THRESHOLDS.items()}
    found = postprocess_instances(instances, by_type)
    assert found.cell_type == "cort"
    assert found.scores.tolist() == np.float32([0.9, 0.8]).tolist()  # cort wants 0.7
    with pytest.raises(InputError, match="no thresholds for cell type 'cort'"):
        postprocess_instances(instances, {"astro": Thresholds()})
    assert thresholds_for(Thresholds(min_size=3), "astro").min_size == 3


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([], None), ([1], "astro"), ([0, 2, 2], "cort"), ([2, 0], "shsy5y"), ([2, 1, 2, 1, 0], "astro")],
)
def test_most_frequent_cell_type(labels, expected):
    assert most_frequent_cell_type(np.array(labels)) == expected


def test_a_label_without_cell_type_is_refused():
    with pytest.raises(ValueError, match="label 7 is no cell type"):
        most_frequent_cell_type(np.array([7, 7, 0]))


def test_binarise_is_strictly_above_and_tight():
    soft = np.zeros((1, *SHAPE), np.uint8)
    soft[0, 5:9, 5:9] = 102  # 0.4 x 255 exactly
    soft[0, 6, 7] = 103
    masks = binarise(crop_instances(soft, np.zeros((1, 4)), [1], [0]), 0.4)
    assert masks.windows.tolist() == [[6, 7, 7, 8]] and masks.sizes.tolist() == [1]


def test_confidence_is_not_below_in_the_scores_precision():
    assert is_confident(np.float32([0.3, 0.29999, 0.7]), 0.3).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [([], []), ([50, 51], [1]), ([0, 50], [1]), ([7, 9, 9, 3], [1]), ([0, 0], [0])],
)
def test_small_masks_go_but_one_stays(sizes, expected):
    assert np.flatnonzero(is_large_enough(np.array(sizes, dtype=np.int64), 50)).tolist() == expected


def test_overlap_goes_to_the_better_mask():
    masks = remove_overlaps(masks_of(rectangle(2, 2, 6, 6), rectangle(4, 4, 9, 9), rectangle(3, 3, 5, 5)))
    assert masks.sizes.tolist() == [16, 25 - 4, 0]
    assert len(drop_empty(masks)) == 2
    assert (full_frames(masks).sum(axis=0) <= 1).all()


def test_corruption_fills_a_hole_and_leaves_a_convex_cell():
    frame = rectangle(5, 5, 15, 15)
    holed = frame.copy()
    holed[8:11, 8:11] = False
    masks = corrupt_masks(masks_of(frame, holed))
    np.testing.assert_array_equal(full_frames(masks), np.stack([frame, frame]))


def test_corruption_of_a_crop_equals_that_of_the_frame():
    rng = np.random.default_rng(11)
    frames = random_soft_frames(rng, 150, SHAPE) > 100
    # Odd outlines too: noise is anything but convex.
    noise = rng.random((50, *SHAPE)) < 0.4
    noise[:, :7], noise[:, :, -5:] = False, False
    for frame in [*frames, *noise]:
        masks = masks_of(frame)
        np.testing.assert_array_equal(full_frames(corrupt_masks(masks))[0], full_corrupt(frame))


def test_small_masks_go_before_corruption_fills_them():
    """A thin ring has fewer pixels than are wanted; filled, it would have enough."""
    cell, ring = rectangle(2, 2, 12, 12), rectangle(20, 20, 30, 30)
    ring[21:29, 21:29] = False
    assert ring.sum() == 36 and corrupt_mask(ring).sum() == 100
    instances = crop_instances(np.stack([cell, ring]) * np.uint8(255), np.zeros((2, 4)), [0.8, 0.9], [1, 1])
    for min_size, kept in ((50, [cell]), (35, [rectangle(20, 20, 30, 30), cell])):
        found = postprocess_instances(instances, Thresholds(min_size=min_size, corrupt=True))
        np.testing.assert_array_equal(full_frames(found), np.stack(kept))
