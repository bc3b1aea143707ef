"""The two ways a command fails, told apart by exit code."""

from __future__ import annotations


class InputError(Exception):
    """The user gave something wrong. The message says what, where, what is allowed, what to do next.

    Command lines print it without a traceback and exit with 2.
    """


class RunError(Exception):
    """The input was right, and the work failed all the same. Command lines exit with 1."""
