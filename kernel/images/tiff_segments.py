"""Whether the strips and tiles of a TIFF are whole: OpenCV's decoder goes on over damage without a word.

Only for where imagecodecs is not installed, whose decoders say so.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

from kernel.errors import InputError
from kernel.images.jpeg import scan_jpeg

DEFLATE_CHUNK = 1 << 20
LZW_CLEAR, LZW_END, LZW_FIRST, LZW_MOST = 256, 257, 258, 4096


def deflated_size(data: bytes) -> int:
    """How many bytes a zlib stream holds.

    Raises:
        InputError: it ends too soon, or its checksum is wrong.
    """
    stream = zlib.decompressobj()
    size = 0
    try:
        while not stream.eof:
            part = stream.decompress(data, DEFLATE_CHUNK)
            if not part and not stream.unconsumed_tail and not stream.eof:
                raise InputError("the TIFF is damaged: compressed data end too soon")
            size += len(part)
            data = stream.unconsumed_tail
    except zlib.error as error:
        raise InputError(f"the TIFF is damaged: compressed data are damaged ({error})") from error
    return size


def lzw_size(data: bytes) -> int:
    """How many bytes a strip of LZW holds.

    Raises:
        InputError: a code stands for nothing yet.
    """
    sizes = [1] * LZW_CLEAR + [0, 0]  # of what each code stands for
    bits = held = total = previous = 0
    width = 9
    for byte in data:
        bits = bits << 8 | byte
        held += 8
        if held < width:
            continue
        held -= width
        code = bits >> held
        bits &= (1 << held) - 1
        if code == LZW_END:
            break
        if code == LZW_CLEAR:
            del sizes[LZW_FIRST:]
            width, previous = 9, 0
            continue
        if code > (len(sizes) if previous else LZW_CLEAR - 1):
            raise InputError("the TIFF is damaged: compressed data are damaged (a code of LZW stands for nothing)")
        if previous and len(sizes) < LZW_MOST:
            sizes.append(previous + 1)
        previous = sizes[code]
        total += previous
        if len(sizes) >= (1 << width) - 1 and width < 12:
            width += 1
    return total


def packbits_size(data: bytes) -> int:
    """How many bytes a strip of PackBits holds.

    Raises:
        InputError: it ends within a run.
    """
    at = size = 0
    while at < len(data):
        head = data[at]
        if head < 128:
            at += 2 + head
            size += 1 + head
        else:
            at += 1 if head == 128 else 2
            size += 0 if head == 128 else 257 - head
    if at > len(data):
        raise InputError("the TIFF is damaged: compressed data end too soon")
    return size


#: The check for each compression: what a segment holds.
SEGMENT_SIZES: dict[int, Callable[[bytes], int]] = {
    1: len,
    5: lzw_size,
    8: deflated_size,
    32773: packbits_size,
    32946: deflated_size,
}
JPEG_COMPRESSION = 7


def check_segment(compression: int, data: bytes, size: int) -> None:
    """Look whether a strip or tile is whole and holds `size` bytes, by its own compression.

    Raises:
        InputError: it is damaged, or holds fewer.
    """
    if compression == JPEG_COMPRESSION:
        scan_jpeg(data)
    elif compression in SEGMENT_SIZES and SEGMENT_SIZES[compression](data) < size:
        raise InputError("the TIFF is damaged: compressed data end too soon")
