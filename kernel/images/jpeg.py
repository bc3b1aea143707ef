"""JPEG files: whole or not, and their pixels as they are stored."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from kernel.errors import InputError
from kernel.images.decoding import DECODER_ERRORS, decode_by_opencv, is_installed, without_alpha
from kernel.images.tiff_tags import exif_orientation
from kernel.log import LOG

JPEG_SIGNATURE = b"\xff\xd8\xff"
#: Markers: of the frame (one for each compression), of what has no length, of the end, a scan, Exif data.
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
JPEG_END, JPEG_SCAN, JPEG_APP1 = 0xD9, 0xDA, 0xE1
#: The compressions whose data come once, from the top to the bottom: where they end too soon, rows are missing.
JPEG_SEQUENTIAL = (0xC0, 0xC1)
#: What a picture without its end is continued with: if it is whole, neither changes a pixel.
JPEG_FILLINGS = (bytes(4096), b"\x55\xaa" * 2048)
JPEG_LAST_BYTES = bytes((0xFF, JPEG_END))
#: A block of 8 x 8 pixels takes at least a bit.
JPEG_PIXELS_PER_BYTE = 8 * 64


@dataclass(frozen=True)
class JpegLayout:
    """What the markers of a JPEG say."""

    height: int
    width: int
    components: int
    precision: int  # bits of a sample
    orientation: int  # the Exif tag, 1 where there is none
    data_end: int  # where the data of the last scan end
    end: int  # where the picture ends in the file: there may be more behind it
    has_end: bool  # whether there is a marker of the end


def scan_jpeg(content: bytes, *, needs_end: bool = True) -> JpegLayout:
    """Go through the markers up to the end of the picture.

    What lies behind that, a film or zeros, does not matter.

    Args:
        content: the file.
        needs_end: refuse a file without a marker of the end; else only one in which more than that may be missing, by
            its markers: one that comes in several scans.

    Raises:
        InputError: the file ends before, or there is no picture in it.
    """
    frame, orientation, compression, scanned, has_end = None, 1, 0, 0, True
    data_end, is_in_scan = 0, False
    at = 2
    while True:
        at = content.find(b"\xff", at)
        if at < 0 or at + 1 >= len(content):
            if needs_end or compression not in JPEG_SEQUENTIAL or frame is None or scanned != frame[3]:
                raise InputError("the JPEG is truncated: it has no end")
            at, has_end = len(content), False
            data_end = at if is_in_scan else data_end
            break
        marker = content[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        at += 2
        if marker == 0x00 or marker in JPEG_WITHOUT_LENGTH:
            continue
        data_end = at - 2 if is_in_scan else data_end
        is_in_scan = marker == JPEG_SCAN
        if marker == JPEG_END:
            break
        if at + 2 > len(content):
            raise InputError("the JPEG is truncated: it has no end")
        (length,) = struct.unpack(">H", content[at : at + 2])
        if marker in JPEG_FRAMES and length >= 8 and at + 8 <= len(content):
            frame, compression = struct.unpack(">BHHB", content[at + 2 : at + 8]), marker
        if marker == JPEG_SCAN:
            scanned += content[at + 2] if at + 2 < len(content) else 0
        if marker == JPEG_APP1 and content[at + 2 : at + 8] == b"Exif\0\0":
            orientation = exif_orientation(content[at + 8 : at + length])
        at += max(2, length)
    if frame is None:
        raise InputError("the JPEG is damaged: it has no picture")
    precision, height, width, components = frame
    if not height or not width or height * width > JPEG_PIXELS_PER_BYTE * len(content):
        raise InputError(f"the JPEG is damaged: it tells of {width} x {height} pixels, which it cannot hold")
    while content[data_end - 1 : data_end] == b"\xff":  # fill before a marker
        data_end -= 1
    return JpegLayout(height, width, components, precision, orientation, data_end, at, has_end)


def read_jpeg_shape(stream: BinaryIO) -> tuple[int, int]:
    """The (H, W) of a JPEG; nothing is decoded, unless it has no end.

    Raises:
        InputError: the markers are not all there.
    """
    content = stream.read()
    layout = scan_jpeg(content, needs_end=False)
    if not layout.has_end:
        decode_jpeg(content, layout)
    return layout.height, layout.width


def read_jpeg(stream: BinaryIO) -> tuple[np.ndarray, int]:
    """The pixels of a JPEG as (H, W, C) uint8, C 1 or 3 in the order B, G, R; and its orientation tag, 1 if none.

    Raises:
        InputError: the file is truncated, or holds other colours than gray or RGB, or another depth than 8 bits.
    """
    content = stream.read()
    layout = scan_jpeg(content, needs_end=False)
    if layout.components not in (1, 3):
        raise InputError(f"the JPEG has {layout.components} colour components (CMYK, for print): gray or RGB is needed")
    if layout.precision != 8:
        raise InputError(f"the JPEG has {layout.precision} bits per sample: 8 are needed")
    pixels = decode_jpeg(content[: layout.end] if layout.end < len(content) else content, layout)
    if pixels is None or pixels.shape[:2] != (layout.height, layout.width):
        raise InputError("the JPEG is damaged: its pixels cannot be decoded")
    return without_alpha(pixels), layout.orientation


def decode_jpeg(content: bytes, layout: JpegLayout) -> np.ndarray | None:
    """The pixels of a picture, as `decode_by_opencv` gives them; None where it cannot.

    Raises:
        InputError: rows are missing, with or without an end behind them: they would depend on what follows.
    """
    data = content[: layout.data_end]
    first, second = (decode_filled(data + filling + JPEG_LAST_BYTES) for filling in JPEG_FILLINGS)
    if first is not None and second is not None and np.array_equal(first, second):
        return decode_by_opencv(data + JPEG_LAST_BYTES)
    if layout.has_end:
        raise InputError("the JPEG is damaged: its data end before its last rows")
    raise InputError("the JPEG is truncated: it has no end")


def decode_filled(content: bytes) -> np.ndarray | None:
    """The pixels of a JPEG with a filling, by imagecodecs where it is installed; None where they cannot be decoded.

    What a whole picture leaves of the filling is reported to the program's standard error by OpenCV alone.
    """
    if not is_installed("imagecodecs"):
        return decode_by_opencv(content)
    import imagecodecs

    try:
        return imagecodecs.jpeg8_decode(content)
    except DECODER_ERRORS as error:
        LOG.debug("imagecodecs: %s", error)
        return None
