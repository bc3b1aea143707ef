"""Signals in training: a run that is stopped saves its state first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kernel.log import LOG


def outlive_signals(worker: int) -> None:
    """Let a process that makes crops outlive the signals that stop the run, whose last step needs its crops.

    A terminal sends it SIGINT too, a scheduler SIGTERM. A SIGTERM of its parent ends it all the same.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none: nothing shows there who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_on_parents_sigterm, args=(os.getppid(),), daemon=True).start()


def end_on_parents_sigterm(parent: int) -> None:
    """End this process at the first SIGTERM, which must be blocked, that the process `parent` sends it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in the block instead of ending at the first; a second SIGINT interrupts as usual."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        LOG.warning("stopping after this step; a second Ctrl-C stops at once, unsaved")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
