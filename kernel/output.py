"""What the commands print: where its reader may leave before the end, and what they say when they fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from kernel.errors import InputError, RunError
from kernel.log import UnfailingStream, escape_unprintable, open_closed, printable


class LeavingReaderStream:
    """A text stream whose reader may leave, as `head` does: what comes after that goes nowhere, and is no failure.

    Args:
        stream: where text goes; None: nowhere, as where the process was started without this stream.

    Raises:
        RunError: by its methods, where text cannot be written for another reason, as on a full disk; once.
    """

    def __init__(self, stream: TextIO | None):
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8", newline="\n")  # noqa: PTH123, SIM115
        escape_unprintable(stream)
        self._stream = stream

    def write(self, text: str) -> int:
        with self._no_reader():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._no_reader():
            self._stream.flush()

    @contextmanager
    def _no_reader(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # The stream keeps what it could not write, and tries again when it is flushed and when it is closed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if not isinstance(error, BrokenPipeError):
                raise RunError(
                    f"cannot write the output ({error.strerror}): free some space, or choose another place"
                ) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def let_readers_leave() -> None:
    """Let it be no failure from now on that standard output has no reader; what is said of errors never fails.

    Nor that standard input is closed, where Python has no stream: it is one that is at its end.

    To be called once, when a program starts.
    """
    open_closed()
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115
    for name, guarded in (("stdout", LeavingReaderStream), ("stderr", UnfailingStream)):
        setattr(sys, name, guarded(getattr(sys, name)))


def code_of(work: Callable[[], int | None]) -> int:
    """Do a program's work, which gives its exit code (None: 0), and return that.

    Where it fails, standard error says how, without a traceback, and the code tells by whose fault.
    """
    try:
        code = work() or 0
        sys.stdout.flush()
        return code
    except InputError as error:
        told, code = f"error: {error}", 2
    except RunError as error:
        told, code = f"failed: {error}", 1
    except OSError as error:  # that no place expects: of a disk that is full or fails, a path that is too long
        told, code = f"failed: {error}: mend that, and run the same again", 1
    sys.stderr.write(f"{printable(told)}\n")
    return code
