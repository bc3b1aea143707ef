"""Download the results of the kernel's run into dist/runs/<version>/, check them, and show its summary.

Files that you have put there, or changed, are not replaced: it says which to move first.

Exit codes: 0 a valid submission; 1 the run is not over, or has failed, or left none that is valid.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from bundle.client import KaggleClient, log_in
from bundle.commands.common import (
    KernelVersion,
    add_version_options,
    chosen_version,
    note,
    print_table,
    telling_stops,
)
from bundle.commands.status import NOT_RUN, tell_failure
from bundle.runs import (
    DONE_STATES,
    Verdict,
    check_submission,
    machine_changes,
    read_run_summary,
    read_verdict,
    refuse_to_lose_own,
    result_sums,
    run_state,
    summary_rows,
    write_verdict,
)
from kernel.errors import InputError, RunError
from kernel.files import writing
from kernel.folders import replace_folder, scratch_folder
from kernel.locks import sole_writer

RUNS_NAME = "runs"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_version_options(parser)
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the competition's test images: the submission is checked on them"
    )
    parser.add_argument("--replace", action="store_true", help="put the results in the place of another kernel's")


def run(options: argparse.Namespace) -> int:
    """Download and check. Returns the exit code."""
    with telling_stops("what was fetched before is as it was: `python build_kernel.py fetch` begins anew"):
        client = log_in()
        version = chosen_version(options, client)
        if not options.replace:
            verdict_of(version, options.out)
        return fetch(client, version, options.out, options.images)


def verdict_of(version: KernelVersion, out: Path) -> Verdict | None:
    """What `fetch` has found of a version's results; None: it has not put any in their place.

    Raises:
        InputError: those of another kernel or version are there.
    """
    folder = results_folder(version, out)
    found = read_verdict(folder)
    if found is not None and (found.kernel.lower(), found.version) != (version.kernel.lower(), version.number):
        raise InputError(
            f"{folder} holds the results of version {found.version} of {found.kernel}: `fetch --replace` puts those of "
            f"version {version.number} of {version.kernel} in their place, another --out keeps both"
        )
    return found


def fetch(client: KaggleClient, version: KernelVersion, out: Path, images: Path | None) -> int:
    """Download a version's results, check them, and note what was found. Returns the exit code.

    Raises:
        InputError: the folder of images is wrong, another process fetches the same, or the results' folder holds files
            of the user's own.
        RunError: the run is not over, or its results are not to be submitted.
    """
    state, message = run_state(client, version.kernel, version.number, version.record is not None)
    if state not in DONE_STATES:
        raise RunError(
            f"version {version.number} of {version.kernel} is {state}, not over: wait by `python build_kernel.py "
            f"status{version.options} --wait`"
        )
    if state == "new_script":
        raise RunError(f"version {version.number} of {version.kernel} {NOT_RUN}")
    folder = results_folder(version, out)
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)  # where the lock lies, too
    with sole_writer(folder):
        verdict = download(client, version, folder)
        print(f"{version.kernel} version {version.number}: {state}; its results are in {folder}")
        if state != "complete":
            write_verdict(replace(verdict, problem=f"the run is {state}"), folder)
            tell_failure(client, version, state, message)
            return 1
        try:
            check_results(folder, out, images)
        except RunError as error:
            write_verdict(replace(verdict, problem=str(error)), folder)
            raise
        write_verdict(verdict, folder)
    print(f"next: `python build_kernel.py submit{version.options} --wait`")
    return 0


def download(client: KaggleClient, version: KernelVersion, folder: Path) -> Verdict:
    """Put a version's results into `folder`, and beside them whose they are; returns the verdict on good ones.

    Raises:
        InputError: files of the user's own are there.
        RunError: Kaggle does not give them.
    """
    before = read_verdict(folder)
    with scratch_folder(folder.parent, folder.name) as scratch:
        new = scratch / "new"
        new.mkdir()
        client.fetch_outputs(version.kernel, version.number, new)
        verdict = Verdict(
            version.kernel, version.number, None, result_sums(new), sha256=version.record and version.record.sha256
        )
        refuse_to_lose_own(folder, [verdict.files] if before is None else [verdict.files, before.files])
        write_verdict(replace(verdict, checked=False), new)  # for whatever comes before the check is done
        replace_folder(new, folder)
    return verdict


def results_folder(version: KernelVersion, out: Path) -> Path:
    """Where a version's results are kept."""
    return out / RUNS_NAME / str(version.number)


def check_results(folder: Path, out: Path, images: Path | None) -> None:
    """Check the results of a complete run, and print what they say. Errors as `check_submission`, and without cells."""
    summary = read_run_summary(folder / "summary.json")
    print_table(["", ""], summary_rows(summary))
    for path, where in tried_summaries(out, folder):
        try:
            changes = machine_changes(summary, read_run_summary(path), where)
        except RunError as error:
            note(f"not compared with what was {where} ({error})")
            continue
        for line in changes:
            print(f"differs from what was tried: {line}")
    found, cells = check_submission(folder / "submission.csv", summary, images)
    depth = "form and images" if images is None else "all of it"
    print(f"submission.csv is valid ({depth}): {found} images, {cells} cells")
    if not cells:
        raise RunError("the submission has no cell at all: see the log by `python build_kernel.py logs`")


def tried_summaries(out: Path, folder: Path) -> list[tuple[Path, str]]:
    """The summaries of what was tried before: the dry run, and the last version fetched before this one."""
    tried = [(out / "dry-run" / "summary.json", "in the dry run")]
    runs = [path for path in folder.parent.iterdir() if path.name.isdigit() and int(path.name) < int(folder.name)]
    if runs:
        last = max(runs, key=lambda path: int(path.name))
        tried.append((last / "summary.json", f"in version {last.name}"))
    return [(path, where) for path, where in tried if path.is_file()]
