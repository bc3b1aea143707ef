"""Finished results in the folder of --out: of other commands and of other images they go by --replace alone."""

from __future__ import annotations

import errno
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from cases import GRID, THREE, competition, draw_image, rows_of_cells, write_recipe, write_rows

import kernel.export.folder
import kernel.export.kinds
from kernel.__main__ import main
from kernel.commands.results import known_results, refuse_to_replace_result
from kernel.commands.written import note_written
from kernel.data.livecell import read_livecell
from kernel.data.prepare import prepare
from kernel.data.prepared import read_prepared
from kernel.data.sources import read_competition
from kernel.errors import InputError
from kernel.images.writing import write_image_file

pytestmark = [pytest.mark.usefixtures("wheels_site", "one_thread")]

DEMO = Path("bundle/synthetic")
ENSEMBLE = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return competition(tmp_path / "cells", THREE)


def scores_of_others(folder: Path) -> Path:
    """What `validate` leaves, of images that are not these."""
    folder.mkdir()
    (folder / "scores.csv").write_text("id,score\none,1\nanother,1\n", encoding="utf-8")
    return folder


def test_another_commands_result_is_not_replaced_untold(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = scores_of_others(tmp_path / "report")
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    (tuned / "tuning.json").write_text("{}", encoding="utf-8")
    given = [*ENSEMBLE, "--data", str(data)]
    for words, told in (
        (["predict", str(data / "train"), *ENSEMBLE, "--out", str(report)], "holds what validate has written"),
        (["select", *given, "--out", str(report)], "holds what validate has written"),
        (["tune", *given, "--out", str(report)], "holds what validate has written"),
        (["tune", *given, "--stages", "--out", str(tuned)], "holds what tune has written"),
        (["validate", *given, "--out", str(tuned)], "holds what tune has written"),
        (["validate", *given, "--out", str(report)], "holds results of 1 images that are not among these (another)"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert told in error and "give --replace" in error
    assert (report / "scores.csv").is_file() and (tuned / "tuning.json").is_file()
    refuse_to_replace_result(report, "predict", {"one"}, replace=True)
    refuse_to_replace_result(report, "validate", {"one"}, replace=True)
    refuse_to_replace_result(report, "validate", {"one", "another", "third"})
    refuse_to_replace_result(report, "validate")
    for command in known_results():
        refuse_to_replace_result(tmp_path / "new", command, ())


def test_names_that_a_spreadsheet_would_run_are_the_same_images(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_text("image,file\n'=1+1,a\n-x,b\n", encoding="utf-8")
    (tmp_path / "cells.csv").touch()
    note_written(tmp_path)
    refuse_to_replace_result(tmp_path, "predict", {"=1+1", "-x"})
    with pytest.raises(InputError, match="of 1 images that are not among these"):
        refuse_to_replace_result(tmp_path, "predict", {"=1+1"})


def test_prepared_images_are_not_replaced_untold(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["prepare", "--competition", str(data), "--out", str(out), "--split", "stratified", "--folds", "2"]
    write_rows(data, [row for name in ("one", "two", "four") for row in rows_of_cells(name, "cort", GRID)])
    write_image_file(data / "train" / "four.png", draw_image(7, GRID))
    assert main(words) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert set(before) == {"annotations.json", "report.json", "folds.csv"}
    assert main(words) == 0  # the same once more
    capsys.readouterr()
    fewer = [row for name in ("one", "two") for row in rows_of_cells(name, "cort", GRID)]
    write_rows(data, fewer)
    assert main(words) == 2
    assert "holds 1 prepared images that are not among these (four)" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main([*words, "--replace"]) == 0
    assert "four" not in (out / "folds.csv").read_text(encoding="utf-8")


def test_prepared_images_without_folds_are_not_replaced_untold_either(data: Path, tmp_path: Path) -> None:
    """As corrections of several batches, into one folder."""
    for batch in ("first", "second"):
        (tmp_path / batch).mkdir()
        write_rows(tmp_path / batch, rows_of_cells(batch, "cort", GRID))
        (tmp_path / batch / "train").mkdir()
        write_image_file(tmp_path / batch / "train" / f"{batch}.png", draw_image(7, GRID))
    out = tmp_path / "out"
    prepare(read_competition(tmp_path / "first"), out, None)
    prepare(read_competition(tmp_path / "first"), out, None)
    with pytest.raises(InputError, match=r"holds 1 prepared images that are not among these \(first\)"):
        prepare(read_competition(tmp_path / "second"), out, None)
    prepare(read_competition(tmp_path / "second"), out, None, replace=True)
    assert [image.image_id for image in read_prepared(out).images] == ["second"]


def test_annotations_of_other_sources_and_of_people_are_not_replaced_untold(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cells = {
        "images": [{"id": 1, "file_name": "shsy5y_1.png", "height": 160, "width": 160}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 9, 1, 9, 9]]}],
        "categories": [{"id": 1, "name": "cell"}],
    }
    (tmp_path / "lines").mkdir()
    write_image_file(tmp_path / "lines" / "shsy5y_1.png", draw_image(9, GRID))
    annotations = tmp_path / "cells.json"
    annotations.write_text(json.dumps(cells), encoding="utf-8")
    prepare(read_livecell([annotations], tmp_path / "lines"), out, None)
    with pytest.raises(InputError, match=r"is of 'livecell, prepared by .*give --replace"):
        prepare(read_competition(data), out, None)
    for name, told in (("annotations.json", "was not written by prepare"), ("folds.csv", "was not written by prepare"),
                       ("report.json", "was not written by prepare")):  # fmt: skip
        people = tmp_path / f"people's {name}"
        people.mkdir()
        (people / name).write_text('{"images": []}', encoding="utf-8")
        with pytest.raises(InputError, match=told):
            prepare(read_competition(data), people, None)
        assert [path.name for path in people.iterdir()] == [name]
        prepare(read_competition(data), people, None, replace=True)
        assert (people / "annotations.json").is_file()


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".png", ".best.safetensors"])
def test_files_beside_the_weights_that_no_training_has_left_are_kept(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    """An image, a manifest: `--out train/one.safetensors` would draw its curves over train/one.png."""
    beside = tmp_path / f"member{ending}"
    beside.write_bytes(b"{}")
    words = ["train", "--data", str(data), "--recipe", str(write_recipe(tmp_path))]
    words += ["--out", str(tmp_path / "member.safetensors")]
    assert main(words) == 2
    assert "is there already, of no training" in capsys.readouterr().err and beside.read_bytes() == b"{}"


def test_a_run_that_was_killed_before_its_first_weights_begins_again(data: Path, tmp_path: Path) -> None:
    words = ["train", "--data", str(data), "--recipe", str(write_recipe(tmp_path))]
    out = tmp_path / "member.safetensors"
    assert main([*words, "--out", str(out)]) == 0
    for path in (out, out.with_suffix(".state")):
        path.unlink()
    assert out.with_suffix(".json").is_file()
    assert main([*words, "--out", str(out)]) == 0
    assert out.is_file()


def test_a_lost_gpu_ends_predict_and_keeps_what_is_finished(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every further image would fail at once in the same process, and the finished ones would be done again."""
    out, asked = tmp_path / "out", list[str]()
    segment = kernel.export.folder.segment_input

    def segment_until_it_is_lost(ensemble: Any, image: Any, *given: Any) -> Any:
        asked.append(image.name)
        if len(asked) == 2:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return segment(ensemble, image, *given)

    monkeypatch.setattr(kernel.export.folder, "segment_input", segment_until_it_is_lost)
    words = ["predict", str(data / "train"), *ENSEMBLE, "--out", str(out), "--export", "labels"]
    assert main(words) == 1
    assert len(asked) == 2 and not out.exists()
    error = capsys.readouterr().err
    assert f"{asked[1]}: " in error and "no image can be done on this GPU before a new start" in error
    assert "1 of 3 images are finished: the same command goes on from there" in error
    assert main(words) == 0
    assert sorted(asked[2:]) == sorted({"one", "two", "three"} - {asked[0]})
    assert len(list((out / "labels").iterdir())) == 3


@pytest.mark.parametrize(("export", "writes"), [("labels", "write_bytes"), ("geojson", "write_text")])
def test_a_full_disk_ends_predict_and_keeps_what_is_finished(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    export: str, writes: str,
) -> None:  # fmt: skip
    """Every further image would be segmented for nothing, and what there is replaced by less."""
    out, asked, folder = tmp_path / "out", list[str](), kernel.export.kinds.IMAGE_EXPORTS[export].folder
    segment, write = kernel.export.folder.segment_input, getattr(Path, writes)

    def segment_noted(ensemble: Any, image: Any, *given: Any) -> Any:
        asked.append(image.name)
        return segment(ensemble, image, *given)

    def write_until_it_is_full(path: Path, *given: Any, **named: Any) -> int:
        if path.parent.name == folder and len(asked) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return write(path, *given, **named)

    monkeypatch.setattr(kernel.export.folder, "segment_input", segment_noted)
    monkeypatch.setattr(Path, writes, write_until_it_is_full)
    words = ["predict", str(data / "train"), *ENSEMBLE, "--out", str(out), "--export", export]
    assert main(words) == 1
    assert len(asked) == 2 and not out.exists()
    error = capsys.readouterr().err
    assert f"({os.strerror(errno.ENOSPC)}): free some space, and run the same again" in error
    assert "1 of 3 images are finished: the same command goes on from there" in error and "Traceback" not in error
    assert main(words) == 0
    assert sorted(asked[2:]) == sorted({"one", "two", "three"} - {asked[0]})
    assert len(list((out / folder).iterdir())) == 3


@pytest.mark.parametrize("place", [0, 1])
def test_an_image_that_costs_the_gpu_each_time_fails_after_two_attempts(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: int
) -> None:
    """Also where it is the first one, so that nothing is finished before it; the others get their results."""
    out, asked = tmp_path / "out", list[str]()
    segment = kernel.export.folder.segment_input
    unlucky = sorted(["one", "two", "three"])[place]

    def segment_but_one(ensemble: Any, image: Any, *given: Any) -> Any:
        asked.append(image.name)
        if image.name == unlucky:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return segment(ensemble, image, *given)

    monkeypatch.setattr(kernel.export.folder, "segment_input", segment_but_one)
    words = ["predict", str(data / "train"), *ENSEMBLE, "--out", str(out), "--export", "labels"]
    assert main(words) == 1 and "goes on without it" not in capsys.readouterr().err
    assert main(words) == 1 and f"image {unlucky}: the same command goes on without it" in capsys.readouterr().err
    assert not out.exists()
    assert main(words) == 1
    assert f"failed: 1 image(s) are not there, {unlucky} for no fault of theirs" in capsys.readouterr().err
    assert asked.count(unlucky) == 2 and len(asked) == 4
    assert sorted(path.stem for path in (out / "labels").iterdir()) == sorted({"one", "two", "three"} - {unlucky})
    assert "it has cost the GPU 2 times" in (out / "images.csv").read_text(encoding="utf-8")


def test_the_loss_of_a_gpu_comes_whole_from_another_process() -> None:
    error = pickle.loads(pickle.dumps(kernel.export.folder.LostDeviceError("a", "CUDA error")))
    assert (error.image, error.reason) == ("a", "CUDA error") and "a: CUDA error: no image" in str(error)
