"""Weight files matched to members by their content."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from kernel.errors import InputError
from kernel.files import file_sha256, reading
from kernel.manifest.types import WEIGHT_SUFFIXES, MemberEntry
from kernel.models.checkpoints import recognise_checkpoint


def recognise_members(
    members: Sequence[MemberEntry], files: Iterable[Path], taken: Collection[Path] = ()
) -> dict[str, Path]:
    """Match members to weight files, by the detector kind and encoder that each file holds.

    Args:
        members: those without a file yet.
        files: candidates; other files may be among them. Copies of the same bytes count once.
        taken: files that belong to other members.

    Returns:
        A file for each member, by name.

    Raises:
        InputError: a member has no candidate, or more than one, or two members have the same.
    """
    held, strangers = group_by_detector(files, taken)
    chosen: dict[str, Path] = {}
    problems: list[str] = []
    for member in members:
        candidates = held.get((member.kind, member.encoder), [])
        rivals = [other.name for other in members if (other.kind, other.encoder) == (member.kind, member.encoder)]
        if len(candidates) == 1 and len(rivals) == 1:
            chosen[member.name] = candidates[0]
        elif candidates:
            problems.append(
                f"member {member.name}: {len(candidates)} file(s) hold a {member.kind} {member.encoder} and "
                f"{len(rivals)} member(s) ask for one ({', '.join(rivals)}); name each member's file by `file` in the "
                f"manifest: {', '.join(path.name for path in candidates)}"
            )
        else:
            problems.append(
                f"member {member.name}: no weight file holds a {member.kind} {member.encoder}; fetch it, or take the "
                "member out of the manifest"
            )
    if problems:
        raise InputError("\n".join([*problems, *(f"not recognised: {line}" for line in strangers)]))
    return chosen


def group_by_detector(
    files: Iterable[Path], taken: Collection[Path]
) -> tuple[dict[tuple[str, str], list[Path]], list[str]]:
    """Weight files by detector kind and encoder, and why others are no detectors. Arguments as `recognise_members`."""
    held: dict[tuple[str, str], list[Path]] = {}
    strangers: list[str] = []
    sums = {file_sha256(path) for path in taken}
    for path in sorted(path for path in files if path.suffix in WEIGHT_SUFFIXES and path.is_file()):
        try:
            with reading(path):
                sha256 = file_sha256(path)
            if sha256 in sums:
                continue
            sums.add(sha256)
            spec = recognise_checkpoint(path)
        except InputError as error:
            strangers.append(str(error))
            continue
        held.setdefault((spec.kind, spec.encoder), []).append(path)
    return held, strangers
