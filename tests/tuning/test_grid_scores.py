from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from oracles import full_corrupt, full_frames, full_mask_nms, full_score, random_instances

from kernel.masks.instances import CellMasks, Instances
from kernel.postprocess.clean import binarise, postprocess_instances
from kernel.scoring.metric import image_score
from kernel.settings import Thresholds
from kernel.tuning.grid_scores import score_at, score_grid, score_grids
from kernel.tuning.threshold_grid import TUNED_FIELDS, ThresholdGrid

SHAPE = (40, 52)
GRID = ThresholdGrid((0.3, 0.5), (0.0, 0.1, 0.4), (0, 20, 60, 1000), (0.0, 0.5, 0.9, 1.0))


def random_image(seed: int) -> tuple[Instances, CellMasks]:
    rng = np.random.default_rng(seed)
    instances = random_instances(rng, 20, SHAPE)
    truth = binarise(instances, 0.4).select(np.flatnonzero(rng.random(20) < 0.5))
    return instances, truth


@pytest.mark.parametrize("corrupt", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_each_point_is_what_the_submission_would_score(seed, corrupt):
    instances, truth = random_image(seed)
    scores = score_grid(instances, truth, GRID, corrupt=corrupt)
    points = product(GRID.mask_thresholds, GRID.nms_thresholds, GRID.min_sizes, GRID.confidences)
    expected = [
        image_score(
            postprocess_instances(
                instances,
                Thresholds(
                    mask_threshold=mask, mask_nms_threshold=nms, min_size=size, confidence=confidence, corrupt=corrupt
                ),
            ),
            truth,
        )
        for mask, nms, size, confidence in points
    ]
    np.testing.assert_array_equal(scores.ravel(), expected)
    assert scores.max() > 0


def test_without_corruption_the_orders_differ_only_where_one_small_mask_is_kept_or_one_ends_empty():
    instances, truth = random_image(0)
    usual = score_grid(instances, truth, GRID, corrupt=False)
    original = score_grid(instances, truth, GRID, corrupt=False, order="original")
    np.testing.assert_array_equal(usual[:, :, 0, 0], original[:, :, 0, 0])


def test_an_unknown_order_is_refused():
    instances, truth = random_image(0)
    with pytest.raises(ValueError, match="order 'other'"):
        score_grid(instances, truth, GRID, corrupt=False, order="other")


@pytest.mark.parametrize("order", ["submission", "original"])
def test_empty_images(order):
    instances, truth = random_image(1)
    none, no_truth = Instances.empty(SHAPE), CellMasks.empty(SHAPE)
    assert (score_grid(none, truth, GRID, corrupt=True, order=order) == 0).all()
    assert (score_grid(none, no_truth, GRID, corrupt=True, order=order) == 1).all()
    # No cell is as sure as 1: nothing is found then, and that is right.
    scores = score_grid(instances, no_truth, GRID, corrupt=True, order=order)
    assert (scores[..., 0] == 0).all() and (scores[..., -1] == 1).all()


def test_tied_scores_and_crowded_cells_are_scored_alike():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        crowded = random_instances(rng, 40, (24, 30))
        tied = replace(crowded, scores=rng.integers(1, 5, 40) / 5)
        truth = binarise(crowded, 0.4).select(np.flatnonzero(rng.random(40) < 0.7))  # which overlap
        scores = score_grid(tied, truth, GRID, corrupt=bool(seed % 2)).ravel()
        for point in rng.choice(len(scores), 25, replace=False).tolist():
            thresholds = GRID.thresholds_at(point, Thresholds(corrupt=bool(seed % 2)))
            assert scores[point] == score_at(tied, truth, thresholds)


def test_the_original_order_is_that_of_plain_full_frames():
    instances, truth = random_image(3)
    scores = score_grid(instances, truth, GRID, corrupt=True, order="original")
    frames = full_frames(truth)
    emptied = 0
    for point, (mask, nms, size, confidence) in enumerate(
        product(GRID.mask_thresholds, GRID.nms_thresholds, GRID.min_sizes, GRID.confidences)
    ):
        order = np.argsort(-instances.scores)
        masks = full_frames(instances)[order] > mask * 255
        order, masks = order[(kept := full_mask_nms(masks, nms))], masks[kept]
        sizes = masks.sum(axis=(1, 2))
        large = sizes > size if (sizes > size).any() else sizes == sizes.max()
        order, masks = order[large], masks[large]
        masks = masks[instances.scores[order] >= np.float32(confidence)]
        final = [full_corrupt(one) for one in masks]
        whole = list(final)
        for index, better in product(range(len(masks)), repeat=2):
            if better < index and (masks[index] & masks[better]).any():
                final[index] = final[index] & ~whole[better]
        # A mask that lost all its pixels hits nothing, and still counts.
        expected = full_score(np.array(final), frames) if len(final) else 0.0
        emptied += sum(not one.any() for one in final)
        assert scores.ravel()[point] == pytest.approx(expected, abs=1e-12)
    assert emptied > 0


def test_only_the_original_order_counts_a_mask_that_lost_all_its_pixels():
    """A cell of 8 x 8 pixels, found; within it a worse mask of 4 x 4, which loses them all."""
    large, small = np.full((8, 8), 255, np.uint8), np.full((4, 4), 255, np.uint8)
    instances = Instances((large, small), np.array([[5, 5], [7, 7]]), np.zeros((2, 4)), [0.9, 0.8], [0, 0], SHAPE)
    truth = binarise(instances.select([0]), 0.5)
    point = ThresholdGrid((0.5,), (0.0, 0.3), (0, 16), (0.0, 0.85))
    for corrupt in (False, True):
        assert (score_grid(instances, truth, point, corrupt=corrupt) == 1).all()
        found = score_grid(instances, truth, point, corrupt=corrupt, order="original")
        # One hit and one false alarm, unless the minimum size or the confidence takes the small one first.
        assert found[0].tolist() == [[[0.5, 1], [1, 1]]] * 2
        nothing = CellMasks.empty(SHAPE)
        assert (score_grid(instances, nothing, point, corrupt=corrupt, order="original") == 0).all()


def test_grids_of_images_are_counted_as_the_grid_is():
    images = [random_image(seed) for seed in range(2)]
    found = score_grids(iter(images), GRID, corrupt=True)
    assert found.shape == (2, 96) and score_grids([], GRID, corrupt=True).shape == (0, 96)
    points = list(product(*GRID.axes))
    positions = GRID.positions()
    for point in (0, 17, 95):
        thresholds = GRID.thresholds_at(point, Thresholds(rpn_nms_pre=7, corrupt=True))
        assert tuple(getattr(thresholds, name) for name in TUNED_FIELDS) == points[point]
        assert thresholds.rpn_nms_pre == 7 and type(thresholds.min_size) is int
        assert GRID.position_of(thresholds).tolist() == positions[point].tolist()
        assert [row[point] for row in found] == [score_at(*image, thresholds) for image in images]
    more = GRID.including(Thresholds(mask_threshold=0.45, mask_nms_threshold=0.1, min_size=2000, confidence=0.1))
    assert more.axes == ((0.3, 0.45, 0.5), (0.0, 0.1, 0.4), (0, 20, 60, 1000, 2000), (0.0, 0.1, 0.5, 0.9, 1.0))
    between = Thresholds(mask_threshold=0.35, mask_nms_threshold=0.1, min_size=40, confidence=2.0)
    assert GRID.position_of(between) == pytest.approx([0.25, 1, 1.5, 3])
