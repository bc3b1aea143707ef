"""Every command at Kaggle against every failure of the server: a code, one line of advice, and nothing done twice.

The commands run in this process, with the real client, against the stub: there are many failures, and a process of its
own for each would take seconds.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kaggle_project import Project, build_project
from kaggle_stub import CLIENT, Dataset, Failure, Refusal, Run, StubServer, client_environment, running_stub

import build_kernel
from bundle import client, waiting
from bundle.build import script_text
from bundle.commands.common import alone_in
from bundle.kaggle import kernel_metadata
from bundle.push import built_manifest
from kernel.locks import sole_writer
from kernel.manifest.reader import parse_manifest, read_manifest
from kernel.manifest.types import manifest_to_json

pytestmark = [
    pytest.mark.skipif(not CLIENT.is_file(), reason="the kaggle client is not installed"),
    pytest.mark.xdist_group("push"),
]
KERNEL = "ada/my-cell-kernel"
SUMMARY = {"members": ["maskrcnn"], "images": {"a": {"cells": 1}, "b": {}}, "failed": {"c": "dark"}, "cells": 1}
SUBMISSION = b"id,predicted\na,5 3 12 2\nb,\nc,\n"
HTML = b"<html><title>We are down</title></html>"
#: A server that says no, says nothing, or is not the one that it should be.
FAILURES: dict[str, dict[str, Any]] = {
    **{str(status): {"status": status} for status in (400, 401, 403, 404, 409, 418, 429, 500, 502, 503, 504)},
    "reset": {"status": 0},
    "silence": {"status": -1},
    "html": {"status": 200, "body": HTML, "content_type": "text/html"},
    "html-as-json": {"status": 200, "body": HTML},
    "html-503": {"status": 503, "body": HTML, "content_type": "text/html"},
    "empty": {"status": 200, "body": b""},
    "null": {"status": 200, "body": b"null"},
    "list": {"status": 200, "body": b"[]"},
    "text": {"status": 200, "body": b'"no"'},
    "deep": {"status": 200, "body": b"[" * 100_000},
    "cut": {"status": 200, "body": b'{"ref": "ada/my-cell-kernel"}' * 9, "whole": False},
    "code": {"status": 200, "body": b'{"code": 503, "message": "later"}'},
}


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Here:
    """A project whose commands run in this process."""

    project: Project
    server: StubServer
    capture: pytest.CaptureFixture[str]

    def run(self, name: str, *arguments: str) -> Done:
        self.capture.readouterr()
        paths = [] if name == "quota" else ["--manifest", str(self.project.manifest), "--out", str(self.project.out)]
        try:
            code = build_kernel.main([name, *paths, *arguments])
        except SystemExit as ending:
            code = int(ending.code or 0)
        printed = self.capture.readouterr()
        return Done(code, printed.out, printed.err)

    def push(self, *arguments: str) -> Done:
        return self.run("push", "--yes", "--poll", "0", *arguments)

    @property
    def record(self) -> dict[str, Any]:
        return json.loads((self.project.out / "pushed.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, wheels_dir: Path) -> Path:
    """The folder of a project that is built."""
    return build_project(tmp_path_factory.mktemp("built") / "project", wheels_dir)


@pytest.fixture
def server() -> Iterator[StubServer]:
    with running_stub() as stub:
        stub.user = "ada"
        for _ in range(2):
            run = Run({"text": "", "newTitle": "My cell kernel"}, ["COMPLETE"])
            run.outputs = {"submission.csv": SUBMISSION, "summary.json": json.dumps(SUMMARY).encode()}
            run.log = ["INFO machine", "INFO done"]
            stub.kernels.setdefault(KERNEL, []).append(run)
        yield stub


@functools.cache
def built_script(manifest_json: str) -> str:
    """What a build gives, once for all tests: it takes a second."""
    return script_text(parse_manifest(manifest_json, "the manifest"))


def link_or_copy(source: str, target: str) -> str:
    """A link to what no test writes into; a copy of all else."""
    big = source.endswith((".whl", ".safetensors"))
    return os.link(source, target) or target if big else shutil.copy2(source, target)


@pytest.fixture
def here(
    tmp_path: Path,
    built: Path,
    server: StubServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Here:
    shutil.copytree(built, tmp_path / "project", copy_function=link_or_copy)
    project = Project(tmp_path / "project", server, {"KAGGLE_API_TOKEN": server.token})
    for name in [name for name in client.os.environ if "proxy" in name.lower() or "kaggle" in name.lower()]:
        monkeypatch.delenv(name)
    for name, value in client_environment(server, project.home, **project.login).items():
        monkeypatch.setenv(name, value)
    sleep = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: sleep(min(seconds, 0.001)))  # also of the client and urllib3
    monkeypatch.setattr(client, "LONGEST_SILENCE", 0.2)
    monkeypatch.setattr(waiting, "LONGEST_OUTAGE", 2)
    monkeypatch.setattr("bundle.push.script_text", lambda manifest: built_script(manifest_to_json(manifest)))
    monkeypatch.setattr("tempfile.tempdir", str(project.home / "tmp"))
    return Here(project, server, capsys)


def told(done: Done, code: int | None = None) -> str:
    """The advice of a failed command: one line, or one of problems that are listed below it."""
    assert done.returncode in ((1, 2) if code is None else (code,)), done
    assert "Traceback" not in done.stderr and not re.search(r"/\.(?!kaggle|\.)", done.stderr), (
        done.stderr
    )  # a scratch folder
    lines = [line for line in done.stderr.splitlines() if not line.startswith(("note: ", "  - "))]
    assert len(lines) == 1 and lines[0].startswith(("failed: ", "error: ")), done.stderr
    return done.stderr


def failing(name: str, endpoint: str, **more: Any) -> Failure:
    return Failure(endpoint, **FAILURES[name], **more)


#: Each command, and the endpoints that it asks.
COMMANDS: dict[str, tuple[Callable[[Here], Done], tuple[str, ...]]] = {
    "status": (lambda here: here.run("status"), ("IntrospectToken", "GetKernel", "GetKernelSessionStatus")),
    "status-wait": (lambda here: here.run("status", "--wait", "--poll", "0"), ("GetKernelSessionStatus",)),
    "logs": (lambda here: here.run("logs"), ("ListKernelSessionOutput",)),
    "fetch": (lambda here: here.run("fetch"), ("ListKernelSessionOutput", "download")),
    "submit": (lambda here: here.run("submit", "--yes", "--unchecked", "--again"), ("CreateCodeSubmission",)),
    "submit-fetches": (lambda here: here.run("submit", "--yes"), ("ListKernelSessionOutput",)),
    "quota": (lambda here: here.run("quota"), ("GetAcceleratorQuotaStatistics",)),
    "push": (
        lambda here: here.push("--ready-timeout", "0.3"),
        (
            "ListDataFiles",
            "GetDatasetStatus",
            "ListDatasets",
            "StartBlobUpload",
            "upload",
            "CreateDataset",
            "SaveKernel",
            "GetKernel",
        ),
    ),
}
#: Answers from which is known that nothing was done.
KNOWN = ("400", "401", "403", "404", "409", "418", "429")
#: Bodies that are what a file may well hold, or that an endpoint takes for an answer without content.
NO_FAILURE = {
    "GetDatasetStatus": ("403", "404"),  # then there is none
    "download": ("html", "html-as-json", "empty", "null", "list", "text", "deep", "code"),
    "upload": ("html", "html-as-json", "empty", "null", "list", "text", "deep", "code", "cut"),
}
#: Those that a push, which takes longer, is tried with where it does not send the kernel.
SOME_FAILURES = ("401", "403", "503", "reset", "silence", "html", "list")


@pytest.mark.parametrize(
    ("command", "endpoint"), [(command, endpoint) for command, (_, ends) in COMMANDS.items() for endpoint in ends]
)
def test_a_failure_ends_with_one_line_of_advice(here: Here, command: str, endpoint: str) -> None:
    server = here.server
    kernels = {name: list(runs) for name, runs in server.kernels.items()}
    for failure in FAILURES if command != "push" or endpoint == "SaveKernel" else SOME_FAILURES:
        if failure in NO_FAILURE.get(endpoint, ()):
            continue
        server.failures, server.kernels = (
            [failing(failure, endpoint, after="SaveKernel" if (command, endpoint) == ("push", "GetKernel") else "")],
            {name: list(runs) for name, runs in kernels.items()},
        )
        server.requests.clear()
        server.datasets.clear()
        for note in ("pushed.json", "sent.json"):
            (here.project.out / note).unlink(missing_ok=True)
        text = told(COMMANDS[command][0](here))
        assert len(text) > 60 and server.token not in text, (failure, text)
        if endpoint in ("SaveKernel", "CreateCodeSubmission"):
            unknown = failure not in KNOWN
            assert ("is not known" in text) == unknown, (failure, text)
            assert "run the same again" not in text or not unknown, (failure, text)
            assert len(server.asked(endpoint)) == (4 if failure == "429" else 1)
        if endpoint == "SaveKernel":
            assert (here.project.out / "pushed.json").exists() == unknown
        if (command, endpoint) == ("push", "GetKernel"):
            assert here.record["version"] == 3 and "do not push again" in text


# Waiting


@pytest.mark.parametrize("failure", ["429", "500", "502", "503", "reset", "html-503", "html"])
def test_a_wait_outlives_what_passes(here: Here, failure: str) -> None:
    """More failures than one question is asked again for."""
    server = here.server
    server.kernels[KERNEL][-1].states = ["RUNNING", "COMPLETE"]
    times = 1 if failure == "html" else 5
    server.failures = [failing(failure, name, times=times) for name in ("GetKernelSessionStatus", "GetSubmission")]
    waited = here.run("status", "--wait", "--poll", "0")
    assert waited.returncode == 0 and "version 2: complete" in waited.stdout, waited.stderr
    scored = here.run("submit", "--yes", "--wait", "--poll", "0")
    assert scored.returncode == 0 and "public score: 0.311" in scored.stdout, scored.stderr
    assert len(server.submissions) == 1 and not any(failure.times for failure in server.failures)


def test_a_wait_outlives_that_a_version_is_not_shown_yet(here: Here) -> None:
    """Where it was pushed from here: Kaggle may not show it at once, nor a new kernel."""
    server = here.server
    server.kernels.clear()
    assert here.push().returncode == 0
    for hidden in (["GetKernelSessionStatus"], ["GetKernelSessionStatus", "GetKernel"]):
        server.kernels[KERNEL][0].states = ["RUNNING", "COMPLETE"]
        server.failures = [Failure(name, 404, times=3) for name in hidden]
        waited = here.run("status", "--wait", "--poll", "0")
        assert waited.returncode == 0 and f"{KERNEL} version 1: not shown yet, 0.0 min" in waited.stdout, waited.stderr
        assert "version 1: complete" in waited.stdout
    server.failures = [Failure("GetKernelSessionStatus", 404)]
    text = told(here.run("status", "--wait", "--poll", "0"), 1)
    assert f"version 1 of {KERNEL} was pushed, and Kaggle does not show it: the run goes on at Kaggle" in text
    (here.project.out / "pushed.json").unlink()
    text = told(here.run("status", "--wait", "--poll", "0", "--version", "2"), 1)
    assert "not there (404): the last version is 1" in text


def test_a_version_that_is_not_shown_yet_is_no_missing_one(here: Here) -> None:
    """Asked without waiting, just after the push; of a version that was not pushed from here Kaggle is believed."""
    assert here.push().returncode == 0
    here.server.failures = [Failure("GetKernelSessionStatus", 404)]
    done = here.run("status")
    assert done.returncode == 0, done.stderr
    assert f"{KERNEL} version 3: not shown yet\nit is not over yet: --wait waits for that" in done.stdout
    text = told(here.run("fetch"), 1)
    assert f"version 3 of {KERNEL} is not shown yet, not over: wait by `python build_kernel.py status" in text
    assert "not there (404)" in told(here.run("status", "--version", "2"), 1)


@pytest.mark.parametrize("failure", ["502", "reset"])
def test_a_push_outlives_what_passes_while_it_waits_for_a_dataset(here: Here, failure: str) -> None:
    server = here.server
    server.new_states = ["BLOBS_RECEIVED", "READY"]
    answer = server.answer_CreateDataset

    def fail_after(request: dict[str, Any]) -> dict[str, Any]:
        server.failures = [failing(failure, "GetDatasetStatus", times=5)]
        return answer(request)

    server.answer_CreateDataset = fail_after  # type: ignore[method-assign]
    done = here.push()
    assert done.returncode == 0, done.stderr
    assert len(server.asked("CreateDataset")) == 2 and len(server.asked("SaveKernel")) == 1


@pytest.mark.parametrize("version", [False, True])
def test_a_dataset_whose_answer_is_lost_is_not_sent_twice(here: Here, version: bool) -> None:
    """It has arrived, and Kaggle shows it after a while."""
    server, name = here.server, "CreateDatasetVersion" if version else "CreateDataset"
    server.datasets["ada/mmdet-pure-python-wheels"] = Dataset([{"a.whl": b"old"}])  # which may go unasked
    server.datasets["ada/my-cell-weights"] = Dataset([{"maskrcnn.safetensors": b"old"}])
    if version:
        server.new_lag = 2
    else:
        server.datasets.clear()
    answer = getattr(server, f"answer_{name}")

    def lose(request: dict[str, Any]) -> dict[str, Any]:
        answer(request)
        raise Refusal(504, "Gateway timeout")

    setattr(server, f"answer_{name}", lose)
    done = here.push()
    assert done.returncode == 0, done.stderr
    assert [len(dataset.versions) for dataset in server.datasets.values()] == [2, 2] if version else [1, 1]
    assert len(server.asked(name)) == 2 and len(server.asked("SaveKernel")) == 1


@pytest.mark.parametrize("there", [True, False])
def test_a_dataset_that_a_push_before_has_sent_is_waited_for(here: Here, there: bool) -> None:
    """Its waiting has ended too early, and Kaggle still shows the version before, or nothing."""
    server, name = here.server, "CreateDatasetVersion" if there else "CreateDataset"
    weights = "ada/my-cell-weights"
    if there:
        server.datasets[weights] = Dataset([{"maskrcnn.safetensors": b"old"}])
    server.new_states, server.new_lag = ["READY"], 4
    hidden = Failure("GetDatasetStatus", 404)
    if not there:
        server.failures = [hidden]
    assert "is not ready after 0 s" in told(here.push("--ready-timeout", "0"), 1)
    assert len(server.asked(name)) == 1
    hidden.times = 5  # this is how long it takes Kaggle
    done = here.push()
    assert done.returncode == 0, done.stderr
    assert f"dataset {weights}: sent before, and waited for" in done.stdout
    assert len(server.asked(name)) == (1 if there else 2)  # the wheels are new
    assert len(server.datasets[weights].versions) == 1 + there and len(server.asked("SaveKernel")) == 1
    server.requests.clear()
    assert here.push().returncode == 0 and not server.asked("StartBlobUpload")


def test_what_was_sent_and_never_arrived_is_sent_again(here: Here) -> None:
    server, weights = here.server, "ada/my-cell-weights"
    server.datasets[weights] = Dataset([{"maskrcnn.safetensors": b"old"}])
    server.new_states, server.new_lag = ["READY"], 4
    assert here.push("--ready-timeout", "0").returncode == 1
    server.datasets[weights].versions.pop()
    server.datasets[weights].lag = 0
    text = told(here.push(), 1)
    assert f"Kaggle does not show the dataset {weights}: it was sent by a push before" in text and "push again" in text
    assert here.push().returncode == 0
    assert len(server.asked("CreateDatasetVersion")) == 2


def test_a_license_that_a_push_does_not_give_is_told(here: Here) -> None:
    """Kaggle takes it for new datasets alone."""
    metadata = here.project.out / "weights-my-cell-weights" / "dataset-metadata.json"
    data = json.loads(metadata.read_text(encoding="utf-8"))
    metadata.write_text(json.dumps(data | {"licenses": [{"name": "CC0-1.0"}]}), encoding="utf-8")
    first = here.push()
    assert first.returncode == 0 and "is for new datasets" not in first.stdout, first.stderr
    assert "is for new datasets" not in here.run("push", "--check").stdout
    here.server.datasets["ada/my-cell-weights"].license = "other"
    assert (
        "dataset ada/my-cell-weights: there, unchanged; the license CC0-1.0 is for new datasets, this one has other: "
        "change it on kaggle.com/datasets/ada/my-cell-weights"
    ) in here.run("push", "--check").stdout


@pytest.mark.parametrize("arrived", [True, False])
def test_a_dataset_that_is_said_to_be_in_use(here: Here, arrived: bool) -> None:
    """By a push before, whose answer was lost; or it is another one, of which Kaggle shows nothing."""
    server = here.server
    answer = server.answer_CreateDataset

    def in_use(request: dict[str, Any]) -> dict[str, Any]:
        if arrived:
            answer(request)
        return {"status": "error", "error": 'The requested title "My cells" is already in use by a dataset.'}

    server.answer_CreateDataset = in_use  # type: ignore[method-assign]
    done = here.push()
    assert (done.returncode == 0) == arrived, done.stderr
    assert arrived or "is already in use by a dataset.: look at kaggle.com/datasets/ada/my-cell-w" in told(done, 1)
    assert bool(server.asked("SaveKernel")) == arrived


def test_a_submission_whose_score_cannot_be_asked_for_is_not_made_twice(here: Here) -> None:
    """The advice asks again, and submits nothing."""
    server = here.server
    for failure in ("503", "401", "silence", "html"):
        server.failures = [failing(failure, "GetSubmission")]
        for words in (["--wait", "--poll", "0"], []):
            before = len(server.submissions)
            text = told(here.run("submit", "--yes", "--again", *words), 1)
            ref = 1001 + before
            assert f"submit --ref {ref} --wait` asks again, and submits nothing" in text
            assert "run the same again" not in text or failure == "401"
    server.failures = []
    made = len(server.submissions)
    text = told(here.run("submit", "--yes"), 1)
    last = 1000 + made
    assert f"was submitted already, as {last}: `python build_kernel.py submit --ref {last} --wait` asks" in text
    assert here.run("submit", "--ref", "1001", "--wait", "--poll", "0").returncode == 0
    assert len(server.submissions) == made


def test_a_submission_whose_answer_is_lost_may_be_there(here: Here) -> None:
    here.server.lost_answers = True
    text = told(here.run("submit", "--yes"), 1)
    assert len(here.server.submissions) == 1 and "whether it was submitted is not known" in text
    assert "submit --ref NUMBER --wait" in text
    here.server.lost_answers = False
    text = told(here.run("submit", "--yes"), 1)
    assert len(here.server.submissions) == 1 and "may have been submitted already" in text
    record = here.project.out / "runs" / "submissions.json"
    assert [entry["ref"] for entry in json.loads(record.read_text(encoding="utf-8"))] == [None]
    assert here.run("submit", "--yes", "--again").returncode == 0 and len(here.server.submissions) == 2
    record.write_text('[{"kernel": 1}]', encoding="utf-8")
    assert "submissions.json, which says what was submitted, cannot be read" in told(here.run("submit", "--yes"), 1)


def test_a_submission_that_is_none(here: Here) -> None:
    for words in (["--wait"], []):
        assert "Kaggle shows you no submission 77" in told(here.run("submit", "--ref", "77", *words), 2)
    here.server.unseen_submissions = 3  # a new one takes its time
    done = here.run("submit", "--yes", "--wait", "--poll", "0")
    assert done.returncode == 0 and "submission 1001: not shown yet" in done.stdout
    here.server.unseen_submissions = 10**6
    text = told(here.run("submit", "--yes", "--again", "--wait", "--poll", "0"), 1)
    assert "submission 1002 was made, and Kaggle does not show it: `python build_kernel.py submit --ref 1002" in text


@pytest.mark.parametrize(
    ("error", "to_do"),
    [
        ("Notebook Timeout", "lower `time_limit_hours` in the manifest"),
        ("Notebook Out of Memory", "push with the accelerator that the manifest names, or with fewer members"),
        ("Submission Scoring Error", "`python build_kernel.py fetch{meant}` checks the run's own file"),
    ],
)
def test_a_submission_without_a_score_names_the_one_thing_to_do(here: Here, error: str, to_do: str) -> None:
    here.server.submission_states = [{"status": "ERROR", "errorDescription": error}]
    meant = f" --manifest {here.project.manifest} --out {here.project.out}"
    text = told(here.run("submit", "--yes", "--wait", "--poll", "0"), 1)
    assert f"submission 1001 has no score: {error}: {to_do.format(meant=meant)}" in text
    assert f"{error}: {to_do.format(meant=meant)}" in told(here.run("submit", "--ref", "1001"), 1)


# What was pushed last


def test_the_version_is_known_from_the_moment_it_is_there(here: Here) -> None:
    """A push that cannot compare it, or is not content with it, is no reason to mean the version before."""
    server = here.server
    assert here.push().returncode == 0 and here.record["version"] == 3 and here.record["compared"]
    server.failures = [failing("500", "GetKernel", after="SaveKernel")]
    assert "do not push again" in told(here.push(), 1)
    assert (here.record["version"], here.record["compared"]) == (4, False)
    server.kernels[KERNEL][3].states = ["COMPLETE"]
    assert "version 4: complete" in here.run("status").stdout
    assert "has not compared this version" in told(here.run("submit", "--yes"), 1)
    server.failures = []
    server.kernels[KERNEL][3].request["enableInternet"] = True
    assert "internet is True, not False: do not submit it" in told(here.run("submit", "--yes"), 1)
    assert not server.submissions
    server.kernels[KERNEL][3].request["enableInternet"] = False
    server.kernels[KERNEL][3].outputs = server.kernels[KERNEL][0].outputs
    assert here.run("submit", "--yes").returncode == 0 and here.record["compared"]
    assert [request["kernelVersion"] for request in server.submissions] == [4]
    # A version with something wrong is the last one as well.
    server.changes = {"ref": "ada/my-cell-kernel-2"}
    assert "Kaggle has named the kernel ada/my-cell-kernel-2" in told(here.push(), 1)
    assert (here.record["kernel"], here.record["version"]) == ("ada/my-cell-kernel-2", 1)


def test_a_push_whose_answer_is_lost(here: Here) -> None:
    """Kaggle's last version is meant then, and it is compared before it is submitted."""
    server = here.server
    assert here.push().returncode == 0
    server.failures = [failing("reset", "SaveKernel")]
    told(here.push(), 1)
    assert here.record["version"] is None
    status = here.run("status")
    assert (
        "version 3: " in status.stdout and "the answer to the last push was lost: version 3 is meant" in status.stderr
    )
    server.failures = [failing("409", "SaveKernel")]  # which is an answer: nothing was made
    told(here.push(), 1)
    assert here.record["version"] is None
    server.failures = []
    server.kernels[KERNEL][-1].states = ["COMPLETE"]
    server.kernels[KERNEL][-1].request["text"] = "print()"
    assert "the script is another one" in told(here.run("submit", "--yes"), 1) and not server.submissions
    assert here.push().returncode == 0 and here.record["version"] == 4
    server.failures = [failing("400", "SaveKernel")]
    told(here.push(), 1)
    assert (here.record["version"], here.record["compared"]) == (4, True)


DAMAGED_NOTES = [
    "",
    "{",
    "[]",
    "null",
    "3",
    "{}",
    '{"kernel": 1}',
    '{"kernel": "K", "version": "x", "url": "", "sha256": ""}',
    '{"kernel": "K", "version": -1, "url": "", "sha256": ""}',
    '{"kernel": "K", "version": 1.5, "url": "", "sha256": ""}',
    '{"kernel": "K", "version": true, "url": "", "sha256": ""}',
    '{"kernel": "K", "version": 1, "url": "", "sha256": "", "meant": []}',
    "[" * 100_000,
    "\ud800",
]


def test_a_damaged_note_is_told_and_replaced_by_a_push(here: Here) -> None:
    note = here.project.out / "pushed.json"
    for text in DAMAGED_NOTES:
        note.write_bytes(text.replace("K", KERNEL).encode("utf-8", errors="surrogatepass"))
        for command in ("status", "logs", "fetch", "submit"):
            assert "pushed.json is damaged" in told(here.run(command), 2)
    assert here.run("status", "--version", "1").returncode == 0
    assert here.push().returncode == 0 and here.record["version"] == 3


def test_notes_of_others_and_of_earlier_states(here: Here) -> None:
    note = here.project.out / "pushed.json"
    old = {"kernel": KERNEL, "version": 1, "url": "u", "sha256": "0"}
    note.write_text(json.dumps(old), encoding="utf-8")
    done = here.run("status")
    assert "version 1: complete" in done.stdout and done.stderr == ""
    note.write_text(json.dumps(old | {"kernel": "bob/my-cell-kernel"}), encoding="utf-8")
    done = here.run("status")
    assert "version 2: complete" in done.stdout and "is of bob/my-cell-kernel: version 2 of" in done.stderr
    note.unlink()
    note.mkdir()
    assert "cannot" in told(here.push(), 2) and not here.server.asked("SaveKernel")


def test_a_kernel_of_the_same_name_that_is_another_one(here: Here) -> None:
    """Neither was it pushed from here, nor is it built by this project: one of a fresh clone's is."""
    server = here.server
    other = "# cells in pictures, read by hundreds"
    server.kernels[KERNEL][-1].request |= {"text": other, "isPrivate": False}
    for words in (["--check"], ["--yes", "--poll", "0"]):
        done = here.run("push", *words)
        assert "1 question(s) above are open" in told(done, 2)
        assert f"Kaggle has a kernel {KERNEL} already (public, version 2)" in done.stdout
        assert not server.asked("SaveKernel") and not server.asked("CreateDataset")
    done = here.push("--accept-questions")
    assert done.returncode == 0 and f"kernel {KERNEL} (private): version 3, run on" in done.stdout, done.stderr
    server.kernels[KERNEL][-1].request["text"] = other  # edited on Kaggle; it was pushed from here
    assert here.run("push", "--check").returncode == 0
    (here.project.out / "pushed.json").unlink()
    assert here.run("push", "--check").returncode == 2
    server.kernels[KERNEL][-1].request["text"] = (here.project.out / "kernel" / "kernel.py").read_text(encoding="utf-8")
    assert here.run("push", "--check").returncode == 0
    server.kernels.clear()
    done = here.run("push", "--check")
    assert done.returncode == 0 and f"kernel {KERNEL} (private): new, run on" in done.stdout


def test_a_dataset_that_would_lose_files_is_asked_about(here: Here) -> None:
    """A version on Kaggle has nothing but what is uploaded for it."""
    server = here.server
    others = {f"fold{number}.pt": b"mine" for number in range(7)}
    server.datasets["ada/my-cell-weights"] = Dataset([others | {"maskrcnn.safetensors": b"old"}])
    for words in (["--check"], ["--yes", "--poll", "0"]):
        done = here.run("push", *words)
        assert "1 question(s) above are open" in told(done, 2)
        assert (
            "ada/my-cell-weights on Kaggle holds fold0.pt, fold1.pt, fold2.pt, fold3.pt, fold4.pt and 2 more, and "
            f"{here.project.out / 'weights-my-cell-weights'} does not: is its new version to be without?"
        ) in done.stdout
        assert not server.asked("StartBlobUpload")
    assert here.push("--accept-questions").returncode == 0
    assert set(server.datasets["ada/my-cell-weights"].versions[-1]) == {"maskrcnn.safetensors", "sha256sums.txt"}
    server.datasets["ada/my-cell-weights"].versions[-1] |= others  # added on Kaggle; nothing is to be sent
    assert here.run("push", "--check").returncode == 0


def test_the_same_again_is_told(here: Here) -> None:
    assert "nothing has changed" not in here.push().stdout
    again = here.push()
    assert "nothing has changed since version 3: this makes another one, which is the same" in again.stdout
    assert again.returncode == 0 and here.record["version"] == 4


# What is about to be pushed


@pytest.mark.parametrize("harm", ["missing", "cut", "none"])
def test_an_incomplete_folder_of_wheels_is_told(here: Here, harm: str) -> None:
    wheels = here.project.out / "wheels"
    for wheel in sorted(wheels.glob("*.whl"))[: 1 if harm != "none" else None]:
        content = wheel.read_bytes()
        wheel.unlink()
        if harm == "cut":
            wheel.write_bytes(content[:-10])
    for words in (["--offline"], ["--yes"]):
        text = told(here.run("push", *words), 2)
        assert "holds not all wheels as the kernel needs them" in text and "build again" in text
    assert not here.server.requests


def test_a_file_on_kaggle_with_another_sum_is_told(here: Here) -> None:
    """Built without the weights at hand, after the manifest's sum was renewed: the kernel would refuse the old file."""
    server = here.server
    assert here.push().returncode == 0
    shutil.rmtree(here.project.out / "weights-my-cell-weights")
    pinned = json.loads(here.project.manifest.read_text(encoding="utf-8"))["members"][0]["sha256"]
    assert here.push().returncode == 0  # the sum that is there is the right one
    old = b"the weights of last week"
    found = hashlib.sha256(old).hexdigest()
    files = {"maskrcnn.safetensors": old, "sha256sums.txt": f"{found}  maskrcnn.safetensors\n".encode()}
    server.datasets["ada/my-cell-weights"].versions.append(files)
    kernels = len(server.asked("SaveKernel"))
    text = told(here.push(), 2)
    assert f"the manifest has the sha256 {pinned}, but on Kaggle" in text
    assert f"maskrcnn.safetensors of ada/my-cell-weights has the sha256 {found}" in text
    assert len(server.asked("SaveKernel")) == kernels
    del files["sha256sums.txt"]  # as in a dataset of strangers: only the kernel can tell
    assert here.push().returncode == 0


TIMES = [
    ({"time_limit_hours": 9.5}, {}, [], "a run of sartorius-cell-instance-segmentation gets 9 h at most", 2),
    ({"time_limit_hours": 24}, {"competition": "other-cells"}, [], "a run of other-cells gets 12 h at most", 2),
    ({"time_limit_hours": 12}, {"competition": "other-cells"}, [], "does other-cells grant a run that much?", 0),
    ({"time_margin_hours": 0}, {}, [], "time_margin_hours is 0, which leaves no time", 0),
    ({}, {}, ["--timeout", "600"], "--timeout ends the run after 0.167 h, and the kernel plans", 0),
    ({}, {}, ["--timeout", "32400"], "", 0),
    ({}, {}, ["--timeout", "600", "--no-run"], "", 0),
]


@pytest.mark.parametrize(("change", "kernel", "words", "text", "accepted"), TIMES)
def test_times_that_kaggle_may_not_grant(
    here: Here, change: dict[str, Any], kernel: dict[str, Any], words: list[str], text: str, accepted: int
) -> None:
    """What is certain is refused, and what may be meant asked about."""
    here.project.edit(change, **kernel)
    here.server.competitions["other-cells"] = True
    folder = here.project.out / "kernel"
    manifest = read_manifest(here.project.manifest)
    built = built_manifest(folder / "kernel.py")
    manifest = dataclasses.replace(manifest, members=built.members)
    (folder / "kernel.py").write_text(built_script(manifest_to_json(manifest)), encoding="utf-8", newline="\n")
    (folder / "kernel-metadata.json").write_text(json.dumps(kernel_metadata(manifest)), encoding="utf-8")
    done = here.push(*words)
    assert done.returncode == (2 if text else 0) and text in done.stdout + done.stderr, done.stderr
    assert not text or not here.server.asked("SaveKernel")
    assert here.push("--accept-questions", *words).returncode == accepted


def test_a_script_that_was_edited_is_told(here: Here) -> None:
    script = here.project.out / "kernel" / "kernel.py"
    script.write_text(script.read_text(encoding="utf-8") + "\n# mine\n", encoding="utf-8", newline="\n")
    for words in (["--offline"], ["--yes"]):
        assert "is not what a build gives now, for it was edited" in told(here.run("push", *words), 2)
    assert not here.server.requests


DAMAGED_SCRIPTS = [
    b"",
    b"\0",
    b"\xff\xfe",
    b"MANIFEST_JSON = 3",
    b"MANIFEST_JSON = []",
    b"MANIFEST_JSON = f'{x}'",
    b"MANIFEST_JSON = print()",
    b"MANIFEST_JSON = ''",
    b"MANIFEST_JSON = '[]'",
    b"MANIFEST_JSON = b'{}'",
    b"x = (",
    b"x = " + b"(" * 5000,
    b"x = " + b"-" * 100_000 + b"1",
    b"a, MANIFEST_JSON = 1, 2",
]


def test_a_damaged_script_is_told(here: Here) -> None:
    for content in DAMAGED_SCRIPTS:
        (here.project.out / "kernel" / "kernel.py").write_bytes(content)
        for words in (["--offline"], ["--yes"]):
            assert "build again" in told(here.run("push", *words), 2)
        assert not here.server.requests


def test_the_check_without_network_names_the_wheels_too(here: Here) -> None:
    assert "not checked" not in here.run("push", "--offline").stdout
    shutil.rmtree(here.project.out / "wheels")
    done = here.run("push", "--offline")
    assert done.returncode == 0 and "whether Kaggle has ada/mmdet-pure-python-wheels" in done.stdout
    text = told(here.run("push", "--yes"), 2)
    assert "no dataset ada/mmdet-pure-python-wheels, and the wheels are not at hand: build again" in text


# Results


ODD_SUMMARIES = [
    {"members": None},
    {"members": 3},
    {"images": []},
    {"images": None},
    {"images": "abc"},
    {"failed": ["a"]},
    {"failed": 1},
    {"images_by_type": [1]},
    {"images_by_quality": "all"},
]


def test_an_odd_summary_is_told(here: Here) -> None:
    for summary in ODD_SUMMARIES:
        here.server.kernels[KERNEL][1].outputs["summary.json"] = json.dumps(SUMMARY | summary).encode()
        assert "summary.json is none of ours" in told(here.run("fetch"), 1)


ODD_VALUES = [
    {"cells": []},
    {"seconds": {}},
    {"dtype": None},
    {"peak_memory_gb": "x"},
    {"gpus": 3},
    {"python": ["3"]},
    {"images": {"a": 1, "b": None}},
    {"failed": {"c": [1, "\n"]}},
    {"images_by_type": {"cort": None}},
    {"more": 1},
]


def test_odd_values_of_a_summary_are_shown(here: Here) -> None:
    for summary in ODD_VALUES:
        here.server.kernels[KERNEL][1].outputs["summary.json"] = json.dumps(SUMMARY | summary).encode()
        done = here.run("fetch")
        assert done.returncode == 0 and "submission.csv is valid" in done.stdout, done.stderr


DAMAGED_SUMMARIES = [b"[" * 100_000, b"\xff", b"", b"9" * 5000, b'{"images": "\\ud800"}']


def test_a_damaged_summary_is_told(here: Here) -> None:
    for content in DAMAGED_SUMMARIES:
        tried = here.project.out / "dry-run" / "summary.json"
        tried.parent.mkdir(exist_ok=True)
        tried.write_bytes(content)
        done = here.run("fetch")  # that of a dry run is no reason to refuse the run's
        assert done.returncode == 0 and "note: not compared with what was in the dry run" in done.stderr
        outputs = here.server.kernels[KERNEL][1].outputs
        whole, outputs["summary.json"] = outputs["summary.json"], content
        assert "summary.json" in told(here.run("fetch"), 1)
        outputs["summary.json"] = whole


def test_submit_heeds_what_fetch_has_found(here: Here) -> None:
    server = here.server
    outputs = server.kernels[KERNEL][1].outputs
    whole = dict(outputs)
    for name, content in (
        ("submission.csv", b"id,predicted\na,\nb,\nc,\n"),
        ("summary.json", b"[]"),
        ("submission.csv", None),
    ):
        outputs.clear()
        outputs.update(whole | {name: content} if content is not None else {"summary.json": whole["summary.json"]})
        shutil.rmtree(here.project.out / "runs", ignore_errors=True)
        unseen = told(here.run("submit", "--yes"), 1)  # it looks by itself
        seen = told(here.run("submit", "--yes"), 1)
        assert (
            "nothing was submitted, for `fetch` has found: " in seen and unseen.removeprefix("failed: ").strip() in seen
        )
    assert not server.submissions
    # Of a run that has left none, it is no question of the manifest or of a push.
    text = told(here.run("submit", "--yes", "--unchecked"), 1)
    assert "the run has left no submission.csv: `python build_kernel.py logs` shows why" in text
    outputs.update(whole)
    assert here.run("submit", "--yes", "--unchecked").returncode == 0 and len(server.submissions) == 1
    assert here.run("fetch").returncode == 0 and here.run("submit", "--yes", "--again").returncode == 0
    # What is known of another kernel's run, or not well, is not known of this one's. The other's results stay.
    verdict = here.project.out / "runs" / "2" / "verdict.json"
    verdict.write_text(json.dumps({"kernel": "bob/x", "version": 2, "problem": "none"}), encoding="utf-8")
    assert "holds the results of version 2 of bob/x" in told(here.run("submit", "--yes", "--again"), 2)
    for text in ("{", "[]", '{"kernel": 1}'):
        verdict.write_text(text, encoding="utf-8")
        done = here.run("submit", "--yes", "--again")
        assert done.returncode == 0 and "submission.csv is valid" in done.stdout, done.stderr


def test_a_verdict_does_not_outlive_its_kernel(here: Here) -> None:
    """One that was deleted on the site begins with version 1 again."""
    server = here.server
    outputs = server.kernels.pop(KERNEL)[0].outputs
    server.run_states, server.next_run = ["COMPLETE"], {"outputs": outputs}
    assert here.push().returncode == 0 and here.run("fetch").returncode == 0
    verdict = here.project.out / "runs" / "1" / "verdict.json"
    assert json.loads(verdict.read_text(encoding="utf-8"))["sha256"] == here.record["sha256"]
    note = here.project.out / "pushed.json"
    note.write_text(json.dumps(here.record | {"sha256": "0" * 64}), encoding="utf-8")  # of another script's push
    outputs["submission.csv"] = b"id,predicted\na,\nb,\nc,\n"
    assert "the submission has no cell at all" in told(here.run("submit", "--yes"), 1) and not server.submissions
    outputs["submission.csv"] = SUBMISSION
    assert here.run("fetch").returncode == 0
    known = here.run("submit", "--yes")
    assert known.returncode == 0 and "submission.csv is valid" not in known.stdout
    earlier = json.loads(verdict.read_text(encoding="utf-8"))
    del earlier["sha256"]
    verdict.write_text(json.dumps(earlier), encoding="utf-8")
    done = here.run("submit", "--yes", "--again")
    assert done.returncode == 0 and "submission.csv is valid" in done.stdout


@pytest.mark.parametrize("state", ["COMPLETE", "ERROR"])
def test_the_results_of_another_kernel_are_not_replaced_untold(here: Here, state: str) -> None:
    server, results = here.server, here.project.out / "runs" / "2" / "submission.csv"
    other = [Run(run.request, ["COMPLETE"], "", run.log, dict(run.outputs)) for run in server.kernels[KERNEL]]
    other[1].outputs["submission.csv"] = b"id,predicted\na,7 3\nb,\nc,\n"
    server.kernels["ada/my-other-kernel"] = other
    server.kernels[KERNEL][1].states = [state]
    assert here.run("fetch").returncode == (0 if state == "COMPLETE" else 1)
    here.project.edit({}, id="ada/my-other-kernel", title="My other kernel")
    text = told(here.run("fetch"), 2)
    assert (
        f"{results.parent} holds the results of version 2 of {KERNEL}: `fetch --replace` puts those of version 2 of "
        "ada/my-other-kernel" in text
    )
    assert results.read_bytes() == SUBMISSION
    assert here.run("fetch", "--replace").returncode == 0
    assert results.read_bytes() == other[1].outputs["submission.csv"]
    assert here.run("fetch").returncode == 0  # one's own are


def put_a_file(folder: Path) -> None:
    (folder / "mine.txt").write_text("mine", encoding="utf-8")


def put_a_file_deeper(folder: Path) -> None:
    (folder / "notes").mkdir()
    (folder / "notes" / "mine.txt").write_text("mine", encoding="utf-8")


def change_a_result(folder: Path) -> None:
    (folder / "submission.csv").write_bytes(SUBMISSION + b"d,\n")


def put_a_link(folder: Path) -> None:
    (folder / "mine").symlink_to(folder.parent)


def put_all_by_hand(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    put_a_file(folder)


@pytest.mark.parametrize(
    ("put", "name"),
    [
        (put_a_file, "mine.txt"),
        (put_a_file_deeper, "notes/mine.txt"),
        (change_a_result, "submission.csv"),
        (put_a_link, "mine"),
        (put_all_by_hand, "mine.txt"),
    ],
)
def test_what_a_user_put_among_the_results_is_not_replaced(here: Here, put: Callable[[Path], None], name: str) -> None:
    folder = here.project.out / "runs" / "2"
    here.server.kernels[KERNEL][1].outputs["more/deep.txt"] = b"x"
    assert here.run("fetch").returncode == 0
    put(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for words in (["fetch"], ["fetch", "--replace"]):
        text = told(here.run(*words), 2)
        assert f"{folder} would be replaced as a whole" in text and f"({name}): move that to another folder" in text
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / name).rename(here.project.folder / "moved")
    assert here.run("fetch").returncode == 0
    assert not here.server.submissions and here.run("submit", "--yes").returncode == 0


def test_what_came_from_kaggle_is_replaced_whatever_it_is_now(here: Here) -> None:
    """Also what an earlier state of this project has fetched, whose verdict tells no sums."""
    folder = here.project.out / "runs" / "2"
    outputs = here.server.kernels[KERNEL][1].outputs
    assert here.run("fetch").returncode == 0
    (folder / ".DS_Store").touch()
    (folder / "summary.json").unlink()
    outputs["submission.csv"] = SUBMISSION.replace(b"5 3", b"7 3")
    assert here.run("fetch").returncode == 0
    assert (folder / "submission.csv").read_bytes() == outputs["submission.csv"]
    earlier = {"kernel": KERNEL, "version": 2, "problem": None}
    for text in (json.dumps(earlier), "{", json.dumps(earlier | {"files": 3})):
        (folder / "verdict.json").write_text(text, encoding="utf-8")
        assert here.run("fetch").returncode == 0
    assert json.loads((folder / "verdict.json").read_text(encoding="utf-8"))["files"].keys() == {
        "my-cell-kernel.log", "submission.csv", "summary.json",
    }  # fmt: skip


def test_results_that_were_not_looked_at_to_the_end_are_known_to_be_whose(here: Here) -> None:
    """So another kernel's do not replace them untold, and `submit` looks at them."""
    assert here.run("fetch", "--images", "gone").returncode == 2
    here.project.edit({}, id="ada/my-other-kernel", title="My other kernel")
    here.server.kernels["ada/my-other-kernel"] = here.server.kernels[KERNEL]
    assert f"holds the results of version 2 of {KERNEL}" in told(here.run("fetch"), 2)
    here.project.edit({}, id=KERNEL, title="My cell kernel")
    submitted = here.run("submit", "--yes")
    assert submitted.returncode == 0 and "submission.csv is valid" in submitted.stdout
    runs = here.project.out / "runs"
    (runs / "2").rename(runs / "1")
    text = told(here.run("fetch", "--version", "1"), 2)
    assert f"holds the results of version 2 of {KERNEL}: `fetch --replace` puts those of version 1 of" in text


def test_of_two_that_fetch_the_same_at_once_one_does(here: Here) -> None:
    folder = here.project.out / "runs" / "2"
    folder.mkdir(parents=True)
    with sole_writer(folder):
        assert f"writes {folder}: wait" in told(here.run("fetch"), 2)
        assert here.run("fetch", "--version", "1").returncode == 0
    assert here.run("fetch").returncode == 0


def test_a_version_is_not_compared_while_a_push_goes_on(here: Here) -> None:
    """The push notes another version meanwhile, which that note would replace."""
    here.server.run_states, here.server.next_run = ["COMPLETE"], {"outputs": here.server.kernels[KERNEL][1].outputs}
    assert here.push("--accept-questions").returncode == 0
    note = here.project.out / "pushed.json"
    note.write_text(json.dumps(here.record | {"compared": False}), encoding="utf-8")
    before = note.read_bytes()
    with alone_in(here.project.out):
        assert "builds in" in told(here.run("submit", "--yes"), 2)
    assert note.read_bytes() == before
    assert here.run("submit", "--yes").returncode == 0 and here.record["compared"]


def test_a_push_or_build_beside_a_push_is_refused_until_that_is_over_however(here: Here) -> None:
    project, server = here.project, here.server
    server.failures = [Failure("StartBlobUpload", -1, times=1)]
    paths = ["--manifest", str(project.manifest), "--out", str(project.out)]
    first = subprocess.Popen(
        [sys.executable, str(Path(build_kernel.__file__)), "push", *paths, "--yes", "--accept-questions"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        while not server.asked("StartBlobUpload"):
            assert first.poll() is None, first.communicate()
            threading.Event().wait(0.05)  # `time.sleep` is too short here
        script = (project.out / "kernel" / "kernel.py").stat()
        assert build_kernel.main(paths) == 2
        assert (project.out / "kernel" / "kernel.py").stat() == script
        for words in (["--yes", "--accept-questions"], ["--check"]):
            text = told(here.run("push", *words), 2)
            assert f"another run (its process is {first.pid}) builds in {project.out}, or pushes what is there" in text
        assert len(server.asked("StartBlobUpload")) == 1
        for name, *words in (["push", "--offline"], ["status"], ["fetch"], ["submit", "--yes"]):
            assert here.run(name, *words).returncode == 0, name  # they touch nothing of it
    finally:
        first.kill()
        first.communicate(timeout=60)
    assert here.push("--accept-questions").returncode == 0 and len(server.kernels[KERNEL]) == 3
    assert not (project.out / ".kernel.lock").exists()


def test_a_push_of_nothing_makes_no_folder(here: Here) -> None:
    shutil.rmtree(here.project.out)
    for words in (["--yes"], ["--offline"]):
        assert "build the kernel first" in told(here.run("push", *words), 2)
    assert not here.project.out.exists()


def test_outputs_that_would_leave_their_folder(here: Here) -> None:
    for name in ("../../away.txt", "/away.txt"):
        here.server.kernels[KERNEL][1].outputs[name] = b"x"
        assert "resolves outside" in told(here.run("fetch"), 1)
        del here.server.kernels[KERNEL][1].outputs[name]
    assert not list(here.project.folder.rglob("away.txt"))


def test_a_download_that_is_cut_leaves_what_was_fetched_before(here: Here) -> None:
    assert here.run("fetch").returncode == 0
    before = (here.project.out / "runs" / "2" / "submission.csv").read_bytes()
    here.server.failures = [Failure("download", 200, body=SUBMISSION * 99, content_type="text/csv", whole=False)]
    told(here.run("fetch"), 1)
    assert (here.project.out / "runs" / "2" / "submission.csv").read_bytes() == before
    assert [path.name for path in (here.project.out / "runs").iterdir()] == ["2"]


def test_a_version_that_is_none(here: Here) -> None:
    for command in ("status", "logs", "fetch", "submit"):
        text = told(here.run(command, "--version", "99"), 1)
        assert "version 99 of ada/my-cell-kernel: not there (404): the last version is 2" in text


def test_a_last_version_that_kaggle_does_not_number_is_not_the_first(
    here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, answer = here.server, here.server.answer_GetKernel

    def unnumbered(request: dict[str, Any]) -> dict[str, Any]:
        reply = answer(request)
        del reply["metadata"]["currentVersionNumber"]
        return reply

    monkeypatch.setattr(server, "answer_GetKernel", unnumbered)
    for command in (["status"], ["logs"], ["fetch"], ["submit", "--yes"]):
        text = told(here.run(*command), 1)
        assert f"Kaggle does not tell the number of {KERNEL}'s last version: say by --version N" in text
    assert not server.submissions
    assert here.run("submit", "--yes", "--version", "2").returncode == 0
    assert "version 99 of ada/my-cell-kernel: not there (404): see" in told(here.run("status", "--version", "99"), 1)
    assert f"kernel {KERNEL} (private): a new version, run on" in here.run("push", "--check").stdout
    server.kernels[KERNEL][-1].request["text"] = "print()"
    asked = here.run("push", "--check").stdout
    assert "version unknown), this project" in asked and "is it to become a new version of that one?" in asked


def test_pages_without_end_are_told(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    assert here.push().returncode == 0
    monkeypatch.setattr(
        here.server, "answer_ListDatasetFiles", lambda request: {"datasetFiles": [], "nextPageToken": "2"}
    )
    assert "page 2 comes after itself" in told(here.push(), 1)


def test_pages_of_outputs_without_end_are_told(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def repeat(request: dict[str, Any]) -> dict[str, Any]:
        if len(here.server.asked("ListKernelSessionOutput")) > 9:
            raise Refusal(400, "enough")
        return {"files": [], "log": "", "nextPageToken": "2"}

    monkeypatch.setattr(here.server, "answer_ListKernelSessionOutput", repeat)
    assert "page 2 comes after itself" in told(here.run("fetch"), 1)
    tokens = [request.get("pageToken") for request in here.server.asked("ListKernelSessionOutput")]
    assert tokens[1:] == ["2"]


def test_what_is_changed_of_the_client_does_not_pile_up() -> None:
    class Api:
        def download_file(self) -> None: ...

        def kernels_output(self, page_token: str | None = None) -> int:
            return len(inspect.stack())

    api, depths = Api(), set[int]()
    for _ in range(3):
        client.KaggleClient(api)
        depths.add(api.kernels_output())
    assert len(depths) == 1


# Login


def test_a_login_that_has_expired_is_not_called_none(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_expired")
    text = told(here.run("quota"), 2)
    assert "does not take the token in KAGGLE_API_TOKEN, which is expired" in text and "KGAT_expired" not in text
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    assert "nobody is logged in" in told(here.run("quota"), 2)
    token = here.project.home / ".kaggle" / "access_token"
    token.parent.mkdir()
    token.write_text("KGAT_old", encoding="utf-8")
    text = told(here.run("quota"), 2)
    assert "does not take the token in ~/.kaggle/access_token" in text and "KGAT_old" not in text


def test_the_login_that_is_refused_is_named(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """One beside it may be a good one, which the client does not get to."""
    assert here.run("quota").returncode == 0  # the client is imported, whose home is set then
    home = here.project.home / ".kaggle"
    home.mkdir(exist_ok=True)
    extended = sys.modules["kaggle.api.kaggle_api_extended"]
    monkeypatch.setattr(extended.KaggleApi, "config", str(home / "kaggle.json"))
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    (home / "kaggle.json").write_text(json.dumps({"username": "ada", "key": "rotated-away"}), encoding="utf-8")
    (home / "credentials.json").write_text(
        json.dumps(
            {
                "refresh_token": "r",
                "access_token": here.server.token,
                "access_token_expiration": "2099-01-01T00:00:00+00:00",
                "username": "ada",
                "scopes": [],
            }
        ),
        encoding="utf-8",
    )
    text = told(here.run("quota"), 1)
    assert "does not take the login (401), which is the key in ~/.kaggle/kaggle.json" in text
    assert "take it away first" in text and "rotated-away" not in text
    (home / "kaggle.json").unlink()
    assert here.run("quota").returncode == 0
    here.server.failures = [failing("401", "GetAcceleratorQuotaStatistics", times=1)]
    assert "what `kaggle auth login` keeps in ~/.kaggle/credentials.json" in told(here.run("quota"), 1)
    # A good key beside a token that has expired.
    here.server.key = "good-key"
    (home / "kaggle.json").write_text(json.dumps({"username": "ada", "key": here.server.key}), encoding="utf-8")
    monkeypatch.setenv("KAGGLE_API_TOKEN", "KGAT_expired")
    assert "(401), which is the token in KAGGLE_API_TOKEN: it is expired" in told(here.run("quota"), 1)
    monkeypatch.delenv("KAGGLE_API_TOKEN")
    assert here.run("quota").returncode == 0
    monkeypatch.setenv("KAGGLE_KEY", "old-key")
    assert "(401), which is the key in KAGGLE_KEY: it is expired" in told(here.run("quota"), 1)


@pytest.mark.parametrize("token", ["x" * 5000, "a\tsecret", "\u00e4\u20ac", "not.one", "q q"])
def test_no_token_shows_however_odd_it_is(here: Here, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    text = told(here.run("quota"))
    assert token[:40] not in text
