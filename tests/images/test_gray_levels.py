"""Depths other than 8 bits: what is no part of the picture moves neither the mean nor the contrast of the cells."""

from __future__ import annotations

import functools
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from kernel.data.synthetic.generate import generate_image
from kernel.images.gray_levels import find_blocks, to_eight_bit
from kernel.settings import CELL_TYPES


@functools.cache
def synthetic(kind: str, seed: int) -> np.ndarray:
    return generate_image(kind, seed).image


def picture(kind: str = "shsy5y", seed: int = 3) -> np.ndarray:
    """Synthetic cells as a camera of 12 bits gives them, (260, 320) uint16."""
    gray = synthetic(kind, seed)[:260, :320].reshape(260, 320, -1)[..., 0]
    noise = np.random.default_rng(seed).normal(0, 8, gray.shape)
    return (cv2.GaussianBlur(gray.astype(float), (0, 0), 0.7) * 16 + noise + 900).round().astype(np.uint16)


def mapped(pixels: np.ndarray) -> np.ndarray:
    """(H, W) of any depth as (H, W) float of gray levels."""
    return to_eight_bit(pixels[..., None])[..., 0].astype(float)


def plainly(pixels: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """The mapping as it is defined, measured over the pixels (H, W) bool that count."""
    values = pixels[counted].astype(float)
    usual = np.clip(values, *np.percentile(values, (0.5, 99.5)))
    return np.clip(np.rint(128 + 12 * (pixels.astype(float) - usual.mean()) / usual.std()), 0, 255)


def bar(pixels: np.ndarray) -> None:
    pixels[200:212, 200:300] = 65535


def lettering(pixels: np.ndarray) -> None:
    cv2.putText(pixels, "50 um", (180, 200), cv2.FONT_HERSHEY_SIMPLEX, 1.0, (65535,), 2, cv2.LINE_AA)


def border(share: float, value: float) -> Callable[[np.ndarray], None]:
    def draw(pixels: np.ndarray) -> None:
        pixels[:, : round(share * pixels.shape[1])] = value

    return draw


def like_the_picture(pixels: np.ndarray) -> None:
    pixels[:, :32] = int(np.median(pixels))


def two_borders(pixels: np.ndarray) -> None:
    pixels[:, :20] = 0
    pixels[-20:] = 1000


def frame(pixels: np.ndarray) -> None:
    pixels[:50], pixels[-50:], pixels[:, :60], pixels[:, -60:] = 0, 0, 0, 0


def debris(pixels: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        cv2.circle(pixels, (int(rng.integers(320)), int(rng.integers(260))), 3, (65535,), -1)


def saturated(pixels: np.ndarray) -> None:
    pixels[60:110, 40:120] = 65535


def dead_and_hot(pixels: np.ndarray) -> None:
    drawn = np.random.default_rng(0).random(pixels.shape)
    pixels[drawn < 0.01] = 0
    pixels[drawn > 0.99] = 65535


def dead_column(pixels: np.ndarray) -> None:
    pixels[:, 100] = 0


@pytest.mark.parametrize(
    "draw",
    [
        bar, lettering, border(0.02, 0), border(0.1, 0), border(0.3, 0), border(0.1, 65535), border(0.6, 0),
        like_the_picture, two_borders, frame, debris, saturated, dead_and_hot, dead_column,
    ],
    ids=lambda draw: draw.__name__,
)  # fmt: skip
@pytest.mark.parametrize("kind", CELL_TYPES)
def test_what_is_no_picture_is_not_measured(kind: str, draw: Callable[[np.ndarray], None]) -> None:
    """The picture's part has the gray levels that it would have alone."""
    plain = picture(kind)
    drawn = plain.copy()
    draw(drawn)
    same = drawn == plain
    expected, found = plainly(drawn, same)[same], mapped(drawn)[same]
    assert found.std() == pytest.approx(expected.std(), rel=0.05)
    assert found.mean() == pytest.approx(expected.mean(), abs=0.6)


def test_a_turned_picture_in_a_black_frame() -> None:
    """Resampling makes a rim of values between the border's and the picture's."""
    plain = picture()
    turn = cv2.getRotationMatrix2D((160, 130), 12, 1)
    turned = cv2.warpAffine(plain, turn, (320, 260))
    inside = cv2.erode(cv2.warpAffine(np.ones_like(plain), turn, (320, 260)), np.ones((5, 5))) > 0
    found, expected = mapped(turned)[inside], plainly(turned, inside)[inside]
    assert found.std() == pytest.approx(expected.std(), rel=0.05)


@pytest.mark.parametrize("values", [(1e300,), (-1e300,), (1e300, -1.7e308), (np.inf,), (np.nan,), (np.inf, -np.inf)])
def test_single_wild_values(values: tuple[float, ...]) -> None:
    plain = picture().astype(np.float64)
    wild = plain.copy()
    wild[5, 5 : 5 + len(values)] = values
    same = wild == plain
    assert np.abs(mapped(wild) - mapped(plain))[same].max() <= 1


@pytest.mark.parametrize("kind", CELL_TYPES)
@pytest.mark.parametrize(
    "change",
    [
        lambda pixels: pixels,
        lambda pixels: pixels // 16,  # 8 bits stored in 16
        lambda pixels: pixels // 300,  # a few levels only, in large areas
        lambda pixels: pixels * 16 - 9000.0,
        lambda pixels: (pixels.astype(np.int32) - 3000).astype(np.int16),
        lambda pixels: (pixels > np.median(pixels)).astype(np.float32),
        lambda pixels: pixels.astype(np.float32) / 65535,
        lambda pixels: pixels.astype(np.float64) * 1e303,
    ],
)
def test_pictures_without_blocks_are_measured_whole(kind: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    pixels = change(picture(kind))
    scaled = pixels / np.abs(pixels).max()  # squares of the largest would not fit
    assert np.abs(mapped(pixels) - plainly(scaled, np.ones(pixels.shape, bool))).max() <= 1


@pytest.mark.parametrize("blur", [0, 1, 3])
def test_dark_background_without_noise_is_the_picture(blur: int) -> None:
    """Fluorescence: few bright cells on a constant background."""
    rng = np.random.default_rng(0)
    pixels = np.full((300, 300), 100.0)
    for _ in range(30):
        cv2.circle(pixels, (int(rng.integers(300)), int(rng.integers(300))), 8, (1000,), -1)
    pixels = cv2.GaussianBlur(pixels, (0, 0), blur) if blur else pixels
    pixels = pixels.round().astype(np.uint16)
    np.testing.assert_array_equal(mapped(pixels), plainly(pixels, np.ones(pixels.shape, bool)))


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (1, 7), (7, 1), (2, 2), (3, 3)])
def test_tiny_images(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 4000, shape).astype(np.uint16)
    found = mapped(pixels)
    assert found.shape == shape
    if pixels.size > 1:
        np.testing.assert_array_equal(found, plainly(pixels, np.ones(shape, bool)))


def test_one_channel_of_a_colour_image() -> None:
    """A green fluorescence image saved as RGB: the empty channels do not take its contrast."""
    plain = picture()
    colour = np.zeros((*plain.shape, 3), np.uint16)
    colour[..., 1] = plain
    np.testing.assert_array_equal(to_eight_bit(colour)[..., 1], mapped(plain))


def test_colour_blocks() -> None:
    """A block is one where all channels are constant."""
    colour = np.stack([picture(seed=seed) for seed in (1, 2, 3)], axis=2)
    expected = to_eight_bit(colour)[:, 40:].astype(float)
    colour[:, :32] = (0, 30000, 100)
    found = to_eight_bit(colour)[:, 40:].astype(float)
    assert found.std() == pytest.approx(expected.std(), rel=0.05) and np.abs(found - expected).mean() < 1
    assert find_blocks(colour.astype(float), np.ones(colour.shape[:2], bool))[:, :32].all()


def test_large_images_are_measured_in_part() -> None:
    large = np.tile(picture(), (8, 8))
    small = mapped(picture())
    found = mapped(large)[:260, :320]
    assert np.abs(found - small).max() <= 1


@pytest.mark.parametrize("value", [1e300, -1e300, 1e38, 4e9, 1.7e308])
@pytest.mark.parametrize("shape", [(8, 8), (40, 60), (300, 400)])
@pytest.mark.parametrize("where", ["a pixel", "scattered", "a row"])
def test_values_beyond_all_measure_leave_the_rest_as_it_is(value: float, shape: tuple[int, int], where: str) -> None:
    """Memory that nobody has set, or a mark for "no value": these become black or white, and nothing else."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(100, 20, shape)
    expected = to_eight_bit(pixels[..., None])[..., 0].astype(int)
    wild = np.zeros(shape, bool)
    if where == "a pixel":
        wild[3, 4] = True
    elif where == "a row":
        wild[5] = True
    else:
        wild[rng.random(shape) < 0.04] = True
    pixels[wild] = value * rng.uniform(0.5, 1, wild.sum())
    found = to_eight_bit(pixels[..., None])[..., 0].astype(int)
    assert (found[wild] == (255 if value > 0 else 0)).all()
    assert np.abs(found - expected)[~wild].max() <= (6 if shape == (8, 8) else 2)


def test_a_wide_range_of_values_is_no_reason() -> None:
    """Cells a hundred thousand times as bright as the noise are cells."""
    pixels = np.random.default_rng(0).normal(0, 1, (60, 80))
    pixels[20:40, 20:50] += 1e5
    found = to_eight_bit(pixels[..., None])[..., 0]
    assert np.ptp(found[20:40, 20:50].astype(int)) < 3 < np.ptp(found.astype(int))
