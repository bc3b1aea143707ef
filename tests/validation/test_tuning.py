from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from oracles import random_instances

from kernel.postprocess.clean import binarise, postprocess_instances
from kernel.postprocess.instances import CellMasks, Instances
from kernel.settings import Thresholds
from kernel.validation.metric import image_score
from kernel.validation.tuning import ThresholdGrid, best_thresholds, mean_score_grid, score_grid

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
            ).masks,
            truth,
        )
        for mask, nms, size, confidence in points
    ]
    np.testing.assert_array_equal(scores.ravel(), expected)
    assert scores.max() > 0


def test_without_corruption_the_orders_differ_only_where_one_small_mask_is_kept():
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


def test_mean_over_images_and_the_best_point():
    images = [random_image(seed) for seed in range(2)]
    mean = mean_score_grid(images, GRID, corrupt=False)
    np.testing.assert_allclose(mean, np.mean([score_grid(*image, GRID, corrupt=False) for image in images], axis=0))
    scores = np.zeros(GRID.shape)
    scores[1, 2, 1, 0] = scores[1, 2, 1, 1] = 0.7
    assert best_thresholds(GRID, scores, Thresholds(corrupt=True)) == Thresholds(
        mask_threshold=0.5, mask_nms_threshold=0.4, min_size=20, confidence=0.0, corrupt=True
    )


def test_no_images_have_no_best_point():
    scores = mean_score_grid([], GRID, corrupt=False)
    assert np.isnan(scores).all()
    with pytest.raises(ValueError, match="no scores"):
        best_thresholds(GRID, scores, Thresholds())
