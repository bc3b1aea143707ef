"""Sizes before any image is done: headers are believed, unless they tell of far more than the others and lie."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from kernel.images.png import PNG_SIGNATURE, png_chunk
from kernel.runtime import image_sizes
from kernel.runtime.image_sizes import image_shapes


def put_png(path: Path, height: int, width: int) -> Path:
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.uint8))
    return path


def put_lying_png(path: Path, height: int, width: int, data_bytes: int) -> Path:
    """A whole PNG by its chunks and checksums, whose data could hold the pixels and do not."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = zlib.compress(bytes(1000), 0) + bytes(data_bytes)
    path.write_bytes(PNG_SIGNATURE + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b""))
    return path


@pytest.fixture()
def believed_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a format whose header cannot be checked: `read_image_shape` looks into a PNG that tells of so much."""

    def shape(path: Path) -> tuple[int, int]:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        return height, width

    monkeypatch.setattr(image_sizes, "read_image_shape", shape)


def test_headers_are_believed_where_they_are_right(tmp_path: Path) -> None:
    paths = [put_png(tmp_path / f"{number}.png", 20 + number, 30) for number in range(4)]
    paths += [put_png(tmp_path / "large.png", 300, 400), put_png(tmp_path / "tiny.png", 1, 1)]
    assert image_shapes(paths) == {
        **{str(number): (20 + number, 30) for number in range(4)}, "large": (300, 400), "tiny": (1, 1)
    }  # fmt: skip
    assert image_shapes([]) == {}


@pytest.mark.usefixtures("believed_headers")
@pytest.mark.parametrize("sides", [(1000, 1000), (9000, 9000)])
def test_a_header_that_lies_is_no_part_of_forecasts(
    tmp_path: Path, sides: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    good = [put_png(tmp_path / f"{number}.png", 20, 30) for number in range(3)]
    liars = [
        put_lying_png(tmp_path / "liar.png", *sides, 100_000),
        put_lying_png(tmp_path / "other.png", 900, 900, 900),
    ]
    shapes = image_shapes([*good, *liars])
    assert shapes == {**{path.stem: (20, 30) for path in good}, "liar": (1, 1), "other": (1, 1)}
    assert "liar.png tells of" in caplog.text and "Traceback" not in caplog.text


@pytest.mark.usefixtures("believed_headers")
def test_an_image_too_large_to_be_read_at_the_start_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """60000 x 60000 pixels would be 10 GB; such an image is a giant for the time budget, which does not count it."""
    paths = [put_png(tmp_path / f"{number}.png", 20, 30) for number in range(3)]
    paths.append(put_lying_png(tmp_path / "liar.png", 60_000, 60_000, 4_000_000))
    monkeypatch.setattr(image_sizes, "read_image", lambda path: pytest.fail(f"{path} is read"))
    assert image_shapes(paths)["liar"] == (60_000, 60_000)


@pytest.mark.parametrize("content", [b"", b"no image", PNG_SIGNATURE, PNG_SIGNATURE + bytes(12)])
def test_what_is_no_image_takes_no_time(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    assert image_shapes([tmp_path / "bad.png", put_png(tmp_path / "good.png", 20, 30)]) == {
        "bad": (1, 1), "good": (20, 30)
    }  # fmt: skip
