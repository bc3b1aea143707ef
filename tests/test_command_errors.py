"""What a command line gets wrong is told, with exit code 2 and nothing lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from kernel.__main__ import main
from kernel.commands import validate
from kernel.commands.options import CommandParser
from kernel.data.annotated import list_annotated
from kernel.data.synthetic.generate import write_dataset
from kernel.errors import InputError
from kernel.training.recipe import read_recipe
from kernel.training.samples import read_training_images

DEMO = Path(__file__).resolve().parents[1] / "bundle" / "synthetic"
ENSEMBLE = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights")]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """One small annotated image."""
    write_dataset(tmp_path / "data", {"cort": 1}, seed=1, shape=(96, 128))
    return tmp_path / "data"


def test_a_folder_with_other_files_is_never_replaced(
    wheels_site: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "other")
    for out, told in (
        (data, "is read, and would be lost"),
        (tmp_path / "other", "holds other files (train, train.csv)"),
        (data / "train.csv", "is a file"),
    ):
        assert main(["validate", *ENSEMBLE, "--data", str(data), "--out", str(out)]) == 2
        assert told in capsys.readouterr().err
    assert (data / "train.csv").is_file() and len(list_annotated(data)) == 1


def test_a_finished_or_stopped_run_is_never_begun_anew_by_accident(
    wheels_site: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.state").write_bytes(b"hours of work")
    train = ["train", "--recipe", str(DEMO / "recipe.toml"), "--out", str(tmp_path / "a.safetensors")]
    assert main([*train, "--data", str(data)]) == 2
    assert "add --resume to go on with it" in capsys.readouterr().err
    assert (tmp_path / "a.state").read_bytes() == b"hours of work"


def test_annotations_are_never_overwritten_by_synthetic_ones(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (data / "train.csv").read_bytes()
    assert main(["synthesize", str(data), "--images", "1"]) == 2
    assert "holds a train.csv already" in capsys.readouterr().err
    assert (data / "train.csv").read_bytes() == before


def test_images_are_never_replaced_by_their_own_masks(
    wheels_site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "mine" / "pictures"
    images.mkdir(parents=True)
    cv2.imwrite(str(images / "a.png"), np.zeros((40, 40), np.uint8))
    for out in (tmp_path / "mine", images):
        assert main(["predict", str(images), "--out", str(out), *ENSEMBLE]) == 2
        assert "is read, and would be lost: this command writes" in capsys.readouterr().err
    (tmp_path / "other" / "pictures").mkdir(parents=True)
    assert main(["predict", str(images), "--out", str(tmp_path / "other"), *ENSEMBLE]) == 2
    assert "holds other files (pictures)" in capsys.readouterr().err
    assert (images / "a.png").is_file()


def test_an_image_of_another_size_than_its_annotations(data: Path) -> None:
    (entry,) = list_annotated(data)
    cv2.imwrite(str(entry.path), cv2.resize(cv2.imread(str(entry.path)), (64, 48)))
    for read in (entry.read, lambda: read_training_images(data)):
        with pytest.raises(InputError, match=r"48 rows and 64 columns, its annotations are of 96 and 128"):
            read()


@pytest.mark.parametrize("name", ["foo", "cuda:99"])
def test_a_device_that_is_not_there(
    wheels_site: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    train = ["train", "--recipe", str(DEMO / "recipe.toml"), "--out", str(tmp_path / "a.safetensors")]
    for command in (["validate", *ENSEMBLE], train):
        assert main([*command, "--data", str(data), "--device", name]) == 2
        assert f"device {name}: this machine has cpu and" in capsys.readouterr().err


def test_no_annotated_image(wheels_site: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = (data / "train.csv").read_text(encoding="utf-8").splitlines()[0]
    (data / "train.csv").write_text(header + "\n", encoding="utf-8")
    for command in ("validate", "tune"):
        assert main([command, *ENSEMBLE, "--data", str(data)]) == 2
        assert "has no annotated image" in capsys.readouterr().err


def test_synthetic_data_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["synthesize", str(tmp_path / "out"), "--seed", "-1"]) == 2
    assert "the seed of a data set is -1" in capsys.readouterr().err


def test_places_that_cannot_be_written(
    wheels_site: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    assert main(["synthesize", str(file), "--images", "1"]) == 2
    assert "cannot write into" in capsys.readouterr().err
    (tmp_path / "folder.safetensors").mkdir()
    for out, told in (
        (file / "a.safetensors", "cannot write there"),
        (tmp_path / "folder.safetensors", "is a folder"),
        (tmp_path / "a.pt", "name a file that ends so"),
    ):
        assert main(["train", "--recipe", str(DEMO / "recipe.toml"), "--out", str(out), "--data", str(data)]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("detector = 3", "detector is 3, expected a table"),
        ("[[detector]]", "expected a table"),
        ("[detector]\nkind='htc'\nencoder='resnet50'\n[training]\nlearning_rate=nan", "learning_rate is nan"),
        ("[detector]\nkind='htc'\nencoder='resnet50'\n[training]\nweight_decay=inf", "weight_decay is inf"),
    ],
)
def test_recipes_that_are_none(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "recipe.toml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_recipe(tmp_path / "recipe.toml")


@pytest.mark.parametrize(
    ("planned", "given", "dtype", "computed"),
    [
        ("float32", [], "float32", "float32"),
        ("float32", ["--dtype", "bfloat16"], "bfloat16", "bfloat16"),
        ("bfloat16", [], "bfloat16", "bfloat16"),  # as the script computes
        ("float16", [], "float16", "float32"),  # on a CPU, as the script does there
        ("bfloat16", ["--dtype", "float32"], "float32", "float32"),
    ],
)
def test_the_dtype_reaches_the_ensemble(
    wheels_site: Path, data: Path, tmp_path: Path, planned: str, given: list[str], dtype: str, computed: str
) -> None:
    manifest = tmp_path / "manifest.json"
    text = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))
    manifest.write_text(json.dumps(text | {"dtype": planned}), encoding="utf-8")
    parser = CommandParser()
    validate.add_parser(parser.add_subparsers())
    members = ["--manifest", str(manifest), "--weights-dir", str(DEMO / "weights")]
    words = ["validate", *members, "--data", str(data), "--device", "cpu", *given]
    options = validate.RULES.checked(parser.parse_args(words))
    images = validate.list_fold(options)
    assert [job.files.dtype for job in validate.list_jobs(options, images)] == [dtype]
    assert [job.files.dtype for job in validate.list_jobs(options, images, devices=["cpu"])] == [computed]
    assert str(validate.list_jobs(options, images)[0].files.load("cpu").dtype) == f"torch.{computed}"


def test_an_unknown_dtype(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        main(["predict", "images", *ENSEMBLE, "--out", "out", "--dtype", "int8"])
    assert ending.value.code == 2
    assert "choose from" in capsys.readouterr().err
