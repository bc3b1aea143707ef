"""Any bytes for an image: an image or InputError, within memory, and nothing else.

    TORTURE_EXAMPLES=20000 python -m pytest tests/faults/test_fuzz_readers.py

Where TORTURE_COUNTS names a file, a line is appended to it for each test: its name, and how many inputs it tried.
"""

from __future__ import annotations

import io
import logging
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel.errors import InputError
from kernel.images.png import png_chunk
from kernel.images.reading import read_image, read_image_shape

EXAMPLES = int(os.environ.get("TORTURE_EXAMPLES", "150"))
#: What reading files of a few thousand bytes may add to this process's memory, whatever they tell of, in KB.
MORE_MEMORY = 400_000
#: So much of a file is its head: it is cut at each of these bytes.
HEAD_BYTES = 420


def samples() -> dict[str, bytes]:
    """A small file of every format, and of those that differ by more than their pixels."""
    gray = np.random.default_rng(0).integers(0, 256, (12, 16), dtype=np.uint8)
    tiled = np.tile(gray, (4, 4))
    colour = np.dstack([gray, gray.T.copy().reshape(12, 16), 255 - gray])

    def tiff(pixels: np.ndarray, **options: Any) -> bytes:
        stream = io.BytesIO()
        tifffile.imwrite(stream, pixels, **{"metadata": None, **options})
        return stream.getvalue()

    def encoded(pixels: np.ndarray, ending: str, *options: int) -> bytes:
        return cv2.imencode(ending, pixels, options)[1].tobytes()

    palette = np.random.default_rng(1).integers(0, 65535, (3, 256)).astype(np.uint16)
    png = encoded(gray, ".png")
    made = {
        "png": png,
        "png 16": encoded(gray.astype(np.uint16) * 99, ".png"),
        "png alpha": encoded(np.dstack([colour, gray]), ".png"),
        "png chunks": png[:33] + png_chunk(b"eXIf", b"II*\0\x08\0\0\0\0\0") + png_chunk(b"tEXt", b"a\0b") + png[33:],
        "jpeg": encoded(gray, ".jpg"),
        "jpeg progressive": encoded(colour, ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        "big": tiff(gray, bigtiff=True),
        "big endian": tiff(gray.astype(np.uint16), byteorder=">"),
        "palette": tiff(gray, photometric="palette", colormap=palette),
        "rgb": tiff(colour, photometric="rgb"),
        "tiles": tiff(tiled, tile=(16, 16)),
        "pages": tiff(np.stack([gray] * 3)),
        "shaped": tiff(np.stack([gray] * 3), metadata={}),
        "imagej": tiff(np.stack([gray] * 3), imagej=True),
        "jpeg in tiff": tiff(tiled, compression="jpeg"),
        "predictor": tiff(gray, compression="lzw", predictor=True),
    }
    made |= {dtype: tiff(gray.astype(dtype)) for dtype in ("f2", "f4", "f8", "i1", "i2", "u4", "u8")}
    for compression in ("zlib", "packbits", "zstd", "lerc", "jpeg2000", "jpegxl", "png", "lzma"):
        made[compression] = tiff(tiled, compression=compression)
    return made


SAMPLES = samples()


@pytest.fixture(autouse=True)
def within_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MORE_MEMORY


def check_file(path: Path, content: bytes) -> bool:
    """Read some bytes as an image; returns whether they are one."""
    path.write_bytes(content)
    shape = read_image_shape(path)
    assert shape is None or (len(shape) == 2 and min(shape) > 0)
    try:
        pixels = read_image(path)
    except InputError as error:
        assert str(path) in str(error)
        return False
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.flags.c_contiguous
    assert shape == pixels.shape[:2]
    return True


def count_inputs(name: str, count: int) -> None:
    """Note how many inputs were tried, where somebody counts them."""
    if os.environ.get("TORTURE_COUNTS"):
        with Path(os.environ["TORTURE_COUNTS"]).open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(f"{name} {count}\n")


@pytest.mark.parametrize("name", SAMPLES)
def test_each_sample_is_cut_at_every_byte_of_its_head(name: str, tmp_path: Path) -> None:
    content = SAMPLES[name]
    assert check_file(tmp_path / "image", content)
    lengths = sorted({*range(min(len(content), HEAD_BYTES)), *range(max(0, len(content) - 64), len(content))})
    read = [length for length in lengths if check_file(tmp_path / "image", content[:length])]
    assert all(length > len(content) / 2 for length in read)  # what is behind the pixels may be missing
    count_inputs("image-cut", len(lengths))


#: What numbers in heads are replaced by: small ones, those near the ends of their types, and any.
NUMBERS = st.one_of(
    st.integers(0, 20).map(lambda value: bytes([value])),
    st.sampled_from([b"\xff", b"\x7f", b"\x80", b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\xff\xff"]),
    st.sampled_from([b"\1\0\0\0", b"\0\0\0\1", b"\0\0\1\0", b"\0\1", b"\1\0", b"\xff" * 8]),
    st.binary(min_size=1, max_size=8),
)
CHANGES = st.lists(
    st.tuples(st.sampled_from(["replace", "insert", "delete", "cut"]), st.floats(0, 1), st.booleans(), NUMBERS),
    min_size=1,
    max_size=6,
)


def changed(content: bytes, changes: list[tuple[str, float, bool, bytes]]) -> bytes:
    """A file with some of its bytes replaced, inserted or removed, in its head or anywhere."""
    made = bytearray(content)
    for how, place, in_head, value in changes:
        at = int(place * (min(len(made), HEAD_BYTES) if in_head else len(made)))
        if how == "replace":
            made[at : at + len(value)] = value
        elif how == "insert":
            made[at:at] = value
        elif how == "delete":
            del made[at : at + len(value)]
        else:
            del made[at + 1 :]
    return bytes(made)


@pytest.mark.parametrize("kind", ["png", "jpeg", "tiff"])
def test_changed_files(kind: str, tmp_path: Path) -> None:
    names = [name for name in SAMPLES if (name.split()[0] if name.split()[0] in ("png", "jpeg") else "tiff") == kind]
    tried = 0

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(st.sampled_from(names), CHANGES)
    def try_file(name: str, changes: list[tuple[str, float, bool, bytes]]) -> None:
        nonlocal tried
        tried += 1
        check_file(tmp_path / "image", changed(SAMPLES[name], changes))

    try_file()
    assert tried >= min(EXAMPLES, 100)
    count_inputs("image-changed", tried)


def test_any_bytes_behind_a_signature(tmp_path: Path) -> None:
    heads = [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"]
    tried = 0

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck), print_blob=True)
    @given(st.sampled_from(heads), st.binary(max_size=400))
    def try_file(head: bytes, rest: bytes) -> None:
        nonlocal tried
        tried += 1
        check_file(tmp_path / "image", head + rest)

    try_file()
    assert tried >= min(EXAMPLES, 100)
    count_inputs("image-bytes", tried)
