"""The end of a process: by a signal with what there is, soon, and without leftovers; or at once."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

from kernel.errors import as_failure
from kernel.log import LOG
from kernel.signals import heard_hang_up

#: How long the last work of a process may take after a signal.
ENDING_SECONDS = 8.0


@contextlib.contextmanager
def ending_by_signal(last_work: Callable[[str], None]) -> Iterator[None]:
    """In the block, let SIGTERM, SIGINT and SIGHUP call `last_work` with their name, and end the process.

    It ends with 128 and the signal's number, also where that work fails: the log then says of what.

    The work is done in a thread, for the main one may be long in a library's code; it must take no lock that the main
    thread may hold for long. A SIGHUP that is ignored when the block begins stays so, as nohup wants it. Only the main
    thread of a process can have this; in another the block is as it would be without.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, written = socket.socketpair()
    written.setblocking(False)
    wakes_before = signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
    heard = (signal.SIGTERM, signal.SIGINT, *heard_hang_up())
    handlers = {number: signal.signal(number, do_nothing) for number in heard}

    def listen() -> None:
        while number := ours.recv(1)[0]:
            if number in heard:
                threading.Thread(target=exit_later, args=(128 + number,), daemon=True).start()
                try:
                    last_work(signal.Signals(number).name)
                except Exception as error:  # noqa: BLE001 (whatever it is: it is told here, or nowhere)
                    LOG.error("%s", as_failure(error))
                finally:
                    os._exit(128 + number)

    listener = threading.Thread(target=listen, name="listens to signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakes_before)
        written.setblocking(True)
        written.send(b"\0")
        listener.join()  # where a signal has come, the process ends here
        for number, handler in handlers.items():
            signal.signal(number, handler)
        ours.close()
        written.close()


@contextlib.contextmanager
def ending_late(last_work: Callable[[], int], seconds: float) -> Iterator[None]:
    """After so many seconds in the block, call `last_work` in a thread, and end the process with the code it gives.

    For a main thread that hangs, as in a call of a driver or of a mounted disk. Where that work fails, or takes longer
    than `ENDING_SECONDS`, the exit code is 0: what is written counts.
    """

    def end() -> None:
        code = 0
        threading.Thread(target=exit_later, args=(code,), daemon=True).start()
        try:
            code = last_work()
        except Exception as error:  # noqa: BLE001 (whatever it is: it is told here, or nowhere)
            LOG.error("%s", as_failure(error))
        finally:
            os._exit(code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def do_nothing(number: int, frame: object) -> None:
    """A signal's handler: the signal's number is read elsewhere."""


def exit_later(code: int) -> None:
    """End this process after `ENDING_SECONDS`, whatever its other threads do."""
    threading.Event().wait(ENDING_SECONDS)
    os._exit(code)


def end_at_once(code: int) -> NoReturn:
    """End the process without waiting for a thread that was given up, a GPU that is lost, or other processes.

    Python's own end could wait for ever, or abort with another exit code when such a thread returns from torch.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_children() -> None:
    """End all processes that this one has started, where the system tells of them; others notice that it has gone."""
    for task in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text(encoding="ascii").split():
                os.kill(int(child), signal.SIGKILL)


def end_without_parent() -> None:
    """End this process soon after the one that started it has ended, however that came."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="watches its parent", daemon=True).start()
