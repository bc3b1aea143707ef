"""Results on disk: none is written over untold, and what is left out or does nothing is said. All by the command."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import pytest
from cases import GRID, RECIPE, THREE, competition, rows_of_cells, write_recipe, write_rows
from safetensors.torch import load_file

from kernel.__main__ import main
from kernel.data.learned import read_member_record
from kernel.data.splits import FoldRow, write_folds
from kernel.errors import InputError
from kernel.locks import sole_writer

pytestmark = [pytest.mark.usefixtures("wheels_site", "one_thread"), pytest.mark.xdist_group("runs")]


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """The options of a training into `out.safetensors`."""
    data = competition(tmp_path / "cells", THREE)
    recipe = write_recipe(tmp_path)
    return ["train", "--data", str(data), "--recipe", str(recipe), "--out", str(tmp_path / "out.safetensors")]


def test_a_finished_member_is_known_by_itself(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert main(words) == 0
    before = digest(out)
    record = read_member_record(out)
    assert record is not None and record.is_finished
    assert {picture.image_id for picture in record.images} == {"one", "two", "three"}
    out.with_suffix(".state").unlink()
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err and digest(out) == before
    assert main([*words, "--resume"]) == 0
    assert "finished member already" in capsys.readouterr().err and digest(out) == before
    assert main([*words, "--resume", "--iterations", "3"]) == 2
    assert digest(out) == before
    assert main([*words, "--replace", "--iterations", "3"]) == 0
    assert digest(out) != before and (read_member_record(out) or record).iterations == 3


@pytest.mark.parametrize("text", ['{"cell": 1}\n', "no JSON\n", "[1]\n", "\x00"])
def test_what_is_to_be_replaced_is_not_read(words: list[str], tmp_path: Path, text: str) -> None:
    log = tmp_path / "out.jsonl"
    log.write_text(text, encoding="utf-8")
    assert main(words) == 2 and log.read_text(encoding="utf-8") == text
    assert main([*words, "--replace"]) == 0
    assert '"step": 1' in log.read_text(encoding="utf-8").splitlines()[0]


def test_a_damaged_line_of_the_log_does_not_stop_a_run(words: list[str], tmp_path: Path) -> None:
    """A disk that lost power leaves such."""
    assert main(words) == 0
    log = tmp_path / "out.jsonl"
    whole = log.read_text(encoding="utf-8")
    log.write_bytes(b"\x00\xff\n{}\n" + whole.encode() + b'{"st')
    assert main([*words, "--resume"]) == 0
    assert log.read_text(encoding="utf-8") == whole


def test_what_differs_from_the_run_that_is_gone_on_with_is_named(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 0
    assert main([*words, "--resume", "--iterations", "3", "--seed", "7"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert (
        "belongs to another run (training.iterations: stored 2, wanted 3; training.seed: stored 0, wanted 7): " in told
    )
    assert "workers" not in told
    extra = competition(tmp_path / "fewer", THREE[:2])
    fewer = [str(extra) if word == str(tmp_path / "cells") else word for word in words]
    assert main([*fewer, "--resume"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "belongs to another run (images: stored 3, wanted 2; cells: stored " in told and "training." not in told
    assert main([*words, "--resume", "--init", "bundle/synthetic/weights/maskrcnn.safetensors"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "belongs to a run with the same settings, but other weights to start from, or other images" in told
    (tmp_path / "out.json").write_text("{}", encoding="utf-8")  # by which nothing is known
    assert main([*words, "--resume", "--iterations", "3"]) == 2
    assert "with other settings, another detector, other weights to start from, or other" in " ".join(
        capsys.readouterr().err.split()
    )


def test_what_killed_runs_were_writing_goes_as_the_next_one_begins(words: list[str], tmp_path: Path) -> None:
    """Each is as large as a state. Those that another run writes beside, under a name of its own, stay."""
    names = ("out.state", "out.safetensors", "out.best.safetensors", "out.json", "out2.state", "out.state.old")
    halves = [tmp_path / f".{name}.0123abcd.partial" for name in (*names, names[0])]
    halves[-1] = halves[-1].with_name(".out.state.fedcba98.partial")
    for half in halves:
        half.write_bytes(b"half")
    with sole_writer(tmp_path / "out.safetensors"):
        assert main(words) == 2  # another run is at it
    assert all(half.is_file() for half in halves)
    assert main(words) == 0
    assert sorted(path.name for path in tmp_path.glob(".*.partial")) == [
        ".out.state.old.0123abcd.partial",
        ".out2.state.0123abcd.partial",
    ]


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_foreign_file_is_not_written_over(words: list[str], tmp_path: Path, resume: list[str]) -> None:
    out = tmp_path / "out.safetensors"
    shutil.copy("bundle/synthetic/weights/maskrcnn.safetensors", out)
    before = digest(out)
    assert main([*words, *resume]) == 2
    assert digest(out) == before


def test_weights_to_start_from_are_not_written_over(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, best = tmp_path / "out.safetensors", tmp_path / "out.best.safetensors"
    for path in (out, best):
        shutil.copy("bundle/synthetic/weights/maskrcnn.safetensors", path)
        assert main([*words, "--init", str(path), "--replace"]) == 2
        assert "is read, and would be lost: this command writes" in capsys.readouterr().err
        path.unlink()


def test_the_second_of_two_runs_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with sole_writer(tmp_path / "out.safetensors"):
        assert main(words) == 2
    assert "another run (its process is" in capsys.readouterr().err
    twice = (tmp_path / "a", tmp_path / "b", tmp_path / "a")
    with pytest.raises(InputError, match="writes"), sole_writer(twice[0]), sole_writer(twice[1]), sole_writer(twice[2]):
        pass
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".lock"] == []
    (tmp_path / ".a.lock").write_text("1", encoding="utf-8")  # of a run that was killed
    with sole_writer(tmp_path / "a"):
        pass


def test_what_a_link_in_the_place_of_a_lock_names_stays_as_it_is(tmp_path: Path) -> None:
    other, lock = tmp_path / "other", tmp_path / ".a.lock"
    other.write_bytes(b"kept")
    for link in (lock.symlink_to, lock.hardlink_to):
        link(other)
        with pytest.raises(InputError, match="no lock, but a link"), sole_writer(tmp_path / "a"):
            pass
        lock.unlink()
    lock.symlink_to(tmp_path / "new")  # which would be made
    with pytest.raises(InputError, match="no lock, but a link"), sole_writer(tmp_path / "a"):
        pass
    assert other.read_bytes() == b"kept" and not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "O_NOFOLLOW"), reason="the system follows links")
def test_a_link_that_is_made_while_a_lock_is_opened_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".a.lock").symlink_to(tmp_path / "new")
    monkeypatch.setattr(Path, "is_symlink", lambda _: False)
    with pytest.raises(InputError, match="cannot write"), sole_writer(tmp_path / "a"):
        pass
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--evaluate-every", "1"], "--evaluate-every belongs to --fold"),
        (["--keep-classes"], "--keep-classes belongs to --init"),
        (["--extra-share", "0.5"], "--extra-share belongs to --extra"),
        (["--resume", "--replace"], "give one of them"),
        (["--add-to", "nowhere.json"], "--add-to nowhere.json: no such manifest"),
        (["--add-to", "broken.json"], "broken.json"),
        (
            ["--add-to", "strides.json"],
            "the stem of maskrcnn has the stride 2, and resnet18_narrow is",
        ),
    ],
)
def test_options_without_effect_and_manifests_are_told_before(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    given: list[str],
    told: str,
) -> None:
    manifest = json.loads(Path("bundle/synthetic/manifest.json").read_text(encoding="utf-8"))
    manifest["members"][0]["stem_stride"] = 2
    strides = json.dumps(manifest)
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("{", encoding="utf-8")
    Path("strides.json").write_text(strides, encoding="utf-8")
    assert main([*words, *given]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out.safetensors").exists()


def test_a_detector_of_too_few_classes_for_an_ensemble_is_told_and_not_enlisted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As with one cell type of one's own, whose label is 0. It is good to start from."""
    data = competition(tmp_path / "cells", [("one", "shsy5y", GRID)])
    recipe = write_recipe(tmp_path)
    words = ["train", "--data", str(data), "--recipe", str(recipe), "--out", str(tmp_path / "out.safetensors")]
    assert main(words) == 0
    assert "no ensemble" not in capsys.readouterr().err
    recipe.write_text(RECIPE.replace("num_classes = 3", "num_classes = 1"), encoding="utf-8")
    manifest = shutil.copy("bundle/synthetic/manifest.json", tmp_path)
    assert main([*words, "--replace", "--add-to", str(manifest)]) == 2
    told = "num_classes is 1, and shsy5y, astro, cort are to be found: set it to 3 or more in the recipe's [detector]"
    assert told in capsys.readouterr().err
    assert main([*words, "--replace"]) == 0
    assert f"no ensemble will take this detector, which is good to start from (--init) alone: {told}" in " ".join(
        capsys.readouterr().err.split()
    )


def test_cells_too_small_are_counted_and_refused_where_all_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = [(y, 140, 3, 3) for y in range(5, 100, 8)]
    data = competition(tmp_path / "cells", [("some", "cort", [*GRID, *tiny]), ("none", "astro", tiny)])
    words = ["train", "--recipe", str(write_recipe(tmp_path)), "--out", str(tmp_path / "out.safetensors")]
    assert main([*words, "--data", str(data)]) == 0
    assert "24 of 49 cells have fewer than 12 pixels" in capsys.readouterr().err
    data = competition(tmp_path / "tiny", [("none", "astro", tiny)])
    assert main([*words, "--data", str(data), "--replace"]) == 2
    assert "no cell of 12 pixels or more among the 12" in capsys.readouterr().err


def test_copies_of_the_fold_left_out_are_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [(f"{kind}{n}", kind, GRID) for _, kind, _ in THREE for n in (0, 1)]
    data = competition(tmp_path / "cells", images, [f"x_A{n}-1_Vessel-1_Ph_1" for n in (1, 1, 2, 3, 4, 5)])
    rows = [row for name, kind, cells in images for row in rows_of_cells(name, kind, cells)]
    copy = cv2.imread(str(data / "train" / "cort0.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(data / "train" / "copy.png"), cv2.add(copy, 9))
    write_rows(data, [*rows, *rows_of_cells("copy", "cort", GRID), *rows_of_cells("lost", "cort", GRID)])
    cv2.imwrite(str(data / "train" / "lost.png"), copy[::-1])
    folds = [FoldRow(name, int(name[-1]), kind, "") for name, kind, _ in images]
    write_folds(data / "folds.csv", [*folds, FoldRow("copy", 1, "cort", "")])
    out = tmp_path / "out.safetensors"
    words = ["train", "--data", str(data), "--recipe", str(write_recipe(tmp_path)), "--out", str(out), "--fold", "0"]
    assert main(words) == 0
    told = capsys.readouterr().err
    assert "1 images are pictures of the validation fold too, and are not trained on: copy is cort0" in told
    assert "1 of 8 images" in told and "are in no fold" in told and "lost" in told
    record = read_member_record(out)
    assert record is not None and {picture.image_id for picture in record.images} == {"cort1", "astro1", "shsy5y1"}
    # A member that starts from it has learned from its images too; the tensors are all that safetensors reads.
    second = tmp_path / "second.safetensors"
    assert main([*words[:5], "--out", str(second), "--fold", "1", "--init", str(out)]) == 0
    record = read_member_record(second)
    assert record is not None  # of the first fold's images all but the one whose copy is held out here
    assert {picture.image_id for picture in record.images} == {"cort1", "astro1", "shsy5y1", "astro0", "shsy5y0"}
    assert load_file(second).keys() == load_file(out).keys()
