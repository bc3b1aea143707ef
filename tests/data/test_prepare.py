"""The preparation against full frames: every mask written is the one annotated, mended; what is left out is told."""

from __future__ import annotations

import csv
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from oracles import decode_rle, full_frames, write_submission
from prepared_frames import assert_every_row_is_told, assert_same_frames, frames_of
from scipy.ndimage import binary_fill_holes

from kernel.data.annotated import list_annotated
from kernel.data.annotations import read_annotations
from kernel.data.prepare import prepare
from kernel.data.sources import read_competition, read_pseudo_labels
from kernel.data.splits import read_folds
from kernel.data.synthetic.generate import write_dataset
from kernel.errors import InputError
from kernel.images.reading import read_image
from kernel.masks.rle import encode_rle
from kernel.scoring.metric import image_score
from kernel.settings import CELL_TYPES

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SHAPE = (64, 80)
HEADER = "id,annotation,width,height,cell_type,plate_time,sample_date,sample_id,elapsed_timedelta\n"
#: A ring, a cell within its hole, and a far one, in rows of 10.
RING, INNER, FAR = "12 4 22 1 25 1 32 1 35 1 42 4", "23 1", "60 1"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("competition")
    write_dataset(folder, {"shsy5y": 5, "astro": 9, "cort": 9}, seed=4, shape=SHAPE)
    ids = list(read_annotations(folder / "train.csv"))

    def in_wells_of_two(row: list[str]) -> list[str]:
        index = ids.index(row[0])
        sample = f"{row[4]}[synthetic]_{'ABCDEFGHIJKL'[index // 2]}1-{1 + index % 2}_Vessel-1_Ph_1"
        return [*row[:7], sample, *row[8:]]

    change_rows(folder, in_wells_of_two)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(made, tmp_path / "data")


def small_folder(tmp_path: Path, rows: str, images: tuple[str, ...] = ("a", "b")) -> Path:
    """A competition folder of images of 6 x 10."""
    folder = tmp_path / "small"
    (folder / "train").mkdir(parents=True)
    (folder / "train.csv").write_text(HEADER + rows)
    for number, name in enumerate(images):
        pixels = np.random.default_rng(number).integers(0, 255, (6, 10)).astype(np.uint8)
        cv2.imwrite(str(folder / "train" / f"{name}.png"), pixels)
    return folder


def change_rows(folder: Path, change: Callable[[list[str]], list[str] | None]) -> None:
    """Let `change` alter a row's fields, or return None to leave it out."""
    with (folder / "train.csv").open(newline="") as stream:
        header, *rows = csv.reader(stream)
    kept = [row for row in map(change, rows) if row is not None]
    with (folder / "train.csv").open("w", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *kept])


def filled_frames(folder: Path) -> dict[str, list[np.ndarray]]:
    """The same of train.csv, holes filled in the full frame."""
    return {
        image_id: [np.asarray(binary_fill_holes(decode_rle(text, entry.image_shape))) for text in entry.rles]
        for image_id, entry in read_annotations(folder / "train.csv").items()
    }


def files_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir()}


def test_every_mask_is_the_annotated_one_with_its_holes_filled(folder: Path, tmp_path: Path) -> None:
    report = prepare(read_competition(folder), tmp_path / "out")
    expected = filled_frames(folder)
    assert_same_frames(frames_of(tmp_path / "out"), expected)
    assert (report.images, report.cells) == (23, sum(map(len, expected.values())))
    assert {key: value.images_written for key, value in report.by_type.items()} == {"shsy5y": 5, "astro": 9, "cort": 9}
    raw = {entry.image_id: entry.masks().sizes for entry in list_annotated(folder)}
    gained = [
        frame.sum() - size for key, sizes in raw.items() for frame, size in zip(expected[key], sizes, strict=True)
    ]
    assert report.filled_pixels == sum(gained)
    assert report.filled_cells == sum(gain > 0 for gain in gained)
    assert_every_row_is_told(report)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["cells"] == report.cells
    folds = read_folds(tmp_path / "out" / "folds.csv")
    assert set(folds) == set(expected)
    assert report.split and sum(report.split["images"]) == 23


def test_holes_are_counted(tmp_path: Path) -> None:
    folder = small_folder(tmp_path, f"a,{RING},10,6,cort,,,,\na,{INNER},10,6,cort,,,,\n")
    report = prepare(read_competition(folder), tmp_path / "out", split=None)
    assert (report.filled_cells, report.filled_pixels) == (1, 4)
    assert [frame.sum() for frame in frames_of(tmp_path / "out")["a"]] == [16, 1]
    assert report.images_without_annotations == ("b",)
    assert "holes filled: 4 pixels in 1 cells" in report.describe()


def test_corrected_masks_clear_astro_after_filling(tmp_path: Path) -> None:
    rows = "".join(f"{name},{rle},10,6,astro,,,,\n" for name in "abde" for rle in (RING, INNER, FAR))
    folder = small_folder(tmp_path, rows + f"c,{RING},10,6,cort,,,,\n", tuple("abcde"))
    fix = tmp_path / "hck_fix"
    fix.mkdir()
    corrected = np.full((6, 10, 3), 0, np.uint8)
    corrected[..., 2] = 7  # red, of B, G, R
    corrected[2, 2, 2] = 0  # within the ring's hole: the whole of INNER
    corrected[1, 1, 2] = 0
    corrected[4:, 5:, :2] = 99  # the other channels do not count
    for name in "ac":
        cv2.imwrite(str(fix / f"{name}.png"), corrected)
    cv2.imwrite(str(fix / "d.png"), corrected[:4])
    cv2.imwrite(str(fix / "e.png"), corrected.astype(np.uint16))
    report = prepare(read_competition(folder, fix), tmp_path / "out", split=None)
    found = frames_of(tmp_path / "out")
    ring = np.zeros((6, 10), bool)
    ring[1:5, 1:5] = True
    far = decode_rle(FAR, (6, 10))
    cleared = ring & (corrected[..., 2] > 0)
    assert cleared.sum() == 14
    np.testing.assert_array_equal(found["a"], [cleared, far])
    np.testing.assert_array_equal(found["c"], [ring])  # not astro
    np.testing.assert_array_equal(found["d"], found["b"])
    np.testing.assert_array_equal(found["e"], found["b"])
    assert (report.corrected_images, report.cleared_cells, report.cleared_pixels) == (1, 2, 3)
    assert report.without_correction == ("b",)
    assert "4 x 10, its image (6, 10)" in report.correction_flaws["d"]
    assert "e.png holds uint16 values, and 8 bits are expected" in report.correction_flaws["e"]
    (empty,) = report.empty_masks
    assert (empty.image_id, empty.place) == ("a", "row 3") and "corrected mask" in empty.reason
    assert_every_row_is_told(report)
    for text in ("b", "row 3 (a)", "1 images, 3 pixels cleared in 2 cells"):
        assert text in report.describe()
    # What was cleared inside a cell is not filled again for training.
    (image, *_) = list_annotated(tmp_path / "out")
    assert image.masks(fill_holes=True).sizes.tolist() == [14, 1]


def test_corrections_without_an_image_to_correct_are_refused(folder: Path) -> None:
    change_rows(folder, lambda row: None if row[4] == "astro" else row)
    with pytest.raises(InputError, match="corrects astro images, and there are none: leave --astro-fix away"):
        read_competition(folder, folder / "train")


def test_corrections_of_other_images_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "fix").mkdir()
    cv2.imwrite(str(tmp_path / "fix" / "unknown.png"), np.zeros(SHAPE, np.uint8))
    with pytest.raises(InputError, match="none of the 9 astro images"):
        read_competition(folder, tmp_path / "fix")


def test_wrong_annotations_are_left_out_by_name(tmp_path: Path) -> None:
    rows = f"03b27b381a5f,{RING},10,6,cort,,,,\n03b27b381a5f,{FAR},10,6,cort,,,,\na,{FAR},10,6,cort,,,,\n"
    folder = small_folder(tmp_path, rows, ("a", "03b27b381a5f"))
    report = prepare(read_competition(folder), tmp_path / "out", split=None)
    assert list(frames_of(tmp_path / "out")) == ["a"]
    (dropped,) = report.dropped_images
    assert (dropped.image_id, dropped.rows) == ("03b27b381a5f", 2)
    assert "03b27b381a5f: its annotations are plainly wrong" in report.describe()
    assert_every_row_is_told(report)


def test_bad_rows_are_named_and_the_rest_kept(tmp_path: Path) -> None:
    rows = [
        (f"a,{RING},10,6,cort,,,,", ""),
        ("a,,10,6,cort,,,,", "each of id, annotation"),
        ("a,1 x,10,6,cort,,,,", "must be whole numbers"),
        ("a,60 2,10,6,cort,,,,", "leaves the image"),
        ("a,1 1,10,6,neuron,,,,", "cell type 'neuron' is not one of"),
        ("a,1 1,10,6,astro,,,,", "image 'a' is astro"),
        ("a,1 1,10,7,cort,,,,", "an image has one cell type and one size"),
        ("a,1 1,ten,6,cort,,,,", "must be whole numbers"),
        (f"a,1 1,{'9' * 5000},6,cort,,,,", "must be whole numbers"),
        (f"a,1 1,{10**13},6,cort,,,,", "more pixels than an image may have"),
        (",1 1,10,6,cort,,,,", "must be filled in"),
        ("a,1 1,10,6,cort,,,,,x", "1 more fields than the header"),
        ("b,1 1 1 1,10,6,cort,,,,", "increasing order"),
        ("", ""),  # an empty line is no row, and counts as a line
        (f"a,{FAR},10,6,cort,,,shsy5y[diff]_E10-4_Vessel-714_Ph_3,", ""),
        (f"a,{INNER},10,6,cort,,,shsy5y[diff]_E10-4_Vessel-715_Ph_3,", "is of sample"),
    ]
    folder = small_folder(tmp_path, "".join(f"{row}\n" for row, _ in rows))
    report = prepare(read_competition(folder), tmp_path / "out", split=None)
    assert [frame.sum() for frame in frames_of(tmp_path / "out")["a"]] == [16, 1]
    told = {cell.place: cell.reason for cell in report.dropped_cells}
    expected = {f"row {number}": reason for number, (_, reason) in enumerate(rows, start=2) if reason}
    assert told.keys() == expected.keys()
    for place, reason in expected.items():
        assert reason in told[place]
    (lost,) = report.dropped_images
    assert (lost.image_id, lost.reason, lost.rows) == ("b", "no cell is left", 0)
    assert_every_row_is_told(report)
    assert "row 6 (a): cell type 'neuron'" in report.describe()


def test_missing_broken_and_other_images_are_named_and_skipped(folder: Path, tmp_path: Path) -> None:
    ids = list(read_annotations(folder / "train.csv"))
    (folder / "train" / f"{ids[0]}.png").unlink()
    whole = (folder / "train" / f"{ids[1]}.png").read_bytes()
    (folder / "train" / f"{ids[1]}.png").write_bytes(whole[: len(whole) // 2])
    (folder / "train" / f"{ids[2]}.png").write_bytes(b"")
    cv2.imwrite(str(folder / "train" / f"{ids[3]}.png"), np.zeros((64, 81), np.uint8))
    change_rows(folder, lambda row: [row[0], "0 1", *row[2:]] if row[0] == ids[4] else row)
    change_rows(folder, lambda row: [*row[:4], "x", *row[5:]] if row[0] == ids[5] else row)
    report = prepare(read_competition(folder), tmp_path / "out", folds=3)
    told = {image.image_id: image.reason for image in report.dropped_images}
    assert set(told) == set(ids[:6])
    for image_id, reason in zip(
        ids,
        (
            "no image of this name in",
            "truncated",
            "the file is empty",
            "64 x 81, and annotated as (64, 80)",
            "no cell is left",
            "none of its rows can be read",
        ),
        strict=False,
    ):
        assert reason in told[image_id]
    assert_every_row_is_told(report)
    change_rows(folder, lambda row: None if row[0] in ids[:6] else row)
    expected = filled_frames(folder)
    assert_same_frames(frames_of(tmp_path / "out"), expected)
    assert set(read_folds(tmp_path / "out" / "folds.csv")) == set(expected)


def test_where_nothing_is_left_the_reasons_are_told_and_reported(tmp_path: Path) -> None:
    folder, out = small_folder(tmp_path, ""), tmp_path / "out"
    with pytest.raises(InputError, match="no image is left to prepare, of 0 rows read"):
        prepare(read_competition(folder), out)
    rows = [f"a,{number} 99,10,6,cort,,,," for number in range(30)]
    rows += [f"b,1 {number},10,6,neuron{number},,,," for number in range(3)] + ["a,,10,6,cort,,,,"]
    (folder / "train.csv").write_text(HEADER + "\n".join([*rows, f"z,{FAR},10,6,cort,,,,", ""]))
    with pytest.raises(InputError) as told:
        prepare(read_competition(folder), out, split=None)
    lines = str(told.value).splitlines()
    assert lines[0] == "no image is left to prepare, of 35 rows read"
    assert lines[-1] == f"each of them is in {out / 'report.json'}"
    assert [line.split(":")[:2] for line in lines[1:-1]] == [
        ["  cells dropped", " 30, row 2 (a) first"],
        ["  cells dropped", " 3, row 32 (b) first"],
        ["  cells dropped", " 1, row 35 (a) first"],
        ["  images dropped", " 1, b first"],
        ["  images dropped", " 1, z first"],
        ["  images dropped", " 1, a first"],
    ]
    assert "a run leaves the image" in lines[1] and "cell type 'neuron0' is not one of" in lines[2]
    assert set(files_of(out)) == {"report.json"}
    report = json.loads((out / "report.json").read_text())
    assert (report["images"], report["cells"], len(report["dropped_cells"])) == (0, 0, 34)
    assert report["reasons"][0] == {
        "what": "cells dropped", "count": 30, "reason": report["dropped_cells"][4]["reason"], "first": "row 2 (a)",
    }  # fmt: skip


def test_where_nothing_is_left_an_earlier_preparation_stays(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(read_competition(folder), out)
    before = files_of(out)
    with pytest.raises(InputError, match=r"report\.json \(annotations\.json beside it is of an earlier run\)"):
        prepare(read_competition(small_folder(tmp_path, f"z,{FAR},10,6,cort,,,,\n")), out)
    after = files_of(out)
    assert after.pop("report.json") != before.pop("report.json")
    assert after == before
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"z first: no image of this name in [^$]*cannot write"):
        prepare(read_competition(tmp_path / "small"), tmp_path / "file" / "out")


def test_an_impossible_split_tells_what_was_left_out(tmp_path: Path) -> None:
    rows = "".join(f"{name},{rle},10,6,cort,,,,\n" for name, rle in zip("abcd", (FAR, FAR, "x", "99 9"), strict=True))
    folder = small_folder(tmp_path, rows + f"z,{FAR},10,6,cort,,,,\n", tuple("abcd"))
    with pytest.raises(InputError) as told:
        prepare(read_competition(folder), tmp_path / "out", "stratified", 3)
    assert "2 images cannot be split into 3 folds" in str(told.value)
    assert "cells dropped: 1, row 4 (c) first" in str(told.value) and "images dropped: 1, z first" in str(told.value)
    with pytest.raises(InputError) as told:
        prepare(read_competition(folder), tmp_path / "out", "stratified", 5)
    assert "4 images cannot be split into 5 folds" in str(told.value) and "1, z first" in str(told.value)
    assert not (tmp_path / "out").exists()


def test_long_lists_are_told_by_reason(tmp_path: Path) -> None:
    rows = f"a,{FAR},10,6,cort,,,,\n" + "".join(f"a,{number} 99,10,6,cort,,,,\n" for number in range(11))
    report = prepare(read_competition(small_folder(tmp_path, rows)), tmp_path / "out", split=None)
    assert "what was left out, by reason:\n  cells dropped: 11, row 3 (a) first: a run leaves" in report.describe()


def test_a_table_as_programs_write_it(tmp_path: Path) -> None:
    rows = f'train/a.png ,"{RING}\r\n",10.0,6.0, cort,,,,\r\nC:\\data\\b.TIF,{FAR},10,6.,cort,,,,,\r\n,,,,,,,,\r\n'
    folder = small_folder(tmp_path, "")
    (folder / "train.csv").write_bytes((HEADER.replace("\n", "\r\n") + rows).encode("utf-16"))
    report = prepare(read_competition(folder), tmp_path / "out", split="stratified", folds=2)
    assert (report.rows_read, report.cells, report.dropped_cells) == (2, 2, ())
    assert {key: len(frames) for key, frames in frames_of(tmp_path / "out").items()} == {"a": 1, "b": 1}
    assert [image.image_id for image in list_annotated(folder)] == ["a", "b"]
    assert {image.image_id for image in list_annotated(folder, [0, 1], tmp_path / "out" / "folds.csv")} == {"a", "b"}
    assert {image.image_id for image in list_annotated(tmp_path / "out", [0, 1])} == {"a", "b"}


def by_columns(text: str, shape: tuple[int, int] = SHAPE) -> str:
    """Run lengths that count along columns, of the same mask."""
    frame = decode_rle(text, shape)
    return encode_rle(frame.T, (0, 0), frame.T.shape)


def test_run_lengths_that_count_along_columns_are_refused(folder: Path, tmp_path: Path) -> None:
    change_rows(folder, lambda row: [row[0], by_columns(row[1]), *row[2:]] if row[1] else row)
    with pytest.raises(InputError, match=r"train\.csv: .* cells are in pieces .*along rows.*mask\.ravel\(\)"):
        read_competition(folder)
    with (folder / "train.csv").open(newline="") as stream:
        rows = [f"{row['id']},{row['annotation']}\n" for row in csv.DictReader(stream)]
    (tmp_path / "s.csv").write_text("id,predicted\n" + "".join(rows))
    with pytest.raises(InputError, match=r"s\.csv: .*along rows"):
        read_pseudo_labels(tmp_path / "s.csv", folder / "train", "astro")


def test_cells_in_pieces_do_not_count_along_columns(folder: Path) -> None:
    def parted(row: list[str]) -> list[str]:
        frame = decode_rle(row[1], SHAPE)
        frame[::3] = False
        return [row[0], encode_rle(frame, (0, 0), SHAPE), *row[2:]]

    change_rows(folder, parted)
    assert read_competition(folder).rows > 0


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_match_in_either_unicode_form(on_disk: str, in_table: str, tmp_path: Path) -> None:
    disk, table = (unicodedata.normalize(form, "Gliazellé_Å1") for form in (on_disk, in_table))
    folder, out = (
        small_folder(tmp_path, f"{table},{FAR},10,6,astro,,,,\nb,{FAR},10,6,astro,,,,\n", (disk, "b")),
        tmp_path / "o",
    )
    (tmp_path / "fix").mkdir()
    corrected = np.full((6, 10, 3), 255, np.uint8)
    cv2.imwrite(str(tmp_path / "fix" / f"{table}.png"), corrected)
    cv2.imwrite(str(tmp_path / "fix" / "b.png"), corrected)
    report = prepare(read_competition(folder, tmp_path / "fix"), out, split="stratified", folds=2)
    assert (report.images, report.corrected_images, report.images_without_annotations) == (2, 2, ())
    composed = unicodedata.normalize("NFC", disk)
    for where in (folder, out):
        images = list_annotated(where, [0, 1], out / "folds.csv")
        assert {image.image_id for image in images} == {composed, "b"}
        assert all(image.read().shape == (6, 10, 3) for image in images)
    # A prepared folder moved to a system that writes names in the other form.
    (folder / "train" / f"{disk}.png").rename(folder / "train" / f"{table}.png")
    assert all(image.read().shape == (6, 10, 3) for image in list_annotated(out))
    (tmp_path / "submission.csv").write_text(f"id,predicted\n{disk},{FAR}\n", encoding="utf-8")
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps({"images": {table: {"cell_type": "cort"}}}), encoding="utf-8-sig")
    source = read_pseudo_labels(tmp_path / "submission.csv", folder / "train", str(summary))
    assert [(image.image_id, image.cell_type) for image in source.images] == [(composed, "cort")]


def test_a_folder_of_another_layout_is_told(tmp_path: Path) -> None:
    folder = small_folder(tmp_path, f"a,{FAR},10,6,cort,,,,\n")
    (folder / "train").rename(folder / "images")
    for read in (read_competition, list_annotated):
        with pytest.raises(InputError, match=r"train\.csv and train/<id>\.png; .* holds images, train\.csv"):
            read(folder)


def test_an_impossible_split_is_told_before_the_work(folder: Path, tmp_path: Path) -> None:
    change_rows(folder, lambda row: [*row[:7], "", *row[8:]] if row[4] == "cort" else row)
    with pytest.raises(InputError, match=r"9 of 23 lack it.*--or-next-best"):
        prepare(read_competition(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = prepare(read_competition(folder), tmp_path / "out", or_next_best=True)
    assert report.split and report.split["name"] == "stratified"
    assert "split stratified: 5 folds" in report.describe() and "not a better one: split 'group'" in report.describe()


def test_two_runs_and_any_number_of_workers_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    ids = list(read_annotations(folder / "train.csv"))
    (folder / "train" / f"{ids[7]}.png").write_bytes(b"x")
    change_rows(folder, lambda row: [row[0], "0 1", *row[2:]] if row[0] == ids[11] else row)
    for name, workers in (("one", 1), ("again", 1), ("two", 2)):
        prepare(read_competition(folder), tmp_path / name, folds=3, workers=workers)
    assert set(files_of(tmp_path / "one")) == {"annotations.json", "folds.csv", "report.json"}
    assert files_of(tmp_path / "one") == files_of(tmp_path / "again") == files_of(tmp_path / "two")
    with pytest.raises(InputError, match="0 workers"):
        prepare(read_competition(folder), tmp_path / "none", folds=3, workers=0)


def test_the_competition_folder_is_not_written_into(folder: Path) -> None:
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=r"holds a train\.csv"):
        prepare(read_competition(folder), folder)
    assert sorted(folder.iterdir()) == before


def test_folds_of_an_earlier_preparation_do_not_stay(folder: Path, tmp_path: Path) -> None:
    prepare(read_competition(folder), tmp_path / "out")
    prepare(read_competition(folder), tmp_path / "out", split=None)
    assert not (tmp_path / "out" / "folds.csv").exists()


def test_raw_and_prepared_folders_give_the_same_images(folder: Path, tmp_path: Path) -> None:
    prepare(read_competition(folder), tmp_path / "out")
    raw = {image.image_id: image for image in list_annotated(folder)}
    prepared = list_annotated(tmp_path / "out")
    assert {image.image_id for image in prepared} == set(raw)
    for image in prepared:
        assert image.cell_type == raw[image.image_id].cell_type
        assert image.path.resolve() == raw[image.image_id].path.resolve()
        one, other = image.masks(), raw[image.image_id].masks(fill_holes=True)
        np.testing.assert_array_equal(full_frames(one), full_frames(other))
        np.testing.assert_array_equal(one.labels, other.labels)
        np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
        assert image_score(one, other) == 1


def test_the_truth_of_a_raw_folder_keeps_its_holes(tmp_path: Path) -> None:
    folder = small_folder(tmp_path, f"a,{RING},10,6,cort,,,,\n")
    (image,) = list_annotated(folder)
    assert image.masks().sizes.tolist() == [12]
    assert image.masks(fill_holes=True).sizes.tolist() == [16]


def test_folds_select_images(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(read_competition(folder), out)
    folds = read_folds(out / "folds.csv")
    for fold in range(5):
        wanted = {image_id for image_id, one in folds.items() if one == fold}
        assert {image.image_id for image in list_annotated(out, [fold])} == wanted
        raw = list_annotated(folder, [fold], out / "folds.csv")
        assert {image.image_id for image in raw} == wanted
    assert len(list_annotated(out, {0, 1, 2, 3, 4})) == 23
    with pytest.raises(InputError, match="has no fold 5; it has 0, 1, 2, 3, 4"):
        list_annotated(out, [0, 5])
    with pytest.raises(InputError, match=r"cannot read folds from .*data/folds\.csv"):
        list_annotated(folder, [0])
    gone = next(image_id for image_id, one in folds.items() if one == 2)
    change_rows(folder, lambda row: None if row[0] == gone else row)
    with pytest.raises(InputError, match=f"1 of them are not annotated in .*, '{gone}' first"):
        list_annotated(folder, [2], out / "folds.csv")
    # An image that is not there matters where it is selected.
    gone = next(image_id for image_id, one in folds.items() if one == 3)
    (folder / "train" / f"{gone}.png").unlink()
    assert len(list_annotated(out, [1])) > 0
    with pytest.raises(InputError, match=r"names 1 image.* prepare the folder again"):
        list_annotated(out, [3])


def test_a_folder_of_both_kinds_is_refused(folder: Path, tmp_path: Path) -> None:
    prepare(read_competition(folder), tmp_path / "out")
    shutil.copy(tmp_path / "out" / "annotations.json", folder)
    with pytest.raises(InputError, match=r"holds both train\.csv and annotations\.json"):
        list_annotated(folder)


@pytest.mark.skipif(not (SHARED / "sartorius").is_dir(), reason="the competition's images are not on this machine")
def test_real_competition(tmp_path: Path) -> None:
    source = read_competition(SHARED / "sartorius")
    with pytest.raises(InputError, match="33 of 34 lack it"):
        prepare(source, tmp_path / "out")
    report = prepare(source, tmp_path / "out", or_next_best=True)
    assert (report.images, report.cells) == (34, 3093)
    assert_every_row_is_told(report)
    raw = {image.image_id: image for image in list_annotated(SHARED / "sartorius")}
    for image in list_annotated(tmp_path / "out")[::8]:
        masks = image.masks()
        expected = raw[image.image_id].masks(fill_holes=True)
        np.testing.assert_array_equal(masks.windows, expected.windows)
        assert all((one == other).all() for one, other in zip(masks.crops, expected.crops, strict=True))
    assert read_image(image.path).shape == (520, 704, 3)


# Pseudo-labels


def test_pseudo_labels_come_back(folder: Path, tmp_path: Path) -> None:
    truth = {image.image_id: image for image in list_annotated(folder)}
    shapes = dict.fromkeys(truth, SHAPE)
    rows = []
    for image_id, image in truth.items():
        taken = np.zeros(SHAPE, bool)
        texts = []
        for frame in full_frames(image.masks(fill_holes=True)):
            left = np.asarray(binary_fill_holes(frame & ~taken)) & ~taken
            taken |= left
            texts.append(encode_rle(left, (0, 0), SHAPE))
        rows.append((image_id, [text for text in texts if text]))
    rows[3] = (rows[3][0], [])
    write_submission(tmp_path / "submission.csv", rows, shapes)
    types = tmp_path / "types.csv"
    types.write_text("id,cell_type\n" + "".join(f"{key},{image.cell_type}\n" for key, image in truth.items()))
    source = read_pseudo_labels(tmp_path / "submission.csv", folder / "train", str(types))
    report = prepare(source, tmp_path / "out", split=None)
    found = {image.image_id: image for image in list_annotated(tmp_path / "out")}
    assert set(found) == set(truth) - {rows[3][0]}
    for image_id, texts in rows:
        if texts:
            frames = full_frames(found[image_id].masks())
            expected = [binary_fill_holes(decode_rle(text, SHAPE)) for text in texts]
            np.testing.assert_array_equal(frames, expected)
            assert found[image_id].cell_type == truth[image_id].cell_type
            assert set(found[image_id].masks().labels) == {CELL_TYPES.index(truth[image_id].cell_type)}
    (empty,) = report.dropped_images
    assert (empty.image_id, empty.reason, empty.rows) == (rows[3][0], "nothing was found in it", 1)
    assert_every_row_is_told(report)
    summary = tmp_path / "summary.json"
    told = {key: {"cell_type": image.cell_type} for key, image in truth.items()}
    summary.write_text(json.dumps({"images": told}))
    assert read_pseudo_labels(tmp_path / "submission.csv", folder / "train", str(summary)) == source


def test_bad_pseudo_labels_are_named(tmp_path: Path) -> None:
    folder = small_folder(tmp_path, "", ("a", "b", "d"))
    submission = tmp_path / "submission.csv"
    submission.write_text("id,predicted\na,1 2\na,\na,x\n,3 1\na,5 1,6\nb,7 1\nc,8 1\nd,9 1\na,61 1\n")
    (tmp_path / "types.csv").write_text("id,cell_type\na,cort\nc,cort\nd,neuron\n")
    source = read_pseudo_labels(submission, folder / "train", str(tmp_path / "types.csv"))
    report = prepare(source, tmp_path / "out", split=None)
    assert [frame.sum() for frame in frames_of(tmp_path / "out")["a"]] == [2]
    assert {cell.place for cell in report.dropped_cells} == {f"row {number}" for number in (3, 4, 5, 6, 10)}
    told = {image.image_id: image.reason for image in report.dropped_images}
    assert set(told) == {"b", "c", "d"}
    assert "has no cell type" in told["b"] and "no image of this name" in told["c"] and "'neuron'" in told["d"]
    assert_every_row_is_told(report)
    only = read_pseudo_labels(submission, folder / "train", "astro")
    assert {image.cell_type for image in only.images} == {"astro"}


def test_ids_of_two_plates_that_mean_one_image_are_no_ids_of_it(tmp_path: Path) -> None:
    """Nobody knows of which plate the images are: an image never gets the cells or the type of another one."""
    folder = small_folder(tmp_path, "", ("a", "b"))
    table = tmp_path / "submission.csv"
    table.write_text("id,predicted\nctrl/a,1 2\ndrug/a,5 2\ndrug/b,3 1\n")
    source = read_pseudo_labels(table, folder / "train", "astro")
    assert [image.image_id for image in source.images] == ["b"]
    reason = "the ids 'ctrl/a' and 'drug/a' both mean the image a"
    assert [(cell.place, reason in cell.reason) for cell in source.dropped_cells] == [("row 2", True), ("row 3", True)]
    assert_every_row_is_told(prepare(source, tmp_path / "out", split=None))
    types = tmp_path / "types.csv"
    types.write_text("id,cell_type\nctrl/a,astro\ndrug/a,cort\n")
    with pytest.raises(InputError, match=f"types.csv, row 3: {reason}"):
        read_pseudo_labels(table, folder / "train", str(types))
    types.write_text("id,cell_type\nctrl/a,astro\ndrug/a,astro\nctrl/c,astro\ndrug/c,cort\n")
    assert read_pseudo_labels(table, folder / "train", str(types)).dropped_cells == source.dropped_cells
    folder = small_folder(tmp_path / "train", "ctrl/a,1 2,10,6,astro\ndrug/a,5 2,10,6,astro\n")
    (bad,) = read_competition(folder).dropped_cells
    assert bad.reason == "the ids 'ctrl/a' above and 'drug/a' here both mean the image 'a'"


def test_one_image_may_be_written_in_several_ways_in_a_table(tmp_path: Path) -> None:
    folder = small_folder(tmp_path, "x/a,1 2,10,6,astro\nx/a.png,5 2,10,6,astro\n", ("a",))
    (image,) = read_competition(folder).images
    assert len(image.cells) == 2
    table = tmp_path / "submission.csv"
    table.write_text("id,predicted\na,1 2\na.png,5 2\n'a,9 1\n")
    source = read_pseudo_labels(table, folder / "train", "astro")
    assert [len(image.cells) for image in source.images] == [3] and not source.dropped_cells


def test_cell_types_that_are_none(tmp_path: Path) -> None:
    folder = small_folder(tmp_path, "")
    submission = tmp_path / "submission.csv"
    submission.write_text("id,predicted\na,1 2\n")
    with pytest.raises(InputError, match="cell types 'neuron': give one of shsy5y, astro, cort, or a file"):
        read_pseudo_labels(submission, folder / "train", "neuron")
    (tmp_path / "types.json").write_text("{}")
    with pytest.raises(InputError, match=r'no "images": expected the summary\.json'):
        read_pseudo_labels(submission, folder / "train", str(tmp_path / "types.json"))
    (tmp_path / "types.csv").write_text("id,type\n")
    with pytest.raises(InputError, match="lacks the columns cell_type"):
        read_pseudo_labels(submission, folder / "train", str(tmp_path / "types.csv"))
    submission.write_text("name\n")
    with pytest.raises(InputError, match="lacks the columns id, predicted"):
        read_pseudo_labels(submission, folder / "train", "cort")
