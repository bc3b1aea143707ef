"""Tables as programs write them: read, or told by name what they are instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel.data.tables import read_table, whole_number
from kernel.errors import InputError


def rows_of(tmp_path: Path, text: str, columns: tuple[str, ...] = ("id", "runs")) -> list[tuple[int, list[str], int]]:
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    return [
        (row.number, [row.values[column] for column in columns], row.surplus)
        for row in read_table(path, columns, "runs", "a table of runs")
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id,runs\n", []),
        ("id,runs\na,1 2\n", [(2, ["a", "1 2"], 0)]),
        ("id,runs\r\na,1 2\r\n\r\n b ,3 4", [(2, ["a", "1 2"], 0), (4, ["b", "3 4"], 0)]),
        (' id ,"runs"\n"a ", 1 2 \n', [(2, ["a", "1 2"], 0)]),
        ('id,runs\na,"1 2\n 3 4"\nb,5 6\n', [(3, ["a", "1 2\n 3 4"], 0), (4, ["b", "5 6"], 0)]),
        ("id,runs,more\na,1 2,\n,,\n   \n", [(2, ["a", "1 2"], 0)]),  # as spreadsheets end a table
        ("id,runs\na\n", [(2, ["a", ""], 0)]),
        ("id,runs\na,1 2,,\nb,1 2,x,\n", [(2, ["a", "1 2"], 0), (3, ["b", "1 2"], 1)]),
        ("runs,id,x,x\n1 2,a,,\n", [(2, ["a", "1 2"], 0)]),  # a column that nobody asked for may be there twice
        ("id,runs\ne\u0301,1 2\n", [(2, ["\u00e9", "1 2"], 0)]),
    ],
)
def test_rows(tmp_path: Path, text: str, expected: list[tuple[int, list[str], int]]) -> None:
    assert rows_of(tmp_path, text) == expected


def test_a_field_may_be_long(tmp_path: Path) -> None:
    runs = " ".join(f"{2 * start + 1} 1" for start in range(100_000))
    assert len(runs) > 5 * 131072  # the csv module's own limit
    assert rows_of(tmp_path, f"id,runs\na,{runs}\n") == [(2, ["a", runs], 0)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("id;runs\na;1 2\n", "separates its fields by semicolons; expected a table of runs, with commas"),
        ('"id";"runs";"x,y"\n', "by semicolons"),
        ("id\truns\na\t1 2\n", "by tabs"),
        ("id|runs\n", "by bars"),
        ("id,rle\n", "lacks the columns runs; it has id, rle; expected a table of runs"),
        ("ID;RLE\n", "lacks the columns id, runs; it has ID;RLE"),
        ("", "lacks the columns id, runs; its first line is empty"),
        ("\n", "its first line is empty"),
        ("id,runs,id\n", "more than one column id"),
    ],
)
def test_what_is_no_such_table(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        rows_of(tmp_path, text)


def test_whole_numbers() -> None:
    for text, number in (("704", 704), ("704.0", 704), ("704.", 704), (" 0.00 ", 0)):
        assert whole_number(text) == number
    for text in ("", "704.5", "-1", "1e3", "704,0", "nan", "inf", "7_0", "٧", "1 2", "9" * 5000):
        assert whole_number(text) is None
