"""A stub of Kaggle's server on loopback, and the real client run against it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CLIENT = Path(sys.executable).parent / "kaggle"

#: What the server answers, by the last part of the path.
REPLIES = {
    "SaveKernel": {
        "ref": "/code/me/kernel",
        "url": "http://localhost/code/me/kernel",
        "versionNumber": 1,
        "error": "",
        "invalidTags": [],
        "invalidDatasetSources": [],
        "invalidCompetitionSources": [],
        "invalidKernelSources": [],
    },
    "CreateDataset": {"ref": "me/wheels", "url": "http://localhost/datasets/me/wheels", "status": "ok", "error": ""},
}


class StubHandler(BaseHTTPRequestHandler):
    """Records requests; answers like Kaggle, as far as the client asks."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = json.loads(body) if body[:1] == b"{" else {}
        self.server.requests.append((self.path, request))
        name = self.path.rsplit("/", 1)[-1]
        if name == "StartBlobUpload":
            self.answer(200, {"token": "token", "createUrl": "http://localhost/upload"})
        elif name in REPLIES:
            self.answer(200, REPLIES[name])
        else:  # GetDatasetStatus among them: no such dataset yet
            self.answer(404, {"code": 404, "message": "not found"})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answer(200, {})

    def answer(self, status: int, reply: dict[str, Any]) -> None:
        content = json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


class StubServer(ThreadingHTTPServer):
    """A Kaggle of our own."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), StubHandler)
        self.requests: list[tuple[str, dict[str, Any]]] = []


@contextmanager
def running_stub() -> Iterator[StubServer]:
    """A stub that answers until the end of the block."""
    with StubServer() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run_client(server: StubServer, config: Path, *arguments: str) -> str:
    """Run the client against the stub; returns what it prints, for it exits with 0 whatever happens."""
    proxy = f"http://127.0.0.1:{server.server_address[1]}"
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    environment |= {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HTTP_PROXY": proxy, "http_proxy": proxy}
    environment |= {"KAGGLE_USERNAME": "me", "KAGGLE_KEY": "made-up", "KAGGLE_CONFIG_DIR": str(config)}
    done = subprocess.run(
        [str(CLIENT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.stdout + done.stderr
