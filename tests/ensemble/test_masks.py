"""Masks: un-flipped and averaged over views and members, for the boxes and classes given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_detectors import tiny_detector

from kernel.ensemble.boxes import Detections
from kernel.ensemble.masks import maskness, predict_view_masks, score_by_masks
from kernel.ensemble.members import Member, weighted_mean
from kernel.ensemble.views import ALL_VIEWS, IDENTITY, View, boxes_into_view, flip_boxes, view_images
from kernel.models.detectors import DETECTOR_KINDS, DetectorKind, compute_features

KINDS = ("maskrcnn", "cascade", "htc")
SHAPE = (32, 64)
BOXES = torch.tensor([[8.0, 8, 24, 20], [30, 4, 50, 28], [0, 0, 64, 32]])
LABELS = torch.tensor([2, 0, 1])


def random_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)


@pytest.fixture
def corner(monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[torch.Tensor]]:
    """A kind whose masks are 1 in the first pixel and 0 elsewhere, whatever the view; and the boxes it is given."""
    seen: list[torch.Tensor] = []

    def predict_masks(detector: Any, features: Any, boxes_xyxy: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(boxes_xyxy)
        masks = torch.zeros(*boxes_xyxy.shape[:2], 2, 2)
        masks[..., 0, 0] = labels + 1.0
        return masks

    kind = DetectorKind(lambda spec: {}, lambda *args: (torch.zeros(0), torch.zeros(0)), predict_masks)
    monkeypatch.setitem(DETECTOR_KINDS, "corner", kind)  # pyright: ignore[reportArgumentType]
    return "corner", seen


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (ALL_VIEWS[:1], [[1, 0], [0, 0]]),
        (ALL_VIEWS[1:2], [[0, 1], [0, 0]]),
        (ALL_VIEWS[2:3], [[0, 0], [1, 0]]),
        (ALL_VIEWS[3:], [[0, 0], [0, 1]]),
        (ALL_VIEWS[:2], [[0.5, 0.5], [0, 0]]),
        (ALL_VIEWS, [[0.25, 0.25], [0.25, 0.25]]),
    ],
)
def test_masks_are_unflipped_and_averaged(
    corner: tuple[str, list[torch.Tensor]], views: tuple[View, ...], expected: list[list[float]]
) -> None:
    kind, seen = corner
    found = predict_view_masks(Member("one", kind, None, frozenset()), None, views, BOXES, LABELS, SHAPE)  # pyright: ignore[reportArgumentType]
    one = torch.tensor(expected)
    assert torch.equal(found, torch.stack([3 * one, one, 2 * one]))
    (given,) = seen
    assert torch.equal(given, torch.stack([boxes_into_view(BOXES, view, SHAPE) for view in views]))


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_views_together_are_the_mean_of_each_alone(kind: str, wheels_site: Path) -> None:
    member, image = Member("one", kind, tiny_detector(kind), frozenset()), random_image(0)

    def predict(views: tuple[View, ...]) -> torch.Tensor:
        features = compute_features(member.detector, view_images(image, views))
        return predict_view_masks(member, features, views, BOXES, LABELS, SHAPE)

    alone = torch.stack([predict((view,)) for view in ALL_VIEWS])
    torch.testing.assert_close(predict(ALL_VIEWS), alone.mean(dim=0), atol=1e-5, rtol=0)
    assert alone.shape == (4, 3, 28, 28)
    assert (alone[0] - alone[1]).abs().max() > 1e-3  # the views do differ


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_a_view_is_what_the_flipped_image_gives(kind: str, wheels_site: Path) -> None:
    member, image = Member("one", kind, tiny_detector(kind), frozenset()), random_image(1)
    for view in ALL_VIEWS[1:]:
        flipped = np.ascontiguousarray(image[:: -1 if view.flip_y else 1, :: -1 if view.flip_x else 1])
        shift = torch.tensor([0.5 * view.flip_x, 0.5 * view.flip_y] * 2)
        given = (flip_boxes(BOXES, view, SHAPE) - shift).clamp(min=0)
        features = compute_features(member.detector, view_images(flipped, (IDENTITY,)))
        expected = predict_view_masks(member, features, (IDENTITY,), given, LABELS, SHAPE)
        features = compute_features(member.detector, view_images(image, (view,)))
        found = predict_view_masks(member, features, (view,), BOXES, LABELS, SHAPE)
        torch.testing.assert_close(found, expected.flip(view.flipped_dims))


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_each_box_is_predicted_as_its_own_class(kind: str, wheels_site: Path) -> None:
    member = Member("one", kind, tiny_detector(kind), frozenset())
    features = compute_features(member.detector, view_images(random_image(2), ALL_VIEWS))

    def predict(labels: torch.Tensor) -> torch.Tensor:
        return predict_view_masks(member, features, ALL_VIEWS, BOXES, labels, SHAPE)

    every_class = torch.stack([predict(torch.full((3,), label)) for label in range(3)])
    torch.testing.assert_close(predict(LABELS), every_class[LABELS, torch.arange(3)])
    assert (every_class[0] - every_class[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("weights", "expected"),
    [((1,), 0.0), ((1, 1), 0.5), ((1, 3), 0.75), ((4, 4), 0.5), ((1, 1, 1, 1), 1.5), ((1, 3, 1, 3), 1.75)],
)
def test_predictions_weigh_as_much_as_they_have_views(weights: tuple[int, ...], expected: float) -> None:
    predictions = [(views, torch.full((2, 28, 28), float(place))) for place, views in enumerate(weights)]
    torch.testing.assert_close(weighted_mean(iter(predictions)), torch.full((2, 28, 28), expected))


@torch.inference_mode()
@pytest.mark.parametrize("kind", KINDS)
def test_no_boxes(kind: str, wheels_site: Path) -> None:
    member = Member("one", kind, tiny_detector(kind), frozenset())
    features = compute_features(member.detector, view_images(random_image(0), ALL_VIEWS))
    none = torch.zeros(0, dtype=torch.int64)
    found = predict_view_masks(member, features, ALL_VIEWS, torch.zeros(0, 4), none, SHAPE)
    assert found.shape == (0, 28, 28)
    assert weighted_mean([(4, found), (1, found)]).shape == (0, 28, 28)


# --- scores that know of the mask ----------------------------------------------------------------------------------


def masks_of(*probabilities: tuple[float, float, float]) -> torch.Tensor:
    """(N, 28, 28): two rows of the first probability, one of the second, the rest the third."""
    masks = torch.zeros(len(probabilities), 28, 28)
    for mask, (first, second, rest) in zip(masks, probabilities, strict=True):
        mask[:], mask[:2], mask[2] = rest, first, second
    return masks


def test_sureness_is_the_mean_inside() -> None:
    masks = masks_of((0.9, 0.6, 0.1), (1.0, 0.5, 0.5), (0.4, 0.3, 0.0), (0.8, 0.8, 0.8))
    torch.testing.assert_close(maskness(masks), torch.tensor([0.8, 1.0, 0.0, 0.8]))
    assert maskness(masks[:0]).shape == (0,)


def test_sure_masks_come_first() -> None:
    found = Detections(BOXES, torch.tensor([0.9, 0.8, 0.7]), LABELS)
    masks = masks_of((0.6, 0.6, 0), (1.0, 1.0, 0), (0.8, 0.8, 0))
    same, same_masks = score_by_masks(found, masks, 0.0)
    assert same is found and same_masks is masks
    by_mask, sorted_masks = score_by_masks(found, masks, 2.0)
    torch.testing.assert_close(by_mask.scores, torch.tensor([0.8, 0.7 * 0.64, 0.9 * 0.36]))
    assert torch.equal(by_mask.boxes_xyxy, BOXES[[1, 2, 0]]) and by_mask.labels.tolist() == [0, 1, 2]
    assert torch.equal(sorted_masks, masks[[1, 2, 0]])


def test_no_masks_to_score() -> None:
    none = Detections(BOXES[:0], torch.zeros(0), LABELS[:0])
    found, masks = score_by_masks(none, torch.zeros(0, 28, 28), 2.0)
    assert len(found.scores) == 0 and masks.shape == (0, 28, 28)
