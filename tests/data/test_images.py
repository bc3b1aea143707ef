"""Finding and reading images of every kind that a user may bring, and refusing broken ones by name."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from kernel.data.images import list_images, read_image
from kernel.errors import InputError


@pytest.fixture
def gray() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)


def _encoded(pixels: np.ndarray, ending: str) -> bytes:
    return cv2.imencode(ending, pixels)[1].tobytes()


def test_list_images_sorted_any_case(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.tif", "c.JPEG", "d.jpg", "e.TIFF", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["a.tif", "b.PNG", "c.JPEG", "d.jpg", "e.TIFF"]


def test_list_images_says_what_it_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="it is empty"):
        list_images(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"notes\.txt"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="No folder"):
        list_images(tmp_path / "missing")


def test_list_images_refuses_the_same_stem_twice(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"a\.png and a\.tif"):
        list_images(tmp_path)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_gray_and_colour_are_exact(tmp_path: Path, gray: np.ndarray, ending: str) -> None:
    colour = np.stack([gray, gray[::-1], gray[:, ::-1]], axis=2)
    alpha = np.dstack([colour, gray])
    for name, pixels, expected in (
        ("gray", gray, np.repeat(gray[..., None], 3, axis=2)),
        ("colour", colour, colour),
        ("alpha", alpha, colour),
        ("one", gray[:1, :1], np.repeat(gray[:1, :1, None], 3, axis=2)),
    ):
        path = tmp_path / (name + ending)
        cv2.imwrite(str(path), pixels)
        image = read_image(path)
        assert image.dtype == np.uint8 and image.flags.c_contiguous
        np.testing.assert_array_equal(image, expected)


def test_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(_encoded(np.full((20, 30), 90, np.uint8), ".jpg"))
    assert np.abs(read_image(path).astype(int) - 90).max() <= 2


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_16_bit_is_stretched_over_its_own_range(tmp_path: Path, ending: str) -> None:
    pixels = np.array([[100, 1100], [2100, 4100]], np.uint16)
    path = tmp_path / ("a" + ending)
    cv2.imwrite(str(path), pixels)
    np.testing.assert_array_equal(read_image(path)[..., 0], [[0, 64], [128, 255]])


def test_float_with_gaps_and_constant(tmp_path: Path) -> None:
    pixels = np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)
    path = tmp_path / "a.tif"
    cv2.imwrite(str(path), pixels)
    np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 128, 255, 0])
    cv2.imwrite(str(path), np.full((3, 3), 7000, np.uint16))
    assert (read_image(path) == 128).all()


def test_16_bit_alpha_does_not_stretch(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint16)
    pixels[..., :3] = np.array([[0, 1000], [500, 1000]])[..., None]
    pixels[..., 3] = 65535
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), pixels)
    np.testing.assert_array_equal(read_image(path)[..., 1], [[0, 255], [128, 255]])


def test_first_page_of_a_stack(tmp_path: Path, gray: np.ndarray, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "stack.tif"
    cv2.imwritemulti(str(path), [gray, 255 - gray, gray])
    with caplog.at_level(logging.WARNING, logger="kernel"):
        np.testing.assert_array_equal(read_image(path)[..., 0], gray)
    assert "stack.tif has 3 pages" in caplog.text


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("empty.png", lambda whole: b"", "empty"),
        ("text.png", lambda whole: b"hello, not an image", "no PNG, TIFF or JPEG"),
        ("half.png", lambda whole: whole[: len(whole) // 2], "truncated"),
        ("nearly.png", lambda whole: whole[:-4], "truncated"),
        ("head.png", lambda whole: whole[:20], "truncated"),
        ("signature.png", lambda whole: whole[:8], "truncated"),
    ],
)
def test_broken_png(tmp_path: Path, gray: np.ndarray, name: str, cut, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(cut(_encoded(gray, ".png")))
    with pytest.raises(InputError, match=message) as raised:
        read_image(path)
    assert name in str(raised.value)


@pytest.mark.parametrize("ending", [".jpg", ".tif"])
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_truncated_jpeg_and_tiff(tmp_path: Path, gray: np.ndarray, ending: str, kept: float) -> None:
    whole = _encoded(gray, ending)
    path = tmp_path / ("half" + ending)
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match="half"):
        read_image(path)


def test_damaged_png_data(tmp_path: Path, gray: np.ndarray) -> None:
    whole = bytearray(_encoded(gray, ".png"))
    middle = len(whole) // 2
    whole[middle : middle + 8] = bytes(8)
    path = tmp_path / "damaged.png"
    path.write_bytes(bytes(whole))
    with pytest.raises(InputError, match="damaged"):
        read_image(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png"):
        read_image(tmp_path / "none.png")
