"""Runs that are stopped, killed, resumed, spread over processes, or go wrong."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kernel.errors import InputError, RunError
from kernel.files import written_file
from kernel.training.optimisation import WeightsEma
from kernel.training.processes import ProcessGroup
from kernel.training.settings import TrainSettings
from kernel.training.state import RunState, read_state, save_state

SCRIPT = Path(__file__).with_name("train_tiny.py")
pytestmark = [pytest.mark.usefixtures("wheels_site"), pytest.mark.xdist_group("runs")]


def run_tiny(out: Path | str, *words: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Train to the end, or to the failure."""
    start = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        start += ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={port}"]
    return subprocess.run([*start, str(SCRIPT), str(out), *words], capture_output=True, text=True, check=False)


def assert_same_weights(found: Path, expected: Path, atol: float = 0) -> None:
    one, other = load_file(found), load_file(expected)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=atol, msg=lambda told, key=key: f"{key}: {told}")


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a run that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "member.safetensors"
    done = run_tiny(out, "ema_decay=0.9")
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_run_killed_and_resumed_gives_the_same_weights(whole_run: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "member.safetensors"
    words = ("ema_decay=0.9", "checkpoint_every=1", "workers=0")
    process = subprocess.Popen([sys.executable, str(SCRIPT), str(out), *words], stderr=subprocess.PIPE, text=True)
    state = out.with_suffix(".state")
    deadline = time.monotonic() + 120
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    told = process.communicate()[1]
    assert state.is_file(), told
    if number != signal.SIGKILL and process.returncode:
        assert process.returncode == 1 and "--resume" in told and "Traceback" not in told
    done = run_tiny(out, *words, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_weights(out, whole_run)


def test_workers_do_not_change_the_weights(whole_run: Path, tmp_path: Path) -> None:
    done = run_tiny(tmp_path / "member.safetensors", "ema_decay=0.9", "workers=2")
    assert done.returncode == 0, done.stderr
    assert_same_weights(tmp_path / "member.safetensors", whole_run)


def test_two_processes_are_one_that_accumulates(tmp_path: Path) -> None:
    """Micro-batches of two crops each: two in one process, or one in each of two; gradients are averaged."""
    alone = run_tiny(tmp_path / "alone.safetensors", "batch_size=4", "accumulation=2")
    assert alone.returncode == 0, alone.stderr
    both = run_tiny(tmp_path / "both.safetensors", "batch_size=2", processes=2)
    assert both.returncode == 0, both.stderr
    assert_same_weights(tmp_path / "both.safetensors", tmp_path / "alone.safetensors", atol=1e-5)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_reaches_the_processes_that_make_crops_too_costs_no_state(tmp_path: Path, number: int) -> None:
    """A terminal sends Ctrl-C to all processes of the group, a scheduler SIGTERM."""
    out = tmp_path / "member.safetensors"
    words = ("iterations=1000", "checkpoint_every=1", "workers=2")
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(out), *words], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    state = out.with_suffix(".state")
    deadline = time.monotonic() + 120
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, number)
    told = process.communicate()[1]
    assert process.returncode == 1 and "--resume" in told and "Traceback" not in told, told


def test_machines_without_a_shared_disk_need_the_state_on_each(tmp_path: Path) -> None:
    """Each of two processes sees only its own folder; the first one writes."""
    out = f"{tmp_path}/{{rank}}/member.safetensors"
    # Norms learn, each process's from its own crops: what is written is the mean of both, not a mean over steps.
    words = ("iterations=2", "batch_size=1", "norm_eval=", "ema_decay=0.5")
    done = run_tiny(out, *words, processes=2)
    assert done.returncode == 0, done.stderr
    first, second = tmp_path / "0", tmp_path / "1"
    written = load_file(first / "member.safetensors")
    parts = torch.load(first / "member.state", weights_only=True)["parts"]
    for key in (key for key in written if "running_" in key):
        assert torch.equal(written[key], parts["detector"][key]), key

    refused = run_tiny(out, *words, "--resume", processes=2)
    assert refused.returncode and "go on after the steps 2, 0: copy member.state" in refused.stderr, refused.stderr
    shutil.copy(first / "member.state", second)
    done = run_tiny(out, *words, "--resume", processes=2)
    assert done.returncode == 0, done.stderr


def test_norms_of_several_processes_have_the_variance_of_all_their_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of 0 and 2 with variances of 1 and 3: all together 1, and 2 within and 1 between."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **more: None)
    group = ProcessGroup("cpu")
    norms = [torch.nn.BatchNorm2d(1, affine=False) for _ in range(2)]
    for norm, mean, variance in zip(norms, (0.0, 2.0), (1.0, 3.0), strict=True):
        norm.running_mean.fill_(mean), norm.running_var.fill_(variance)
    others = iter([norms[1].running_mean, norms[1].running_var + norms[1].running_mean ** 2])
    monkeypatch.setattr("torch.distributed.all_reduce", lambda value: value.add_(next(others)))
    group.share_buffers(norms[0])
    assert norms[0].running_mean.item() == 1 and norms[0].running_var.item() == pytest.approx(3)


def test_processes_wait_for_long_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    given = {}
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.distributed.init_process_group", lambda backend, **more: given.update(more))
    ProcessGroup("cpu")
    assert given["timeout"] >= timedelta(hours=12)


def test_a_state_of_another_run_is_refused(whole_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "member.safetensors"
    out.with_suffix(".state").write_bytes(whole_run.with_suffix(".state").read_bytes())
    done = run_tiny(out, "ema_decay=0.9", "learning_rate=0.01", "--resume")
    assert done.returncode == 2 and "belongs to a run with other settings" in done.stderr
    out.with_suffix(".state").write_bytes(b"broken")
    done = run_tiny(out, "--resume")
    assert done.returncode == 2 and "is no state of a run" in done.stderr


def test_a_state_of_another_number_of_processes_is_refused(whole_run: Path, tmp_path: Path) -> None:
    """Each process takes batches of its own: with another number some crops came twice, and others never."""
    out = tmp_path / "member.safetensors"
    content = torch.load(whole_run.with_suffix(".state"), weights_only=True)
    assert content["processes"] == 1
    torch.save({**content, "step": 3, "processes": 2}, out.with_suffix(".state"))
    done = run_tiny(out, "ema_decay=0.9", "--resume")
    assert done.returncode == 2 and "is of a run of 2 process(es), and this is one of 1" in done.stderr
    del content["processes"]  # as earlier versions wrote it
    torch.save({**content, "step": 3}, out.with_suffix(".state"))
    assert run_tiny(out, "ema_decay=0.9", "--resume").returncode == 0


def test_a_loss_that_is_no_number_names_its_crops(tmp_path: Path) -> None:
    done = run_tiny(tmp_path / "member.safetensors", "learning_rate=1e30", "warmup_share=0.0")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "the loss is no number in step" in done.stderr
    assert any(name in done.stderr.split("on the crops")[1] for name in ("shsy5y", "astro", "cort"))


def test_a_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("before", encoding="utf-8")

    with pytest.raises(RunError, match="No space left"), written_file(path) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text(encoding="utf-8") == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights"]


def test_a_state_comes_back_as_it_went(tmp_path: Path) -> None:
    state = RunState(7, "abc", {"detector": {"weight": torch.arange(3.0)}}, 0.25)
    save_state(state, tmp_path / "run.state")
    found = read_state(tmp_path / "run.state", "abc")
    assert (found.step, found.best_score) == (7, 0.25)
    assert torch.equal(found.parts["detector"]["weight"], torch.arange(3.0))
    with pytest.raises(InputError, match="other settings"):
        read_state(tmp_path / "run.state", "abd")


def test_the_mean_is_of_parameters_and_not_of_statistics() -> None:
    assert set(WeightsEma(torch.nn.BatchNorm1d(2), 0.5).mean) == {"weight", "bias"}


def test_the_mean_of_the_weights() -> None:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    mean = WeightsEma(layer, 0.5)
    expected = 0.0
    for step, value in enumerate((1.0, 4.0, 2.0), start=1):
        layer.weight.data.fill_(value)
        mean.update(layer)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert mean.mean["weight"].item() == pytest.approx(expected)
    again = WeightsEma(layer, 0.5)
    again.load_state_dict(mean.state_dict())
    assert again.steps == 3 and torch.equal(again.mean["weight"], mean.mean["weight"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"iterations": 0}, "iterations is 0, it must be at least 1"),
        ({"batch_size": 4, "accumulation": 3}, "cannot be split into 3 equal micro-batches"),
        ({"crop_size": 100}, "a multiple of 32"),
        ({"dtype": "half"}, "dtype 'half' is not one of float32"),
        ({"heads_dtype": "half"}, "heads_dtype 'half' is not one of float32"),
        ({"ema_decay": 1.0}, "would never move"),
        ({"warmup_share": 1.5}, "from 0 to 1"),
        ({"learning_rate": 0.0}, "must be above 0"),
        ({"workers": -1}, "not negative"),
    ],
)
def test_settings_that_cannot_be_trained_with(changes: dict, told: str) -> None:
    TrainSettings().check("the recipe")
    with pytest.raises(InputError, match="the recipe: ") as caught:
        TrainSettings(**changes).check("the recipe")
    assert told in str(caught.value)


ONE_OF_TWO = """
import os, signal, sys
from datetime import timedelta
from kernel.errors import RunError
from kernel.training import processes
processes.LONGEST_WAIT = timedelta(seconds=15)
group = processes.ProcessGroup("cpu")
assert group.any_of(group.rank == 1)
if group.rank == 1:
    os.kill(os.getpid(), int(sys.argv[1]))
try:
    group.any_of(False)
except RunError as error:
    print(error, flush=True)
    os._exit(1)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_does_not_take_part_is_told(number: signal.Signals) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    one, other = (
        subprocess.Popen(
            [sys.executable, "-c", ONE_OF_TWO, str(int(number))],
            cwd=SCRIPT.parents[2],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    )
    try:
        told, _ = one.communicate()
    finally:
        other.kill()
        other.wait()
    assert "another process of this training has ended, was stopped, or cannot be reached" in told
    assert "start all again with --resume" in told and one.returncode == 1


#: The command line where Python's own end never comes, as where it waits for other processes.
ENDLESS = """
import sys, threading
from kernel import __main__ as program
threading.Thread(target=threading.Event().wait).start()
if sys.argv[1] == "fault":
    program.main = lambda: [][0]
print("so far")
raise SystemExit(program.run())
"""


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["train", "--data", "away", "--out", "out.safetensors"], 2, "error: "),
        (["fault"], 1, "IndexError: list index out of range"),
    ],
)
def test_one_of_several_that_fails_does_not_wait_for_the_others(words: list[str], code: int, told: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDLESS, *words],
        cwd=SCRIPT.parents[2],
        env={**os.environ, "RANK": "1", "WORLD_SIZE": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            printed, complaint = process.communicate(timeout=300)
        finally:
            process.kill()
    assert process.returncode == code and told in complaint and printed == "so far\n", complaint
