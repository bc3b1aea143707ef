"""Boxes: the mean over views and members by hand, and the one NMS against a slow, obvious oracle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tiny_detectors import tiny_detector

from kernel.ensemble.boxes import MergedBoxes, merge_boxes, predict_view_boxes, scale_boxes, select_boxes
from kernel.ensemble.members import Member
from kernel.ensemble.views import ALL_VIEWS, IDENTITY, View, flip_boxes, view_images
from kernel.models.detectors import DETECTOR_KINDS, DetectorKind, compute_features
from kernel.settings import Thresholds

SHAPE = (20, 30)
seeds = st.integers(0, 2**32 - 1)


def merged(boxes: list, scores: list) -> MergedBoxes:
    return MergedBoxes(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32).reshape(-1, 3),
    )


def random_merged(seed: int) -> MergedBoxes:
    """Boxes with whole corners, and scores that all differ."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 40))
    corners = rng.integers(0, 24, (count, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 14, (count, 2))], axis=1)
    scores = (rng.permutation(3 * count) + 1).reshape(count, 3) / (3 * count + 1)
    return merged(boxes.tolist(), scores.tolist())


def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    area_a, area_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (area_a + area_b - width * height)


# --- one member, several views -----------------------------------------------------------------------------------


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch) -> str:
    """A kind whose boxes are those given and whose scores are 0 for the first view of a batch, 1 for the next ..."""

    def predict_boxes(
        detector: Any, features: Any, boxes_xyxy: torch.Tensor, image_shape: tuple[int, int], num_classes: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        views, count, _ = boxes_xyxy.shape
        return boxes_xyxy, torch.arange(float(views))[:, None, None].expand(views, count, num_classes)

    kind = DetectorKind(lambda spec: {}, predict_boxes, lambda *args: torch.zeros(0))
    monkeypatch.setitem(DETECTOR_KINDS, "echo", kind)  # pyright: ignore[reportArgumentType]
    return "echo"


@pytest.mark.parametrize(
    ("views", "expected", "score"),
    [  # a flip shifts by half a pixel, which shows as it is not shifted back
        (ALL_VIEWS[:1], (2, 3, 10, 8), 0),
        (ALL_VIEWS[1:2], (2.5, 3, 10.5, 8), 0),
        (ALL_VIEWS[2:3], (2, 3.5, 10, 8.5), 0),
        (ALL_VIEWS[3:], (2.5, 3.5, 10.5, 8.5), 0),
        (ALL_VIEWS[:2], (2.25, 3, 10.25, 8), 0.5),
        (ALL_VIEWS, (2.25, 3.25, 10.25, 8.25), 1.5),
    ],
)
def test_a_member_is_the_mean_of_its_views(
    echo: str, views: tuple[View, ...], expected: tuple[float, ...], score: float
) -> None:
    boxes = torch.tensor([[2.0, 3, 10, 8], [2, 3, 10, 8]])
    found = predict_view_boxes(Member("one", echo, None, frozenset()), None, views, boxes, SHAPE, 3)  # pyright: ignore[reportArgumentType]
    assert found.boxes_xyxy.tolist() == [list(expected)] * 2
    assert found.scores.tolist() == [[score] * 3] * 2


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["maskrcnn", "cascade", "htc"])
def test_views_together_are_the_mean_of_each_alone(kind: str, wheels_site: Path) -> None:
    member = Member("one", kind, tiny_detector(kind), frozenset())
    image = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    boxes = torch.tensor([[2.0, 3, 10, 8], [0, 0, 30, 20], [12, 5, 29, 9], [7, 7, 7, 7]])

    def predict(views: tuple[View, ...], num_classes: int = 3) -> MergedBoxes:
        features = compute_features(member.detector, view_images(image, views))
        return predict_view_boxes(member, features, views, boxes, SHAPE, num_classes)

    together, alone = predict(ALL_VIEWS), [predict((view,)) for view in ALL_VIEWS]
    expected = torch.stack([each.boxes_xyxy for each in alone]).mean(dim=0)
    torch.testing.assert_close(together.boxes_xyxy, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(together.scores, torch.stack([each.scores for each in alone]).mean(dim=0))
    assert together.scores.shape == (4, 3)
    assert predict((IDENTITY,), num_classes=2).scores.shape == (4, 2)
    assert (alone[0].scores - alone[1].scores).abs().max() > 1e-3  # the views do differ


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["maskrcnn", "cascade", "htc"])
def test_a_view_is_what_the_flipped_image_gives(kind: str, wheels_site: Path) -> None:
    """Where nothing is padded, flipping the image itself is the same, but for the shift."""
    member, shape = Member("one", kind, tiny_detector(kind), frozenset()), (32, 64)
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3)).astype(np.uint8)
    boxes = torch.tensor([[8.0, 8, 24, 20], [30, 4, 50, 28]])
    for view in ALL_VIEWS[1:]:
        flipped = np.ascontiguousarray(image[:: -1 if view.flip_y else 1, :: -1 if view.flip_x else 1])
        shift = torch.tensor([0.5 * view.flip_x, 0.5 * view.flip_y] * 2)
        given = flip_boxes(boxes, view, shape) - shift
        features = compute_features(member.detector, view_images(flipped, (IDENTITY,)))
        expected = predict_view_boxes(member, features, (IDENTITY,), given, shape, 3)
        features = compute_features(member.detector, view_images(image, (view,)))
        found = predict_view_boxes(member, features, (view,), boxes, shape, 3)
        torch.testing.assert_close(found.scores, expected.scores)
        torch.testing.assert_close(found.boxes_xyxy, flip_boxes(expected.boxes_xyxy, view, shape))


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["maskrcnn", "cascade", "htc"])
def test_no_proposals(kind: str, wheels_site: Path) -> None:
    member = Member("one", kind, tiny_detector(kind), frozenset())
    features = compute_features(member.detector, view_images(np.zeros((*SHAPE, 3), np.uint8), ALL_VIEWS))
    found = predict_view_boxes(member, features, ALL_VIEWS, torch.zeros(0, 4), SHAPE, 3)
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.scores.shape == (0, 3)
    both = merge_boxes([(4, found), (1, found)])
    assert both.boxes_xyxy.shape == (0, 4)
    assert both.scores.shape == (0, 3)


# --- members -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((1,), 0.0), ((1, 1), 0.5), ((1, 3), 0.75), ((4, 4), 0.5), ((1, 1, 1, 1), 1.5), ((1, 3, 1, 3), 1.75)],
)
def test_predictions_weigh_as_much_as_they_have_views(weights: tuple[int, ...], expected: float) -> None:
    predictions = [
        (views, MergedBoxes(torch.full((2, 4), 8.0 * place), torch.full((2, 3), float(place))))
        for place, views in enumerate(weights)
    ]
    found = merge_boxes(iter(predictions))
    torch.testing.assert_close(found.scores, torch.full((2, 3), expected))
    torch.testing.assert_close(found.boxes_xyxy, torch.full((2, 4), 8 * expected))


# --- selection ---------------------------------------------------------------------------------------------------


@given(seeds, st.sampled_from([0.0, 0.15, 0.5, 0.7, 1.0]), st.sampled_from([0.0, 0.3, 0.8]))
def test_the_nms_equals_the_oracle(seed: int, iou_threshold: float, score_threshold: float) -> None:
    given_boxes = random_merged(seed)
    boxes, all_scores = given_boxes.boxes_xyxy.numpy(), given_boxes.scores.numpy()
    best, labels = all_scores.max(axis=1, initial=0), [row.argmax() for row in all_scores]
    kept: list[int] = []
    for index in np.argsort(-best):
        # An IoU that is exactly the threshold suppresses nobody; in float32 a few are a hair above it.
        if all(slow_iou(boxes[index], boxes[other]) <= iou_threshold + 1e-6 for other in kept):
            kept.append(int(index))
    kept = [index for index in kept if best[index] > score_threshold]
    thresholds = Thresholds(rcnn_iou_threshold=iou_threshold + 1e-6, rcnn_score_threshold=score_threshold)
    found = select_boxes(given_boxes, thresholds, bbox_nms=True)
    np.testing.assert_array_equal(found.boxes_xyxy.numpy().reshape(-1, 4), boxes[kept])
    np.testing.assert_array_equal(found.scores.numpy(), best[kept])
    assert found.labels.tolist() == [labels[index] for index in kept]
    assert found.labels.dtype == torch.int64


def test_classes_suppress_one_another() -> None:
    found = select_boxes(
        merged([(0, 0, 10, 10), (1, 0, 10, 10), (20, 0, 30, 10)], [(0.1, 0.8, 0), (0.9, 0, 0), (0, 0, 0.3)]),
        Thresholds(rcnn_iou_threshold=0.7, rcnn_score_threshold=0.2),
        bbox_nms=True,
    )
    assert found.boxes_xyxy.tolist() == [[1, 0, 10, 10], [20, 0, 30, 10]]
    assert found.labels.tolist() == [0, 2]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.3]))


def test_a_box_counts_once_by_its_best_class() -> None:
    """Not once per class, as in mmdet's multiclass NMS."""
    found = select_boxes(merged([(0, 0, 10, 10)], [(0.6, 0.5, 0.4)]), Thresholds(), bbox_nms=True)
    assert len(found.scores) == 1


@pytest.mark.parametrize("bbox_nms", [True, False])
@pytest.mark.parametrize(("score", "kept"), [(0.5, 0), (0.501, 1), (0.4, 0)])
def test_scores_must_be_above_the_threshold(score: float, kept: int, bbox_nms: bool) -> None:
    given_boxes = merged([(0, 0, 10, 10)], [(score, 0, 0)])
    found = select_boxes(given_boxes, Thresholds(rcnn_score_threshold=0.5), bbox_nms)
    assert len(found.boxes_xyxy) == len(found.scores) == len(found.labels) == kept


@given(seeds, st.sampled_from([0.0, 0.3, 0.9, 1.0]))
@example(218, 0.3)  # one score is the threshold itself, in the scores' precision
def test_without_nms_boxes_that_overlap_stay_if_their_scores_do(seed: int, threshold: float) -> None:
    given_boxes = random_merged(seed)
    thresholds = Thresholds(rcnn_iou_threshold=0.0, rcnn_score_threshold=threshold)
    found = select_boxes(given_boxes, thresholds, bbox_nms=False)
    rows = zip(given_boxes.boxes_xyxy.tolist(), given_boxes.scores.tolist(), strict=True)
    limit = float(np.float32(threshold))
    labelled = [(max(scores), box, int(np.argmax(scores))) for box, scores in rows if max(scores) > limit]
    expected = sorted(labelled, key=lambda row: -row[0])
    assert found.scores.tolist() == [row[0] for row in expected]
    assert found.boxes_xyxy.tolist() == [row[1] for row in expected]
    assert found.labels.tolist() == [row[2] for row in expected]


def test_without_nms_ties_keep_their_order() -> None:
    boxes = [(place, 0, place + 1, 1) for place in range(50)]
    scores = [(0.5, 0, 0) if place % 2 else (0.75, 0, 0) for place in range(50)]
    found = select_boxes(merged(boxes, scores), Thresholds(), bbox_nms=False)
    assert found.boxes_xyxy[:, 0].tolist() == [*range(0, 50, 2), *range(1, 50, 2)]


@pytest.mark.parametrize("bbox_nms", [True, False])
def test_no_boxes(bbox_nms: bool) -> None:
    found = select_boxes(merged([], []), Thresholds(), bbox_nms)
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.scores.shape == (0,)
    assert found.labels.shape == (0,)
    assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("bbox_nms", [True, False])
def test_no_box_above_the_threshold(bbox_nms: bool) -> None:
    found = select_boxes(merged([(0, 0, 10, 10)] * 3, [(0.1, 0, 0)] * 3), Thresholds(), bbox_nms)
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)


def test_boxes_grow_about_their_centres_within_the_image() -> None:
    boxes = torch.tensor([[10.0, 20, 30, 28], [1, 2, 11, 12], [80, 50, 90, 60]])
    expected = torch.tensor([[5.0, 18, 35, 30], [0, 0, 13.5, 14.5], [77.5, 47.5, 90, 60]])
    torch.testing.assert_close(scale_boxes(boxes, 1.5, (60, 90)), expected)
    assert scale_boxes(boxes, 1, (60, 90)) is boxes
    assert scale_boxes(boxes[:0], 1.5, (60, 90)).shape == (0, 4)
