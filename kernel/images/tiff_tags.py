"""The tags of TIFF files, classic and BigTIFF, in either byte order; Exif data are a TIFF's tags too."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import BinaryIO

import numpy as np

from kernel.errors import InputError

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

#: Types of fields whose values are whole numbers, as numpy calls them: BYTE, SHORT, LONG, the signed ones, IFD, and
#: BigTIFF's LONG8, SLONG8, IFD8. ASCII and undefined are bytes.
FIELD_TYPES = {
    1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
#: More fields than these has no directory.
MOST_FIELDS = 4096


class TiffTag(IntEnum):
    """Tags by their names in the TIFF specification, and those of volumes and of MetaMorph."""

    NEW_SUBFILE_TYPE = 254
    IMAGE_WIDTH = 256
    IMAGE_LENGTH = 257
    BITS_PER_SAMPLE = 258
    COMPRESSION = 259
    PHOTOMETRIC_INTERPRETATION = 262
    FILL_ORDER = 266
    IMAGE_DESCRIPTION = 270
    STRIP_OFFSETS = 273
    ORIENTATION = 274
    SAMPLES_PER_PIXEL = 277
    ROWS_PER_STRIP = 278
    STRIP_BYTE_COUNTS = 279
    PLANAR_CONFIGURATION = 284
    PREDICTOR = 317
    COLOR_MAP = 320
    TILE_WIDTH = 322
    TILE_LENGTH = 323
    TILE_OFFSETS = 324
    TILE_BYTE_COUNTS = 325
    EXTRA_SAMPLES = 338
    SAMPLE_FORMAT = 339
    YCBCR_SUB_SAMPLING = 530
    IMAGE_DEPTH = 32997
    TILE_DEPTH = 32998
    METAMORPH_UIC2 = 33629


@dataclass(frozen=True)
class TiffField:
    """An entry of a directory."""

    type_code: int  # a key of FIELD_TYPES, where it can be read
    count: int
    at: int  # where its values are in the file


class TiffDirectory:
    """One directory (IFD) of a TIFF: the tags of a page, by number. Values are read when they are asked for."""

    def __init__(self, stream: BinaryIO, order: str, big: bool, at: int) -> None:
        """Read the directory at the byte `at` of the file, whose `order` of bytes is "<" or ">".

        Raises:
            InputError: there is none.
        """
        self.stream = stream
        self.order = order
        count_format, entry_size, inline = ("Q", 20, 8) if big else ("H", 12, 4)
        count_size = struct.calcsize(count_format)
        (count,) = struct.unpack(order + count_format, read_exactly(stream, at, count_size))
        if not 0 < count <= MOST_FIELDS:
            raise InputError("the TIFF is damaged: a directory has no fields, or too many")
        entries = read_exactly(stream, at + count_size, count * entry_size + inline)
        self.fields: dict[int, TiffField] = {}
        for number in range(count):
            start = number * entry_size
            tag, type_code = struct.unpack_from(order + "HH", entries, start)
            (values,) = struct.unpack_from(order + ("Q" if big else "I"), entries, start + 4)
            place = start + entry_size - inline
            size = values * np.dtype(FIELD_TYPES[type_code]).itemsize if type_code in FIELD_TYPES else 0
            if size > inline:
                (offset,) = struct.unpack_from(order + ("Q" if big else "I"), entries, place)
            else:
                offset = at + count_size + place
            self.fields.setdefault(tag, TiffField(type_code, values, offset))
        #: Where the next directory is; 0 after the last.
        (self.next,) = struct.unpack_from(order + ("Q" if big else "I"), entries, count * entry_size)

    def values(self, tag: int) -> tuple[int, ...]:
        """The whole numbers of a tag; empty where it is absent.

        Raises:
            InputError: they cannot be read.
        """
        field = self.fields.get(tag)
        if field is None:
            return ()
        if field.type_code not in FIELD_TYPES:
            raise InputError(f"the TIFF is damaged: its tag {tag} is of a wrong type")
        dtype = np.dtype(self.order + FIELD_TYPES[field.type_code])
        data = read_exactly(self.stream, field.at, field.count * dtype.itemsize)
        return tuple(np.frombuffer(data, dtype).tolist())

    def value(self, tag: int, default: int) -> int:
        """The first number of a tag; the default where it is absent.

        Raises:
            InputError: as `values`.
        """
        return next(iter(self.values(tag)), default)

    def text(self, tag: int) -> str:
        """The text of a tag; empty where it is absent, or no text."""
        field = self.fields.get(tag)
        return (
            bytes(self.values(tag)).rstrip(b"\0").decode("utf-8", "replace") if field and field.type_code == 2 else ""
        )


def read_exactly(stream: BinaryIO, at: int, size: int) -> bytes:
    """So many bytes of a file from the byte `at` on.

    Raises:
        InputError: the file ends before.
    """
    if at + size > stream.seek(0, io.SEEK_END):
        raise InputError("the TIFF is truncated or damaged: it points behind its end")
    stream.seek(at)
    return stream.read(size)


def tiff_directories(stream: BinaryIO) -> Iterator[TiffDirectory]:
    """The directories that a TIFF chains together, one for each page.

    Raises:
        InputError: it has none, or the next one cannot be read.
    """
    head = read_exactly(stream, 0, 8)
    order, big = ("<" if head[:2] == b"II" else ">"), head[2:4] in (b"+\0", b"\0+")
    at = struct.unpack(order + "Q", read_exactly(stream, 8, 8))[0] if big else struct.unpack(order + "I", head[4:])[0]
    seen: set[int] = set()
    while at and at not in seen:
        seen.add(at)
        directory = TiffDirectory(stream, order, big, at)
        yield directory
        at = directory.next
    if not seen:
        raise InputError("the TIFF is damaged: it has no page")


def exif_orientation(data: bytes) -> int:
    """The orientation tag of Exif data (a TIFF without pixels); 1, as stored, where there is none or it is damaged."""
    if not data.startswith(TIFF_SIGNATURES):
        return 1
    try:
        return next(tiff_directories(io.BytesIO(data))).value(TiffTag.ORIENTATION, 1)
    except InputError:
        return 1
