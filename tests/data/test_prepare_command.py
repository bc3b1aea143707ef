"""`python -m kernel prepare` from the command line: its three sources, and what it says of wrong ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from oracles import full_frames, write_submission

from kernel.__main__ import main
from kernel.data.annotated import list_annotated
from kernel.data.splits import read_folds
from kernel.data.synthetic.generate import write_dataset
from kernel.log import LOG

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (64, 80)


@pytest.fixture(autouse=True)
def same_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line gives the project's logger a handler of its own: not to the tests that follow."""
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(LOG, name, getattr(LOG, name))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("competition")
    write_dataset(folder, {"shsy5y": 4, "astro": 8, "cort": 8}, seed=5, shape=SHAPE)
    return folder


def prepare_command(*words: str | Path) -> int:
    return main(["prepare", *map(str, words), "--workers", "1"])


def without_sample_ids(made: Path, tmp_path: Path) -> Path:
    folder = shutil.copytree(made, tmp_path / "unnamed")
    rows = [line.split(",") for line in (folder / "train.csv").read_text().splitlines()]
    place = rows[0].index("sample_id")
    lines = [",".join([*row[:place], "", *row[place + 1 :]]) for row in rows[1:]]
    (folder / "train.csv").write_text("\n".join([",".join(rows[0]), *lines]) + "\n")
    return folder


def test_competition_with_corrections_in_its_own_process(made: Path, tmp_path: Path) -> None:
    fix = tmp_path / "hck_fix"
    fix.mkdir()
    astro = [image for image in list_annotated(made) if image.cell_type == "astro"]
    for image in astro:
        cv2.imwrite(str(fix / f"{image.image_id}.png"), np.full((*SHAPE, 3), 255, np.uint8))
    x0, _, x1, _ = astro[0].masks().boxes_xyxy[0]
    middle = int(x0 + x1) // 2
    right = np.zeros((*SHAPE, 3), np.uint8)
    right[:, middle:] = 255
    cv2.imwrite(str(fix / f"{astro[0].image_id}.png"), right)
    words = ["--competition", made, "--astro-fix", fix, "--folds", "2", "--workers", "2", "--out", tmp_path / "out"]
    command = [sys.executable, "-m", "kernel", "prepare", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "20 images and" in done.stdout and "corrected masks: 8 images" in done.stdout
    assert "split group: 2 folds of" in done.stdout
    assert "preparing: 100%" in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["cleared_pixels"] > 0
    (first,) = (image for image in list_annotated(tmp_path / "out") if image.image_id == astro[0].image_id)
    assert not full_frames(first.masks())[:, :, :middle].any()


def test_missing_sample_ids(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = without_sample_ids(made, tmp_path)
    out = tmp_path / "out"
    assert prepare_command("--competition", folder, "--out", out) == 2
    told = capsys.readouterr().err
    assert "20 of 20 lack it" in told and "'stratified'" in told and "--or-next-best" in told
    assert not out.exists()
    assert prepare_command("--competition", folder, "--out", out, "--or-next-best") == 0
    assert "split stratified: 5 folds of 4, 4, 4, 4, 4 images" in capsys.readouterr().out
    assert prepare_command("--competition", folder, "--out", out, "--split", "stratified", "--folds", "2") == 0
    assert set(read_folds(out / "folds.csv").values()) == {0, 1}
    assert "removed" not in capsys.readouterr().err
    assert prepare_command("--competition", folder, "--out", out, "--split", "none") == 0
    assert not (out / "folds.csv").exists()
    assert f"{out / 'folds.csv'} of an earlier preparation is removed" in capsys.readouterr().err


def test_pseudo_labels(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = [image for image in list_annotated(made) if image.cell_type == "cort"]
    rows = [(image.image_id, image.annotations.rles[:1]) for image in images]  # type: ignore[attr-defined]
    write_submission(tmp_path / "submission.csv", rows, {image_id: SHAPE for image_id, _ in rows})
    words = ["--pseudo-labels", tmp_path / "submission.csv", "--images", made / "train", "--out", tmp_path / "out"]
    assert prepare_command(*words, "--cell-types", "cort") == 0
    told = capsys.readouterr().out
    assert "pseudo-labels: 8 images and 8 cells" in told and "annotations.json, report.json" in told
    assert not (tmp_path / "out" / "folds.csv").exists()
    assert prepare_command(*words, "--cell-types", "cort", "--split", "stratified", "--folds", "2") == 0
    assert len(read_folds(tmp_path / "out" / "folds.csv")) == 8


def test_livecell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = []
    (tmp_path / "images").mkdir()
    for number, well in enumerate(("A1", "A2", "B1"), start=1):
        name = f"BV2_Phase_{well}_1_00d00h00m_1.tif"
        pixels = np.random.default_rng(number).integers(0, 255, (6, 10)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / "images" / name), pixels)
        images.append({"id": number, "file_name": name, "height": 6, "width": 10})
    square = [[2, 1, 6, 1, 6, 4, 2, 4]]
    cells = [{"id": n, "image_id": n, "category_id": 1, "segmentation": square, "iscrowd": 0} for n in (1, 2, 3)]
    data = {"images": images, "annotations": cells, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "coco.json").write_text(json.dumps(data))
    words = ["--livecell-annotations", tmp_path / "coco.json", "--livecell-images", tmp_path / "images"]
    assert prepare_command(*words, "--folds", "3", "--out", tmp_path / "out") == 0
    assert "bv2: 3 of 3 images, 3 of 3 cells" in capsys.readouterr().out
    assert prepare_command(*words, "--folds", "3", "--cell-type", "cort", "--out", tmp_path / "typed") == 0
    assert "cort: 3 of 3 images, 3 of 3 cells" in capsys.readouterr().out
    assert sorted(read_folds(tmp_path / "out" / "folds.csv").values()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--competition", "x", "--cell-types", "cort"], "--cell-types belongs to --pseudo-labels"),
        (["--competition", "x", "--cell-type", "cort"], "--cell-type belongs to --pseudo-labels"),
        (["--pseudo-labels", "x", "--images", "y"], "--pseudo-labels needs --cell-types as well"),
        (["--livecell-annotations", "x"], "--livecell-annotations needs --livecell-images as well"),
        (["--livecell-annotations", "x", "--livecell-images", "y", "--astro-fix", "z"], "belongs to --competition"),
        (["--competition", "nowhere"], "no folder nowhere/train"),
    ],
)
def test_options_that_do_not_fit(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare_command(*words, "--out", tmp_path / "out") == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_is_told_on_the_screen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "competition"
    (folder / "train" / ".thumbs").mkdir(parents=True)
    for name in ("a.png", "b.bmp", ".thumbs/a.png"):
        cv2.imwrite(str(folder / "train" / name), np.zeros((6, 10), np.uint8))
    (folder / "train.csv").write_text("id,annotation,width,height,cell_type\na,99 9,10,6,cort\na,98 9,10,6,cort\n")
    assert prepare_command("--competition", folder, "--out", tmp_path / "out", "--split", "none") == 2
    told = capsys.readouterr().err
    assert "train: 1 entry is passed over: 1 of another format (b.bmp)" in told
    assert "no image is left to prepare, of 2 rows read\n  cells dropped: 2, row 2 (a) first: a run leaves" in told
    assert json.loads((tmp_path / "out" / "report.json").read_text())["reasons"][0]["count"] == 2


def test_one_source_is_needed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in ([], ["--competition", "a", "--pseudo-labels", "b"]):
        with pytest.raises(SystemExit) as stopped:
            prepare_command(*words, "--out", tmp_path)
        assert stopped.value.code == 2
    assert "--competition" in capsys.readouterr().err
