"""Out of fold, each image meets the weights that have not seen it, or somebody is told what is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from kernel.data.annotated import AnnotatedImage
from kernel.data.annotations import ImageAnnotations
from kernel.errors import InputError
from kernel.local_weights import resolve_weights
from kernel.manifest.types import KernelIdentity, Manifest, MemberEntry
from kernel.scoring.out_of_fold import manifest_of_fold, out_of_fold_jobs
from kernel.settings import CELL_TYPES

DATA = Path("some data")
FOLDS = {"a": 2, "b": 0, "c": 2, "d": 0, "elsewhere": 1}
IMAGES = [AnnotatedImage(Path(f"{name}.png"), ImageAnnotations(name, "cort", (4, 4), ())) for name in "abcd"]


def manifest_of(*members: MemberEntry) -> Manifest:
    identity = KernelIdentity("me/some-kernel", "Some kernel", "cells")
    return Manifest(identity, "me/wheels", members, weight_datasets=("me/first",))


def member(name: str, file: str | None) -> MemberEntry:
    return MemberEntry(name, "htc", "resnet50", CELL_TYPES, file=file)


MANIFEST = manifest_of(member("one", "one_{fold}.pt"), member("two", "{fold}/two.pt"))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """All files of the folds 0 and 2; fold 1 has no image here."""
    for fold in (0, 2):
        (tmp_path / str(fold)).mkdir()
        (tmp_path / f"one_{fold}.pt").write_text(f"one {fold}")
        (tmp_path / str(fold) / "two.pt").write_text(f"two {fold}")
    return tmp_path


def test_each_image_meets_the_weights_of_its_fold(weights: Path) -> None:
    jobs = out_of_fold_jobs(MANIFEST, weights, IMAGES, FOLDS, DATA)
    assert [(job.image.image_id, job.fold) for job in jobs] == [("b", 0), ("d", 0), ("a", 2), ("c", 2)]
    for job in jobs:
        assert job.files.paths == {"one": weights / f"one_{job.fold}.pt", "two": weights / f"{job.fold}/two.pt"}
        plain, found = resolve_weights(manifest_of_fold(MANIFEST, FOLDS[job.image.image_id]), weights)
        assert job.files.manifest == plain
        assert job.files.sums == {weight.member.name: weight.member.sha256 for weight in found}
    assert jobs[0].files is jobs[1].files and jobs[0].files != jobs[2].files
    assert out_of_fold_jobs(MANIFEST, weights, [], FOLDS, DATA) == []


def test_missing_weights_are_all_told_with_what_to_train(weights: Path) -> None:
    (weights / "one_0.pt").unlink()
    (weights / "2" / "two.pt").unlink()
    with pytest.raises(InputError) as error:
        out_of_fold_jobs(MANIFEST, weights, IMAGES, FOLDS, DATA)
    first, second = str(error.value).splitlines()
    assert first.startswith("fold 0, member one: no file one_0.pt") and str(weights / "one_0.pt") in first
    assert first.endswith(
        "or train it: python -m kernel train --data 'some data' --fold 0 --kind htc --encoder resnet50 "
        f"--recipe RECIPE --out {weights / 'one_0.pt'}"
    )
    assert second.startswith("fold 2, member two: no file 2/two.pt")


@pytest.mark.parametrize("file", ["two.pt", None])
def test_a_member_with_one_file_for_all_folds_is_told(weights: Path, file: str | None) -> None:
    mixed = manifest_of(MANIFEST.members[0], member("two", file))
    told = re.escape(f"one file for all: two ({file or 'no file'}); write {{fold}} into `file`")
    with pytest.raises(InputError, match=told):
        out_of_fold_jobs(mixed, weights, IMAGES, FOLDS, DATA)


def test_images_in_no_fold_are_named(weights: Path) -> None:
    folds = {name: fold for name, fold in FOLDS.items() if name not in "ac"}
    with pytest.raises(InputError, match=r"2 of 4 images are in no fold: a, c; give their folds\.csv"):
        out_of_fold_jobs(MANIFEST, weights, IMAGES, folds, DATA)


def test_the_same_weights_in_two_folds_are_told(weights: Path) -> None:
    (weights / "one_2.pt").write_text("one 0")
    told = r"member one: the weights of the folds 0, 2 are the same \(.*one_0\.pt, .*one_2\.pt\)"
    with pytest.raises(InputError, match=told):
        out_of_fold_jobs(MANIFEST, weights, IMAGES, FOLDS, DATA)


def test_only_out_of_fold_takes_a_file_per_fold(weights: Path) -> None:
    told = r"--out-of-fold` alone takes: one \(one_\{fold\}\.pt\), two .*name that of one fold, one_0\.pt for example"
    with pytest.raises(InputError, match=told):
        resolve_weights(MANIFEST, weights)
    plain = replace(MANIFEST, members=manifest_of_fold(MANIFEST, 2).members)
    assert [found.path for found in resolve_weights(plain, weights)[1]] == [weights / "one_2.pt", weights / "2/two.pt"]
