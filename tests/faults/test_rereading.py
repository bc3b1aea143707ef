"""Images that cannot be read for a while, in `predict` and `validate`: they are tried again, as in the kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from built_script import DEMO, write_cells

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights"), "--device", "cpu"]

pytestmark = [pytest.mark.torture, pytest.mark.xdist_group("rereading")]


def start(arguments: Sequence[str | Path], patience: str = "60") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kernel", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "KERNEL_PATIENCE": patience},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(told: list[str], program: subprocess.Popen[str], text: str) -> None:
    """Read what a program writes until a line of it holds a text."""
    assert program.stdout is not None
    for line in program.stdout:
        told.append(line)
        if text in line:
            return
    raise AssertionError(f"no {text!r} in:\n{''.join(told)}")


def test_predict_waits_for_images_that_are_away(wheels_site: Path, tmp_path: Path) -> None:
    """One is no image at all, and costs itself."""
    images, away, out = tmp_path / "images", tmp_path / "away", tmp_path / "out"
    (images / "broken.png").parent.mkdir()
    write_cells(images, 3)
    (images / "broken.png").write_bytes(b"no image")
    program, told = start(["predict", images, "--out", out, *MEMBERS, "--export", "tables,submission"]), []
    wait_for(told, program, "image broken is tried again after all others")
    images.rename(away)
    wait_for(told, program, "is tried again after all others: cannot read the image")
    time.sleep(4)
    away.rename(images)
    told.append(program.communicate()[0])
    log = "".join(told)
    assert program.returncode == 2 and "Traceback" not in log, log
    assert "1 image(s) could not be read and are not there: broken" in log, log
    rows = (out / "images.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 5 and sum(row.endswith(",") for row in rows) == 3, rows


def test_validate_waits_for_images_that_are_away(wheels_site: Path, tmp_path: Path) -> None:
    data, train, away = tmp_path / "data", tmp_path / "data" / "train", tmp_path / "away"
    assert start(["synthesize", data, "--images", "2", "--seed", "1"]).wait() == 0
    stored = tmp_path / "stored"
    program, told = start(["validate", "--data", data, "--predictions", stored, *MEMBERS]), []
    while not list(stored.glob("*.npz")):
        assert program.poll() is None, program.communicate()[0]
        time.sleep(0.05)
    train.rename(away)
    wait_for(told, program, "trying again in 2 s")
    away.rename(train)
    log = "".join([*told, program.communicate()[0]])
    assert program.returncode == 0 and "Traceback" not in log and len(list(stored.glob("*.npz"))) == 6, log


def test_two_runs_into_one_folder(wheels_site: Path, tmp_path: Path) -> None:
    """The second one is refused in one line, and costs the first one nothing."""
    write_cells(tmp_path / "images", 3)
    command = ["predict", tmp_path / "images", "--out", tmp_path / "out", *MEMBERS]
    first = start(command)
    while not (tmp_path / ".out.unfinished" / "journal.log").exists():
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.send_signal(signal.SIGSTOP)
    second = start(command)
    told = second.communicate()[0]
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2 and "another run" in told and "Traceback" not in told, told
    told = first.communicate()[0]
    assert first.returncode == 0 and (tmp_path / "out" / "cells.csv").is_file(), told
