"""PNG files: whole or not, and their pixels as they are stored."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from kernel.errors import InputError
from kernel.images.decoding import decode_by_opencv, without_alpha
from kernel.images.lookup_tables import display_table
from kernel.images.tiff_tags import exif_orientation

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: The samples of a pixel by the colour type: gray, RGB, palette, gray and alpha, RGBA.
PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_GRAY, PNG_PALETTE = 0, 3
#: No stream of deflate holds more than so many times its own bytes.
DEFLATE_RATIO = 1032
#: Pictures are seldom compressed by more.
USUAL_RATIO = 8
#: Inflated at a time.
INFLATED_BYTES = 1 << 20


@dataclass(frozen=True)
class PngHeader:
    """What the chunk IHDR says."""

    width: int
    height: int
    depth: int  # bits of a sample
    colour_type: int
    rest: bytes  # compression, filter, interlace

    @property
    def row_bytes(self) -> int:
        """Of a row of pixels, without its filter byte."""
        return -(-self.width * PNG_SAMPLES[self.colour_type] * self.depth // 8)

    def chunk(self) -> bytes:
        """The header as a chunk of its own."""
        return png_chunk(
            b"IHDR", struct.pack(">IIBB", self.width, self.height, self.depth, self.colour_type) + self.rest
        )


def png_chunk(chunk_type: bytes, data: bytes) -> bytes:
    """A chunk with its length and its checksum."""
    return (
        struct.pack(">I", len(data)) + chunk_type + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(chunk_type)))
    )


def png_chunks(stream: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The type and length of each chunk up to IEND; the stream is where its data begin, for `chunk_data`.

    Where the file ends before IEND, an empty type comes last: the pixels may be whole all the same (`check_png_data`).
    """
    size = stream.seek(0, io.SEEK_END)
    at = len(PNG_SIGNATURE)
    while at + 12 <= size:
        stream.seek(at)
        head = stream.read(8)
        if len(head) < 8:  # the file has become shorter
            break
        length, chunk_type = struct.unpack(">I4s", head)
        at += 12 + length  # length, chunk_type, data, checksum
        if at > size:
            break
        yield chunk_type, length
        if chunk_type == b"IEND":
            return
    yield b"", 0


def chunk_data(stream: BinaryIO, chunk_type: bytes, length: int) -> bytes:
    """The data of a chunk, whose checksum must be right.

    Raises:
        InputError: it is wrong.
    """
    data, checksum = stream.read(length), stream.read(4)
    if struct.pack(">I", zlib.crc32(data, zlib.crc32(chunk_type))) != checksum:
        raise InputError("the PNG is truncated or damaged: a checksum is wrong")
    return data


def check_png_data(stream: BinaryIO, size: int = 0) -> None:
    """Look whether the compressed pixels are whole, and hold so many bytes; nothing is kept.

    Raises:
        InputError: they are not.
    """
    inflater = zlib.decompressobj()
    held = 0
    try:
        for chunk_type, length in png_chunks(stream):
            data = chunk_data(stream, chunk_type, length) if chunk_type == b"IDAT" else b""
            while data and not inflater.eof:
                held += len(inflater.decompress(data, INFLATED_BYTES))
                data = inflater.unconsumed_tail
    except zlib.error as error:
        raise InputError("the PNG is truncated or damaged: its pixels cannot be inflated") from error
    if not inflater.eof:
        raise InputError("the PNG is truncated or damaged: it ends too soon")
    if held < size:
        raise InputError("the PNG is damaged: its header tells of more pixels than it holds")


def parse_png_header(chunk_type: bytes, data: bytes) -> PngHeader:
    """What the first chunk says.

    Raises:
        InputError: it is no header, or has no pixels.
    """
    if chunk_type != b"IHDR" or len(data) != 13:
        raise InputError("the PNG is damaged: it does not begin with its header")
    width, height, depth, colour_type = struct.unpack(">IIBB", data[:10])
    header = PngHeader(width, height, depth, colour_type, data[10:])
    if header.colour_type not in PNG_SAMPLES or not header.width or not header.height:
        raise InputError("the PNG is damaged: its header says what cannot be")
    return header


def check_png_size(stream: BinaryIO, header: PngHeader, data_bytes: int) -> None:
    """Look whether compressed data of so many bytes hold the pixels that the header tells of.

    They are inflated where the header tells of unusually many: those would take hours, and their memory.

    Raises:
        InputError: they do not.
    """
    size = header.height * header.row_bytes
    if size > data_bytes * DEFLATE_RATIO:
        raise InputError(
            f"the PNG is damaged: its header tells of {header.width} x {header.height} pixels, more than it can hold"
        )
    if size > data_bytes * USUAL_RATIO:
        check_png_data(stream, size)


def read_png_shape(stream: BinaryIO) -> tuple[int, int]:
    """The (H, W) of a PNG; nothing is decoded, though unusual sizes are looked into.

    Raises:
        InputError: the chunks are not all there.
    """
    header, data_bytes = None, 0
    for chunk_type, length in png_chunks(stream):
        if not chunk_type:
            check_png_data(stream)
            break
        header = header or parse_png_header(chunk_type, chunk_data(stream, chunk_type, length))
        data_bytes += length if chunk_type == b"IDAT" else 0
    if header is None:
        raise InputError("the PNG is damaged: it has no header")
    check_png_size(stream, header, data_bytes)
    return header.height, header.width


def read_png(stream: BinaryIO) -> tuple[np.ndarray, int]:
    """The pixels of a PNG as (H, W, C) uint8 or uint16, C 1 or 3 in the order B, G, R; and its orientation tag.

    Alpha and a transparent colour are dropped. Only the chunks that make the pixels are looked at, and given to OpenCV:
    a comment, a profile or an animation changes nothing, damaged or not, nor does a missing end. A palette that is a
    display table over gray is dropped too, see `display_table`.

    Raises:
        InputError: the file is truncated or damaged.
    """
    header, orientation, direction, data_bytes = None, 1, 0, 0
    content = bytearray(PNG_SIGNATURE)
    for chunk_type, length in png_chunks(stream):
        if not chunk_type:
            check_png_data(stream)
            break
        if header is None:
            header = parse_png_header(chunk_type, chunk_data(stream, chunk_type, length))
            content += header.chunk()
        elif chunk_type == b"eXIf":  # whatever its checksum: it does not change the pixels
            orientation = exif_orientation(stream.read(length))
        elif chunk_type == b"PLTE" and header.colour_type == PNG_PALETTE:
            data = chunk_data(stream, chunk_type, length)
            table = np.frombuffer(data, np.uint8)[: length // 3 * 3].reshape(-1, 3).astype(np.uint16) * 257
            direction = display_table(table)
            if direction:
                header = replace(header, colour_type=PNG_GRAY)
            elif data:
                content += png_chunk(chunk_type, data)
        elif chunk_type == b"IDAT":
            content += png_chunk(chunk_type, chunk_data(stream, chunk_type, length))
            data_bytes += length
    if header is None:
        raise InputError("the PNG is damaged: it has no header")
    check_png_size(stream, header, data_bytes)
    start = len(PNG_SIGNATURE)
    chunk = header.chunk()
    content[start : start + len(chunk)] = chunk
    content += png_chunk(b"IEND", b"")
    pixels = decode_by_opencv(content)
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        raise InputError("the PNG is damaged: its pixels cannot be decoded")
    pixels = without_alpha(pixels)
    return ~pixels if direction < 0 else pixels, orientation
