"""`predict` and `validate` that are killed or stopped, and started again."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from built_script import DEMO, write_cells

from kernel.commands.written import WRITTEN_NAME
from kernel.runtime.journal import read_journal

ROOT = Path(__file__).resolve().parents[2]
MEMBERS = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights"), "--device", "cpu"]

pytestmark = [
    pytest.mark.torture,
    pytest.mark.xdist_group("commands_stopped"),
    pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX"),
]


def start(arguments: Sequence[str | Path], site: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kernel", *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def content(folder: Path) -> dict[str, bytes]:
    """Every file, but for the seconds that images took, and the note of the files' times."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files.pop(WRITTEN_NAME)
    rows = csv.DictReader(files["images.csv"].decode("utf-8").splitlines())
    return {**files, "images.csv": repr([{**row, "seconds": bool(row["seconds"])} for row in rows]).encode()}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_predict_goes_on_where_it_was_stopped(wheels_site: Path, tmp_path: Path, number: int) -> None:
    """With the same files, byte for byte; an image that is another meanwhile is done again."""
    write_cells(tmp_path / "images", 5)
    whole, out, unfinished = tmp_path / "whole", tmp_path / "out", tmp_path / ".out.unfinished"
    stopped = start(["predict", tmp_path / "images", "--out", out, *MEMBERS], wheels_site)
    while len(read_journal(unfinished / "journal.log").records) < 2:
        assert stopped.poll() is None, stopped.communicate()[0]
        time.sleep(0.05)
    stopped.send_signal(number)
    told = stopped.communicate()[0]
    assert stopped.returncode == (130 if number == signal.SIGINT else -number) and "Traceback" not in told, told
    finished = [record["image"] for record in read_journal(unfinished / "journal.log").records]
    assert 2 <= len(finished) < 5 and not out.exists()
    (tmp_path / "images" / f"{finished[0]}.png").write_bytes((tmp_path / "images" / "image0004.png").read_bytes())
    again = start(["predict", tmp_path / "images", "--out", out, *MEMBERS], wheels_site)
    told = again.communicate()[0]
    assert again.returncode == 0 and f"{len(finished) - 1} of 5 images are finished already" in told, told
    assert not unfinished.exists()
    undisturbed = start(["predict", tmp_path / "images", "--out", whole, *MEMBERS], wheels_site)
    assert undisturbed.wait() == 0
    assert content(out) == content(whole) and len(content(out)) == 17


def test_validate_goes_on_where_it_was_killed(wheels_site: Path, tmp_path: Path) -> None:
    data, out, unfinished = tmp_path / "data", tmp_path / "out", tmp_path / ".out.unfinished"
    assert start(["synthesize", data, "--images", "2", "--seed", "1"], wheels_site).wait() == 0
    killed = start(["validate", "--data", data, "--out", out, *MEMBERS], wheels_site)
    while len(list(unfinished.glob("*.npz"))) < 1:
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    stored = len(list(unfinished.glob("*.npz")))
    again = start(["validate", "--data", data, "--out", out, *MEMBERS], wheels_site)
    told = again.communicate()[0]
    assert again.returncode == 0 and f"{stored} of 6 predictions are in" in told and "Traceback" not in told, told
    assert (out / "scores.csv").is_file() and not unfinished.exists()
