"""Images shared over devices: a process for each, one queue for all, and no image lost with a process.

A process of its own for each device means that none waits for another's Python, and that one that dies takes only
itself along: another one is started in its place, unless the last two did not a single image. The processes are the
script once more, told by the environment to serve: they take tasks as lines of JSON on their input and give answers
the same way; what goes back is text, rows and not masks. A CPU that is alone is served in this process, by the same
loop.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from kernel.attempt import FailedImage
from kernel.errors import InputError, RunError
from kernel.runtime.budget import TimeBudget
from kernel.runtime.log import LOG

#: An image in whose hands so many processes died is given up: it may be what they died of.
MOST_ATTEMPTS = 2
#: After so many starts that brought no image a device is given up.
MOST_BARREN_STARTS = 2
#: How long a process may take to end when it is told to.
CLOSING_SECONDS = 10.0

#: The clock is looked at at least this often.
LISTENING_SECONDS = 60.0

#: What the names of a `Lane`'s threads begin with.
LANE_PREFIX = "lane: "
#: What a worker says: an object with "ready" (for an image, even if the last one's answer is still to come), "answer",
#: "log", "wrong_input", "failure" or "crash"; None: it has ended.
Message = Mapping[str, Any] | None
#: What a worker's networks leave to do of an image; it returns the answer.
Finish = Callable[[], Mapping[str, Any]]


class DeviceWorker(Protocol):
    """What does images on one device. What it says goes, with itself, into the queue that it was made with."""

    name: str  # of the device, for people

    def send(self, path: Path, level: int, then: Path | None) -> None:
        """Do an image at a level of quality; `then` is likely to be the next one."""
        ...

    def restart(self) -> bool:
        """Start anew after its end, where that makes sense; whether it did."""
        ...

    def close(self, at_once: bool = False) -> None:
        """End; `at_once`: whatever it is doing."""
        ...


WorkerQueue = queue.SimpleQueue[tuple[DeviceWorker, Message]]


def has_running_lanes() -> bool:
    """Whether the thread of a `Lane` is running, as one does that was given up."""
    return any(thread.name.startswith(LANE_PREFIX) for thread in threading.enumerate())


class Lane:
    """A thread that does one thing after another. Unlike a pool's, it keeps no process from ending.

    Parameters:
        name: of the thread.
        crashed: takes what ends the thread, should anything raise.
    """

    def __init__(self, name: str, crashed: Callable[[BaseException | None], None]):
        self._crashed = crashed
        self._things: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=LANE_PREFIX + name, daemon=True)
        self._thread.start()

    def add(self, thing: Callable[[], None]) -> None:
        """Have it done after all that was added before."""
        self._things.put(thing)

    def close(self) -> None:
        """Wait until all is done."""
        self._things.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        try:
            while (thing := self._things.get()) is not None:
                thing()
            ended = True
        finally:
            if not ended:
                self._crashed(sys.exception())


class Finisher:
    """Finishes images: in a thread of its own while the next one is begun, or at once.

    Parameters:
        say: takes the messages "ready" and "answer".
        crashed: takes what finishing raises in the thread. At once, it is raised as usual.
        overlaps: whether there is a thread.
    """

    def __init__(
        self, say: Callable[[Mapping[str, Any]], None], crashed: Callable[[BaseException | None], None], overlaps: bool
    ):
        self._say = say
        self._lane = Lane("finishes images", crashed) if overlaps else None
        self._free = threading.Semaphore()

    def take(self, finish: Finish) -> None:
        """Finish an image, once the one before is: never more than one waits, so that memory stays flat."""
        if self._lane is None:
            self._say({"answer": finish()})
            self._say({"ready": True})
            return
        self._free.acquire()
        self._say({"ready": True})
        self._lane.add(lambda: self._finish(finish))

    def _finish(self, finish: Finish) -> None:
        self._say({"answer": finish()})
        self._free.release()

    def close(self) -> None:
        """Wait until all is finished."""
        if self._lane is not None:
            self._lane.close()


class LocalWorker:
    """A device served in this process.

    Without `overlaps` an image is done before `send` returns; with it, it is only begun, in a thread.

    Parameters:
        name: of the device, for people.
        begin: has the networks do an image: path, level, and the path of what is likely to come then.
        said: where its messages go.
        overlaps: as for `Finisher`.
    """

    def __init__(
        self, name: str, begin: Callable[[Path, int, Path | None], Finish], said: WorkerQueue, overlaps: bool = False
    ):
        self.name = name
        self._begin = begin
        self._said = said
        self._lane = Lane(f"runs networks on {name}", self._crash) if overlaps else None
        self._finisher = Finisher(self._say, self._crash, overlaps)
        self._given_up = False
        self._say({"ready": True})

    def _say(self, message: Message) -> None:
        self._said.put((self, message))

    def _crash(self, error: BaseException | None) -> None:
        self._say({"crash": error})

    def send(self, path: Path, level: int, then: Path | None) -> None:
        if self._lane is None:
            self._do(path, level, then)
        else:
            self._lane.add(lambda: self._do(path, level, then))

    def restart(self) -> bool:
        return False

    def _do(self, path: Path, level: int, then: Path | None) -> None:
        self._finisher.take(self._begin(path, level, then))

    def close(self, at_once: bool = False) -> None:
        if at_once:  # a thread cannot be ended, but nothing need wait for it
            self._given_up = True
            self._say(None)
        if self._given_up:
            return
        if self._lane is not None:
            self._lane.close()
        self._finisher.close()


class ProcessWorker:
    """A device served by a process of its own.

    Parameters:
        name: of the device, for people.
        command, environment: what to start.
        task: the first line of its input.
        said: where its messages go.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        task: Mapping[str, Any],
        said: WorkerQueue,
    ):
        self.name = name
        self._command, self._environment, self._task = list(command), dict(environment), task
        self._said = said
        self._barren_starts = 0  # since the last answer
        self._ended = False
        self.process = self._start()

    def _start(self) -> subprocess.Popen[str]:
        """A process that has its task and is listened to."""
        self._barren_starts += 1
        process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        )
        self._write(process, self._task)
        threading.Thread(target=self._listen, args=(process,), name=f"listens to {self.name}", daemon=True).start()
        return process

    def restart(self) -> bool:
        """Not one that had to be ended, and not after so many starts without any image: the next would be no better."""
        if self._ended or self._barren_starts >= MOST_BARREN_STARTS:
            return False
        self._close_input()
        self.process = self._start()
        return True

    def send(self, path: Path, level: int, then: Path | None) -> None:
        self._write(self.process, {"path": str(path), "level": level, "then": None if then is None else str(then)})

    def _write(self, process: subprocess.Popen[str], task: Mapping[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(task) + "\n")
            process.stdin.flush()
        except OSError:  # it has died, which its end of the other pipe tells
            LOG.debug("%s takes no more tasks", self.name)

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """Pass on what a process says, until it ends."""
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                try:
                    message = json.loads(line)
                except ValueError:  # half a line of one that was killed
                    LOG.debug("%s: not JSON: %s", self.name, line[:80])
                    continue
                if "answer" in message:
                    self._barren_starts = 0
                self._said.put((self, message))
        process.wait()
        self._said.put((self, None))

    def close(self, at_once: bool = False) -> None:
        self._ended = True
        if at_once:
            self.process.kill()
        self._close_input()
        try:
            self.process.wait(CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _close_input(self) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except OSError:
            LOG.debug("%s has gone before", self.name)


def share_images(
    workers: Sequence[DeviceWorker],
    said: WorkerQueue,
    paths: Sequence[Path],
    budget: TimeBudget,
    answered: Callable[[DeviceWorker, Mapping[str, Any]], None],
    failed: Callable[[Path, FailedImage], None],
    last_call: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Have every image done by whichever worker is free; calls `answered` or `failed` once for each.

    An image whose worker dies is done once more, by another or by the one started in its place. Images not begun at the
    budget's deadline fail; at `last_call` so do those still being done, and their workers are ended. Workers that all
    die leave the rest failed.

    Raises InputError or RunError where a worker says that it cannot start for such a reason.
    """
    waiting, attempts = deque(paths), Counter[Path]()
    alive, idle = list(workers), deque[DeviceWorker]()
    busy: list[list[Path]] = [[] for _ in workers]  # by place: a worker may finish one image and do another
    called = False
    while waiting or any(busy):
        if waiting and (not alive or clock() > budget.deadline):
            reason = "the time limit came first" if alive else "no device is left: all their processes have died"
            for path in waiting:
                budget.drop(path.stem)
                failed(path, FailedImage(reason, wrong_input=False))
            waiting.clear()
            continue
        worker = (
            next((w for w in idle if may_take(waiting[0], busy[workers.index(w)], attempts)), None) if waiting else None
        )
        if worker is not None:
            idle.remove(worker)
            path = waiting.popleft()
            busy[workers.index(worker)].append(path)
            # By the time this worker is ready again, each of the others has most likely taken one.
            then = waiting[len(alive) - 1] if len(waiting) >= len(alive) else None
            worker.send(path, budget.begin(path.stem, clock()), then)
            continue
        try:
            patience = (budget.deadline if waiting else last_call) - clock()
            worker, message = said.get(timeout=min(max(0.01, patience), LISTENING_SECONDS))
        except queue.Empty:
            if clock() > last_call and not called:
                for late_worker, late in zip(workers, busy, strict=True):
                    if late:
                        LOG.error("%s has not answered in time and is ended", late_worker.name)
                        late_worker.close(at_once=True)
                    attempts.update(dict.fromkeys(late, MOST_ATTEMPTS))
                called = True  # their end is told like any other
            continue
        place = workers.index(worker)
        if message is None:
            if worker.restart():
                LOG.error("the process of %s has died and is started again", worker.name)
            else:
                alive.remove(worker)
                budget.devices = max(1, len(alive))
                LOG.error("the process of %s has died; %d device(s) left", worker.name, len(alive))
            if worker in idle:
                idle.remove(worker)
            for path in busy[place]:
                attempts[path] += 1
                again = attempts[path] < MOST_ATTEMPTS
                budget.drop(path.stem, wait=again)
                if again:  # last of all: it may be what kills, and the others should be done by then
                    waiting.append(path)
                else:
                    failed(path, FailedImage(f"the process of {worker.name} died or had to be ended", False))
            busy[place].clear()
        elif "log" in message:
            level, text = message["log"]
            LOG.log(level, "%s: %s", worker.name, text)
        elif "wrong_input" in message:
            raise InputError(f"{worker.name}: {message['wrong_input']}")
        elif "failure" in message:
            raise RunError(f"{worker.name}: {message['failure']}")
        elif "crash" in message:
            raise message["crash"]
        elif "ready" in message:
            idle.append(worker)
        else:
            answer = message["answer"]
            path = next(path for path in busy[place] if path.stem == answer["image"])
            busy[place].remove(path)
            if answer["failure"] is None:
                budget.finish(path.stem, clock(), answer["told"]["run_as"], answer["told"]["seconds"])
                answered(worker, answer)
            else:
                budget.drop(path.stem)
                failed(path, FailedImage(**answer["failure"]))
            for other in busy[place]:
                budget.resume(other.stem, clock())


def may_take(path: Path, held: Sequence[Path], attempts: Mapping[Path, int]) -> bool:
    """Whether a worker that holds some images already may have this one.

    What a process died with is done alone, so that no other image is lost with it.
    """
    return not held or not any(attempts[each] for each in (path, *held))
