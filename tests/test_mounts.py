"""Mounts are found in every form that Kaggle has used."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from kernel.errors import InputError
from kernel.mounts import INPUT_ROOT_VARIABLE, find_competition, find_dataset, find_files, find_weights, input_root


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("form", ["datasets/me/weights", "weights", "a/b/c/weights"])
def test_dataset_forms(tmp_path: Path, form: str) -> None:
    put(tmp_path / form / "x.pt")
    assert find_dataset(tmp_path, "me/weights") == tmp_path / form


def test_owner_form_comes_before_flat_form(tmp_path: Path) -> None:
    put(tmp_path / "weights" / "x.pt")
    put(tmp_path / "datasets" / "me" / "weights" / "x.pt")
    assert find_dataset(tmp_path, "me/weights") == tmp_path / "datasets" / "me" / "weights"


@pytest.mark.parametrize("form", ["competitions/cells/test", "cells/test", "odd/place/cells/test"])
def test_competition_forms(tmp_path: Path, form: str) -> None:
    put(tmp_path / form / "x.png")
    assert find_competition(tmp_path, "cells") == tmp_path / form


def test_missing_mount_lists_what_was_tried(tmp_path: Path) -> None:
    put(tmp_path / "other" / "x.pt")
    with pytest.raises(InputError) as caught:
        find_dataset(tmp_path, "me/weights")
    message = str(caught.value)
    assert "dataset me/weights is not mounted" in message and "which holds other/" in message
    assert str(tmp_path / "datasets" / "me" / "weights") in message and str(tmp_path / "weights") in message


def test_walk_is_bounded(tmp_path: Path) -> None:
    put(tmp_path / "1/2/3/4/5/weights/x.pt")
    with pytest.raises(InputError, match="up to 5 folders"):
        find_dataset(tmp_path, "me/weights")


def test_hidden_copies_are_not_found(tmp_path: Path) -> None:
    for name in (".snapshot/w.pth", "__MACOSX/w.pth", "models/w.pth"):
        put(tmp_path / name)
    assert find_files(tmp_path, "w.pth") == [tmp_path / "models" / "w.pth"]


def test_empty_root(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="which holds nothing"):
        find_competition(tmp_path, "cells")


def test_input_root_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(INPUT_ROOT_VARIABLE, str(tmp_path))
    assert input_root() == tmp_path
    monkeypatch.setenv(INPUT_ROOT_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(InputError, match=INPUT_ROOT_VARIABLE):
        input_root()


def test_weights_here_or_below(tmp_path: Path) -> None:
    below = put(tmp_path / "weights" / "run" / "deep" / "a.pt")
    for name in ("a.pt", "deep/a.pt"):
        assert find_weights(tmp_path, ["me/weights"], name, None) == below
    here = put(tmp_path / "weights" / "a.pt")
    assert find_weights(tmp_path, ["me/weights"], "a.pt", None) == here
    with pytest.raises(InputError, match=r"no file b\.pt"):
        find_weights(tmp_path, ["me/weights"], "b.pt", None)


def test_between_weights_of_one_name_there_is_no_guessing(tmp_path: Path) -> None:
    put(tmp_path / "weights" / "one" / "a.pt")
    put(tmp_path / "weights" / "two" / "a.pt")
    with pytest.raises(InputError, match=r"2 files a\.pt .*one/a\.pt, two/a\.pt"):
        find_weights(tmp_path, ["me/weights"], "a.pt", None)


def test_weights_in_the_first_dataset_that_has_them(tmp_path: Path) -> None:
    path = put(tmp_path / "datasets" / "me" / "second" / "a.pt", b"good")
    datasets = ("me/absent", "me/second")
    assert find_weights(tmp_path, datasets, "a.pt", None) == path
    assert find_weights(tmp_path, datasets, "a.pt", sum_of(b"good")) == path


def test_weights_of_the_right_sum(tmp_path: Path) -> None:
    put(tmp_path / "first" / "a.pt", b"other")
    put(tmp_path / "second" / "fold0" / "a.pt", b"another")
    path = put(tmp_path / "second" / "fold1" / "a.pt", b"good")
    assert find_weights(tmp_path, ("me/first", "me/second"), "a.pt", sum_of(b"good")) == path


def test_altered_weights_name_both_sums(tmp_path: Path) -> None:
    put(tmp_path / "first" / "a.pt", b"bad")
    with pytest.raises(InputError) as caught:
        find_weights(tmp_path, ("me/first", "me/absent"), "a.pt", sum_of(b"good"))
    message = str(caught.value)
    assert sum_of(b"good") in message and sum_of(b"bad") in message and "me/absent is not mounted" in message


def test_weights_of_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dataset at all"):
        find_weights(tmp_path, (), "a.pt", None)
