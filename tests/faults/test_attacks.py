"""Attacks on a run of the built script: an odd environment, files that change under its hands, processes that hang."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from built_script import BuiltRun, done, end_of, images_done, journalled, summary_of, wait_for, write_cells

from kernel.runtime.journal import journal_line, read_journal

MakeRun = Callable[[str, int], BuiltRun]

pytestmark = [
    pytest.mark.torture,
    pytest.mark.xdist_group("attacks"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the attacks are those of Linux"),
]


def test_an_odd_environment(make_run: MakeRun) -> None:
    """No home, no folder for temporary files, few descriptors, a small stack, no input, the C locale, pip's variables.

    And what stands where files are to be written or read: a pipe, links to nowhere and in a circle, a socket, a device.
    """
    run = make_run("run", 3)
    (run.images / "image0002.png").rename(run.images / "zelle \u00e9.png")
    os.mkfifo(run.working / "journal.log")
    run.submission.symlink_to("/nonexistent/submission.csv")
    (run.images / "loop.png").symlink_to("loop.png")
    (run.images / "zero.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        here = os.open(run.images, os.O_RDONLY)
        bound.bind(f"/proc/self/fd/{here}/socket.png")
        os.close(here)
    odd = {
        "LC_ALL": "C", "TMPDIR": "/nonexistent", "HOME": "/nonexistent",
        "PIP_REQUIRE_VIRTUALENV": "1", "PIP_TARGET": "/proc/x", "PIP_CONFIG_FILE": "/dev/full",
    }  # fmt: skip
    kept = {name: text for name, text in run.environment({}).items() if name.startswith("KERNEL") or name == "PATH"}
    limits = 'ulimit -n 64; ulimit -s 1024; umask 077; exec "$@" <&-'
    ended = subprocess.run(
        ["bash", "-c", limits, "bash", sys.executable, run.script], env={**kept, **odd, "OMP_NUM_THREADS": "1"},
        cwd="/", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    log = ended.stdout.decode("utf-8", "replace")
    assert ended.returncode == 0 and "Traceback" not in log, log
    assert list(done(run)) == ["image0000", "image0001", "zelle \u00e9"] and all(done(run).values())
    assert "3 entries are passed over" in log and "journal.log.old" in log, log


def test_files_that_change_under_its_hands(make_run: MakeRun) -> None:
    """Images are deleted, or become a pipe or a folder, or grow; the journal is emptied, then another file's."""
    run = make_run("run", 9)
    growing, journal = run.images / "image0008.png", run.working / "journal.log"
    whole = growing.read_bytes()
    growing.write_bytes(whole[: len(whole) // 2])
    script, told = run.start({"KERNEL_PATIENCE": "1"}), []
    wait_for(told, script, " INFO image ")
    for number, change in ((5, lambda path: None), (6, os.mkfifo), (7, os.mkdir)):
        path = run.images / f"image{number:04}.png"
        path.unlink()
        change(path)
    journal.write_bytes(b"")
    wait_for(told, script, " INFO image ", 2)
    assert len(journalled(run)) >= 3 and read_journal(journal).head is not None
    (run.working / "other").write_text("of another program\n", encoding="utf-8", newline="\n")
    (run.working / "other").replace(journal)
    run.submission.unlink()
    os.mkfifo(run.submission)
    wait_for(told, script, "is tried again after all others")
    growing.write_bytes(whole)
    code, log = end_of(told, script)
    assert code == 2 and "Traceback" not in log, log
    lost = {f"image{number:04}" for number in (5, 6, 7)}
    assert {name for name, cells in done(run).items() if not cells} == lost == set(summary_of(run)["failed"])
    assert journalled(run) == set(done(run)) - lost


def test_a_file_system_that_lacks_most(make_run: MakeRun) -> None:
    """No syncing, no rights, no renaming over files, no locks."""
    run = make_run("run", 2)
    run.with_script(
        "import fcntl\n\n\n"
        "def lacking(*arguments):\n    raise OSError(95, 'Operation not supported')\n\n\n"
        "os.fsync = Path.chmod = Path.replace = fcntl.flock = lacking"
    )
    code, log = run.run()
    assert code == 0 and "Traceback" not in log and all(done(run).values()), log
    assert {"submission.csv", "summary.json"} == {path.name for path in run.working.iterdir()}


def test_a_process_that_hangs_and_an_image_that_kills(make_run: MakeRun) -> None:
    """One process is stopped for ever; another image costs its process its life each time, and is given up."""
    run = make_run("run", 6)
    run.with_script(
        "HANG_SECONDS, HANG_FACTOR = 20.0, 3.0\n"
        "real_read, stopped = read_image, Path(os.environ['KERNEL_WORKING']).with_name('stopped')\n\n\n"
        "def read_image(path, **options):\n"
        "    if SERVE_VARIABLE in os.environ and path.stem == 'image0001':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    if SERVE_VARIABLE in os.environ and path.stem == 'image0004' and not stopped.exists():\n"
        "        stopped.touch()\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    return real_read(path, **options)"
    )
    code, log = run.run({"KERNEL_DEVICE": "cpu,cpu"})
    assert code == 1 and "hangs" in log and "Traceback" not in log, log
    assert {name for name, cells in done(run).items() if not cells} == {"image0001"}


def test_a_device_that_hangs_in_its_start(make_run: MakeRun) -> None:
    """Both devices do, for ever; they are ended, and started again."""
    run = make_run("run", 2)
    run.with_script(
        "START_SECONDS, real_start = 60.0, start_worker\n\n\n"
        "def start_worker(*arguments):\n"
        "    for number in range(2):\n"
        "        with contextlib.suppress(FileExistsError):\n"
        "            Path(os.environ['KERNEL_WORKING']).with_name(f'stopped{number}').touch(exist_ok=False)\n"
        "            os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    return real_start(*arguments)"
    )
    code, log = run.run({"KERNEL_DEVICE": "cpu,cpu"})
    assert code == 0 and log.count("hangs, for its start takes far too long") == 2 and "Traceback" not in log, log
    assert len(done(run)) == 2 and all(done(run).values())


def test_a_process_that_cannot_be_ended(make_run: MakeRun) -> None:
    """It waits for a driver that does not answer, say: it is stopped, and no signal reaches it."""
    run = make_run("run", 6)
    stuck = run.home / "stuck"
    run.with_script(
        "HANG_SECONDS, HANG_FACTOR, ENDED_SECONDS, CLOSING_SECONDS = 20.0, 3.0, 2.0, 1.0\n"
        "subprocess.Popen.kill = lambda process: None\n"
        "real_read, stuck = read_image, Path(os.environ['KERNEL_WORKING']).with_name('stuck')\n\n\n"
        "def read_image(path, **options):\n"
        "    if SERVE_VARIABLE in os.environ and path.stem == 'image0001' and not stuck.exists():\n"
        "        stuck.write_text(str(os.getpid()))\n"
        "        os.kill(os.getpid(), signal.SIGSTOP)\n"
        "    return real_read(path, **options)"
    )
    told = run.home / "log"  # a pipe would be open as long as the process is there
    script = run.start({"KERNEL_DEVICE": "cpu,cpu"}, log=told)
    try:
        code, log = script.wait(), told.read_text(encoding="utf-8")
    finally:
        os.kill(int(stuck.read_text(encoding="ascii")), signal.SIGKILL)
    assert code == 0 and "cannot be ended, and is given up; 1 device(s) left" in log and "Traceback" not in log, log
    assert "cannot be ended, and is left behind" in log and log.count(" hangs, ") == 1
    assert len(done(run)) == 6 and all(done(run).values())


def test_images_in_a_row_that_kill(make_run: MakeRun) -> None:
    """Each is tried twice, and the devices go on: they do all others."""
    run = make_run("run", 6)
    run.with_script(
        "real_read = read_image\n\n\n"
        "def read_image(path, **options):\n"
        "    if SERVE_VARIABLE in os.environ and path.stem in ('image0001', 'image0002', 'image0003'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real_read(path, **options)"
    )
    code, log = run.run({"KERNEL_DEVICE": "cpu,cpu"})
    assert code == 1 and "Traceback" not in log, log
    assert {name for name, cells in done(run).items() if cells} == {"image0000", "image0004", "image0005"}


def test_a_second_start_where_much_has_changed(make_run: MakeRun) -> None:
    """Half the images are others, one is gone, one is new; other ids are asked for; the journal has odd lines."""
    run = make_run("run", 5)
    (run.images / "broken.png").write_bytes(b"no image")
    code, log = run.run()
    assert code == 2, log
    for number in (0, 1):
        other = run.images / f"image{number + 2:04}.png"
        (run.images / f"image{number:04}.png").write_bytes(other.read_bytes())
    (run.images / "image0004.png").unlink()
    write_cells(run.home / "more", 7)[6].rename(run.images / "image0006.png")
    (run.images.parent / "sample_submission.csv").write_text(
        "id,predicted\nimage0000.png,\nnowhere,\n", encoding="utf-8"
    )
    wrong = {
        "image": "image0006", "digest": None, "failure": None, "device": "cpu", "rles": ["1 5", "3 4"],
        "image_shape": [96, 96], "summary": {}, "peaks": [1.0, None],
    }  # fmt: skip
    journal = run.working / "journal.log"
    with journal.open("ab") as file:
        file.write(b"".join(map(journal_line, [wrong, {"image": "image0006"}, {"image": ["x"]}])) + b"\0" * 600 + b"\n")
    code, log = run.run()
    assert code == 2 and "Traceback" not in log and "2 of 6 images are done already" in log, log
    assert sorted(images_done(log)) == ["image0000", "image0001", "image0006"]
    rows = done(run)
    assert {name for name, cells in rows.items() if not cells} == {"broken", "nowhere"} and len(rows) == 7
    assert rows["image0000.png"] == rows["image0002"] and rows["image0001"] == rows["image0003"]

    newer = journal_line({"journal": 2, "script": "x"}) + journal_line({"image": "image0000", "polygons": []})
    journal.write_bytes(newer)
    code, log = run.run()
    assert code == 2 and "put aside as journal.log.old" in log and len(images_done(log)) == 5, log
    assert journal.with_name("journal.log.old").read_bytes() == newer


def test_a_log_that_nobody_reads(make_run: MakeRun) -> None:
    """A pipe that is full, with a reader that has stopped."""
    run = make_run("run", 2)
    run.with_script(
        "PATIENCE_SECONDS, real_info = 0.5, LOG.info\n\n\n"
        "def info(*words):\n    real_info('x' * 100000)\n    sys.stderr.write('x' * 100000)\n\n\n"
        "LOG.info = info"
    )
    reader, writer = os.pipe()
    script = subprocess.Popen(
        run.start_command(), env=run.environment({"KERNEL_DEVICE": "cpu,cpu"}), cwd=run.home,
        stdin=subprocess.DEVNULL, stdout=writer, stderr=writer,
    )  # fmt: skip
    os.close(writer)
    assert script.wait() == 0 and all(done(run).values())
    os.close(reader)


def test_signals_one_after_another(make_run: MakeRun) -> None:
    """Three within a moment, and while the run concludes: the first one's exit code, and all that was done."""
    run = make_run("run", 6)
    script, told = run.start(), []
    wait_for(told, script, " INFO image ", 2)
    for name in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        script.send_signal(name)
        time.sleep(0.02)
    code, log = end_of(told, script)
    assert code == 143 and "Traceback" not in log, log
    assert len(done(run)) == 6 and {name for name, cells in done(run).items() if cells} == journalled(run)
