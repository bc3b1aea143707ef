"""The project's logger, and how its messages are shown."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import sys
import warnings
from typing import Any, TextIO

LOG = logging.getLogger("kernel")
#: How long a pipe or terminal that takes nothing is waited for: somebody may read on, or not.
PATIENCE_SECONDS = 60.0
#: So many letters fit into a pipe that takes any (4,096 bytes).
PIECE_LETTERS = 400


def escape_unprintable(stream: TextIO) -> None:
    """Let a stream write letters that its encoding lacks as escapes from now on, instead of raising an error.

    To be called once, when a program starts. A file's name may have such letters, and Windows writes to pipes and files
    in a code page. The stream of errors escapes them anyway.
    """
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def printable(text: str, kept: str = "\n\t") -> str:
    """A text for a terminal or a log: what is not printable is written as escapes.

    Names of files may hold what moves a terminal's cursor, or sets its title; bytes that are no text are escaped too.

    Args:
        text: to show.
        kept: characters that stay all the same; by default those of messages of several lines.
    """
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode("ascii") for each in text
    )


def printable_name(name: str) -> str:
    """A file's name for a message of one line: bytes that are no text, and line ends, are written as escapes."""
    return printable(name, kept="")


class PrintableFormatter(logging.Formatter):
    """Formats messages, and their tracebacks, by `printable`."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class UnfailingStream:
    """A text stream that drops what cannot be written: a log that nobody can read must not end the work.

    A pipe or terminal that takes nothing for `PATIENCE_SECONDS` is not waited for any more until it takes something.

    Args:
        stream: where text goes; None: nowhere, as where the process was started without this stream.
    """

    def __init__(self, stream: TextIO | None):
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8", newline="\n")  # noqa: PTH123, SIM115
        else:
            escape_unprintable(stream)
        self._stream = stream
        self._patience = PATIENCE_SECONDS

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # full, closed, a pipe or terminal that has gone
            for start in range(0, len(text), PIECE_LETTERS):
                if self._takes_more():
                    self._stream.write(text[start : start + PIECE_LETTERS])
                    self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """All is written already."""

    def _takes_more(self) -> bool:
        """Whether the stream can be written without waiting, now or soon."""
        if os.name != "posix":
            return True
        try:
            number = self._stream.fileno()
        except (OSError, ValueError, AttributeError):  # a notebook's, or one of a test
            return True
        poll = select.poll()
        poll.register(number, select.POLLOUT)
        takes = bool(poll.poll(1000 * self._patience))
        self._patience = PATIENCE_SECONDS if takes else 0.0
        return takes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def open_closed() -> None:
    """Open those of the standard streams to nowhere that are closed.

    Else the next file that is opened would get what is printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one


def guard_output() -> None:
    """Let nothing that is printed or logged fail from now on, wherever standard output and errors lead, if anywhere."""
    open_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, UnfailingStream):
            setattr(sys, name, UnfailingStream(stream))


def show_log(stream: TextIO, pattern: str = "%(asctime)s %(levelname)s %(message)s") -> None:
    """Show the project's messages from INFO on, and hide mmcv's and mmdet's warnings about themselves.

    The logger gets a handler of its own: mmcv silences those of the root logger when it is first used.

    Args:
        stream: where they are written.
        pattern: the format of a line, as `logging.Formatter` takes it.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PrintableFormatter(pattern))
    LOG.handlers = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    # The name of a compiled module is its path.
    warnings.filterwarnings("ignore", module=r"(.*/)?mm(cv|det)\b")
    warnings.filterwarnings("ignore", message=r"On January 1, 2023, MMCV")
