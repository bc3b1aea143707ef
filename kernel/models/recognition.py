"""Which weight file is whose, told by what the files hold."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from kernel.errors import InputError
from kernel.manifest import WEIGHT_SUFFIXES, MemberEntry
from kernel.models.checkpoints import recognise_checkpoint
from kernel.runtime.wheels import file_sha256


def recognise_members(
    members: Sequence[MemberEntry], files: Iterable[Path], taken: Collection[Path] = ()
) -> dict[str, Path]:
    """Match members, by name, to the weight files among `files`, by the kind and encoder that each file holds.

    Files in `taken` belong to others; copies of the same bytes count once. Raises InputError for a member without a
    candidate, or where it cannot be told which of several is whose, listing them.
    """
    held: dict[tuple[str, str], list[Path]] = {}
    strangers: list[str] = []
    sums = {file_sha256(path) for path in taken}
    for path in sorted(path for path in files if path.suffix in WEIGHT_SUFFIXES and path.is_file()):
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
                f"{len(rivals)} member(s) ask for one ({', '.join(rivals)}); say which is whose by `file` in the "
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
