"""Recipes are read into dataclasses; what is wrong in one is told with its place and what is allowed."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from kernel.errors import InputError
from kernel.manifest.types import ENCODER_NAMES, KIND_NAMES
from kernel.models.configs import DetectorSpec
from kernel.settings import NETWORK_DTYPES
from kernel.training.recipe import Recipe, read_recipe
from kernel.training.settings import TrainSettings

DEMO = Path(__file__).resolve().parents[2] / "bundle" / "synthetic" / "recipe.toml"
DETECTOR = '[detector]\nkind = "htc"\nencoder = "resnet50"\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_demo_recipe_is_read() -> None:
    recipe = read_recipe(DEMO)
    assert recipe == Recipe(
        DetectorSpec("maskrcnn", "resnet18_narrow", num_classes=3, neck_channels=64, fc_channels=128, mask_channels=64),
        TrainSettings(
            iterations=1500,
            batch_size=4,
            learning_rate=1e-3,
            crop_size=256,
            rpn_nms_pre=500,
            rois_per_image=96,
            epochs=40,
            dtype="bfloat16",
        ),
    )


def test_what_is_not_given_is_the_published_finetuning(tmp_path: Path) -> None:
    assert read_recipe(written(tmp_path, DETECTOR)) == Recipe(DetectorSpec("htc", "resnet50"), TrainSettings())
    assert TrainSettings() == TrainSettings(
        iterations=4000, learning_rate=2e-4, weight_decay=0.01, warmup_share=0.05, clip_norm=10, crop_size=256
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"kind": "cascade", "seed": 7}, {"kind": "cascade", "seed": 7}),
        ({"encoder": "resnext50", "iterations": 3, "workers": 2}, {"encoder": "resnext50", "iterations": 3}),
        ({"kind": None, "seed": None, "iterations": None}, {"kind": "htc", "seed": 5, "iterations": 4000}),
        ({"seed": 0}, {"seed": 0}),
    ],
)
def test_overrides_replace_what_is_not_none(
    tmp_path: Path, overrides: dict[str, Any], expected: dict[str, Any]
) -> None:
    recipe = read_recipe(written(tmp_path, DETECTOR + "[training]\nseed = 5\n"), overrides)
    values = vars(recipe.detector) | vars(recipe.training)
    assert {key: values[key] for key in expected} == expected
    untouched = {"num_classes": 8, "crop_size": 256, "norm_eval": False}
    assert {key: values[key] for key in untouched} == untouched


def test_overrides_give_what_the_file_lacks(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, ""), {"kind": "maskrcnn", "encoder": "resnet101"})
    assert recipe.detector == DetectorSpec("maskrcnn", "resnet101")


def test_a_whole_number_is_a_number(tmp_path: Path) -> None:
    recipe = read_recipe(written(tmp_path, DETECTOR + "[training]\nclip_norm = 5\nnorm_eval = true\n"))
    assert (recipe.training.clip_norm, recipe.training.norm_eval) == (5, True)


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("encoder", ENCODER_NAMES)
def test_every_member_of_a_manifest_can_be_named(tmp_path: Path, kind: str, encoder: str) -> None:
    recipe = read_recipe(written(tmp_path, f'[detector]\nkind = "{kind}"\nencoder = "{encoder}"\n'))
    assert (recipe.detector.kind, recipe.detector.encoder) == (kind, encoder)


@pytest.mark.parametrize("dtype", NETWORK_DTYPES)
def test_every_dtype_can_be_named(tmp_path: Path, dtype: str) -> None:
    assert read_recipe(written(tmp_path, f'{DETECTOR}[training]\ndtype = "{dtype}"\n')).training.dtype == dtype


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[detectr]\n" + DETECTOR, "unknown table 'detectr'; did you mean 'detector'?"),
        (DETECTOR + "[trainings]\n", "unknown table 'trainings'; did you mean 'training'?"),
        (DETECTOR + "[zzz]\n", "unknown table 'zzz'; known are detector, training"),
        ("seed = 1\n" + DETECTOR, "unknown table 'seed'"),
        (DETECTOR + "encodr = 1\n", "[detector]: unknown key 'encodr'; did you mean 'encoder'?"),
        (DETECTOR + "[training]\nlearning_rat = 1\n", "[training]: unknown key 'learning_rat'"),
        (DETECTOR + "[training]\nlearning_rat = 1\n", "did you mean 'learning_rate'?"),
        (DETECTOR + "[training]\nkind = 'htc'\n", "[training]: unknown key 'kind'; known are iterations, batch_size"),
        (DETECTOR + "iterations = 3\n", "[detector]: unknown key 'iterations'"),
        (DETECTOR + "[training]\niterations = 'many'\n", "[training] iterations: found 'many', expected int"),
        (DETECTOR + "[training]\niterations = 1.5\n", "[training] iterations: found 1.5, expected int"),
        (DETECTOR + "[training]\niterations = true\n", "[training] iterations: found True, expected int"),
        (DETECTOR + "[training]\nlearning_rate = '1e-3'\n", "[training] learning_rate: found '1e-3', expected float"),
        (DETECTOR + "[training]\nlearning_rate = true\n", "[training] learning_rate: found True, expected float"),
        (DETECTOR + "[training]\nnorm_eval = 1\n", "[training] norm_eval: found 1, expected bool"),
        (DETECTOR + "[training]\ndtype = 16\n", "[training] dtype: found 16, expected str"),
        (DETECTOR + "neck_channels = [64]\n", "[detector] neck_channels: found [64], expected int"),
        (DETECTOR + "mask_channels = 64\n", "mask_channels is 64 and neck_channels 256; an htc's"),
        (DETECTOR + "neck_channels = 48\nmask_channels = 48\nneck_norm = true\n", "it must be a multiple of 32"),
        ("[detector]\nkind = 3\n", "[detector] kind: found 3, expected str"),
        ('[detector]\nencoder = "resnet50"\n', "[detector]: kind must be given"),
        ('[detector]\nkind = "htc"\n', "[detector]: encoder must be given"),
        ("", "[detector]: kind, encoder must be given"),
        (DETECTOR.replace("htc", "yolo"), "kind 'yolo' is not one of maskrcnn, cascade, htc"),
        (DETECTOR.replace("resnet50", "resnet51"), "encoder 'resnet51' is not one of resnet50, resnet101"),
        (DETECTOR + "[training]\ndtype = 'int8'\n", "dtype 'int8' is not one of float32, float16, bfloat16"),
        ("{}", "is no recipe, which is a TOML file"),
        (DETECTOR + DETECTOR, "is no recipe, which is a TOML file"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        read_recipe(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "told"), [({"kind": "yolo"}, "kind 'yolo' is not one of"), ({"seed": "one"}, "seed: found 'one'")]
)
def test_wrong_overrides_are_told(tmp_path: Path, overrides: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_recipe(written(tmp_path, DETECTOR), overrides)


def test_a_file_of_other_bytes_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="is no recipe"):
        read_recipe(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the recipe .*none\.toml: No such file"):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(InputError, match=r"cannot read the recipe .*: Is a directory"):
        read_recipe(tmp_path)


def test_tables_share_no_key() -> None:
    # An override names a field without its table.
    detector, training = ({field.name for field in fields(target)} for target in (DetectorSpec, TrainSettings))
    assert detector.isdisjoint(training)
