"""Mounts are found in every form that Kaggle has used."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.errors import InputError
from kernel.mounts import (
    INPUT_ROOT_VARIABLE,
    dataset_folders,
    find_competition,
    find_files,
    find_weights,
    input_root,
    walk_paths,
)


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("form", ["datasets/me/weights", "weights", "a/b/c/weights"])
def test_dataset_forms(tmp_path: Path, form: str) -> None:
    put(tmp_path / form / "x.pt")
    assert dataset_folders(tmp_path, "me/weights").trusted == (tmp_path / form,)


def test_owner_form_comes_before_flat_form(tmp_path: Path) -> None:
    put(tmp_path / "weights" / "x.pt")
    put(tmp_path / "datasets" / "me" / "weights" / "x.pt")
    folders = dataset_folders(tmp_path, "me/weights")
    assert folders.trusted == (tmp_path / "datasets" / "me" / "weights",) and folders.all[1:] == (tmp_path / "weights",)


@pytest.mark.parametrize("form", ["competitions/cells/test", "cells/test", "odd/place/cells/test"])
def test_competition_forms(tmp_path: Path, form: str) -> None:
    put(tmp_path / form / "x.png")
    assert find_competition(tmp_path, "cells") == tmp_path / form


def test_missing_mount_lists_what_was_tried(tmp_path: Path) -> None:
    put(tmp_path / "other" / "x.pt")
    with pytest.raises(InputError) as caught:
        dataset_folders(tmp_path, "me/weights")
    message = str(caught.value)
    assert "dataset me/weights is not mounted" in message and "which holds other/" in message
    assert str(tmp_path / "datasets" / "me" / "weights") in message and str(tmp_path / "weights") in message


def test_walk_is_bounded(tmp_path: Path) -> None:
    put(tmp_path / "1/2/3/4/5/weights/x.pt")
    with pytest.raises(InputError, match="up to 5 folders"):
        dataset_folders(tmp_path, "me/weights")


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
    with pytest.raises(InputError, match=r"2 files a\.pt .*weights/one/a\.pt, weights/two/a\.pt"):
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


@pytest.mark.parametrize("place", ["a.pt", "fold1/a.pt", "deep/er/a.pt"])
def test_a_sum_finds_weights_in_another_folder_of_the_dataset(tmp_path: Path, place: str) -> None:
    """The manifest has the folder of somebody's download, or the dataset was sorted into folders since."""
    put(tmp_path / "weights" / "old" / "a.pt", b"other")
    path = put(tmp_path / "weights" / place, b"good")
    for name in ("ens11/a.pt", "a.pt", "old/a.pt"):
        assert find_weights(tmp_path, ["me/weights"], name, sum_of(b"good")) == path
    with pytest.raises(InputError, match=r"no file ens11/a\.pt; it holds"):
        find_weights(tmp_path, ["me/weights"], "ens11/a.pt", None)


def test_altered_weights_name_both_sums(tmp_path: Path) -> None:
    put(tmp_path / "first" / "a.pt", b"bad")
    with pytest.raises(InputError) as caught:
        find_weights(tmp_path, ("me/first", "me/absent"), "a.pt", sum_of(b"good"))
    message = str(caught.value)
    assert sum_of(b"good") in message and sum_of(b"bad") in message and "me/absent is not mounted" in message


def test_weights_of_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no dataset at all"):
        find_weights(tmp_path, (), "a.pt", None)


# --- the whole identity decides: the owner, then the sum ------------------------------------------------------------


@pytest.mark.parametrize("form", ["datasets/{}/weights", "d/{}/weights", "mnt/inputs/{}/weights", "a/b/d/{}/weights"])
@pytest.mark.parametrize("sha256", [None, sum_of(b"mine")])
def test_of_two_owners_with_one_slug_each_gets_its_own(tmp_path: Path, form: str, sha256: str | None) -> None:
    mine = put(tmp_path / form.format("me") / "best.pt", b"mine")
    put(tmp_path / form.format("you") / "best.pt", b"yours")
    put(tmp_path / "weights" / "best.pt", b"flat")
    assert find_weights(tmp_path, ["me/weights"], "best.pt", sha256) == mine
    assert dataset_folders(tmp_path, "me/weights").trusted == (mine.parent,)


@pytest.mark.parametrize(("mounted", "named"), [("ada", "Ada"), ("Ada", "ada"), ("ada-L", "Ada-l")])
def test_an_owner_in_other_letters_is_the_same(tmp_path: Path, mounted: str, named: str) -> None:
    mine = put(tmp_path / "datasets" / mounted / "weights" / "best.pt", b"mine")
    put(tmp_path / "datasets" / "you" / "weights" / "best.pt", b"yours")
    assert find_weights(tmp_path, [f"{named}/weights"], "best.pt", None) == mine
    assert dataset_folders(tmp_path, f"{named}/weights").trusted == (mine.parent,)


@pytest.mark.parametrize("parent", ["datasets", "d", "x/datasets"])
def test_a_flat_mount_is_the_owners_whose_own_is_not_there(tmp_path: Path, parent: str) -> None:
    """As Kaggle mounted two sources of one slug: the first one flat, the second one below d/<owner>."""
    first = put(tmp_path / "weights" / "best.pt", b"first")
    second = put(tmp_path / parent / "bob" / "weights" / "best.pt", b"second")
    assert find_weights(tmp_path, ["alice/weights"], "best.pt", None) == first
    assert find_weights(tmp_path, ["bob/weights"], "best.pt", None) == second
    assert find_weights(tmp_path, ["alice/weights"], "best.pt", sum_of(b"first")) == first


def test_all_candidates_are_tried_for_a_sum(tmp_path: Path) -> None:
    """The owner's own folder has no such file, or an altered one; one that was moved to another account has it."""
    put(tmp_path / "datasets" / "me" / "weights" / "a.pt", b"altered")
    put(tmp_path / "weights" / "b.pt")
    right = put(tmp_path / "datasets" / "you" / "weights" / "run" / "a.pt", b"right")
    assert find_weights(tmp_path, ["me/weights"], "a.pt", sum_of(b"right")) == right
    with pytest.raises(InputError) as caught:
        find_weights(tmp_path, ["me/weights"], "a.pt", sum_of(b"none"))
    for told in (sum_of(b"altered"), sum_of(b"right"), f"{tmp_path / 'weights'}: no file a.pt; it holds b.pt"):
        assert told in str(caught.value)


def test_the_owners_folder_without_the_file_is_not_the_end(tmp_path: Path) -> None:
    put(tmp_path / "datasets" / "me" / "weights" / "b.pt")
    path = put(tmp_path / "weights" / "a.pt")
    assert find_weights(tmp_path, ["me/weights"], "a.pt", None) == path


def test_another_owners_file_without_a_sum_is_refused(tmp_path: Path) -> None:
    other = put(tmp_path / "d" / "you" / "weights" / "a.pt")
    with pytest.raises(InputError, match=r"another owner's"):
        find_weights(tmp_path, ["me/weights"], "a.pt", None)
    folders = dataset_folders(tmp_path, "me/weights")
    assert folders.trusted == () and folders.others == (other.parent,)


def test_two_of_one_name_without_a_sum_are_both_named(tmp_path: Path) -> None:
    put(tmp_path / "one" / "weights" / "a.pt", b"1")
    two = put(tmp_path / "two" / "weights" / "a.pt", b"2")
    with pytest.raises(InputError, match=r"2 files a\.pt .*one/weights/a\.pt, two/weights/a\.pt"):
        find_weights(tmp_path, ["me/weights"], "a.pt", None)
    assert find_weights(tmp_path, ["me/weights"], "a.pt", sum_of(b"2")) == two


def test_a_folder_of_the_same_name_inside_is_no_second_mount(tmp_path: Path) -> None:
    path = put(tmp_path / "weights" / "weights" / "a.pt")
    assert find_weights(tmp_path, ["me/weights"], "a.pt", None) == path


def test_circles_of_links_are_walked_once(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"link{number}").symlink_to(tmp_path)
    put(tmp_path / "deep" / "er" / "weights" / "a.pt")
    assert len(list(walk_paths(tmp_path))) < 40
    assert dataset_folders(tmp_path, "me/weights").all == (tmp_path / "deep" / "er" / "weights",)


# --- neighbours that cannot be read ---------------------------------------------------------------------------------


@pytest.fixture
def closed_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders called lost+found or closed cannot be listed, whoever asks: root may read everything."""

    iterdir = Path.iterdir

    def iterate(folder: Path) -> Iterator[Path]:
        if folder.name in ("closed", "lost+found"):
            raise PermissionError(13, "Permission denied", str(folder))
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", iterate)


@pytest.mark.usefixtures("closed_listing")
def test_a_closed_neighbour_is_passed_over_with_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path / "closed" / "weights" / "a.pt")
    path = put(tmp_path / "mnt" / "data" / "weights" / "a.pt")
    images = put(tmp_path / "mnt" / "cells" / "test" / "a.png").parent
    with caplog.at_level(logging.WARNING, "kernel"):
        assert find_weights(tmp_path, ["me/weights"], "a.pt", None) == path
        assert find_competition(tmp_path, "cells") == images
    assert f"{tmp_path / 'closed'} is passed over: it cannot be read (Permission denied)" in caplog.messages


@pytest.mark.usefixtures("closed_listing")
def test_a_mount_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    put(tmp_path / "closed" / "a.pt")
    with pytest.raises(InputError, match=r"no file b\.pt; it holds what cannot be read \(Permission denied\)"):
        find_weights(tmp_path, ["me/closed"], "b.pt", None)


def test_a_file_that_cannot_be_read_is_told_and_the_next_one_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = put(tmp_path / "first" / "a.pt", b"good")
    second = put(tmp_path / "second" / "a.pt", b"good")

    def read(path: Path) -> str:
        if path == first:
            raise OSError(5, "Input/output error")
        return sum_of(path.read_bytes())

    monkeypatch.setattr("kernel.mounts.file_sha256", read)
    assert find_weights(tmp_path, ["me/first", "me/second"], "a.pt", sum_of(b"good")) == second
    with pytest.raises(InputError, match=r"first/a\.pt: cannot be read: Input/output error") as caught:
        find_weights(tmp_path, ["me/first"], "a.pt", sum_of(b"good"))
    assert isinstance(caught.value.__cause__, OSError)
