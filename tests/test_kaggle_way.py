"""The whole way, from an empty home directory to a score, as docs/kaggle.md has it; and what comes after a push.

The commands run as processes, with the real client, against the stub of Kaggle's server.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from kaggle_project import DEMO, Project, copy_wheels, make_project
from kaggle_stub import CLIENT, Dataset, Failure, Run, StubServer, run_client, running_stub

from kernel.data.synthetic.generate import generate_image
from kernel.locks import sole_writer

pytestmark = pytest.mark.skipif(not CLIENT.is_file(), reason="the kaggle client is not installed")
KERNEL = "ada/my-cell-kernel"
SUMMARY = {
    "members": ["maskrcnn"], "images": {"a": {"cell_type": "cort", "cells": 1}, "b": {}}, "failed": {"c": "too dark"},
    "cells": 1, "seconds": 12.5, "dtype": "torch.float16", "peak_memory_gb": 3.1, "peak_gpu_memory_gb": 2.2,
    "images_by_type": {"cort": 2}, "images_by_quality": {"full": 2}, "docker_image": "kaggle/python:v2",
    "torch": "2.10", "python": "3.12.1", "cuda": "12.8", "gpus": ["Tesla T4", "Tesla T4"],
}  # fmt: skip
SUBMISSION = b"id,predicted\na,5 3 12 2\nb,\nc,\n"
LOG = ["2026-11-28 INFO machine", "2026-11-28 ERROR dataset ada/my-cell-weights is not mounted under /kaggle/input: x"]


@pytest.fixture
def server() -> Iterator[StubServer]:
    with running_stub() as stub:
        yield stub


def test_ten_lines_from_an_account_to_a_score(tmp_path: Path, server: StubServer, wheels_dir: Path) -> None:
    project = Project(tmp_path, server)
    server.user = "ada"
    (name,) = server.competitions
    server.competitions[name] = False
    server.datasets["bob/published-members"] = Dataset([{"maskrcnn.safetensors": weights(), "htc.safetensors": htc()}])
    # 1. log in: a token in the home directory, as the client keeps it
    (project.home / ".kaggle").mkdir(parents=True)
    assert project.run("quota").returncode == 2
    (project.home / ".kaggle" / "access_token").write_text(server.token, encoding="utf-8")
    assert "GPU" in project.run("quota").stdout
    # 2. accept the rules, on the competition's page
    server.competitions[name] = True
    # 3. download published weights, by the client
    words = ["bob/published-members", "-p", str(tmp_path / "weights"), "--unzip"]
    told = run_client(server, tmp_path, "datasets", "download", *words)
    assert (tmp_path / "weights" / "htc.safetensors").read_bytes() == htc(), told
    # 4. a manifest of one's own
    made = project.run(
        "init", "--user", "ada", "--from", "weights", "--title", "My cell kernel", "--manifest", str(project.manifest)
    )
    assert made.returncode == 0 and "kernel: ada/my-cell-kernel" in made.stdout, made.stderr
    # 5. members
    assert project.run("members", "remove", "htc").returncode == 0
    listed = project.run("members")
    assert listed.returncode == 0 and "1 member(s) of ada/my-cell-kernel" in listed.stdout
    # 6. build, 7. dry run
    copy_wheels(wheels_dir, project.out / "wheels", "ada/mmdet-pure-python-wheels")
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "cells.png"), generate_image("cort", 1, (128, 160)).image)
    assert project.build().returncode == 0
    tried = project.build("--dry-run", "--images", "images", "--device", "cpu")
    assert tried.returncode == 0 and "dry run:" in tried.stdout, tried.stdout + tried.stderr
    # 8. push
    outputs = {file: (project.out / "dry-run" / file).read_bytes() for file in ("submission.csv", "summary.json")}
    server.next_run = {"outputs": outputs, "log": ["INFO done"]}
    pushed = project.push()
    assert pushed.returncode == 0 and "version 1 of ada/my-cell-kernel is on Kaggle" in pushed.stdout, pushed.stderr
    # 9. status, and what it left
    waited = project.run("status", "--wait", "--poll", "0.05")
    assert waited.returncode == 0 and "version 1: complete" in waited.stdout
    assert "running" in waited.stdout
    fetched = project.run("fetch", "--images", "images")
    assert fetched.returncode == 0 and "submission.csv is valid (all of it): 1 images" in fetched.stdout, fetched.stderr
    assert "differs" not in fetched.stdout
    assert (project.out / "runs" / "1" / "my-cell-kernel.log").is_file()
    # 10. submit
    scored = project.run("submit", "--yes", "--wait", "--poll", "0.05")
    assert scored.returncode == 0 and "public score: 0.311" in scored.stdout, scored.stderr
    assert server.submissions[0]["kernelVersion"] == 1 and server.submissions[0]["fileName"] == "submission.csv"


def weights() -> bytes:
    return (DEMO / "weights" / "maskrcnn.safetensors").read_bytes()


def htc() -> bytes:
    return (DEMO / "weights" / "htc.safetensors").read_bytes()


# After a push


@pytest.fixture
def project(tmp_path: Path, server: StubServer, wheels_dir: Path) -> Project:
    """A project with two versions on Kaggle; what they are built from does not matter here."""
    made = make_project(tmp_path, server, wheels_dir)
    for _ in range(2):
        run = Run({"text": "", "newTitle": "My cell kernel"}, ["COMPLETE"])
        run.outputs = {"submission.csv": SUBMISSION, "summary.json": json.dumps(SUMMARY).encode()}
        run.log = ["2026-11-28 INFO machine", "2026-11-28 INFO done"]
        server.kernels.setdefault(KERNEL, []).append(run)
    return made


def test_the_version_that_is_meant(project: Project, server: StubServer) -> None:
    assert "version 2: complete" in project.run("status").stdout  # Kaggle's last one
    (project.out / "pushed.json").write_text(
        json.dumps({"kernel": KERNEL, "version": 1, "url": "u", "sha256": "0"}), encoding="utf-8"
    )
    assert "version 1: complete" in project.run("status").stdout
    assert "version 2: complete" in project.run("status", "--version", "2").stdout
    missing = project.run("status", "--version", "3")
    assert missing.returncode == 1 and "not there (404)" in missing.stderr
    (project.out / "pushed.json").write_text("{}", encoding="utf-8")
    assert "pushed.json is damaged" in project.run("status").stderr
    (project.out / "pushed.json").unlink()
    server.kernels.clear()
    none = project.run("status")
    assert none.returncode == 2 and "there is no kernel ada/my-cell-kernel yet" in none.stderr


def test_a_failed_run_names_the_one_thing_to_do(project: Project, server: StubServer) -> None:
    run = server.kernels[KERNEL][-1]
    run.states, run.message, run.log = ["ERROR"], "Notebook threw exception", LOG
    done = project.run("status", "--wait")
    assert done.returncode == 1 and "Kaggle says: Notebook threw exception" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        "to do: push by `python build_kernel.py push`, which sends the dataset that is missing and attaches it"
    )
    run.log = [*LOG, "to do: what the kernel itself says"]
    assert project.run("status").stdout.splitlines()[-1] == "to do: what the kernel itself says"
    fetched = project.run("fetch")
    assert fetched.returncode == 1 and "version 2: error; its results are in" in fetched.stdout
    refused = project.run("submit", "--yes")
    assert refused.returncode == 1 and "is error, and only a complete run" in refused.stderr


def test_waiting_has_an_end(project: Project, server: StubServer) -> None:
    run = server.kernels[KERNEL][-1]
    run.states, run.log = ["RUNNING"], ["3/10 images"]
    done = project.run("status", "--wait", "--wait-timeout", "0.2", "--poll", "0.1")
    assert done.returncode == 1 and "is still running after" in done.stderr
    assert "running, 0.0 min: 3/10 images" in done.stdout
    running = project.run("status")
    assert running.returncode == 0 and "not over yet" in running.stdout
    fetched = project.run("fetch")
    assert fetched.returncode == 1 and "is running, not over" in fetched.stderr


def test_logs(project: Project, server: StubServer) -> None:
    assert project.run("logs").stdout.splitlines() == server.kernels[KERNEL][1].log
    assert project.run("logs", "--last", "1").stdout.splitlines() == ["2026-11-28 INFO done"]
    server.kernels[KERNEL][1].log = []
    assert "has no log yet: it is complete" in project.run("logs").stdout


def test_fetch_shows_the_summary_and_what_differs(project: Project, server: StubServer) -> None:
    first = project.run("fetch", "--version", "1")
    assert first.returncode == 0 and "3, 1 of them failed" in first.stdout and "Tesla T4, Tesla T4" in first.stdout
    assert "valid (form and images): 3 images, 1 cells" in first.stdout and "failed: c" in first.stdout
    changed = SUMMARY | {"docker_image": "kaggle/python:v3", "torch": "2.11"}
    server.kernels[KERNEL][1].outputs["summary.json"] = json.dumps(changed).encode()
    second = project.run("fetch")
    assert (
        "differs from what was tried: image is kaggle/python:v3, in version 1 it was kaggle/python:v2" in second.stdout
    )
    assert "torch is 2.11, in version 1 it was 2.10" in second.stdout
    (project.out / "dry-run").mkdir()
    (project.out / "dry-run" / "summary.json").write_text(json.dumps({"python": "3.11.7"}), encoding="utf-8")
    assert "Python is 3.12.1, in the dry run it was 3.11.7" in project.run("fetch").stdout


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("submission.csv", b"id,predicted\na,5 3\na,\n", "the run's submission is not valid"),
        ("submission.csv", b"id,predicted\na,5 3\nd,\n", "differ on the images b, c:"),
        ("submission.csv", b"id,predicted\na,\nb,\nc,\n", "has no cell at all"),
        ("submission.csv", None, "left no submission.csv"),
        ("summary.json", None, "left no summary.json"),
        ("summary.json", b"{", "summary.json is damaged"),
        ("summary.json", b"[]", "holds no object"),
    ],
)
def test_results_that_are_no_good(
    project: Project, server: StubServer, name: str, content: bytes | None, told: str
) -> None:
    outputs = server.kernels[KERNEL][1].outputs
    if content is None:
        del outputs[name]
    else:
        outputs[name] = content
    done = project.run("fetch")
    assert done.returncode == 1 and told in done.stderr and "Traceback" not in done.stderr


def test_ids_that_are_spelled_as_the_competition_has_them(project: Project, server: StubServer, tmp_path: Path) -> None:
    outputs = server.kernels[KERNEL][1].outputs
    outputs["submission.csv"] = b"id,predicted\na.png,5 3 12 2\nb,\nc.png,\ngone,\n"
    told = SUMMARY | {"spelled_ids": {"a": "a.png", "c": "c.png"}, "absent_ids": ["gone"]}
    outputs["summary.json"] = json.dumps(told).encode()
    fetched = project.run("fetch")
    assert fetched.returncode == 0 and "(form and images): 4 images, 1 cells" in fetched.stdout, fetched.stderr
    (tmp_path / "images").mkdir()
    for name in "abc":
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), np.zeros((9, 9), np.uint8))
    fetched = project.run("fetch", "--images", "images")
    assert fetched.returncode == 0 and "(all of it): 4 images, 1 cells" in fetched.stdout, fetched.stderr
    outputs["submission.csv"] = b"id,predicted\na.png,5 3 12 2\nb,\nc.png,\n"
    assert "differ on the images gone:" in project.run("fetch").stderr


def test_commands_that_are_advised_mean_the_same_kernel_and_version(project: Project) -> None:
    meant = f"--manifest {project.manifest} --out {project.out}"
    assert f"next: `python build_kernel.py fetch {meant} --version 1`" in project.run("status", "--version", "1").stdout
    fetched = project.run("fetch", "--version", "1").stdout
    assert f"next: `python build_kernel.py submit {meant} --version 1 --wait`" in fetched
    assert f"next: `python build_kernel.py submit {meant} --wait`" in project.run("fetch").stdout


def test_a_version_that_has_not_run_is_no_failure(project: Project, server: StubServer) -> None:
    run = server.kernels[KERNEL][-1]
    run.states, run.log = ["NEW_SCRIPT"], []
    fetched = project.run("fetch")
    assert fetched.returncode == 1 and f"version 2 of {KERNEL} was saved and has not run: push" in fetched.stderr
    assert not (project.out / "runs" / "2").exists()
    run.states = ["ERROR"]
    failed = project.run("status")
    assert failed.returncode == 1 and "lines of log" not in failed.stdout and "to do: " in failed.stdout


def test_a_version_is_submitted_once_however_its_owner_is_written(project: Project, server: StubServer) -> None:
    assert project.run("submit", "--yes").returncode == 0
    server.kernels["Ada/my-cell-kernel"] = server.kernels[KERNEL]
    project.edit({}, id="Ada/my-cell-kernel")
    again = project.run("submit", "--yes", "--version", "2")
    assert again.returncode == 1 and "was submitted already, as 1001" in again.stderr
    assert len(server.submissions) == 1


def test_of_two_that_submit_at_once_one_does(project: Project, server: StubServer) -> None:
    (project.out / "runs").mkdir(parents=True)
    with sole_writer(project.out / "runs" / "submissions.json"):
        refused = project.run("submit", "--yes")
    assert refused.returncode == 2 and f"another run (its process is {os.getpid()})" in refused.stderr
    assert not server.submissions
    assert project.run("submit", "--yes").returncode == 0 and len(server.submissions) == 1


def test_submitting_keeps_the_results_of_another_kernel(project: Project, server: StubServer) -> None:
    assert project.run("fetch").returncode == 0
    path = project.out / "runs" / "2" / "verdict.json"
    path.write_text(path.read_text(encoding="utf-8").replace(KERNEL, "ada/other-kernel"), encoding="utf-8")
    (path.parent / "mine.txt").touch()
    refused = project.run("submit", "--yes")
    assert refused.returncode == 2 and "of version 2 of ada/other-kernel: `fetch --replace` puts" in refused.stderr
    assert (path.parent / "mine.txt").exists() and not server.submissions
    own = project.run("fetch", "--replace")
    assert own.returncode == 2 and "(mine.txt): move that to another folder" in own.stderr
    (path.parent / "mine.txt").unlink()
    assert project.run("fetch", "--replace").returncode == 0 and project.run("submit", "--yes").returncode == 0


def test_an_option_that_would_do_nothing_is_refused(project: Project) -> None:
    refused = project.run("submit", "--ref", "5", "--unchecked")
    assert refused.returncode == 2 and "--unchecked does nothing" in refused.stderr


def test_submitting_asks_and_says_why_there_is_no_score(project: Project, server: StubServer) -> None:
    asked = project.run("submit")
    assert asked.returncode == 2 and f"submit version 2 of {KERNEL} to" in asked.stderr and not server.submissions
    server.submission_states = [{"status": "PENDING"}]
    pending = project.run("submit", "--yes", "--message", "try")
    assert pending.returncode == 0 and "submit --ref 1001 --wait` waits for it" in pending.stdout
    assert server.submissions[0]["submissionDescription"] == "try"
    late = project.run("submit", "--ref", "1001", "--wait", "--wait-timeout", "0.1", "--poll", "0.1")
    assert late.returncode == 1 and "is still not scored" in late.stderr
    server.submission_states = [{"status": "ERROR", "errorDescription": "Submission Scoring Error"}]
    failed = project.run("submit", "--ref", "1001", "--wait")
    assert failed.returncode == 1 and "has no score: Submission Scoring Error" in failed.stderr
    assert len(server.submissions) == 1


@pytest.mark.parametrize("command", ["status", "logs", "fetch", "submit", "quota"])
@pytest.mark.parametrize("status", [401, 500])
def test_failures_end_with_advice(project: Project, server: StubServer, command: str, status: int) -> None:
    endpoints = ("GetKernel", "GetKernelSessionStatus", "GetAcceleratorQuotaStatistics", "ListKernelSessionOutput")
    server.failures = [Failure(endpoint, status) for endpoint in endpoints]
    done = project.run(command)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("failed: ") and f"({status})" in done.stderr and done.stderr.count("\n") == 1
