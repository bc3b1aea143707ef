"""Out-of-fold prediction: each image by the ensemble whose members were trained without its fold.

In the manifest each member's `file` holds `{fold}`, as in "htc_{fold}.safetensors". It stands for the number of the
fold that the training of the file left out.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from kernel.data.annotated import AnnotatedImage
from kernel.errors import InputError
from kernel.local_weights import resolve_weights
from kernel.manifest.types import FOLD_PLACEHOLDER, Manifest, MemberEntry
from kernel.scoring.predicting import EnsembleFiles, PredictionJob
from kernel.text import first_names


def out_of_fold_jobs(
    manifest: Manifest, weights_dir: Path, images: Sequence[AnnotatedImage], folds: Mapping[str, int], data: Path
) -> list[PredictionJob]:
    """Each image with the ensemble of its fold, fold by fold.

    Args:
        manifest: every member's `file` holds `{fold}`.
        weights_dir: where the files are, as `resolve_weights` looks for them.
        images: to predict; only the weights of their folds are needed.
        folds: by image id, as `read_folds` gives them.
        data: the folder of the images, for the advice on what to train.

    Raises:
        InputError: a member without `{fold}`, an image in no fold, weights that are missing (the message lists all,
            each with what to train), or one file's content in two folds.
    """
    plain = [f"{member.name} ({member.file or 'no file'})" for member in manifest.members if not has_folds(member)]
    if plain:
        raise InputError(
            f"out of fold each member needs weights of each fold, and these have one file for all: {', '.join(plain)}; "
            f"write {FOLD_PLACEHOLDER} into `file` in the fold's place, as in cascade_{FOLD_PLACEHOLDER}.safetensors"
        )
    nowhere = [entry.image_id for entry in images if entry.image_id not in folds]
    if nowhere:
        raise InputError(
            f"{len(nowhere)} of {len(images)} images are in no fold: {first_names(nowhere)}; give their "
            "folds.csv (--folds-csv), which `python -m kernel prepare` writes"
        )
    files: dict[int, EnsembleFiles] = {}
    problems: list[str] = []
    for fold in sorted({folds[entry.image_id] for entry in images}):
        try:
            files[fold] = find_fold_weights(manifest, weights_dir, fold, data)
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("\n".join(problems))
    check_folds_differ(files)
    by_fold = sorted(images, key=lambda entry: folds[entry.image_id])  # stable: within a fold as they came
    return [PredictionJob(entry, files[folds[entry.image_id]], folds[entry.image_id]) for entry in by_fold]


def has_folds(member: MemberEntry) -> bool:
    """Whether the member's `file` stands for one per fold."""
    return member.file is not None and FOLD_PLACEHOLDER in member.file


def manifest_of_fold(manifest: Manifest, fold: int) -> Manifest:
    """The manifest with the files of one fold."""
    members = tuple(
        replace(member, file=member.file and member.file.replace(FOLD_PLACEHOLDER, str(fold)))
        for member in manifest.members
    )
    return replace(manifest, members=members)


def find_fold_weights(manifest: Manifest, weights_dir: Path, fold: int, data: Path) -> EnsembleFiles:
    """The ensemble of the members' weights of a fold.

    Raises:
        InputError: files are missing; the message has a line for each.
    """
    of_fold = manifest_of_fold(manifest, fold)
    members: list[MemberEntry] = []
    paths: dict[str, Path] = {}
    problems: list[str] = []
    for member in of_fold.members:
        try:
            _, (found,) = resolve_weights(replace(of_fold, members=(member,)), weights_dir)
        except InputError as error:
            train = ["--data", str(data), "--fold", str(fold), "--kind", member.kind, "--encoder", member.encoder]
            train += ["--recipe", "RECIPE", "--out", str(weights_dir / str(member.file))]
            problems.append(f"fold {fold}, {error}; or train it: python -m kernel train {shlex.join(train)}")
            continue
        members.append(found.member)
        paths[member.name] = found.path
    if problems:
        raise InputError("\n".join(problems))
    return EnsembleFiles(replace(of_fold, members=tuple(members)), paths, of_fold.dtype)


def check_folds_differ(files: Mapping[int, EnsembleFiles]) -> None:
    """Refuse two folds with the same weights: those of one have seen the images that they are to be scored on.

    Raises:
        InputError: two folds' files of a member have the same content.
    """
    for name in next(iter(files.values())).paths if files else ():
        sums = {fold: of_fold.sums[name] for fold, of_fold in files.items()}
        counts = Counter(sums.values())
        same = [fold for fold, sha256 in sums.items() if counts[sha256] > 1]
        if same:
            paths = ", ".join(str(files[fold].paths[name]) for fold in same)
            raise InputError(
                f"member {name}: the weights of the folds {', '.join(map(str, same))} are the same ({paths}), and so "
                "were trained on images that they are to be scored on: put each fold's own there"
            )
