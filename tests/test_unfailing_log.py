"""The log and what may pass: nothing that is written fails, and what fails for a moment is tried again."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from build_kernel import main as build_main
from kernel.__main__ import main as kernel_main
from kernel.errors import InputError, RunError
from kernel.export.progress import Lines
from kernel.files import reading, writing
from kernel.images.reading import list_images, read_image
from kernel.log import LOG, UnfailingStream, show_log
from kernel.patience import may_pass, patience_pauses, patiently
from kernel.runtime.failures import attempt


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


HOSTILE = "a\x1b]0;owned\x07\nto do: run this\r.png"
ESCAPED = r"a\x1b]0;owned\x07\nto do: run this\r.png"


@pytest.fixture
def log_of(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a log shows that `show_log` has set up."""
    for name in ("handlers", "level", "propagate"):
        monkeypatch.setattr(LOG, name, getattr(LOG, name))
    stream = io.StringIO()
    show_log(stream, "%(message)s")
    return stream


def test_nothing_that_is_logged_moves_the_cursor(log_of: io.StringIO) -> None:
    LOG.warning("%s:\n\ttwo lines, é 漢", "\x1b[2J\udc80")
    try:
        raise ValueError("\x1b[1A")
    except ValueError:
        LOG.exception("why")
    assert log_of.getvalue().startswith(
        "\\x1b[2J\\udc80:\n\ttwo lines, é 漢\nwhy\nTraceback (most recent call last):\n"
    )
    assert "ValueError: \\x1b[1A\n" in log_of.getvalue() and "\x1b" not in log_of.getvalue()


@pytest.mark.parametrize("told", [reading, writing])
def test_names_of_files_begin_no_line_of_their_own(
    tmp_path: Path, told: Callable[[Path], AbstractContextManager[None]]
) -> None:
    with pytest.raises(InputError) as caught, told(tmp_path / HOSTILE):
        raise PermissionError(13, "Permission denied")
    assert f"{ESCAPED} (Permission denied)" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_of_images_begin_no_line_of_their_own(tmp_path: Path, log_of: io.StringIO) -> None:
    path = tmp_path / HOSTILE
    path.write_bytes(b"no image")

    def read_and_log() -> None:
        with pytest.raises(InputError) as found:
            read_image(path)
        LOG.error("%s", found.value)
        raise RuntimeError

    attempt(path.stem, read_and_log)
    Lines(1).done(path.name, "done")
    Image.new("L", (5, 5)).save(path, "TIFF", save_all=True, append_images=[Image.new("L", (5, 5))])
    read_image(path)
    path.with_suffix(".tif").write_bytes(b"")
    list_images(tmp_path, twins=True)
    lines = log_of.getvalue().splitlines()
    assert not [line for line in lines if line.startswith("to do: ")]
    assert len([line for line in lines if ESCAPED.removesuffix(".png") in line]) == 5


@pytest.mark.parametrize("run", [kernel_main, build_main])
@pytest.mark.parametrize(("failure", "code"), [(InputError, 2), (RunError, 1), (OSError, 1)])
def test_no_command_moves_the_cursor_by_an_error(
    run: Callable[..., int], failure: type[Exception], code: int, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail(*_given: object) -> None:
        raise failure("\x1b[2J of\ntwo lines")

    monkeypatch.setattr(sys.modules[run.__module__], "parse_arguments", fail)
    assert run([]) == code
    assert "\\x1b[2J of\ntwo lines" in capsys.readouterr().err


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
