"""Print the log of the kernel's run on Kaggle."""

from __future__ import annotations

import argparse

from bundle.client import log_in
from bundle.commands.common import add_version_options, chosen_version, positive_int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    add_version_options(parser)
    parser.add_argument("--last", type=positive_int, metavar="N", help="only the last so many lines")


def run(options: argparse.Namespace) -> int:
    """Print the log. Returns the exit code."""
    client = log_in()
    version = chosen_version(options, client)
    state, _ = client.run_state(version.kernel, version.number)  # which says where there is no such version
    lines = client.log_lines(version.kernel, version.number)
    for line in lines[-options.last :] if options.last else lines:
        print(line)
    if not lines:
        print(f"version {version.number} of {version.kernel} has no log yet: it is {state}")
    return 0
