"""Every member of the published manifest is a recipe, without its detector being built."""

from __future__ import annotations

from pathlib import Path

import pytest

import kernel.training.trainer
from kernel.__main__ import main
from kernel.data.synthetic.generate import write_dataset
from kernel.errors import InputError
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import ENCODER_NAMES, KIND_NAMES
from kernel.models.configs import DetectorSpec
from kernel.training.member_recipe import ENCODER_BATCHES, FINETUNE_RECIPE, find_member, member_recipe
from kernel.training.recipe import read_recipe
from kernel.training.run import TrainingRun

PUBLISHED = Path(__file__).resolve().parents[2] / "weights_manifest.json"
MEMBERS = {member.name: member for member in read_manifest(PUBLISHED).members}


def test_every_encoder_has_a_batch() -> None:
    assert set(ENCODER_BATCHES) == set(ENCODER_NAMES)
    assert set(ENCODER_BATCHES.values()) == {2, 3, 4}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_published_member_is_the_published_finetuning(name: str) -> None:
    assert len(MEMBERS) == 13
    recipe, plain = member_recipe(find_member(PUBLISHED, name)), read_recipe(FINETUNE_RECIPE, vars(MEMBERS[name]))
    assert recipe.detector == DetectorSpec(MEMBERS[name].kind, MEMBERS[name].encoder, num_classes=8)
    assert recipe.detector.kind in KIND_NAMES
    training = recipe.training
    assert (training.iterations, training.learning_rate, training.crop_size) == (4000, 2e-4, 256)
    assert training.batch_size == ENCODER_BATCHES[MEMBERS[name].encoder]
    assert training.epochs == 10 * training.batch_size
    changed = {"batch_size", "epochs"}
    assert {k: v for k, v in vars(training).items() if k not in changed} == {
        k: v for k, v in vars(plain.training).items() if k not in changed
    }


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("cascade_resnet50", {}, (4, 40, 1)),
        ("cascade_resnext101", {}, (3, 30, 1)),
        ("cascade_efficientnet_b6_cort", {}, (2, 20, 1)),
        ("cascade_efficientnet_b6_cort", {"batch_size": None, "accumulation": 2}, (2, 20, 2)),
        ("cascade_efficientnet_b6_cort", {"batch_size": 4, "accumulation": 2}, (4, 40, 2)),
        ("cascade_efficientnet_b6_cort", {"epochs": 7}, (2, 7, 1)),
    ],
)
def test_the_batch_is_what_the_size_allows_unless_it_is_given(
    name: str, overrides: dict[str, int | None], expected: tuple[int, int, int]
) -> None:
    training = member_recipe(MEMBERS[name], overrides=overrides).training
    assert (training.batch_size, training.epochs, training.accumulation) == expected


def test_another_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[detector]\nkind = "htc"\nencoder = "resnet50"\n[training]\nbatch_size = 1\nepochs = 2\n')
    recipe = member_recipe(MEMBERS["cascade_efficientnet_b5"], path)
    assert (recipe.detector.kind, recipe.detector.encoder) == ("cascade", "efficientnet_b5")
    assert (recipe.training.batch_size, recipe.training.epochs) == (1, 2)
    livecell = member_recipe(MEMBERS["cascade_efficientnet_b5"], FINETUNE_RECIPE.with_name("livecell.toml")).training
    assert (livecell.batch_size, livecell.epochs, livecell.learning_rate) == (3, 6, 3e-4)


def test_a_member_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"no such member; did you mean 'cascade_resnet50'\?"):
        find_member(PUBLISHED, "cascade_resnet5")
    with pytest.raises(InputError, match="no such member; it has cascade_resnet50, maskrcnn_resnet50"):
        find_member(PUBLISHED, "zzz")


@pytest.mark.usefixtures("wheels_site")
def test_the_command_trains_a_member(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs: list[TrainingRun] = []

    def remember(run: TrainingRun) -> None:
        runs.append(run)
        run.out.touch()

    monkeypatch.setattr(kernel.training.trainer, "train_detector", remember)
    write_dataset(tmp_path / "data", {"cort": 1}, seed=1, shape=(64, 80))
    words = ["train", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "member.safetensors")]
    member = ["--member", "htc_resnet50", "--manifest", str(PUBLISHED)]
    assert main([*words, *member, "--iterations", "3"]) == 0
    assert (runs[0].spec, runs[0].settings.iterations) == (DetectorSpec("htc", "resnet50"), 3)
    assert '"use_for": [\n    "shsy5y",\n    "astro",\n    "cls"\n  ]' in capsys.readouterr().out
    for wrong, told in (
        ([*member, "--kind", "htc"], "--kind is for a training without --member"),
        (["--manifest", str(PUBLISHED)], "--manifest belongs to --member"),
        ([], "finetune.toml [detector]: kind, encoder must be given"),
        (["--member", "htc_resnet50", "--manifest", "none.json"], "no manifest none.json"),
    ):
        assert main([*words, *wrong]) == 2
        assert told in capsys.readouterr().err
    assert len(runs) == 1
