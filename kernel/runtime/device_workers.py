"""Workers: each runs images on one device, in this process or in a process of its own.

With a process for each device none waits for another's Python, and one that dies takes no other along. It is started
again, unless its last two starts brought no result; where it was ready and is needed, even then. Such a process is the
same script, and an environment variable makes it serve a device: it reads requests from its input and writes messages
to its output, as lines of JSON. Images come back as run lengths, not as masks. A single device that is the CPU needs no
process, unless an image may kill it.
"""

from __future__ import annotations

import json
import logging
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kernel.log import LOG
from kernel.runtime.threads import CallThread, Finish, Finisher

#: A process is not started again after this many starts that did not become ready; nor after as many without a result,
#: unless it is needed.
MAX_FAILED_STARTS = 2
#: How long a process may take to end after its input is closed, and once more after it is killed. One that waits in a
#: driver may never end.
CLOSING_SECONDS = 10.0

#: An object with one of the keys
#:   "ready": the worker can take an image, even where the answer for the last one is still to come;
#:   "answer": what `ImageWorker` returns for an image;
#:   "log": level of the record, text;
#:   "left_out": the members that the worker could not load, with the reason of each;
#:   "wrong_input", "failure": why the worker cannot start, for InputError and RunError;
#:   "crash": what a thread of this process raised.
#: None: the worker has ended.
Message = Mapping[str, Any] | None


class DeviceWorker(Protocol):
    """Runs images on one device. It puts its messages into a queue, each together with itself."""

    name: str  # of the device, for people
    has_process: bool  # of its own, which can be ended and started anew

    def send(self, path: Path, quality_level: int, next_path: Path | None) -> None:
        """Have an image done at a quality level; `next_path` is likely to be the next one, and may be read ahead."""
        ...

    def restart(self, is_needed: bool) -> bool:
        """Start anew after its end, where that is of use; returns whether it did.

        Args:
            is_needed: whether images wait that it should do, however many it has died with.
        """
        ...

    def end_process(self) -> bool:
        """End the process of a worker that does not answer any more, or is of no use; it may be started anew.

        Returns:
            Whether it has one. Its end is told as any other, unless the system cannot end it.
        """
        ...

    def close(self, at_once: bool = False) -> None:
        """End the worker: after its images, or with `at_once` immediately."""
        ...


WorkerQueue = queue.SimpleQueue[tuple[DeviceWorker, Message]]


class LocalWorker:
    """Runs images on a device in this process.

    The networks run in a thread, so that whoever sends an image can give it up at a deadline. With `overlaps` images
    are finished in another one.

    Args:
        name: of the device, for people.
        begin: runs the networks on an image, given path, quality level and likely next path.
        messages: where its messages go.
        overlaps: whether the networks run on the next image meanwhile.
    """

    has_process = False

    def __init__(
        self,
        name: str,
        begin: Callable[[Path, int, Path | None], Finish],
        messages: WorkerQueue,
        overlaps: bool = False,
    ):
        self.name = name
        self._begin = begin
        self._messages = messages
        self._thread = CallThread(f"runs networks on {name}", self._crash)
        self._finisher = Finisher(self._put, self._crash, overlaps)
        self._given_up = False
        self._put({"ready": True})

    def _put(self, message: Message) -> None:
        self._messages.put((self, message))

    def _crash(self, error: BaseException | None) -> None:
        self._put({"crash": error})

    def send(self, path: Path, quality_level: int, next_path: Path | None) -> None:
        self._thread.add(lambda: self._run(path, quality_level, next_path))

    def restart(self, is_needed: bool) -> bool:
        return False

    def end_process(self) -> bool:
        """A thread cannot be ended."""
        return False

    def _run(self, path: Path, quality_level: int, next_path: Path | None) -> None:
        self._finisher.take(self._begin(path, quality_level, next_path))

    def close(self, at_once: bool = False) -> None:
        if at_once:  # a thread cannot be ended, but nothing need wait for it
            self._given_up = True
            self._put(None)
        if self._given_up:
            return
        self._thread.close()
        self._finisher.close()


class ProcessWorker:
    """Runs images on a device in a process of its own.

    Args:
        name: of the device, for people.
        command, environment: how the process is started.
        setup: the first line of its input, as JSON.
        messages: where its messages go.
    """

    has_process = True

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        setup: Mapping[str, Any],
        messages: WorkerQueue,
    ):
        self.name = name
        self._command, self._environment, self._setup = list(command), dict(environment), setup
        self._messages = messages
        self._unready_starts = 0  # starts since it was last ready
        self._fruitless_starts = 0  # starts since the last result
        self._closed = False
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str] | None:
        """Start a process, send it its setup, and pass on its messages from a thread.

        None where the system starts none; the messages are then those of a process that has ended at once.
        """
        self._unready_starts += 1
        self._fruitless_starts += 1
        try:
            process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            self._messages.put((self, {"failure": f"its process cannot be started: {error}"}))
            self._messages.put((self, None))
            return None
        self._write(process, self._setup)
        threading.Thread(target=self._listen, args=(process,), name=f"listens to {self.name}", daemon=True).start()
        return process

    def restart(self, is_needed: bool) -> bool:
        """Start another process, unless this one was closed, or its last starts were of no use.

        One that became ready and died may have died of its images. Where it is needed, these alone are given up.
        """
        failed_starts = self._unready_starts if is_needed else self._fruitless_starts
        if self._closed or failed_starts >= MAX_FAILED_STARTS:
            return False
        self._close_input()
        self.process = self._start()
        return True

    def send(self, path: Path, quality_level: int, next_path: Path | None) -> None:
        request = {
            "path": str(path),
            "quality_level": quality_level,
            "next_path": None if next_path is None else str(next_path),
        }
        if self.process is not None:
            self._write(self.process, request)

    def _write(self, process: subprocess.Popen[str], request: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except OSError:  # it has died, which the end of its output shows
            LOG.debug("%s takes no more requests", self.name)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Pass on the messages of a process until it ends, or tells nothing any more."""
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                try:
                    message = json.loads(line)
                except (ValueError, RecursionError):  # half a line of a process that was killed
                    message = None
                if not isinstance(message, dict):
                    LOG.debug("%s: no message: %s", self.name, line[:80])
                    continue
                if "ready" in message:
                    self._unready_starts = 0
                if "answer" in message and message["answer"]["failure"] is None:
                    self._fruitless_starts = 0
                self._messages.put((self, message))
        if self._wait_for_end(process) and process.returncode and not self._closed:
            self._messages.put((self, {"log": (logging.ERROR, f"its process has ended, {end_of(process.returncode)}")}))
        self._messages.put((self, None))

    def _wait_for_end(self, process: subprocess.Popen[str]) -> bool:
        """Wait until a process has ended, and kill it where it does not; returns whether it has ended at last."""
        for _ in range(2):
            try:
                process.wait(CLOSING_SECONDS)
                return True
            except subprocess.TimeoutExpired:
                process.kill()
        return False

    def end_process(self) -> bool:
        if self.process is None:
            return False
        self.process.kill()
        return True

    def close(self, at_once: bool = False) -> None:
        self._closed = True
        if self.process is None:
            return
        if at_once:
            self.process.kill()
        self._close_input()
        if not self._wait_for_end(self.process):
            LOG.error("the process of %s (%d) cannot be ended, and is left behind", self.name, self.process.pid)

    def _close_input(self) -> None:
        if self.process is None or self.process.stdin is None:
            return
        try:
            self.process.stdin.close()
        except OSError:
            LOG.debug("%s ended before its input was closed", self.name)


def end_of(code: int) -> str:
    """How a process has ended, by its exit code, which is a signal's number below 0."""
    names = {number.value: number.name for number in signal.Signals}
    return f"by {names.get(-code, f'signal {-code}')}" if code < 0 else f"with exit code {code}"
