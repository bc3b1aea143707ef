"""What all commands keep to before they begin: no option does nothing, and nothing that is read is written over."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from kernel.__main__ import main
from kernel.commands import convert, predict, prepare, select, synthesize, train, train_members, tune, validate
from kernel.commands.rules import CommandRules, Idle, Needs
from kernel.errors import InputError
from kernel.folders import ResultFolder, refuse_to_lose, refuse_to_replace

COMMANDS = {
    "synthesize": synthesize,
    "prepare": prepare,
    "train": train,
    "train-members": train_members,
    "validate": validate,
    "tune": tune,
    "select": select,
    "predict": predict,
    "convert": convert,
}
#: Options that name what is written, or read and written in one.
WRITTEN = {"card", "out", "predictions", "add_to"}
ENSEMBLE = ["--manifest", "m.json", "--weights-dir", "weights", "--data", "data"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_of_each_path_whether_it_is_read(name: str) -> None:
    commands = argparse.ArgumentParser().add_subparsers()
    COMMANDS[name].add_parser(commands)
    parser = commands.choices[name]
    rules = parser.get_default("rules")
    assert isinstance(rules, CommandRules)
    options = {action.dest for action in parser._actions}
    paths = {action.dest for action in parser._actions if action.type is Path}
    assert paths - WRITTEN <= set(rules.reads) <= options
    named = [name for effect in rules.effects for name in effect.names]
    named += [name for effect in rules.effects if isinstance(effect, Needs) for name in effect.needed]
    assert {*named, *rules.defaults} <= options
    # A default of the parser would hide whether the option was given.
    assert all(parser.get_default(name) in (None, False, []) for name in {*named, *rules.defaults})


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("prepare --competition c --out o --split none --folds 3", "--folds is for a split, and none is made"),
        ("prepare --competition c --out o --split none --or-next-best", "--or-next-best is for a split"),
        ("prepare --pseudo-labels s.csv --images i --cell-types cort --out o --folds 2", "--folds is for a split"),
        ("prepare --competition c --out o --split stratified --or-next-best", "nothing to take after the split"),
        ("prepare --competition c --out o --livecell-images i", "--livecell-images belongs to --livecell-annotations"),
        ("prepare --competition c --out o --images i", "--images belongs to --pseudo-labels"),
        ("prepare --competition c --out o --keep-empty", "--keep-empty belongs to"),
        ("train --data d --out o.safetensors --member m --kind htc", "--kind is for a training without --member"),
        ("train --data d --out o.safetensors --member m --encoder resnet50", "--encoder is for a training without"),
        ("train --data d --out o.safetensors --extra-images 5", "--extra-images belongs to --extra"),
        ("train --data d --out o.safetensors --extra-until 0.5", "--extra-until belongs to --extra"),
        ("train --data d --out o.safetensors --folds-csv f.csv", "--folds-csv belongs to --fold"),
        ("train-members --competition c --out o --livecell-images i", "belongs to --livecell-annotations"),
        ("train-members --competition c --out o --pretraining-iterations 5", "belongs to --livecell-annotations"),
        ("validate E --replace", "--replace belongs to --out"),
        ("validate E --tuning t", "--tuning is for the report of --out"),
        ("validate E --out o --card o/card.json", "--card lies in --out, which is replaced as a whole"),
        ("validate E --folds-csv f.csv", "--folds-csv belongs to --fold or --out-of-fold"),
        ("select E --replace", "--replace belongs to --out"),
        ("select E --folds-csv f.csv", "--folds-csv belongs to --fold or --out-of-fold"),
        ("tune E --replace", "--replace belongs to --out or --write"),
        ("tune E --trials 5", "--trials is for --search optuna"),
        ("tune E --search grid --trials 5", "--trials is for --search optuna"),
        ("tune E --stages --search grid", "--search is for the post-processing's thresholds, not for --stages"),
        ("tune E --stages --trials 5 --search optuna", "--search or --trials is for the post-processing's"),
        ("tune E --try-members a", "--try-members belongs to --stages"),
        ("tune --manifest m.json --predictions p --data d --device cpu", "--device is for the networks"),
        ("tune --manifest m.json --predictions p --data d --dtype float32", "--dtype is for the networks"),
        (
            "tune --manifest m.json --predictions p --data d --stages",
            "--predictions is of no use: --stages needs the network",
        ),
    ],
)
def test_options_without_effect_are_refused(
    here: Path, capsys: pytest.CaptureFixture[str], words: str, told: str
) -> None:
    command = words.replace(" E", " " + " ".join(ENSEMBLE)).split()
    assert main(command) == 2
    assert told in capsys.readouterr().err
    assert list(here.iterdir()) == []


def same(path: Path) -> Path:
    return path


def relative(path: Path) -> Path:
    return Path(os.path.relpath(path))


def around(path: Path) -> Path:
    return path.parent / "." / path.parent.name / ".." / path.name if path.parent.name else path


def linked(path: Path) -> Path:
    link = path.parent / "a link"
    link.symlink_to(path)
    return link


def by_linked_folder(path: Path) -> Path:
    link = path.parents[1] / "another way"
    link.symlink_to(path.parent)
    return link / path.name


@pytest.mark.parametrize("spelled", [same, relative, linked, by_linked_folder])
@pytest.mark.parametrize(
    "words",
    [
        # IN is a file that is read.
        "prepare --livecell-annotations IN --livecell-images i --out OUT",
        "prepare --pseudo-labels IN --images i --cell-types cort --out OUT",
        "prepare --pseudo-labels s.csv --images i --cell-types IN --out OUT",
        "train --data d --out OUT/annotations.safetensors --manifest IN --member m",
        "train --data d --out OUT/annotations.safetensors --add-to IN",
        "train --data d --out OUT/annotations.safetensors --recipe IN",
        "predict i --manifest IN --weights-dir w --out OUT",
        "validate --manifest IN --weights-dir w --data d --out OUT",
        "validate --manifest m --weights-dir w --data d --fold 0 --folds-csv IN --out OUT",
        "validate --manifest m --weights-dir w --data d --tuning OUT --out OUT",
        "validate --manifest m --weights-dir w --data d --predictions OUT --out OUT",
        "validate --manifest m --weights-dir w --data d --predictions OUT/kept --out OUT",
        "validate --manifest m --weights-dir OUT --data d --out OUT",
        "tune --manifest m --weights-dir w --data d --grid IN --out OUT",
        "tune --manifest m --predictions OUT --data d --out OUT",
        "tune --manifest IN --weights-dir w --data d --stages --out OUT",
        "select --manifest IN --weights-dir w --data OUT --out OUT",
        "convert IN IN",
    ],
)
def test_what_is_read_is_never_written_over(
    here: Path, capsys: pytest.CaptureFixture[str], words: str, spelled: Callable[[Path], Path]
) -> None:
    (here / "folder").mkdir()
    given = here / "folder" / "annotations.json"
    given.write_text("hours of work", encoding="utf-8")
    named = str(spelled(given))
    command = [word.replace("OUT", str(here / "folder")) for word in words.split()]
    assert main([named if word == "IN" else word for word in command]) == 2
    assert "is read, and would be lost: this command writes" in capsys.readouterr().err
    assert given.read_text(encoding="utf-8") == "hours of work"


def test_hard_links_are_the_same_file(here: Path) -> None:
    (here / "a").write_text("mine", encoding="utf-8")
    os.link(here / "a", here / "b")
    with pytest.raises(InputError, match="would be lost"):
        refuse_to_lose([("--init", here / "a")], [here / "b"])
    refuse_to_lose([("--init", here / "a"), ("--data", here)], [here / "c", here / "a" / "d"])
    refuse_to_lose([("--data", here / "nowhere")], [here / "elsewhere"])
    refuse_to_lose([], [here])


def test_weights_that_train_members_starts_from_are_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "htc.safetensors").write_bytes(b"hours")
    words = ["train-members", "--competition", "c", "--out", str(here), "--encoder-weights", "htc.safetensors"]
    assert main(words) == 2
    assert "--encoder-weights htc.safetensors is read, and would be lost" in capsys.readouterr().err


OWN = ResultFolder("this", ("a.csv", "*.png"), ("a.csv",))
OTHER = ResultFolder("other", ("b.csv", "pictures"), ("b.csv",))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], ""),
        (["a.csv"], ""),
        (["a.csv", "x.png"], ""),
        (["a.csv", ".DS_Store", "._a.csv", "Thumbs.db", "desktop.ini"], ""),
        ([".DS_Store"], ""),
        (["thesis.tex", ".DS_Store"], r"holds other files \(thesis\.tex\)"),
        (["b.csv", ".DS_Store"], "holds what other has written.*give --replace"),
        (["x.png"], r"holds other files \(x\.png\)"),
        (["a.csv", "thesis.tex"], r"holds other files \(thesis\.tex\)"),
        (["a.csv", ".hidden"], r"holds other files \(\.hidden\)"),
        (["b.csv", "pictures"], "holds what other has written.*give --replace"),
        (["b.csv", "a.csv"], r"holds other files \(b\.csv\)"),
    ],
)
def test_what_may_be_replaced(here: Path, names: list[str], told: str) -> None:
    target = here / "target"
    target.mkdir()
    for name in names:
        (target / name).touch()
    if not told:
        refuse_to_replace(target, OWN, [OWN, OTHER])
        return
    with pytest.raises(InputError, match=told):
        refuse_to_replace(target, OWN, [OWN, OTHER])
    if "--replace" in told:
        refuse_to_replace(target, OWN, [OWN, OTHER], replace=True)
    else:  # of nobody's result: never
        with pytest.raises(InputError, match=told):
            refuse_to_replace(target, OWN, [OWN, OTHER], replace=True)


def test_a_link_to_nothing_is_not_replaced(here: Path) -> None:
    (here / "target").symlink_to(here / "gone")
    with pytest.raises(InputError, match="is a file"):
        refuse_to_replace(here / "target", OWN)


def test_rules_fill_in_defaults() -> None:
    rules = CommandRules(
        effects=(Idle(["folds"], lambda options: not options.split, "is idle"),), defaults={"folds": 5}
    )
    assert rules.checked(argparse.Namespace(folds=None, split=None)).folds == 5
    assert rules.checked(argparse.Namespace(folds=3, split="group")).folds == 3
    with pytest.raises(InputError, match="--folds is idle"):
        rules.checked(argparse.Namespace(folds=5, split=None))
