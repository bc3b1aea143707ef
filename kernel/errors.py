"""The two ways in which a command fails, with different exit codes."""

from __future__ import annotations


class InputError(Exception):
    """The input is wrong. The message says what is wrong and where, what is allowed, and what to do next.

    Commands print it without a traceback and exit with 2.
    """


class RunError(Exception):
    """The input is right, and the work has failed all the same. Commands exit with 1."""
