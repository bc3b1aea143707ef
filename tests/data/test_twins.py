"""Cells that are annotated twice count once, whoever reads them, and are named."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from cases import GRID, THREE, competition, rows_of_cells, write_rows

from kernel.__main__ import main
from kernel.data.annotated import list_annotated
from kernel.data.prepare import prepare
from kernel.data.sources import read_competition
from kernel.data.twins import part_twins, same_run_lengths


def test_the_first_of_each_stays_in_order() -> None:
    kept, twins = part_twins(["a1", "b1", "a2", "c1", "a3"], lambda cell: cell[0])
    assert kept == ["a1", "b1", "c1"] and twins == [("a2", "a1"), ("a3", "a1")]
    assert part_twins([], len) == ([], [])


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("5 3", " 5  3 ", True),
        ("5 3", "5 1 6 2", True),
        ("5 3 20 2", "20 2 5 3", True),
        ("5 3", "05 3", True),
        ("5 3", "5 4", False),
        ("5 3 8 0", "5 3", False),
        ("5", "5 3", False),
        ("x", "y", False),
        ("", "", True),
    ],
)
def test_run_lengths_of_one_mask(one: str, other: str, same: bool) -> None:
    assert (same_run_lengths(one) == same_run_lengths(other)) is same


def test_every_reader_of_a_competition_leaves_twins_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = competition(tmp_path / "cells", THREE)
    rows = [row for name, kind, cells in THREE for row in rows_of_cells(name, kind, cells)]
    # The whole table twice, as of two joined files, and one cell once more with its first run in two.
    start, length, *rest = rows[0][1].split()
    split = " ".join([start, "1", str(int(start) + 1), str(int(length) - 1), *rest])
    write_rows(folder, [*rows, *rows, [rows[0][0], split, *rows[0][2:]]])
    caplog.set_level(logging.WARNING)
    assert [len(image.labels) for image in list_annotated(folder)] == [len(GRID)] * 3
    assert f"{len(rows) + 1} cells are annotated twice and counted once: row {len(rows) + 2} is row 2" in caplog.text
    assert main(["prepare", "--competition", str(folder), "--split", "none", "--out", str(tmp_path / "out")]) == 0
    assert f"cells dropped: {len(rows) + 1}, row {len(rows) + 2} (one) first: it is the same cell as row 2" in (
        capsys.readouterr().out
    )
    assert [len(image.labels) for image in list_annotated(tmp_path / "out")] == [len(GRID)] * 3


def test_prepared_twins_of_an_earlier_version_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = competition(tmp_path / "cells", THREE)
    prepare(read_competition(folder), tmp_path / "out", split=None)
    path = tmp_path / "out" / "annotations.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["annotations"].append(data["annotations"][0] | {"id": 999})
    path.write_text(json.dumps(data), encoding="utf-8")
    caplog.set_level(logging.WARNING)
    assert [len(image.labels) for image in list_annotated(tmp_path / "out")] == [len(GRID)] * 3
    assert "1 cell is annotated twice and counted once: one at x, y" in caplog.text
