"""Submit a version of the kernel to the competition; with --wait, until it has a score, or why it has none."""

from __future__ import annotations

import argparse

from bundle.client import KaggleClient, Submission, log_in
from bundle.commands.common import (
    add_version_options,
    add_wait_options,
    chosen_version,
    confirm,
    positive_int,
    progress_line,
)
from bundle.runs import wait_for_submission
from kernel.commands.options import CommandParser
from kernel.errors import RunError


def add_options(parser: CommandParser) -> None:
    """Add the options."""
    add_version_options(parser)
    add_wait_options(parser, "it is scored")
    parser.add_argument("--message", help="for your list of submissions (default: kernel and version)")
    parser.add_argument("--yes", action="store_true", help="submit without asking: each counts against the day's limit")
    parser.add_argument("--ref", type=positive_int, metavar="N", help="ask for this submission, and submit nothing")
    parser.excludes(["version", "message", "yes"], ["ref"])


def run(options: argparse.Namespace) -> int:
    """Submit, or ask for a submission. Returns the exit code."""
    client = log_in()
    ref = options.ref
    if ref is None:
        ref = submit(client, options)
        if ref is None:
            return 0
    if options.wait:
        with progress_line() as show:
            submission = wait_for_submission(client, ref, options.wait_timeout, options.poll, show)
    else:
        submission = client.submission(ref)
    return tell(submission)


def submit(client: KaggleClient, options: argparse.Namespace) -> int | None:
    """Submit the version that the options mean; returns the submission's number, None where the user says no.

    Raises:
        RunError: its run is not complete.
    """
    version = chosen_version(options, client)
    state, _ = client.run_state(version.kernel, version.number)
    if state != "complete":
        raise RunError(
            f"version {version.number} of {version.kernel} is {state}, and only a complete run can be submitted: "
            "`python build_kernel.py status --wait`"
        )
    competition = version.manifest.kernel.competition
    if not confirm(f"submit version {version.number} of {version.kernel} to {competition}?", options.yes):
        print("nothing was submitted")
        return None
    message = options.message or f"{version.kernel} version {version.number}"
    ref = client.submit(competition, version.kernel, version.number, message)
    print(f"submission {ref}: version {version.number} of {version.kernel} to {competition}")
    return ref


def tell(submission: Submission) -> int:
    """Print a submission's score, or why it has none. Returns the exit code."""
    if submission.state == "complete":
        print(f"public score: {submission.public_score or 'not published'}")
        if submission.private_score:
            print(f"private score: {submission.private_score}")
        return 0
    if submission.state == "pending":
        print(f"not scored yet: `python build_kernel.py submit --ref {submission.ref} --wait` waits for it")
        return 0
    raise RunError(
        f"submission {submission.ref} has no score: {submission.error or 'Kaggle gives no reason'}: `python "
        "build_kernel.py fetch` checks the run's own file; the scoring run has other and more images, so try a dry run "
        "on many"
    )
