"""Views: flips that invert, the shift and clamp of boxes, and the image as the network gets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernel.ensemble.views import (
    ALL_VIEWS,
    IDENTITY,
    View,
    boxes_into_view,
    flip_boxes,
    masks_out_of_view,
    view_images,
)

IDENTITY_VIEW, HORIZONTAL, VERTICAL, DIAGONAL = ALL_VIEWS
views = st.sampled_from(ALL_VIEWS)
sides = st.integers(1, 70)
seeds = st.integers(0, 2**32 - 1)


def random_image(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def random_boxes(seed: int, height: int, width: int, count: int = 12) -> torch.Tensor:
    """Boxes (N, 4) with whole corners in the image, so that flipping them is exact."""
    rng = np.random.default_rng(seed)
    x = np.sort(rng.integers(0, width + 1, (count, 2)), axis=1)
    y = np.sort(rng.integers(0, height + 1, (count, 2)), axis=1)
    return torch.from_numpy(np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)).float()


def test_the_four_views_are_identity_first() -> None:
    assert [(view.name, view.flip_x, view.flip_y) for view in ALL_VIEWS] == [
        ("identity", False, False),
        ("horizontal", True, False),
        ("vertical", False, True),
        ("diagonal", True, True),
    ]
    assert ALL_VIEWS[0] is IDENTITY


# --- boxes -------------------------------------------------------------------------------------------------------


@given(seeds, sides, sides, views)
def test_flipping_boxes_twice_gives_them_back(seed: int, height: int, width: int, view: View) -> None:
    boxes = random_boxes(seed, height, width)
    flipped = flip_boxes(boxes, view, (height, width))
    assert torch.equal(flip_boxes(flipped, view, (height, width)), boxes)
    assert (flipped[:, 2:] >= flipped[:, :2]).all()  # corners stay in order


@given(seeds, sides, sides, views)
def test_a_flipped_box_holds_the_same_pixels_of_the_flipped_image(
    seed: int, height: int, width: int, view: View
) -> None:
    pixels = torch.arange(height * width).view(height, width)
    in_view = pixels.flip(view.flipped_dims)
    boxes = random_boxes(seed, height, width)
    for box, flipped in zip(boxes.int().tolist(), flip_boxes(boxes, view, (height, width)).int().tolist(), strict=True):
        inside = pixels[box[1] : box[3], box[0] : box[2]]
        assert torch.equal(in_view[flipped[1] : flipped[3], flipped[0] : flipped[2]].flip(view.flipped_dims), inside)


@given(seeds, sides, sides, views)
def test_boxes_into_a_view_are_flipped_then_shifted_then_clamped(
    seed: int, height: int, width: int, view: View
) -> None:
    boxes = random_boxes(seed, height, width)
    boxes[:3] += 5  # past the right and the bottom
    expected = []
    for x1, y1, x2, y2 in boxes.tolist():
        if view.flip_x:
            x1, x2 = (min(max(x - 0.5, 0), width) for x in (width - x2, width - x1))
        if view.flip_y:
            y1, y2 = (min(max(y - 0.5, 0), height) for y in (height - y2, height - y1))
        expected.append([x1, y1, x2, y2])
    assert boxes_into_view(boxes, view, (height, width)).tolist() == expected


@pytest.mark.parametrize(
    ("view", "box", "expected"),
    [  # in an image 20 high and 30 wide
        (IDENTITY_VIEW, (2, 3, 10, 8), (2, 3, 10, 8)),
        (HORIZONTAL, (2, 3, 10, 8), (19.5, 3, 27.5, 8)),
        (VERTICAL, (2, 3, 10, 8), (2, 11.5, 10, 16.5)),
        (DIAGONAL, (2, 3, 10, 8), (19.5, 11.5, 27.5, 16.5)),
        (HORIZONTAL, (25, 0, 30, 20), (0, 0, 4.5, 20)),  # at the right border: clamped
        (VERTICAL, (0, 15, 30, 20), (0, 0, 30, 4.5)),
        (DIAGONAL, (0, 0, 30, 20), (0, 0, 29.5, 19.5)),
        (HORIZONTAL, (-4, 21, 5, 25), (24.5, 21, 30, 25)),  # the axis that is not flipped is left alone
        (IDENTITY_VIEW, (-4, -4, 50, 50), (-4, -4, 50, 50)),
    ],
)
def test_boxes_by_hand(view: View, box: tuple[float, ...], expected: tuple[float, ...]) -> None:
    assert boxes_into_view(torch.tensor([box], dtype=torch.float32), view, (20, 30)).tolist() == [list(expected)]


@pytest.mark.parametrize("view", ALL_VIEWS, ids=lambda view: view.name)
def test_no_boxes_and_no_masks(view: View) -> None:
    none = torch.zeros(0, 4)
    assert flip_boxes(none, view, (20, 30)).shape == (0, 4)
    assert boxes_into_view(none, view, (20, 30)).shape == (0, 4)
    assert masks_out_of_view(torch.zeros(0, 28, 28), view).shape == (0, 28, 28)


def test_boxes_given_are_not_changed() -> None:
    boxes = random_boxes(0, 20, 30)
    before = boxes.clone()
    boxes_into_view(boxes, DIAGONAL, (20, 30))
    assert torch.equal(boxes, before)


# --- masks -------------------------------------------------------------------------------------------------------


@given(seeds, views)
def test_unflipping_masks_inverts_the_flip(seed: int, view: View) -> None:
    masks = torch.from_numpy(np.random.default_rng(seed).random((3, 5, 7)))
    assert torch.equal(masks_out_of_view(masks.flip(view.flipped_dims), view), masks)
    assert torch.equal(masks_out_of_view(masks_out_of_view(masks, view), view), masks)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (IDENTITY_VIEW, [[1, 2, 3], [4, 5, 6]]),
        (HORIZONTAL, [[3, 2, 1], [6, 5, 4]]),
        (VERTICAL, [[4, 5, 6], [1, 2, 3]]),
        (DIAGONAL, [[6, 5, 4], [3, 2, 1]]),
    ],
)
def test_masks_by_hand(view: View, expected: list[list[int]]) -> None:
    masks = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert masks_out_of_view(masks, view).tolist() == expected
    assert masks_out_of_view(masks.expand(2, 4, 2, 3), view)[1, 3].tolist() == expected


# --- images ------------------------------------------------------------------------------------------------------


@given(seeds, sides, sides, views)
def test_the_padding_is_130_at_the_right_and_the_bottom_of_the_flipped_image(
    seed: int, height: int, width: int, view: View
) -> None:
    image = random_image(seed, height, width)
    flipped = image[:: -1 if view.flip_y else 1, :: -1 if view.flip_x else 1]
    padded = np.full((-(-height // 32) * 32, -(-width // 32) * 32, 3), 130, np.float64)
    padded[:height, :width] = flipped
    expected = (padded[:, :, ::-1] - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    (found,) = view_images(image, (view,))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.permute(1, 2, 0), expected, atol=1e-5)


@given(seeds, sides, sides)
def test_the_views_of_a_batch_are_each_what_they_are_alone(seed: int, height: int, width: int) -> None:
    image = random_image(seed, height, width)
    batch = view_images(image, ALL_VIEWS)
    alone = torch.cat([view_images(image, (view,)) for view in ALL_VIEWS])
    assert torch.equal(batch, alone)
    cut = [masks_out_of_view(frame[:, :height, :width], view) for frame, view in zip(batch, ALL_VIEWS, strict=True)]
    assert all(torch.equal(frame, cut[0]) for frame in cut)


def test_pixels_are_normalised_in_rgb() -> None:
    blue, green, red = 10, 20, 30
    (pixels,) = view_images(np.full((32, 32, 3), (blue, green, red), np.uint8), (IDENTITY,))
    # (30 - 123.675) / 58.395, (20 - 116.28) / 57.12, (10 - 103.53) / 57.375
    np.testing.assert_allclose(pixels[:, 5, 5], [-1.604161, -1.685574, -1.630153], atol=1e-5)


def test_padding_is_normalised_as_well() -> None:
    (pixels,) = view_images(np.zeros((31, 31, 3), np.uint8), (IDENTITY,))
    # 130 gray: (130 - 123.675) / 58.395, (130 - 116.28) / 57.12, (130 - 103.53) / 57.375
    for y, x in ((31, 31), (31, 0), (0, 31)):
        np.testing.assert_allclose(pixels[:, y, x], [0.108314, 0.240196, 0.461351], atol=1e-5)
    # black: -123.675 / 58.395, -116.28 / 57.12, -103.53 / 57.375
    np.testing.assert_allclose(pixels[:, 30, 30], [-2.117904, -2.035714, -1.804444], atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "padded"),
    [((1, 1), (32, 32)), ((32, 32), (32, 32)), ((33, 65), (64, 96)), ((31, 64), (32, 64)), ((520, 704), (544, 704))],
)
def test_sides_are_padded_to_the_next_multiples_of_32(shape: tuple[int, int], padded: tuple[int, int]) -> None:
    images = view_images(np.zeros((*shape, 3), np.uint8), ALL_VIEWS)
    assert tuple(images.shape) == (4, 3, *padded)
