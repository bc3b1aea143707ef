"""Images shared over workers: whichever is free takes the next one, and no image is lost with a process that dies."""

from __future__ import annotations

import queue
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel.errors import InputError, RunError
from kernel.log import LOG, printable_name
from kernel.runtime.budget import TimeBudget
from kernel.runtime.device_workers import DeviceWorker, Message, WorkerQueue
from kernel.runtime.failures import FailedImage
from kernel.runtime.rereading import Rereading

#: An image is given up after this many attempts that ended with the worker's death, or failed through no fault of its
#: file: it may be the cause.
MAX_ATTEMPTS = 2
#: A worker's process is ended and begun anew after this many such failures in a row: it may be the cause.
MAX_FAILURES = 3
#: Where so many processes have died, or hung, and no image has a result, none is started any more.
MAX_VAIN_DEATHS = 6
#: The clock is looked at at least this often.
LISTENING_SECONDS = 60.0
#: A worker that is ended and has not told so for this long is dead: the system cannot end its process.
ENDED_SECONDS = 30.0
#: A worker that starts for longer is no device in forecasts until it is ready; a usual start takes one or two minutes.
USUAL_START_SECONDS = 300.0
#: One that starts for longer than this hangs: large weights may come from a slow mount.
START_SECONDS = 1800.0


def share_images(
    workers: Sequence[DeviceWorker],
    messages: WorkerQueue,
    paths: Sequence[Path],
    budget: TimeBudget,
    on_answer: Callable[[DeviceWorker, Mapping[str, Any]], None],
    on_failure: Callable[[str, FailedImage], None],
    hard_deadline: float,
    clock: Callable[[], float] = time.monotonic,
    on_left_out: Callable[[Mapping[str, str]], None] = lambda members: None,
) -> None:
    """Have every image done by whichever worker is free; calls `on_answer` or `on_failure` once for each.

    An image whose worker dies is retried, by another one or by the one started in its place. Where all workers have
    died and none can be started, the images left fail. A worker that hangs, in its start too, is ended. An image that
    cannot be read is tried once more after all others, and where the system is the cause, again and again after longer
    and longer pauses.

    One that fails through no fault of its file is tried once more after all others, by another worker where there is
    one. A worker that fails at several in a row is ended and begun anew, where it has a process: otherwise it would be
    free sooner than all others, and take all that waits.

    Args:
        workers: all put their messages into `messages`.
        paths: the images, in the order in which they are begun.
        budget: says the quality level of each. An image not begun at its deadline fails.
        on_answer: takes the answer of an image that has a result, with the worker that gave it.
        on_failure: takes the id of an image that has none, and why.
        hard_deadline: images still running then fail as well, and their workers are ended.
        clock: gives the time in seconds; both deadlines are in its terms.
        on_left_out: takes the members that a worker could not load, with the reason of each.

    Raises:
        InputError, RunError: no worker can start, for such a reason, or without one. Once one was ready, the others are
            dead devices.
    """
    dispatcher = Dispatcher(
        deque(paths),
        budget,
        on_answer,
        on_failure,
        on_left_out,
        clock,
        list(workers),
        {worker: [] for worker in workers},
    )
    is_past = False
    while dispatcher.has_images_left():
        if dispatcher.look_after_workers() or dispatcher.give_up_waiting() or dispatcher.send_next():
            continue
        due = dispatcher.next_attempt()
        if due is not None and due <= clock():
            dispatcher.read_again()
            continue
        left = (budget.deadline if dispatcher.waiting else hard_deadline if due is None else due) - clock()
        try:
            worker, message = messages.get(timeout=min(max(0.01, left), LISTENING_SECONDS))
        except queue.Empty:
            if clock() > hard_deadline and not is_past:
                dispatcher.end_running()
                is_past = True
            continue
        dispatcher.receive(worker, message)


@dataclass
class Dispatcher:
    """The state of `share_images`: which images wait, and which worker has which."""

    waiting: deque[Path]
    budget: TimeBudget
    on_answer: Callable[[DeviceWorker, Mapping[str, Any]], None]
    on_failure: Callable[[str, FailedImage], None]
    on_left_out: Callable[[Mapping[str, str]], None]
    clock: Callable[[], float]
    alive: list[DeviceWorker]
    running: dict[DeviceWorker, list[Path]]  # of all workers; one may finish an image and run networks on the next
    idle: deque[DeviceWorker] = field(default_factory=deque)
    attempts: Counter[Path] = field(default_factory=Counter)  # of `MAX_ATTEMPTS`
    failed: dict[Path, tuple[DeviceWorker, FailedImage]] = field(default_factory=dict)  # at what and why, the last time
    failures: Counter[DeviceWorker] = field(default_factory=Counter)  # in a row, of `MAX_FAILURES`
    was_ready: bool = False  # any worker
    has_result: bool = False  # any image
    deaths: int = 0  # of workers
    starting: dict[DeviceWorker, float] = field(default_factory=dict)  # since when; until they are ready
    ended: dict[DeviceWorker, float] = field(default_factory=dict)  # by us, when; until their end is told
    start_error: InputError | RunError | None = None  # of a worker, before any was ready
    rereading: Rereading[Path] = field(default_factory=Rereading[Path])
    attempt_at: float | None = None  # when the unread ones are tried again

    def __post_init__(self) -> None:
        self.starting = dict.fromkeys(self.alive, self.clock())

    def has_images_left(self) -> bool:
        """Whether any image waits or runs, or is to be read again."""
        return bool(self.waiting or self.rereading.unread) or any(self.running.values())

    def next_attempt(self) -> float | None:
        """When the images that could not be read are tried again; None while others wait or run, or there are none.

        At the deadline at the latest: after it, they fail at once. One that may hang is not waited for.
        """
        is_busy = any(paths and not self._is_late(worker, self.clock()) for worker, paths in self.running.items())
        if not self.rereading.unread or self.waiting or is_busy:
            return None
        if self.attempt_at is None:
            self.attempt_at = min(self.clock() + self.rereading.pause(), self.budget.deadline)
        return self.attempt_at

    def read_again(self) -> None:
        """Let all images that could not be read wait again."""
        self.attempt_at = None
        for path in self.rereading.release():
            self.budget.drop(path.stem, wait=True)
            self.waiting.append(path)

    def give_up_waiting(self) -> bool:
        """Fail all waiting images where there is no time or no worker for them; returns whether that was so."""
        if not self.waiting or (self.alive and self.clock() <= self.budget.deadline):
            return False
        if not self.alive and not self.was_ready:
            raise self.start_error or RunError(
                "no worker has become ready, and none has told why: their processes have died in their start, or hung"
            )
        reason = "the time limit came first" if self.alive else "no device is left: all their processes have died"
        for path in self.waiting:
            self.budget.drop(path.stem)
            _, failure = self.failed.get(path, (None, FailedImage(reason, wrong_input=False)))
            self.on_failure(path.stem, failure)
        self.waiting.clear()
        return True

    def send_next(self) -> bool:
        """Send the next image to an idle worker that may take it; returns whether there was one."""
        if not self.waiting:
            return False
        path = self.waiting[0]
        worker = next((each for each in self.idle if self._may_take(each, path)), None)
        if worker is None:
            return False
        self.idle.remove(worker)
        self.waiting.popleft()
        self.running[worker].append(path)
        # By the time this worker is ready again, each of the others has most likely taken one.
        others = len(self.alive) - 1
        next_path = self.waiting[others] if len(self.waiting) > others else None
        worker.send(path, self.budget.begin(path.stem, self.clock()), next_path)
        return True

    def _may_take(self, worker: DeviceWorker, path: Path) -> bool:
        """Whether a worker may have this image now; one that has failed at it leaves it to others, if there are any.

        Not for what cannot be read: that is no worker's fault.
        """
        at, failure = self.failed.get(path, (None, None))
        is_workers_fault = at is worker and failure is not None and not failure.wrong_input
        is_left_to_others = is_workers_fault and self.alive != [worker]
        return (
            worker not in self.ended and not is_left_to_others and may_take(path, self.running[worker], self.attempts)
        )

    def _has_nothing_to_do(self, worker: DeviceWorker) -> bool:
        """Whether an idle worker has none to take of the images that wait."""
        return worker not in self.ended and not (self.waiting and self._may_take(worker, self.waiting[0]))

    def receive(self, worker: DeviceWorker, message: Message) -> None:
        """Do what a worker's message asks for. One that was given up is not listened to."""
        if worker not in self.alive:
            return
        if message is None:
            self._worker_died(worker)
        elif "log" in message:
            level, text = message["log"]
            LOG.log(level, "%s: %s", worker.name, text)
        elif "left_out" in message:
            self.on_left_out(message["left_out"])
        elif "wrong_input" in message:
            self._cannot_start(worker, InputError(f"{worker.name}: {message['wrong_input']}"))
        elif "failure" in message:
            self._cannot_start(worker, RunError(f"{worker.name}: {message['failure']}"))
        elif "crash" in message:
            raise message["crash"]
        elif "ready" in message:
            self.was_ready = True
            self.starting.pop(worker, None)
            self.idle.append(worker)
        else:
            self._answered(worker, message["answer"])

    def _cannot_start(self, worker: DeviceWorker, error: InputError | RunError) -> None:
        """Take note of why a worker cannot start. Where none was ready, input that is wrong is so at a next start."""
        LOG.error("%s", error)
        if not self.was_ready:
            self.start_error = self.start_error or error
            if isinstance(error, InputError):
                worker.close()

    def look_after_workers(self) -> bool:
        """End workers that hang; their images are tried again. Give up those that cannot be ended.

        Returns:
            Whether one was given up.
        """
        now, before = self.clock(), len(self.alive)
        for worker in list(self.alive):
            if worker in self.ended:
                if now - self.ended[worker] > ENDED_SECONDS:
                    self._worker_died(worker, has_ended=False)
                continue
            reason = self._why_hung(worker, now)
            if reason is not None and worker.end_process():
                LOG.error("%s hangs, for %s, and is ended", worker.name, reason)
                self.ended[worker] = now
        self.budget.devices = max(1, sum(not self._is_late(worker, now) for worker in self.alive))
        return len(self.alive) < before

    def _is_late(self, worker: DeviceWorker, now: float) -> bool:
        """Whether a worker takes so long that it may hang: it counts for none until it answers."""
        is_start_late = now - self.starting.get(worker, now) > USUAL_START_SECONDS
        return is_start_late or any(self.budget.is_late(path.stem, now) for path in self.running[worker])

    def _why_hung(self, worker: DeviceWorker, now: float) -> str | None:
        """Why a worker is to be ended, for it hangs or may hang; None: it is not.

        Where another one idles, it may as well have the image that is late. Once: it may be one that takes so long.
        """
        if now - self.starting.get(worker, now) > START_SECONDS:
            return "its start takes far too long"
        if any(self.budget.is_overdue(path.stem, now) for path in self.running[worker]):
            return "its image takes far too long"
        untried = [path for path in self.running[worker] if not self.attempts[path]]
        others = [each for each in self.idle if each is not worker and self._has_nothing_to_do(each)]
        if others and any(self.budget.is_late(path.stem, now) for path in untried):
            return "its image takes too long, and another device is idle"
        return None

    def end_running(self) -> None:
        """End all workers that still run images; these fail when the worker's end is received."""
        for worker, late in self.running.items():
            if late:
                LOG.error("%s has not answered in time and is ended", worker.name)
                self.ended.setdefault(worker, self.clock())
                worker.close(at_once=True)
            self.attempts.update(dict.fromkeys(late, MAX_ATTEMPTS))

    def _answered(self, worker: DeviceWorker, answer: Mapping[str, Any]) -> None:
        running = self.running[worker]
        path = next(path for path in running if path.stem == answer["image"])
        running.remove(path)
        if answer["failure"] is None:
            summary = answer["summary"]
            self.budget.finish(path.stem, self.clock(), summary["run_as"], summary["seconds"])
            self.failures[worker] = 0
            self.has_result = True
            self.on_answer(worker, answer)
        else:
            self._image_failed(worker, path, FailedImage(**answer["failure"]))
        for other in running:
            self.budget.resume(other.stem, self.clock())

    def _image_failed(self, worker: DeviceWorker, path: Path, failure: FailedImage) -> None:
        """Have an image tried again after all others, so often as may help, or let it fail."""
        self.budget.drop(path.stem)
        self.failed[path] = worker, failure
        is_tried_again = False
        if failure.wrong_input:
            is_tried_again = self.clock() <= self.budget.deadline and self.rereading.takes(path, failure)
        else:
            self.attempts[path] += 1
            self.failures[worker] += worker not in self.ended  # what it had begun by then is no failure of the next one
            if self._may_help(worker) and self.attempts[path] < MAX_ATTEMPTS and self.clock() <= self.budget.deadline:
                LOG.warning("image %s is tried again after all others: %s", printable_name(path.name), failure.reason)
                self.budget.drop(path.stem, wait=True)
                self.waiting.append(path)
                is_tried_again = True
            if self.failures[worker] % MAX_FAILURES == 0:
                self._begin_anew(worker)
        if not is_tried_again:
            self.on_failure(path.stem, failure)

    def _may_help(self, worker: DeviceWorker) -> bool:
        """Whether an image at which a worker has failed may have a result by another one, or by a new process."""
        return self.alive != [worker] or (worker.has_process and self.failures[worker] <= MAX_FAILURES)

    def _begin_anew(self, worker: DeviceWorker) -> None:
        """End a worker that fails at image after image; the only one goes on where a new process has not helped."""
        others = [each for each in self.alive if each is not worker and each not in self.ended]
        if worker in self.ended or not (others or self.failures[worker] <= MAX_FAILURES) or not worker.end_process():
            return
        LOG.error("%s has failed at %d images in a row, and is ended", worker.name, self.failures[worker])
        self.ended[worker] = self.clock()

    def _worker_died(self, worker: DeviceWorker, has_ended: bool = True) -> None:
        """Take note that a worker is dead, or that its process can only be given up: it keeps its device."""
        self.deaths += 1
        self.ended.pop(worker, None)
        self.starting.pop(worker, None)
        if worker in self.idle:
            self.idle.remove(worker)
        failure = FailedImage(f"the process of {worker.name} died or had to be ended", wrong_input=False)
        for path in self.running[worker]:
            self.failed[path] = worker, failure
            self.attempts[path] += 1
            retried = self.attempts[path] < MAX_ATTEMPTS
            self.budget.drop(path.stem, wait=retried)
            if retried:  # last of all: it may be what kills, and the others should be done by then
                self.waiting.append(path)
            else:
                self.on_failure(path.stem, failure)
        self.running[worker].clear()
        if has_ended and worker.restart(self._is_needed(worker)):
            self.starting[worker] = self.clock()
            LOG.error("the process of %s has died and is started again", worker.name)
        else:
            self.alive.remove(worker)
            how = "has died" if has_ended else "cannot be ended, and is given up"
            LOG.error("the process of %s %s; %d device(s) left", worker.name, how, len(self.alive))

    def _is_needed(self, worker: DeviceWorker) -> bool:
        """Whether a worker should do more images, however many it has died with: for what no process has died of yet.

        The last worker is needed for all that are left; one that has failed at image after image in two processes is
        needed no more while there are others. Each image's attempts are counted, so that this has an end. It comes
        sooner where nothing shows that a device can do any image: two starts for each would take all of the time.
        """
        if not self.has_result and self.deaths >= MAX_VAIN_DEATHS:
            return False
        left = (*self.waiting, *self.rereading.unread)
        if self.alive == [worker]:
            return bool(left)
        return self.failures[worker] <= MAX_FAILURES and not all(self.attempts[path] for path in left)


def may_take(path: Path, held: Sequence[Path], attempts: Mapping[Path, int]) -> bool:
    """Whether a worker may have this image besides those that it holds.

    An image whose worker has died before is done alone, so that no other one is lost with it.
    """
    return not held or not any(attempts[each] for each in (path, *held))
