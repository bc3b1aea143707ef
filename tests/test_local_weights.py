"""Weight files are found by name and checksum, or recognised by content; what is doubtful is refused."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import kernel.models.recognition
from kernel.errors import InputError
from kernel.local_weights import check_claims, resolve_weights
from kernel.manifest.types import KernelIdentity, Manifest, MemberEntry

ALL_TYPES = ("shsy5y", "astro", "cort")


def manifest_of(*members: MemberEntry) -> Manifest:
    identity = KernelIdentity("me/some-kernel", "Some kernel", "cells")
    return Manifest(identity, "me/wheels", members, weight_datasets=("me/first", "me/second"))


def member(name: str, kind: str = "htc", **given: str | None) -> MemberEntry:
    return replace(MemberEntry(name, kind, "resnet50", ALL_TYPES), **given)


def put(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def sum_of(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class Recognised:
    kind: str
    encoder: str


@pytest.fixture(autouse=True)
def content_is_kind_and_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of these tests hold the words `kind encoder`."""

    def recognise(path: Path) -> Recognised:
        words = path.read_text(encoding="utf-8").split()
        if len(words) < 2:
            raise InputError(f"{path}: no detector of ours")
        return Recognised(words[0], words[1])

    monkeypatch.setattr(kernel.models.recognition, "recognise_checkpoint", recognise)


@pytest.mark.parametrize(
    ("place", "dataset"), [("second/a.pt", "me/second"), ("me/first/a.pt", "me/first"), ("a.pt", None)]
)
def test_named_file_is_found_and_summed(tmp_path: Path, place: str, dataset: str | None) -> None:
    path = put(tmp_path / place, "htc resnet50")
    filled, [found] = resolve_weights(manifest_of(member("one", file="a.pt")), tmp_path)
    assert found.path == path
    assert filled.members == (member("one", file="a.pt", sha256=sum_of("htc resnet50"), dataset=dataset),)


def test_the_folder_above_is_told_where_the_files_lie(tmp_path: Path) -> None:
    """As --from takes a folder of members."""
    put(tmp_path / "weights" / "a.pt", "htc resnet50")
    with pytest.raises(InputError, match=r"no file a\.pt .*; there is one in .*weights: name that folder$"):
        resolve_weights(manifest_of(member("one", file="a.pt")), tmp_path)
    resolve_weights(manifest_of(member("one", file="a.pt")), tmp_path / "weights")


def test_of_equal_names_the_sum_decides(tmp_path: Path) -> None:
    put(tmp_path / "first" / "a.pt", "htc resnet50 old")
    path = put(tmp_path / "second" / "a.pt", "htc resnet50 new")
    _, [found] = resolve_weights(manifest_of(member("one", file="a.pt", sha256=sum_of("htc resnet50 new"))), tmp_path)
    assert found.path == path and found.member.dataset == "me/second"


def test_one_file_in_two_datasets_is_one_member(tmp_path: Path) -> None:
    """Each owner's copy has a place of its own, and a name as well; only the sums tell."""
    put(tmp_path / "first" / "a.pt", "htc resnet50")
    put(tmp_path / "second" / "b.pt", "htc resnet50")
    members = (member("one", file="a.pt", dataset="me/first"), member("two", file="b.pt", dataset="me/second"))
    with pytest.raises(InputError, match=r"members one and two are the same file, .*a\.pt and .*b\.pt"):
        resolve_weights(manifest_of(*members), tmp_path)


def test_missing_and_altered_files_are_all_named(tmp_path: Path) -> None:
    put(tmp_path / "b.pt", "changed")
    members = member("one", file="a.pt"), member("two", file="b.pt", sha256=sum_of("whole"))
    with pytest.raises(InputError) as caught:
        resolve_weights(manifest_of(*members), tmp_path)
    message = str(caught.value)
    assert "member one: no file a.pt" in message and str(tmp_path / "first" / "a.pt") in message
    assert f"member two: b.pt was altered: expected sha256 {sum_of('whole')}" in message
    assert sum_of("changed") in message


def test_a_bare_python_cannot_look_into_files_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.pt", "cascade resnet101")
    manifest, weights = resolve_weights(manifest_of(member("one", file="a.pt")), tmp_path)
    monkeypatch.setattr("kernel.local_weights.can_read_weights", lambda: False)
    [told] = check_claims(manifest, weights)
    assert "whether the weight files fit" in told


def test_files_are_recognised_by_content(tmp_path: Path) -> None:
    one = put(tmp_path / "first" / "fold" / "x.pt", "htc resnet50")
    two = put(tmp_path / "y.safetensors", "cascade resnet50")
    put(tmp_path / "first" / "copy.pt", "htc resnet50 ")
    put(tmp_path / "notes.txt", "htc resnet50")
    put(tmp_path / "optimizer.pt", "state")
    manifest = manifest_of(member("two", "cascade"), member("named", file="copy.pt"), member("one"))
    filled, found = resolve_weights(manifest, tmp_path)
    assert [weights.path for weights in found] == [two, tmp_path / "first" / "copy.pt", one]
    assert filled.members[2] == member("one", file="fold/x.pt", dataset="me/first", sha256=sum_of("htc resnet50"))
    assert filled.members[0] == member(
        "two", "cascade", file="y.safetensors", dataset=None, sha256=sum_of("cascade resnet50")
    )


@pytest.mark.parametrize("place", ["x.pt", "ens11/x.pt", "theirs/ens11/x.pt"])
def test_a_folder_that_is_no_datasets_says_nothing_of_the_files_place_in_it(tmp_path: Path, place: str) -> None:
    put(tmp_path / place, "htc resnet50")
    filled, _ = resolve_weights(manifest_of(member("one")), tmp_path)
    assert filled.members == (member("one", file="x.pt", sha256=sum_of("htc resnet50")),)


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    put(tmp_path / "fold0" / "best.pt", "htc resnet50")
    put(tmp_path / "fold1" / "best.pt", "cascade resnet50")
    filled, _ = resolve_weights(manifest_of(member("one"), member("two", "cascade")), tmp_path)
    assert [entry.file for entry in filled.members] == ["fold0/best.pt", "fold1/best.pt"]


def test_copies_count_once(tmp_path: Path) -> None:
    put(tmp_path / "a.pt", "htc resnet50")
    put(tmp_path / "b.pt", "htc resnet50")
    _, [found] = resolve_weights(manifest_of(member("one")), tmp_path)
    assert found.path.name == "a.pt"


def test_hidden_files_are_no_candidates(tmp_path: Path) -> None:
    put(tmp_path / ".snapshot" / "older.pt", "htc resnet50 older")
    put(tmp_path / "._x.pt", "htc resnet50 resource")
    path = put(tmp_path / "x.pt", "htc resnet50")
    assert [weights.path for weights in resolve_weights(manifest_of(member("one")), tmp_path)[1]] == [path]


def test_several_candidates_are_listed(tmp_path: Path) -> None:
    put(tmp_path / "fold0.pt", "htc resnet50 0")
    put(tmp_path / "fold1.pt", "htc resnet50 1")
    with pytest.raises(InputError, match=r"member one: 2 file\(s\) hold a htc resnet50 .* fold0\.pt, fold1\.pt"):
        resolve_weights(manifest_of(member("one")), tmp_path)


def test_two_members_of_one_sort_are_not_told_apart(tmp_path: Path) -> None:
    put(tmp_path / "a.pt", "htc resnet50 0")
    put(tmp_path / "b.pt", "htc resnet50 1")
    with pytest.raises(InputError, match=re.escape("2 member(s) ask for one (one, two)")):
        resolve_weights(manifest_of(member("one"), member("two")), tmp_path)


def test_no_candidate_names_what_was_not_recognised(tmp_path: Path) -> None:
    put(tmp_path / "strange.pt", "?")
    with pytest.raises(InputError, match=r"no weight file holds a htc resnet50; fetch it") as caught:
        resolve_weights(manifest_of(member("one")), tmp_path)
    assert "strange.pt: no detector of ours" in str(caught.value)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--weights-dir must name one"):
        resolve_weights(manifest_of(member("one")), tmp_path / "gone")
