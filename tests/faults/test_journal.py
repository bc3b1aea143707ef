"""Faults of the built script: it is killed, or ended by a signal, and started again.

    JOURNAL_KILLS=12 JOURNAL_IMAGES=24 python -m pytest tests/faults/test_journal.py

The test of kills prints the seed of their moments; JOURNAL_SEED repeats them.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from built_script import BuiltRun, images_done, journalled

from kernel.postprocess.submitted import read_submission
from kernel.runtime.journal import Journal, is_written, journal_line, parse_line, put_aside, read_journal

KILLS, IMAGES = int(os.environ.get("JOURNAL_KILLS", "2")), int(os.environ.get("JOURNAL_IMAGES", "8"))
SEED = int(os.environ.get("JOURNAL_SEED", str(random.SystemRandom().randrange(10**6))))

pytestmark = [
    pytest.mark.xdist_group("faults"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are found in /proc"),
]
MakeRun = Callable[[str, int], BuiltRun]


def wait_for_images(run: BuiltRun, script: subprocess.Popen[str], count: int) -> None:
    """Wait until so many images are done, by the journal."""
    while len(journalled(run)) < count:
        assert script.poll() is None, script.communicate()[0]
        time.sleep(0.05)


def left_behind(run: BuiltRun) -> list[str]:
    return sorted(path.name for path in [*run.temporary.iterdir(), *run.working.iterdir()])


def test_a_run_that_is_killed_goes_on_from_its_journal(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    """With SIGKILL, at random moments, on two devices: the same bytes, and no journalled image is done twice."""
    whole, killed = make_run("whole", IMAGES), make_run("killed", IMAGES)
    devices = {"KERNEL_DEVICE": "cpu,cpu"}
    code, told = whole.run(devices)
    assert code == 0, told
    moments = random.Random(SEED)
    with capsys.disabled():
        sys.stdout.write(f"\nseed of the kills: {SEED}\n")
    logs: list[str] = []
    for number in range(KILLS + 1):
        before = journalled(killed)
        log = killed.home / f"log{number}"
        script = killed.start(devices, log=log)
        if number < KILLS:
            left = IMAGES - len(before)
            more = moments.randint(0, left // (KILLS + 1 - number))  # images that this start may finish
            if more:
                wait_for_images(killed, script, len(before) + more)
            time.sleep(moments.uniform(0, 0.5 if more else 8))
            script.kill()
        script.wait()
        logs.append(log.read_text(encoding="utf-8"))
        again = before & set(images_done(logs[-1]))
        assert not again, f"done twice: {again}"
        assert "Traceback" not in logs[-1], logs[-1]
        if killed.submission.exists():  # a kill may come while Python still imports
            assert len(read_submission(killed.submission)) == IMAGES
        assert script.returncode == (-signal.SIGKILL if number < KILLS else 0), logs[-1]
    assert killed.submission.read_bytes() == whole.submission.read_bytes()
    assert left_behind(killed) == ["submission.csv", "summary.json"], "scratch of the killed runs is deleted too"
    summary = json.loads((killed.working / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["images"]) == IMAGES and summary["failed"] == {}


@pytest.mark.parametrize(("name", "devices"), [("SIGTERM", "cpu"), ("SIGINT", "cpu,cpu"), ("SIGHUP", "cpu,cpu")])
def test_a_signal_ends_the_run_with_what_there_is(make_run: MakeRun, name: str, devices: str) -> None:
    """Within ten seconds, without traceback or leftovers. Ctrl-C reaches the workers as well."""
    run = make_run("run", 8)
    log = run.home / "log"
    script = subprocess.Popen(
        ["setsid", *run.start_command()],
        env=run.environment({"KERNEL_DEVICE": devices}),
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for_images(run, script, 2)
    sent = time.monotonic()
    if name == "SIGINT":
        os.killpg(script.pid, signal.SIGINT)
    else:
        script.send_signal(getattr(signal, name))
    code = script.wait()
    assert code == 128 + getattr(signal, name) and time.monotonic() - sent < 10
    told = log.read_text(encoding="utf-8")
    assert f"{name}: ending with what there is" in told and "Traceback" not in told, told
    assert left_behind(run) == ["journal.log", "submission.csv", "summary.json"]
    rows = read_submission(run.submission)
    done = journalled(run)
    assert len(rows) == 8 and {image_id for image_id, rles in rows.items() if rles} == done and len(done) >= 2
    summary = json.loads((run.working / "summary.json").read_text(encoding="utf-8"))
    assert set(summary["images"]) == done and len(summary["failed"]) == 8 - len(done)


def test_a_journal_that_is_damaged_costs_the_damaged_lines(make_run: MakeRun) -> None:
    """And one of another script is put aside, with a word."""
    run = make_run("run", 4)
    (run.images / "broken.png").write_bytes(b"no image")  # a run with a failure keeps its journal
    code, told = run.run()
    assert code == 2, told
    first, journal = run.submission.read_bytes(), run.working / "journal.log"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2 + 5
    lines[0] = lines[0][:9] + b"?" + lines[0][10:]  # one of the two heads
    lines[3] = lines[3].replace(b'"quality"', b'"qualitY"')
    lines[6] = lines[6][:-40]
    journal.write_bytes(b"".join(lines))
    code, told = run.run()
    assert code == 2 and "journal.log: 3 damaged line(s) are not used" in told, told
    assert len(images_done(told)) == 1 and "3 of 5 images are done already" in told
    assert run.submission.read_bytes() == first

    (run.images / "image0000.png").write_bytes((run.images / "image0001.png").read_bytes())  # another image, same name
    run.with_script("ANOTHER = 1")
    (run.images / "broken.png").unlink()
    code, told = run.run()
    assert code == 0 and "journal.log is of another script, manifest or weights: put aside as journal.log.old" in told
    assert len(images_done(told)) == 4
    assert left_behind(run) == ["journal.log.old", "submission.csv", "summary.json"]
    rows = read_submission(run.submission)
    assert rows["image0000"] == rows["image0001"]


def test_any_damage_to_a_journal_leaves_the_other_records(tmp_path: Path) -> None:
    """Bytes changed, cut off or put in at random: what is read is a part of what was written, and can be added to."""
    moments = random.Random(SEED)
    head, records = (
        {"journal": 1, "script": "a", "weights": None},
        [{"image": str(number), "rles": ["1 2"] * number} for number in range(9)],
    )
    whole = b"".join(map(journal_line, [head, *records]))
    for number in range(200):
        damaged = bytearray(whole)
        for _ in range(moments.randint(1, 3)):
            at = moments.randrange(len(damaged))
            change = moments.choice(["cut", "flip", "insert", "drop"])
            if change == "cut":
                del damaged[max(1, at) :]
            elif change == "flip":
                damaged[at] ^= 1 << moments.randrange(8)
            elif change == "insert":
                damaged[at:at] = bytes(moments.randrange(256) for _ in range(moments.randint(1, 5)))
            else:
                del damaged[at : at + moments.randint(1, 30)]
        path = tmp_path / f"{number}.log"
        path.write_bytes(damaged)
        read = read_journal(path)
        assert all(record in records for record in read.records), (SEED, number)
        journal = Journal(path, head)
        journal.append({"image": "last"})
        journal.close()
        again = read_journal(path).records
        assert again[-1] == {"image": "last"} and again[: len(read.records)] == read.records, (SEED, number)


def test_what_a_head_does_not_know_fits(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    Journal(path, {"journal": 1, "script": "a", "weights": None})
    assert read_journal(path).is_of({"journal": 1, "script": "a", "weights": "b"})
    assert not read_journal(path).is_of({"journal": 1, "script": "b", "weights": None})
    assert not read_journal(tmp_path / "none.log").is_of({})
    assert parse_line(journal_line({"a": 1})[:-1]) is None
    assert [put_aside(path).name, put_aside(path.with_name("journal.log.old")).name] == [
        "journal.log.old", "journal.log.old.old",
    ]  # fmt: skip


def test_nothing_is_put_aside_over_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    """It may lead to a disk that is not mounted now."""
    (tmp_path / "journal.log").write_bytes(b"mine")
    (tmp_path / "journal.log.old").symlink_to(tmp_path / "gone")
    assert put_aside(tmp_path / "journal.log").name == "journal.log.old2"
    assert (tmp_path / "journal.log.old").is_symlink()


@pytest.mark.parametrize("change", ["delete", "move", "replace", "empty", "none"])
def test_a_journal_knows_whether_it_is_lost(tmp_path: Path, change: str) -> None:
    path = tmp_path / "journal.log"
    journal = Journal(path, {"journal": 1})
    journal.append({"image": "a"})
    if change == "delete":
        path.unlink()
    elif change == "move":
        path.rename(tmp_path / "elsewhere.log")
    elif change == "replace":
        (tmp_path / "other").write_bytes(path.read_bytes())
        (tmp_path / "other").replace(path)
    elif change == "empty":
        path.write_bytes(b"")
    assert journal.is_lost == (change != "none")
    journal.close()


def test_one_writes_a_journal_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    assert not is_written(path)
    journal = Journal(path, {"journal": 1})
    assert is_written(path)
    with pytest.raises(BlockingIOError):
        Journal(path, {"journal": 1})
    journal.close()
    assert not is_written(path)
    Journal(path, {"journal": 1}).close()
