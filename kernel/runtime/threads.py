"""Threads in which a worker runs networks and finishes images, so that the two overlap."""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any

#: What the names of a `CallThread`'s threads begin with.
CALL_THREAD_PREFIX = "kernel: "
#: The second part of an image's work, after its networks: post-processing, in any thread. Returns the worker's answer.
Finish = Callable[[], Mapping[str, Any]]


def has_call_threads() -> bool:
    """Whether the thread of any `CallThread` is still running: one whose worker was given up runs on."""
    return any(thread.name.startswith(CALL_THREAD_PREFIX) for thread in threading.enumerate())


class CallThread:
    """A thread with a queue of calls, made one after another. Unlike a pool's, it is a daemon: no process waits for it.

    Args:
        name: of the thread.
        on_error: takes the exception that ends the thread, where a call raises one.
    """

    def __init__(self, name: str, on_error: Callable[[BaseException | None], None]):
        self._on_error = on_error
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=CALL_THREAD_PREFIX + name, daemon=True)
        self._thread.start()

    def add(self, call: Callable[[], None]) -> None:
        """Have a call made after all that were added before."""
        self._calls.put(call)

    def close(self) -> None:
        """Wait until all calls are made, and end the thread."""
        self._calls.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        try:
            while (call := self._calls.get()) is not None:
                call()
            ended = True
        finally:
            if not ended:
                self._on_error(sys.exception())


class Finisher:
    """Finishes images: in a thread, while the networks run on the next image, or at once.

    Args:
        send: takes the messages "ready" and "answer".
        on_error: takes what finishing raises in the thread. At once, it is raised as usual.
        overlaps: whether there is a thread.
    """

    def __init__(
        self,
        send: Callable[[Mapping[str, Any]], None],
        on_error: Callable[[BaseException | None], None],
        overlaps: bool,
    ):
        self._send = send
        self._thread = CallThread("finishes images", on_error) if overlaps else None
        self._free = threading.Semaphore()

    def take(self, finish: Finish) -> None:
        """Finish an image, once the one before is finished: at most one waits, which bounds the memory."""
        if self._thread is None:
            self._send({"answer": finish()})
            self._send({"ready": True})
            return
        self._free.acquire()
        self._send({"ready": True})
        self._thread.add(lambda: self._finish(finish))

    def _finish(self, finish: Finish) -> None:
        self._send({"answer": finish()})
        self._free.release()

    def close(self) -> None:
        """Wait until all images are finished."""
        if self._thread is not None:
            self._thread.close()
