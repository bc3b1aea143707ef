"""A push, step by step: what was built, which datasets Kaggle lacks, and whether what is there is what was meant."""

from __future__ import annotations

import ast
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bundle.build import script_text
from bundle.client import KaggleClient
from bundle.client_errors import NotThereError, UnknownOutcomeError
from bundle.datasets import data_files, parse_sums, read_sums, sums_of
from bundle.kaggle import KERNEL_METADATA_NAME, SCRIPT_NAME, SUMS_NAME, kernel_metadata
from bundle.waiting import LONGEST_UNSEEN, Waiting
from kernel.errors import InputError, RunError
from kernel.files import reading, written_file
from kernel.folders import scratch_folder
from kernel.manifest.reader import parse_manifest
from kernel.manifest.types import Manifest
from kernel.text import parse_json

#: In the output folder: which version was pushed last.
PUSHED_NAME = "pushed.json"
#: In the output folder: which files of each dataset were sent last.
SENT_NAME = "sent.json"
#: What a built script keeps its manifest in.
MANIFEST_VARIABLE = "MANIFEST_JSON"
BUILD_AGAIN = "build again, by `python build_kernel.py` with the same options as before"
#: How often a version that was just pushed is asked for.
PULL_TRIES = 5
#: States of a dataset from which it does not get ready by itself.
LOST_STATES = ("failed", "deleted")


@dataclass(frozen=True)
class PushRecord:
    """What was pushed last, from the moment on at which it is sent."""

    kernel: str
    version: int | None  # None: the answer is not there yet, or was lost
    url: str
    sha256: str  # of its script, as `text_sha256`
    meant: dict[str, Any] | None = None  # its metadata; None in notes of earlier states of this project
    compared: bool = True  # whether it was found on Kaggle as it was meant


@dataclass(frozen=True)
class SentDataset:
    """What was sent of a dataset last, from the moment on at which Kaggle has all its files."""

    sums: Mapping[str, str]  # of its files, by name
    arrived: bool  # whether Kaggle was seen to have it whole


class NotArrivedError(RunError):
    """A dataset that was sent is not at Kaggle, or not all of it: another push has to send it again."""


def is_ours(source: str) -> bool:
    """Whether a kernel's source is a script that this project has built, whatever of."""
    return f"\n{MANIFEST_VARIABLE} = " in source


def built_manifest(script: Path) -> Manifest:
    """The manifest that a built script carries.

    Raises:
        InputError: there is no script, or it carries none.
    """
    if not script.is_file():
        raise InputError(f"no {script}: build the kernel first, by `python build_kernel.py`")
    try:
        tree = ast.parse(script.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # no Python, no UTF-8, or too deep
        raise InputError(f"{script} is no script of ours ({error}): {BUILD_AGAIN}") from error
    except OSError as error:
        raise InputError(f"cannot read {script} ({error.strerror}): {BUILD_AGAIN}") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and MANIFEST_VARIABLE in map(ast.unparse, node.targets):
            if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                try:
                    return parse_manifest(node.value.value, f"the manifest in {script}")
                except InputError as error:
                    raise InputError(f"{error}: {BUILD_AGAIN}") from error
            break
    raise InputError(f"{script} carries no manifest: {BUILD_AGAIN}")


def refuse_stale(built: Manifest, given: Manifest, manifest_path: Path, folder: Path) -> None:
    """Refuse a kernel that was built from another manifest than the one that is there now, or of other modules.

    What a build fills in of the members (dataset, file, sha256) may be new; all else must be the same.

    Raises:
        InputError: it was, or its metadata is not what the manifest says.
    """
    filled = tuple(
        replace(
            now,
            dataset=now.dataset or then.dataset,
            file=now.file or then.file,
            sha256=now.sha256 or then.sha256,
        )
        if now.name == then.name
        else now
        for now, then in zip(given.members, built.members, strict=False)
    )
    if len(given.members) != len(built.members) or replace(given, members=filled) != built:
        raise InputError(
            f"{folder} was built from another state of {manifest_path}, or from another manifest: name that one by "
            f"--manifest, or {BUILD_AGAIN}, and then push"
        )
    if (folder / SCRIPT_NAME).read_bytes() != script_text(built).encode():
        raise InputError(
            f"{folder / SCRIPT_NAME} is not what a build gives now, for it was edited, or the project has changed "
            f"since: {BUILD_AGAIN}, and then push"
        )
    metadata = folder / KERNEL_METADATA_NAME
    try:
        found = parse_json(metadata.read_text(encoding="utf-8"))
    except ValueError:
        found = None  # no JSON
    except OSError as error:
        raise InputError(f"cannot read {metadata} ({error.strerror}): {BUILD_AGAIN}") from error
    if found != kernel_metadata(built):
        raise InputError(f"{metadata} is not what the manifest says: {BUILD_AGAIN}")


def needs_sending(client: KaggleClient, dataset: str, folder: Path) -> bool:
    """Whether Kaggle's last version of a dataset has other files than `folder`, by the sums it says and their sizes."""
    return not shows_sums(client, dataset, folder) or bool(missing_files(client, dataset, folder))


def shows_sums(client: KaggleClient, dataset: str, folder: Path) -> bool:
    """Whether the version of a dataset that Kaggle shows now says the same sums as `folder`."""
    return read_kaggle_sums(client, dataset, folder.parent) == read_sums(folder)


def read_kaggle_sums(client: KaggleClient, dataset: str, out: Path) -> dict[str, str] | None:
    """The sums that a dataset's last version on Kaggle says, by name; None: it says none. `out` is for scratch."""
    with scratch_folder(out, "sums") as scratch:
        content = client.read_dataset_file(dataset, SUMS_NAME, scratch)
    return None if content is None else parse_sums(content)


def missing_files(client: KaggleClient, dataset: str, folder: Path) -> list[str]:
    """The files of a folder that Kaggle's last version of the dataset lacks, or has in another size."""
    there = client.dataset_files(dataset)
    return [
        path.name
        for path in [*data_files(folder), folder / SUMS_NAME]
        if path.name not in there or there[path.name] not in (None, path.stat().st_size)
    ]


def send_and_wait(client: KaggleClient, dataset: str, folder: Path, new: bool, waiting: Waiting) -> None:
    """Send a dataset, and wait until it is ready with all files. Where the answer is lost, Kaggle shows what arrived.

    What is sent is noted, so that a push after one that was stopped waits for it, and does not send it again. It is
    what the folder says of itself: its sums are written before, and its files are read once more before Kaggle makes
    a version of them.

    Raises:
        RunError: a file has changed meanwhile, Kaggle refuses it, it fails, it does not get ready, or it lacks files.
    """
    out, lost = folder.parent, None

    def note_uploaded() -> None:
        sums = read_sums(folder)
        if sums != sums_of(folder):
            raise RunError(f"{folder} has changed since the push began: push again, which checks it anew")
        note_sent(out, dataset, SentDataset(sums, arrived=False))

    try:
        client.send_dataset(folder, dataset, new, note_uploaded)
    except UnknownOutcomeError as error:
        lost = error
    except (InputError, RunError):
        note_sent(out, dataset, None)
        raise
    wait_until_arrived(client, dataset, folder, waiting, lost)


def wait_for_sent(client: KaggleClient, dataset: str, folder: Path, waiting: Waiting) -> None:
    """Wait for a dataset that a push before this one has sent, and has not seen arrive. Errors as `send_and_wait`."""
    lost = UnknownOutcomeError(
        f"it was sent by a push before, and {LONGEST_UNSEEN} questions have not found it",
        "push again, which sends it once more",
    )
    wait_until_arrived(client, dataset, folder, waiting, lost)


def wait_until_arrived(
    client: KaggleClient, dataset: str, folder: Path, waiting: Waiting, lost: UnknownOutcomeError | None
) -> None:
    """Wait until a dataset that was sent is ready with all files, and note that. Errors as `send_and_wait`."""
    try:
        wait_for_dataset(client, dataset, waiting, folder, lost)
        lacking = missing_files(client, dataset, folder)
        if lacking:
            raise NotArrivedError(
                f"the dataset {dataset} has arrived without {', '.join(lacking[:5])}, or not with all of it: push "
                "again, which sends a new version"
            )
    except NotArrivedError:
        note_sent(folder.parent, dataset, None)
        raise
    note_sent(folder.parent, dataset, SentDataset(read_sums(folder), arrived=True))


def is_under_way(dataset: str, folder: Path) -> bool:
    """Whether the files of a folder were sent as this dataset, and were not seen to have arrived."""
    sent = read_sent(folder.parent).get(dataset)
    return sent is not None and not sent.arrived and sent.sums == read_sums(folder) == sums_of(folder)


def note_sent(out: Path, dataset: str, sent: SentDataset | None) -> None:
    """Note in the output folder what was sent of a dataset; None: of what was sent, nothing is to be waited for."""
    notes = {name: asdict(each) for name, each in read_sent(out).items() if name != dataset}
    if sent is not None:
        notes[dataset] = asdict(sent)
    with written_file(out / SENT_NAME) as temporary:
        temporary.write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8", newline="\n")


def read_sent(out: Path) -> dict[str, SentDataset]:
    """What was sent last from an output folder, by dataset. A damaged note says nothing: that sends once too often."""
    path = out / SENT_NAME
    if not path.is_file():
        return {}
    with reading(path):
        content = path.read_bytes()
    try:
        found = parse_json(content.decode("utf-8"))
        return {str(name): SentDataset(dict(note["sums"]), note["arrived"] is True) for name, note in found.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def wait_for_dataset(
    client: KaggleClient,
    dataset: str,
    waiting: Waiting,
    folder: Path | None = None,
    lost: UnknownOutcomeError | None = None,
) -> None:
    """Wait until Kaggle can mount a dataset; a kernel that is pushed before that runs without it.

    Where `folder` was just sent, Kaggle must also show its sums: for a while it calls the version before it ready.
    Where whether it was sent is not known (`lost`), it has not arrived once nothing of it is shown for long enough.
    Errors as `send_and_wait`.
    """
    unseen = 0

    def not_shown(now: str) -> str:
        nonlocal unseen
        unseen += 1
        if lost is not None and unseen == LONGEST_UNSEEN:
            raise NotArrivedError(f"Kaggle does not show the dataset {dataset}: {lost}") from lost
        return now

    def state_of(state: str | None) -> str | None:
        if state in LOST_STATES:
            raise NotArrivedError(
                f"Kaggle could not take in the dataset {dataset} (state: {state}): look at kaggle.com/datasets/"
                f"{dataset}, and push again, which sends a new version"
            )
        if state != "ready":
            return state or not_shown("not shown yet")
        if folder is None or shows_sums(client, dataset, folder):
            return None
        return not_shown("the version before is ready")

    waiting.until(
        dataset,
        lambda: client.dataset_state(dataset),
        state_of,
        late="the dataset {what} is not ready after {waited:.0f} s (state: {now}), and the kernel was not pushed",
    )
    waiting.progress(f"{dataset}: ready")


def push_kernel(
    client: KaggleClient, kernel: str, folder: Path, out: Path, timeout: int | None, no_run: bool
) -> PushRecord:
    """Push the kernel of a folder, and note it: before it is sent, and as soon as its version is known.

    So the other commands never take the version before for this one, whatever comes between. Where Kaggle has made no
    version, the note is as it was.

    Raises:
        UnknownOutcomeError: the answer was lost.
        RunError: Kaggle refuses the kernel, or has taken it otherwise than it was meant.
    """
    path = out / PUSHED_NAME
    before = path.read_bytes() if path.is_file() else None
    meant = parse_json((folder / KERNEL_METADATA_NAME).read_text(encoding="utf-8"))
    record = PushRecord(kernel, None, "", text_sha256(folder / SCRIPT_NAME), meant, compared=False)
    write_record(record, out)
    try:
        pushed = client.push(folder, kernel, timeout, no_run)
    except UnknownOutcomeError:
        raise
    except RunError:
        path.unlink()
        if before is not None:
            with written_file(path) as temporary:
                temporary.write_bytes(before)
        raise
    record = replace(record, kernel=pushed.kernel, version=pushed.version, url=pushed.url)
    write_record(record, out)
    if pushed.problems:
        raise RunError("; ".join(pushed.problems))
    return record


def check_pulled(client: KaggleClient, record: PushRecord, out: Path, poll: float) -> list[str]:
    """Pull a version back, and compare it with what was meant; notes that it was compared.

    A version that Kaggle does not show yet is asked for again, `poll` seconds later.

    Returns:
        What Kaggle does not tell, and could not be compared.

    Raises:
        RunError: something is not what was meant, of which it says all, or it cannot be compared.
    """
    assert record.version is not None, "the caller knows it"
    with scratch_folder(out, "pulled") as scratch:
        for attempt in range(1, PULL_TRIES + 1):
            try:
                found, script = client.pull(record.kernel, record.version, scratch)
                break
            except NotThereError:
                if attempt == PULL_TRIES:
                    raise
                time.sleep(poll)
        sha256 = text_sha256(script)
    meant = record.meant or {}
    differences = metadata_differences(meant, found)
    if sha256 != record.sha256:
        differences.insert(0, "the script is another one (its sha256 differs)")
    if differences:
        raise RunError(
            f"version {record.version} of {record.kernel} is on Kaggle, but not as it was meant: "
            f"{'; '.join(differences)}: do not submit it; mend that, and push again"
        )
    write_record(replace(record, compared=True), out)
    return [key for key in ("machine_shape", "is_private", "enable_internet") if found.get(key) is None]


def text_sha256(path: Path) -> str:
    """The SHA-256 of a text with line feeds for line ends, as the client sends it."""
    return hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest()


def metadata_differences(meant: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """How a kernel's metadata differs from what was meant, a line each; what Kaggle does not tell is passed over."""
    differences = []
    for key, name in (
        ("dataset_sources", "datasets"),
        ("competition_sources", "competitions"),
        ("kernel_sources", "kernels"),
        ("model_sources", "models"),
    ):
        wanted, there = ({str(source).lower() for source in side.get(key) or ()} for side in (meant, found))
        if wanted - there:
            differences.append(f"{name} missing: {', '.join(sorted(wanted - there))}")
        if there - wanted:
            differences.append(f"{name} too many: {', '.join(sorted(there - wanted))}")
    for key, name in (
        ("machine_shape", "accelerator"),
        ("enable_gpu", "GPU"),
        ("enable_internet", "internet"),
        ("is_private", "private"),
        ("docker_image", "image"),
    ):
        if key in meant and found.get(key) is not None and found[key] != meant[key]:
            differences.append(f"{name} is {found[key]}, not {meant[key]}")
    return differences


def write_record(record: PushRecord, out: Path) -> None:
    """Note in the output folder what was pushed."""
    with written_file(out / PUSHED_NAME) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8", newline="\n")


def read_record(out: Path) -> PushRecord | None:
    """What was pushed last from an output folder; None where nothing was.

    Raises:
        InputError: the note cannot be read.
    """
    path = out / PUSHED_NAME
    if not path.is_file():
        return None
    with reading(path):
        content = path.read_bytes()
    try:
        return parse_record(parse_json(content.decode("utf-8")))
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}): delete it; `--version N` says which version is meant"
        ) from error


def parse_record(data: Any) -> PushRecord:
    """The note that JSON holds.

    Raises:
        ValueError, LookupError, TypeError: it is none.
    """
    version, meant = data["version"], data.get("meant")
    if version is not None and (type(version) is not int or version < 1):
        raise ValueError(f"version is {version!r}")
    if meant is not None and not isinstance(meant, dict):
        raise ValueError(f"meant is {meant!r}")
    return PushRecord(
        str(data["kernel"]), version, str(data["url"]), str(data["sha256"]), meant, data.get("compared", True) is True
    )
