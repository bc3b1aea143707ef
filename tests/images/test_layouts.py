"""Every way to store an image that programs write: read right, or refused; none wrong in silence."""

from __future__ import annotations

import io
import lzma
import struct
import sys
import tracemalloc
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from tiff_layouts import LOSSY, Layout, layouts, oracle

from kernel.errors import InputError
from kernel.images.reading import read_image, read_image_shape
from kernel.images.tiff_segments import lzw_size, packbits_size

CASES = Path(__file__).parents[3] / "shared/cases"
#: Drawn; about a third can be written.
DRAWN = 1600
#: What is installed, and the least share that is read right.
PACKAGES = {"imagecodecs": 0.95, "tifffile": 0.45, "OpenCV": 0.08}
#: JPEG at its best: by this much gray levels may be off in the mean.
LOSSY_MEAN = 12


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, Layout, np.ndarray]]:
    """Files of all layouts that can be written, with what is in them."""
    folder = tmp_path_factory.mktemp("layouts")
    rng = np.random.default_rng(0)
    made = []
    for number, layout in enumerate(layouts(DRAWN)):
        path = folder / f"{number}.tif"
        try:
            shown = layout.write(path, rng)
        except (ValueError, NotImplementedError, KeyError, RuntimeError):  # no such combination
            path.unlink(missing_ok=True)
        else:
            made.append((path, layout, shown))
    return made


@pytest.fixture(params=PACKAGES)
def packages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is installed: all, tifffile alone, neither."""
    loaded = [name for name in sys.modules if name.split(".")[0] in ("tifffile", "imagecodecs")]
    if request.param != "imagecodecs":
        for name in loaded:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
    if request.param == "OpenCV":
        monkeypatch.setitem(sys.modules, "tifffile", None)
    return request.param


def test_tiff_layouts(table: list[tuple[Path, Layout, np.ndarray]], packages: str) -> None:
    assert len(table) > 500
    counts: Counter[str] = Counter()
    wrong = []
    for path, layout, shown in table:
        try:
            found = read_image(path).astype(int)
        except InputError as error:
            assert str(path) in str(error)
            counts["refused"] += 1
            continue
        assert read_image_shape(path) == found.shape[:2]
        off = np.abs(found - oracle(shown)) if found.shape[:2] == shown.shape[:2] else np.array([255])
        right = off.mean() <= LOSSY_MEAN if layout.compression in LOSSY else off.max() <= 1
        counts["right" if right else "wrong"] += 1
        if not right:
            wrong.append(layout)
    print(packages, dict(counts))  # noqa: T201 (the counts are what the table says)
    assert not wrong
    assert counts["right"] >= PACKAGES[packages] * len(table)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(tmp_path: Path, content: bytes) -> np.ndarray:
    path = tmp_path / "image"
    path.write_bytes(content)
    found = read_image(path)
    assert read_image_shape(path) == found.shape[:2]
    return found


def as_bgr(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))[..., ::-1]


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


@pytest.fixture
def colour(noise: np.ndarray) -> Image.Image:
    return Image.fromarray(cv2.GaussianBlur(noise, (0, 0), 3))


MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "YCbCr", "CMYK", "LAB")
PILLOW_TIFFS = [
    *((mode, compression) for mode in MODES for compression in (None, "tiff_lzw", "tiff_deflate", "packbits")),
    *((mode, "jpeg") for mode in MODES if mode not in ("1", "P")),
    *(("1", compression) for compression in ("group3", "group4")),
]


@pytest.mark.parametrize(("mode", "compression"), PILLOW_TIFFS)
def test_tiffs_of_pillow(
    tmp_path: Path, colour: Image.Image, packages: str, mode: str, compression: str | None
) -> None:
    image = Image.new("LAB", colour.size) if mode == "LAB" else colour.convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(colour.convert("L"))
    content = saved(image, "TIFF", compression=compression)
    try:
        found = read(tmp_path, content).astype(int)
    except InputError:
        assert packages != "imagecodecs" or mode in ("CMYK", "LAB") or (compression == "jpeg" and "A" in mode)
        return
    decoded = Image.open(io.BytesIO(content))
    expected = as_bgr(decoded.convert("RGB"))
    assert np.abs(found - expected).max() <= (3 if mode == "YCbCr" or compression == "jpeg" else 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("transparency", [None, 3, b"colours"])
def test_pngs_of_pillow(tmp_path: Path, colour: Image.Image, mode: str, transparency: int | bytes | None) -> None:
    image = colour.quantize(200) if mode == "P" else colour.convert(mode)
    if "A" in mode:
        image.putalpha(colour.convert("L"))
    options: dict[str, Any] = {}
    if transparency is not None and mode in ("L", "RGB", "P"):
        gray = {"L": 3, "RGB": (1, 2, 3), "P": 3}[mode]
        options["transparency"] = bytes(range(200)) if transparency == b"colours" and mode == "P" else gray
    exif = Image.Exif()
    exif[274] = 6
    for content in (saved(image, "PNG", **options), saved(image, "PNG", exif=exif, **options)):
        plain = Image.merge(image.mode[:-1], image.split()[:-1]) if "A" in mode else image
        np.testing.assert_array_equal(read(tmp_path, content), as_bgr(plain))


def png(width: int, height: int, bits: int, kind: int, data: bytes, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_pngs_of_few_bits(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 1 << bits, (11, 13), dtype=np.uint8)
    packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(11, -1), axis=1)
    content = png(13, 11, bits, 0, zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed)))
    np.testing.assert_array_equal(read(tmp_path, content)[..., 0], values * (255 // ((1 << bits) - 1)))


def test_gray_and_alpha_of_16_bits(tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 4000, (20, 30)).astype(">u2")
    both = np.stack([gray, np.full_like(gray, 65535)], axis=2).astype(">u2")
    rows = [zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)) for pixels in (gray, both)]
    found, expected = read(tmp_path, png(30, 20, 16, 4, rows[1])), read(tmp_path, png(30, 20, 16, 0, rows[0]))
    np.testing.assert_array_equal(found, expected)


def ramp(colour: tuple[int, int, int]) -> np.ndarray:
    return np.rint(np.outer(np.arange(256) / 255, colour)).astype(np.uint8)


def curve(stops: list[tuple[int, int, int]]) -> np.ndarray:
    places = np.linspace(0, 255, len(stops))
    return np.stack([np.interp(np.arange(256), places, channel) for channel in np.array(stops).T], 1).astype(np.uint8)


@pytest.mark.parametrize(
    ("colours", "expected"),
    [
        (ramp((0, 255, 0)), "gray"),
        (ramp((0, 0, 255)), "gray"),
        (ramp((255, 128, 0)), "gray"),
        (ramp((255, 0, 255))[::-1], "inverted"),
        (curve([(0, 0, 0), (120, 0, 200), (250, 150, 0), (255, 255, 255)]), "gray"),  # like Fiji's Fire
        (np.concatenate([[(0, 0, 255)], ramp((255, 255, 255))[1:-1], [(255, 0, 0)]]).astype(np.uint8), "gray"),  # HiLo
        (ramp((255, 255, 255)), "gray"),
        (ramp((255, 255, 255))[::-1], "colours"),
        (np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8), "colours"),
        (np.array(sorted(np.random.default_rng(1).integers(0, 256, (256, 3)).tolist(), key=sum), np.uint8), "colours"),
        (curve([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 0, 0)]), "colours"),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF of tifffile"])
def test_palettes(tmp_path: Path, packages: str, colours: np.ndarray, expected: str, kind: str) -> None:
    """A display table over gray gives the gray values; a picture's palette its colours."""
    indices = np.random.default_rng(0).integers(0, 256, (20, 30), dtype=np.uint8)
    if kind == "TIFF of tifffile":
        stream = io.BytesIO()
        tifffile.imwrite(stream, indices, photometric="palette", colormap=colours.T.astype(np.uint16) * 257)
        content = stream.getvalue()
    else:
        image = Image.fromarray(indices, "L").convert("P")
        image.putpalette(colours.tobytes())
        content = saved(image, kind)
    shown = {"gray": indices[..., None], "inverted": 255 - indices[..., None], "colours": colours[indices][..., ::-1]}
    np.testing.assert_array_equal(read(tmp_path, content), np.broadcast_to(shown[expected], (20, 30, 3)))


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}, {"restart_marker_blocks": 2}, {"exif": 6}],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpegs_of_pillow(tmp_path: Path, colour: Image.Image, mode: str, options: dict[str, Any]) -> None:
    if "exif" in options:
        exif = Image.Exif()
        exif[274] = options["exif"]
        options = {"exif": exif}
    content = saved(colour.convert(mode), "JPEG", quality=90, **options)
    expected = as_bgr(Image.open(io.BytesIO(content))).astype(int)
    for behind in (b"", bytes(100_000), b"ftypmp42" + bytes(range(255)) * 12_000):
        assert np.abs(read(tmp_path, content + behind) - expected).max() <= 8


def test_colours_for_print_are_refused(tmp_path: Path, colour: Image.Image) -> None:
    with pytest.raises(InputError, match="CMYK"):
        read(tmp_path, saved(colour.convert("CMYK"), "JPEG"))
    with pytest.raises(InputError, match="CMYK"):
        read(tmp_path, saved(colour.convert("CMYK"), "TIFF"))


def test_flaws_outside_the_pixels(tmp_path: Path, colour: Image.Image) -> None:
    content = saved(colour, "PNG")
    comment = content[:33] + chunk(b"tEXt", b"Comment\0stage 3", 1) + content[33:]
    for whole in (comment, content[:-4] + bytes(4), content + bytes(999)):
        np.testing.assert_array_equal(read(tmp_path, whole), as_bgr(colour))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_files_cut_anywhere(tmp_path: Path, colour: Image.Image, packages: str, kind: str) -> None:
    content = saved(colour, kind, **({"compression": "tiff_deflate"} if kind == "TIFF" else {}))
    path = tmp_path / "image"
    for kept in (*range(64), *range(64, len(content) - 4, 97)):
        path.write_bytes(content[:kept])
        assert read_image_shape(path) is None
        with pytest.raises(InputError, match="image"):
            read_image(path)


def test_headers_that_lie(tmp_path: Path, colour: Image.Image) -> None:
    path = tmp_path / "image"
    lies = [png(60000, 60000, 8, 0, zlib.compress(bytes(1000)))]
    jpeg = bytearray(saved(colour, "JPEG"))
    frame = jpeg.index(b"\xff\xc0")
    struct.pack_into(">HH", jpeg, frame + 5, 60000, 60000)
    lies.append(bytes(jpeg))
    for compression in (None, "tiff_lzw", "tiff_deflate", "packbits"):
        tiff = io.BytesIO(saved(colour, "TIFF", compression=compression))
        with tifffile.TiffFile(tiff) as file:
            places = [file.pages.first.tags[name].valueoffset for name in ("ImageWidth", "ImageLength", "RowsPerStrip")]
        lying = bytearray(tiff.getvalue())
        for place in places:
            struct.pack_into("<H", lying, place, 60000)
        lies.append(bytes(lying))
    for content in lies:
        path.write_bytes(content)
        assert read_image_shape(path) is None
        with pytest.raises(InputError, match=r"damaged|truncated"):
            read_image(path)


def written(**options: Any) -> bytes:
    pixels = np.random.default_rng(0).normal(120, 20, (96, 120)).clip(0, 255).astype(np.uint8)
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, photometric="minisblack", metadata=None, **options)
    return stream.getvalue()


@pytest.mark.parametrize("tile", [None, (32, 32)])
@pytest.mark.parametrize("compression", ["zlib", "lzw", "lzma", "png", "lerc"])
def test_damaged_strips(tmp_path: Path, packages: str, compression: str, tile: tuple[int, int] | None) -> None:
    content = written(compression=compression, tile=tile, rowsperstrip=None if tile else 40)
    path = tmp_path / "image"
    for start in range(len(content) // 4, len(content) * 3 // 4, len(content) // 8):
        path.write_bytes(content[:start] + bytes(300) + content[start + 300 :])
        with pytest.raises(InputError, match=r"damaged|needs the packages"):
            read_image(path)


@pytest.mark.parametrize("packages", ["tifffile", "OpenCV"], indirect=True)
@pytest.mark.parametrize("code", [8, 32946, 34925])
def test_strips_that_hold_far_more_than_the_image(tmp_path: Path, packages: str, code: int) -> None:
    """imagecodecs unpacks no more than the image; without it, it is refused before much more is."""
    content = bytearray(written(compression="zlib", rowsperstrip=96))
    entry = content.index(struct.pack("<H", 279))  # StripByteCounts
    held = bytes(60 << 20)
    packed = zlib.compress(held) if code != 34925 else lzma.compress(held[:20]) + lzma.compress(held)
    struct.pack_into("<HIHH", content, entry + 2, 4, 1, len(packed) % 65536, len(packed) // 65536)
    struct.pack_into("<I", content, content.index(struct.pack("<H", 273)) + 8, len(content))
    struct.pack_into("<H", content, content.index(struct.pack("<H", 259)) + 8, code)
    path = tmp_path / "a.tif"
    path.write_bytes(content + packed)
    told = "hold more than its tags tell of" if packages == "tifffile" or code != 34925 else "needs the packages"
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=told):
            read_image(path)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_missing_strips(tmp_path: Path, packages: str, compression: str | None) -> None:
    content = bytearray(written(compression=compression, rowsperstrip=40))
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        place = file.pages.first.tags["StripByteCounts"].valueoffset
    content[place : place + 2] = bytes(2)
    with pytest.raises(InputError, match="strips are missing"):
        read(tmp_path, bytes(content))


def test_sizes_of_compressed_data() -> None:
    """What a strip holds, as its own decoder finds."""
    for compression, size_of in (("lzw", lzw_size), ("packbits", packbits_size)):
        content = written(compression=compression, rowsperstrip=96)
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            offset, count = file.pages.first.dataoffsets[0], file.pages.first.databytecounts[0]
        assert size_of(content[offset : offset + count]) == 96 * 120
    assert lzw_size(b"") == packbits_size(b"") == 0
    with pytest.raises(InputError, match="stands for nothing"):
        lzw_size(b"\xff\xff\xff")


def pages_said(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, **options: Any) -> tuple[np.ndarray, str]:
    caplog.clear()
    path = tmp_path / name
    tifffile.imwrite(path, **options)
    return read_image(path), caplog.text


def test_pages_of_every_kind(tmp_path: Path, caplog: pytest.LogCaptureFixture, noise: np.ndarray) -> None:
    stack = np.moveaxis(noise, 2, 0)
    gray = {"data": stack, "photometric": "minisblack"}
    ways: dict[str, dict[str, Any]] = {
        "plain.tif": {"metadata": None},
        "big.tif": {"metadata": None, "bigtiff": True},
        "shaped.tif": {},
        "imagej.tif": {"imagej": True},
        "ome.ome.tif": {"ome": True},
        "volume.tif": {"volumetric": True, "tile": (16, 16, 16)},
        "one.tif": {"description": "ImageJ=1.53t\nimages=3\nslices=3\n", "metadata": None},
    }
    for name, options in ways.items():
        found, said = pages_said(tmp_path, caplog, name, **gray, **options)
        np.testing.assert_array_equal(found[..., 0], stack[0])
        assert f"{name} has 3 pages" in said
    found, said = pages_said(tmp_path, caplog, "planes.tif", data=stack, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(found, noise[..., ::-1])
    assert not said


def test_a_pyramid_is_one_page(tmp_path: Path, caplog: pytest.LogCaptureFixture, noise: np.ndarray) -> None:
    path = tmp_path / "pyramid.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(noise, photometric="rgb", subifds=1)
        file.write(noise[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(path), noise[..., ::-1])
    with tifffile.TiffWriter(path) as file:
        file.write(noise, photometric="rgb")
        file.write(noise[::2, ::2], photometric="rgb", subfiletype=1)
    np.testing.assert_array_equal(read_image(path), noise[..., ::-1])
    assert "pages" not in caplog.text


@pytest.mark.parametrize("dtype", ["complex64", "complex128"])
def test_complex_numbers_are_refused(tmp_path: Path, dtype: str) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.ones((5, 6), dtype))
    with pytest.raises(InputError, match="complex"):
        read_image(tmp_path / "a.tif")


def test_orientation_is_ignored_and_said(
    tmp_path: Path, packages: str, noise: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="kernel")
    for orientation in range(1, 9):
        path = tmp_path / f"{orientation}.tif"
        tifffile.imwrite(path, noise, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        np.testing.assert_array_equal(read_image(path), noise[..., ::-1])
        assert (f"orientation tag {orientation}" in caplog.text) == (orientation != 1)


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases is not here")
def test_shared_cases() -> None:
    def at(name: str) -> np.ndarray:
        return read_image(next(CASES.glob(name))).astype(float)

    planar = at("01*/in/planar_rgb16.tif")
    np.testing.assert_array_equal(planar, at("01*/in/contig_rgb16.tif"))
    assert at("01*/in/planar_float.tif").std() == pytest.approx(12, abs=1)
    for name in ("jpeg2000", "jpegxl", "jpegxr"):
        np.testing.assert_array_equal(at(f"02*/in/{name}.tif"), at("02*/in/same_as.png"))
    plain = at("03*/in/plain.tif")
    raw = tifffile.imread(next(CASES.glob("03*/in/plain.tif")))
    for name in ("white_scale_bar", "zero_border_10_percent"):
        same = tifffile.imread(next(CASES.glob(f"03*/in/{name}.tif"))) == raw
        assert at(f"03*/in/{name}.tif")[same].std() == pytest.approx(plain[same].std(), rel=0.05)
    np.testing.assert_array_equal(at("04*/in/gray_alpha16.tif"), at("04*/in/gray16.tif"))
    for name in ("deflate", "lzw"):
        assert at(f"06*/in/{name}_whole.tif").std() > 5
        with pytest.raises(InputError, match="damaged"):
            at(f"06*/in/{name}_2kB_zeroed.tif")
    for path in sorted(CASES.glob("07*/**/*.tif")):
        np.testing.assert_array_equal(read_image(path)[..., 0], tifffile.imread(path))
    np.testing.assert_array_equal(at("09*/in/green_lut.tif"), at("09*/in/same_as.png"))


def test_reading_takes_little_memory(tmp_path: Path) -> None:
    """At most three times the stored pixels, in a process of its own; see tests/benchmarks/bench_reading.py."""
    pytest.importorskip("resource")
    from benchmarks.bench_reading import measured

    pixels = np.random.default_rng(0).normal(2000, 150, (2400, 2400, 3)).astype(np.uint16)
    for name, options in {"strips": {"compression": "zlib", "compressionargs": {"level": 1}}, "plain": {}}.items():
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", **options)
        assert measured(path) < 3 * pixels.nbytes + (24 << 20)


@pytest.mark.parametrize(
    "text",
    [
        '{"shape": [1e308, 1e308]}', '{"shape": ["a"]}', '{"shape": ' + "[" * 100_000, '{"shape": null}',
        '{"shape": {}}',
        '{"shape": [[1, 2], [3]]}', f'{{"shape": [{"9" * 5000}]}}', '{"shape": [NaN]}', '{"shape": [' + "1" * 90,
        "ImageJ=1\nimages=" + "9" * 5000, "ImageJ=1\nimages=x", "ImageJ=", "ImageJ=1\nimages=",
    ],
)  # fmt: skip
def test_a_text_that_only_begins_like_a_known_one(tmp_path: Path, noise: np.ndarray, text: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise, photometric="rgb", description=text, metadata=None)
    np.testing.assert_array_equal(read_image(path), noise[..., ::-1])


def test_values_beyond_what_the_tags_tell_of_are_refused(tmp_path: Path) -> None:
    """A decoder may give what its data say, and not what the tags do."""
    path = tmp_path / "a.tif"
    wide = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tifffile.imwrite(path, wide, compression="jpeg2000", metadata=None)
    content = path.read_bytes()
    tag = content.index(struct.pack("<HHI", 258, 3, 1))  # BitsPerSample
    path.write_bytes(content[: tag + 8] + b"\5" + content[tag + 9 :])
    with pytest.raises(InputError, match="values beyond the 32 that its tags tell of"):
        read_image(path)


@pytest.mark.parametrize("extra", [1, 100, 1_000_000])
def test_strips_that_are_counted_too_long(tmp_path: Path, noise: np.ndarray, packages: str, extra: int) -> None:
    """Without compression the size tells what belongs to them: the file may end there."""
    path = tmp_path / "a.tif"
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    entry = content.index(struct.pack("<H", 279))  # StripByteCounts
    (count,) = struct.unpack_from("<I", content, entry + 8)
    assert count == noise.size
    struct.pack_into("<HII", content, entry + 2, 4, 1, count + extra)
    path.write_bytes(content)
    np.testing.assert_array_equal(read_image(path), noise[..., ::-1])
    path.write_bytes(content[:-1])
    with pytest.raises(InputError, match="truncated"):
        read_image(path)
