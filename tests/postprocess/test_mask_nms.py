from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import full_frames, full_mask_nms, random_instances

from kernel.masks.instances import CellMasks
from kernel.postprocess.clean import binarise
from kernel.postprocess.mask_nms import MaskOverlaps, best_first, common_slices, count_common_pixels, mask_nms

SHAPE = (36, 44)
seeds = st.integers(0, 2**32 - 1)
thresholds = st.sampled_from([0.0, 0.05, 0.1, 0.3, 0.7])


def random_masks(seed: int, tied: bool = False) -> CellMasks:
    rng = np.random.default_rng(seed)
    masks = binarise(random_instances(rng, int(rng.integers(0, 25)), SHAPE), 0.45)
    scores = np.round(masks.scores * 3) / 3 if tied else masks.scores
    return CellMasks(masks.crops, masks.offsets_yx, masks.boxes_xyxy, scores, masks.labels, SHAPE)


def bars(*columns: tuple[int, int]) -> CellMasks:
    """Masks one pixel high in the first row, from column to column, with falling scores."""
    count = len(columns)
    crops = tuple(np.ones((1, stop - start), bool) for start, stop in columns)
    offsets = [(0, start) for start, _ in columns]
    return CellMasks(crops, offsets, np.zeros((count, 4)), 1 - np.arange(count) / 10, np.zeros(count), (2, 100))


@settings(max_examples=40, deadline=None)
@given(seeds, thresholds)
def test_equals_the_full_frame_oracle(seed, threshold):
    masks = random_masks(seed)
    order = best_first(masks)
    assert (np.diff(masks.scores[order]) < 0).all()
    expected = order[full_mask_nms(full_frames(masks)[order], threshold)]
    np.testing.assert_array_equal(mask_nms(masks, threshold), expected)


@settings(max_examples=40, deadline=None)
@given(seeds, thresholds)
def test_idempotent(seed, threshold):
    masks = random_masks(seed, tied=True)
    kept = masks.select(mask_nms(masks, threshold))
    assert mask_nms(kept, threshold).tolist() == list(range(len(kept)))


@settings(max_examples=40, deadline=None)
@given(seeds, thresholds)
def test_independent_of_the_input_order_even_with_ties(seed, threshold):
    masks = random_masks(seed, tied=True)
    shuffled = masks.select(np.random.default_rng(seed + 1).permutation(len(masks)))
    one, other = masks.select(mask_nms(masks, threshold)), shuffled.select(mask_nms(shuffled, threshold))
    np.testing.assert_array_equal(full_frames(one), full_frames(other))
    np.testing.assert_array_equal(one.scores, other.scores)


@pytest.mark.parametrize(
    ("columns", "threshold", "expected"),
    [
        ([], 0.1, []),
        ([(0, 10)], 0.1, [0]),
        ([(0, 10), (0, 10)], 0.0, [0, 1]),  # 0: no NMS
        ([(0, 10), (0, 10)], 0.99, [0]),
        ([(0, 10), (0, 5)], 0.5, [0, 1]),  # exactly at the threshold stays
        ([(0, 10), (0, 6)], 0.5, [0]),
        ([(0, 10), (5, 15), (10, 20)], 0.3, [0, 2]),  # who is suppressed suppresses nobody
        ([(0, 10), (20, 20), (30, 30)], 0.1, [0, 1, 2]),  # empty masks harm nobody
    ],
)
def test_known_cases(columns, threshold, expected):
    assert mask_nms(bars(*columns), threshold).tolist() == expected


def test_overlaps_of_bars():
    overlaps = MaskOverlaps(bars((0, 10), (5, 15), (20, 30)))
    assert overlaps.common_pixels(1, 0) == overlaps.common_pixels(0, 1) == 5
    assert overlaps.intersects(0, np.array([1, 2])).tolist() == [True, False]
    assert overlaps.intersects(0, np.array([], int)).tolist() == []
    assert not overlaps.exceeds(0, np.array([], int), 0.1)


def test_windows_that_only_touch_have_nothing_in_common():
    assert common_slices((0, 0, 2, 2), (0, 2, 2, 4)) is None
    ones = np.ones((2, 2), bool)
    assert count_common_pixels(ones, (0, 0, 2, 2), ones, (1, 1, 3, 3)) == 1
    assert best_first(CellMasks.empty(SHAPE)).tolist() == []
