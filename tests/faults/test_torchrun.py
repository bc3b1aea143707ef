"""Several processes of torchrun on one working folder: one is killed, or all; they are started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from built_script import BuiltRun, done, images_done

from kernel.postprocess.submitted import read_submission
from kernel.runtime.journal import read_journal

MakeRun = Callable[[str, int], BuiltRun]
ROOT = Path(__file__).resolve().parents[2]
IMAGES = 6

pytestmark = [
    pytest.mark.torture,
    pytest.mark.xdist_group("torchrun"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are found in /proc"),
]


def torchrun(*options: str) -> list[str]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]


def journalled_by_all(run: BuiltRun) -> set[str]:
    """The images that any process's journal has a result for."""
    records = [record for path in run.working.glob("journal*.log") for record in read_journal(path).records]
    return {record["image"] for record in records if record["failure"] is None}


def wait_for_images(run: BuiltRun, program: subprocess.Popen[str], count: int) -> None:
    while len(journalled_by_all(run)) < count:
        assert program.poll() is None, "it ended before"
        time.sleep(0.02)


def rank_process(program: subprocess.Popen[str], rank: int) -> int:
    """The process id of one of torchrun's processes."""
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text(encoding="ascii").split()
    (found,) = [
        child for child in children if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes()
    ]
    return int(found)


def start_logged(
    run: BuiltRun, name: str, launcher: Sequence[str], variables: Mapping[str, str] = {}
) -> tuple[subprocess.Popen[str], Path]:
    log = run.home / name
    return run.start(variables, launcher, log), log


def test_one_of_several_processes_is_killed(make_run: MakeRun) -> None:
    """torchrun ends the others, which leave what there is; the next start has the bytes of an undisturbed run."""
    whole, run = make_run("whole", IMAGES), make_run("run", IMAGES)
    assert whole.run()[0] == 0
    program, log = start_logged(run, "first", torchrun())
    wait_for_images(run, program, 2)
    os.kill(rank_process(program, 1), signal.SIGKILL)
    assert program.wait() != 0
    before = journalled_by_all(run)
    rows = read_submission(run.submission)
    assert len(rows) == IMAGES and {name for name, rles in rows.items() if rles} == before
    assert "SIGTERM: ending with what there is" in log.read_text(encoding="utf-8")
    program, log = start_logged(run, "second", torchrun())
    assert program.wait() == 0, log.read_text(encoding="utf-8")
    again = images_done(log.read_text(encoding="utf-8"))
    assert sorted(again) == sorted(set(rows) - before)
    assert run.submission.read_bytes() == whole.submission.read_bytes()
    assert sorted(path.name for path in run.working.iterdir()) == ["submission.csv", "summary.json"]


def test_torchrun_starts_them_again(make_run: MakeRun) -> None:
    """With --max-restarts: results of the first attempt are not mistaken for those of the second."""
    run = make_run("run", IMAGES)
    program, log = start_logged(run, "log", torchrun("--max-restarts", "1"))
    wait_for_images(run, program, 2)
    os.kill(rank_process(program, 1), signal.SIGKILL)
    assert program.wait() == 0, log.read_text(encoding="utf-8")
    told = log.read_text(encoding="utf-8")
    assert "images are done already, by the journal" in told, told
    assert len(images_done(told)) == len(set(images_done(told))) and all(done(run).values())


def test_all_are_killed_and_one_goes_on(make_run: MakeRun) -> None:
    """A second start may have another number of processes."""
    run = make_run("run", IMAGES)
    parts = [start_logged(run, f"log{rank}", ["-I"], {"RANK": str(rank), "WORLD_SIZE": "2"})[0] for rank in range(2)]
    wait_for_images(run, parts[0], 2)
    for part in parts:
        part.kill()
        part.wait()
    before = journalled_by_all(run)
    code, log = run.run()
    assert code == 0 and all(done(run).values()), log
    assert not before & set(images_done(log)) and len(before) + len(images_done(log)) == IMAGES
    assert sorted(path.name for path in run.working.iterdir()) == ["submission.csv", "summary.json"]


@pytest.mark.parametrize("command", ["predict", "validate", "prepare"])
def test_what_is_not_made_for_several_processes_says_so(tmp_path: Path, command: str) -> None:
    needed = {
        "predict": ["images", "--out", "out", "--manifest", "m", "--weights-dir", "w"],
        "validate": ["--data", "data", "--manifest", "m", "--weights-dir", "w"],
        "prepare": ["--competition", "data", "--out", "out"],
    }
    ended = subprocess.run(
        [sys.executable, "-m", "kernel", command, *needed[command]], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "RANK": "0", "WORLD_SIZE": "2"}, check=False,
    )  # fmt: skip
    assert ended.returncode == 2 and "without torchrun" in ended.stderr and len(ended.stderr.splitlines()) == 1
