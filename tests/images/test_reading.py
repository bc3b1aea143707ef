"""Finding and reading images of every kind that a user may bring, and refusing broken ones by name."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from kernel.errors import InputError
from kernel.images.reading import largest_image_shape, list_images, read_image, read_image_shape


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
    with pytest.raises(InputError, match="no folder"):
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
@pytest.mark.parametrize(("gain", "offset"), [(1, 0), (16, 900), (100, 5000)])
def test_16_bit_is_mapped_to_usual_gray_levels(tmp_path: Path, ending: str, gain: int, offset: int) -> None:
    """Whatever the camera's gain and offset; a hot pixel does not matter."""
    gray = np.random.default_rng(0).normal(100, 20, (60, 80)).clip(0, 255).astype(np.uint16)
    pixels = gray * gain + offset
    pixels[3, 4] = 65535
    path = tmp_path / ("a" + ending)
    cv2.imwrite(str(path), pixels)
    image = read_image(path)[..., 0].astype(float)
    assert image[3, 4] == 255
    rest = np.delete(image.ravel(), 3 * 80 + 4)
    assert rest.mean() == pytest.approx(128, abs=0.3) and rest.std() == pytest.approx(12, rel=0.03)
    expected = 128 + (np.delete(gray.ravel(), 3 * 80 + 4) - 100.0) * 12 / 20
    assert np.abs(rest - expected).max() <= 2


def test_float_with_gaps_and_constant(tmp_path: Path) -> None:
    pixels = np.array([[0.0, 0.5, 1.0, np.nan, np.inf, -np.inf]], np.float32)
    path = tmp_path / "a.tif"
    for scale in (1.0, 1e38):
        cv2.imwrite(str(path), pixels * np.float32(scale))
        dark, middle, bright, gap, above, below = read_image(path)[0, :, 0].tolist()
        assert dark < middle == gap == 128 < bright and (above, below) == (bright, dark)
    for constant in (
        np.full((3, 3), 7000, np.uint16),
        np.zeros((2, 2), np.float32),
        np.full((2, 2), np.nan, np.float32),
    ):
        cv2.imwrite(str(path), constant)
        assert (read_image(path) == 128).all()


def test_few_differing_values_are_seen(tmp_path: Path) -> None:
    """Where the usual percentiles are one value, the rest still shows."""
    pixels = np.full((40, 40), 500, np.uint16)
    pixels[20, 20] = 700
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    image = read_image(tmp_path / "a.png")
    assert image[20, 20, 0] > 200 and (np.delete(image[..., 0].ravel(), 20 * 40 + 20) == 128).all()


def test_16_bit_alpha_does_not_count(tmp_path: Path) -> None:
    pixels = np.zeros((2, 2, 4), np.uint16)
    pixels[..., :3] = np.array([[0, 1000], [500, 1000]])[..., None]
    pixels[..., 3] = 65535
    cv2.imwrite(str(tmp_path / "with.png"), pixels)
    cv2.imwrite(str(tmp_path / "without.png"), pixels[..., :3])
    np.testing.assert_array_equal(read_image(tmp_path / "with.png"), read_image(tmp_path / "without.png"))


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
        ("nearly.png", lambda whole: whole[: whole.index(b"IEND") - 9], "truncated"),
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


def chunk(kind: bytes, data: bytes, checksum: int) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


#: What does not belong to the pixels of a PNG: each is done to a whole file.
OUTSIDE_THE_PIXELS = {
    "comment": lambda whole: whole[:33] + chunk(b"tEXt", b"Comment\0stage 3", 1) + whole[33:],
    "profile": lambda whole: whole[:33] + chunk(b"iCCP", b"rubbish", 1) + whole[33:],
    "orientation": lambda whole: whole[:33] + chunk(b"eXIf", b"II*\0rubbish", 1) + whole[33:],
    "time behind": lambda whole: whole[:-12] + chunk(b"tIME", b"rubbish", 1) + whole[-12:],
    "table of a picture without one": lambda whole: whole[:33] + chunk(b"PLTE", b"abc", 1) + whole[33:],
    "checksum of the end": lambda whole: whole[:-4] + bytes(4),
    "half of the end": lambda whole: whole[:-6],
    "no end": lambda whole: whole[:-12],
    "half a comment for an end": lambda whole: whole[:-12] + chunk(b"tEXt", bytes(50), 1)[:20],
    "a length beyond the file": lambda whole: whole[:-12] + struct.pack(">I", 1 << 30) + b"tEXt",
    "more behind": lambda whole: whole + bytes(100_000),
}


@pytest.mark.parametrize("how", OUTSIDE_THE_PIXELS)
@pytest.mark.parametrize("kind", ["gray", "colour"])
def test_a_png_is_whole_where_its_pixels_are(tmp_path: Path, gray: np.ndarray, how: str, kind: str) -> None:
    pixels = np.repeat(gray[..., None], 3, axis=2)
    path = tmp_path / "a.png"
    path.write_bytes(OUTSIDE_THE_PIXELS[how](_encoded(gray if kind == "gray" else pixels, ".png")))
    np.testing.assert_array_equal(read_image(path), pixels)
    assert read_image_shape(path) == gray.shape


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


@pytest.mark.parametrize("ending", [".png", ".tif", ".jpg"])
def test_shapes_without_reading_more_than_needed(tmp_path: Path, gray: np.ndarray, ending: str) -> None:
    path = tmp_path / ("a" + ending)
    path.write_bytes(_encoded(gray, ending))
    assert read_image_shape(path) == read_image(path).shape[:2] == (40, 50)
    path.write_bytes(path.read_bytes()[:30])
    assert read_image_shape(path) is None  # a header alone is not believed
    for content in (b"", b"x", b"\x89PNG"):
        path.write_bytes(content)
        assert read_image_shape(path) is None
    assert read_image_shape(tmp_path / "none.png") is None


def test_the_largest_image(tmp_path: Path, gray: np.ndarray) -> None:
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path, pixels in zip(paths, (gray, gray[:1], gray[:, :10]), strict=True):
        path.write_bytes(_encoded(pixels, ".png"))
    assert largest_image_shape(paths[::-1]) == (40, 50)
    assert largest_image_shape([]) == largest_image_shape([tmp_path / "none.png"]) == (1, 1)


JPEG_OPTIONS = [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 2)]


@pytest.mark.parametrize("options", JPEG_OPTIONS)
def test_nothing_is_said_of_an_intact_jpeg(
    tmp_path: Path, gray: np.ndarray, capfd: pytest.CaptureFixture[str], options: tuple[int, ...]
) -> None:
    """libjpeg writes to the program's standard error, past Python's."""
    path = tmp_path / "a.jpg"
    for pixels in (gray, np.dstack([gray, gray[::-1], 255 - gray])):
        whole = cv2.imencode(".jpg", pixels, options)[1].tobytes()
        expected = cv2.imdecode(np.frombuffer(whole, np.uint8), cv2.IMREAD_COLOR)
        for content in (whole, whole + bytes(9), *([] if cv2.IMWRITE_JPEG_PROGRESSIVE in options else [whole[:-2]])):
            path.write_bytes(content)
            np.testing.assert_array_equal(read_image(path), expected)
            assert read_image_shape(path) == gray.shape
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("options", JPEG_OPTIONS)
def test_jpegs_without_imagecodecs(
    tmp_path: Path, gray: np.ndarray, monkeypatch: pytest.MonkeyPatch, options: tuple[int, ...]
) -> None:
    monkeypatch.setattr("kernel.images.jpeg.is_installed", lambda package: False)
    whole = cv2.imencode(".jpg", gray, options)[1].tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    np.testing.assert_array_equal(read_image(path)[..., 0], cv2.imdecode(np.frombuffer(whole, np.uint8), 0))
    path.write_bytes(whole[: -len(whole) // 4] + whole[-2:])
    with pytest.raises(InputError, match="its data end before its last rows"):
        read_image(path)


@pytest.mark.parametrize("kind", ["gray", "colour"])
@pytest.mark.parametrize("missing", [1, 2])
def test_a_jpeg_that_lacks_its_end_alone_is_whole(tmp_path: Path, gray: np.ndarray, kind: str, missing: int) -> None:
    colour = np.dstack([gray, gray[::-1], 255 - gray])
    whole = _encoded(gray if kind == "gray" else colour, ".jpg")
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    expected = read_image(path)
    path.write_bytes(whole[:-missing])
    np.testing.assert_array_equal(read_image(path), expected)
    assert read_image_shape(path) == gray.shape


@pytest.mark.parametrize("options", JPEG_OPTIONS)
def test_a_jpeg_that_lacks_more_is_refused(tmp_path: Path, gray: np.ndarray, options: tuple[int, ...]) -> None:
    """Wherever it ends before the last block; of one in several scans nobody can tell whether one is missing."""
    whole = cv2.imencode(".jpg", np.dstack([gray, gray[::-1], 255 - gray]), options)[1].tobytes()
    path = tmp_path / "a.jpg"
    for kept in range(len(whole) // 2, len(whole) - 6, 7):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match="the JPEG is truncated"):
            read_image(path)


@pytest.mark.parametrize("options", JPEG_OPTIONS)
def test_a_jpeg_with_an_end_and_rows_missing_is_refused(
    tmp_path: Path, gray: np.ndarray, options: tuple[int, ...]
) -> None:
    """The decoder fills them by itself, and says nothing. What stands behind whole data, does not matter."""
    whole = cv2.imencode(".jpg", np.dstack([gray, gray[::-1], 255 - gray]), options)[1].tobytes()
    path, data, end = tmp_path / "a.jpg", whole[:-2], whole[-2:]
    path.write_bytes(whole)
    expected = read_image(path)
    for behind in (bytes(9), b"\xff" * 5, b"\xff\xfe\x00\x06film", b"\xff\xe1\x00\x08Exif\0\0"):
        path.write_bytes(data + behind + end)
        np.testing.assert_array_equal(read_image(path), expected)
    last_scan = whole.rfind(b"\xff\xda") + 14
    for kept in range(last_scan, len(data) - 6, max(1, (len(data) - last_scan) // 9)):
        for behind in (b"", b"\xff\xfe\x00\x06film", b"\xff\xe1\x00\x08Exif\0\0"):
            path.write_bytes(data[:kept] + behind + end)
            with pytest.raises(InputError, match="the JPEG is damaged: its data end before its last rows"):
                read_image(path)
    if not options:  # a marker in the midst of the data ends them
        middle = (last_scan + len(data)) // 2
        path.write_bytes(data[:middle] + b"\xff\xfe\x00\x06film" + data[middle:] + end)
        with pytest.raises(InputError, match="its data end before its last rows"):
            read_image(path)


@pytest.mark.parametrize("side", [600, 5000, 60000])
@pytest.mark.parametrize("size", [(40, 50), (500, 700)])
def test_a_png_that_tells_of_more_than_it_holds(tmp_path: Path, side: int, size: tuple[int, int]) -> None:
    """Neither what it would take in time nor its memory is believed."""
    whole = _encoded(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8), ".png")
    head = struct.pack(">II", size[1] * side // 50, size[0] * side // 50) + whole[24:29]
    path = tmp_path / "a.png"
    path.write_bytes(whole[:8] + chunk(b"IHDR", head, zlib.crc32(b"IHDR" + head)) + whole[33:])
    assert read_image_shape(path) is None
    with pytest.raises(InputError, match="its header tells of"):
        read_image(path)


def test_a_blank_png_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for pixels in (np.zeros((3000, 2000), np.uint8), np.full((700, 900, 3), 128, np.uint8)):
        path.write_bytes(_encoded(pixels, ".png"))
        assert read_image_shape(path) == read_image(path).shape[:2] == pixels.shape[:2]
