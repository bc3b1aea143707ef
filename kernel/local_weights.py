"""The weight files of a manifest's members in a folder on this machine.

A member that names its file gets it by name and checksum, for which a bare Python suffices. A member that names none
gets the file with the content that it claims, for which torch is needed. Where torch is installed, `check_claims` also
loads the files as the kernel will.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kernel.errors import InputError
from kernel.files import file_sha256, reading
from kernel.images.listing import is_hidden
from kernel.manifest.presets import WEIGHTS_NAME
from kernel.manifest.reader import same_sums
from kernel.manifest.types import USUAL_COMPETITION, WEIGHT_SUFFIXES, Manifest, MemberEntry, refuse_fold_files
from kernel.mounts import is_file
from kernel.signals import ended_at_once


@dataclass(frozen=True)
class FoundWeights:
    """One member's file on this machine."""

    member: MemberEntry  # with file and sha256 filled in
    path: Path


def resolve_weights(manifest: Manifest, folder: Path) -> tuple[Manifest, tuple[FoundWeights, ...]]:
    """Find every member's file in `folder`.

    A file is looked for as `<folder>/<slug>/<file>`, `<folder>/<owner>/<slug>/<file>` and `<folder>/<file>`. For
    members without `file`, all weight files below `folder` are recognised by content; exactly one that is no other
    member's must have the member's detector kind and encoder.

    Returns:
        The manifest with file, checksum and dataset filled in, and the files in the order of its members.

    Raises:
        InputError: files are missing, altered (with both checksums), ambiguous (with all candidates) or the same, each
            with its member; or as `refuse_fold_files` does.
    """
    refuse_fold_files(manifest)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: --weights-dir must name one with the members' weight files in it")
    problems: list[str] = []
    found: dict[str, FoundWeights] = {}
    for member in manifest.members:
        if member.file is not None:
            try:
                found[member.name] = locate_named(manifest, member, folder)
            except InputError as error:
                problems.append(f"{error}{place_hint(manifest, member, folder)}")
    nameless = [member for member in manifest.members if member.file is None]
    if nameless:
        with ended_at_once():
            from kernel.models.recognition import recognise_members

        try:
            visible = (path for path in folder.rglob("*") if not any(map(is_hidden, path.relative_to(folder).parts)))
            recognised = recognise_members(nameless, visible, [weights.path for weights in found.values()])
        except InputError as error:
            problems.append(f"below {folder}: {error}")
        else:
            paths = [*(weights.path for weights in found.values()), *recognised.values()]
            counts = Counter(path.name for path in paths)
            for member in nameless:
                path = recognised[member.name]
                found[member.name] = describe_weights(manifest, member, path, folder, counts[path.name] == 1)
    if problems:
        raise InputError("\n".join(problems))
    ordered = tuple(found[member.name] for member in manifest.members)
    same = same_sums([weights.member.sha256 for weights in ordered])
    if same:
        raise InputError(
            "\n".join(
                f"members {ordered[first].member.name} and {ordered[second].member.name} are the same file, "
                f"{ordered[first].path} and {ordered[second].path}: the same detector counted twice adds nothing; take "
                "one of them out"
                for first, second in same
            )
        )
    return replace(manifest, members=tuple(weights.member for weights in ordered)), ordered


def can_read_weights() -> bool:
    """Whether this Python has the packages that read weight files; a build works without."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "timm", "safetensors"))


def check_claims(manifest: Manifest, weights: Sequence[FoundWeights]) -> list[str]:
    """Check the files as the kernel will when it loads them, if this Python can: for a build, which needs none of them.

    mmdet must be importable.

    Returns:
        What nobody has checked, or the files leave open, a sentence each.

    Raises:
        InputError: as `check_members`, each problem with its member, or as `member_pixel_um`.
    """
    if not can_read_weights():
        return ["whether the weight files fit: this Python has no torch, timm and safetensors to look into them"]
    with ended_at_once():
        from kernel.ensemble.load import check_members
        from kernel.images.zoom import COMPETITION_PIXEL_UM, is_same_scale
        from kernel.scale import member_pixel_um

    paths = {found.member.name: found.path for found in weights}
    told = check_members(manifest, paths)
    # The kernel zooms no image. Of other competitions nobody knows the pixels here.
    size, competition = member_pixel_um(paths), manifest.kernel.competition
    if competition == USUAL_COMPETITION and not is_same_scale(size, COMPETITION_PIXEL_UM):
        told.append(
            f"the members have learned from pixels of {size:g} um, and those of {competition} have "
            f"{COMPETITION_PIXEL_UM:g}: the kernel shows them cells of {size / COMPETITION_PIXEL_UM:.2g} times the "
            "diameter that they know; take members of that size, or train these on (`python -m kernel train --init`)"
        )
    return told


def locate_named(manifest: Manifest, member: MemberEntry, folder: Path) -> FoundWeights:
    """Find the file of a member that names it, and check its checksum or fill it in.

    Raises:
        InputError: there is no such file, or it was altered.
    """
    assert member.file is not None
    tried: list[Path] = []
    altered: list[str] = []
    for dataset in (*manifest.datasets_for(member), None):
        candidates = [home / member.file for home in dataset_homes(folder, dataset)]
        tried.extend(candidates)
        for path in filter(is_file, candidates):
            with reading(path):
                sha256 = file_sha256(path)
            if member.sha256 in (None, sha256):
                return FoundWeights(replace(member, sha256=sha256, dataset=member.dataset or dataset), path)
            altered.append(f"{path} has the sha256 {sha256}")
    if altered:
        raise InputError(
            f"member {member.name}: {member.file} was altered: expected sha256 {member.sha256}, but "
            f"{'; '.join(altered)}; fetch the file again, or, if the change is meant, correct `sha256`"
        )
    raise InputError(
        f"member {member.name}: no file {member.file} (sha256 {member.sha256 or 'not given'}): put it in one of these "
        "places, or correct the member's `file`: " + ", ".join(map(str, tried))
    )


def dataset_homes(folder: Path, dataset: str | None) -> list[Path]:
    """Where below `folder` the files of a dataset may lie; of None: of any."""
    if dataset is None:
        return [folder]
    owner, slug = dataset.split("/")
    return [folder / slug, folder / owner / slug]


def place_hint(manifest: Manifest, member: MemberEntry, folder: Path) -> str:
    """Where a member's file is that was not found, to end a message with.

    It may lie in the folder's own `weights`, as in a folder of members, or be called otherwise: its checksum tells.
    """
    inner = folder / WEIGHTS_NAME
    if member.file is not None and is_file(inner / member.file):
        return f"; there is one in {inner}: name that folder"
    if member.sha256 is None:
        return ""
    homes = [home for dataset in (*manifest.datasets_for(member), None) for home in dataset_homes(folder, dataset)]
    files = [path for home in homes if home.is_dir() for path in sorted(home.iterdir())]
    named = [path for path in files if path.suffix in WEIGHT_SUFFIXES and path.is_file()]
    with reading(folder):
        same = [path for path in named if file_sha256(path) == member.sha256]
    return f"; {same[0]} is that file under another name: rename it, or correct `file`" if same else ""


def describe_weights(manifest: Manifest, member: MemberEntry, path: Path, folder: Path, alone: bool) -> FoundWeights:
    """Fill in a recognised file's name and checksum, and the dataset in whose folder it lies, if any.

    In no dataset's folder, its path says nothing of its place in the dataset: its base name is taken. Where other
    members' files have that name too (it is not `alone`), the path tells them apart, and the checksum finds them.
    """
    relative = path.relative_to(folder)
    for dataset in manifest.datasets_for(member):
        owner, slug = dataset.split("/")
        for home in (Path(slug), Path(owner, slug)):
            if relative.is_relative_to(home):
                file = relative.relative_to(home).as_posix()
                return FoundWeights(replace(member, dataset=dataset, file=file, sha256=file_sha256(path)), path)
    file = path.name if alone else relative.as_posix()
    return FoundWeights(replace(member, file=file, sha256=file_sha256(path)), path)
