"""The tags of TIFF files, classic and BigTIFF, in either byte order; Exif data are a TIFF's tags too."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from kernel.errors import InputError

TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ORIENTATION_TAG = 274

#: Types of fields whose values are whole numbers, as numpy calls them: BYTE, SHORT, LONG, their signed kin, IFD, and
#: BigTIFF's LONG8, SLONG8, IFD8. ASCII and undefined are bytes.
FIELD_TYPES = {
    1: "u1", 2: "u1", 3: "u2", 4: "u4", 6: "i1", 7: "u1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8", 18: "u8",
}  # fmt: skip
#: More fields than these has no directory.
MOST_FIELDS = 4096


@dataclass(frozen=True)
class TiffField:
    """An entry of a directory."""

    kind: int  # a key of FIELD_TYPES, where it can be read
    count: int
    at: int  # where its values are in the file


class TiffDirectory:
    """One directory (IFD) of a TIFF: the tags of a page, by number. Values are read when they are asked for."""

    def __init__(self, stream: BinaryIO, order: str, big: bool, at: int) -> None:
        """Read the directory at a place in the file. Raises InputError where there is none."""
        self.stream = stream
        self.order = order  # "<" or ">"
        count_format, entry_size, inline = ("Q", 20, 8) if big else ("H", 12, 4)
        count_size = struct.calcsize(count_format)
        (count,) = struct.unpack(order + count_format, read_exactly(stream, at, count_size))
        if not 0 < count <= MOST_FIELDS:
            raise InputError("the TIFF is damaged: a directory has no fields, or too many")
        entries = read_exactly(stream, at + count_size, count * entry_size + inline)
        self.fields: dict[int, TiffField] = {}
        for number in range(count):
            start = number * entry_size
            tag, kind = struct.unpack_from(order + "HH", entries, start)
            (values,) = struct.unpack_from(order + ("Q" if big else "I"), entries, start + 4)
            place = start + entry_size - inline
            size = values * np.dtype(FIELD_TYPES[kind]).itemsize if kind in FIELD_TYPES else 0
            if size > inline:
                (offset,) = struct.unpack_from(order + ("Q" if big else "I"), entries, place)
            else:
                offset = at + count_size + place
            self.fields.setdefault(tag, TiffField(kind, values, offset))
        #: Where the next directory is; 0 after the last.
        (self.next,) = struct.unpack_from(order + ("Q" if big else "I"), entries, count * entry_size)

    def values(self, tag: int) -> tuple[int, ...]:
        """The whole numbers of a tag; empty where it is absent. Raises InputError where they cannot be read."""
        field = self.fields.get(tag)
        if field is None:
            return ()
        if field.kind not in FIELD_TYPES:
            raise InputError(f"the TIFF is damaged: its tag {tag} is of a wrong type")
        kind = np.dtype(self.order + FIELD_TYPES[field.kind])
        data = read_exactly(self.stream, field.at, field.count * kind.itemsize)
        return tuple(np.frombuffer(data, kind).tolist())

    def value(self, tag: int, default: int) -> int:
        """The first number of a tag."""
        return next(iter(self.values(tag)), default)

    def text(self, tag: int) -> str:
        """The text of a tag; empty where it is absent, or no text."""
        field = self.fields.get(tag)
        return bytes(self.values(tag)).rstrip(b"\0").decode("utf-8", "replace") if field and field.kind == 2 else ""


def read_exactly(stream: BinaryIO, at: int, size: int) -> bytes:
    """So many bytes of a file from a place on. Raises InputError where it ends before."""
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
        return next(tiff_directories(io.BytesIO(data))).value(ORIENTATION_TAG, 1)
    except InputError:
        return 1
