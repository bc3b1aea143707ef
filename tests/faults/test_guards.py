"""Faults of the built script's surroundings: devices, folders, the log, mounts, members; each costs only itself."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from built_script import SCORED, WHEELS_FOLDER, BuiltRun, done, end_of, summary_of, wait_for

MakeRun = Callable[[str, int], BuiltRun]

pytestmark = [
    pytest.mark.torture,
    pytest.mark.xdist_group("guards"),
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are found in /proc"),
]


# Devices


@pytest.mark.parametrize("fault", ["weights", "packages", "script"])
def test_a_restart_that_fails_is_a_dead_device(make_run: MakeRun, fault: str) -> None:
    """A worker dies; its successor finds no weights, no packages, or no script to start; the other does the rest."""
    run = make_run("run", 30)  # more than the other one does before the successor has failed
    run.with_script("")
    script, told = run.start({"KERNEL_DEVICE": "cpu,cpu", **SCORED}), []
    wait_for(told, script, ": memory of cpu", 2)  # both have loaded their members
    wait_for(told, script, " INFO image ")
    workers = Path(f"/proc/{script.pid}/task/{script.pid}/children").read_text(encoding="ascii").split()
    if fault == "weights":
        run.weights.rename(run.inputs / "away")
    elif fault == "script":
        run.script.unlink()
    else:
        (packages,) = [path for path in run.temporary.glob("*/*") if (path / "mmdet").is_dir()]
        packages.rename(run.temporary / "away")
    os.kill(int(workers[0]), signal.SIGKILL)
    code, log = end_of(told, script)
    assert code == 0 and "1 device(s) left" in log and "Traceback" not in log, log
    assert len(done(run)) == 30 and all(done(run).values())
    assert summary_of(run)["failed"] == {}


def test_a_device_that_cannot_be_started_leaves_the_run_to_the_other(make_run: MakeRun) -> None:
    """The system starts no second process: the first start of a device is no different from a later one."""
    run = make_run("run", 2)
    run.with_script(
        "real_popen, started = subprocess.Popen, []\n"
        "class NoPopen(real_popen):\n"
        "    def __init__(self, *arguments, **options):\n"
        "        started.append(1)\n"
        "        if options.get('stdin') == subprocess.PIPE and len(started) > 2:\n"
        "            raise BlockingIOError(11, 'Resource temporarily unavailable')\n"
        "        super().__init__(*arguments, **options)\n"
        "subprocess.Popen = NoPopen"
    )
    code, log = run.run({"KERNEL_DEVICE": "cpu,cpu"})
    assert code == 0 and "cpu#2: its process cannot be started" in log and "Traceback" not in log, log
    assert len(done(run)) == 2 and all(done(run).values())


@pytest.mark.parametrize(("variables", "expected"), [({}, 1), (SCORED, 0)])
def test_where_no_gpu_can_be_used_a_scoring_run_goes_on_on_the_cpu(
    make_run: MakeRun, variables: dict[str, str], expected: int
) -> None:
    """The driver counts two, and none can be used, at the second start either."""
    run = make_run("run", 2)
    run.with_script("torch.cuda.device_count = lambda: 2")
    code, log = run.run({"KERNEL_DEVICE": "cuda:0,cuda:1", **variables})
    assert code == expected and "0 device(s) left" in log and "LEFT OUT" not in log and "Traceback" not in log, log
    assert ("NO GPU CAN BE USED" in log) == ("GOING ON ON THE CPU" in log) == bool(variables) == all(done(run).values())
    assert len(done(run)) == 2


#: A GPU that is none: its process computes on the CPU, as far as it is let.
FALSE_GPU = """
torch.cuda.device_count = lambda: 1
is_serving, real_start, real_attempt = "KERNEL_SERVE" in os.environ, start_worker, attempt_prediction
mark = Path(os.environ["KERNEL_WORKING"]).parent / "began"
def false_kill():
    os.kill(os.getpid(), signal.SIGSEGV)
def start_on_cpu(manifest, levels, setup, on_left_out):
    global is_gpu
    is_gpu = setup["device"] != "cpu"
    if is_gpu:
        start_gpu()
    return real_start(manifest, levels, {**setup, "device": "cpu"}, on_left_out)
def false_attempt(ensemble, path, read=None):
    return (is_gpu and attempt_on_gpu(path)) or real_attempt(ensemble, path, read)
if is_serving:
    start_worker, attempt_prediction = start_on_cpu, false_attempt
"""
FALSE_GPUS = {
    "dies in its start": "def start_gpu():\n    false_kill()",
    "is lost after an image": (
        "def start_gpu():\n"
        "    if mark.exists():\n"
        "        false_kill()\n"
        "    mark.touch()\n"
        "def attempt_on_gpu(path):\n"
        "    if path.stem != 'image0000':\n"
        "        false_kill()"
    ),
    "fails at all": (
        "def start_gpu():\n    pass\n"
        "def attempt_on_gpu(path):\n"
        "    return FailedImage('NotImplementedError: torchvision::nms', False, 'NotImplementedError')"
    ),
}


@pytest.mark.parametrize("fault", FALSE_GPUS)
def test_what_a_gpu_leaves_without_a_result_a_scoring_run_does_on_the_cpu(make_run: MakeRun, fault: str) -> None:
    run = make_run("run", 3)
    run.with_script(FALSE_GPU + FALSE_GPUS[fault])
    code, log = run.run({"KERNEL_DEVICE": "cuda:0", **SCORED})
    assert code == 0 and "HAVE NO RESULT BY A GPU: GOING ON ON THE CPU" in log and "Traceback" not in log, log
    assert len(done(run)) == 3 and all(done(run).values()), log
    assert summary_of(run)["failed"] == {}
    assert ("by SIGSEGV" in log) == (fault != "fails at all")


def test_on_the_cpu_an_image_that_kills_costs_a_scoring_run_no_other(make_run: MakeRun) -> None:
    run = make_run("run", 3)
    run.with_script(
        "real_attempt = attempt_prediction\n"
        "def attempt_prediction(ensemble, path, read=None):\n"
        "    if path.stem == 'image0001':\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return real_attempt(ensemble, path, read)"
    )
    code, log = run.run(SCORED)
    assert code == 0 and "ending with exit code 0 all the same" in log and "Traceback" not in log, log
    assert {name: bool(row) for name, row in done(run).items()} == {
        "image0000": True,
        "image0001": False,
        "image0002": True,
    }


def test_a_call_that_never_returns_ends_a_scoring_run_in_time(make_run: MakeRun) -> None:
    """The main thread waits for a disk that does not answer; what is done by then counts."""
    run = make_run("run", 3)
    run.with_script(
        "LATE_SECONDS = 1.0\n"
        "real_digest = content_digest\n"
        "def content_digest(path):\n"
        "    if path.stem == 'image0001':\n"
        "        the_run.hard_deadline = time.monotonic()\n"
        "        with contextlib.ExitStack() as stack:\n"
        "            stack.enter_context(the_run.ending_in_time())\n"
        "            threading.Event().wait()\n"
        "    return real_digest(path)\n"
        "real_init = KernelRun.__init__\n"
        "def init(self, *given):\n"
        "    global the_run\n"
        "    the_run = self\n"
        "    real_init(self, *given)\n"
        "KernelRun.__init__ = init"
    )
    code, log = run.run(SCORED)
    assert code == 0 and "the time limit: ending with what there is" in log and "Traceback" not in log, log
    rows = done(run)
    assert len(rows) == 3 and rows["image0000"] and not rows["image0001"], log
    assert summary_of(run)["failed"]["image0001"] == "the time limit came first"


# The end


def test_what_fails_after_the_images_costs_no_row(make_run: MakeRun) -> None:
    """summary.json is a folder, and the folder of the packages cannot be deleted."""
    run = make_run("run", 2)
    (run.working / "summary.json").mkdir()
    run.with_script("def remove_scratch(folder):\n    raise OSError(5, 'Input/output error')")
    code, log = run.run()
    assert code == 0 and "summary.json (Is a directory): the submission is there all the same" in log, log
    assert "Input/output error" in log and "Traceback" not in log
    assert len(done(run)) == 2 and all(done(run).values())


@pytest.mark.parametrize(("variables", "expected"), [({}, 1), (SCORED, 0)])
def test_what_nobody_expects_leaves_what_there_is(make_run: MakeRun, variables: dict[str, str], expected: int) -> None:
    run = make_run("run", 3)
    mended = run.script
    run.with_script(
        "real_succeed, seen = SavedRun.succeed, []\n"
        "def succeed(self, *arguments):\n"
        "    real_succeed(self, *arguments)\n"
        "    seen.append(1)\n"
        "    if len(seen) == 2:\n"
        "        raise KeyError('nobody expects this')\n"
        "SavedRun.succeed = succeed"
    )
    code, log = run.run(variables)
    assert code == expected and "KeyError" in log and "a fault of the program" in log and "Traceback" not in log, log
    assert len(done(run)) == 3 and sum(map(bool, done(run).values())) == 2
    run.script = mended  # another script
    code, log = run.run(variables)
    assert code == 0 and "put aside" in log and all(done(run).values()), log


# The working folder


@pytest.mark.parametrize(
    ("fault", "told"),
    [("folder", "submission.csv is a folder"), ("read-only", "cannot write"), ("full", "No space left on device")],
)
def test_a_working_folder_of_no_use_is_told_before_any_image(make_run: MakeRun, fault: str, told: str) -> None:
    run = make_run("run", 2)
    variables, command = {}, run.start_command()
    if fault == "folder":
        run.submission.mkdir()
    elif fault == "read-only":
        variables = {"KERNEL_WORKING": "/proc/self/task"}
    else:
        mount = 'mount -t tmpfs -o size=4k tmpfs working && head -c 9999 /dev/zero >working/filler; exec "$@"'
        command = ["unshare", "-m", "sh", "-c", mount, "sh", *command]
        if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", run.working], check=False).returncode:
            pytest.skip("file systems cannot be mounted here (unshare -m)")
    done = subprocess.run(
        command, env=run.environment(variables), cwd=run.home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and told in done.stdout and "Traceback" not in done.stdout, done.stdout
    assert "members, on cpu" not in done.stdout, "nothing was begun"


def test_a_working_folder_that_is_spoilt_meanwhile_is_mended(make_run: MakeRun) -> None:
    """It is removed after the first image, and then somebody makes a folder called submission.csv."""
    run = make_run("run", 4)
    script, told = run.start(), []
    wait_for(told, script, " INFO image ")
    shutil.rmtree(run.working)
    wait_for(told, script, " INFO image ")
    run.submission.unlink(missing_ok=True)
    run.submission.mkdir(parents=True)
    code, log = end_of(told, script)
    assert code == 0 and "was deleted, and is written again" in log and "put aside as submission.csv.old" in log, log
    assert len(done(run)) == 4 and all(done(run).values()) and "Traceback" not in log


# The log


@pytest.mark.parametrize(
    "redirection", [">/dev/full 2>&1", ">&- 2>&-", "2>/dev/full", "2>&1 | head -n 1", "<&- >&- 2>&-"]
)
def test_a_log_that_cannot_be_written_costs_nothing(make_run: MakeRun, redirection: str) -> None:
    run = make_run("run", 2)
    command = f'set -o pipefail; "$@" {redirection}'
    ended = subprocess.run(
        ["bash", "-c", command, "bash", *run.start_command()], env=run.environment({"KERNEL_DEVICE": "cpu,cpu"}),
        cwd=run.home, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert len(done(run)) == 2 and all(done(run).values())


# Mounts that are away for a while


def test_images_that_are_away_for_four_seconds_are_done_at_the_end(make_run: MakeRun) -> None:
    run = make_run("run", 5)
    script, told = run.start({"KERNEL_PATIENCE": "15"}), []
    wait_for(told, script, " INFO image ")
    run.images.rename(run.inputs / "away")
    time.sleep(4)
    wait_for(told, script, "is tried again after all others")
    (run.inputs / "away").rename(run.images)
    code, log = end_of(told, script)
    assert code == 0 and "Traceback" not in log, log
    assert len(done(run)) == 5 and all(done(run).values()) and summary_of(run)["failed"] == {}


@pytest.mark.parametrize("what", ["weights", "wheels", "images"])
def test_a_mount_that_is_late_is_waited_for(make_run: MakeRun, what: str) -> None:
    run = make_run("run", 2)
    mount = {"weights": run.weights, "wheels": run.inputs / WHEELS_FOLDER, "images": run.images}[what]
    mount.rename(run.home / "away")
    if what == "images":
        mount.mkdir()  # the mount's empty place
    script, told = run.start({"KERNEL_PATIENCE": "60"}), []
    wait_for(told, script, "trying again in 2 s")
    if what == "images":
        mount.rmdir()
    (run.home / "away").rename(mount)
    code, log = end_of(told, script)
    assert code == 0 and "Traceback" not in log and all(done(run).values()), log


# Members


@pytest.mark.parametrize(("variables", "expected"), [({}, 2), (SCORED, 0), ({**SCORED, "KERNEL_MEMBERS": "strict"}, 2)])
def test_a_member_that_cannot_be_loaded(make_run: MakeRun, variables: dict[str, str], expected: int) -> None:
    """By `best_effort` it is left out, loudly; by `strict` it ends the run."""
    run = make_run("run", 3)
    weights = run.weights / "cascade.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, log = run.run(variables)
    assert code == expected and "Traceback" not in log, log
    if expected:
        assert "cascade.safetensors" in log and not any(done(run).values())
        return
    assert "MEMBER cascade IS LEFT OUT" in log and "GOING ON WITH 2 OF 3 MEMBERS" in log
    summary = summary_of(run)
    assert summary["members"] == ["maskrcnn", "htc"] and list(summary["members_left_out"]) == ["cascade"]
    assert all(image["members"] == ["maskrcnn", "htc"] for image in summary["images"].values())
    assert all(done(run).values())


def test_a_file_with_another_checksum_that_loads_is_refused_all_the_same(make_run: MakeRun) -> None:
    run = make_run("run", 2)
    weights = run.weights / "cascade.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1  # one weight, a little larger or smaller
    weights.write_bytes(content)
    code, log = run.run(SCORED)
    assert code == 2 and "altered" in log and "LEFT OUT: cascade" not in log and "Traceback" not in log, log
    assert done(run) == {"image0000": 0, "image0001": 0}
