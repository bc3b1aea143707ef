"""How far a run over many images is: a bar with the time left on a terminal, a line for each image in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from kernel.log import LOG, printable_name


class Progress(Protocol):
    """Is told of each image of a run."""

    def finished_before(self) -> None:
        """An image was finished by an earlier run."""

    def done(self, name: str, told: str) -> None:
        """An image is done, or has failed; `told` says how, without its name."""


class Lines:
    """A line in the log for each image."""

    def __init__(self, count: int):
        self._count = count
        self._number = self._made = 0
        self._start = time.monotonic()

    def finished_before(self) -> None:
        self._number += 1

    def done(self, name: str, told: str) -> None:
        self._number += 1
        self._made += 1
        left = readable_seconds((time.monotonic() - self._start) / self._made * (self._count - self._number))
        LOG.info("%d/%d %s: %s; %s left", self._number, self._count, printable_name(name), told, left)


class Bar:
    """tqdm's bar; what else is logged is written above it."""

    def __init__(self, bar: tqdm):
        self._bar = bar
        self._before = 0

    def finished_before(self) -> None:
        self._before += 1
        self._bar.initial = self._before  # these took no time, and tell nothing of the time left
        self._bar.update()

    def done(self, name: str, told: str) -> None:
        self._bar.set_postfix_str(printable_name(name), refresh=False)
        self._bar.update()


@contextmanager
def shown_progress(count: int, *, quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """A progress of so many images: a bar where standard error is a terminal, lines elsewhere or where `verbose`."""
    if verbose or quiet or not sys.stderr.isatty():
        yield Lines(count)  # a quiet log shows none
        return
    with logging_redirect_tqdm([LOG]), tqdm(total=count, unit="image", dynamic_ncols=True) as bar:
        yield Bar(bar)


def readable_seconds(seconds: float) -> str:
    """A duration for people."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
