"""The log and what may pass: nothing that is written fails, and what fails for a moment is tried again."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from kernel.errors import InputError
from kernel.log import UnfailingStream
from kernel.patience import may_pass, patience_pauses, patiently


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_a_closed_and_a_missing_stream_take_everything() -> None:
    closed = io.StringIO()
    closed.close()
    full = open("/dev/full", "w", encoding="ascii", newline="\n", buffering=1)  # noqa: PTH123, SIM115
    for stream in (full, closed, None):
        guarded = UnfailingStream(stream)
        assert guarded.write("Zelle \u00e4\n") == 8
        guarded.flush()
    with pytest.raises(OSError, match="No space left"):  # the stream itself does fail
        full.close()
    whole = io.StringIO()
    assert UnfailingStream(whole).write("a") == 1 and whole.getvalue() == "a"
    assert UnfailingStream(sys.__stdout__).encoding == sys.__stdout__.encoding  # type: ignore[union-attr]


def test_the_pauses_grow_up_to_the_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_PATIENCE", "10")
    assert patience_pauses() == (1.0, 2.0, 4.0, 3.0) and sum(patience_pauses(4)) == 40
    monkeypatch.setenv("KERNEL_PATIENCE", "0")
    assert patience_pauses() == ()
    monkeypatch.setenv("KERNEL_PATIENCE", "soon")
    with pytest.raises(InputError, match="KERNEL_PATIENCE is 'soon'; allowed are seconds"):
        patience_pauses()


def test_what_may_pass_is_tried_again_and_what_may_not_is_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNEL_PATIENCE", "0.02")
    tries: list[int] = []

    def fails_once() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise OSError(5, "Input/output error")
        return "read"

    assert patiently(fails_once) == "read" and len(tries) == 2

    def always_wrong() -> str:
        tries.append(1)
        raise InputError("it is no image")

    tries.clear()
    with pytest.raises(InputError):
        patiently(always_wrong)
    assert len(tries) == 1 and not may_pass(InputError("no image")) and may_pass(OSError(2, "gone"))
