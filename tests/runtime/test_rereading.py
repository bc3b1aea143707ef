"""Which images are read again, and which workers hang."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernel.runtime.budget import HANG_FACTOR, HANG_SECONDS, TimeBudget
from kernel.runtime.failures import FailedImage
from kernel.runtime.rereading import Rereading


def test_images_are_read_again_as_often_as_may_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_PATIENCE", "0.75")  # four times that: pauses of 1 and 2 seconds
    away, broken, failed = Path("away.png"), Path("broken.png"), Path("failed.png")
    rereading = Rereading()
    tried = {away: 0, broken: 0, failed: 0}
    failures = {
        away: FailedImage("no such file", wrong_input=True, may_pass=True),
        broken: FailedImage("it is no image", wrong_input=True),
        failed: FailedImage("a fault of the program", wrong_input=False),
    }
    pauses = []
    waiting = list(failures)
    while waiting:
        for path in waiting:
            tried[path] += 1
            rereading.takes(path, failures[path])
        if rereading.unread:
            pauses.append(rereading.pause())
        waiting = rereading.release()
    assert tried == {away: 4, broken: 2, failed: 1} and pauses == [0.0, 1.0, 2.0]


class Level:
    """One quality level, whose stages all take their share."""

    name = "full"

    def stage_work(self, cell_type: str) -> dict[str, float]:
        return {"features": 1.0, "other": 1.0}


def test_what_takes_far_longer_than_any_image_before_hangs() -> None:
    budget = TimeBudget([Level()], {"a": 1.0, "b": 1.0, "c": 100.0}, deadline=1e6, devices=1)  # type: ignore[list-item]
    budget.begin("b", 0.0)
    assert not budget.is_overdue("b", HANG_SECONDS) and budget.is_overdue("b", HANG_SECONDS + 1)
    budget.finish("b", 60.0, "cort", {"features": 50.0})
    budget.begin("a", 100.0)
    budget.begin("c", 100.0)
    longest = 100 + max(HANG_SECONDS, HANG_FACTOR * 60)
    assert not budget.is_overdue("a", longest - 1) and budget.is_overdue("a", longest + HANG_SECONDS)
    assert not budget.is_overdue("c", longest + HANG_SECONDS), "it is larger"
    assert not budget.is_overdue("nowhere", 1e9)
