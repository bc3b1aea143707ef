"""The commands from synthetic cells to tuned thresholds, in process, on a member too small to find anything well."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kernel.commands.tune
import kernel.local_weights
import kernel.scoring.scores
import kernel.training.trainer
import kernel.tuning.evidence
import kernel.tuning.stage_scores
import kernel.tuning.threshold_tuning
from kernel.__main__ import main
from kernel.data.annotated import AnnotatedImage, list_annotated
from kernel.data.annotations import ImageAnnotations
from kernel.data.splits import FoldRow, write_folds
from kernel.data.synthetic.generate import write_dataset
from kernel.ensemble.ensemble import Ensemble
from kernel.errors import RunError
from kernel.files import file_sha256
from kernel.images.reading import read_image
from kernel.log import LOG
from kernel.manifest.reader import read_manifest
from kernel.masks.instances import CellMasks, Instances
from kernel.models.checkpoints import load_detector, recognise_checkpoint
from kernel.models.configs import DetectorSpec
from kernel.scoring.predicting import FoldEnsembles, PredictionJob
from kernel.scoring.scores import ImageResult
from kernel.settings import CELL_TYPES, COMPETITION_SHAPE
from kernel.tuning.plan import TuningPlan
from kernel.tuning.stage_scores import StagePoint, StageScores
from kernel.tuning.threshold_search import TuningImage
from kernel.tuning.threshold_tuning import TypeTuning, tune_cell_type

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[1]
ENCODER = "resnet18_narrow"
RECIPE = f"""
[detector]
kind = "maskrcnn"
encoder = "{ENCODER}"
num_classes = 3
neck_channels = 16
fc_channels = 16
mask_channels = 16

[training]
iterations = 2
batch_size = 2
crop_size = 64
rpn_nms_pre = 50
rois_per_image = 16
"""
#: Low enough that a member that has learnt nothing finds cells; written in part, so that tuning must add keys.
LENIENT = {
    "rpn_nms_pre": 30,
    "rpn_score_threshold": 0.0,
    "rpn_max_per_img": 20,
    "rcnn_score_threshold": 0.0,
    "confidence": 0.0,
    "min_size": 5,
}


@pytest.fixture(scope="module", autouse=True)
def log_as_before() -> Iterator[None]:
    """`main` shows the log in its own way, which other tests shall not inherit."""
    handlers, level, propagate = LOG.handlers, LOG.level, LOG.propagate
    yield
    LOG.handlers, LOG.propagate = handlers, propagate
    LOG.setLevel(level)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image per cell type, small ones."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, dict.fromkeys(CELL_TYPES, 1), seed=3, shape=(96, 128))
    return folder


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def weights(wheels_site: Path, data: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a member of each of two kinds, as the command trains them."""
    folder = tmp_path_factory.mktemp("weights")
    for kind in ("maskrcnn", "htc"):
        out = folder / f"{kind}.safetensors"
        arguments = ["--data", str(data), "--recipe", str(recipe), "--out", str(out), "--kind", kind]
        assert main(["train", *arguments]) == 0
    return folder


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """An ensemble of the two members, to be changed."""
    content: dict[str, Any] = {
        "notes": "Für Versuche.",
        "kernel": {"id": "me/some-kernel", "title": "Some kernel", "competition": "some-competition"},
        "wheels_dataset": "me/wheels",
        "weight_datasets": ["me/some-weights"],
        "members": [
            {
                "name": f"my-{kind}",
                "kind": kind,
                "encoder": ENCODER,
                "use_for": list(CELL_TYPES),
                "file": f"{kind}.safetensors",
            }
            for kind in ("maskrcnn", "htc")
        ],
        "ensemble": {
            "use_tta": False,
            "use_tta_masks": False,
            "thresholds": {cell_type: dict(LENIENT) for cell_type in CELL_TYPES},
        },
    }
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def ensemble_arguments(manifest: Path, weights: Path, data: Path) -> list[str]:
    return ["--manifest", str(manifest), "--weights-dir", str(weights), "--data", str(data)]


def scores_told(text: str) -> dict[str, float]:
    """By name, the overall scores of what `validate` printed."""
    return {name: float(score) for name, score in re.findall(r"^(\S+): (\d\.\d{4}) on 3 images \(", text, re.MULTILINE)}


def test_synthesize_writes_what_the_other_commands_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cells"
    assert main(["synthesize", str(out), "--images", "1", "--seed", "4"]) == 0
    assert capsys.readouterr().out == f"1 images of each of shsy5y, astro, cort: {out}\n"
    images = list_annotated(out)
    assert [image.cell_type for image in images] == list(CELL_TYPES)
    assert read_image(images[0].path).shape == (*COMPETITION_SHAPE, 3)


def test_synthesized_images_follow_from_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_small(out: Path, counts: dict[str, int], seed: int) -> None:
        write_dataset(out, counts, seed, (64, 64))

    monkeypatch.setattr("kernel.commands.synthesize.write_dataset", write_small)
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert main(["synthesize", str(tmp_path / name), "--images", "2", "--seed", seed]) == 0
    first, again, other = ((tmp_path / name / "train.csv").read_text(encoding="utf-8") for name in "abc")
    assert first == again
    assert {row.split(",")[0] for row in first.splitlines()[1:]}.isdisjoint(
        row.split(",")[0] for row in other.splitlines()[1:]
    )


def test_train_writes_weights_and_log(weights: Path) -> None:
    for kind in ("maskrcnn", "htc"):
        path = weights / f"{kind}.safetensors"
        assert recognise_checkpoint(path) == DetectorSpec(kind, ENCODER, 3, 16, 16, 16)
        assert load_detector(path, kind, ENCODER) is not None
        assert json.loads((weights / f"{kind}.json").read_text(encoding="utf-8"))["detector"]["kind"] == kind
        (line,) = (weights / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
        assert json.loads(line)["loss"] > 0


def test_the_command_line_goes_before_the_recipe(
    weights: Path, data: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "member.safetensors"
    arguments = ["train", "--data", str(data), "--recipe", str(recipe), "--out", str(out)]
    given = ["--kind", "cascade", "--iterations", "1", "--seed", "9", "--workers", "0", "--half"]
    assert main([*arguments, *given, "--init", str(weights / "maskrcnn.safetensors")]) == 0
    assert capsys.readouterr().out.startswith(f"weights: {out}\n")
    written = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert (written["detector"]["kind"], written["training"]["iterations"], written["training"]["seed"]) == (
        "cascade",
        1,
        9,
    )
    assert recognise_checkpoint(out).kind == "cascade"
    assert out.stat().st_size < 0.6 * (weights / "maskrcnn.safetensors").stat().st_size


def test_validate_prints_the_scores(
    manifest: Path, weights: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", *ensemble_arguments(manifest, weights, data)]) == 0
    out = capsys.readouterr().out
    assert list(scores_told(out)) == ["ensemble"]
    assert re.search(r"\(astro \d\.\d+, cort \d\.\d+, shsy5y \d\.\d+\); cell type right on [0-3]; ", out)
    assert [line for line in out.splitlines() if "learned from" in line or "of these, unseen" in line]
    assert not (data / "scores.csv").exists()


def test_validate_scores_each_member_and_writes_pictures(
    manifest: Path, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "results"
    arguments = ["validate", *ensemble_arguments(manifest, weights, data), "--out", str(out), "--each-member"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    told = scores_told(text)
    assert list(told) == ["ensemble", "my-maskrcnn", "my-htc"]
    assert f"scores.csv and pictures: {out}\n" in text
    with (out / "scores.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    images = list_annotated(data)
    assert [(row["id"], row["cell_type"]) for row in rows] == [(image.image_id, image.cell_type) for image in images]
    assert [int(row["cells"]) for row in rows] == [len(image.annotations.rles) for image in images]
    assert sum(float(row["score"]) for row in rows) / 3 == pytest.approx(told["ensemble"], abs=1e-4)
    assert any(int(row["found_cells"]) > 0 for row in rows)
    assert sorted(path.name for path in (out / "pictures").iterdir()) == sorted(
        f"{image.cell_type}_{image.image_id}.png" for image in images
    )
    assert sorted(path.name for path in out.iterdir()) == ["pictures", "report", "report.html", "scores.csv"]
    assert [path.name for path in out.parent.iterdir()] == ["results"]

    (out / "scores.csv").write_text("old", encoding="utf-8")
    assert main(arguments[:-1]) == 0
    assert (out / "scores.csv").read_text(encoding="utf-8").startswith("id,cell_type,")


def test_each_member_is_scored_without_the_others(
    manifest: Path, weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {("my-maskrcnn", "my-htc"): 0.5, ("my-maskrcnn",): 0.25, ("my-htc",): 0.75}

    def validate(jobs: Sequence[PredictionJob], *rest: object) -> list[ImageResult]:
        score = scores[tuple(member.name for member in jobs[0].files.manifest.members)]
        return [ImageResult(job.image.image_id, "cort", "cort", "cort", 1, 1, score, 0.1, ()) for job in jobs]

    monkeypatch.setattr(kernel.scoring.scores, "validate_jobs", validate)
    assert main(["validate", *ensemble_arguments(manifest, weights, data), "--each-member"]) == 0
    assert scores_told(capsys.readouterr().out) == {"ensemble": 0.5, "my-maskrcnn": 0.25, "my-htc": 0.75}


def test_tune_of_too_few_images_leaves_the_manifest_and_says_so(
    manifest: Path, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = manifest.read_bytes()
    grid = tmp_path / "grid.toml"
    grid.write_text("mask_threshold = [0.45, 0.5]\nmin_size = [5]\nconfidence = [0.1, 0.5, 1]\n", encoding="utf-8")
    arguments = ["tune", *ensemble_arguments(manifest, weights, data), "--grid", str(grid)]
    assert main(arguments) == 0
    dry = capsys.readouterr().out
    told = re.findall(r"^(\w+): 0\.\d{4} before, \d\.\d{4} after, on the (\d) images? tuned", dry, re.MULTILINE)
    counts = {cell_type: int(count) for cell_type, count in told}
    every = counts.pop("all", 3)  # of a single type no line tells of all
    assert counts.keys() <= {*CELL_TYPES} and sum(counts.values()) == every == 3
    assert dry.count("no gain: so few images cannot tell one from noise") == len(counts)
    assert not manifest.with_name("manifest-tuning").exists()

    assert main([*arguments, "--write"]) == 0
    folder = manifest.with_name("manifest-tuning")
    assert capsys.readouterr().out == f"{dry}evidence: {folder}\nnothing to write: {manifest} stays as it is\n"
    assert manifest.read_bytes() == before
    assert json.loads((folder / "tuning.json").read_text(encoding="utf-8"))["overall"]["images"] == 3
    assert (folder / "manifest.diff").read_text(encoding="utf-8") == ""


def test_tune_looks_for_the_weights_once(
    manifest: Path, weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed: list[str] = []

    def sum_of(path: Path) -> str:
        summed.append(path.name)
        return file_sha256(path)

    def fail(ensemble: Ensemble, given: Sequence[AnnotatedImage], plan: TuningPlan) -> None:
        assert len(ensemble.members) == 2
        raise RunError("it would take long")

    monkeypatch.setattr(kernel.local_weights, "file_sha256", sum_of)
    monkeypatch.setattr(kernel.tuning.threshold_tuning, "tune_ensemble", fail)
    assert main(["tune", *ensemble_arguments(manifest, weights, data)]) == 1
    assert summed == ["maskrcnn.safetensors", "htc.safetensors"]


def test_tune_writes_thresholds_with_their_evidence_or_nothing(
    manifest: Path, weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = manifest.read_bytes()
    folds = {image.image_id: index % 2 for index, image in enumerate(list_annotated(data))}
    folds_csv = manifest.with_name("folds.csv")
    write_folds(folds_csv, [FoldRow(image_id, fold, "cort", "") for image_id, fold in folds.items()])

    def tuned(ensemble: Ensemble, given: Sequence[AnnotatedImage], plan: TuningPlan) -> dict[str, TypeTuning]:
        assert plan.folds == folds
        # A cell of score 0.8 where there is none: the first confidence above it is right.
        cell = Instances((np.full((9, 9), 255, np.uint8),), np.ones((1, 2)), np.zeros((1, 4)), [0.8], [0], (20, 20))
        seen = [TuningImage(str(index), cell, CellMasks.empty((20, 20))) for index in range(6)]
        return {"cort": tune_cell_type("cort", seen, ensemble.settings.thresholds["cort"], replace(plan, folds=None))}

    def fail(*given: object) -> None:
        raise RunError("the disk is full")

    monkeypatch.setattr(kernel.tuning.threshold_tuning, "tune_ensemble", tuned)
    arguments = ["tune", *ensemble_arguments(manifest, weights, data), "--folds-csv", str(folds_csv), "--write"]
    with monkeypatch.context() as broken:
        broken.setattr(kernel.tuning.evidence, "write_evidence", fail)
        assert main(arguments) == 1
    assert manifest.read_bytes() == before
    assert sorted(path.name for path in manifest.parent.iterdir()) == ["folds.csv", "manifest.json"]
    capsys.readouterr()

    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "cort: 0.0000 before, 1.0000 after" in out and out.endswith(f"written: {manifest}\n")
    old, new = json.loads(before), json.loads(manifest.read_bytes())
    assert new["ensemble"]["thresholds"]["cort"].pop("confidence") == 0.85
    old["ensemble"]["thresholds"]["cort"].pop("confidence")
    assert new == old
    assert '"notes": "Für Versuche."' in manifest.read_text(encoding="utf-8")
    folder = manifest.with_name("manifest-tuning")
    difference = (folder / "manifest.diff").read_text(encoding="utf-8")
    assert difference in out and sum(line[0] in "+-" for line in difference.splitlines()) == 4
    # An earlier tuning's folder is replaced, one with other files never.
    assert main(arguments) == 0
    (folder / "notes.txt").touch()
    assert main(arguments) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "-1"], "--seed -1: it must be from 0"),
        (["--level", "1"], "--level 1.0: it must be from 0.001, the least that the test can tell, to below 1"),
        (["--level", "0.0005"], "--level 0.0005: it must be from 0.001"),
        (["--grid", "none.toml"], "cannot read the grid none.toml"),
    ],
)
def test_a_wrong_plan_is_told(
    given: dict[str, dict[str, Path]], words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command_line("tune", **given["tune"]), *words]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--stages"]])
def test_folds_of_other_images_are_told_before_the_weights_are_read(
    manifest: Path, data: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folds_csv = tmp_path / "other.csv"
    write_folds(folds_csv, [FoldRow("another", 0, "cort", "")])
    arguments = ["tune", *ensemble_arguments(manifest, tmp_path / "none", data), "--folds-csv", str(folds_csv)]
    assert main([*arguments, *words]) == 2
    assert "the folds lack 3 of the images" in capsys.readouterr().err


def test_tune_of_the_stages_writes_all_that_it_chose_at_once(
    manifest: Path, weights: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["tune", *ensemble_arguments(manifest, weights, data), "--stages"]
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["members"][0]["use_for"].append("cls")
    manifest.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    grid = ["--stage-grid", "rcnn_score_threshold=0.2,0.9", "--stage-grid", "use_tta_masks=true,false"]
    before = manifest.read_bytes()
    assert main([*arguments, *grid, "--write"]) == 0
    out = capsys.readouterr().out
    told = re.findall(r"^(\w+): 0\.\d{4} before, \d\.\d{4} after, on the (\d) images? tuned", out, re.MULTILINE)
    counts = {cell_type: int(count) for cell_type, count in told}
    assert counts.pop("all") == sum(counts.values()) == 3 and counts.keys() <= {*CELL_TYPES}
    assert out.count("no gain: so few images cannot tell one from noise") == len(counts) + 1  # and the views
    assert out.endswith(f"nothing to write: {manifest} stays as it is\n") and manifest.read_bytes() == before
    evidence = manifest.with_name("manifest-stages")
    assert (evidence / "manifest.diff").read_bytes() == b"" and f"evidence: {evidence}\n" in out

    def scored(ensembles: FoldEnsembles, points: Sequence[StagePoint]) -> dict[str, StageScores]:
        better = [
            point.members == ("my-htc",) and point.thresholds.get("rcnn_score_threshold") == 0.9 for point in points
        ]
        views = [0.1 if point.use_tta_masks else 0.0 for point in points]
        row = 0.5 + 0.3 * np.array(better) + np.array(views)
        return {"cort": StageScores(tuple(map(str, range(10))), np.tile(row, (10, 1)))}

    monkeypatch.setattr(kernel.tuning.stage_scores, "score_stages", scored)
    first = list_annotated(data)[0]
    images = [replace(first, annotations=ImageAnnotations(str(index), "cort", (96, 128), ())) for index in range(10)]
    monkeypatch.setattr(kernel.commands.tune, "list_fold", lambda options: images)
    assert main([*arguments, *grid, "--try-members", "my-htc", "--write"]) == 0
    out = capsys.readouterr().out
    assert "cort: 0.5000 before, 0.9000 after, on the 10 images tuned on" in out
    assert "expected on unseen images: 0.9000 [0.9000, 0.9000], gain +0.4000 [+0.4000, +0.4000]" in out
    assert "  members my-htc\n" in out and "use_tta_masks true, for all types together: 1 of 2 points beat" in out
    old, new = json.loads(before), json.loads(manifest.read_bytes())
    assert new["ensemble"]["use_tta_masks"] is True
    assert new["ensemble"]["thresholds"]["cort"] == {**LENIENT, "rcnn_score_threshold": 0.9}
    assert [member["use_for"] for member in new["members"]] == [["shsy5y", "astro", "cls"], list(CELL_TYPES)]
    new["ensemble"], new["members"] = old["ensemble"], old["members"]
    assert new == old
    assert "--- a/manifest.json\n+++ b/manifest.json\n" in out and out.endswith(f"written: {manifest}\n")
    assert (evidence / "manifest.diff").read_text(encoding="utf-8") in out
    assert json.loads((evidence / "stages.json").read_text())["types"]["cort"]["members"] == ["my-htc"]


def test_select_shows_and_writes_the_members(
    manifest: Path, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "selected"
    text = manifest.read_text(encoding="utf-8")
    arguments = ["select", *ensemble_arguments(manifest, weights, data), "--images", "60", "--out", str(out)]
    assert main([*arguments, "--max-members", "1"]) == 0
    told = capsys.readouterr().out
    assert re.findall(r"^(\w+), 1 images$", told, re.MULTILINE) == list(CELL_TYPES)
    assert "8.5 h for 60 images leave 510.00: fits\n" in told
    assert manifest.read_text(encoding="utf-8") == text
    with (out / "selection.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["cell_type"], row["members"]) for row in rows] == [
        (cell_type, name) for cell_type in CELL_TYPES for name in ("my-maskrcnn", "my-htc")
    ]
    assert sum(row["chosen"] == "1" for row in rows) == 3
    assert (out / "selection.png").stat().st_size > 1000

    assert main([*arguments, "--max-members", "1", "--write"]) == 0
    told = capsys.readouterr().out
    used = {member.name: set(member.use_for) for member in read_manifest(manifest).members}
    assert set(CELL_TYPES) <= set().union(*used.values())
    assert all(sum(cell_type in uses for uses in used.values()) == 1 for cell_type in CELL_TYPES)
    for name, uses in used.items():
        line = re.search(rf"^  {name}: (.*)$", told, re.MULTILINE)
        assert line and set(line[1].split(", ")) == uses
    assert '"notes": "Für Versuche."' in manifest.read_text(encoding="utf-8")


def command_line(name: str, **changed: Path | str) -> list[str]:
    """A command with all it needs, some of it changed."""
    needed = {"train": ("data", "recipe", "out"), "validate": ("manifest", "weights_dir", "data")}
    needed["tune"] = needed["validate"]
    words = [name]
    for option in (*needed[name], *(option for option in changed if option not in needed[name])):
        words += [f"--{option.replace('_', '-')}", str(changed[option])]
    return words


@pytest.fixture
def given(wheels_site: Path, data: Path, recipe: Path, manifest: Path, tmp_path: Path) -> dict[str, dict[str, Path]]:
    """What each command needs, all of it right but that the folder of weights is empty."""
    empty = tmp_path / "empty"
    empty.mkdir()
    ensemble = {"manifest": manifest, "weights_dir": empty, "data": data}
    return {
        "train": {"data": data, "recipe": recipe, "out": tmp_path / "out" / "member.safetensors"},
        "validate": ensemble,
        "tune": ensemble,
    }


@pytest.mark.parametrize(
    ("command", "option", "told"),
    [
        ("train", "data", r"cannot read annotations from .*none/train\.csv"),
        ("train", "recipe", "cannot read the recipe .*none"),
        ("train", "init", "--init .*none.*: no such file"),
        ("validate", "data", r"cannot read annotations from .*none/train\.csv"),
        ("validate", "manifest", "no manifest .*none"),
        ("validate", "weights_dir", "no folder .*none: --weights-dir must name one"),
        ("tune", "data", r"cannot read annotations from .*none/train\.csv"),
        ("tune", "manifest", "no manifest .*none"),
        ("tune", "weights_dir", "no folder .*none: --weights-dir must name one"),
    ],
)
def test_what_is_not_there_is_told(
    given: dict[str, dict[str, Path]],
    tmp_path: Path,
    command: str,
    option: str,
    told: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(command_line(command, **{**given[command], option: tmp_path / "none"})) == 2
    captured = capsys.readouterr()
    assert re.search(f"^error: {told}", captured.err, re.MULTILINE)
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (RECIPE.replace("crop_size", "crop_sizes"), "unknown key 'crop_sizes'; did you mean 'crop_size'?"),
        (RECIPE.replace("= 64", "= 'large'"), "crop_size: found 'large', expected int"),
        (RECIPE.replace(ENCODER, "resnet17"), "encoder 'resnet17' is not one of"),
        ("no recipe", "is no recipe, which is a TOML file"),
    ],
)
def test_a_wrong_recipe_is_told(
    given: dict[str, dict[str, Path]], tmp_path: Path, text: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    assert main(command_line("train", **{**given["train"], "recipe": path})) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert told in error
    assert str(path) in error


def test_images_without_cells_cannot_be_trained_on(
    given: dict[str, dict[str, Path]], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = shutil.copytree(data, tmp_path / "bare")
    (bare / "train.csv").write_text("id,annotation,width,height,cell_type\n", encoding="utf-8")
    assert main(command_line("train", **{**given["train"], "data": bare})) == 2
    assert "error: no annotated cell in the training images\n" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "tune"])
def test_missing_weights_are_told(
    given: dict[str, dict[str, Path]], command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command_line(command, **given[command])) == 2
    error = capsys.readouterr().err
    assert "error: member my-maskrcnn: no file maskrcnn.safetensors" in error
    assert "member my-htc: no file htc.safetensors" in error


def test_a_manifest_for_other_weights_is_told(
    manifest: Path, weights: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = manifest.read_text(encoding="utf-8").replace('"kind": "htc"', '"kind": "cascade"')
    manifest.write_text(text, encoding="utf-8")
    assert main(["validate", *ensemble_arguments(manifest, weights, data)]) == 2
    assert "holds htc resnet18_narrow, the manifest says cascade resnet18_narrow" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_validate_leaves_files_alone(
    manifest: Path, weights: Path, data: Path, tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("precious", encoding="utf-8")
    out = path if place == "file" else path / "results"
    assert main(["validate", *ensemble_arguments(manifest, weights, data), "--out", str(out)]) == 2
    assert str(path) in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "precious"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["manifest.json", "notes.txt"]


def test_a_failure_without_fault_of_the_user_is_another_exit_code(
    given: dict[str, dict[str, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise RunError("the loss became nan")

    monkeypatch.setattr(kernel.training.trainer, "train_detector", fail)
    assert main(command_line("train", **given["train"])) == 1
    captured = capsys.readouterr()
    assert captured.err.endswith("failed: the loss became nan\n")
    assert "weights:" not in captured.out


def test_a_package_that_is_missing_is_told(
    given: dict[str, dict[str, Path]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise ModuleNotFoundError("No module named 'sklearn.model_selection'", name=missing)

    monkeypatch.setattr(kernel.training.trainer, "train_detector", fail)
    missing = "sklearn.model_selection"
    assert main(command_line("train", **given["train"])) == 2
    assert "error: sklearn.model_selection is not installed: `make" in capsys.readouterr().err
    missing = "kernel.models"
    with pytest.raises(ModuleNotFoundError):
        main(command_line("train", **given["train"]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "the following arguments are required: command"),
        (["segment"], "invalid choice: 'segment'"),
        (["train"], "required: --data, --out"),
        (["select", "--manifest", "a", "--data", "b"], "required: --weights-dir"),
        (["train", "--data", "a", "--recipe", "b", "--out", "c", "--kind", "yolo"], "--kind: invalid choice: 'yolo'"),
        (["synthesize", "a", "--images", "few"], "--images: 'few' is not a whole number"),
        (["synthesize", "a", "--images", "0"], "--images: '0' is not a whole number from 1 on"),
        (["select", "--max-members", "0"], "--max-members: '0' is not a whole number from 1 on"),
        (["select", "--images", "0"], "--images: '0' is not a whole number from 1 on"),
        (["tune", "--trials", "0"], "--trials: '0' is not a whole number from 1 on"),
    ],
)
def test_usage_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["synthesize"], ["train"], ["validate"], ["tune"], ["select"]])
def test_help_tells_the_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--help"])
    assert f"usage: {' '.join(['python -m kernel', *command])} " in capsys.readouterr().out


def test_the_package_is_run_by_its_name(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "kernel", "train", "--data", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "required: --out" in result.stderr
    assert "Traceback" not in result.stderr
