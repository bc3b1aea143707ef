"""A disk that fills in the course of a run: what was computed by then stays, and a second start with room goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from built_script import DEMO, SCORED, BuiltRun, done, end_of, images_done, journalled, wait_for, write_cells

from kernel.postprocess.submitted import read_submission

ROOT = Path(__file__).resolve().parents[2]
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


def test_predict_stops_where_the_disk_is_full(tmp_path: Path) -> None:
    """With more room the same command goes on. Files take 4,096 bytes each there: journal, lock, label images."""
    results = tmp_path / "results"
    write_cells(tmp_path / "images", 8)
    results.mkdir()
    done = tmp_path / "done"
    command = [
        sys.executable, ROOT / "tests" / "quick_predict.py", done, "predict", tmp_path / "images", "--out",
        results / "out", "--export", "labels", "--device", "cpu", "--manifest", DEMO / "manifest.json",
        "--weights-dir", DEMO / "weights",
    ]  # fmt: skip
    twice = (
        'mount -t tmpfs -o size=24k tmpfs results; "$@"; echo "first: $?"; ls results; wc -l done; '
        'mount -o remount,size=1m results; "$@"; echo "second: $?"; ls results/out/labels; wc -l done'
    )
    log = in_mounts(tmp_path, twice, list(map(str, command)), {**os.environ, "OMP_NUM_THREADS": "1"})
    first, _, second = log.partition("first: 1\n")
    assert "No space left on device): free some space" in first and "Traceback" not in log, log
    kept = re.search(r"(\d) of 8 images are finished: the same command goes on", first)
    assert kept and 1 <= int(kept[1]) < 7 and second.startswith(f"{int(kept[1]) + 1} done\n"), log
    assert f"{kept[1]} of 8 images are finished already" in second and "second: 0\n" in second, log
    assert second.count(".tif\n") == 8 and second.endswith("\n9 done\n"), log


def in_own_mounts(run: BuiltRun, commands: str) -> str:
    """What shell commands write that may mount file systems in the run's home; "$@" is the built script."""
    return in_mounts(run.home, commands, run.start_command(), run.environment({}))


def in_mounts(home: Path, commands: str, program: Sequence[str], environment: Mapping[str, str]) -> str:
    """What shell commands write that may mount file systems in the folder `home`; "$@" is the program."""
    launcher = ("unshare", "-r", "-m")
    probe = subprocess.run([*launcher, "mount", "-t", "tmpfs", "tmpfs", home], check=False)
    if probe.returncode:
        pytest.skip("file systems cannot be mounted here (unshare -r -m)")
    ended = subprocess.run(
        [*launcher, "sh", "-c", commands, "sh", *program],
        env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    return ended.stdout
