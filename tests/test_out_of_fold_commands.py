"""`validate --out-of-fold` and `tune --predictions`, in process, on members of two folds too small to find much."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cases import forget_samples
from safetensors.torch import save_file
from same_predictions import assert_same
from tiny_detectors import tiny_detector

from kernel.__main__ import main
from kernel.data.annotated import list_annotated
from kernel.data.splits import FoldRow, write_folds
from kernel.data.synthetic.generate import write_dataset
from kernel.scoring.predicting import Predictor
from kernel.scoring.predictions import load_fingerprint, load_prediction
from kernel.settings import CELL_TYPES

pytestmark = pytest.mark.usefixtures("one_thread")

#: Few cells, so that an image takes little time.
QUICK = {
    "rpn_nms_pre": 20,
    "rpn_score_threshold": 0.0,
    "rpn_max_per_img": 10,
    "rcnn_score_threshold": 0.0,
    "confidence": 0.0,
    "min_size": 5,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images per cell type, one in each of the folds 0 and 3."""
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, dict.fromkeys(CELL_TYPES, 2), seed=3, shape=(64, 96))
    forget_samples(folder)
    images = list_annotated(folder)
    write_folds(
        folder / "folds.csv",
        [FoldRow(entry.image_id, 3 * (index % 2), entry.cell_type, "") for index, entry in enumerate(images)],
    )
    return folder


@pytest.fixture(scope="module")
def weights(wheels_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A member's weights of the two folds."""
    folder = tmp_path_factory.mktemp("weights")
    for fold in (0, 3):
        state = tiny_detector("maskrcnn", seed=fold).state_dict()
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"tiny_{fold}.pt.safetensors")
    return folder


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """An ensemble of the one member, to be changed."""
    member = {"name": "tiny", "kind": "maskrcnn", "encoder": "resnet18_narrow", "use_for": list(CELL_TYPES)}
    content: dict[str, Any] = {
        "kernel": {"id": "me/some-kernel", "title": "Some kernel", "competition": "some-competition"},
        "wheels_dataset": "me/wheels",
        "weight_datasets": ["me/some-weights"],
        "members": [member | {"file": "tiny_{fold}.pt.safetensors"}],
        "ensemble": {
            "use_tta": False,
            "use_tta_masks": False,
            "thresholds": dict.fromkeys(CELL_TYPES, QUICK),
        },
    }
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def with_file(manifest: Path, file: str) -> Path:
    """A copy of the manifest with another file of the member."""
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["members"][0]["file"] = file
    path = manifest.with_name("other.json")
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def told_scores(text: str) -> dict[str, str]:
    """By name, what `validate` printed between the name and the seconds."""
    lines = re.findall(r"^(.+?): (\d\.\d{4} on \d images .*); \d+\.\d s per image$", text, re.MULTILINE)
    return dict(lines)


def found_cells(out: Path) -> list[int]:
    """How many cells were found in each image, as scores.csv has it."""
    with (out / "scores.csv").open(encoding="utf-8", newline="") as stream:
        return [int(row["found_cells"]) for row in csv.DictReader(stream)]


def test_folds_are_predicted_by_their_own_weights(
    manifest: Path, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--weights-dir", str(weights), "--data", str(data)]
    out, stored = tmp_path / "results", tmp_path / "stored"
    words = ["--out-of-fold", "--predictions", str(stored), "--out", str(out), "--each-member"]
    assert main(["validate", "--manifest", str(manifest), *given, *words]) == 0
    told = told_scores(capsys.readouterr().out)
    assert list(told) == ["fold 0", "fold 3", "ensemble", "tiny"]
    assert told["tiny"] == told["ensemble"]  # it is alone
    with (out / "scores.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["fold"] for row in rows] == ["0"] * 3 + ["3"] * 3
    assert f"{sum(float(row['score']) for row in rows) / 6:.4f}" == told["ensemble"][:6]
    names = sorted(f"{entry.image_id}.npz" for entry in list_annotated(data))
    assert sorted(path.name for path in stored.glob("*.npz")) == names
    assert sorted(path.name for path in (stored / "alone" / "tiny").iterdir()) == names

    # What each fold's weights say when they are the plain ensemble of that fold's images.
    for fold in (0, 3):
        plain = with_file(manifest, f"tiny_{fold}.pt.safetensors")
        assert main(["validate", "--manifest", str(plain), *given, "--fold", str(fold)]) == 0
        assert told_scores(capsys.readouterr().out) == {"ensemble": told[f"fold {fold}"]}
    words = ["--out-of-fold", "--fold", "3", "--folds-csv", str(data / "folds.csv")]
    assert main(["validate", "--manifest", str(manifest), *given, *words]) == 0
    assert told_scores(capsys.readouterr().out) == {"fold 3": told["fold 3"], "ensemble": told["fold 3"]}


def test_stored_predictions_are_tuned_and_scored_without_predicting(
    manifest: Path,
    weights: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stored, ensemble = ["--predictions", str(tmp_path / "stored")], ["--weights-dir", str(weights)]
    given = ["--manifest", str(manifest), "--data", str(data)]
    validate = ["validate", *given, *ensemble, *stored, "--out-of-fold", "--out", str(tmp_path / "out")]
    assert main(validate) == 0
    assert sum(found_cells(tmp_path / "out")) > 0
    scores = capsys.readouterr().out

    def refuse(*arguments: object) -> None:
        raise AssertionError("everything is stored")

    monkeypatch.setattr(Predictor, "predict", refuse)
    assert main(["tune", *given, *stored, "--write"]) == 0
    text = capsys.readouterr().out
    told = re.findall(r"^(\w+): (\d\.\d{4}) before, (\d\.\d{4}) after", text, re.MULTILINE)
    assert {cell_type for cell_type, _, _ in told} <= {*CELL_TYPES, "all"}
    _, before, after = told[-1]  # of all images: a type's are those that members take for it
    assert f"ensemble: {before} on" in scores
    assert main([*validate, "--tuning", str(tmp_path / "manifest-tuning")]) == 0
    assert (tmp_path / "out" / "report" / "tuning.csv").stat().st_size > 1000
    assert 'id="thresholds"' in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    scores = capsys.readouterr().out
    assert f"ensemble: {after} on" in scores

    content = json.loads(manifest.read_text(encoding="utf-8"))
    for thresholds in content["ensemble"]["thresholds"].values():
        thresholds["confidence"] = 1.0
    manifest.write_text(json.dumps(content), encoding="utf-8")
    assert main(validate) == 0
    assert sum(found_cells(tmp_path / "out")) == 0
    capsys.readouterr()

    content["ensemble"]["use_tta"] = True
    manifest.write_text(json.dumps(content), encoding="utf-8")
    assert main(["tune", *given, *stored]) == 2
    assert "settings.use_tta: stored false, wanted true" in capsys.readouterr().err
    assert main(["tune", *given, *stored, "--stages"]) == 2
    assert "--stages needs the network" in capsys.readouterr().err
    assert main(["tune", *given, *stored, "--out-of-fold"]) == 2
    assert "--out-of-fold is for --stages" in capsys.readouterr().err

    content["ensemble"]["use_tta"] = False
    content["members"][0] |= {"file": "tiny_0.pt.safetensors", "sha256": "0" * 64}  # that none of these was made by
    manifest.write_text(json.dumps(content), encoding="utf-8")
    assert main(["tune", *given, *stored, "--write"]) == 2
    assert re.search(r'weights\.tiny: stored "\w{8}\.\.\.", wanted "00000000\.\.\."', capsys.readouterr().err)


def test_members_and_stages_are_chosen_out_of_fold(
    manifest: Path, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both start from the scores that `validate --out-of-fold` tells.

    `tune --stages` has an image with the type that counts, `select` with the annotated one.
    """
    given = ["--manifest", str(manifest), "--weights-dir", str(weights), "--data", str(data), "--out-of-fold"]
    assert main(["validate", *given, "--out", str(tmp_path / "report")]) == 0
    with (tmp_path / "report" / "scores.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    right = {row["cell_type"] for row in rows} - {r["cell_type"] for r in rows if r["counted_type"] != r["cell_type"]}
    assert right
    capsys.readouterr()

    assert main(["select", *given, "--out", str(tmp_path / "selection")]) == 0
    with (tmp_path / "selection" / "selection.csv").open(encoding="utf-8", newline="") as stream:
        selected = {row["cell_type"]: float(row["score"]) for row in csv.DictReader(stream)}
    grid = ["--stage-grid", "rcnn_score_threshold=0.9"]
    assert main(["tune", *given, "--stages", *grid, "--out", str(tmp_path / "stages")]) == 0
    told = json.loads((tmp_path / "stages" / "stages.json").read_text(encoding="utf-8"))
    assert told["folds_given"] and told["types"].keys() == {row["counted_type"] for row in rows}
    for cell_type, found in told["types"].items():
        counted = {row["id"]: float(row["score"]) for row in rows if row["counted_type"] == cell_type}
        assert {image["id"]: image["before"] for image in found["images"]} == pytest.approx(counted, abs=1e-6)
    for cell_type in right:
        scores = [float(row["score"]) for row in rows if row["cell_type"] == cell_type]
        assert selected[cell_type] == pytest.approx(sum(scores) / len(scores), abs=1e-6)


def test_two_processes_predict_the_same(
    manifest: Path, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--manifest", str(manifest), "--weights-dir", str(weights), "--data", str(data), "--out-of-fold"]
    told = []
    for name, devices in (("one", "cpu"), ("two", "cpu,cpu")):
        assert main(["validate", *given, "--device", devices, "--predictions", str(tmp_path / name)]) == 0
        told.append(told_scores(capsys.readouterr().out))
    assert told[0] == told[1] and len(told[0]) == 3
    files = [sorted((tmp_path / name).iterdir()) for name in ("one", "two")]
    assert [path.name for path in files[0]] == [path.name for path in files[1]] and len(files[0]) == 6
    for one, two in zip(*files, strict=True):
        assert load_fingerprint(one) == load_fingerprint(two)
        assert_same(*(replace(load_prediction(path), seconds={}) for path in (one, two)))  # no two runs take as long


def test_what_is_wrong_is_told(
    manifest: Path, weights: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(command: str, *words: str | Path, folder: Path = weights, of: Path = manifest) -> str:
        given = ["--manifest", str(of), "--weights-dir", str(folder), "--data", str(data)]
        assert main([command, *given, *map(str, words)]) == 2
        captured = capsys.readouterr()
        assert "ensemble:" not in captured.out and captured.err.startswith("error: ")
        return captured.err

    few = Path(shutil.copytree(weights, tmp_path / "few"))
    (few / "tiny_3.pt.safetensors").unlink()
    told = refused("validate", "--out-of-fold", folder=few)
    assert "fold 3, member tiny: no file tiny_3.pt.safetensors" in told
    assert f"train it: python -m kernel train --data {data} --fold 3 --kind maskrcnn" in told
    assert "--tuning is for the report of --out" in refused("validate", "--tuning", tmp_path)
    assert "this machine has cpu and" in refused("validate", "--out-of-fold", "--device", "cpu,tpu")
    for command in ("validate", "tune"):
        assert "here each needs one file: name that of one fold" in refused(command)
    assert "one file for all: tiny (tiny_0" in refused(
        "validate", "--out-of-fold", of=with_file(manifest, "tiny_0.pt.safetensors")
    )
    assert "--folds-csv belongs to --fold" in refused("validate", "--folds-csv", data / "folds.csv")
    text = (data / "folds.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "folds.csv").write_text("".join(text[:-1]), encoding="utf-8")
    lost = text[-1].split(",")[0]
    assert f"1 of 6 images are in no fold: {lost};" in refused(
        "validate", "--out-of-fold", "--folds-csv", tmp_path / "folds.csv"
    )
    (tmp_path / "file").write_text("precious")
    assert "cannot make the folder" in refused("validate", "--out-of-fold", "--predictions", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
