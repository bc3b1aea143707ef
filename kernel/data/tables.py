"""CSV files in and text files out: rows with their line numbers, files that are there whole or not at all."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

from kernel.data.image_names import composed
from kernel.errors import InputError
from kernel.files import written_file
from kernel.text import text_encoding

#: Characters of a field, beyond the csv module's own 131072: the most that it takes on every system.
_LONGEST_FIELD = 2**31 - 1
#: What a table's fields are separated by where it is not a comma.
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True)
class TableRow:
    """One row: `number` is its line in the file (the header's is 1), a value that is not there is ""."""

    number: int
    values: dict[str, str]  # without blanks around them, in Unicode's composed form
    surplus: int  # fields beyond the header's that are filled in


def read_table(path: Path, columns: Sequence[str], what: str, expected: str) -> Iterator[TableRow]:
    """The rows of a CSV file with a header; further columns are allowed, rows without any value passed over.

    This is the one way in for tables, so what people's programs add to one is taken off here: byte order marks, blanks
    around values, other Unicode forms of names. A field may be of any length: run lengths of large cells are long.

    Args:
        path: the file, UTF-8, or UTF-16 as Windows' programs write it.
        columns: those it must have.
        what: what is read from it ("annotations"), for messages.
        expected: what the file should be ("the competition's train.csv"), for messages.

    Raises:
        InputError: no such file, a column is missing or there twice, or it is no CSV file.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    try:
        with Path(path).open("rb") as content:
            stream = TextIOWrapper(content, encoding=text_encoding(content.peek(4)), newline="")
            reader = csv.reader(stream)
            header = [composed(name).strip() for name in next(reader, [])]
            if header and header[0].lower().startswith("sep="):  # for Excel, which does not show it
                header = [composed(name).strip() for name in next(reader, [])]
            _check_header(path, header, columns, expected)
            for fields in reader:
                values = [composed(field).strip() for field in fields]
                if any(values):
                    surplus = sum(bool(value) for value in values[len(header) :])
                    row = dict(zip_longest(header, values[: len(header)], fillvalue=""))
                    yield TableRow(reader.line_num, row, surplus)
    except OSError as error:
        raise InputError(f"cannot read {what} from {path}: {error.strerror}; expected {expected}") from error
    except (UnicodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from error


def _check_header(path: Path, header: Sequence[str], columns: Sequence[str], expected: str) -> None:
    """Look whether each of the columns is there once.

    Raises:
        InputError: one is missing, or there twice.
    """
    missing = [column for column in columns if column not in header]
    if missing:
        for separator, name in _OTHER_SEPARATORS.items():
            if set(columns) <= {name.strip(' "') for name in separator.join(header).split(separator)}:
                raise InputError(f"{path} separates its fields by {name}; expected {expected}, with commas")
        held = f"it has {', '.join(header)[:200]}" if any(header) else "its first line is empty"
        raise InputError(f"{path} lacks the columns {', '.join(missing)}; {held}; expected {expected}")
    twice = [column for column in columns if header.count(column) > 1]
    if twice:
        raise InputError(f"{path} has more than one column {', '.join(twice)}: take out those that are not meant")


def whole_number(text: str) -> int | None:
    """The number that a field holds, from 0 on, as 704 or, of a program that knows only floats, 704.0; else None.

    One of more than 18 digits, which 64 bits may not hold, is none: nothing that is counted here has as many.
    """
    match = re.fullmatch(r"([0-9]{1,18})(\.0*)?", text.strip())
    return int(match[1]) if match else None


@contextmanager
def whole_text(path: Path) -> Iterator[TextIO]:
    """A text file to write into, put in `path`'s place at the end; if anything fails, `path` stays as it was.

    Raises:
        InputError: the folder cannot be written.
        RunError: the disk is full.
    """
    with written_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        yield stream
