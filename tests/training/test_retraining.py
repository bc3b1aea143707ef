"""Members that are there already, trained on: from their own weights, into a manifest like theirs."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from cases import GRID, THREE, competition, draw_image
from safetensors.torch import load_file, save_file
from tiny_detectors import tiny_detector

from kernel.__main__ import main
from kernel.commands.common import find_ensemble
from kernel.commands.scoring import tell_seen
from kernel.data.annotated import list_annotated
from kernel.data.learned import MemberRecord
from kernel.data.synthetic.generate import write_dataset
from kernel.errors import InputError
from kernel.log import LOG
from kernel.manifest.presets import MEMBERS_FOLDER, members_folder, shipped_members
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import MemberEntry
from kernel.models.checkpoints import read_checkpoint, recognise_checkpoint
from kernel.models.configs import DetectorSpec
from kernel.models.detectors import build_detector
from kernel.scale import member_pixel_um
from kernel.scoring.predicting import PredictionJob
from kernel.settings import CELL_TYPES
from kernel.training.retraining import StartMember
from kernel.training.run import TrainingRun
from kernel.training.samples import TrainingImage
from kernel.training.settings import TrainSettings
from kernel.training.state import save_weights

pytestmark = [pytest.mark.usefixtures("wheels_site", "one_thread"), pytest.mark.xdist_group("members")]

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "bundle" / "synthetic"
#: Moves nothing, so that each member still shows what it started from.
RECIPE = """
[training]
iterations = 1
batch_size = 2
learning_rate = 1e-9
crop_size = 64
rpn_nms_pre = 50
rois_per_image = 16
norm_eval = true
"""
CLASSES = "roi_head.bbox_head.fc_cls.weight"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, wheels_site: Path) -> Path:
    """A folder of two tiny members, a recipe, and images to train on."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "weights").mkdir()
    data = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))
    data["members"] = [member for member in data["members"] if member["kind"] != "htc"]
    for member in data["members"]:
        del member["sha256"]
        save_file(tiny_detector(member["kind"]).state_dict(), folder / "weights" / member["file"])
    (folder / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    competition(folder / "cells", THREE)
    return folder


def test_all_members_into_a_manifest(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine"
    words = ["--from", start, "--data", start / "cells", "--recipe", start / "recipe.toml", "--out", out]
    assert main(["train-members", *map(str, words), "--device", "cpu"]) == 0
    assert f"weights and manifest: {out}" in capsys.readouterr().out
    before, after = read_manifest(start / "manifest.json"), read_manifest(out / "manifest.json")
    assert after.ensemble == before.ensemble
    assert [(member.name, member.kind, member.use_for) for member in after.members] == [
        (member.name, member.kind, member.use_for) for member in before.members
    ]
    for member in after.members:
        trained = out / "weights" / str(member.file)
        assert recognise_checkpoint(trained) == recognise_checkpoint(start / "weights" / str(member.file))
        old, new = load_file(start / "weights" / str(member.file)), load_file(trained)
        for key in (key for key in old if "fc_cls.weight" in key or "conv_logits.weight" in key):
            torch.testing.assert_close(new[key].float(), old[key], atol=1e-3, rtol=1e-3)  # written as float16
    # What is done is not done again.
    kept = {path.name: path.read_bytes() for path in out.rglob("*.safetensors")}
    (out / "manifest.json").unlink()
    (out / "weights" / "cascade.safetensors").unlink()
    assert main(["train-members", *map(str, words)]) == 0
    assert {path.name: path.read_bytes() for path in out.rglob("*.safetensors")} == kept
    assert read_manifest(out / "manifest.json") == after


def test_a_tuned_manifest_is_left_and_one_of_other_members_put_aside(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    words = ["train-members", "--from", start, "--data", start / "cells", "--recipe", start / "recipe.toml"]
    words += ["--device", "cpu", "--out", out]
    assert main([*map(str, words)]) == 0
    manifest = out / "manifest.json"
    tuned = manifest.read_text(encoding="utf-8").replace('"confidence": 0.', '"confidence": 0.0')
    manifest.write_text(tuned, encoding="utf-8")
    assert main([*map(str, words)]) == 0
    assert manifest.read_text(encoding="utf-8") == tuned
    others = json.loads(tuned)
    others["members"][0]["sha256"] = "0" * 64  # of a training before
    manifest.write_text(json.dumps(others), encoding="utf-8")
    assert main([*map(str, words)]) == 0
    assert len(read_manifest(manifest).members) == 2
    assert json.loads((out / "manifest.json.old").read_text(encoding="utf-8")) == others
    assert "manifest.json has other members, and is put aside as manifest.json.old" in capsys.readouterr().err
    manifest.write_text("{", encoding="utf-8")
    assert main([*map(str, words)]) == 0
    assert (out / "manifest.json.old2").read_text(encoding="utf-8") == "{" and len(read_manifest(manifest).members) == 2


@pytest.mark.parametrize("command", ["train", "train-members"])
def test_members_whose_weights_are_beside_the_manifest(start: Path, tmp_path: Path, command: str) -> None:
    """As `train-members --competition` leaves them."""
    flat = tmp_path / "start"
    shutil.copytree(start / "weights", flat)
    shutil.copy(start / "manifest.json", flat)
    out = tmp_path / ("mine" if command == "train-members" else "mine.safetensors")
    words = ["--from", flat, "--data", start / "cells", "--recipe", start / "recipe.toml", "--out", out]
    kind = ["--kinds" if command == "train-members" else "--kind", "cascade"]
    assert main([command, *map(str, words), *kind, "--device", "cpu"]) == 0
    trained = out / "weights" / "cascade.safetensors" if command == "train-members" else out
    assert recognise_checkpoint(trained) == recognise_checkpoint(flat / "cascade.safetensors")


def changed_start(start: Path, folder: Path, kind: str, **given: object) -> Path:
    """A copy of the members to start from, with values of those of a kind changed."""
    shutil.copytree(start / "weights", folder / "weights")
    data = json.loads((start / "manifest.json").read_text(encoding="utf-8"))
    data["members"] = [member | (given if member["kind"] == kind else {}) for member in data["members"]]
    (folder / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def test_what_makes_no_manifest_is_refused_before_the_training(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = changed_start(start, tmp_path / "start", "maskrcnn", use_for=["astro"])
    words = ["--from", lacking, "--kinds", "maskrcnn", "--data", start / "cells", "--out", tmp_path / "mine"]
    assert main(["train-members", *map(str, words)]) == 2
    assert "`use_for`" in capsys.readouterr().err and not (tmp_path / "mine").exists()


@pytest.mark.parametrize("command", ["train", "train-members"])
def test_a_stride_that_no_training_here_has_is_refused_before_it(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Trained at stride 1, its file would say so, and the manifest, which says 2, could not be loaded any more."""
    strided = changed_start(start, tmp_path / "start", "maskrcnn", stem_stride=2)
    out = tmp_path / ("mine" if command == "train-members" else "mine.safetensors")
    assert main([command, "--from", str(strided), "--data", str(start / "cells"), "--out", str(out)]) == 2
    assert "stem_stride is 2" in capsys.readouterr().err and not out.exists()


def test_a_stride_that_an_encoder_keeps_is_trained_on(start: Path, tmp_path: Path) -> None:
    spec = DetectorSpec("maskrcnn", "timm:fastvit_t8", 3, 16, 16, 16, stem_stride=2)
    path = tmp_path / "weights" / "maskrcnn.safetensors"
    path.parent.mkdir()
    record = MemberRecord("0" * 16, 1, 1, (), spec.encoder, 2)
    save_weights(build_detector(spec).state_dict(), path, record=record)
    entry = MemberEntry("maskrcnn", "maskrcnn", spec.encoder, CELL_TYPES)
    assert StartMember(entry, path).recipe().detector == replace(recognise_checkpoint(path), stem_stride=2)


def test_members_of_other_pixels_are_shown_images_at_their_scale(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From `convert --pixel-size` to members trained on, which `predict` shows what they have learned from."""
    noted = changed_start(start, tmp_path / "noted", "maskrcnn")
    for path in (noted / "weights").iterdir():
        path.unlink()
        words = ["convert", start / "weights" / path.name, path, "--pixel-size", "0.65"]
        assert main([*map(str, words)]) == 0
    (tmp_path / "images").mkdir()
    told = {"axes": "YX", "PhysicalSizeX": 0.65, "PhysicalSizeY": 0.65}
    tifffile.imwrite(tmp_path / "images" / "a.ome.tif", draw_image(0, GRID), metadata=told, ome=True)
    labels = np.zeros((160, 160), np.uint8)
    for number, (y, x, height, width) in enumerate(GRID, start=1):
        labels[y : y + height, x : x + width] = number
    cv2.imwrite(str(tmp_path / "images" / "a.ome_masks.png"), labels)
    files = find_ensemble(read_manifest(noted / "manifest.json"), noted / "weights")
    for name, given, learned, warned in (
        ("theirs", ["--member-pixel-size", "0.65"], 0.65, False),
        ("own", ["--zoom", "1"], 0.65, False),
        ("others", [], 1.24, True),
    ):
        data, out = tmp_path / name, tmp_path / f"{name}.safetensors"
        assert main(["prepare", "--annotated", str(tmp_path / "images"), *given, "--out", str(data)]) == 0
        (image,) = list_annotated(data)
        assert image.read().shape[0] == round(160 * 0.65 / learned)
        capsys.readouterr()
        tell_seen([PredictionJob(image, files)])
        known = "with pixels of 1.24 um, and the members know those of 0.65 um"
        assert (known in " ".join(capsys.readouterr().err.split())) == warned
        words = ["--from", noted, "--kind", "cascade", "--data", data, "--recipe", start / "recipe.toml", "--out", out]
        assert main(["train", *map(str, words), "--device", "cpu"]) == 0
        assert ("predict will show those of 1.24 um" in " ".join(capsys.readouterr().err.split())) == warned
        assert member_pixel_um({"cascade": out}) == learned


@pytest.mark.parametrize(
    ("told", "keeps", "shown", "tells", "warns"),
    [
        (None, True, [None], None, False),  # as ever
        (None, True, [1.24], None, False),  # a member's usual size
        (None, True, [0.65], 0.65, True),
        (None, False, [0.65, None], 0.65, False),  # an encoder's file knows none
        (0.65, True, [None], 0.65, False),
        (0.65, True, [0.66], 0.65, False),  # as good as theirs
        (0.65, False, [1.24], 1.24, True),
        (0.65, True, [0.65, 1.24], 0.65, True),
        (None, False, [0.65, 1.24], None, True),
    ],
)
def test_which_pixels_a_member_then_knows(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    told: float | None,
    keeps: bool,
    shown: list[float | None],
    tells: float | None,
    warns: bool,
) -> None:
    init = tmp_path / "init.safetensors"
    save_weights({"weight": torch.zeros(3)}, init, record=MemberRecord("0" * 16, 1, 1, (), pixel_size_um=told))
    image = TrainingImage(np.zeros((9, 9, 3), np.uint8), (), np.zeros((0, 2), int), np.zeros(0, int), "cort")
    images = [replace(image, pixel_um=pixel_um) for pixel_um in shown]
    spec, settings = DetectorSpec("maskrcnn", "resnet18_narrow"), TrainSettings()
    run = TrainingRun(spec, settings, images, tmp_path / "out.safetensors", init, keeps)
    with caplog.at_level("WARNING", LOG.name):
        run.scale.tell()
    assert run.record(1).pixel_size_um == tells
    assert bool(caplog.records) == warns


def test_one_kind_alone(start: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    words = ["--from", start, "--data", start / "cells", "--recipe", start / "recipe.toml", "--out", out]
    assert main(["train-members", *map(str, words), "--kinds", "cascade", "--iterations", "2"]) == 0
    (member,) = read_manifest(out / "manifest.json").members
    assert member.kind == "cascade"
    settings = json.loads((out / "weights" / "cascade.json").read_text(encoding="utf-8"))
    assert settings["training"]["iterations"] == 2


def test_train_takes_one_member(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cascade.safetensors"
    words = ["--from", start, "--data", start / "cells", "--recipe", start / "recipe.toml", "--out", out]
    assert main(["train", *map(str, words), "--kind", "cascade"]) == 0
    assert recognise_checkpoint(out).kind == "cascade"
    assert read_checkpoint(out).stem_stride == 1  # told, so that a build need not guess it
    key = "roi_head.bbox_head.2.fc_cls.weight"
    torch.testing.assert_close(load_file(out)[key], load_file(start / "weights" / "cascade.safetensors")[key])
    assert '"kind": "cascade"' in capsys.readouterr().out


def test_the_shipped_members_and_the_recipe_for_few_images(start: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.safetensors"
    words = ["--from", "shipped", "--data", start / "cells", "--out", out]
    assert main(["train", *map(str, words), "--iterations", "1", "--batch-size", "1"]) == 0
    folder = shipped_members().folder
    first = read_manifest(folder / "manifest.json").members[0]
    settings = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert settings["detector"]["kind"] == first.kind and settings["training"]["norm_eval"] is True
    assert recognise_checkpoint(out) == recognise_checkpoint(folder / "weights" / str(first.file))


def test_a_fold_and_other_images_are_scored(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "others", {"cort": 2}, seed=4, shape=(64, 96))
    mine = competition(tmp_path / "mine", [("a", "cort", GRID), ("b", "cort", GRID)])
    words = ["--competition", mine, "--split", "stratified", "--folds", "2", "--out", tmp_path / "prepared"]
    assert main(["prepare", *map(str, words), "--workers", "1"]) == 0
    capsys.readouterr()
    out = tmp_path / "out"
    words = ["--from", "shipped", "--kinds", "maskrcnn", "--data", tmp_path / "prepared", "--fold", "0", "--out", out]
    words += ["--recipe", start / "recipe.toml", "--score", tmp_path / "others", "--device", "cpu"]
    assert main(["train-members", *map(str, words)]) == 0
    told = capsys.readouterr().out
    assert "fold 0, which was left out" in told
    for folder, images in (("report", 1), ("score-report", 2)):
        assert len((out / folder / "scores.csv").read_text(encoding="utf-8").splitlines()) == 1 + images
    settings = json.loads((out / "weights" / "maskrcnn.json").read_text(encoding="utf-8"))
    assert settings["images"] == 1


def test_where_members_are() -> None:
    shipped = shipped_members().folder
    assert shipped == ROOT / MEMBERS_FOLDER
    assert members_folder("shipped") == shipped and members_folder(str(DEMO)) == DEMO
    with pytest.raises(InputError, match=r"no manifest\.json in nowhere"):
        members_folder("nowhere")
    with pytest.raises(InputError, match=rf"is a file: give 'shipped', or its folder, {re.escape(str(DEMO))}; "):
        members_folder(str(DEMO / "manifest.json"))
    with pytest.raises(InputError, match=r"is a file: .* or a folder of manifest\.json and weights; .*train --init"):
        members_folder(str(DEMO / "weights" / "htc.safetensors"))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["train", "--from", "START", "--member", "a", "--out", "a.safetensors"],
            "--member does nothing beside",
        ),
        (
            ["train", "--from", "START", "--init", "a.pth", "--out", "a.safetensors"],
            "--init does nothing beside",
        ),
        (["train", "--from", "START", "--kind", "htc", "--out", "a.safetensors"], "there is no htc among its members"),
        (["train", "--from", "nowhere", "--out", "a.safetensors"], "no manifest.json in nowhere"),
        (["train-members", "--from", "START", "--kinds", "htc", "--out", "mine"], "there is no htc among its members"),
        (
            ["train-members", "--from", "START", "--all-images", "--out", "mine"],
            "--all-images belongs to --competition",
        ),
        (["train-members", "--from", "START", "--iterations", "1", "2", "--out", "mine"], "one number for all"),
        (["train-members", "--from", "START", "--out", "START"], "is the folder of the members to start from"),
        (["train-members", "--from", "START", "--fold", "0", "--out", "mine"], "folds"),
        (["train-members", "--competition", "cells", "--out", "mine"], "--data belongs to --from"),
    ],
)
def test_wrong_words_are_refused(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    def placed(word: str) -> str:
        return str(start) if word == "START" else str(tmp_path / word) if word in ("mine", "a.safetensors") else word

    assert main([*map(placed, words), "--data", str(start / "cells")]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_data_is_needed(start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-members", "--from", str(start), "--out", str(tmp_path / "mine")]) == 2
    assert "--from needs --data" in capsys.readouterr().err
