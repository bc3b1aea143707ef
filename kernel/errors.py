"""The two ways in which a command fails, with different exit codes."""

from __future__ import annotations

import traceback
from pathlib import Path


class InputError(Exception):
    """The input is wrong. The message says what is wrong and where, what is allowed, and what to do next.

    Commands print it without a traceback and exit with 2.
    """


class RunError(Exception):
    """The input is right, and the work has failed all the same. Commands exit with 1."""


def as_failure(error: Exception) -> InputError | RunError:
    """An exception as one line for people: of one that nobody expected what it is, and where it comes from."""
    if isinstance(error, InputError | RunError):
        return error
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name}, line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
    return RunError(f"{type(error).__name__}{place}: {error}: this is a fault of the program; what was done is kept")
