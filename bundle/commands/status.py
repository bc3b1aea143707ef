"""Say how the kernel's run on Kaggle is doing; with --wait, until it is over.

Exit codes: 0 it is done, or still runs; 1 it has failed, with the end of its log and the one thing to do.
"""

from __future__ import annotations

import argparse

from bundle.client import KaggleClient, log_in
from bundle.commands.common import (
    KernelVersion,
    add_version_options,
    add_wait_options,
    chosen_version,
    meant_options,
    note,
    progress_line,
    telling_stops,
    waiting_of,
)
from bundle.runs import DONE_STATES, LAST_LINES, explain_failure, run_state, wait_for_run
from kernel.commands.options import CommandParser
from kernel.errors import RunError

#: Of a version in the state "new_script".
NOT_RUN = "was saved and has not run: push without --no-run to run it"


def add_options(parser: CommandParser) -> None:
    """Add the options."""
    add_version_options(parser)
    add_wait_options(parser, "the run is over")


def run(options: argparse.Namespace) -> int:
    """Print the state. Returns the exit code."""
    again = f"the run goes on at Kaggle: `python build_kernel.py status{meant_options(options)} --wait` asks again"
    with telling_stops(again):
        client = log_in()
        version = chosen_version(options, client)
        pushed = version.record is not None
        if options.wait:
            with progress_line() as show:
                waiting = waiting_of(options, show, again)
                state, message = wait_for_run(client, version.kernel, version.number, pushed, waiting)
        else:
            state, message = run_state(client, version.kernel, version.number, pushed)
        return tell_state(client, version, state, message)


def tell_state(client: KaggleClient, version: KernelVersion, state: str, message: str) -> int:
    """Print a run's state, and what to do next. Returns the exit code."""
    print(f"{version.kernel} version {version.number}: {state}")
    if state == "complete":
        print(f"next: `python build_kernel.py fetch{version.options}`")
        return 0
    if state == "new_script":
        print(f"it {NOT_RUN}")
        return 0
    if state not in DONE_STATES:
        print("it is not over yet: --wait waits for that")
        return 0
    tell_failure(client, version, state, message)
    return 1


def tell_failure(client: KaggleClient, version: KernelVersion, state: str, message: str) -> None:
    """Print why a run has failed, as far as that is known, and what to do."""
    try:
        log = client.log_lines(version.kernel, version.number)
    except RunError as error:  # which is no reason to say less of the run
        note(f"its log is not there ({error})")
        log = []
    if log:
        print(f"\nthe last of its {len(log)} lines of log:")
    for line in log[-LAST_LINES:]:
        print(f"  {line}")
    if message:
        print(f"Kaggle says: {message}")
    print(f"to do: {explain_failure(f'{state} {message}', log)}")
