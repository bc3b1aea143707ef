"""The mounted ensemble, and what becomes of members that cannot be loaded.

By the policy `strict` any of them ends the run. By `best_effort` they are left out, for a night's run is worth more
than one member: thresholds stay, and a cell type without members falls to the others. Which ones cannot is found on the
CPU, so that no member is left out for an error of the device. A file that could be loaded but is not the one whose
checksum the manifest has is refused by both: it would be another ensemble than the one validated.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

import torch

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.fallbacks import means_lost_device
from kernel.ensemble.load import load_ensemble, mounted_weights
from kernel.ensemble.quality_levels import QualityLevel, quality_levels
from kernel.errors import InputError, RunError, as_failure
from kernel.files import file_sha256
from kernel.log import LOG
from kernel.manifest.types import MASK_KINDS, Manifest, MemberEntry, usual_weights
from kernel.mounts import DatasetFolders, dataset_folders, find_files, find_files_by_sum, input_root
from kernel.patience import may_pass, patiently
from kernel.settings import EVERY_USE, STAGES, StageWeights, needed_stages

#: What is done where a member cannot be loaded.
STRICT, BEST_EFFORT = MEMBER_POLICIES = ("strict", "best_effort")


def load_mounted_ensemble(
    manifest: Manifest, device: torch.device, dtype: torch.dtype, policy: str = STRICT
) -> tuple[Ensemble, dict[str, str]]:
    """Load the manifest's members from what is mounted, by a policy of `MEMBER_POLICIES`.

    Returns:
        The ensemble, and why each member that is not in it could not be loaded.

    Raises:
        InputError: as `load_ensemble` and `mounted_weights` do; by `best_effort`, where a checksum is wrong alone, or
            no member's file can be loaded.
        RunError: by `best_effort`, where no member can be loaded, and not for its file alone.
        Exception: what the device raises.
    """

    def load_on(at: torch.device, members: Collection[MemberEntry]) -> Ensemble:
        part = replace(manifest, members=tuple(members))
        return load_ensemble(part, mounted_weights(part, input_root()), at, dtype)

    def load(members: Collection[MemberEntry]) -> Ensemble:
        return load_on(torch.device("cpu"), members)

    def load_all() -> Ensemble:
        try:
            return patiently(
                lambda: load_on(device, manifest.members), lambda error: may_pass(error) or lacks_files(manifest)
            )
        except OSError as error:
            raise InputError(f"cannot read the members' weight files: {error}") from error

    if policy == STRICT:
        return load_all(), {}
    try:
        return or_failure(load_all), {}
    except (InputError, RunError) as error:
        LOG.error("the ensemble cannot be loaded as a whole (%s): trying each member alone on the CPU", error)

    kept: list[MemberEntry] = []
    left_out: dict[str, str] = {}
    are_files_wrong = True
    # Mask networks last: they cannot be loaded but beside another member.
    for member in sorted(manifest.members, key=lambda member: member.kind in MASK_KINDS):
        beside = kept[:1]  # members that can be loaded may still not fit together
        try:
            or_failure(lambda: load(with_all_uses([*beside, member])))  # noqa: B023 (called at once)
        except (InputError, RunError, OSError) as error:
            if member.sha256 is not None and can_load(load, [*beside, replace(member, sha256=None)]):
                raise
            left_out[member.name] = str(error)
            are_files_wrong &= not isinstance(error, RunError)
            LOG.critical("MEMBER %s IS LEFT OUT: %s", member.name, error)
            continue
        kept.append(member)
    if not kept:
        error_type = InputError if are_files_wrong else RunError
        raise error_type(f"no member can be loaded: {'; '.join(left_out.values())}")
    if not left_out:
        LOG.warning("each member can be loaded on the CPU: trying once more to load all on %s", device)
        return load_on(device, manifest.members), {}
    LOG.critical("GOING ON WITH %d OF %d MEMBERS: without %s", len(kept), len(manifest.members), ", ".join(left_out))
    return load_on(device, with_uses_taken_over([member for member in manifest.members if member in kept])), left_out


def or_failure(load: Callable[[], Ensemble]) -> Ensemble:
    """What `load` returns; what a library raises that does not fit a member is told of that member alone.

    Raises:
        InputError, OSError: as `load` does.
        RunError: it raises anything else. A GPU that is lost is so for every member, and its error raised as it is.
    """
    try:
        return load()
    except (InputError, OSError):
        raise
    except Exception as error:
        if means_lost_device(str(error)):
            raise
        raise as_failure(error) from error


def can_load(load: Callable[[Collection[MemberEntry]], Ensemble], members: Collection[MemberEntry]) -> bool:
    """Whether these members can be loaded."""
    try:
        or_failure(lambda: load(with_all_uses(members)))
    except (InputError, RunError, OSError):
        return False
    return True


def lacks_files(manifest: Manifest) -> bool:
    """Whether a file that a member needs is not mounted just now, by the same rules as it is found by."""
    try:
        mounted = {name: mounts_of(name) for name in manifest.all_weight_datasets}
        return any(
            # One that names no file may be any dataset's, so that all must be there.
            not all(mounted[name].trusted for name in manifest.all_weight_datasets)
            if member.file is None
            else not any(holds_file(mounted[name], member) for name in manifest.datasets_for(member))
            for member in manifest.members
        )
    except (InputError, OSError):
        return True


def mounts_of(dataset: str) -> DatasetFolders:
    """The folders that may be a dataset's mount; none where there are none."""
    try:
        return dataset_folders(input_root(), dataset)
    except InputError:
        return DatasetFolders((), (), ())


def holds_file(folders: DatasetFolders, member: MemberEntry) -> bool:
    """Whether a member's file lies in a dataset: of another owner's folder that the file has its checksum."""
    name = str(member.file)
    find = find_files if member.sha256 is None else find_files_by_sum
    if any(find(folder, name) for folder in (*folders.own, *folders.unowned)):
        return True
    others = (path for folder in folders.others for path in find(folder, name))
    return member.sha256 is not None and any(file_sha256(path) == member.sha256 for path in others)


def with_all_uses(members: Collection[MemberEntry]) -> list[MemberEntry]:
    """The members, each used for everything and counting at every stage it can: to look whether they can be loaded."""
    return [replace(member, use_for=EVERY_USE, weights=usual_weights(member.kind)) for member in members]


def with_uses_taken_over(members: Collection[MemberEntry]) -> list[MemberEntry]:
    """The members that are left, with the uses that have none among them; counts at a stage that has none as well."""
    idle = [stage for stage in STAGES if not any(getattr(member.weights, stage) > 0 for member in members)]
    members = [
        replace(
            member,
            weights=replace(member.weights, **{stage: getattr(usual_weights(member.kind), stage) for stage in idle}),
        )
        for member in members
    ]
    uses = take_over_uses(
        {member.name: frozenset(member.use_for) for member in members},
        {member.name: member.weights for member in members},
    )
    return [replace(member, use_for=tuple(sorted(uses[member.name]))) for member in members]


def take_over_uses(
    uses: Mapping[str, frozenset[str]], weights: Mapping[str, StageWeights]
) -> dict[str, frozenset[str]]:
    """What members are used for, by name, so that no use lacks members: one that does falls to all, and one whose
    members all have the weight 0 at a stage to those that have another there."""
    taken = {name: set(own) for name, own in uses.items()}
    for _ in range(2):  # what the first round adds decides whether there is a first pass
        for use, stages in needed_stages(taken.values()).items():
            if not any(use in own for own in taken.values()):
                for own in taken.values():
                    own.add(use)
            for stage in stages:
                counting = [name for name, own in weights.items() if getattr(own, stage) > 0]
                if not any(use in taken.get(name, ()) for name in counting):
                    for name in counting:
                        taken.setdefault(name, set()).add(use)
    return {name: frozenset(own) for name, own in taken.items()}


def levels_without(manifest: Manifest, left_out: Collection[str]) -> tuple[QualityLevel, ...]:
    """The quality levels of a manifest's ensemble without some members; one of them at least must be left.

    As many as those of all members: images are requested at a level by its index, whoever is left out.
    """
    count = len(quality_levels(manifest.members, manifest.ensemble))
    left = with_uses_taken_over([member for member in manifest.members if member.name not in left_out])
    own = quality_levels(left, manifest.ensemble)
    return (*own, *own[-1:] * count)[: count - 1] + own[-1:]
