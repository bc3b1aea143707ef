"""Whether the strips and tiles of a TIFF are whole: OpenCV's decoder goes on over damage without a word.

Only for where imagecodecs is not installed, whose decoders say so.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable

from kernel.errors import InputError
from kernel.images.jpeg import scan_jpeg

#: Unpacked at a time, and what a segment may hold beyond its pixels: some programs fill up.
UNPACKED_CHUNK = 1 << 20
LZW_CLEAR, LZW_END, LZW_FIRST, LZW_MOST = 256, 257, 258, 4096


def deflated_size(data: bytes, most: int) -> int:
    """How many bytes a zlib stream holds; one of more than `most` is not unpacked to its end.

    Raises:
        InputError: it ends too soon, its checksum is wrong, or it holds more than `most`.
    """
    stream = zlib.decompressobj()
    size = 0
    try:
        while not stream.eof:
            part = stream.decompress(data, UNPACKED_CHUNK)
            if not part and not stream.unconsumed_tail and not stream.eof:
                raise InputError("the TIFF is damaged: compressed data end too soon")
            size = counted(size + len(part), most)
            data = stream.unconsumed_tail
    except zlib.error as error:
        raise InputError(f"the TIFF is damaged: compressed data are damaged ({error})") from error
    return size


def lzma_size(data: bytes, most: int) -> int:
    """`deflated_size` of an LZMA stream, or of several behind each other, which Python unpacks as one."""
    size = 0
    try:
        while data:
            stream = lzma.LZMADecompressor()
            while not stream.eof:
                part = stream.decompress(data, UNPACKED_CHUNK)
                data = b""  # the decoder keeps what it has not unpacked yet
                if not part and stream.needs_input and not stream.eof:
                    raise InputError("the TIFF is damaged: compressed data end too soon")
                size = counted(size + len(part), most)
            data = stream.unused_data
    except lzma.LZMAError as error:
        raise InputError(f"the TIFF is damaged: compressed data are damaged ({error})") from error
    return size


def counted(size: int, most: int) -> int:
    """`size`.

    Raises:
        InputError: it is more than `most`.
    """
    if size > most:
        raise InputError("the TIFF is damaged: compressed data hold more than its tags tell of")
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


#: What a segment holds, for each compression whose segments are small where that is little.
SEGMENT_SIZES: dict[int, Callable[[bytes], int]] = {1: len, 5: lzw_size, 32773: packbits_size}
#: The same for those whose segments of a few bytes may hold any number of them, looked at up to a most.
DEFLATED_SIZES = dict.fromkeys((8, 32946), deflated_size)
UNBOUNDED_SIZES = {**DEFLATED_SIZES, 34925: lzma_size}
JPEG_COMPRESSION = 7


def check_segment(compression: int, data: bytes, size: int, most: int) -> None:
    """Look whether a strip or tile is whole and holds from `size` to about `most` bytes, by its own compression.

    Raises:
        InputError: it is damaged, or holds fewer, or far more.
    """
    if compression == JPEG_COMPRESSION:
        scan_jpeg(data)
        return
    if compression in UNBOUNDED_SIZES:
        held = UNBOUNDED_SIZES[compression](data, most + UNPACKED_CHUNK)
    else:
        held = SEGMENT_SIZES[compression](data) if compression in SEGMENT_SIZES else size
    if held < size:
        raise InputError("the TIFF is damaged: compressed data end too soon")
