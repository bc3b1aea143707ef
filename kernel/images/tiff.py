"""TIFF files: right pixels, or a refusal that says what is wrong or missing.

What a file holds is read from its tags here. Its strips and tiles are decoded by tifffile and imagecodecs where these
are installed, since they say what is damaged. Without them OpenCV does it, for those layouts only that it reads right,
and only after each strip was checked.
"""

from __future__ import annotations

import io
import math
import re
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kernel.errors import InputError
from kernel.images.jpeg import scan_jpeg
from kernel.images.lookup_tables import display_table
from kernel.images.tiff_decoding import decode_samples
from kernel.images.tiff_layout import (
    MIN_IS_WHITE,
    PALETTE,
    TiffLayout,
    check_segments,
    read_layout,
)
from kernel.images.tiff_segments import JPEG_COMPRESSION
from kernel.images.tiff_tags import TiffDirectory, TiffTag, tiff_directories
from kernel.log import LOG

#: Values of ExtraSamples that say alpha, associated or not; other samples are channels.
ALPHA_KINDS = (1, 2)


def read_tiff_shape(stream: BinaryIO) -> tuple[int, int]:
    """The (H, W) of the first page, from its tags; nothing is decoded.

    Raises:
        InputError: the tags show that `read_tiff` refuses the file.
    """
    layout = read_layout(next(tiff_directories(stream)))
    check_segments(layout, stream.seek(0, io.SEEK_END))
    return layout.height, layout.width


def read_tiff(path: Path, stream: BinaryIO, page: int = 0) -> tuple[np.ndarray, int]:
    """The pixels of a page, (H, W, C) of any real type, C 1 or 3 in the order B, G, R; and its orientation tag.

    Samples beyond the colours are dropped; fewer than 8 bits are spread over 0 to 255; MinIsWhite is inverted; a
    palette gives its colours, but the stored values where it is a display table over gray.

    Raises:
        InputError: the file is damaged, or stored in a way that nothing that is installed reads right.
    """
    directory = next(islice(tiff_directories(stream), page, None), None)
    if directory is None:
        raise InputError(f"the TIFF is damaged: it has no page {page}, counted from 0")
    layout = check_segments(read_layout(directory), stream.seek(0, io.SEEK_END))
    check_jpeg_depth(stream, layout)
    values = decode_samples(path, stream, directory, layout, page)
    alpha = sum(extra in ALPHA_KINDS for extra in directory.values(TiffTag.EXTRA_SAMPLES))
    if layout.samples - alpha > layout.colours:
        LOG.warning("%s has %d channels: only the first %d used", path.name, layout.samples - alpha, layout.colours)
    table = read_palette(directory, layout.bits) if layout.photometric == PALETTE else None
    return to_gray_or_colour(values, layout, table), directory.value(TiffTag.ORIENTATION, 1)


def check_jpeg_depth(stream: BinaryIO, layout: TiffLayout) -> None:
    """Look whether JPEG data have as many bits as the tags say: decoders would leave the others empty.

    Raises:
        InputError: they have fewer, or are damaged.
    """
    if layout.compression == JPEG_COMPRESSION:
        for offset, count in zip(layout.offsets, layout.counts, strict=False):
            stream.seek(offset)
            if scan_jpeg(stream.read(count)).precision < layout.bits:
                raise InputError(f"the TIFF is damaged: its JPEG data have fewer than {layout.bits} bits")


def read_palette(directory: TiffDirectory, bits: int) -> np.ndarray:
    """The table (N, 3) of R, G, B, uint16, an entry for each value.

    Raises:
        InputError: it has not as many entries as there are values.
    """
    field = directory.fields.get(TiffTag.COLOR_MAP)
    if field is None or field.type_code != 3 or bits > 16 or field.count != 3 << bits:
        raise InputError(f"the TIFF is damaged: its palette has not the entries that {bits} bits need")
    table = np.array(directory.values(TiffTag.COLOR_MAP), np.uint16).reshape(3, -1).T
    return table if table.max() > 255 else table * 257  # some programs write 8 bits


def to_gray_or_colour(values: np.ndarray, layout: TiffLayout, table: np.ndarray | None) -> np.ndarray:
    """Samples (H, W, S) as gray (H, W, 1) or B, G, R (H, W, 3), see `read_tiff`; `table` (N, 3) is a palette, if any.

    Raises:
        InputError: a palette of a picture's own colours beside JPEG, or values that the tags do not allow.
    """
    values = values[..., : layout.colours]
    if values.dtype == bool:
        values = values.view(np.uint8)
    if table is not None:
        direction = display_table(table)
        if not direction:
            if layout.compression == JPEG_COMPRESSION:
                raise InputError("the TIFF is damaged: JPEG mixes up the entries of its palette")
            return looked_up((table[:, ::-1] >> 8).astype(np.uint8), values[..., 0])
        return values if direction > 0 else inverted(values)
    if layout.bits < 8:
        most = (1 << layout.bits) - 1
        values = looked_up((np.arange(most + 1) * 255 / most).round().astype(np.uint8), values)
    if layout.photometric == MIN_IS_WHITE:
        values = inverted(values)
    return values[..., ::-1]


def looked_up(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The entries of a table (N, ...) for values (...).

    Raises:
        InputError: it has none for some of them.
    """
    if values.dtype.kind != "u" or int(values.max()) >= len(table):
        raise InputError(f"the TIFF is damaged: it holds values beyond the {len(table)} that its tags tell of")
    return table[values]


def inverted(values: np.ndarray) -> np.ndarray:
    """Dark to bright. What is not of 8 bits is mapped linearly afterwards, so that its zero does not matter.

    It is the same zero for all planes of a stack, which are compared. Of 64 bits it is not: floats, by which they are
    mapped, tell no two values near their largest apart.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize > 4:
        return values.max() - values
    if values.dtype.kind == "u":
        return ~values
    return ~values if values.dtype.kind == "i" else -values


def count_planes(stream: BinaryIO) -> int:
    """How many pictures a TIFF holds: its pages, but those that are reduced, or what the first one's text tells of.

    Fiji and tifffile store a stack in one page where they can, MetaMorph always. What is behind a damaged page does
    not count.
    """
    pages = planes = 0
    try:
        for number, directory in enumerate(tiff_directories(stream)):
            pages += not directory.value(TiffTag.NEW_SUBFILE_TYPE, 0) & 1
            if number == 0:
                planes = stored_planes(directory)
    except InputError as error:
        LOG.debug("counting pages: %s", error)
    return max(pages, planes)


def stored_planes(directory: TiffDirectory) -> int:
    """How many pictures of a stack follow each other in the one page of a directory.

    The texts are searched, not parsed: a stranger's may be anything that begins like ImageJ's or tifffile's.
    """
    text = directory.text(TiffTag.IMAGE_DESCRIPTION)
    planes = max(1, directory.value(TiffTag.IMAGE_DEPTH, 1))
    if TiffTag.METAMORPH_UIC2 in directory.fields:
        planes = max(planes, directory.fields[TiffTag.METAMORPH_UIC2].count)
    if text.startswith("ImageJ="):
        found = re.search(r"^images=(\d{1,9})(?!\d)", text, re.MULTILINE)
        planes = max(planes, int(found.group(1)) if found else 1)
    found = re.match(r'\{"shape": \[(\d{1,9}(?:, \d{1,9}){0,8})\]', text)
    if found:
        values = math.prod(int(side) for side in re.findall(r"\d+", found.group(1)))
        page = (
            directory.value(TiffTag.IMAGE_WIDTH, 1)
            * directory.value(TiffTag.IMAGE_LENGTH, 1)
            * directory.value(TiffTag.SAMPLES_PER_PIXEL, 1)
        )
        planes = max(planes, values // page)
    return planes
