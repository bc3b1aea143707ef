"""`train --fold K` and `validate --fold K` take complementary images, of a raw folder or a prepared one."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

import kernel.data.annotated
import kernel.training.trainer
from kernel.__main__ import main
from kernel.commands.common import list_fold
from kernel.data.annotated import AnnotatedImage, list_annotated
from kernel.data.annotations import ImageAnnotations
from kernel.data.livecell import LIVECELL_CLASSES
from kernel.data.prepare import prepare
from kernel.data.prepared import PreparedDataset, read_prepared, write_prepared
from kernel.data.sources import read_competition
from kernel.data.splits import FoldRow, belongs_to, read_folds, write_folds
from kernel.data.synthetic.generate import write_dataset
from kernel.errors import InputError
from kernel.log import LOG
from kernel.training.extra import read_extra_images
from kernel.training.run import TrainingRun
from kernel.training.samples import TrainingImage, check_classes, read_training_images
from kernel.tuning.threshold_tuning import tune_ensemble

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "bundle" / "synthetic" / "recipe.toml"


@pytest.fixture(autouse=True)
def same_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line gives the project's logger a handler of its own: not to the tests that follow."""
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(LOG, name, getattr(LOG, name))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A competition folder, and what the preparation makes of it."""
    raw = tmp_path_factory.mktemp("raw")
    write_dataset(raw, {"astro": 6, "cort": 6}, seed=6, shape=(64, 80))
    prepared = tmp_path_factory.mktemp("prepared")
    prepare(read_competition(raw), prepared, "stratified", 3)
    return raw, prepared


@pytest.fixture
def trained_on(monkeypatch: pytest.MonkeyPatch) -> list[list[TrainingImage]]:
    """What `train` hands to the trainer, which does not run."""
    seen: list[list[TrainingImage]] = []

    def remember(run: TrainingRun) -> None:
        run.check()
        seen.append(list(run.images))
        run.out.touch()

    monkeypatch.setattr(kernel.training.trainer, "train_detector", remember)
    return seen


def train_command(data: Path, out: Path, *words: str | Path) -> int:
    return main(["train", "--data", str(data), "--recipe", str(RECIPE), "--out", str(out), *map(str, words)])


def pixels_of(images: list[TrainingImage]) -> set[bytes]:
    return {image.image_bgr.tobytes() for image in images}


def held_out(data: Path, fold: int | None, folds_csv: Path | None = None) -> list[AnnotatedImage]:
    """What `validate` and `tune` take."""
    return list_fold(argparse.Namespace(data=data, fold=fold, folds_csv=folds_csv))


def test_training_and_validation_share_no_image(
    folders: tuple[Path, Path], trained_on: list[list[TrainingImage]], tmp_path: Path
) -> None:
    raw, prepared = folders
    out = tmp_path / "member.safetensors"
    everything = pixels_of(read_training_images(raw))
    assert len(everything) == 12
    for fold in range(3):
        trained_on.clear()
        assert train_command(prepared, out, "--replace", "--fold", str(fold)) == 0
        assert train_command(raw, out, "--replace", "--fold", str(fold), "--folds-csv", prepared / "folds.csv") == 0
        one, other = trained_on
        assert pixels_of(one) == pixels_of(other) and len(one) == 8
        validated = held_out(prepared, fold)
        assert len(validated) == 4
        left_out = {cv2.imread(str(image.path)).tobytes() for image in validated}
        assert left_out == everything - pixels_of(one)
        same = held_out(raw, fold, prepared / "folds.csv")
        assert {image.image_id for image in same} == {image.image_id for image in validated}
        # The competition's folder keeps the competition's masks for truth.
        assert all(isinstance(image.annotations, ImageAnnotations) for image in same)
    trained_on.clear()
    assert train_command(prepared, out, "--replace") == 0
    assert pixels_of(trained_on[0]) == everything and len(held_out(prepared, None)) == 12


def test_annotations_are_read_once(
    folders: tuple[Path, Path],
    trained_on: list[list[TrainingImage]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, prepared = folders
    read: list[Path] = []

    def read_and_count(folder: Path) -> PreparedDataset:
        read.append(folder)
        return read_prepared(folder)

    monkeypatch.setattr(kernel.data.annotated, "read_prepared", read_and_count)
    assert train_command(prepared, tmp_path / "member.safetensors", "--fold", "0") == 0
    assert len(trained_on[0]) == 8 and read == [prepared]


def test_wrong_folds(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    raw, prepared = folders
    out = tmp_path / "member.safetensors"
    for data, words, told in (
        (prepared, ["--fold", "3"], "has no fold 3; it has 0, 1, 2"),
        (raw, ["--fold", "0"], "expected the folds.csv that `prepare --split stratified` writes"),
        (raw, ["--folds-csv", prepared / "folds.csv"], "--folds-csv belongs to --fold"),
    ):
        assert train_command(data, out, *words) == 2
        assert told in capsys.readouterr().err
    assert len(read_folds(prepared / "folds.csv")) == 12


def test_more_classes_than_the_detector_has(
    folders: tuple[Path, Path],
    trained_on: list[list[TrainingImage]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    crops = (np.ones((2, 2), bool),)
    image = TrainingImage(np.zeros((9, 9, 3), np.uint8), crops, np.zeros((1, 2), int), np.array([7]), "shsy5y")
    check_classes([image], 8)
    check_classes([], 3)
    with pytest.raises(InputError, match="cells of class 8, and the detector has 3 classes"):
        check_classes([image], 3)
    images = tuple(
        replace(image, cells=tuple(replace(cell, label=7) for cell in image.cells))
        for image in read_prepared(folders[1]).images
    )
    write_prepared(tmp_path / "eight", PreparedDataset(LIVECELL_CLASSES, images), "eight classes")
    assert "num_classes = 3" in RECIPE.read_text()
    assert train_command(tmp_path / "eight", tmp_path / "member.safetensors") == 2
    assert "raise num_classes" in capsys.readouterr().err and not trained_on


def test_thresholds_of_other_cell_types_are_not_tuned(folders: tuple[Path, Path]) -> None:
    ensemble: Any = SimpleNamespace(settings=SimpleNamespace(thresholds={"shsy5y": None, "cort": None}))
    with pytest.raises(InputError, match="the images are of astro, and there are thresholds for shsy5y, cort"):
        tune_ensemble(ensemble, held_out(folders[1], None))


def torn_folds(data: Path, path: Path) -> dict[str, int]:
    """A folds.csv made elsewhere that puts the images of each well into two folds, but for the last well's."""
    images = list_annotated(data)
    wells = list(dict.fromkeys(belongs_to(image.annotations) for image in images))
    assert len(wells) >= 3 and None not in wells
    folds = {}
    for number, image in enumerate(images):
        well = belongs_to(image.annotations)
        folds[image.image_id] = 1 if well == wells[-1] else number % 2
    write_folds(path, [FoldRow(image_id, fold, "", "") for image_id, fold in folds.items()])
    return folds


def test_wells_that_folds_made_elsewhere_tear_are_not_on_both_sides(
    folders: tuple[Path, Path],
    trained_on: list[list[TrainingImage]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw, _ = folders
    folds_csv, out = tmp_path / "folds.csv", tmp_path / "member.safetensors"
    folds = torn_folds(raw, folds_csv)
    wells = {image.image_id: belongs_to(image.annotations) for image in list_annotated(raw)}
    assert train_command(raw, out, "--fold", "0", "--folds-csv", folds_csv) == 0
    (trained,) = trained_on
    names = {image.name for image in trained}
    validated = {image_id for image_id, fold in folds.items() if fold == 0}
    assert names and not {wells[name] for name in names} & {wells[name] for name in validated}
    left_out = {name for name, fold in folds.items() if fold == 1 and name not in names}
    assert f"{len(left_out)} images are not trained on, as their wells or samples are in fold 0 too" in (
        told := capsys.readouterr().err
    )
    assert "lie in several folds of" in told


def test_where_no_image_of_another_well_is_left_it_is_told(
    folders: tuple[Path, Path],
    trained_on: list[list[TrainingImage]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    raw, _ = folders
    images = list_annotated(raw)
    rows = [FoldRow(image.image_id, number % 2, "", "") for number, image in enumerate(images)]
    write_folds(tmp_path / "folds.csv", rows)
    out = tmp_path / "member.safetensors"
    assert train_command(raw, out, "--fold", "0", "--folds-csv", tmp_path / "folds.csv") == 2
    assert "none is left to train on: make folds by `prepare --split group`" in capsys.readouterr().err
    assert not trained_on


def test_extra_images_of_held_out_wells_are_left_out(folders: tuple[Path, Path]) -> None:
    raw, _ = folders
    images = list_annotated(raw)
    group = belongs_to(images[0].annotations)
    assert group is not None
    classes = images[0].class_names
    extra = read_extra_images([raw], 100, 0, classes, 3, {images[0].image_id}, {group})
    expected = {image.image_id for image in images if belongs_to(image.annotations) != group}
    assert {image.name for image in extra} == expected and expected
