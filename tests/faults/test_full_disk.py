"""A disk that fills in the course of a run: what was computed by then stays, and a second start with room goes on."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from built_script import SCORED, BuiltRun, done, end_of, images_done, journalled, wait_for

from kernel.postprocess.submitted import read_submission

MakeRun = Callable[[str, int], BuiltRun]

pytestmark = [
    pytest.mark.torture,
    pytest.mark.xdist_group("full_disk"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="limits of other processes are Linux's"),
]


@pytest.mark.parametrize(("variables", "expected"), [({}, 1), (SCORED, 0)])
def test_files_that_cannot_grow_any_more(make_run: MakeRun, variables: dict[str, str], expected: int) -> None:
    """After some images no file can be longer than a submission with these; later that is otherwise."""
    import resource

    run = make_run("run", 8)
    script, told = run.start(variables), []
    wait_for(told, script, " INFO image ", 3)
    before = read_submission(run.submission)
    kept = journalled(run)
    resource.prlimit(script.pid, resource.RLIMIT_FSIZE, (400, 400))
    code, log = end_of(told, script)
    assert code == expected and "Traceback" not in log, log
    assert "File too large" in log and "a killed run would lose" in log, log
    after = read_submission(run.submission)
    assert len(after) == 8 and all(after[name] == rles for name, rles in before.items() if rles)
    assert 1 <= sum(map(bool, after.values())) < 8 and len(kept) >= 3
    code, log = run.run(variables)
    assert code == 0 and not kept & set(images_done(log)) and all(done(run).values()), log


@pytest.mark.parametrize("size", ["20k", "28k", "36k"])
def test_a_working_folder_that_fills(make_run: MakeRun, size: str) -> None:
    """It is a file system of its own with room for a part of the results, and then for all."""
    whole, run = make_run("whole", 8), make_run("run", 8)
    assert whole.run()[0] == 0
    twice = (
        f'mount -t tmpfs -o size={size} tmpfs working; "$@"; echo "first: $?"; cp working/submission.csv first.csv; '
        'mount -o remount,size=9m working; "$@"; echo "second: $?"; cp working/submission.csv second.csv'
    )
    log = in_own_mounts(run, twice)
    first, _, second = log.partition("first: 1\n")
    assert "No space left on device" in first and "Traceback" not in log and second.endswith("second: 0\n"), log
    rows = read_submission(run.home / "first.csv")
    assert len(rows) == 8 and (run.home / "second.csv").read_bytes() == whole.submission.read_bytes()
    told = re.search(r"(\d) of 8 images are done already", second)
    assert told and len(images_done(second)) == 8 - int(told[1]), log


def test_a_temporary_folder_that_fills(make_run: MakeRun) -> None:
    """The wheels have room there, and nothing else has."""
    run = make_run("run", 3)
    filled = 'mount -t tmpfs -o size=40m tmpfs temporary; "$@" & sleep 1; '
    filled += "until grep -q ' INFO image ' log; do sleep 0.1; done; head -c 99m /dev/zero >temporary/filler; wait $!"
    log = in_own_mounts(run, f"({filled}) >log 2>&1; echo $? >>log; cat log")
    assert log.endswith("\n0\n") and "Traceback" not in log and all(done(run).values()), log


def in_own_mounts(run: BuiltRun, commands: str, launcher: Sequence[str] = ("unshare", "-r", "-m")) -> str:
    """What shell commands write that may mount file systems in the run's home; "$@" is the built script."""
    probe = subprocess.run([*launcher, "mount", "-t", "tmpfs", "tmpfs", run.temporary], check=False)
    if probe.returncode:
        pytest.skip("file systems cannot be mounted here (unshare -r -m)")
    ended = subprocess.run(
        [*launcher, "sh", "-c", commands, "sh", *run.start_command()],
        env=run.environment({}), cwd=run.home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return ended.stdout
