"""Images shared over processes, some of which die, hang or never start; the processes are a few lines of Python."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from kernel.errors import InputError, RunError
from kernel.runtime import device_workers
from kernel.runtime.budget import HANG_SECONDS, TimeBudget
from kernel.runtime.device_workers import DeviceWorker, Finish, LocalWorker, ProcessWorker, WorkerQueue
from kernel.runtime.failures import FailedImage
from kernel.runtime.sharing import (
    ENDED_SECONDS,
    MAX_ATTEMPTS,
    MAX_FAILURES,
    MAX_VAIN_DEATHS,
    START_SECONDS,
    USUAL_START_SECONDS,
    may_take,
    share_images,
)

#: Behaves as the image's name says.
WORKER = """
import json, os, pathlib, sys, threading, time
task = json.loads(sys.stdin.readline())
if "say" in task:
    print(json.dumps(task["say"]), flush=True)
if task.get("die") or ("die after" in task and pathlib.Path(task["die after"]).exists()):
    os._exit(3)
if "fail once" in task and not pathlib.Path(task["fail once"]).exists():
    pathlib.Path(task["fail once"]).touch()
    print(json.dumps(task["why"]), flush=True)
    os._exit(3)
sick = "sick" in task
if "sick once" in task and not pathlib.Path(task["sick once"]).exists():
    pathlib.Path(task["sick once"]).touch()
    sick = True
print(json.dumps({"log": [30, "hello"]}), flush=True)
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    path = pathlib.Path(json.loads(line)["path"])
    if path.stem.startswith("poison"):
        os._exit(3)
    if path.stem.startswith("once") and not path.exists():
        path.touch()
        print('{"answer": {"image": "half', end="", flush=True)
        os._exit(3)
    if path.stem.startswith("hang"):
        time.sleep(600)
    if path.stem.startswith("meet"):
        path.touch()
        while len(list(path.parent.glob("meet*"))) < 2:
            time.sleep(0.01)
    answer = {"image": path.stem, "failure": None, "summary": {"run_as": "cort", "seconds": {}}}
    if path.stem.startswith("broken"):
        answer = {"image": path.stem, "failure": {"reason": "broken", "wrong_input": True}}
    time.sleep(task.get("slow", 0))
    if sick or path.stem.startswith("faulty"):
        path.with_name(f"{path.stem}.{time.monotonic_ns()}.failed").touch()  # in one step: it may be ended in any
        failure = {"reason": "RuntimeError: of " + path.stem, "wrong_input": False, "error_type": "RuntimeError"}
        answer = {"image": path.stem, "failure": failure}
    says = lambda answer=answer: print(json.dumps({"answer": answer}), flush=True)
    if task.get("overlap"):  # ready for the next one before the answer
        threading.Timer(0.02, says).start()
    else:
        says()
    print(json.dumps({"ready": True}), flush=True)
"""


class OnlyLevel:
    name = "full"

    def stage_work(self, cell_type: str) -> Mapping[str, float]:
        return {"other": 1}


class Outcomes:
    """What became of each image."""

    def __init__(self) -> None:
        self.done: dict[str, str] = {}
        self.failed: dict[str, FailedImage] = {}

    def answered(self, worker: DeviceWorker, answer: Mapping[str, Any]) -> None:
        assert answer["image"] not in self.done
        self.done[answer["image"]] = worker.name

    def fail(self, image_id: str, failure: FailedImage) -> None:
        assert image_id not in self.failed
        self.failed[image_id] = failure


@contextmanager
def processes(*tasks: Mapping[str, Any]) -> Iterator[tuple[list[DeviceWorker], WorkerQueue]]:
    said: WorkerQueue = queue.SimpleQueue()
    command = [sys.executable, "-I", "-S", "-c", WORKER]
    workers: list[DeviceWorker] = [
        ProcessWorker(f"device{number}", command, os.environ, task, said) for number, task in enumerate(tasks)
    ]
    try:
        yield workers, said
    finally:
        for worker in workers:
            worker.close()


def share(
    names: list[str], folder: Path, *tasks: Mapping[str, Any], deadline: float = 1e9, hard_deadline: float = 1e9
) -> Outcomes:
    """Have images done by a process for each task; times are seconds from now."""
    outcomes, now = Outcomes(), time.monotonic()
    budget = TimeBudget([OnlyLevel()], dict.fromkeys(names, 1.0), now + deadline, len(tasks))
    with processes(*tasks) as (workers, said):
        paths = [folder / name for name in names]
        share_images(workers, said, paths, budget, outcomes.answered, outcomes.fail, now + hard_deadline)
    assert sorted([*outcomes.done, *outcomes.failed]) == sorted(names)
    return outcomes


NAMES = [f"image{number}" for number in range(40)]


def test_all_images_are_done_by_all_devices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # Each of the two that meet waits for the other: however slow a process is to start, both have a share.
    outcomes = share(["meet0", "meet1", *NAMES], tmp_path, {}, {})
    assert not outcomes.failed and set(outcomes.done.values()) == {"device0", "device1"}
    assert "device0: hello" in caplog.text and "device1: hello" in caplog.text
    assert share([], tmp_path, {}).done == {}


def test_a_device_that_dies_has_its_image_done_by_the_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outcomes = share([*NAMES[:5], "once", *NAMES[5:]], tmp_path, {}, {})
    assert not outcomes.failed and outcomes.done["once"] in ("device0", "device1")
    assert "has died and is started again" in caplog.text and "left" not in caplog.text


def test_a_lone_device_that_dies_is_started_again(tmp_path: Path) -> None:
    outcomes = share(["once", *NAMES, "poison"], tmp_path, {})
    assert list(outcomes.failed) == ["poison"] and set(outcomes.done.values()) == {"device0"}


def test_a_device_that_never_starts_is_done_without(tmp_path: Path) -> None:
    assert set(share(NAMES, tmp_path, {"die": True}, {}).done.values()) == {"device1"}


@pytest.mark.parametrize("devices", [1, 2])
def test_images_that_kill_cost_no_other(tmp_path: Path, devices: int) -> None:
    """However many come in a row: each is tried twice, and the device goes on."""
    poison = [f"poison{number}" for number in range(4)]
    outcomes = share([*NAMES[:3], *poison, *NAMES[3:]], tmp_path, *[{}] * devices)
    assert sorted(outcomes.done) == sorted(NAMES) and sorted(outcomes.failed) == poison
    assert all("died or had to be ended" in failure.reason for failure in outcomes.failed.values())


@pytest.mark.parametrize("devices", [1, 2])
def test_starts_that_die_without_a_word_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, devices: int
) -> None:
    """As where a driver's library kills the process; of several reasons one that is told counts."""
    with pytest.raises(RunError, match=r"no worker has become ready, and none has told why: .* died in their start"):
        share(NAMES[:3], tmp_path, *[{"die": True}] * devices)
    assert "its process has ended, with exit code 3" in caplog.text
    with pytest.raises(RunError, match="told why"):
        share(NAMES[:3], tmp_path, *[{"die": True}] * devices, {"say": {"failure": "told why"}, "die": True})


def test_a_start_that_hangs_twice_is_told() -> None:
    one = ScriptedWorker("one")
    said = ScriptedQueue((START_SECONDS + 1, None, None), (START_SECONDS + 2, one, None))
    with pytest.raises(RunError, match="no worker has become ready"):
        share_scripted([one], said, "ab")


@pytest.mark.parametrize("devices", [1, 2])
def test_where_each_image_kills_its_process_this_has_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: int
) -> None:
    """Before any has a result: hundreds of starts would take the whole night."""
    starts, real_start = [], ProcessWorker._start

    def start(worker: ProcessWorker) -> subprocess.Popen[str] | None:
        starts.append(worker.name)
        return real_start(worker)

    monkeypatch.setattr(ProcessWorker, "_start", start)
    poison = [f"poison{number}" for number in range(40)]
    outcomes = share(poison, tmp_path, *[{}] * devices)
    assert sorted(outcomes.failed) == sorted(poison)
    assert MAX_VAIN_DEATHS <= len(starts) <= MAX_VAIN_DEATHS + 2 * devices


def test_where_no_device_becomes_ready_any_more_the_rest_fails(tmp_path: Path) -> None:
    """A device that dies in its start is started once more, whatever it has done before."""
    names = [*NAMES[:3], "once", *NAMES[3:]]
    outcomes = share(names, tmp_path, {"die after": str(tmp_path / "once")})
    assert list(outcomes.done) == NAMES[:3]
    assert outcomes.failed.pop("once").reason == "the process of device0 died or had to be ended"
    reason = "no device is left: all their processes have died"
    assert set(outcomes.failed.values()) == {FailedImage(reason, wrong_input=False)}


def test_an_image_that_kills_two_devices_is_given_up(tmp_path: Path) -> None:
    outcomes = share(["poison", *NAMES], tmp_path, {}, {}, {})
    assert list(outcomes.failed) == ["poison"] and "died or had to be ended" in outcomes.failed["poison"].reason
    assert len(outcomes.done) == len(NAMES)


def test_an_image_that_fails_is_no_death(tmp_path: Path) -> None:
    outcomes = share(["broken", *NAMES], tmp_path, {}, {})
    assert outcomes.failed == {"broken": FailedImage("broken", wrong_input=True)}


def tries(folder: Path) -> dict[str, int]:
    """How often each image has failed."""
    return Counter(path.name.partition(".")[0] for path in folder.glob("*.failed"))


@pytest.mark.parametrize("overlap", [{}, {"overlap": True}])
def test_a_process_in_which_all_fails_costs_no_image(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, overlap: Mapping[str, Any]
) -> None:
    """It is free again at once, and would take all that waits; its successor does its share."""
    well, sick = {"slow": 0.02, **overlap}, {"sick once": str(tmp_path / "was sick"), **overlap}
    outcomes = share(["meet0", "meet1", *NAMES], tmp_path, well, sick)
    assert not outcomes.failed and set(tries(tmp_path).values()) == {1}
    assert len(tries(tmp_path)) == MAX_FAILURES or (overlap and len(tries(tmp_path)) > MAX_FAILURES)
    assert "device1 has failed at 3 images in a row" in caplog.text and "left" not in caplog.text


def test_a_device_on_which_all_fails_is_given_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outcomes = share(["meet0", "meet1", *NAMES], tmp_path, {"slow": 0.05}, {"sick": True})
    assert not outcomes.failed and set(outcomes.done.values()) == {"device0"}
    assert set(tries(tmp_path).values()) == {1} and len(tries(tmp_path)) == 2 * MAX_FAILURES
    assert "the process of device1 has died; 1 device(s) left" in caplog.text


@pytest.mark.parametrize("overlap", [{}, {"overlap": True}])
def test_a_lone_process_in_which_all_fails_is_begun_anew(tmp_path: Path, overlap: Mapping[str, Any]) -> None:
    outcomes = share(NAMES, tmp_path, {"sick once": str(tmp_path / "was sick"), **overlap})
    assert not outcomes.failed and set(tries(tmp_path).values()) == {1}
    assert overlap or sorted(tries(tmp_path)) == NAMES[:MAX_FAILURES]


@pytest.mark.parametrize("devices", [1, 2])
def test_where_all_fails_everywhere_each_image_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, devices: int
) -> None:
    """A new process is tried, once for each device and once more for the last, and then all fail soon."""
    outcomes = share(NAMES, tmp_path, *[{"sick": True}] * devices)
    expected = {name: FailedImage(f"RuntimeError: of {name}", False, "RuntimeError") for name in NAMES}
    assert outcomes.failed == expected and max(tries(tmp_path).values()) <= MAX_ATTEMPTS
    assert devices <= caplog.text.count("is started again") <= devices + 1


@pytest.mark.parametrize("devices", [1, 2])
def test_an_image_that_fails_is_tried_once_more(tmp_path: Path, caplog: pytest.LogCaptureFixture, devices: int) -> None:
    outcomes = share(["faulty", *NAMES], tmp_path, *[{}] * devices)
    assert outcomes.failed == {"faulty": FailedImage("RuntimeError: of faulty", False, "RuntimeError")}
    assert tries(tmp_path) == {"faulty": 2} and "is started again" not in caplog.text
    assert "image faulty is tried again after all others: RuntimeError: of faulty" in caplog.text


def test_an_image_that_fails_is_tried_by_another_worker() -> None:
    """Even where that one is busy, and the one that it failed on is not."""
    one, two, ready = ScriptedWorker("one"), ScriptedWorker("two"), {"ready": True}
    failed = {"image": "a", "failure": {"reason": "of the device", "wrong_input": False}}
    said = ScriptedQueue(
        (0.0, one, ready),  # takes a
        (1.0, two, ready),  # takes b
        (2.0, one, {"answer": failed}),
        (3.0, one, ready),  # must not take it again
        (4.0, two, {"answer": answer_of(Path("b"))}),
        (5.0, two, ready),
        (6.0, two, {"answer": answer_of(Path("a"))}),
    )
    outcomes, _ = share_scripted([one, two], said, "ab")
    assert (one.sent, two.sent) == (["a"], ["b", "a"]) and outcomes.done == {"b": "two", "a": "two"}


def test_a_worker_that_is_ended_takes_no_image() -> None:
    """What it has said before its end may be heard later."""
    one, two, ready = ScriptedWorker("one"), ScriptedWorker("two"), {"ready": True}
    fails = [{"answer": {"image": name, "failure": {"reason": "x", "wrong_input": False}}} for name in "abc"]
    said = ScriptedQueue(
        *[(0.0, one, message) for fail in fails for message in (ready, fail)],
        (1.0, one, ready),
        (2.0, one, None),
        *[(3.0, two, message) for name in "dabc" for message in (ready, {"answer": answer_of(Path(name))})],
    )
    outcomes, _ = share_scripted([one, two], said, "abcd")
    assert one.is_ended and one.sent == ["a", "b", "c"] and set(outcomes.done.values()) == {"two"}


def test_in_this_process_an_image_that_fails_is_not_tried_again() -> None:
    """It would fail again: there is no other process."""
    begun: list[str] = []

    def begin(path: Path, quality_level: int, next_path: Path | None) -> Finish:
        begun.append(path.stem)
        return lambda: {"image": path.stem, "failure": {"reason": "x", "wrong_input": False}}

    assert list(share_with(begin, NAMES).failed) == NAMES == begun


def test_after_the_deadline_an_image_that_fails_says_why() -> None:
    one, two, ready = ScriptedWorker("one"), ScriptedWorker("two"), {"ready": True}
    failed = {"image": "a", "failure": {"reason": "of the device", "wrong_input": False}}
    said = ScriptedQueue((0.0, one, ready), (1.0, two, ready), (50.0, one, {"answer": failed}), (101.0, None, None),
                         (102.0, two, {"answer": answer_of(Path("b"))}))  # fmt: skip
    outcomes, _ = share_scripted([one, two], said, "ab", hard_deadline=100.0)
    assert outcomes.failed == {"a": FailedImage("of the device", wrong_input=False)}


def test_after_the_deadline_nothing_is_begun(tmp_path: Path) -> None:
    outcomes = share(NAMES, tmp_path, {}, deadline=-1)
    assert {failure.reason for failure in outcomes.failed.values()} == {"the time limit came first"}


def test_one_that_hangs_is_ended_at_the_hard_deadline(tmp_path: Path) -> None:
    outcomes = share(["hang"], tmp_path, {}, deadline=1e9, hard_deadline=1)
    assert "had to be ended" in outcomes.failed["hang"].reason


@pytest.mark.parametrize(("kind", "error"), [("wrong_input", InputError), ("failure", RunError)])
def test_what_a_worker_cannot_start_with_is_told(tmp_path: Path, kind: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="device0: no such file"):
        share(NAMES, tmp_path, {"say": {kind: "no such file"}, "die": True}, {"die": True})


@pytest.mark.parametrize("others", [0, 1])
def test_a_start_that_fails_is_tried_once_more(tmp_path: Path, others: int) -> None:
    """Whether another device is ready by then does not matter."""
    task = {"fail once": str(tmp_path / "failed"), "why": {"failure": "of the driver"}}
    outcomes = share(NAMES, tmp_path, task, *[{"die": True}] * others)
    assert set(outcomes.done.values()) == {"device0"} and not outcomes.failed


def test_a_start_with_wrong_input_is_not_tried_again(tmp_path: Path) -> None:
    """It would end in the same way, minutes later."""
    task = {"fail once": str(tmp_path / "failed"), "why": {"wrong_input": "no such file"}}
    with pytest.raises(InputError, match="device0: no such file"):
        share(NAMES, tmp_path, task)


@pytest.mark.parametrize("overlaps", [False, True])
def test_memory_stays_flat_over_a_night(tmp_path: Path, overlaps: bool) -> None:
    """240 images of 500 cells: only rows of text stay, and what is made of an image is let go before the next."""
    names = [f"image{number}" for number in range(240)]
    outcomes = Outcomes()

    def begin(path: Path, quality_level: int, next_path: Path | None) -> Finish:
        pixels = bytearray(4 << 20)
        summary = {"run_as": "cort", "seconds": {}, "cells": len(pixels)}
        return lambda: {"image": path.stem, "failure": None, "summary": summary, "rles": [f"{len(pixels)} 5"] * 500}

    said: WorkerQueue = queue.SimpleQueue()
    budget = TimeBudget([OnlyLevel()], dict.fromkeys(names, 1.0), time.monotonic() + 1e9)
    tracemalloc.start()
    try:
        worker = LocalWorker("cpu", begin, said, overlaps)
        share_images([worker], said, [tmp_path / name for name in names], budget, outcomes.answered, outcomes.fail, 1e9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(outcomes.done) == 240
    assert peak < (5 if overlaps else 3) * (4 << 20)


# --- images that overlap -----------------------------------------------------------------------------------------


def answer_of(path: Path) -> dict[str, Any]:
    return {"image": path.stem, "failure": None, "summary": {"run_as": "cort", "seconds": {}}}


def share_with(
    begin: Callable[[Path, int, Path | None], Finish],
    names: list[str],
    hard_deadline: float = 1e9,
    overlaps: bool = True,
) -> Outcomes:
    """Have images done by a thread of this process."""
    said: WorkerQueue = queue.SimpleQueue()
    worker, outcomes, now = LocalWorker("gpu", begin, said, overlaps), Outcomes(), time.monotonic()
    budget = TimeBudget([OnlyLevel()], dict.fromkeys(names, 1.0), now + hard_deadline / 2)
    paths = [Path(name) for name in names]
    share_images([worker], said, paths, budget, outcomes.answered, outcomes.fail, now + hard_deadline)
    worker.close()
    return outcomes


def test_an_image_is_finished_while_the_next_is_begun() -> None:
    """Each waits, before it is finished, for the next one to be begun: one after the other, they would never end."""
    begun = {name: threading.Event() for name in NAMES}
    calls: list[tuple[str, str | None]] = []

    def begin(path: Path, quality_level: int, next_path: Path | None) -> Finish:
        begun[path.stem].set()
        calls.append((path.stem, next_path and next_path.stem))

        def finish() -> dict[str, Any]:
            assert next_path is None or begun[next_path.stem].wait(60)
            return answer_of(path)

        return finish

    assert list(share_with(begin, NAMES).done) == NAMES
    assert calls == list(zip(NAMES, [*NAMES[1:], None], strict=True))


def test_no_more_than_one_image_waits_to_be_finished() -> None:
    waiting, most = 0, 0

    def begin(path: Path, quality_level: int, next_path: Path | None) -> Finish:
        nonlocal waiting, most
        waiting += 1
        most = max(most, waiting)

        def finish() -> dict[str, Any]:
            nonlocal waiting
            time.sleep(0.01)
            waiting -= 1
            return answer_of(path)

        return finish

    assert len(share_with(begin, NAMES).done) == len(NAMES)
    assert most <= 3  # one is finished, one waits for that, one is begun


@pytest.mark.parametrize("where", ["begin", "finish"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mistake_in_a_thread_is_raised_and_not_waited_for(where: str) -> None:
    def mistake() -> dict[str, Any]:
        raise KeyError("a mistake")

    def begin(path: Path, quality_level: int, next_path: Path | None) -> Finish:
        return mistake if where == "finish" else mistake()["nothing"]

    with pytest.raises(KeyError, match="a mistake"):
        share_with(begin, NAMES)


@pytest.mark.parametrize("overlaps", [False, True])
def test_a_thread_that_hangs_is_left_alone_at_the_hard_deadline(overlaps: bool) -> None:
    """On the CPU as well, where an image may take far longer than any before it."""
    never = threading.Event()

    def begin(path: Path, quality_level: int, next_path: Path | None) -> Finish:
        if path.stem == "hang":
            never.wait(30)
        return lambda: answer_of(path)

    begun = time.monotonic()
    outcomes = share_with(begin, ["a", "hang", "b"], hard_deadline=1, overlaps=overlaps)
    assert list(outcomes.done) == ["a"] and sorted(outcomes.failed) == ["b", "hang"]
    assert time.monotonic() - begun < 20
    never.set()


def test_a_process_that_dies_with_two_images_has_both_done_by_the_other(tmp_path: Path) -> None:
    overlap = {"overlap": True}
    outcomes = share([*NAMES[:5], "once", *NAMES[5:]], tmp_path, overlap, overlap)
    assert not outcomes.failed and len(outcomes.done) == len(NAMES) + 1


class ScriptedWorker:
    """Says what is asked of it when it is asked."""

    def __init__(self, name: str):
        self.has_process = True
        self.name, self.sent, self.is_ended = name, list[str](), False

    def send(self, path: Path, quality_level: int, next_path: Path | None) -> None:
        self.sent.append(path.stem)

    def restart(self, is_needed: bool) -> bool:
        return False

    def end_process(self) -> bool:
        self.is_ended = True
        return True

    def close(self, at_once: bool = False) -> None:
        pass


@pytest.mark.parametrize(
    ("path", "held", "allowed"),
    [
        ("new", [], True),
        ("new", ["other"], True),
        ("suspect", [], True),
        ("suspect", ["other"], False),
        ("new", ["suspect"], False),
        ("new", ["other", "suspect"], False),
    ],
)
def test_what_a_process_died_with_is_held_alone(path: str, held: list[str], allowed: bool) -> None:
    attempts = Counter({Path("suspect"): 1})
    assert may_take(Path(path), [Path(name) for name in held], attempts) is allowed


def test_what_a_process_died_with_is_done_alone_and_last() -> None:
    """One dies with an innocent image still to be answered; the next must not take both at a time."""
    one, two = ScriptedWorker("one"), ScriptedWorker("two")
    said: WorkerQueue = queue.SimpleQueue()
    names, outcomes = ["innocent", "poison", "other"], Outcomes()
    held: list[list[str]] = []  # by the second one, whenever it answers

    def answered(worker: DeviceWorker, answer: Mapping[str, Any]) -> None:
        held.append([name for name in two.sent if name not in outcomes.done])
        outcomes.answered(worker, answer)

    budget = TimeBudget([OnlyLevel()], dict.fromkeys(names, 1.0), time.monotonic() + 1e9, 2)

    def tell(worker: ScriptedWorker, message: Any) -> None:
        said.put((worker, message))

    tell(one, {"ready": True})  # takes innocent
    tell(one, {"ready": True})  # takes poison, innocent not yet answered
    tell(one, None)
    tell(two, {"ready": True})  # takes other
    tell(two, {"ready": True})  # must take nothing yet
    tell(two, {"answer": answer_of(Path("other"))})  # takes innocent
    tell(two, {"ready": True})  # must wait for its answer
    tell(two, {"answer": answer_of(Path("innocent"))})
    tell(two, {"answer": answer_of(Path("poison"))})
    share_images([one, two], said, [Path(name) for name in names], budget, answered, outcomes.fail, 1e18)
    assert one.sent == ["innocent", "poison"] and held == [["other"], ["innocent"], ["poison"]]
    assert sorted(outcomes.done) == sorted(names) and not outcomes.failed


def test_an_image_whose_process_died_is_left_to_another_worker() -> None:
    """One dies with it, and its next process is ready while the other is still busy."""

    class Restarted(ScriptedWorker):
        def restart(self, is_needed: bool) -> bool:
            return True

    one, two, ready = Restarted("one"), ScriptedWorker("two"), {"ready": True}
    said = ScriptedQueue(
        (0.0, one, ready),  # takes a
        (1.0, two, ready),  # takes b
        (2.0, one, None),
        (3.0, one, ready),  # must leave a to the other
        (4.0, two, {"answer": answer_of(Path("b"))}),
        (5.0, two, ready),  # takes a
        (6.0, two, {"answer": answer_of(Path("a"))}),
    )
    outcomes, _ = share_scripted([one, two], said, "ab")
    assert (one.sent, two.sent) == (["a"], ["b", "a"]) and outcomes.done == {"b": "two", "a": "two"}


class ScriptedQueue:
    """Hands out messages at their times, in seconds, and is the clock as well. From no worker: there is none."""

    def __init__(self, *messages: tuple[float, DeviceWorker | None, Any]):
        self._messages, self.now = deque(messages), 0.0

    def get(self, timeout: float) -> tuple[DeviceWorker, Any]:
        self.now, worker, message = self._messages.popleft()
        if worker is None:
            raise queue.Empty
        return worker, message


def share_scripted(
    workers: list[ScriptedWorker], said: ScriptedQueue, names: str, hard_deadline: float = 1e9
) -> tuple[Outcomes, TimeBudget]:
    """Have images done by workers that say what is written in the script."""
    outcomes = Outcomes()
    budget = TimeBudget([OnlyLevel()], dict.fromkeys(names, 1.0), hard_deadline, len(workers))
    paths, hears = [Path(name) for name in names], cast(WorkerQueue, said)
    share_images(list(workers), hears, paths, budget, outcomes.answered, outcomes.fail, hard_deadline, lambda: said.now)
    return outcomes, budget


def test_a_device_that_hangs_in_its_start_is_ended_and_counts_for_none(caplog: pytest.LogCaptureFixture) -> None:
    one, two = ScriptedWorker("one"), ScriptedWorker("two")
    devices: list[int] = []  # after each message

    class Counting(TimeBudget):
        def finish(self, *arguments: Any) -> None:
            devices.append(self.devices)
            super().finish(*arguments)

    budget, outcomes = Counting([OnlyLevel()], dict.fromkeys("abc", 1.0), 1e9, 2), Outcomes()
    late, hung = USUAL_START_SECONDS + 1, START_SECONDS + 1
    said = ScriptedQueue(
        (10.0, one, {"ready": True}),
        (20.0, one, {"answer": answer_of(Path("a"))}),
        (late, one, {"ready": True}),
        (late + 10, one, {"answer": answer_of(Path("b"))}),
        (hung, None, None),
        (hung + 1, two, None),
        (hung + 2, one, {"ready": True}),
        (hung + 3, one, {"answer": answer_of(Path("c"))}),
    )
    paths, hears = [Path(name) for name in "abc"], cast(WorkerQueue, said)
    share_images([one, two], hears, paths, budget, outcomes.answered, outcomes.fail, 1e9, lambda: said.now)
    assert (one.is_ended, two.is_ended) == (False, True) and list(outcomes.done) == ["a", "b", "c"]
    assert devices == [2, 1, 1] and "two hangs, for its start takes far too long" in caplog.text


def test_a_device_that_hangs_at_the_first_image_is_ended(caplog: pytest.LogCaptureFixture) -> None:
    one, two = ScriptedWorker("one"), ScriptedWorker("two")
    said = ScriptedQueue(
        (0.0, one, {"ready": True}),
        (1.0, two, {"ready": True}),
        (HANG_SECONDS + 1, None, None),
        (HANG_SECONDS + 2, one, None),
        (HANG_SECONDS + 3, two, {"answer": answer_of(Path("a"))}),
    )
    outcomes, _ = share_scripted([one, two], said, "a")
    assert one.is_ended and outcomes.done == {"a": "two"}
    assert caplog.text.count("one hangs, for its image takes far too long") == 1


def test_an_image_that_is_late_is_done_by_a_device_that_idles(caplog: pytest.LogCaptureFixture) -> None:
    """Long before it must hang, by what the one before took; but once, for it may be one that takes so long."""
    one, two, three = ScriptedWorker("one"), ScriptedWorker("two"), ScriptedWorker("three")
    ready, late = {"ready": True}, HANG_SECONDS + 1
    said = ScriptedQueue(
        (0.0, one, ready),  # takes a
        (0.0, two, ready),  # takes b
        (100.0, two, {"answer": answer_of(Path("b"))}),
        (100.0, two, ready),
        (late, None, None),
        (late + 1, one, None),  # a is two's
        (late + 2, three, ready),
        (2 * late + 2, None, None),
        (2 * late + 3, two, {"answer": answer_of(Path("a"))}),
    )
    outcomes, _ = share_scripted([one, two, three], said, "ab")
    assert (one.is_ended, two.is_ended) == (True, False) and outcomes.done == {"b": "two", "a": "two"}
    assert "one hangs, for its image takes too long, and another device is idle" in caplog.text


def test_a_device_that_may_hang_counts_for_none_and_is_not_waited_for() -> None:
    one, two, ready, late = ScriptedWorker("one"), ScriptedWorker("two"), {"ready": True}, HANG_SECONDS + 1
    unread = {"reason": "no such file", "wrong_input": True, "error_type": "", "may_pass": True}
    devices: list[int] = []  # at each answer

    class Counting(TimeBudget):
        def finish(self, *arguments: Any) -> None:
            devices.append(self.devices)
            super().finish(*arguments)

    said = ScriptedQueue(
        (0.0, one, ready),  # takes a
        (0.0, two, ready),  # takes b
        (100.0, two, {"answer": answer_of(Path("b"))}),
        (100.0, two, ready),  # takes c
        (200.0, two, {"answer": {"image": "c", "failure": unread}}),
        (late - 50, two, ready),  # takes d
        (late, None, None),
        (late + 1, two, {"answer": answer_of(Path("d"))}),
        (late + 1, two, ready),  # c is read again
        (late + 2, two, {"answer": answer_of(Path("c"))}),
        (late + 3, two, ready),
        (late + 4, one, None),
        (late + 5, two, {"answer": answer_of(Path("a"))}),
    )
    budget, outcomes = Counting([OnlyLevel()], dict.fromkeys("abcd", 1.0), 1e9, 2), Outcomes()
    paths, hears = [Path(name) for name in "abcd"], cast(WorkerQueue, said)
    share_images([one, two], hears, paths, budget, outcomes.answered, outcomes.fail, 1e9, lambda: said.now)
    assert list(outcomes.done) == ["b", "d", "c", "a"] and devices == [2, 1, 1, 1]


def test_a_process_that_the_system_cannot_end_is_given_up(caplog: pytest.LogCaptureFixture) -> None:
    """It tells no end. Another one does its image; what it says later is not listened to."""
    one, two, ready = ScriptedWorker("one"), ScriptedWorker("two"), {"ready": True}
    ended = HANG_SECONDS + 1
    said = ScriptedQueue(
        (0.0, one, ready),
        (1.0, two, ready),
        (2.0, two, {"answer": answer_of(Path("b"))}),
        (3.0, two, ready),
        (ended, None, None),
        (ended + ENDED_SECONDS, None, None),
        (ended + ENDED_SECONDS + 1, None, None),
        (ended + ENDED_SECONDS + 2, one, {"answer": answer_of(Path("a"))}),
        (ended + ENDED_SECONDS + 3, one, None),
        (ended + ENDED_SECONDS + 4, two, {"answer": answer_of(Path("a"))}),
    )
    outcomes, budget = share_scripted([one, two], said, "ab")
    assert outcomes.done == {"b": "two", "a": "two"} and budget.devices == 1
    assert "the process of one cannot be ended, and is given up; 1 device(s) left" in caplog.text
    assert caplog.text.count("one hangs") == 1


def test_a_run_ends_though_a_process_does_not() -> None:
    one = ScriptedWorker("one")
    times = (101.0, 102.0, 101.0 + ENDED_SECONDS, 102.0 + ENDED_SECONDS)
    said = ScriptedQueue((0.0, one, {"ready": True}), *[(at, None, None) for at in times])
    outcomes, _ = share_scripted([one], said, "a", hard_deadline=100.0)
    assert "died or had to be ended" in outcomes.failed["a"].reason


def test_what_cannot_be_read_is_not_waited_for_beyond_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says why it could not be read."""
    monkeypatch.setenv("KERNEL_PATIENCE", "36000")
    one, ready = ScriptedWorker("one"), {"ready": True}
    away = {"reason": "no such file", "wrong_input": True, "error_type": "", "may_pass": True}
    answer = {"answer": {"image": "a", "failure": away}}
    tried = [(float(at), one, message) for at in (0, 0, 1, 3, 7, 15, 31, 63) for message in (ready, answer)]

    class Waiting(ScriptedQueue):
        """Has messages as long as an image is sent; otherwise time passes as long as it is waited for."""

        def get(self, timeout: float) -> tuple[DeviceWorker, Any]:
            if self._messages and self._messages[0][0] <= self.now:
                return super().get(timeout)
            self.now += timeout
            raise queue.Empty

    said = Waiting(*tried)
    outcomes, _ = share_scripted([one], said, "a", hard_deadline=100.0)
    assert outcomes.failed == {"a": FailedImage("no such file", True, may_pass=True)} and len(one.sent) == 8
    assert 100 < said.now < 101


@pytest.fixture
def unending(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], tuple[ProcessWorker, WorkerQueue]]]:
    """A function that makes a worker whose process runs a shell's command and hears no signal, as in a driver."""
    monkeypatch.setattr(device_workers, "CLOSING_SECONDS", 0.1)
    started: list[tuple[subprocess.Popen[str], Callable[[], None]]] = []

    def start(command: str) -> tuple[ProcessWorker, WorkerQueue]:
        said: WorkerQueue = queue.SimpleQueue()
        worker = ProcessWorker("stuck", ["sh", "-c", command], os.environ, {}, said)
        assert worker.process is not None
        started.append((worker.process, worker.process.kill))
        monkeypatch.setattr(worker.process, "kill", lambda: None)
        return worker, said

    yield start
    for process, kill in started:
        kill()
        process.wait()


def test_nothing_waits_for_a_process_that_cannot_be_ended(unending: Any, caplog: pytest.LogCaptureFixture) -> None:
    worker, _ = unending("exec sleep 600")
    worker.close(at_once=True)
    assert worker.process.poll() is None and "cannot be ended, and is left behind" in caplog.text


def test_a_process_that_tells_nothing_any_more_has_ended(unending: Any) -> None:
    """Its output is closed, and what else it waits for is not waited for."""
    worker, said = unending("exec sleep 600 >&-")
    assert said.get(timeout=60) == (worker, None) and worker.process.poll() is None


class RecordingBudget(TimeBudget):
    """Keeps from when on images were charged anew."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.resumed: list[tuple[str, float]] = []

    def resume(self, image_id: str, now: float) -> None:
        self.resumed.append((image_id, now))
        super().resume(image_id, now)


def test_an_image_is_charged_anew_once_its_device_has_answered_for_the_one_before() -> None:
    """What another device answers does not count."""
    one, two, ready = ScriptedWorker("one"), ScriptedWorker("two"), {"ready": True}
    said = ScriptedQueue(
        (0.0, one, ready),  # takes a
        (1.0, two, ready),  # takes b
        (2.0, one, ready),  # takes c: the networks are done with a
        (3.0, one, {"answer": answer_of(Path("a"))}),
        (4.0, two, {"answer": answer_of(Path("b"))}),
        (5.0, one, {"answer": answer_of(Path("c"))}),
    )
    budget, outcomes = RecordingBudget([OnlyLevel()], dict.fromkeys("abc", 1.0), 1e9, 2), Outcomes()
    share_images(
        [one, two],
        cast(WorkerQueue, said),
        [Path(name) for name in "abc"],
        budget,
        outcomes.answered,
        outcomes.fail,
        1e9,
        lambda: said.now,
    )
    assert (one.sent, two.sent) == (["a", "c"], ["b"]) and sorted(outcomes.done) == ["a", "b", "c"]
    assert budget.resumed == [("c", 3.0)]


def test_a_process_with_a_thread_given_up_ends_with_its_code() -> None:
    """In torch, where Python would abort it."""
    script = """
import queue, time, torch
from pathlib import Path
from kernel.main import end_at_once
from kernel.runtime.device_workers import LocalWorker
square = torch.ones(400, 400)
worker = LocalWorker("gpu", lambda *_: all((square @ square).any() for _ in iter(int, 1)), queue.SimpleQueue(), True)
worker.send(Path("a"), 0, None)
time.sleep(0.5)
worker.close(at_once=True)
worker.close()
print("written")
end_at_once(2)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (2, "written\n"), done.stderr
