"""A push, step by step: what was built, which datasets Kaggle lacks, and whether what is there is what was meant."""

from __future__ import annotations

import ast
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bundle.client import KaggleClient, Pushed
from bundle.client_errors import NotThereError
from bundle.datasets import data_files, parse_sums, sums_of, write_sums
from bundle.kaggle import KERNEL_METADATA_NAME, SCRIPT_NAME, SUMS_NAME, kernel_metadata
from kernel.errors import InputError, RunError
from kernel.files import file_sha256, written_file
from kernel.folders import scratch_folder
from kernel.manifest.reader import parse_manifest
from kernel.manifest.types import Manifest

#: In the output folder: which version was pushed last.
PUSHED_NAME = "pushed.json"
#: How often a version that was just pushed is asked for.
PULL_TRIES = 5
#: States of a dataset from which it does not get ready by itself.
LOST_STATES = ("failed", "deleted")


@dataclass(frozen=True)
class PushRecord:
    """A version that was pushed, and found on Kaggle as it was meant."""

    kernel: str
    version: int
    url: str
    sha256: str  # of its script


def built_manifest(script: Path) -> Manifest:
    """The manifest that a built script carries.

    Raises:
        InputError: there is no script, or it carries none.
    """
    if not script.is_file():
        raise InputError(f"no {script}: build the kernel first, by `python build_kernel.py`")
    try:
        tree = ast.parse(script.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise InputError(f"{script} is no script of ours ({error}): build it again") from error
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(target, ast.Name) and target.id == "MANIFEST_JSON" for target in node.targets
        ):
            return parse_manifest(ast.literal_eval(node.value), f"the manifest in {script}")
    raise InputError(f"{script} carries no manifest: build it again, by `python build_kernel.py`")


def refuse_stale(built: Manifest, given: Manifest, manifest_path: Path, folder: Path) -> None:
    """Refuse a kernel that was built from another manifest than the one that is there now.

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
            f"{folder} was built from another state of {manifest_path}: build again, by `python build_kernel.py` with "
            "the same options as before, and then push"
        )
    metadata = folder / KERNEL_METADATA_NAME
    try:
        found = json.loads(metadata.read_text(encoding="utf-8"))
    except ValueError:
        found = None  # no JSON
    if found != kernel_metadata(built):
        raise InputError(f"{metadata} is not what the manifest says: build again, by `python build_kernel.py`")


def needs_sending(client: KaggleClient, dataset: str, folder: Path) -> bool:
    """Whether Kaggle's last version of a dataset has other files than `folder`, by their sums and sizes."""
    write_sums(folder)
    return not shows_sums(client, dataset, folder) or bool(missing_files(client, dataset, folder))


def shows_sums(client: KaggleClient, dataset: str, folder: Path) -> bool:
    """Whether the version of a dataset that Kaggle shows now holds the sums of `folder`."""
    with scratch_folder(folder.parent, "sums") as scratch:
        content = client.read_dataset_file(dataset, SUMS_NAME, scratch)
    return content is not None and parse_sums(content) == sums_of(folder)


def missing_files(client: KaggleClient, dataset: str, folder: Path) -> list[str]:
    """The files of a folder that Kaggle's last version of the dataset lacks, or has in another size."""
    there = client.dataset_files(dataset)
    return [
        path.name
        for path in [*data_files(folder), folder / SUMS_NAME]
        if path.name not in there or there[path.name] not in (None, path.stat().st_size)
    ]


def send_and_wait(
    client: KaggleClient,
    dataset: str,
    folder: Path,
    new: bool,
    patience: float,
    poll: float,
    progress: Callable[[str], None],
) -> None:
    """Send a dataset, and wait until it is ready with all files.

    Raises:
        RunError: Kaggle refuses it, it fails, it is not ready within `patience` seconds, or it lacks files.
    """
    client.send_dataset(folder, dataset, new)
    wait_for_dataset(client, dataset, patience, poll, progress, folder)
    lacking = missing_files(client, dataset, folder)
    if lacking:
        raise RunError(
            f"the dataset {dataset} has arrived without {', '.join(lacking[:5])}, or not with all of it: push again, "
            "which sends a new version"
        )


def wait_for_dataset(
    client: KaggleClient,
    dataset: str,
    patience: float,
    poll: float,
    progress: Callable[[str], None],
    folder: Path | None = None,
) -> None:
    """Wait until Kaggle can mount a dataset; a kernel that is pushed before that runs without it.

    Where `folder` was just sent, Kaggle must also show its sums: for a while it calls the version before it ready.
    Errors as `send_and_wait`.
    """
    begin = time.monotonic()
    while True:
        state = client.dataset_state(dataset)
        if state == "ready" and (folder is None or shows_sums(client, dataset, folder)):
            progress(f"{dataset}: ready")
            return
        waited = time.monotonic() - begin
        if state in LOST_STATES:
            raise RunError(
                f"Kaggle could not take in the dataset {dataset} (state: {state}): look at kaggle.com/datasets/"
                f"{dataset}, and push again, which sends a new version"
            )
        if waited >= patience:
            raise RunError(
                f"the dataset {dataset} is not ready after {waited:.0f} s (state: {state}), and the kernel was not "
                "pushed: push again later, which does not send it twice, or wait longer by --ready-timeout SECONDS"
            )
        progress(f"{dataset}: {'the version before is ready' if state == 'ready' else state}, {waited:.0f} s")
        time.sleep(poll)


def check_pulled(client: KaggleClient, pushed: Pushed, folder: Path, out: Path, poll: float) -> list[str]:
    """Pull a version back, and compare it with the folder that was pushed.

    A version that Kaggle does not show yet is asked for again, `poll` seconds later.

    Returns:
        What Kaggle does not tell, and could not be compared.

    Raises:
        RunError: something is not what was meant; says all of it.
    """
    meant = json.loads((folder / KERNEL_METADATA_NAME).read_text(encoding="utf-8"))
    with scratch_folder(out, "pulled") as scratch:
        for attempt in range(1, PULL_TRIES + 1):
            try:
                found = client.pull(pushed.kernel, pushed.version, scratch)
                break
            except NotThereError:
                if attempt == PULL_TRIES:
                    raise
                time.sleep(poll)
        sha256 = text_sha256(scratch / found["code_file"])
    differences = metadata_differences(meant, found)
    if sha256 != text_sha256(folder / SCRIPT_NAME):
        differences.insert(0, "the script is another one (its sha256 differs)")
    if differences:
        raise RunError(
            f"version {pushed.version} of {pushed.kernel} is on Kaggle, but not as it was meant: "
            f"{'; '.join(differences)}: do not submit it; mend that, and push again"
        )
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


def write_record(pushed: Pushed, folder: Path, out: Path) -> PushRecord:
    """Note a version that was pushed in the output folder."""
    record = PushRecord(pushed.kernel, pushed.version, pushed.url, file_sha256(folder / SCRIPT_NAME))
    with written_file(out / PUSHED_NAME) as temporary:
        temporary.write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8", newline="\n")
    return record


def read_record(out: Path) -> PushRecord | None:
    """What was pushed last from an output folder; None where nothing was.

    Raises:
        InputError: the note cannot be read.
    """
    path = out / PUSHED_NAME
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return PushRecord(str(data["kernel"]), int(data["version"]), str(data["url"]), str(data["sha256"]))
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({error}): delete it; `--version N` says which version is meant"
        ) from error
