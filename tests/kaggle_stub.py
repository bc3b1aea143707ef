"""A stub of Kaggle's server on loopback, and the real client run against it.

It keeps what it is sent: datasets with versions that get ready after a while, kernels with versions whose runs go
through their states, their logs and outputs, and submissions. It fails on demand.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CLIENT = Path(sys.executable).parent / "kaggle"
COMPETITION = "sartorius-cell-instance-segmentation"
USER, KEY = "me", "made-up"


@dataclass
class Failure:
    """What is to go wrong with requests to an endpoint."""

    endpoint: str  # the last part of the path, "upload" for the files themselves, "download" for those of answers
    status: int = 500  # 0: the connection is reset, -1: nothing is said
    message: str = "it failed"
    headers: dict[str, str] = field(default_factory=dict)
    times: int = 10**6  # how often it fails before it goes well
    body: bytes | None = None  # what is answered, instead of the message
    content_type: str = "application/json"
    whole: bool = True  # whether all of the body comes
    after: str = ""  # only once this endpoint is asked


@dataclass
class Dataset:
    """A dataset: its versions, and how its last one gets ready."""

    versions: list[dict[str, bytes]]
    states: list[str] = field(default_factory=lambda: ["READY"])  # each question moves on, up to the last one
    license: str = ""
    title: str = ""
    private: bool = True
    readable: bool = True
    lag: int = 0  # so many downloads still get the version before


@dataclass
class Run:
    """A version of a kernel, and its run."""

    request: dict[str, Any]
    states: list[str] = field(default_factory=lambda: ["QUEUED", "RUNNING", "COMPLETE"])
    message: str = ""
    log: list[str] = field(default_factory=list)
    outputs: dict[str, bytes] = field(default_factory=dict)


class StubHandler(BaseHTTPRequestHandler):
    """Answers like Kaggle, as far as the client asks."""

    server: StubServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = json.loads(body) if body[:1] == b"{" else {}
        name = self.path.rsplit("/", 1)[-1]
        self.server.note(self.path, request, body)
        if self.failed(name):
            return
        if name != "IntrospectToken" and not self.known_user():
            self.refuse(401, "Unauthenticated")
            return
        answer = getattr(self.server, f"answer_{name}", None)
        if answer is None:
            self.refuse(404, "not found")
            return
        try:
            reply = answer(request)
        except Refusal as refusal:
            self.refuse(refusal.status, str(refusal))
            return
        if isinstance(reply, str):  # elsewhere
            self.send_response(302)
            self.send_header("Location", reply)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.answer(200, reply)

    def do_PUT(self) -> None:
        """A file is uploaded, or the rest of one, or the client asks how much has arrived."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.note(self.path, {}, body)
        token = self.path.rsplit("/", 1)[-1]
        place = re.match(r"bytes (\*|\d+-\d+)/(\d+)", self.headers.get("Content-Range", ""))
        if place and place[1] == "*":
            got = len(self.server.blobs[token])
            if got == int(place[2]):
                self.answer(200, {})
            else:
                self.answer(308, {}, {"Range": f"bytes=0-{got - 1}"} if got else {})
            return
        if self.server.partial_uploads > 0:
            self.server.partial_uploads -= 1
            self.server.blobs[token] += body[: len(body) // 2]
            self.answer(503, {})
            return
        if self.failed("upload"):
            return
        self.server.blobs[token] += body
        self.answer(200, {})

    def do_GET(self) -> None:
        self.server.note(self.path, {}, b"")
        if self.failed("download"):
            return
        content = self.server.files.get(self.path.split("localhost", 1)[-1])
        if content is None:
            self.refuse(404, "no such file")
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def failed(self, name: str) -> bool:
        """Fail, if that is asked for."""
        for failure in self.server.failures:
            if failure.after == name:
                failure.after = ""
            if failure.endpoint == name and failure.times > 0 and not failure.after:
                failure.times -= 1
                if failure.status == 0:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                elif failure.status == -1:
                    self.connection.recv(1)  # until the client hangs up
                    self.close_connection = True
                elif failure.body is not None:
                    self.answer_raw(failure)
                else:
                    self.refuse(failure.status, failure.message, failure.headers)
                return True
        return False

    def answer_raw(self, failure: Failure) -> None:
        """Answer something else than Kaggle would."""
        body = failure.body or b""
        self.send_response(failure.status)
        self.send_header("Content-Type", failure.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if failure.whole else body[: len(body) // 2])
        self.close_connection = not failure.whole

    def known_user(self) -> bool:
        """Whether the login header is one that the server knows."""
        scheme, _, value = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Basic":
            return base64.b64decode(value).decode() == f"{self.server.user}:{self.server.key}"
        return scheme == "Bearer" and value == self.server.token

    def refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        self.answer(status, {"code": status, "message": message}, headers)

    def answer(self, status: int, reply: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class Refusal(Exception):
    """An answer that is none."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class StubServer(ThreadingHTTPServer):
    """A Kaggle of our own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.user, self.key, self.token = USER, KEY, "KGAT_made-up-token"
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.bodies: list[bytes] = []
        self.failures: list[Failure] = []
        self.partial_uploads = 0  # so many uploads break off halfway
        self.lost_files: set[str] = set()  # that never arrive in a dataset
        self.competitions = {COMPETITION: True}  # whether the user has accepted the rules
        self.datasets: dict[str, Dataset] = {}
        self.new_states = ["BLOBS_RECEIVED", "READY"]  # what a version that is sent goes through
        self.new_lag = 0  # how often the version before one that is sent is still seen
        self.unseen_pulls = 0  # so often a kernel is not there yet when it is asked for
        self.kernels: dict[str, list[Run]] = {}
        self.run_states = ["QUEUED", "RUNNING", "COMPLETE"]
        self.next_run: dict[str, Any] = {}  # log, outputs, message of the next run
        self.changes: dict[str, Any] = {}  # what the server makes of a kernel's settings
        self.submissions: list[dict[str, Any]] = []
        self.submission_states: list[dict[str, Any]] = [
            {"status": "PENDING"},
            {"status": "COMPLETE", "publicScore": "0.311"},
        ]
        self.lost_answers = False  # whether answers to submissions are
        self.unseen_submissions = 0  # so often one that was made is not there yet
        self.blobs: dict[str, bytes] = {}
        self.blob_names: dict[str, str] = {}
        self.files: dict[str, bytes] = {}

    def note(self, path: str, request: dict[str, Any], body: bytes) -> None:
        """Remember a request."""
        self.requests.append((path, request))
        self.bodies.append(body)

    def asked(self, name: str) -> list[dict[str, Any]]:
        """The requests to an endpoint."""
        return [request for path, request in self.requests if path.endswith(f"/{name}")]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    # Login

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that hang up."""

    def answer_IntrospectToken(self, request: dict[str, Any]) -> dict[str, Any]:
        known = request["token"] == self.token
        return {"active": known, "username": self.user if known else ""}

    # Datasets

    def find_dataset(self, request: dict[str, Any]) -> tuple[str, Dataset]:
        name = f"{request['ownerSlug']}/{request['datasetSlug']}".lower()
        if name not in self.datasets:
            raise Refusal(404, "Dataset not found")
        if not self.datasets[name].readable:
            raise Refusal(403, "Permission 'datasets.get' was denied")
        return name, self.datasets[name]

    def answer_GetDatasetStatus(self, request: dict[str, Any]) -> dict[str, Any]:
        _, dataset = self.find_dataset(request)
        return {"status": next_state(dataset.states)}

    def answer_GetDatasetMetadata(self, request: dict[str, Any]) -> dict[str, Any]:
        _, dataset = self.find_dataset(request)
        return {"info": {"title": dataset.title, "licenses": [{"name": dataset.license or "other"}]}}

    def answer_ListDatasetFiles(self, request: dict[str, Any]) -> dict[str, Any]:
        _, dataset = self.find_dataset(request)
        names = sorted(dataset.versions[-1])
        begin = int(request.get("pageToken") or 0)
        end = begin + 2  # small pages, so that the client has to turn them
        files = [{"name": name, "totalBytes": len(dataset.versions[-1][name])} for name in names[begin:end]]
        return {"datasetFiles": files, "nextPageToken": str(end) if end < len(names) else ""}

    def answer_DownloadDataset(self, request: dict[str, Any]) -> str:
        name, dataset = self.find_dataset(request)
        file = request.get("fileName")
        dataset.lag, lagging = max(0, dataset.lag - 1), dataset.lag > 0 and len(dataset.versions) > 1
        version = dataset.versions[-2 if lagging else -1]
        if not file:
            packed = io.BytesIO()
            with zipfile.ZipFile(packed, "w") as archive:
                for entry, content in version.items():
                    archive.writestr(entry, content)
            self.files[f"/files/{name}.zip"] = packed.getvalue()
            return f"http://localhost/files/{name}.zip"
        if file not in version:
            raise Refusal(404, "File not found")
        self.files[f"/files/{name}/{file}"] = version[file]
        return f"http://localhost/files/{name}/{file}"

    def answer_ListDatasets(self, request: dict[str, Any]) -> dict[str, Any]:
        own = [name for name in self.datasets if name.startswith(f"{self.user.lower()}/")]
        return {"datasets": [{"ref": name} for name in own]}

    def answer_StartBlobUpload(self, request: dict[str, Any]) -> dict[str, Any]:
        if set("&@") & set(request["name"]):
            raise Refusal(400, f"Invalid file name {request['name']}")
        token = f"blob{len(self.blobs)}"
        self.blobs[token] = b""
        self.blob_names[token] = request["name"]
        return {"token": token, "createUrl": f"http://localhost/upload/{token}"}

    def uploaded(self, entries: Sequence[dict[str, Any]]) -> dict[str, bytes]:
        """The files that a request names by their tokens."""
        files = {self.blob_names[entry["token"]]: self.blobs[entry["token"]] for entry in entries}
        return {name: content for name, content in files.items() if name not in self.lost_files}

    def answer_CreateDataset(self, request: dict[str, Any]) -> dict[str, Any]:
        name = f"{request['ownerSlug']}/{request['slug']}".lower()
        if request["ownerSlug"].lower() != self.user.lower():
            raise Refusal(403, "Permission 'datasets.create' was denied")
        self.datasets[name] = Dataset(
            [self.uploaded(request["files"])],
            list(self.new_states),
            request["licenseName"],
            request["title"],
            request["isPrivate"],
        )
        return {"ref": name, "url": f"http://localhost/datasets/{name}", "status": "ok", "error": ""}

    def answer_CreateDatasetVersion(self, request: dict[str, Any]) -> dict[str, Any]:
        name, dataset = self.find_dataset(request)
        dataset.versions.append(self.uploaded(request["body"]["files"]))
        dataset.states, dataset.lag = list(self.new_states), self.new_lag
        return {"ref": name, "url": f"http://localhost/datasets/{name}", "status": "ok", "error": ""}

    # Competitions

    def answer_ListDataFiles(self, request: dict[str, Any]) -> dict[str, Any]:
        self.check_competition(request["competitionName"])
        return {"files": [{"name": "train.csv", "totalBytes": 1}], "nextPageToken": ""}

    def check_competition(self, name: str) -> None:
        if name not in self.competitions:
            raise Refusal(404, "Competition not found")
        if not self.competitions[name]:
            raise Refusal(403, "You must accept this competition's rules before you can do that")

    def answer_CreateCodeSubmission(self, request: dict[str, Any]) -> dict[str, Any]:
        self.check_competition(request["competitionName"])
        run = self.find_run({"userName": request["kernelOwner"], **request}, request.get("kernelVersion"))
        if request["fileName"] not in run.outputs:
            raise Refusal(400, "The kernel has no output file of this name")
        self.submissions.append(request)
        if self.lost_answers:  # it is taken all the same
            raise Refusal(503, "Service unavailable")
        return {"message": "Successfully submitted", "ref": 1000 + len(self.submissions)}

    def answer_GetSubmission(self, request: dict[str, Any]) -> dict[str, Any]:
        if not 1000 < request["ref"] <= 1000 + len(self.submissions):
            raise Refusal(404, "Submission not found")
        if self.unseen_submissions > 0:
            self.unseen_submissions -= 1
            raise Refusal(404, "Submission not found")
        states = self.submission_states
        found = states.pop(0) if len(states) > 1 else states[0]
        return {"ref": request["ref"], **found}

    # Kernels

    def find_run(self, request: dict[str, Any], version: int | None = None) -> Run:
        name = f"{request['userName']}/{request['kernelSlug']}".lower()
        if name not in self.kernels:
            raise Refusal(403, "Permission 'kernels.get' was denied")
        label = request.get("versionLabel") or ""
        number = version or (int(label.removeprefix("v")) if label else len(self.kernels[name]))
        if not 1 <= number <= len(self.kernels[name]):
            raise Refusal(404, "Version not found")
        return self.kernels[name][number - 1]

    def answer_SaveKernel(self, request: dict[str, Any]) -> dict[str, Any]:
        if len(request["text"].encode()) >= 1_000_000:
            raise Refusal(400, "Kernel source exceeds the maximum size")
        reply = {"ref": "", "url": "", "versionNumber": 0, "error": "", "invalidTags": []}
        if request.get("machineShape") not in ("NvidiaTeslaT4", "NvidiaTeslaP100"):
            return reply | {"error": f"Invalid machine shape {request.get('machineShape')}"}
        invalid = {"invalidDatasetSources": [], "invalidCompetitionSources": [], "invalidKernelSources": []}
        kept = dict(request)
        for key, bad, known in (
            ("datasetDataSources", "invalidDatasetSources", self.datasets),
            ("competitionDataSources", "invalidCompetitionSources", self.competitions),
        ):
            invalid[bad] = [source for source in request[key] if source.lower() not in known]
            kept[key] = [source for source in request[key] if source.lower() in known]
        name = (self.changes.get("ref") or request["slug"]).lower()
        kept |= {key: value for key, value in self.changes.items() if key != "ref"}
        runs = self.kernels.setdefault(name, [])
        quick = request.get("kernelExecutionType") == "QUICK_SAVE"
        runs.append(Run(kept, ["COMPLETE"] if quick else list(self.run_states), **self.next_run))
        url = f"http://localhost/code/{name}"
        return reply | invalid | {"ref": f"/code/{name}", "url": url, "versionNumber": len(runs)}

    def answer_GetKernel(self, request: dict[str, Any]) -> dict[str, Any]:
        name = f"{request['userName']}/{request['kernelSlug']}".lower()
        self.unseen_pulls, unseen = max(0, self.unseen_pulls - 1), self.unseen_pulls > 0
        if name not in self.kernels or unseen:
            raise Refusal(404, "Kernel not found")
        saved = self.find_run(request).request
        blob = {"source": saved["text"], "language": "python", "kernelType": "script", "slug": request["kernelSlug"]}
        metadata = {"ref": name, "title": saved["newTitle"], "currentVersionNumber": len(self.kernels[name])}
        metadata |= {"language": "python", "kernelType": "script"}
        for key in (
            "isPrivate", "enableGpu", "enableInternet", "datasetDataSources", "competitionDataSources",
            "kernelDataSources", "modelDataSources", "dockerImage", "machineShape",
        ):  # fmt: skip
            if saved.get(key) is not None:
                metadata[key] = saved[key]
        return {"metadata": metadata, "blob": blob}

    def answer_GetKernelSessionStatus(self, request: dict[str, Any]) -> dict[str, Any]:
        run = self.find_run(request)
        state = next_state(run.states)
        return {"status": state, **({"failureMessage": run.message} if run.message and state == "ERROR" else {})}

    def answer_ListKernelSessionOutput(self, request: dict[str, Any]) -> dict[str, Any]:
        run = self.find_run(request)
        events = [{"stream_name": "stdout", "time": 1.0, "data": f"{line}\n"} for line in run.log]
        files = []
        for name, content in run.outputs.items():
            path = f"/outputs/{request['kernelSlug']}/{name}"
            self.files[path] = content
            files.append({"fileName": name, "url": f"http://localhost{path}"})
        return {"files": files, "log": json.dumps(events) if events else "", "nextPageToken": ""}

    def answer_GetAcceleratorQuotaStatistics(self, request: dict[str, Any]) -> dict[str, Any]:
        gpu = {"timeUsed": "37800s", "totalTimeAllowed": "80000s", "timeReserved": "0s", "minimumTimeAllowed": "0s"}
        return {"quotaRefreshTime": "2026-12-05T00:00:00.000Z", "gpuQuota": gpu}


def next_state(states: list[str]) -> str:
    """The state now; the next question gets the next one, up to the last."""
    return states.pop(0) if len(states) > 1 else states[0]


@contextmanager
def running_stub() -> Iterator[StubServer]:
    """A stub that answers until the end of the block."""
    with StubServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def client_environment(server: StubServer, home: Path, **login: str) -> dict[str, str]:
    """An environment in which the client talks to the stub, with an own home; `login`: variables of the login."""
    hidden = re.compile("proxy|kaggle|^home$|^tmpdir$|^xdg_config", re.IGNORECASE)
    environment = {name: value for name, value in os.environ.items() if not hidden.search(name)}
    (home / "tmp").mkdir(parents=True, exist_ok=True)  # where the client keeps the state of uploads
    return environment | {
        "HOME": str(home),
        "TMPDIR": str(home / "tmp"),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "HTTP_PROXY": server.url,
        "http_proxy": server.url,
        **login,
    }


def run_client(server: StubServer, config: Path, *arguments: str) -> str:
    """Run the client in the folder `config`; returns what it prints, for it exits with 0 whatever happens."""
    environment = client_environment(server, config, KAGGLE_USERNAME=server.user, KAGGLE_KEY=server.key)
    done = subprocess.run(
        [str(CLIENT), *arguments],
        env=environment | {"KAGGLE_CONFIG_DIR": str(config)},
        cwd=config,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr
