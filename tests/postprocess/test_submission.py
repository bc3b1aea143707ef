from __future__ import annotations

import csv
import os

import numpy as np
import pytest
from oracles import random_instances, write_submission

from kernel.errors import InputError
from kernel.postprocess.clean import postprocess_instances
from kernel.postprocess.submission import SubmissionWriter, check_image_rles
from kernel.postprocess.submitted import read_submission, validate_submission
from kernel.settings import Thresholds

SHAPES = {"one": (4, 5), "two": (4, 5), "none": (3, 3)}
ROWS = [("one", ["1 2 6 2", "3 1"]), ("none", []), ("two", ["20 1"])]
TEXT = "id,predicted\none,1 2 6 2\none,3 1\ntwo,20 1\nnone,\n"


def test_format_and_round_trip(tmp_path):
    path = tmp_path / "submission.csv"
    write_submission(path, ROWS, SHAPES)
    assert path.read_bytes() == TEXT.encode()
    assert validate_submission(path, SHAPES) == {"one": ["1 2 6 2", "3 1"], "two": ["20 1"], "none": []}
    assert [entry.name for entry in tmp_path.iterdir()] == ["submission.csv"]


def test_no_images(tmp_path):
    write_submission(tmp_path / "s.csv", [], {})
    assert (tmp_path / "s.csv").read_text() == "id,predicted\n"
    assert validate_submission(tmp_path / "s.csv", {}) == {}
    check_image_rles("a", [], (4, 5))


def test_what_the_post_processing_gives_is_accepted(tmp_path):
    writer = SubmissionWriter(str(seed) for seed in range(5))
    for seed in range(5):
        instances = random_instances(np.random.default_rng(seed), 15, (30, 40))
        found = postprocess_instances(instances, Thresholds(min_size=0, corrupt=seed % 2 == 0, mask_nms_threshold=0))
        writer.add(str(seed), found.rles(), found.image_shape)
    writer.write(tmp_path / "s.csv")
    assert len(validate_submission(tmp_path / "s.csv", {str(seed): (30, 40) for seed in range(5)})) == 5


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, ("one", [])], "'one' was added before"),
        ([*ROWS, ("other", [])], "'other' does not belong"),
        ([("one", ["1 2", "2 1"])], "'one': masks 1 and 2 overlap at row 0, column 1"),
        ([("one", ["20 2"])], "'one', mask 1: a run leaves the image"),
        ([("one", ["1 1", ""])], "'one', mask 2: the mask is empty"),
        ([("one", ["a b"])], "'one', mask 1: run lengths must be whole numbers"),
    ],
)
def test_wrong_rows_leave_the_old_file_alone(tmp_path, rows, message):
    path = tmp_path / "submission.csv"
    path.write_text("before")
    with pytest.raises(InputError, match=message):
        write_submission(path, rows, SHAPES)
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


#: Names that file systems hold, as ids.
ODD_IDS = [
    " a ", "a,b", ',"', 'say "a"', '"', "a\nb", "a\r\nb", "\r", "=1+1", "-", "x" * 251, "\x0b\x1c\x85\u2028",
    "Z\u00e4hlung", "e\u0301", "\u7d30\u80de", "\U0001f9ec", "a\tb", "'", "id", "id,predicted",
]  # fmt: skip


def test_any_name_of_a_file_is_an_id(tmp_path):
    path = tmp_path / "submission.csv"
    shapes = dict.fromkeys(ODD_IDS, (4, 5))
    rows = [(image_id, ["1 2 6 2", "3 1"] if number % 2 else []) for number, image_id in enumerate(ODD_IDS)]
    write_submission(path, rows, shapes)
    assert validate_submission(path, shapes) == dict(rows)
    with path.open(encoding="utf-8", newline="") as stream:  # as any other program reads it
        head, *read = csv.reader(stream, strict=True)
    assert head == ["id", "predicted"] and [row[0] for row in read if row[1] in ("", "3 1")] == ODD_IDS


@pytest.mark.parametrize("image_id", ["", os.fsdecode(b"Kan\xe4le"), "\ud800"])
def test_ids_that_are_no_text_are_refused(image_id):
    with pytest.raises(InputError, match="cannot stand in a submission") as caught:
        SubmissionWriter([image_id])
    assert str(caught.value).encode()  # prints


def test_ids_must_be_unique():
    with pytest.raises(InputError, match="'a' is given twice"):
        SubmissionWriter(["a", "b", "a"])


def test_ids_are_written_as_they_are_asked_for():
    writer = SubmissionWriter(["a", "b"], {"b": "b, 2.png"})
    writer.add("b", ["1 1", "3 1"], (1, 4))
    assert writer.content() == b'id,predicted\na,\n"b, 2.png",1 1\n"b, 2.png",3 1\n'


def test_a_folder_that_does_not_exist_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot write"):
        write_submission(tmp_path / "nowhere" / "s.csv", ROWS, SHAPES)


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kernel.files.os.fsync", refuse)
    with pytest.raises(InputError, match="No space left"):
        write_submission(tmp_path / "s.csv", ROWS, SHAPES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must begin with"),
        ("id,rle\n", "must begin with"),
        ("id,predicted\none\n", "row 2: expected an image id"),
        ('id,predicted\n"one,1 1\n', "row 2: expected an image id"),
        ('id,predicted\n"one"x,1 1\n', "row 2: expected an image id"),
        ('id,predicted\none,"1 1"\n', "row 2: expected an image id"),
        ('id,predicted\n"a\nb",1 1\none\n', r"row 2: image 'a.nb' is not among"),
        ("id,predicted\n\none,1 1\n", "row 2: expected an image id"),
        ("id,predicted\n,1 1\n", "row 2: expected an image id"),
        ("id,predicted\none,1 1,2\n", "row 2: expected an image id"),
        ("id,predicted\none,\none,1 1\n", "row 3: image 'one' has an empty row and another"),
        ("id,predicted\none,1 1\none,\n", "row 3: image 'one' has an empty row and another"),
        ("id,predicted\none,\ntwo,\n", "image 'none' has no row"),
        (TEXT + "three,\n", "'three' is not among the 3 images"),
        (TEXT + "two,20 1\n", "row 6: image 'two': the mask overlaps that of row 4 at row 3, column 4 of"),
        (TEXT + "two,21 1\n", "row 6: image 'two': a run leaves the image"),
    ],
)
def test_wrong_files_are_refused(tmp_path, text, message):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        validate_submission(path, SHAPES)


def test_a_missing_file_is_told(tmp_path):
    with pytest.raises(InputError, match="cannot read the submission"):
        read_submission(tmp_path / "s.csv")
