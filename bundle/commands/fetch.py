"""Download the results of the kernel's run into dist/runs/<version>/, check them, and show its summary.

Exit codes: 0 a valid submission; 1 the run is not over, or has failed, or left none that is valid.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bundle.client import log_in
from bundle.commands.common import add_version_options, chosen_version, print_table
from bundle.commands.status import tell_failure
from bundle.runs import DONE_STATES, check_submission, machine_changes, read_run_summary, summary_rows
from kernel.errors import RunError
from kernel.folders import replace_folder, scratch_folder

RUNS_NAME = "runs"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_version_options(parser)
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="the competition's test images: the submission is checked on them"
    )


def run(options: argparse.Namespace) -> int:
    """Download and check. Returns the exit code."""
    client = log_in()
    version = chosen_version(options, client)
    state, message = client.run_state(version.kernel, version.number)
    if state not in DONE_STATES:
        raise RunError(
            f"version {version.number} of {version.kernel} is {state}, not over: wait by `python build_kernel.py "
            "status --wait`"
        )
    folder = options.out / RUNS_NAME / str(version.number)
    with scratch_folder(folder.parent, str(version.number)) as scratch:
        new = scratch / "new"
        new.mkdir()
        client.fetch_outputs(version.kernel, version.number, new)
        replace_folder(new, folder)
    print(f"{version.kernel} version {version.number}: {state}; its results are in {folder}")
    if state != "complete":
        tell_failure(client, version, state, message)
        return 1
    summary = read_run_summary(folder / "summary.json")
    print_table(["", ""], summary_rows(summary))
    for path, where in tried_summaries(options.out, folder):
        for line in machine_changes(summary, read_run_summary(path), where):
            print(f"differs from what was tried: {line}")
    images, cells = check_submission(folder / "submission.csv", summary, options.images)
    depth = "form and images" if options.images is None else "all of it"
    print(f"submission.csv is valid ({depth}): {images} images, {cells} cells")
    if not cells:
        raise RunError("the submission has no cell at all: see the log by `python build_kernel.py logs`")
    print("next: `python build_kernel.py submit --wait`")
    return 0


def tried_summaries(out: Path, folder: Path) -> list[tuple[Path, str]]:
    """The summaries of what was tried before: the dry run, and the last version fetched before this one."""
    tried = [(out / "dry-run" / "summary.json", "in the dry run")]
    runs = [path for path in folder.parent.iterdir() if path.name.isdigit() and int(path.name) < int(folder.name)]
    if runs:
        last = max(runs, key=lambda path: int(path.name))
        tried.append((last / "summary.json", f"in version {last.name}"))
    return [(path, where) for path, where in tried if path.is_file()]
