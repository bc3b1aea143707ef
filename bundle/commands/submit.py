"""Submit a version of the kernel to the competition; with --wait, until it has a score, or why it has none.

A version is submitted once it is what was meant, and `fetch` has found its results valid; where that was not looked at
yet, it is now. What was submitted is noted, and is not submitted again without --again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from bundle.client import KaggleClient, Submission, log_in
from bundle.client_errors import KaggleError, UnknownOutcomeError
from bundle.commands.common import (
    KernelVersion,
    Stand,
    add_version_options,
    add_wait_options,
    alone_in,
    chosen_version,
    confirm,
    meant_options,
    positive_int,
    progress_line,
    telling_stops,
    waiting_of,
)
from bundle.commands.fetch import RUNS_NAME, fetch, verdict_of
from bundle.push import check_pulled
from bundle.runs import (
    SUBMISSIONS_NAME,
    Submitted,
    absent,
    read_submitted,
    wait_for_submission,
    write_submitted,
)
from kernel.commands.options import CommandParser
from kernel.errors import RunError
from kernel.locks import sole_writer
from kernel.runtime.remedies import remedy_for


def add_options(parser: CommandParser) -> None:
    """Add the options."""
    add_version_options(parser)
    add_wait_options(parser, "it is scored")
    parser.add_argument("--message", help="for your list of submissions (default: kernel and version)")
    parser.add_argument("--yes", action="store_true", help="submit without asking: each counts against the day's limit")
    parser.add_argument(
        "--unchecked", action="store_true", help="submit whatever was found of the version and its results"
    )
    parser.add_argument("--again", action="store_true", help="submit a version that was submitted already")
    parser.add_argument("--ref", type=positive_int, metavar="N", help="ask for this submission, and submit nothing")
    parser.excludes(["version", "message", "yes", "again", "unchecked"], ["ref"])


def run(options: argparse.Namespace) -> int:
    """Submit, or ask for a submission. Returns the exit code."""
    with telling_stops("nothing was submitted") as stand:
        client = log_in()
        new = options.ref is None
        ref = submit(client, options, stand) if new else options.ref
        if ref is None:
            return 0
        again = f"`python build_kernel.py submit --ref {ref} --wait` asks again, and submits nothing"
        stand.text = f"submission {ref} is made: {again}" if new else again
        if options.wait:
            with progress_line() as show:
                submission = wait_for_submission(client, ref, new, waiting_of(options, show, again))
        else:
            submission = ask_once(client, ref, new, again)
        return tell(submission, meant_options(options))


def ask_once(client: KaggleClient, ref: int, new: bool, again: str) -> Submission:
    """A submission as it is now; one that is `new` may not be shown yet.

    Raises:
        InputError: Kaggle shows no such submission, which is not new.
        RunError: Kaggle does not say.
    """
    try:
        submission = client.submission(ref)
    except KaggleError as error:
        raise RunError(f"{error.what}: {again}") from error
    if submission.state != "absent":
        return submission
    if not new:
        raise absent(submission)
    return replace(submission, state="pending")


def submit(client: KaggleClient, options: argparse.Namespace, stand: Stand) -> int | None:
    """Submit the version that the options mean; returns the submission's number, None where the user says no.

    Raises:
        InputError: the manifest is wrong, there is no version yet, another kernel's results are where this one's should
            be, or another process submits just now.
        RunError: it was submitted already, its run is not complete, it is not what was meant, or its results are no
            good.
    """
    version = chosen_version(options, client)
    competition = version.manifest.kernel.competition
    folder = options.out / RUNS_NAME
    if not options.again:
        refuse_again(read_submitted(folder), version, competition)
    state, _ = client.run_state(version.kernel, version.number)
    if state != "complete":
        raise RunError(
            f"version {version.number} of {version.kernel} is {state}, and only a complete run can be submitted: "
            f"`python build_kernel.py status{version.options} --wait`"
        )
    if not options.unchecked:
        refuse_unmeant(client, version, options)
        refuse_invalid(client, version, options)
    if not confirm(f"submit version {version.number} of {version.kernel} to {competition}?", options.yes):
        print("nothing was submitted")
        return None
    message = options.message or f"{version.kernel} version {version.number}"
    stand.text = (
        f"whether it was submitted is not known: look by `kaggle competitions submissions {competition}` before you "
        "submit again"
    )
    sent = Submitted(version.kernel, version.number, None)
    folder.mkdir(parents=True, exist_ok=True)  # where the lock lies, too
    with sole_writer(folder / SUBMISSIONS_NAME):
        records = read_submitted(folder)
        if not options.again:  # asked once more: another `submit` may have done it while this one looked and asked
            refuse_again(records, version, competition)
        write_submitted([*records, sent], folder)
        try:
            ref = client.submit(competition, version.kernel, version.number, message)
        except UnknownOutcomeError:
            raise
        except RunError:
            write_submitted(records, folder)
            raise
        write_submitted([*records, replace(sent, ref=ref)], folder)
    print(f"submission {ref}: version {version.number} of {version.kernel} to {competition}", flush=True)
    return ref


def refuse_again(records: Sequence[Submitted], version: KernelVersion, competition: str) -> None:
    """Refuse what was submitted from here already: each submission counts against the day's limit.

    Raises:
        RunError: it was, or may have been.
    """
    for entry in reversed(records):
        if (entry.kernel.lower(), entry.version) != (version.kernel.lower(), version.number):
            continue
        which = f"nothing was submitted, for version {entry.version} of {entry.kernel}"
        if entry.ref is None:
            raise RunError(
                f"{which} may have been submitted already, the answer was lost: look by `kaggle competitions "
                f"submissions {competition}`; if it is not there, --again submits it"
            )
        raise RunError(
            f"{which} was submitted already, as {entry.ref}: `python build_kernel.py submit --ref {entry.ref} --wait` "
            "asks for its score, --again submits it once more"
        )


def refuse_unmeant(client: KaggleClient, version: KernelVersion, options: argparse.Namespace) -> None:
    """Compare a version with what was meant, where the push could not do that.

    Raises:
        InputError: a push is under way, which compares it, or makes the next one.
        RunError: it is another one, or cannot be compared.
    """
    if version.record is None or version.record.compared:
        return
    try:
        with alone_in(options.out):
            check_pulled(client, replace(version.record, version=version.number), options.out, options.poll)
    except KaggleError as error:
        raise RunError(
            f"nothing was submitted, for the push has not compared this version with what was meant: {error}"
        ) from error


def refuse_invalid(client: KaggleClient, version: KernelVersion, options: argparse.Namespace) -> None:
    """Refuse results that `fetch` has found to be no good; where it has not looked at them, it does now.

    What it has found of another script is of a kernel that was deleted: the next one's versions count from 1 again.

    Raises:
        InputError: those of another kernel or version are in their place, or they cannot be put there.
        RunError: they are.
    """
    verdict = verdict_of(version, options.out)
    of_another = verdict is not None and version.record is not None and verdict.sha256 != version.record.sha256
    if verdict is None or not verdict.checked or of_another:
        fetch(client, version, options.out, None)
    elif verdict.problem is not None:
        raise RunError(
            f"nothing was submitted, for `fetch` has found: {verdict.problem}; `fetch` looks again, and --unchecked "
            "submits it all the same"
        )


def tell(submission: Submission, meant: str) -> int:
    """Print a submission's score; `meant` is from `meant_options`. Returns the exit code.

    Raises:
        RunError: it has none, with the one thing to do.
    """
    if submission.state == "complete":
        print(f"public score: {submission.public_score or 'not published'}")
        if submission.private_score:
            print(f"private score: {submission.private_score}")
        return 0
    if submission.state == "pending":
        print(f"not scored yet: `python build_kernel.py submit --ref {submission.ref} --wait` waits for it")
        return 0
    to_do = remedy_for(submission.error or "") or (
        f"`python build_kernel.py fetch{meant}` checks the run's own file; the scoring run has other and more images, "
        "so try a dry run on many"
    )
    raise RunError(f"submission {submission.ref} has no score: {submission.error or 'Kaggle gives no reason'}: {to_do}")
