"""Weight files at hand: found for the manifest's members in a folder, checked, or recognised by their content.

Standard library only, unless a member names no file: then the files are read (torch) to see which is whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kernel.errors import InputError
from kernel.manifest import WEIGHT_SUFFIXES, Manifest, MemberEntry
from kernel.runtime.wheels import file_sha256


@dataclass(frozen=True)
class FoundWeights:
    """One member's file on this machine."""

    member: MemberEntry  # with file and sha256 filled in
    path: Path


def resolve_weights(manifest: Manifest, folder: Path) -> tuple[Manifest, tuple[FoundWeights, ...]]:
    """Find every member's file in `folder`; returns the manifest with what was found filled in, and the files.

    A file is looked for as `<folder>/<slug>/<file>`, `<folder>/<owner>/<slug>/<file>` and `<folder>/<file>`. For
    members without `file`, all weight files below `folder` are recognised by content; exactly one of the member's
    kind and encoder must be left that is no other member's.

    Raises InputError that names the member and what is missing, altered (both hashes) or ambiguous (all candidates).
    """
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: --weights-dir must name one with the members' weight files in it")
    problems: list[str] = []
    found: dict[str, FoundWeights] = {}
    for member in manifest.members:
        if member.file is not None:
            try:
                found[member.name] = locate_named(manifest, member, folder)
            except InputError as error:
                problems.append(str(error))
    nameless = [member for member in manifest.members if member.file is None]
    if nameless:
        taken = [weights.path for weights in found.values()]
        try:
            recognised = recognise_files(nameless, folder, taken)
        except InputError as error:
            problems.append(str(error))
        else:
            for member, path in recognised.items():
                found[member.name] = describe_weights(manifest, member, path, folder)
    if problems:
        raise InputError("\n".join(problems))
    ordered = tuple(found[member.name] for member in manifest.members)
    return replace(manifest, members=tuple(weights.member for weights in ordered)), ordered


def locate_named(manifest: Manifest, member: MemberEntry, folder: Path) -> FoundWeights:
    """Find the file of a member that names it, and check its sum or fill it in."""
    assert member.file is not None
    tried: list[Path] = []
    altered: list[str] = []
    for dataset in (*manifest.datasets_for(member), None):
        if dataset is None:
            candidates = [folder / member.file]
        else:
            owner, slug = dataset.split("/")
            candidates = [folder / slug / member.file, folder / owner / slug / member.file]
        tried.extend(candidates)
        for path in filter(Path.is_file, candidates):
            sha256 = file_sha256(path)
            if member.sha256 in (None, sha256):
                return FoundWeights(replace(member, sha256=sha256, dataset=member.dataset or dataset), path)
            altered.append(f"{path} has the sha256 {sha256}")
    if altered:
        raise InputError(
            f"member {member.name}: {member.file} was altered: expected sha256 {member.sha256}, but "
            f"{'; '.join(altered)}. Fetch the file again, or, if the change is meant, correct `sha256`"
        )
    raise InputError(
        f"member {member.name}: no file {member.file} (sha256 {member.sha256 or 'not given'}). Put it in one of these "
        "places, or correct the member's `file`: " + ", ".join(map(str, tried))
    )


def recognise_files(members: Sequence[MemberEntry], folder: Path, taken: Sequence[Path]) -> dict[MemberEntry, Path]:
    """Which weight file below `folder` is whose, by the kind and encoder that each turns out to hold.

    Files in `taken` belong to others; copies of the same bytes count once. Raises InputError for a member without
    a candidate, or with several, listing them.
    """
    from kernel.models.checkpoints import recognise_checkpoint

    held: dict[tuple[str, str], list[Path]] = {}
    strangers: list[str] = []
    sums = {file_sha256(path) for path in taken}
    for path in sorted(path for path in folder.rglob("*") if path.suffix in WEIGHT_SUFFIXES and path.is_file()):
        sha256 = file_sha256(path)
        if sha256 in sums:
            continue
        sums.add(sha256)
        try:
            info = recognise_checkpoint(path)
        except InputError as error:
            strangers.append(str(error))
            continue
        held.setdefault((info.kind, info.encoder), []).append(path)
    chosen: dict[MemberEntry, Path] = {}
    problems: list[str] = []
    for member in members:
        candidates = held.get((member.kind, member.encoder), [])
        rivals = [other.name for other in members if (other.kind, other.encoder) == (member.kind, member.encoder)]
        if len(candidates) == 1 and len(rivals) == 1:
            chosen[member] = candidates[0]
        elif candidates:
            problems.append(
                f"member {member.name}: {len(candidates)} file(s) hold a {member.kind} {member.encoder} and "
                f"{len(rivals)} member(s) ask for one ({', '.join(rivals)}); say which is whose by `file`: "
                + ", ".join(path.relative_to(folder).as_posix() for path in candidates)
            )
        else:
            problems.append(
                f"member {member.name}: no weight file below {folder} holds a {member.kind} {member.encoder}; "
                "fetch it, or take the member out of the manifest"
            )
    if problems:
        raise InputError("\n".join([*problems, *(f"not recognised: {line}" for line in strangers)]))
    return chosen


def describe_weights(manifest: Manifest, member: MemberEntry, path: Path, folder: Path) -> FoundWeights:
    """Fill in what a recognised file shows: its name, its sum, and, if it lies in a dataset's folder, the dataset."""
    relative = path.relative_to(folder)
    for dataset in manifest.datasets_for(member):
        owner, slug = dataset.split("/")
        for home in (Path(slug), Path(owner, slug)):
            if relative.is_relative_to(home):
                file = relative.relative_to(home).as_posix()
                return FoundWeights(replace(member, dataset=dataset, file=file, sha256=file_sha256(path)), path)
    return FoundWeights(replace(member, file=relative.as_posix(), sha256=file_sha256(path)), path)
