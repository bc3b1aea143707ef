"""CSV files in and text files out: rows with their line numbers, files that are there whole or not at all."""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from kernel.errors import InputError, RunError
from kernel.runtime.files import whole_file


@dataclass(frozen=True)
class TableRow:
    """One row: `number` is its line in the file (the header's is 1), a value that is not there is ""."""

    number: int
    values: dict[str, str]
    surplus: int  # fields beyond the header's


def read_table(path: Path, columns: Sequence[str], what: str, expected: str) -> Iterator[TableRow]:
    """The rows of a CSV file with a header; further columns are allowed, empty lines passed over.

    Args:
        path: the file, UTF-8.
        columns: those it must have.
        what: what is read from it ("annotations"), for messages.
        expected: what the file should be ("the competition's train.csv"), for messages.

    Raises:
        InputError: no such file, a column is missing, or it is no CSV file.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} lacks the columns {', '.join(missing)}; expected {expected}")
            for row in reader:
                surplus = row.pop(None, [])  # type: ignore[call-overload]  # where csv keeps what has no column
                yield TableRow(reader.line_num, {key: value or "" for key, value in row.items()}, len(surplus))
    except OSError as error:
        raise InputError(f"cannot read {what} from {path}: {error.strerror}; expected {expected}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from error


@contextmanager
def whole_text(path: Path) -> Iterator[TextIO]:
    """A text file to write into, put in `path`'s place at the end; if anything fails, `path` stays as it was.

    Raises:
        InputError: the folder cannot be written.
        RunError: the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
            yield stream
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"cannot write {path}: {error.strerror}; free some, and run the same again") from error
        raise InputError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
