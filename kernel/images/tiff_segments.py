"""Whether the strips and tiles of a TIFF are whole: OpenCV's decoder goes on over damage without a word.

Only for where imagecodecs is not installed, whose decoders say so.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator

from kernel.errors import InputError
from kernel.images.jpeg import scan_jpeg

#: Unpacked at a time, and what a segment may hold beyond its pixels: some programs fill up.
UNPACKED_CHUNK = 1 << 20
TOO_SHORT = "the TIFF is damaged: compressed data end too soon"
LZW_CLEAR, LZW_END, LZW_FIRST, LZW_MOST = 256, 257, 258, 4096


def unpacked_size(parts: Iterator[int], most: int) -> int:
    """How many bytes a compressed segment holds; one of more than `most` is not unpacked to its end.

    Args:
        parts: the bytes of each piece that is unpacked, as `inflate` and `unpack_lzma` give them.
        most: bytes.

    Raises:
        InputError: it ends too soon, its checksum is wrong, or it holds more than `most`.
    """
    size = 0
    try:
        for part in parts:
            size += part
            if size > most:
                raise InputError("the TIFF is damaged: compressed data hold more than its tags tell of")
    except EOFError as error:
        raise InputError(TOO_SHORT) from error
    except (zlib.error, lzma.LZMAError) as error:
        raise InputError(f"the TIFF is damaged: compressed data are damaged ({error})") from error
    return size


def inflate(data: bytes) -> Iterator[int]:
    """Unpack a zlib stream, and give the size of each piece.

    Raises:
        EOFError: it ends too soon.
        zlib.error: it is damaged.
    """
    stream = zlib.decompressobj()
    while not stream.eof:
        part = stream.decompress(data, UNPACKED_CHUNK)
        data = stream.unconsumed_tail
        if not part and not data and not stream.eof:
            raise EOFError
        yield len(part)


def unpack_lzma(data: bytes) -> Iterator[int]:
    """As `inflate`, of an LZMA stream, or of several behind each other, which Python unpacks as one.

    Raises:
        EOFError: it ends too soon.
        lzma.LZMAError: it is damaged.
    """
    while data:
        stream = lzma.LZMADecompressor()
        while not stream.eof:
            part = stream.decompress(data, UNPACKED_CHUNK)
            data = b""  # the decoder keeps what it has not unpacked yet
            if not part and stream.needs_input and not stream.eof:
                raise EOFError
            yield len(part)
        data = stream.unused_data


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
        raise InputError(TOO_SHORT)
    return size


#: What a segment holds, for each compression whose segments are small where that is little.
SEGMENT_SIZES: dict[int, Callable[[bytes], int]] = {1: len, 5: lzw_size, 32773: packbits_size}
#: How those are unpacked, piece by piece, whose segments of a few bytes may hold any number of them.
DEFLATE = (8, 32946)
UNPACKERS = {**dict.fromkeys(DEFLATE, inflate), 34925: unpack_lzma}
JPEG_COMPRESSION = 7


def check_segment(compression: int, data: bytes, size: int, most: int) -> None:
    """Look whether a strip or tile is whole and holds from `size` to about `most` bytes, by its own compression.

    Raises:
        InputError: it is damaged, or holds fewer, or far more.
    """
    if compression == JPEG_COMPRESSION:
        scan_jpeg(data)
        return
    if compression in UNPACKERS:
        held = unpacked_size(UNPACKERS[compression](data), most + UNPACKED_CHUNK)
    else:
        held = SEGMENT_SIZES[compression](data) if compression in SEGMENT_SIZES else size
    if held < size:
        raise InputError(TOO_SHORT)
