"""Quality figures against pycocotools and against full frames, and cases worked out by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import full_frames, full_iou, random_instances
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from kernel.masks.instances import CellMasks
from kernel.postprocess.clean import binarise
from kernel.scoring.mask_quality import (
    BOUNDARY_TOLERANCE,
    boundary_f,
    match_cells,
    measure_image,
    summarise_quality,
)
from kernel.scoring.metric import IOU_THRESHOLDS, image_score

SHAPE = (24, 30)
LEVELS = len(IOU_THRESHOLDS)
Box = tuple[int, int, int, int]  # y0, x0, y1, x1


def cells(*boxes: Box, scores: list[float] | None = None, shape: tuple[int, int] = SHAPE) -> CellMasks:
    """Rectangles of pixels."""
    return CellMasks(
        crops=tuple(np.ones((y1 - y0, x1 - x0), bool) for y0, x0, y1, x1 in boxes),
        offsets_yx=np.array([box[:2] for box in boxes]),
        boxes_xyxy=np.array([(x0, y0, x1, y1) for y0, x0, y1, x1 in boxes]),
        scores=np.array(scores if scores is not None else np.linspace(0.9, 0.5, len(boxes))),
        labels=np.zeros(len(boxes)),
        image_shape=shape,
    )


def random_pair(seed: int, count: int = 9) -> tuple[CellMasks, CellMasks]:
    """Overlapping masks and a disturbed copy, none empty, some left out on either side; scores all different."""
    rng = np.random.default_rng(seed)
    instances = random_instances(rng, count, SHAPE)
    pred, truth = (
        binarise(instances, threshold).select(np.flatnonzero(rng.random(count) < 0.8)) for threshold in (0.4, 0.5)
    )
    return pred.select(np.flatnonzero(pred.sizes)), truth.select(np.flatnonzero(truth.sizes))


def coco_evaluation(pairs: list[tuple[CellMasks, CellMasks]]) -> COCOeval:
    """pycocotools on full frames, one category, no limit on detections, at the metric's own thresholds."""
    images = [{"id": number, "height": SHAPE[0], "width": SHAPE[1]} for number in range(1, len(pairs) + 1)]
    truths, found = [], []
    for image, (pred, truth) in zip(images, pairs, strict=True):
        for masks, entries in ((pred, found), (truth, truths)):
            for frame, score in zip(full_frames(masks), masks.scores.tolist(), strict=True):
                rle = coco_mask.encode(np.asfortranarray(frame.astype(np.uint8)))
                entries.append(
                    {
                        "id": len(entries) + 1, "image_id": image["id"], "category_id": 1, "segmentation": rle,
                        "area": int(frame.sum()), "iscrowd": 0, "score": score,
                    }
                )  # fmt: skip
    truth_set = COCO()
    truth_set.dataset = {"images": images, "annotations": truths, "categories": [{"id": 1, "name": "cell"}]}
    truth_set.createIndex()
    evaluation = COCOeval(truth_set, truth_set.loadRes(found), "segm")
    evaluation.params.iouThrs = IOU_THRESHOLDS
    evaluation.params.maxDets = [10_000]
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e9]], ["all"]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_equals_pycocotools(seed: int, count: int) -> None:
    pairs = [random_pair(seed + number) for number in range(count)]
    if not sum(len(pred) for pred, _ in pairs) or not sum(len(truth) for _, truth in pairs):
        return
    images = [measure_image(pred, truth) for pred, truth in pairs]
    summary = summarise_quality(images)
    evaluation = coco_evaluation(pairs)
    precision = evaluation.eval["precision"][:, :, 0, 0, 0]  # (thresholds, recalls)
    np.testing.assert_allclose(summary.average_precision, precision.mean(axis=1), rtol=0, atol=1e-9)
    np.testing.assert_allclose(summary.recall, evaluation.eval["recall"][:, 0, 0, 0], rtol=0, atol=1e-12)
    for image, entry in zip(images, evaluation.evalImgs, strict=True):
        if entry is None:  # neither found nor annotated
            assert (image.cells, image.found_cells) == (0, 0)
            continue
        np.testing.assert_array_equal(image.hits, entry["dtMatches"] > 0)


def full_matches(iou: np.ndarray, scores: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    """Greedy matching, pair by pair."""
    pairs: set[tuple[int, int]] = set()
    for index in sorted(range(len(scores)), key=lambda index: -scores[index]):
        best = None
        for truth in range(iou.shape[1]):
            free = all(other != truth for _, other in pairs)
            if free and iou[index, truth] >= threshold and (best is None or iou[index, truth] >= iou[index, best]):
                best = truth
        if best is not None:
            pairs.add((index, best))
    return pairs


def full_boundary_f(first: np.ndarray, second: np.ndarray, tolerance: float) -> float:
    """By the definition, pixel by pixel, on full frames."""

    def boundary(mask: np.ndarray) -> np.ndarray:
        inside = {(y, x) for y, x in np.argwhere(mask).tolist()}
        edge = [
            (y, x)
            for y, x in inside
            if not {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} <= inside
        ]  # fmt: skip
        return np.array(edge)

    edges = boundary(first), boundary(second)
    squared = ((edges[0][:, None] - edges[1][None]) ** 2).sum(axis=2)
    near = squared <= tolerance**2
    precision, recall = near.any(axis=1).mean(), near.any(axis=0).mean()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.0]))
def test_equals_full_frames(seed: int, tolerance: float) -> None:
    pred, truth = random_pair(seed)
    image = measure_image(pred, truth)
    iou = full_iou(full_frames(pred), full_frames(truth))
    for level, threshold in enumerate(IOU_THRESHOLDS):
        expected = full_matches(iou, pred.scores, threshold)
        assert image.hits[level].sum() == len(expected)
    assert {(one, other) for one, other in image.matches.tolist()} == full_matches(iou, pred.scores, 0.5)
    frames, truth_frames = full_frames(pred), full_frames(truth)
    assert image.score == image_score(pred, truth)
    for (one, other), value, boundary in zip(image.matches, image.match_iou, image.match_boundary_f, strict=True):
        assert value == iou[one, other]
        places = pred.windows[one].tolist(), truth.windows[other].tolist()
        by_tolerance = boundary_f(pred.crops[one], places[0], truth.crops[other], places[1], tolerance)
        for found, reach in ((boundary, BOUNDARY_TOLERANCE), (by_tolerance, tolerance)):
            assert found == pytest.approx(full_boundary_f(frames[one], truth_frames[other], reach), abs=1e-12)


def test_touching_cells_are_told_apart() -> None:
    truth = cells((2, 2, 8, 8), (2, 8, 8, 14))
    apart = summarise_quality([measure_image(truth, truth)])
    assert apart.precision.tolist() == apart.recall.tolist() == apart.average_precision.tolist() == [1] * LEVELS
    assert (apart.boundary_f, apart.mean_iou, apart.count_bias) == (1, 1, 0)
    # As one, their IoU with either is one half, which is enough for COCO's 0.5 and not for the metric's.
    merged = measure_image(cells((2, 2, 8, 14)), truth)
    assert merged.hits[:, 0].tolist() == [True] + [False] * (LEVELS - 1)
    assert merged.score == 0
    summary = summarise_quality([merged])
    assert (summary.precision[0], summary.recall[0], summary.precision[1]) == (1, 0.5, 0)
    assert (summary.count_bias, summary.count_error, summary.relative_count_error) == (-1, 1, 0.5)


def test_a_duplicate_is_a_false_alarm_and_the_better_score_wins() -> None:
    truth = cells((2, 2, 8, 8))
    image = measure_image(cells((2, 2, 8, 8), (2, 2, 8, 7), scores=[0.3, 0.8]), truth)
    assert image.matches.tolist() == [[1, 0]]  # the surer one, though the other fits better
    summary = summarise_quality([image])
    assert summary.precision[0] == 0.5 and summary.recall[0] == 1
    # At 0.85 the surer one, of IoU 30 / 36, fails, and ranks as a false alarm before the hit.
    assert summary.average_precision[0] == 1 and summary.average_precision[7] == pytest.approx(0.5)
    assert image.hits[7].tolist() == [False, True]


def test_average_precision_by_hand() -> None:
    truth = cells((0, 0, 5, 5), (0, 10, 5, 15), (10, 0, 15, 5), (10, 10, 15, 15))
    hit, wrong, second = (0, 0, 5, 5), (18, 20, 23, 25), (0, 10, 5, 15)
    summary = summarise_quality([measure_image(cells(hit, wrong, second, scores=[0.9, 0.8, 0.7]), truth)])
    # Recall 1/4 at precision 1: recalls 0 to 0.25, 26 of 101; recall 2/4 at 2/3: 25 more; the rest is never reached.
    assert summary.average_precision == pytest.approx([(26 + 25 * 2 / 3) / 101] * LEVELS)
    assert summary.precision[0] == pytest.approx(2 / 3) and summary.recall[0] == 0.5


def test_cells_of_all_images_are_ranked_together() -> None:
    one = measure_image(cells((0, 0, 5, 5), scores=[0.6]), cells((0, 0, 5, 5)))
    other = measure_image(cells((9, 9, 14, 14), scores=[0.9]), CellMasks.empty(SHAPE))
    assert summarise_quality([one]).average_precision[0] == 1
    together = summarise_quality([one, other])
    assert together.average_precision[0] == pytest.approx(0.5)  # the wrong cell is the surer one
    assert (together.images, together.cells, together.found_cells, together.score) == (2, 1, 2, 0.5)


def test_nothing_annotated_and_nothing_found() -> None:
    none, some = CellMasks.empty(SHAPE), cells((2, 2, 8, 8), (10, 10, 14, 14))
    missed, invented, both, no_images = (
        summarise_quality(images)
        for images in ([measure_image(none, some)], [measure_image(some, none)], [measure_image(none, none)], [])
    )
    assert (missed.score, missed.recall[0], missed.average_precision[0], missed.count_bias) == (0, 0, 0, -2)
    assert np.isnan(missed.precision).all()
    assert (invented.score, invented.precision[0], invented.count_bias) == (0, 0, 2)
    assert np.isnan(invented.recall).all() and np.isnan(invented.average_precision).all()
    assert np.isnan(invented.relative_count_error)
    assert both.score == 1 and both.count_error == 0 and np.isnan([both.precision, both.recall]).all()
    assert (no_images.images, no_images.cells, no_images.found_cells) == (0, 0, 0)
    assert np.isnan(no_images.score) and np.isnan(no_images.count_error)
    for summary in (missed, invented, both, no_images):
        assert np.isnan(summary.boundary_f) and np.isnan(summary.mean_iou)


@pytest.mark.parametrize(("shift", "tolerance", "expected"), [(2, 2, 1), (2, 1, None), (0, 0, 1), (3, 2, None)])
def test_boundaries_within_the_tolerance_are_the_same(shift: int, tolerance: float, expected: float | None) -> None:
    square = np.ones((12, 12), bool)
    value = boundary_f(square, (5, 5, 17, 17), square, (5, 5 + shift, 17, 17 + shift), tolerance)
    assert value == expected if expected is not None else 0.3 < value < 1
    frames = np.zeros((2, 24, 30), bool)
    frames[0, 5:17, 5:17] = frames[1, 5:17, 5 + shift : 17 + shift] = True
    assert value == pytest.approx(full_boundary_f(frames[0], frames[1], tolerance))


def test_boundaries_that_are_far_apart() -> None:
    large, small = np.ones((20, 20), bool), np.ones((4, 4), bool)
    assert boundary_f(large, (0, 0, 20, 20), small, (8, 8, 12, 12), 2) == 0
    assert boundary_f(np.zeros((0, 0), bool), (0, 0, 0, 0), small, (8, 8, 12, 12), 2) == 0


def test_equal_scores_and_equal_overlaps_match_one_to_one() -> None:
    iou = np.full((3, 3), 0.7)
    taken = match_cells(iou, np.ones(3))
    assert taken[0].tolist() == [2, 1, 0]  # the last of equals, as pycocotools
    assert (taken[5:] == -1).all()
    assert all(len(set(pair)) == 2 for pair in itertools.combinations(taken[4].tolist(), 2))


def test_images_must_agree() -> None:
    with pytest.raises(ValueError, match="predictions in an image of"):
        measure_image(CellMasks.empty((3, 4)), CellMasks.empty((4, 3)))
