"""Extra images: how often they are drawn, what their cells are called, which are left out, what a run makes of them."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from cases import forget_samples
from slow_samples import assert_equal_samples
from tiny_detectors import tiny_spec

import kernel.training.trainer
from kernel.__main__ import main
from kernel.data.annotated import list_annotated
from kernel.data.livecell import LIVECELL_CLASSES
from kernel.data.prepared import PreparedDataset, read_prepared, write_prepared
from kernel.data.splits import FoldRow, write_folds
from kernel.data.synthetic.generate import write_dataset
from kernel.errors import InputError, RunError
from kernel.settings import CELL_TYPES
from kernel.training.crops import CropDataset
from kernel.training.extra import ExtraSchedule, label_table, read_entries_as, read_extra_images
from kernel.training.run import TrainingRun
from kernel.training.samples import TrainingImage, read_training_images
from kernel.training.settings import TrainSettings
from kernel.training.trainer import Trainer, train_detector

SHAPE = (64, 80)
TINY = TrainSettings(iterations=4, batch_size=2, crop_size=64, rpn_nms_pre=50, rois_per_image=16, extra_share=0.9)


def plain_image(gray: int, kind: str = "cort", label: int = 2) -> TrainingImage:
    """One gray level, and a cell in the middle that every crop meets."""
    crops = (np.ones((30, 30), bool),)
    pixels = np.full((64, 64, 3), gray, np.uint8)
    return TrainingImage(pixels, crops, np.array([[17, 17]]), np.array([label]), kind, name=f"gray {gray}")


@pytest.fixture(scope="module")
def competition(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each type in two folds, as the competition has them, with folds.csv."""
    folder = tmp_path_factory.mktemp("competition")
    write_dataset(folder, dict.fromkeys(CELL_TYPES, 2), seed=1, shape=SHAPE)
    forget_samples(folder)
    rows = [FoldRow(image.image_id, n % 2, image.cell_type, "") for n, image in enumerate(list_annotated(folder))]
    write_folds(folder / "folds.csv", rows)
    return folder


def prepared_as(folder: Path, source: Path, classes: tuple[str, ...], labels: list[int]) -> Path:
    """A prepared folder of the images of `source`, one of `labels` for all cells of each."""
    write_dataset(source, dict.fromkeys(CELL_TYPES, -(-len(labels) // 3)), seed=2, shape=SHAPE)
    assert main(["prepare", "--competition", str(source), "--split", "none", "--out", str(folder)]) == 0
    images = [
        replace(image, cell_type=classes[label], cells=tuple(replace(cell, label=label) for cell in image.cells))
        for image, label in zip(read_prepared(folder).images, labels, strict=False)
    ]
    write_prepared(folder, PreparedDataset(classes, tuple(images)), "a test's")
    return folder


@pytest.fixture(scope="module")
def livecell(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of each of LIVECell's classes, in their order."""
    folder = tmp_path_factory.mktemp("livecell")
    return prepared_as(folder / "prepared", folder / "source", LIVECELL_CLASSES, list(range(8)))


@pytest.mark.parametrize(
    ("share", "until", "progress", "chance"),
    [
        (0.5, 0.8, 0.0, 0.5),
        (0.5, 0.8, 0.2, 0.375),
        (0.5, 0.8, 0.4, 0.25),
        (0.5, 0.8, 0.6, 0.125),
        (0.5, 0.8, 0.8, 0.0),
        (0.5, 0.8, 0.9, 0.0),
        (0.5, 0.8, 1.0, 0.0),
        (1.0, 1.0, 0.0, 1.0),
        (1.0, 1.0, 0.75, 0.25),
        (1.0, 1.0, 1.0, 0.0),
        (0.6, 0.5, 0.25, 0.3),
        (0.0, 0.5, 0.0, 0.0),
    ],
)
def test_the_chance_falls_linearly_to_zero(share: float, until: float, progress: float, chance: float) -> None:
    assert ExtraSchedule(share, until).chance(progress) == pytest.approx(chance)


@pytest.mark.parametrize(
    ("extra", "classes", "num_classes", "table"),
    [
        # skbr3, a172, huh7 have places of the competition's types; shsy5y is one of these.
        (LIVECELL_CLASSES, CELL_TYPES, 8, (7, 7, 7, 3, 4, 5, 6, 0)),
        (LIVECELL_CLASSES, CELL_TYPES, 4, (3, 3, 3, 3, 3, 3, 3, 0)),
        (LIVECELL_CLASSES, CELL_TYPES, 3, (None,) * 7 + (0,)),
        (CELL_TYPES, CELL_TYPES, 8, (0, 1, 2)),
        (CELL_TYPES, CELL_TYPES, 3, (0, 1, 2)),
        (("cort", "shsy5y"), CELL_TYPES, 3, (2, 0)),
        # Pseudo-labels in the pretraining.
        (CELL_TYPES, LIVECELL_CLASSES, 8, (7, None, None)),
        (CELL_TYPES, LIVECELL_CLASSES, 10, (7, 9, 9)),
        ((), CELL_TYPES, 8, ()),
    ],
)
def test_what_classes_are_called(
    extra: tuple[str, ...], classes: tuple[str, ...], num_classes: int, table: tuple[int | None, ...]
) -> None:
    assert label_table(extra, classes, num_classes) == table


def test_as_many_samples_are_extra_as_the_schedule_says() -> None:
    ours, extra = [plain_image(10)], [plain_image(20), plain_image(30)]
    length = 1000
    dataset = CropDataset(ours, length, 64, 0, 0.0, extra, ExtraSchedule(0.5, 0.8).chance)
    drawn = [dataset[index].name.split(" at ")[0] for index in range(length)]
    for start, expected in ((0, 43.75), (200, 31.25), (400, 18.75), (600, 6.25)):  # the mean of a piece of 200, in %
        count = sum(name != "gray 10" for name in drawn[start : start + 200])
        assert abs(count / 2 - expected) < 12  # three standard deviations and more
    assert set(drawn[800:]) == {"gray 10"}
    counts = Counter(drawn)
    assert 0.6 < counts["gray 20"] / counts["gray 30"] < 1.6


def test_the_other_samples_are_those_without_extra_images() -> None:
    ours = [plain_image(10, "shsy5y", 0), plain_image(11, "astro", 1), plain_image(12)]
    chance = ExtraSchedule(0.5, 0.8).chance
    mixed = CropDataset(ours, 60, 64, 5, 0.3, [plain_image(99)], chance)
    plain = CropDataset(ours, 60, 64, 5, 0.3)
    extra = [index for index in range(60) if mixed.is_extra(index)]
    assert 4 < len(extra) < 24 and not any(plain.is_extra(index) for index in range(60))
    for index in range(60):
        if index in extra:
            assert mixed[index].name.startswith("gray 99")
        else:
            assert_equal_samples(mixed[index], plain[index])
    again = CropDataset(ours, 60, 64, 5, 0.3, [plain_image(99)], chance)
    assert [index for index in reversed(range(60)) if again.is_extra(index)] == extra[::-1]
    other = CropDataset(ours, 60, 64, 6, 0.3, [plain_image(99)], chance)
    assert [index for index in range(60) if other.is_extra(index)] != extra


def test_livecells_cells_are_called_as_the_table_says(livecell: Path) -> None:
    by_name = {image.image_id: image.class_names[image.labels[0]] for image in list_annotated(livecell)}
    images = read_extra_images([livecell], 800, 0, CELL_TYPES, 8)
    assert {by_name[image.name]: set(image.labels.tolist()) for image in images} == {
        "skbr3": {7}, "a172": {7}, "huh7": {7}, "bv2": {3}, "mcf7": {4}, "bt474": {5}, "skov3": {6}, "shsy5y": {0},
    }  # fmt: skip
    (only,) = read_extra_images([livecell], 800, 0, CELL_TYPES, 3)
    assert (by_name[only.name], set(only.labels.tolist())) == ("shsy5y", {0})
    # In the pretraining they are what they are.
    own = {image.name: image.labels[0] for image in read_extra_images([livecell], 800, 0, LIVECELL_CLASSES, 8)}
    assert own == {name: LIVECELL_CLASSES.index(line) for name, line in by_name.items()}


def test_a_member_that_is_trained_on_keeps_its_classes(livecell: Path) -> None:
    """A folder of other classes trains it on what it knows by name, not on what is at the same index."""
    entries = [entry for entry in list_annotated(livecell) if entry.cell_type in ("bv2", "shsy5y")]
    images = read_entries_as(entries, CELL_TYPES, 8)
    assert {image.cell_type: set(image.labels.tolist()) for image in images} == {"bv2": {3}, "shsy5y": {0}}
    with pytest.raises(InputError, match="has cells of bv2, and the detector's 3 classes are shsy5y, astro, cort"):
        read_entries_as(entries, CELL_TYPES, 3)


@pytest.mark.parametrize("command", ["train", "train-members"])
def test_retraining_takes_labels_by_name(
    livecell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    trained: list[TrainingRun] = []

    class Enough(Exception):
        pass

    def note(run: TrainingRun) -> None:
        trained.append(run)
        raise Enough

    monkeypatch.setattr("kernel.training.trainer.train_detector", note)
    monkeypatch.setattr("kernel.training.retraining.train_detector", note)
    out = tmp_path / ("mine.safetensors" if command == "train" else "mine")
    with pytest.raises(Enough):
        main([command, "--from", "shipped", "--data", str(livecell), "--out", str(out), "--device", "cpu"])
    labels = {image.cell_type: set(image.labels.tolist()) for image in trained[0].images}
    assert labels["shsy5y"] == {0} and labels["a172"] == {7}


def test_a_folder_as_the_competition_has_it_keeps_its_labels(competition: Path) -> None:
    extra = read_extra_images([competition], 800, 0, CELL_TYPES, 3)
    for one, other in zip(extra, read_training_images(competition), strict=True):
        assert one.name == other.name and one.labels.tolist() == other.labels.tolist()


def test_at_most_so_many_images_are_drawn_by_the_seed(livecell: Path, competition: Path) -> None:
    draws = [
        [image.name for image in read_extra_images([livecell, competition], 5, seed, CELL_TYPES, 8)]
        for seed in (0, 0, 1, 2)
    ]
    assert draws[0] == draws[1] and len(set(map(tuple, draws))) == 3
    assert all(len(set(names)) == 5 for names in draws)
    assert len(read_extra_images([livecell, competition], 14, 0, CELL_TYPES, 8)) == 14


def test_images_of_the_validation_fold_are_left_out(competition: Path) -> None:
    held_out = {image.image_id for image in list_annotated(competition, [0])}
    names = {image.name for image in read_extra_images([competition], 800, 0, CELL_TYPES, 3, held_out)}
    assert names == {image.image_id for image in list_annotated(competition, [1])}
    everything = {image.image_id for image in list_annotated(competition)}
    with pytest.raises(InputError, match=r"none of its 6 annotated images.*6 left out, for the validation fold"):
        read_extra_images([competition], 800, 0, CELL_TYPES, 3, everything)


def test_a_folder_of_which_nothing_can_be_used_is_told(tmp_path: Path, livecell: Path) -> None:
    folder = prepared_as(tmp_path / "prepared", tmp_path / "source", LIVECELL_CLASSES, [3, 3, 5])
    told = r"none of its 3 .*2 left out, for the detector's 3 classes have no place for bv2; 1 .* for bt474"
    with pytest.raises(InputError, match=told):
        read_extra_images([livecell, folder], 800, 0, CELL_TYPES, 3)
    with pytest.raises(InputError, match="cannot read annotations"):
        read_extra_images([tmp_path / "none"], 800, 0, CELL_TYPES, 3)


def run_of(out: Path, settings: TrainSettings = TINY, extra: int = 2, resume: bool = False) -> TrainingRun:
    images = [plain_image(100), plain_image(140, "astro", 1)]
    mixed = [plain_image(30 + n) for n in range(extra)]
    return TrainingRun(tiny_spec("maskrcnn"), settings, images, out, extra=mixed, resume=resume)


@pytest.mark.usefixtures("wheels_site")
def test_a_run_with_extra_images_is_resumed_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken, plain = (tmp_path / f"{name}.safetensors" for name in ("whole", "broken", "plain"))
    train_detector(run_of(whole))
    train_detector(run_of(plain, extra=0))
    written = json.loads(whole.with_suffix(".json").read_text(encoding="utf-8"))
    assert (written["images"], written["extra_images"]) == (2, 2)

    take_step = Trainer.take_step

    def fail_at_two(trainer: Trainer, *arguments: object) -> object:
        if trainer.step == 2:
            raise RunError("power cut")
        return take_step(trainer, *arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Trainer, "take_step", fail_at_two)
    settings = replace(TINY, checkpoint_every=1)
    with pytest.raises(RunError, match="power cut"):
        train_detector(run_of(broken, settings))
    monkeypatch.setattr(Trainer, "take_step", take_step)
    for extra in (0, 3):
        with pytest.raises(InputError, match=rf"another run \(extra_images: stored 2, wanted {extra}\)"):
            train_detector(run_of(broken, settings, extra=extra, resume=True))
    train_detector(run_of(broken, settings, resume=True))
    one, two, three = (safetensors.torch.load_file(path) for path in (whole, broken, plain))
    for key, value in one.items():
        assert torch.equal(two[key], value), key
    assert not all(torch.equal(three[key], value) for key, value in one.items())


def test_settings_without_meaning_do_not_part_runs(tmp_path: Path) -> None:
    out = tmp_path / "member.safetensors"
    changed = replace(TINY, extra_share=0.25)
    assert run_of(out, changed, extra=0).fingerprint == run_of(out, extra=0).fingerprint
    assert run_of(out, changed).fingerprint != run_of(out).fingerprint
    heads = replace(TINY, heads_dtype="bfloat16")
    assert run_of(out, heads, extra=0).fingerprint != run_of(out, extra=0).fingerprint


def test_extra_images_that_are_never_drawn_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "member.safetensors"
    with pytest.raises(InputError, match="extra_share is 0"):
        run_of(out, replace(TINY, extra_share=0.0)).check()
    run_of(out, replace(TINY, extra_share=0.0), extra=0).check()
    for changes, told in (
        ({"extra_until": 0.0}, "extra_until is 0"),
        ({"extra_share": 1.5}, "extra_share is 1.5, it must be from 0 to 1"),
        ({"extra_images": 0}, "extra_images is 0, it must be at least 1"),
    ):
        with pytest.raises(InputError, match=re.escape(told)):
            replace(TINY, **changes).check("the recipe")


@pytest.mark.usefixtures("wheels_site")
def test_the_command_mixes_in_and_validates_on_its_fold_alone(
    competition: Path, livecell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[TrainingRun] = []

    def remember(run: TrainingRun) -> None:
        run.check()
        runs.append(run)
        run.out.touch()

    monkeypatch.setattr(kernel.training.trainer, "train_detector", remember)
    words = ["--kind", "maskrcnn", "--encoder", "resnet18_narrow", "--out", str(tmp_path / "member.safetensors")]
    pseudo = shutil.copytree(competition, tmp_path / "pseudo")  # of all images, those held out among them
    extra = ["--extra", str(livecell), str(pseudo), "--extra-images", "20", "--extra-share", "0.25"]
    assert main(["train", "--data", str(competition), "--fold", "1", *words, *extra]) == 0
    (run,) = runs
    of_fold = {fold: {image.image_id for image in list_annotated(competition, [fold])} for fold in (0, 1)}
    assert {image.image_id for image in run.validation} == of_fold[1]
    assert {image.name for image in run.images} == of_fold[0]
    lines = {image.image_id for image in list_annotated(livecell)}
    assert {image.name for image in run.extra} == of_fold[0] | lines and len(run.extra) == 11
    assert (run.settings.extra_images, run.settings.extra_share, run.settings.extra_until) == (20, 0.25, 0.8)
