"""Commands at Kaggle that are stopped at a moment, and those whose reader leaves, as processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from kaggle_project import DEMO, ROOT, Project, build_project
from kaggle_stub import CLIENT, Failure, Run, StubServer, client_environment, running_stub

pytestmark = [
    pytest.mark.skipif(not CLIENT.is_file(), reason="the kaggle client is not installed"),
    pytest.mark.skipif(os.name != "posix", reason="signals and pipes are those of POSIX"),
    pytest.mark.xdist_group("push"),
]
KERNEL = "ada/my-cell-kernel"
SUMMARY = {"members": ["maskrcnn"], "images": {"a": {}}, "failed": {}, "cells": 1}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, wheels_dir: Path) -> Path:
    """The folder of a project that is built."""
    return build_project(tmp_path_factory.mktemp("built") / "project", wheels_dir)


@pytest.fixture
def server() -> Iterator[StubServer]:
    with running_stub() as stub:
        stub.user = "ada"
        run = Run({"text": "", "newTitle": "My cell kernel"}, ["COMPLETE"])
        run.outputs = {"submission.csv": b"id,predicted\na,5 3\n", "summary.json": json.dumps(SUMMARY).encode()}
        run.log = [f"INFO line {number}" for number in range(5000)]
        stub.kernels[KERNEL] = [run]
        yield stub


@pytest.fixture
def project(tmp_path: Path, built: Path, server: StubServer) -> Project:
    shutil.copytree(built, tmp_path / "project")
    return Project(tmp_path / "project", server, {"KAGGLE_API_TOKEN": server.token})


def start(project: Project, words: Sequence[str], **more: int) -> subprocess.Popen[str]:
    """Start build_kernel.py as a shell starts what runs in its background, with SIGINT ignored."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "build_kernel.py"), *words],
        env=client_environment(project.server, project.home, **project.login),
        cwd=project.folder,
        stdin=subprocess.DEVNULL,
        stdout=more.get("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        encoding="utf-8",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )


@pytest.mark.parametrize(
    ("command", "endpoint", "number", "told", "version"),
    [
        ("push", "IntrospectToken", signal.SIGTERM, "nothing was sent", "absent"),
        ("push", "ListDataFiles", signal.SIGINT, "nothing was sent", "absent"),
        ("push", "StartBlobUpload", signal.SIGINT, "my-cell-weights may not have arrived: push again", "absent"),
        ("push", "SaveKernel", signal.SIGTERM, "was sent; whether a version of ada/my-cell-kernel was made", None),
        ("push", "GetKernel", signal.SIGINT, "version 2 of ada/my-cell-kernel was pushed, and not yet compared", 2),
        ("status", "GetKernelSessionStatus", signal.SIGINT, "the run goes on at Kaggle: `python", "absent"),
        ("fetch", "ListKernelSessionOutput", signal.SIGTERM, "what was fetched before is as it was", "absent"),
        ("submit", "CreateCodeSubmission", signal.SIGINT, "whether it was submitted is not known", "absent"),
        ("submit", "GetSubmission", signal.SIGTERM, "build_kernel.py submit --ref 1001 --wait` asks", "absent"),
        ("submit", "GetKernelSessionStatus", signal.SIGTERM, "nothing was submitted", "absent"),
    ],
    ids=lambda value: str(getattr(value, "name", value)).split(" ")[0],
)  # fmt: skip
def test_a_stop_says_what_is_done_and_what_to_do(
    project: Project, server: StubServer, command: str, endpoint: str, number: int, told: str, version: int | str | None
) -> None:
    more = {"push": ["--yes", "--poll", "0.05"], "status": ["--wait"], "submit": ["--yes", "--wait"]}.get(command, [])
    late = (command, endpoint) == ("push", "GetKernel")  # which is asked before, for the plan
    server.failures = [Failure(endpoint, -1, after="SaveKernel" if late else "")]
    words = [command, "--manifest", str(project.manifest), "--out", str(project.out), *more]
    process = start(project, words)
    while len(server.asked(endpoint)) < (2 if late else 1):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    lines = errors.splitlines()
    assert len(lines) == 1 and told in lines[0], errors
    assert lines[0].startswith("interrupted: " if number == signal.SIGINT else "terminated: ")
    record = project.out / "pushed.json"
    assert (json.loads(record.read_text(encoding="utf-8"))["version"] if record.exists() else "absent") == version
    assert not [path for path in project.out.rglob(".*") if path.is_dir()], "a scratch folder is left"


def test_no_command_minds_that_its_reader_leaves(project: Project, server: StubServer) -> None:
    """As with `| head`; what a command does for the rest, it does."""
    (project.folder / "images").mkdir()
    shutil.copy(next((DEMO / "images").iterdir()), project.folder / "images")
    where = ["--manifest", str(project.manifest), "--out", str(project.out)]
    commands = (
        (["--help"], 0),
        (["members", "--manifest", str(project.manifest)], 0),
        (["check", "missing.csv", "--images", "images"], 2),
        (["push", "--offline", *where], 0),
        (["status", *where], 0),
        (["logs", *where], 0),
        (["fetch", *where], 0),
        (["submit", "--yes", *where], 0),
        (["quota"], 0),
        (["push", "--yes", "--poll", "0.05", *where], 0),
    )
    for words, code in commands:
        reader, writer = os.pipe()
        os.close(reader)
        process = start(project, words, stdout=writer)
        os.close(writer)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == code, (words, errors)
        assert "BrokenPipe" not in errors and "Traceback" not in errors, (words, errors)
        assert errors == "" or code == 2, (words, errors)
    assert len(server.submissions) == 1 and len(server.kernels[KERNEL]) == 2
    assert json.loads((project.out / "pushed.json").read_text(encoding="utf-8"))["compared"] is True


@pytest.mark.parametrize("words", [["--help"], ["synthesize", "--help"]])
def test_the_other_commands_do_not_mind_either(words: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "kernel", *words]
    done = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, encoding="utf-8", check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["submit"], 2, "nobody can answer here: give --yes"),
        (["--weights-dir", "weights"], 0, "next: `python build_kernel.py push"),
    ],
)
def test_a_closed_standard_input_is_one_where_nobody_answers(
    project: Project, words: list[str], code: int, told: str
) -> None:
    shutil.rmtree(project.out / "weights-my-cell-weights")  # whose license a new one asks for
    command = [sys.executable, str(ROOT / "build_kernel.py"), *words, "--manifest", str(project.manifest)]
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" <&-', "sh", *command, "--out", str(project.out)],
        env=client_environment(project.server, project.home, **project.login),
        cwd=project.folder,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == code and told in done.stdout + done.stderr, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_an_output_that_cannot_be_written_is_told() -> None:
    with Path("/dev/full").open("w", encoding="utf-8", newline="\n") as full:
        command = [sys.executable, str(ROOT / "build_kernel.py"), "--help"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, encoding="utf-8", check=False)
    assert done.returncode == 1 and done.stderr.startswith("failed: cannot write the output (No space left"), (
        done.stderr
    )
    assert done.stderr.count("\n") == 1
