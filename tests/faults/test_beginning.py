"""The first seconds: signals while Python still imports, drivers that do not answer, two starts at once."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from built_script import DEMO, BuiltRun, done, end_of, summary_of, wait_for

from kernel.postprocess.submitted import read_submission

MakeRun = Callable[[str, int], BuiltRun]
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.torture,
    pytest.mark.xdist_group("beginning"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="libraries of a process are found in /proc"),
]


def wait_until_loaded(program: subprocess.Popen[str], library: str) -> None:
    """Wait until a program has mapped a library; the import that does so goes on for a while."""
    maps = Path(f"/proc/{program.pid}/maps")
    while library not in maps.read_text(encoding="utf-8", errors="replace"):
        assert program.poll() is None, program.communicate()[0]
        time.sleep(0.002)


def commands(run: BuiltRun, out: Path) -> dict[str, list[str]]:
    """The programs, each with arguments that let it import torch."""
    weights = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights")]
    predict = ["predict", str(run.images), "--out", str(out / "predicted"), *weights]
    return {
        "script": run.start_command(),
        "kernel": [sys.executable, "-m", "kernel", *predict],
        "build": [sys.executable, "build_kernel.py", *weights, "--out", str(out / "built")],
    }


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize(
    ("program", "library"),
    [
        ("script", "_multiarray_umath"), ("script", "libtorch_cpu"), ("script", "cv2"), ("script", "_hashlib"),
        ("kernel", "_multiarray_umath"), ("kernel", "libtorch_cpu"), ("kernel", "cv2"),
        ("build", "_multiarray_umath"), ("build", "libtorch_cpu"), ("build", "_hashlib"),
    ],
)  # fmt: skip
def test_a_signal_during_imports(
    make_run: MakeRun, wheels_site: Path, tmp_path: Path, program: str, library: str, name: str
) -> None:
    run = make_run("run", 1)
    begun = subprocess.Popen(
        commands(run, tmp_path / "out")[program], env=run.environment({}), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    wait_until_loaded(begun, library)
    begun.send_signal(getattr(signal, name))
    told = begun.communicate()[0]
    assert begun.returncode == 128 + getattr(signal, name) and "Traceback" not in told, told


def test_a_driver_that_does_not_answer(make_run: MakeRun, tmp_path: Path) -> None:
    """submission.csv is there before the images are begun, and the run does not wait for the GPUs' names."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8", newline="\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    run = make_run("run", 2)
    script, told = run.start({"PATH": f"{tmp_path}:{os.environ['PATH']}"}), []
    wait_for(told, script, "2 images, 3 members")
    assert read_submission(run.submission) == {"image0000": [], "image0001": []}
    code, log = end_of(told, script)
    assert code == 0 and all(done(run).values()) and "machine:" not in log, log
    assert summary_of(run)["gpus"] is None


def test_devices_that_do_not_answer(make_run: MakeRun) -> None:
    """Whoever asks for the GPUs waits for ever: submission.csv is there all the same, and SIGTERM is heard."""
    run = make_run("run", 2)
    run.with_script("def chosen_devices():\n    LOG.info('asking')\n    threading.Event().wait()")
    script, told = run.start(), []
    wait_for(told, script, "asking")
    assert read_submission(run.submission) == {"image0000": [], "image0001": []}
    script.terminate()
    code, log = end_of(told, script)
    assert code == 143 and "Traceback" not in log, log


def test_two_starts_in_one_folder(make_run: MakeRun) -> None:
    """The second one is refused, and costs the first one nothing."""
    run = make_run("run", 4)
    script, told = run.start(), []
    wait_for(told, script, " INFO image ")
    script.send_signal(signal.SIGSTOP)
    code, log = run.run()
    script.send_signal(signal.SIGCONT)
    assert code == 2 and "another run writes" in log and "Traceback" not in log, log
    code, log = end_of(told, script)
    assert code == 0 and "Traceback" not in log and all(done(run).values()), log
