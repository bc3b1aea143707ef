"""The verifier: every problem of a submission with its row, by the library and by the command."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import build_kernel
from kernel.errors import InputError
from kernel.images.png import PNG_SIGNATURE
from kernel.postprocess.submitted import (
    common_pixels,
    find_problems,
    is_valid_submission,
    parse_submission,
    told_problems,
)

SHAPES = {"one": (4, 5), "two": (4, 5), "none": (3, 3)}
RIGHT = "id,predicted\none,1 2 6 2\none,3 1\nnone,\ntwo,20 1\n"


def problems_of(folder: Path, text: str | bytes, shapes: dict[str, tuple[int, int] | None] | None = None) -> list[str]:
    path = folder / "submission.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [str(each) for each in find_problems(parse_submission(path), {**SHAPES} if shapes is None else shapes)]


@pytest.mark.parametrize(
    "text", [RIGHT, RIGHT.removesuffix("\n"), RIGHT.replace("\n", "\r\n"), RIGHT.replace(",3 1", ",3 1 4 1")]
)
def test_what_is_right_has_no_problem(tmp_path: Path, text: str) -> None:
    assert problems_of(tmp_path, text) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RIGHT.replace("predicted", "annotation"), "row 1: the file must begin with the row 'id,predicted'"),
        (RIGHT.replace("id,predicted\n", ""), "row 1: the file must begin with the row 'id,predicted', not "),
        (RIGHT.replace("none,\n", "none,\n\n"), "row 5: expected an image id, a comma and run lengths, got ''"),
        (RIGHT.replace("3 1", '"3 1"'), "row 3: expected an image id"),
        (RIGHT.replace("3 1", "3,1"), "row 3: expected an image id"),
        (RIGHT.replace("two,20 1", "none,"), "row 5: image 'none' has an empty row and another one"),
        (RIGHT.replace("none,\n", ""), "image 'none' has no row; without masks it needs the row 'none,'"),
        (RIGHT + "three,1 1\n", "row 6: image 'three' is not among the 3 images"),
        (RIGHT.replace("20 1", "0 1"), "row 5: image 'two': a run leaves the image: starts and ends must"),
        (RIGHT.replace("20 1", "20 2"), "row 5: image 'two': a run leaves the image"),
        (RIGHT.replace("20 1", "20 0"), "row 5: image 'two': a run has length 0"),
        (RIGHT.replace("20 1", "20"), "row 5: image 'two': run lengths must be pairs"),
        (RIGHT.replace("20 1", "5 1 2 1"), "row 5: image 'two': runs must be in increasing order and must not overlap"),
        (RIGHT.replace("20 1", "5 3 6 1"), "row 5: image 'two': runs must be in increasing order and must not overlap"),
        (RIGHT.replace("20 1", "-5 1"), "row 5: image 'two': run lengths must be whole numbers"),
        (RIGHT.replace("20 1", "1_0 1"), "row 5: image 'two': run lengths must be whole numbers"),
        (RIGHT.replace("20 1", "1.0 1"), "row 5: image 'two': run lengths must be whole numbers"),
        (RIGHT.replace("20 1", "٣ 1"), "row 5: image 'two': run lengths must be whole numbers"),
        (RIGHT.replace("20 1", "9" * 5000 + " 1"), "row 5: image 'two': run lengths must be whole numbers"),
        (RIGHT.replace("20 1", "9" * 30 + " 1"), "row 5: image 'two': run lengths must be whole numbers"),
        (RIGHT + "one,2 1\n", "row 6: image 'one': the mask overlaps that of row 2 at row 0, column 1 of the image"),
        (RIGHT + "two,20 1\n", "row 6: image 'two': the mask overlaps that of row 5 at row 3, column 4 of the image"),
    ],
)  # fmt: skip
def test_each_problem_has_its_row(tmp_path: Path, text: str, told: str) -> None:
    (problem, *others) = problems_of(tmp_path, text)
    assert problem.startswith(told) and "\n" not in problem and len(problem) < 250
    assert all("has no row" in other or "overlaps" not in told for other in others)


def test_all_problems_are_told_by_row_and_those_of_no_row_last(tmp_path: Path) -> None:
    text = "id;predicted\none,1 9\none,0 1\nfour,1 1\none,3 1 9 2\nbad\ntwo,x\n"
    told = problems_of(tmp_path, text)
    assert [problem.split(":")[0] for problem in told] == [
        *(f"row {row}" for row in (1, 3, 4, 5, 6, 7)), "image 'none' has no row; without masks it needs the row 'none,'"
    ]  # fmt: skip


def test_an_image_that_cannot_be_read_has_an_empty_row_alone(tmp_path: Path) -> None:
    shapes = {**SHAPES, "two": None}
    assert problems_of(tmp_path, RIGHT, shapes) == ["row 5: image 'two' has a mask, and its file cannot be read"]
    assert problems_of(tmp_path, RIGHT.replace("20 1", ""), shapes) == []


@pytest.mark.parametrize(("count", "shown"), [(0, 0), (2, 2), (3, 3), (4, 4), (9, 4)])
def test_of_many_problems_the_first_are_shown(tmp_path: Path, count: int, shown: int) -> None:
    (tmp_path / "s.csv").write_text("id,predicted\n" + "a,1 1\n" * (count + 1), encoding="utf-8")
    lines = told_problems(find_problems(parse_submission(tmp_path / "s.csv"), {"a": (2, 2)}), 3)
    assert len(lines) == shown and (count <= 3 or lines[-1] == f"and {count - 3} more")


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), min_size=1, max_size=3), min_size=2, max_size=6
    )
)
def test_masks_that_share_a_pixel_are_found(masks: list[list[tuple[int, int]]]) -> None:
    """Against sets of pixels; of each mask that meets others at least one meeting is told."""
    pixels = [{p for start, length in runs for p in range(start, start + length)} for runs in masks]
    starts, ends, owners = [], [], []
    for owner, own in enumerate(pixels, start=1):
        ordered = sorted(own)
        first = [p for p in ordered if p - 1 not in own]
        starts += first
        ends += [p + 1 for p in ordered if p + 1 not in own]
        owners += [owner] * len(first)
    found = common_pixels(*(np.array(values, dtype=np.int64) for values in (starts, ends, owners)))
    for one, other, pixel in found:
        assert one > other and pixel in pixels[one - 1] & pixels[other - 1]
    meets = {i + 1 for i, a in enumerate(pixels) if any(a & b for j, b in enumerate(pixels) if i != j)}
    assert meets == {each for one, other, _ in found for each in (one, other)}


@given(st.binary(max_size=200) | st.text(alphabet='id,predcton0129 -\n\r"\u2028', max_size=80).map(str.encode))
def test_any_bytes_have_problems_or_none_and_raise_nothing_else(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.csv"
        for prefix in (b"", b"id,predicted\none,"):
            path.write_bytes(prefix + content)
            try:
                told = find_problems(parse_submission(path), {"one": (4, 5)})
            except InputError as error:
                assert "UTF-8" in str(error)
            else:
                assert all("\n" not in str(each) for each in told)


def test_what_the_kernel_wrote_is_checked_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "submission.csv"
    path.write_text(RIGHT, encoding="utf-8")
    assert is_valid_submission(path, SHAPES) and not caplog.records
    path.write_text(RIGHT[:-4], encoding="utf-8")  # as a full disk leaves it
    assert not is_valid_submission(path, SHAPES) and "is not valid: row 5" in caplog.text
    assert not is_valid_submission(tmp_path / "gone.csv", SHAPES) and "cannot read the submission" in caplog.text


# --- the command -------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, shape in SHAPES.items():
        cv2.imwrite(str(folder / f"{name}.png"), np.zeros(shape, np.uint8))
    return folder


def check(path: Path, images: Path, *options: str) -> int:
    return build_kernel.main(["check", str(path), "--images", str(images), *options])


def test_the_command_tells_what_is_valid(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.csv").write_text(RIGHT, encoding="utf-8")
    (images / "broken.png").write_bytes(PNG_SIGNATURE)
    (images / "notes.txt").write_text("no image", encoding="utf-8")
    assert check(tmp_path / "s.csv", images) == 2
    assert "image 'broken' has no row" in capsys.readouterr().out
    (tmp_path / "s.csv").write_text(RIGHT + "broken,\n", encoding="utf-8")
    assert check(tmp_path / "s.csv", images) == 0
    assert "s.csv is valid: 3 cells in 4 images" in capsys.readouterr().out


def test_the_command_shows_problems_up_to_its_limit(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.csv").write_text(RIGHT + "one,2 1\n" * 30, encoding="utf-8")
    assert check(tmp_path / "s.csv", images, "--limit", "2") == 2
    out, error = capsys.readouterr()
    assert (
        out.count("\n") == 3 and "row 6: image 'one': the mask overlaps that of row 2" in out and "and 28 more" in out
    )
    assert error.count("\n") == 1 and "30 problem(s)" in error


def test_the_command_asks_for_the_ids_of_the_sample(
    tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the kernel writes them: one is spelled as its file is called, one has no file, and one is the file's own."""
    (tmp_path / "s.csv").write_text(RIGHT.replace("\none,", "\none.png,") + "gone,\n", encoding="utf-8")
    assert check(tmp_path / "s.csv", images) == 2
    sample = tmp_path / "sample_submission.csv"
    sample.write_text("id,predicted\none.png,\ntwo,\nnone,\ngone,\n", encoding="utf-8")
    assert check(tmp_path / "s.csv", images) == 0
    monkeypatch.chdir(images)
    assert check(tmp_path / "s.csv", Path()) == 0
    (tmp_path / "s.csv").write_text(RIGHT, encoding="utf-8")
    capsys.readouterr()
    assert check(tmp_path / "s.csv", images) == 2
    assert "image 'one.png' has no row" in capsys.readouterr().out
    sample.write_text("id,predicted\nof another folder,\n", encoding="utf-8")  # as beside the images of a training
    assert check(tmp_path / "s.csv", images) == 0


@pytest.mark.parametrize("missing", ["submission", "images"])
def test_the_command_tells_what_is_missing(
    tmp_path: Path, images: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.csv"
    if missing == "images":
        path.write_text(RIGHT, encoding="utf-8")
        images = tmp_path / "nowhere"
    assert check(path, images) == 2
    assert ("cannot read the submission" if missing == "submission" else "no folder") in capsys.readouterr().err
