"""Work shared over processes: in order, and at its end where one dies, is stopped, hangs or runs wild."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from cases import GRID, competition

from kernel import processes
from kernel.__main__ import main
from kernel.data import prepare
from kernel.errors import InputError, RunError
from kernel.processes import map_in_processes

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the faults are POSIX signals")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Seconds in the place of minutes; at the end no process is left."""
    monkeypatch.setattr(processes, "LONGEST_SILENCE", 3.0)
    yield
    assert not multiprocessing.active_children()


def nothing() -> None:
    """A start that does nothing."""


def square_later(number: int) -> int:
    """The first takes longest."""
    time.sleep(0.3 if number == 0 else 0)
    return number * number


def die_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def stop_at_two(number: int) -> int:
    if number == 2:
        os.kill(os.getpid(), signal.SIGSTOP)
    return number


def hang_at_two(number: int) -> int:
    if number == 2:
        threading.Event().wait()
    return number


def run_wild_at_two(number: int) -> int:
    while number == 2:
        pass
    return number


def refuse_two(number: int) -> int:
    if number == 2:
        raise InputError("no 2, please")
    if number == 3:
        threading.Event().wait()
    return number


def stop_the_others(number: int) -> int:
    """Stop another process of the pool once it has nothing to do."""
    if number == 5:
        time.sleep(0.5)
        children = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text(encoding="utf-8").split()
        for child in map(int, children):
            if child != os.getpid() and b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, signal.SIGSTOP)
    return number


def in_two(function: Callable[[int], int], count: int = 6) -> Iterator[int]:
    return map_in_processes(function, range(count), [nothing] * 2, "try again")


@pytest.mark.usefixtures("impatient")
def test_results_come_in_order_and_nothing_is_nothing() -> None:
    assert list(in_two(square_later, 20)) == [number * number for number in range(20)]
    assert list(in_two(square_later, 0)) == []


@pytest.mark.usefixtures("impatient")
def test_who_asks_for_no_more_leaves_no_process() -> None:
    results = in_two(square_later, 20)
    assert next(results) == 0
    del results


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    ("function", "told"),
    [
        (die_at_two, "a process died, of too little memory perhaps: try again"),
        (stop_at_two, r"no process has moved for 3 s.*try again"),
        (hang_at_two, r"no process has moved for 3 s.*try again"),
    ],
)
def test_who_has_work_and_does_none_is_told(function: Callable[[int], int], told: str) -> None:
    found: list[int] = []
    with pytest.raises(RunError, match=told):
        found.extend(in_two(function))
    assert found == [0, 1]  # what was finished before is handed out


@pytest.mark.usefixtures("impatient")
def test_work_without_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "LONGEST_WORK", 5.0)
    with pytest.raises(RunError, match="on one image, and was ended: try again"):
        list(in_two(run_wild_at_two))


@pytest.mark.usefixtures("impatient")
def test_what_is_raised_ends_the_others_too() -> None:
    with pytest.raises(InputError, match="no 2, please"):
        list(in_two(refuse_two))


@pytest.mark.usefixtures("impatient")
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the others by /proc")
def test_one_that_is_stopped_without_work_is_not_waited_for() -> None:
    assert list(in_two(stop_the_others)) == list(range(6))


@pytest.mark.usefixtures("impatient")
def test_a_start_that_fails_is_told() -> None:
    with pytest.raises(RunError, match="a process died"):
        list(map_in_processes(square_later, range(3), [partial(os.kill, 0, -1)] * 2, "try again"))


def stop_at_once(image: object) -> object:
    """In the place of `prepare_image`."""
    os.kill(os.getpid(), signal.SIGSTOP)
    return image


@pytest.mark.usefixtures("impatient")
def test_prepare_ends_where_a_worker_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = competition(tmp_path / "cells", [(f"image{number}", "cort", GRID) for number in range(6)])
    monkeypatch.setattr(prepare, "prepare_image", stop_at_once)
    words = ["prepare", "--competition", str(data), "--out", str(tmp_path / "out"), "--split", "none"]
    assert main([*words, "--workers", "2"]) == 1
    assert "failed: no process has moved for 3 s" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
