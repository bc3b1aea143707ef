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


#: Fills a folder once the script, which runs in the background with its log in `log`, has done an image.
FILLED = (
    "until grep -q ' INFO image image0000' log; do kill -0 $! || break; sleep 0.1; done; "
    "head -c 99m /dev/zero >{folder}/filler; wait $!"
)


def test_a_working_folder_that_is_too_small_for_journal_and_submission(make_run: MakeRun) -> None:
    """At the end the submission takes the journal's room."""
    run = make_run("run", 8)
    mounted = 'mount -t tmpfs -o size=12k tmpfs working; "$@"; echo "ended: $?"; cp working/submission.csv all.csv'
    log = in_own_mounts(run, mounted)
    assert log.endswith("ended: 0\n") and "No space left on device" in log and "Traceback" not in log, log
    rows = read_submission(run.home / "all.csv")
    assert len(rows) == 8 and all(rows.values())


def test_a_working_folder_that_somebody_fills(make_run: MakeRun) -> None:
    """What the journal has by then is kept; with room again a second start goes on, with the same bytes."""
    whole, run = make_run("whole", 8), make_run("run", 8)
    assert whole.run()[0] == 0
    twice = (
        'mount -t tmpfs -o size=1m tmpfs working; ("$@" >log 2>&1 & ' + FILLED.format(folder="working") + ") ; "
        'echo "first: $?" >>log; cp working/submission.csv first.csv; rm working/filler; "$@" >>log 2>&1; '
        'echo "second: $?" >>log; cp working/submission.csv second.csv; cat log'
    )
    log = in_own_mounts(run, twice)
    first, _, second = log.partition("first: 1\n")
    assert "No space left on device" in first and "Traceback" not in log and second.endswith("second: 0\n"), log
    rows = read_submission(run.home / "first.csv")
    assert len(rows) == 8 and (run.home / "second.csv").read_bytes() == whole.submission.read_bytes()
    kept = re.search(r"(\d) of 8 images are done already", second)
    assert kept and int(kept[1]) >= 1 and len(images_done(second)) == 8 - int(kept[1]), log


def test_a_temporary_folder_that_fills(make_run: MakeRun) -> None:
    """The wheels have room there, and nothing else has."""
    run = make_run("run", 4)
    mounted = 'mount -t tmpfs -o size=40m tmpfs temporary; ("$@" >log 2>&1 & ' + FILLED.format(folder="temporary")
    log = in_own_mounts(run, f'{mounted}); echo "ended: $?" >>log; cat log')
    assert log.endswith("ended: 0\n") and "Traceback" not in log and all(done(run).values()), log


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
