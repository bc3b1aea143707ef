"""Tables as strangers' programs write them, in every reader of tables: the same is read, or the flaw is named.

One table is written in many ways; each reader must read from each of them what it reads from the plain one.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kernel.data.annotations import read_annotations
from kernel.data.livecell import read_livecell
from kernel.data.prepare import prepare
from kernel.data.sources import read_competition, read_pseudo_labels
from kernel.data.splits import FoldRow, other_folds, read_folds, select_folds, write_folds
from kernel.errors import InputError
from kernel.images.listing import AskedIds, asked_ids

Rows = list[list[str]]
NAMES = ("a", "b", "cellule \u00e9")
RUNS = ("1 3 11 3", "25 2")


def as_csv(rows: Sequence[Sequence[str]], separator: str = ",", end: str = "\n", quotes_all: bool = False) -> str:
    stream = io.StringIO()
    quoting = csv.QUOTE_ALL if quotes_all else csv.QUOTE_MINIMAL
    csv.writer(stream, delimiter=separator, lineterminator=end, quoting=quoting).writerows(rows)
    return stream.getvalue()


def each(change: Callable[[str, str], str], rows: Rows) -> Rows:
    """The rows with each field changed, by its column's name."""
    return [rows[0], *([change(name, field) for name, field in zip(rows[0], row, strict=True)] for row in rows[1:])]


def ids(change: Callable[[str], str]) -> Callable[[Rows], bytes]:
    return lambda rows: as_csv(each(lambda name, field: change(field) if name == "id" else field, rows)).encode()


def sizes(ending: str) -> Callable[[Rows], bytes]:
    numbers = ("width", "height", "fold")
    return lambda rows: as_csv(each(lambda name, field: field + ending if name in numbers else field, rows)).encode()


#: How programs write the same table.
WAYS: dict[str, Callable[[Rows], bytes]] = {
    "as it is": lambda rows: as_csv(rows).encode(),
    "byte order mark": lambda rows: as_csv(rows).encode("utf-8-sig"),
    "UTF-16": lambda rows: as_csv(rows).encode("utf-16"),
    "Windows' line ends": lambda rows: as_csv(rows, end="\r\n").encode(),
    "old line ends": lambda rows: as_csv(rows, end="\r").encode(),
    "everything quoted": lambda rows: as_csv(rows, quotes_all=True).encode(),
    "no line end at the end": lambda rows: as_csv(rows).rstrip("\n").encode(),
    "blanks around": lambda rows: as_csv([[f" {field}\t" for field in row] for row in rows]).encode(),
    "lines of separators": lambda rows: (as_csv(rows) + ",,,,\n\n , ,\n").encode(),
    "a column more": lambda rows: as_csv([[*row, "note"] for row in rows]).encode(),
    "an index before": lambda rows: as_csv([[str(n) if n else "", *row] for n, row in enumerate(rows)]).encode(),
    "columns in another order": lambda rows: as_csv([row[::-1] for row in rows]).encode(),
    "Excel's first line": lambda rows: ("sep=,\n" + as_csv(rows)).encode(),
    "newlines in fields": lambda rows: as_csv(
        each(lambda name, field: field.replace(" ", "\n") if name in ("annotation", "predicted") else field, rows)
    ).encode(),
    "sizes as floats": sizes(".0"),
    "sizes with a bare point": sizes("."),
    "decomposed names": ids(lambda name: name.replace("\u00e9", "e\u0301")),
    "file names": ids(lambda name: f"{name}.PNG"),
    "paths": ids(lambda name: f"/home/me/train/{name}.png"),
    "Windows' paths": ids(lambda name: rf"C:\data\train\{name}.png"),
    "mixed paths": ids(lambda name: rf"..\train/{name}.tif"),
}
#: Those of a sample_submission.csv: an id that Kaggle asks for is answered as it is, and no spreadsheet comes between.
KAGGLES_WAYS = [name for name in WAYS if "path" not in name and name not in ("file names", "Excel's first line")]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A competition's folder without its table."""
    (tmp_path / "train").mkdir()
    for number, name in enumerate(NAMES):
        pixels = np.random.default_rng(number).integers(0, 255, (6, 10)).astype(np.uint8)
        (tmp_path / "train" / f"{name}.png").write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return tmp_path


TRAIN = [
    ["id", "annotation", "width", "height", "cell_type"],
    *([name, runs, "10", "6", "cort"] for name in NAMES for runs in RUNS),
]
PREDICTED = [["id", "predicted"], *([name, runs] for name in NAMES for runs in RUNS)]
TYPES = [["id", "cell_type"], *([name, "astro"] for name in NAMES)]
FOLDS = [["id", "fold"], *([name, str(number)] for number, name in enumerate(NAMES))]


@pytest.mark.parametrize("way", WAYS)
def test_train_csv(images: Path, way: str) -> None:
    (images / "train.csv").write_bytes(WAYS[way](TRAIN))
    source = read_competition(images)
    assert {image.image_id: [cell.outline.split() for cell in image.cells] for image in source.images} == {
        name: [runs.split() for runs in RUNS] for name in NAMES
    }
    assert {image.image_shape for image in source.images} == {(6, 10)}
    assert not source.dropped_cells and not source.dropped_images
    report = prepare(source, images / "out", None)
    assert (report.images, report.cells) == (3, 6)
    read = read_annotations(images / "train.csv", names=NAMES)
    assert {name: [runs.split() for runs in entry.rles] for name, entry in read.items()} == {
        name: [runs.split() for runs in RUNS] for name in NAMES
    }


@pytest.mark.parametrize("way", WAYS)
def test_submissions_and_their_cell_types(images: Path, way: str) -> None:
    (images / "submission.csv").write_bytes(WAYS[way](PREDICTED))
    (images / "types.csv").write_bytes(WAYS[way](TYPES))
    source = read_pseudo_labels(images / "submission.csv", images / "train", str(images / "types.csv"))
    assert {image.image_id: [cell.outline.split() for cell in image.cells] for image in source.images} == {
        name: [runs.split() for runs in RUNS] for name in NAMES
    }
    assert {image.cell_type for image in source.images} == {"astro"}
    assert not source.dropped_cells and not source.dropped_images


@pytest.mark.parametrize("way", WAYS)
def test_folds_csv(images: Path, way: str) -> None:
    (images / "folds.csv").write_bytes(WAYS[way](FOLDS))
    assert read_folds(images / "folds.csv", NAMES) == {name: number for number, name in enumerate(NAMES)}


def test_folds_csv_of_images_whose_own_ids_end_like_a_files(tmp_path: Path) -> None:
    """As batch converters leave them, a.tif.png: the id is a.tif, and beside it there may be a.png."""
    names = ["a.tif", "a", "b.jpg"]
    write_folds(tmp_path / "folds.csv", [FoldRow(name, number, "cort", "") for number, name in enumerate(names)])
    assert read_folds(tmp_path / "folds.csv", names) == {"a.tif": 0, "a": 1, "b.jpg": 2}
    assert select_folds(tmp_path / "folds.csv", [0, 2], names) == {"a.tif", "b.jpg"}
    assert other_folds(tmp_path / "folds.csv", 1) == {0, 2}


@pytest.mark.parametrize("way", KAGGLES_WAYS)
def test_sample_submission(images: Path, way: str) -> None:
    rows = [*PREDICTED, ["only asked for", "1 1"]]
    (images / "sample_submission.csv").write_bytes(WAYS[way](rows))
    asked = asked_ids(images / "sample_submission.csv", NAMES)
    assert asked.absent == ("only asked for",)
    assert len(asked.spelled) == (way == "decomposed names")


def test_sample_submission_with_a_large_example(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    csv.field_size_limit(131072)  # as Python begins
    runs = " ".join(f"{2 * start + 1} 1" for start in range(100_000))
    (images / "sample_submission.csv").write_text(f"id,predicted\nx,{runs}\n y ,\n", encoding="utf-8")
    assert asked_ids(images / "sample_submission.csv", ["x", "y"]) == AskedIds()
    assert asked_ids(images / "sample_submission.csv", ["x", " y "]) == AskedIds()  # a file is called so
    assert not caplog.records


def test_ids_with_an_ending_are_asked_for_as_they_are_written(images: Path) -> None:
    """As other competitions have them; and an accent as one sign or as two."""
    sample = images / "sample_submission.csv"
    sample.write_text("id,predicted\na.png,\nb.TIF,\nc,\nc.png,\ngone.png,\nd.v2,\ne\u0301,\n", encoding="utf-8")
    asked = asked_ids(sample, ["a", "b", "c", "d", "\u00e9"])
    assert asked.spelled == {"a": "a.png", "b": "b.TIF", "\u00e9": "e\u0301"}
    assert asked.absent == ("c.png", "gone.png", "d.v2")


def test_images_that_are_not_asked_for_are_told(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    sample = images / "sample_submission.csv"
    sample.write_text("id,predicted\na,\nb.png,\n", encoding="utf-8")
    assert asked_ids(sample, ["a", "b", "c", "d"]).spelled == {"b": "b.png"}
    told = "2 of the 4 images are not asked for by sample_submission.csv, and have rows all the same: c, d"
    assert told in caplog.text


#: Rows that are wrong in one way, each beside a good one of its image and a good image.
BAD_ROWS = [
    (["b", "1 3", "10,0", "6", "cort"], "whole numbers, got '10,0'"),
    (["b", "1 3", "10.5", "6", "cort"], "whole numbers, got '10.5'"),
    (["b", "1 3", "10", "", "cort"], "must be filled in"),
    (["b", "1 3", "10", "6", "neuron"], "cell type 'neuron'"),
    (["b", "1 3 4", "10", "6", "cort"], ""),
    (["b", "1 3.5", "10", "6", "cort"], ""),
    (["b", "59 9", "10", "6", "cort"], "leaves the image"),
    (["", "1 3", "10", "6", "cort"], "must be filled in"),
    (["b", "1 3", "12", "6", "cort"], "one size"),
]


@pytest.mark.parametrize(("bad", "told"), BAD_ROWS)
def test_a_bad_row_costs_itself(images: Path, bad: list[str], told: str) -> None:
    rows = [*TRAIN[:-1], bad, TRAIN[-1]]
    (images / "train.csv").write_text(as_csv(rows), encoding="utf-8", newline="")
    report = prepare(read_competition(images), images / "out", None)
    assert (report.images, report.cells) == (3, 6)
    (dropped,) = report.dropped_cells
    assert dropped.place == f"row {len(TRAIN)}" and told in dropped.reason
    with pytest.raises(InputError):  # the truth of a score is not guessed at
        for entry in read_annotations(images / "train.csv").values():
            entry.masks()


@pytest.mark.parametrize("separator", [";", "\t", "|"])
@pytest.mark.parametrize("mark", ["", "sep={}\n"])
def test_other_separators_are_named_in_every_reader(images: Path, separator: str, mark: str) -> None:
    def written(name: str, rows: Rows) -> Path:
        (images / name).write_text(mark.format(separator) + as_csv(rows, separator), encoding="utf-8", newline="")
        return images / name

    told = {";": "by semicolons", "\t": "by tabs", "|": "by bars"}[separator]
    submission, types = written("submission.csv", PREDICTED), written("types.csv", TYPES)
    train, folds = written("train.csv", TRAIN), written("folds.csv", FOLDS)
    readers: list[Callable[[], object]] = [
        lambda: read_annotations(train),
        lambda: read_competition(images),
        lambda: read_pseudo_labels(submission, images / "train", "cort"),
        lambda: read_pseudo_labels(submission, images / "train", str(types)),
        lambda: read_folds(folds),
    ]
    for read in readers:
        with pytest.raises(InputError, match=told):
            read()


@pytest.mark.parametrize("column", ["id", "annotation", "height"])
def test_a_column_that_is_there_twice_is_named(images: Path, column: str) -> None:
    place = TRAIN[0].index(column)
    (images / "train.csv").write_text(as_csv([[*row, row[place]] for row in TRAIN]), encoding="utf-8")
    with pytest.raises(InputError, match=f"more than one column {column}"):
        read_competition(images)


def livecell(images: list[dict[str, Any]], cells: list[dict[str, Any]]) -> bytes:
    content = {"images": images, "annotations": cells, "categories": [{"id": 1, "name": "shsy5y"}]}
    return json.dumps(content).encode("utf-8-sig")


@pytest.mark.parametrize("before", ["", "/data/x/", "C:\\data\\x\\", "..\\x/", "\\\\server\\share\\x\\"])
@pytest.mark.parametrize("size", [(6, 10), (6.0, 10.0), ("6", "10"), (" 6.0", "10 ")])
def test_coco_files_of_other_systems(images: Path, before: str, size: tuple[Any, Any]) -> None:
    """Paths and sizes in any form; a partly bad cell keeps its good polygon, a bad record costs itself."""
    good = [1, 1, 8, 1, 8, 4, 1, 4]
    records = [
        {"id": number, "file_name": f"{before}{name}.tif", "height": size[0], "width": size[1]}
        for number, name in enumerate(NAMES)
    ]
    cells = [
        {"id": 1, "image_id": 0, "category_id": 1, "segmentation": [good]},
        {"id": 2, "image_id": "1", "category_id": "1", "segmentation": [good, [3, 3, 4, 4], ["x"] * 6]},
        {"id": 3, "image_id": 2.0, "category_id": 1, "segmentation": [good]},
        {"id": 4, "image_id": 2, "category_id": 1, "segmentation": [[float("1e9")] * 6]},
        {"id": 5, "image_id": 99, "category_id": 1, "segmentation": [good]},
    ]
    (images / "cells.json").write_bytes(livecell([*records, {"id": 9, "file_name": 7}], cells))
    report = prepare(read_livecell([images / "cells.json"], images / "train"), images / "out", None)
    assert (report.images, report.cells) == (3, 3)
    assert [(cell.place, cell.image_id) for cell in report.cells_in_part] == [("annotation 2", "b")]
    assert sorted(cell.place for cell in report.dropped_cells) == ["annotation 4", "annotation 5"]
    assert [image.reason for image in report.dropped_images] == ["its file_name is 7"]
