from __future__ import annotations

import math

import numpy as np
import pytest
from coco_metric import as_coco, coco_iou_matrix, image_score_coco, masks_from_coco
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import full_frames, full_iou, full_score, random_instances

from kernel.masks.instances import CellMasks
from kernel.postprocess.clean import binarise
from kernel.scoring.metric import (
    image_score,
    iou_matrix,
    mean_scores,
    score_from_iou,
)

SHAPE = (24, 30)


def random_pair(seed: int) -> tuple[CellMasks, CellMasks]:
    """Masks and a disturbed copy: two thresholds on the same cells, some left out on either side."""
    rng = np.random.default_rng(seed)
    instances = random_instances(rng, 10, SHAPE)
    pred = binarise(instances, 0.3).select(np.flatnonzero(rng.random(10) < 0.8))
    truth = binarise(instances, 0.5).select(np.flatnonzero(rng.random(10) < 0.8))
    return pred, truth


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_equals_the_oracle_and_pycocotools(seed):
    pred, truth = random_pair(seed)
    iou = iou_matrix(pred, truth)
    np.testing.assert_array_equal(iou, full_iou(full_frames(pred), full_frames(truth)))
    has_pixels = np.ix_(pred.sizes > 0, truth.sizes > 0)  # pycocotools gives empty pairs an IoU of its own
    np.testing.assert_array_equal(iou[has_pixels], coco_iou_matrix(as_coco(pred), as_coco(truth))[has_pixels])
    if len(pred) or len(truth):
        assert image_score(pred, truth) == pytest.approx(full_score(full_frames(pred), full_frames(truth)), abs=1e-12)


def test_coco_and_crops_agree():
    pred, truth = (masks.select(np.flatnonzero(masks.sizes)) for masks in random_pair(5))
    assert image_score_coco(as_coco(pred), as_coco(truth)) == image_score(pred, truth) > 0
    np.testing.assert_array_equal(full_frames(masks_from_coco(as_coco(pred), SHAPE)), full_frames(pred))


@pytest.mark.parametrize(
    ("iou", "expected"),
    [
        ([[1.0]], 1.0),
        ([[0.5]], 0.0),  # strictly above
        ([[0.51]], 0.1),
        ([[0.6]], 0.2),  # above 0.5 and 0.55 only, although 0.5 + 2 x 0.05 is not the double 0.6
        ([[0.95]], 0.9),
        ([[1.0], [0.0]], 0.5),  # a false positive
        ([[1.0, 0.0]], 0.5),  # a miss
        ([[1.0], [1.0]], 0.0),  # hit twice: neither right nor missed, but wrong
        ([[1.0, 1.0]], 1.0),  # truths may overlap: each is hit once
    ],
)
def test_known_scores(iou, expected):
    assert score_from_iou(np.array(iou)) == pytest.approx(expected)


def test_empty_images():
    pred, _ = random_pair(0)
    none = CellMasks.empty(SHAPE)
    assert image_score(none, none) == image_score_coco([], []) == 1
    assert image_score(pred, none) == image_score(none, pred) == 0
    assert image_score_coco(as_coco(pred), []) == image_score_coco([], as_coco(pred)) == 0
    assert iou_matrix(none, pred).shape == (0, len(pred))


def test_images_must_agree():
    with pytest.raises(ValueError, match="predictions in an image of"):
        image_score(CellMasks.empty((3, 4)), CellMasks.empty((4, 3)))


def test_means():
    scores = mean_scores([("astro", 0.2), ("cort", 0.6), ("astro", 0.4)])
    assert scores.overall == pytest.approx(0.4)
    assert scores.per_type == {"astro": pytest.approx(0.3), "cort": 0.6}
    assert scores.images == 3
    assert math.isnan(mean_scores([]).overall) and mean_scores([]).per_type == {}
