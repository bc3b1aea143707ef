"""What is wrong, or looks wrong, with what is about to be pushed; told before anything is sent.

What is certainly wrong is an error. What may be meant is a question, with its likely answer.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundle.client import KaggleClient, KernelThere
from bundle.datasets import data_files, sums_of, weights_folder_name
from bundle.kaggle import (
    KERNEL_METADATA_NAME,
    SCRIPT_NAME,
    SUMS_NAME,
    check_dataset_folder,
    kernel_metadata,
)
from bundle.lock import LOCK_PATH, load_lock
from bundle.names import PLACEHOLDER_OWNERS, owner_of
from bundle.push import is_ours, read_kaggle_sums, read_record
from kernel.errors import InputError
from kernel.manifest.types import USUAL_COMPETITION, Manifest, MemberEntry
from kernel.runtime.wheels import verify_wheels

#: After so many hours Kaggle ends any run; a code competition's run usually, and Sartorius's by its rules, before.
LONGEST_RUN_HOURS = 12.0
USUAL_SCORED_HOURS = 9.0


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or looks wrong."""

    certain: bool
    text: str  # what, and what to do


def error(text: str) -> Finding:
    """What is certainly wrong."""
    return Finding(True, text)


def question(text: str) -> Finding:
    """What may be meant."""
    return Finding(False, text)


def dataset_folders(manifest: Manifest, out: Path) -> dict[str, Path]:
    """The folders that the build has written for the kernel owner's datasets, by dataset, the wheels first."""
    folders = {manifest.wheels_dataset: out / "wheels"}
    folders |= {name: out / weights_folder_name(name) for name in manifest.all_weight_datasets}
    owned = {name: path for name, path in folders.items() if owner_of(name) == owner_of(manifest.kernel.id)}
    return {name: path for name, path in owned.items() if path.is_dir()}


def unchecked_datasets(manifest: Manifest, out: Path) -> list[str]:
    """The kernel's datasets that are not at hand, so that only Kaggle knows of them; the weights' first."""
    sources = dict.fromkeys([*manifest.all_weight_datasets, manifest.wheels_dataset])
    return [name for name in sources if name not in dataset_folders(manifest, out)]


def offline_findings(
    manifest: Manifest, out: Path, user: str | None = None, timeout: int | None = None
) -> list[Finding]:
    """What can be found without the network.

    Args:
        manifest: what the kernel is built from.
        out: where the build has written.
        user: who is logged in, if that is known.
        timeout: seconds after which the run is to be ended, if that is asked for.
    """
    return [
        *owner_findings(manifest, user),
        *kernel_findings(manifest, out / "kernel"),
        *time_findings(manifest, timeout),
        *folder_findings(manifest, out),
        *member_findings(manifest),
    ]


def owner_findings(manifest: Manifest, user: str | None) -> list[Finding]:
    """Placeholders in the place of owners, and a kernel of somebody else."""
    named = [("kernel.id", manifest.kernel.id), ("wheels_dataset", manifest.wheels_dataset)]
    named += [("a dataset of weights", name) for name in manifest.all_weight_datasets]
    findings = [
        error(
            f"{field} is {name}: {name.split('/')[0]} stands for your own Kaggle user name; write that "
            "(`python build_kernel.py init --user NAME` does), and build again"
        )
        for field, name in named
        if owner_of(name) in PLACEHOLDER_OWNERS and owner_of(name) != (user or "").lower()
    ]
    owner = manifest.kernel.id.split("/")[0]
    if user and not findings and owner.lower() != user.lower():
        findings.append(
            error(
                f"kernel.id is {manifest.kernel.id}, but {user} is logged in: write {user}/"
                f"{manifest.kernel.id.split('/')[1]}, or log in as {owner} (`kaggle auth login --force`)"
            )
        )
    return findings


def kernel_findings(manifest: Manifest, folder: Path) -> list[Finding]:
    """The kernel's names and competition. Its script's size is the build's concern: `refuse_stale` compares the two."""
    findings = []
    try:
        kernel_metadata(manifest)
    except InputError as wrong:
        findings.append(error(str(wrong)))
    competition = manifest.kernel.competition
    if competition != USUAL_COMPETITION and are_alike(competition, USUAL_COMPETITION):
        findings.append(question(f"kernel.competition is {competition}: is {USUAL_COMPETITION} meant? (likely yes)"))
    for name in (SCRIPT_NAME, KERNEL_METADATA_NAME):
        if not (folder / name).is_file():
            findings.append(error(f"no {folder / name}: build the kernel first, by `python build_kernel.py`"))
    return findings


def time_findings(manifest: Manifest, timeout: int | None) -> list[Finding]:
    """Times by which the kernel plans, and which it may not be given; `timeout` in seconds, as the push asks for it."""
    findings = []
    hours, competition = manifest.time_limit_hours, manifest.kernel.competition
    granted = USUAL_SCORED_HOURS if competition == USUAL_COMPETITION else LONGEST_RUN_HOURS
    if hours > granted:
        findings.append(
            error(
                f"time_limit_hours is {hours:g}, and a run of {competition} gets {granted:g} h at most: the kernel "
                f"would lower its quality too late, and be ended without a score; write {granted:g} or less, and build "
                "again"
            )
        )
    elif hours > USUAL_SCORED_HOURS:
        findings.append(
            question(
                f"time_limit_hours is {hours:g}: does {competition} grant a run that much? (likely no: "
                f"{USUAL_SCORED_HOURS:g} h are usual, and its page says it, under code requirements)"
            )
        )
    if manifest.time_margin_hours == 0:
        findings.append(
            question(
                "time_margin_hours is 0, which leaves no time to finish the images begun, and to write them: is that "
                "meant? (likely no: 0.5 is what it is where the manifest says nothing)"
            )
        )
    if timeout is not None and timeout < hours * 3600:
        findings.append(
            question(
                f"--timeout ends the run after {timeout / 3600:.3g} h, and the kernel plans for time_limit_hours, "
                f"{hours:g}: is it done with the images of this run by then? (likely yes with the few that a "
                "competition shows; the scoring run has its own limit)"
            )
        )
    return findings


def folder_findings(manifest: Manifest, out: Path) -> list[Finding]:
    """The dataset folders, and names of datasets that look like slips."""
    findings = []
    for dataset, folder in dataset_folders(manifest, out).items():
        try:
            check_dataset_folder(folder, dataset)
        except InputError as wrong:
            findings.append(error(str(wrong)))
    findings += wheels_findings(manifest, out)
    findings += lacking_findings(manifest, dataset_folders(manifest, out))
    sources = list(dict.fromkeys([*manifest.all_weight_datasets, manifest.wheels_dataset]))
    for one, other in itertools.combinations(sources, 2):
        if is_slip(one, other):
            findings.append(
                question(f"the datasets {one} and {other} differ by one letter: is one of them misspelt? (likely yes)")
            )
    return findings


def wheels_findings(manifest: Manifest, out: Path) -> list[Finding]:
    """Wheels that are missing or altered in the folder that is to become their dataset."""
    folder = dataset_folders(manifest, out).get(manifest.wheels_dataset)
    if folder is None:
        return []
    try:
        verify_wheels(folder, load_lock(LOCK_PATH))
    except InputError as wrong:
        problems = [line.strip() for line in str(wrong).splitlines() if line.startswith("  ")]
        return [
            error(
                f"{folder} holds not all wheels as the kernel needs them ({'; '.join(problems[:3])}): build again, by "
                "`python build_kernel.py`"
            )
        ]
    return []


def lacking_findings(manifest: Manifest, folders: Mapping[str, Path]) -> list[Finding]:
    """Members whose file is not in the folder that is to become its dataset: built before the manifest changed."""
    findings = []
    sums = {dataset: sums_of(folder) for dataset, folder in folders.items()}
    for member in manifest.members:
        datasets = manifest.datasets_for(member)
        if member.file is None or not all(dataset in sums for dataset in datasets):
            continue
        found = [sums[dataset].get(member.file) for dataset in datasets]
        if not any(total is not None and member.sha256 in (None, total) for total in found):
            findings.append(
                error(
                    f"member {member.name}: {' and '.join(str(folders[dataset]) for dataset in datasets)} holds no "
                    f"{member.file} with the manifest's sha256: build with `--weights-dir DIR`"
                )
            )
    return findings


def absent_findings(
    client: KaggleClient, manifest: Manifest, out: Path, states: Mapping[str, str | None]
) -> list[Finding]:
    """Members whose file is in none of their datasets on Kaggle, or with another sum than the manifest's.

    Datasets that are to be sent count as they will be. A sum is known where the dataset says it, as those of this
    project do.
    """
    findings = []
    folders = dataset_folders(manifest, out)
    held: dict[str, dict[str, str | None]] = {}  # by dataset: the sums of its files by path, None: not known
    for dataset, state in states.items():
        if dataset in folders:
            held[dataset] = {**sums_of(folders[dataset])}
        elif state == "ready" and dataset in manifest.all_weight_datasets:
            paths = client.dataset_files(dataset)
            sums = read_kaggle_sums(client, dataset, out) if SUMS_NAME in paths else None
            held[dataset] = {path: (sums or {}).get(path) for path in paths}
    for member in manifest.members:
        datasets = manifest.datasets_for(member)
        if member.file is None or not all(dataset in held for dataset in datasets):
            continue
        found = [
            (dataset, path, total)
            for dataset in datasets
            for path, total in held[dataset].items()
            if may_be_file_of(member, path)
        ]
        if not found:
            findings.append(
                error(
                    f"member {member.name}: {' and '.join(datasets)} on Kaggle holds no {member.file}: correct the "
                    "member's `file` or `dataset`, or build with `--weights-dir DIR` where the dataset is yours"
                )
            )
        elif member.sha256 is not None and not {None, member.sha256} & {total for _, _, total in found}:
            others = "; ".join(f"{path} of {dataset} has the sha256 {total}" for dataset, path, total in found)
            findings.append(
                error(
                    f"member {member.name}: the kernel would refuse its file: the manifest has the sha256 "
                    f"{member.sha256}, but on Kaggle {others}: correct the member's `sha256`, or build with "
                    "`--weights-dir DIR`, so that the push sends the file, where the dataset is yours"
                )
            )
    return findings


def may_be_file_of(member: MemberEntry, path: str) -> bool:
    """Whether the kernel would look at the file `path` of a dataset for a member's, as `kernel.mounts` finds it."""
    file = str(member.file)
    if member.sha256 is not None:  # which decides, in whatever folder
        return path.rsplit("/", 1)[-1] == file.rsplit("/", 1)[-1]
    return f"/{path}".endswith(f"/{file}")


def member_findings(manifest: Manifest) -> list[Finding]:
    """Members that the kernel could take another file for, and datasets that none of them uses."""
    findings = []
    unsure = [member.name for member in manifest.members if member.file is None or member.sha256 is None]
    if unsure:
        findings.append(
            question(
                f"{len(unsure)} member(s) have no `file` or no `sha256`, so that the kernel takes what it finds: "
                f"{', '.join(unsure)}: push all the same? (likely no: `python build_kernel.py --weights-dir DIR` fills "
                "them in)"
            )
        )
    idle = [name for name in manifest.weight_datasets if name not in manifest.all_weight_datasets]
    if idle:
        findings.append(
            question(
                f"no member uses the dataset(s) {', '.join(idle)} of `weight_datasets`, so that the kernel does not "
                "get them: is a member's `dataset` wrong? (likely, or take them out)"
            )
        )
    return findings


def online_findings(
    client: KaggleClient, manifest: Manifest, out: Path, states: dict[str, str | None]
) -> list[Finding]:
    """What Kaggle knows: whether the competition lets the user in, and whether the datasets are there.

    Args:
        client: asks Kaggle.
        manifest: what the kernel is built from.
        out: where the build has written.
        states: filled with the state of each dataset; None: it is not there.
    """
    findings = []
    try:
        client.check_competition(manifest.kernel.competition)
    except InputError as wrong:
        findings.append(error(str(wrong)))
    folders = dataset_folders(manifest, out)
    for dataset in dict.fromkeys([*manifest.all_weight_datasets, manifest.wheels_dataset]):
        states[dataset] = client.dataset_state(dataset)
    missing = [dataset for dataset, state in states.items() if state is None]
    own = client.own_datasets() if missing else []
    for dataset in missing:
        known = [*own, *(name for name, state in states.items() if state is not None)]
        nearest = nearest_name(dataset, known)
        if dataset not in folders:
            findings.append(error(missing_text(manifest, dataset, nearest)))
        elif nearest is not None:
            findings.append(
                question(f"the dataset {dataset} is to be made, and there is {nearest}: is that meant? (likely yes)")
            )
    findings += [
        error(f"the dataset {dataset} is {state} on Kaggle: send another version of it, or look at it there")
        for dataset, state in states.items()
        if state in ("failed", "deleted") and dataset not in folders
    ]
    return findings + absent_findings(client, manifest, out, states)


def kernel_there_findings(manifest: Manifest, out: Path, there: KernelThere | None) -> list[Finding]:
    """A kernel of this name that neither was pushed from here nor is built by this project.

    Args:
        manifest: what the kernel is built from.
        out: where the build has written, and what was pushed is noted.
        there: the kernel that Kaggle has; None: it has none. An empty one is nobody's.
    """
    kernel = manifest.kernel.id
    if there is None or not there.source or is_ours(there.source):
        return []
    try:
        record = read_record(out)
    except InputError:
        record = None  # which the push replaces
    if record is not None and record.kernel.lower() == kernel.lower():
        return []
    how = {True: "private, ", False: "public, ", None: ""}[there.private]
    return [
        question(
            f"Kaggle has a kernel {kernel} already ({how}version {there.version or 'unknown'}), this project has not "
            f"built its script, and nothing says that it was pushed from here: is it to become {there.following} of "
            "that one? (yes if you made it for this by hand; else give the manifest another `kernel.title` and "
            "`kernel.id`, and build again)"
        )
    ]


def replaced_findings(
    client: KaggleClient, manifest: Manifest, folders: Mapping[str, Path], datasets: Sequence[str]
) -> list[Finding]:
    """Datasets whose version on Kaggle holds other files, which the one that is to be sent lacks.

    A version has what is uploaded for it, and nothing else. Wheels of an earlier build are no loss.

    Args:
        client: asks Kaggle.
        manifest: what the kernel is built from.
        folders: what the datasets are sent from.
        datasets: those that are there and are to get a new version.
    """
    findings = []
    for dataset in datasets:
        kept = {SUMS_NAME, *(path.name for path in data_files(folders[dataset]))}
        gone = [name for name in sorted(client.dataset_files(dataset)) if name not in kept]
        if dataset == manifest.wheels_dataset:
            gone = [name for name in gone if not name.endswith(".whl")]
        if gone:
            more = f" and {len(gone) - 5} more" if len(gone) > 5 else ""
            findings.append(
                question(
                    f"the dataset {dataset} on Kaggle holds {', '.join(gone[:5])}{more}, and {folders[dataset]} does "
                    "not: is its new version to be without? (yes if you took a member out or swapped it; else give "
                    "your dataset another name in the manifest, and build again)"
                )
            )
    return findings


def missing_text(manifest: Manifest, dataset: str, nearest: str | None) -> str:
    """What to do about a dataset that Kaggle has not, and that cannot be made."""
    if nearest is not None:
        return f"Kaggle has no dataset {dataset} that you may use: is {nearest} meant? correct it in the manifest"
    if dataset == manifest.wheels_dataset and owner_of(dataset) == owner_of(manifest.kernel.id):
        return f"Kaggle has no dataset {dataset}, and the wheels are not at hand: build again, then push makes it"
    if owner_of(dataset) == owner_of(manifest.kernel.id):
        return (
            f"Kaggle has no dataset {dataset}, and its files are not at hand: build with `--weights-dir DIR`, so that "
            "the push can make it"
        )
    return f"Kaggle has no dataset {dataset} that you may use: correct its name in the manifest, or ask its owner"


def nearest_name(name: str, known: Sequence[str]) -> str | None:
    """The known "owner/slug" that `name` is most likely a slip of, if any is near enough."""
    slips = [other for other in known if other.lower() != name.lower() and is_slip(name, other)]
    return slips[0] if slips else None


def is_slip(one: str, other: str) -> bool:
    """Whether two names differ by one letter: put in or left out, another one, or two swapped. Digits do not count."""
    short, long = sorted((one.lower(), other.lower()), key=len)
    start = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(short, long, strict=False)))
    rest, long_rest = short[start:], long[start:]
    if len(short) == len(long):
        swapped = rest[:2] == long_rest[:2][::-1] and rest[2:] == long_rest[2:]
        replaced = rest[1:] == long_rest[1:] and not (rest[:1] + long_rest[:1]).isdigit()
        return bool(rest) and (swapped or replaced)
    return rest == long_rest[1:] and not long_rest[0].isdigit()


def are_alike(one: str, other: str) -> bool:
    """Whether one text is likely a slip of the other."""
    return bool(difflib.get_close_matches(one, [other], n=1, cutoff=0.8))
