"""Signals in training: a run that is stopped saves its state first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kernel.log import LOG
from kernel.signals import HANG_UP, heard_hang_up


class Stops:
    """The signals that were received, and whether the run waits now, so that one may end it at once."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.is_waiting = False

    def __bool__(self) -> bool:
        return bool(self.received)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """In the block a signal raises `Stopped` at once: nothing is lost that is not made again."""
        if self.received:
            raise Stopped
        self.is_waiting = True
        try:
            yield
        finally:
            self.is_waiting = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """The handler of the first signal; another one ends the process at once."""
        if self.received:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.received.append(number)
        LOG.warning("stopping after this step; a second signal (Ctrl-C) stops at once, unsaved")
        if self.is_waiting:
            self.is_waiting = False
            raise Stopped


class Stopped(Exception):
    """A signal came while the run was waiting."""


def outlive_signals(worker: int) -> None:
    """Let a process that makes crops outlive the signals that stop the run, whose last step needs its crops.

    A terminal sends it SIGINT too, a scheduler SIGTERM. A SIGTERM of its parent ends it all the same.
    """
    for number in (signal.SIGINT, *HANG_UP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none: nothing shows there who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_on_parents_sigterm, args=(os.getppid(),), daemon=True).start()


def end_on_parents_sigterm(parent: int) -> None:
    """End this process at the first SIGTERM, which must be blocked, that the process `parent` sends it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def stop_signals() -> Iterator[Stops]:
    """Collect SIGINT, SIGTERM and SIGHUP in the block instead of ending at the first; a second one ends all at once.

    A SIGHUP that is ignored, as under nohup, stays so. A SIGINT is heard also where a shell started this in the
    background, and had it ignored.
    """
    stops = Stops()
    heard = (signal.SIGINT, signal.SIGTERM, *heard_hang_up())
    before = {number: signal.signal(number, stops.note) for number in heard}
    try:
        yield stops
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
