"""Which signals a program should hear, and how it ends by them while it has nothing to put away yet."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

#: What a terminal sends that goes away; Windows has none.
HANG_UP = tuple(number for number in signal.Signals if number.name == "SIGHUP")


def heard_hang_up() -> tuple[signal.Signals, ...]:
    """HANG_UP, but where this process is to ignore it, by nohup."""
    return tuple(number for number in HANG_UP if signal.getsignal(number) is not signal.SIG_IGN)


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """In the block, let SIGINT, SIGTERM and SIGHUP end this process at once, with 128 and the signal's number.

    For imports: an exception in the midst of one comes out as another one, or as a page of traceback. Signals that are
    ignored stay so. Only the main thread of a process can have this; in another the block is as it would be without.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = (signal.SIGINT, signal.SIGTERM, *HANG_UP)
    before = {
        number: signal.signal(number, end_now) for number in heard if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_now(number: int, frame: FrameType | None) -> None:
    """A signal's handler that ends this process, with 128 and the signal's number."""
    os._exit(128 + number)
