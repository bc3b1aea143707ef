"""A journal: what is done of a run, a line for each record, so that a run that was killed goes on from there.

As in a database, records are only ever appended. Each line has its own checksum, so that one which was torn by a kill,
or damaged, costs only itself. The first lines are the head, twice: what the records were made of.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel.files import free_beside, lock_descriptor, open_plain

#: Part of every head: to be raised when the records change.
JOURNAL_FORMAT = 3
#: What heads have, and records do not.
HEAD_KEY = "journal"
#: `sample_digest` reads files of up to three times this whole, and of larger ones so much at the start, middle and end.
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class JournalContent:
    """What a journal's file holds."""

    head: Mapping[str, Any] | None = None  # None: there is no file, or both of its lines are damaged
    records: list[dict[str, Any]] = field(default_factory=list)
    damaged: int = 0  # lines whose checksum is wrong, the last one where it was torn

    def is_of(self, head: Mapping[str, Any]) -> bool:
        """Whether the records were made of the same; what is None in either head was not known then, and fits."""
        mine = self.head
        return mine is not None and all(
            mine.get(name) == head.get(name) or mine.get(name) is None or head.get(name) is None
            for name in {*mine, *head}
        )


def journal_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line: the CRC-32 of its JSON, its JSON."""
    text = json.dumps(record, separators=(",", ":")).encode("ascii")
    return b"%08x %s\n" % (zlib.crc32(text), text)


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None where it is damaged."""
    checksum, _, text = line.rstrip(b"\n").partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text) or not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(text)
    except (ValueError, RecursionError):  # the checksum is right: of another program's line
        return None
    return record if isinstance(record, dict) else None


def read_journal(path: Path) -> JournalContent:
    """What a journal holds; nothing where there is no such file.

    Raises:
        OSError: it cannot be read.
    """
    if not path.exists():
        return JournalContent()
    head: Mapping[str, Any] | None = None
    records: list[dict[str, Any]] = []
    damaged = 0
    with open_plain(path) as lines:
        for line in lines:
            record = parse_line(line)
            if record is not None and HEAD_KEY in record:
                head = head or record
            elif record is not None and isinstance(record.get("image"), str):
                records.append(record)
            else:
                damaged += line != b"\n"  # an empty line follows one that was torn
    return JournalContent(head, records, damaged)


class Journal:
    """A journal that is written: opened to go on, or begun with its head. No other process may write it meanwhile.

    A record is safe from the end of this process as soon as `append` returns: the operating system has it.

    Args:
        path: the file. One that is there must have this head, or be empty.
        head: what the records are made of; it has `HEAD_KEY`.

    Raises:
        BlockingIOError: another process writes it.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]):
        self.path = path
        self._file = path.open("a+b", buffering=0)
        try:
            lock_descriptor(self._file.fileno())
            self._size = self._file.seek(0, os.SEEK_END)
            self._is_torn = False  # whether the last line lacks its end
            if self._size:
                self._file.seek(self._size - 1)
                self._is_torn = self._file.read(1) != b"\n"
            else:
                self.append(head)
                self.append(head)
            # Some file systems give a file another number each time.
            self._has_number = os.path.samestat(path.stat(), os.fstat(self._file.fileno()))
        except OSError:
            self._file.close()
            raise

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record.

        Raises:
            OSError: it cannot be written, for want of space for example. Later ones may be added all the same.
        """
        rest = memoryview((b"\n" if self._is_torn else b"") + journal_line(record))
        self._is_torn = True
        while rest:
            written = self._file.write(rest)
            self._size += written
            rest = rest[written:]
        self._is_torn = False

    @property
    def is_lost(self) -> bool:
        """Whether the file was deleted, moved, replaced or shortened: what is written to it is then lost."""
        try:
            there = self.path.stat()
        except FileNotFoundError:
            return True
        own = os.fstat(self._file.fileno())
        is_replaced = self._has_number and not os.path.samestat(there, own)
        return is_replaced or own.st_size < self._size

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def is_written(path: Path) -> bool:
    """Whether another process writes this journal; False where the system does not say."""
    try:
        with open_plain(path) as file:
            lock_descriptor(file.fileno())
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def put_aside(path: Path) -> Path:
    """Rename a file to the first free name `<name>.old`, `<name>.old2`, ...; returns the new path.

    Raises:
        OSError: it cannot be renamed.
    """
    target = free_beside(path, "old")
    path.rename(target)
    return target


def content_digest(path: Path) -> str | None:
    """A checksum of a file's size and bytes; None where it cannot be read."""
    return digest_of(path, lambda size: [(0, size)])


def sample_digest(path: Path) -> str | None:
    """`content_digest`, but of a large file's bytes at three places alone: weights have many, and sums of their own."""

    def places(size: int) -> list[tuple[int, int]]:
        if size <= 3 * SAMPLE_BYTES:
            return [(0, size)]
        return [(start, SAMPLE_BYTES) for start in (0, size // 2, size - SAMPLE_BYTES)]

    return digest_of(path, places)


def digest_of(path: Path, places: Callable[[int], Sequence[tuple[int, int]]]) -> str | None:
    """A checksum of a file's size, and of its bytes at `places` of that size: start and length of each."""
    try:
        with open_plain(path) as file:
            size = file.seek(0, os.SEEK_END)
            digest = hashlib.sha256(str(size).encode("ascii"))
            for start, length in places(size):
                file.seek(start)
                while length > 0 and (read := file.read(min(length, SAMPLE_BYTES))):
                    digest.update(read)
                    length -= len(read)
    except OSError:
        return None
    return digest.hexdigest()[:32]
