"""JPEG files: whole or not, and their pixels as they are stored."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from kernel.errors import InputError
from kernel.images.decoding import decode_by_opencv, without_alpha
from kernel.images.tiff_tags import exif_orientation

JPEG_SIGNATURE = b"\xff\xd8\xff"
#: Markers: of the frame (one for each compression), of what has no length, of the end, a scan, Exif data.
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
JPEG_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
JPEG_END, JPEG_SCAN, JPEG_APP1 = 0xD9, 0xDA, 0xE1
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
    end: int  # where the picture ends in the file: there may be more behind it


def scan_jpeg(content: bytes) -> JpegLayout:
    """Go through the markers up to the end of the picture.

    What lies behind that, a film or zeros, does not matter.

    Raises:
        InputError: the file ends before, or there is no picture in it.
    """
    frame, orientation = None, 1
    at = 2
    while True:
        at = content.find(b"\xff", at)
        if at < 0 or at + 1 >= len(content):
            raise InputError("the JPEG is truncated: it has no end")
        marker = content[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        at += 2
        if marker == JPEG_END:
            break
        if marker == 0x00 or marker in JPEG_WITHOUT_LENGTH:
            continue
        if at + 2 > len(content):
            raise InputError("the JPEG is truncated: it has no end")
        (length,) = struct.unpack(">H", content[at : at + 2])
        if marker in JPEG_FRAMES and length >= 8 and at + 8 <= len(content):
            frame = struct.unpack(">BHHB", content[at + 2 : at + 8])
        if marker == JPEG_APP1 and content[at + 2 : at + 8] == b"Exif\0\0":
            orientation = exif_orientation(content[at + 8 : at + length])
        at += max(2, length)
    if frame is None:
        raise InputError("the JPEG is damaged: it has no picture")
    precision, height, width, components = frame
    if not height or not width or height * width > JPEG_PIXELS_PER_BYTE * len(content):
        raise InputError(f"the JPEG is damaged: it tells of {width} x {height} pixels, which it cannot hold")
    return JpegLayout(height, width, components, precision, orientation, at)


def read_jpeg_shape(stream: BinaryIO) -> tuple[int, int]:
    """The (H, W) of a JPEG; nothing is decoded.

    Raises:
        InputError: the markers are not all there.
    """
    layout = scan_jpeg(stream.read())
    return layout.height, layout.width


def read_jpeg(stream: BinaryIO) -> tuple[np.ndarray, int]:
    """The pixels of a JPEG as (H, W, C) uint8, C 1 or 3 in the order B, G, R; and its orientation tag, 1 if none.

    Raises:
        InputError: the file is truncated, or holds other colours than gray or RGB, or another depth than 8 bits.
    """
    content = stream.read()
    layout = scan_jpeg(content)
    if layout.components not in (1, 3):
        raise InputError(f"the JPEG has {layout.components} colour components (CMYK, for print): gray or RGB is needed")
    if layout.precision != 8:
        raise InputError(f"the JPEG has {layout.precision} bits per sample: 8 are needed")
    pixels = decode_by_opencv(content[: layout.end] if layout.end < len(content) else content)
    if pixels is None or pixels.shape[:2] != (layout.height, layout.width):
        raise InputError("the JPEG is damaged: its pixels cannot be decoded")
    return without_alpha(pixels), layout.orientation
