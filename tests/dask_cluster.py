"""A dask cluster on this machine: a scheduler and worker processes, as people start them by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from kernel.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
#: Seconds for a process to come up: far more than a busy machine needs.
PATIENCE = 180


@dataclass(frozen=True)
class Job:
    """Stands for an image."""

    name: str


@dataclass(frozen=True)
class Slowly:
    """Stands for the networks: takes its time, writes a file, and has its worker die on the image `deadly`, the first
    `deaths` times."""

    out: Path
    deadly: str = ""
    broken: str = ""
    deaths: int = 1000

    def __call__(self, job: Job) -> str:
        time.sleep(0.05)
        if job.name == self.deadly and len(died := list(self.out.glob("died*"))) < self.deaths:
            (self.out / f"died{len(died)}").touch()
            os._exit(9)
        if job.name == self.broken:
            raise RunError("no networks here")
        (self.out / job.name).write_text(job.name, encoding="utf-8", newline="\n")
        return f"{job.name} by {os.getpid()}"


class Cluster:
    """A scheduler and `count` workers of one thread; their logs are in `folder`, which is their working folder, too.

    Attributes:
        address: of the scheduler.
        workers: the processes.
    """

    def __init__(self, folder: Path, count: int, module_path: Sequence[Path] = (ROOT, ROOT / "tests")):
        self.folder, self.count = folder, count
        path = os.pathsep.join(map(str, module_path))
        self._environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        # Nothing of a cluster here is for other machines.
        self._environment["DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT"] = f"{PATIENCE}s"
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        told = self.folder / "scheduler.json"
        options = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", str(told)]
        self.scheduler = self._start("scheduler", *options)
        deadline = time.monotonic() + PATIENCE
        while not told.is_file() or not told.read_text(encoding="utf-8"):
            assert self.scheduler.poll() is None and time.monotonic() < deadline, self.log("scheduler")
            time.sleep(0.1)
        self.address: str = json.loads(told.read_text(encoding="utf-8"))["address"]
        for number in range(self.count):
            self.add_worker(f"worker{number}")
        return self

    def add_worker(self, name: str) -> None:
        """Start one more worker."""
        options = [self.address, "--host", "127.0.0.1", "--nthreads", "1", "--no-dashboard", "--no-nanny"]
        self.workers.append(self._start("worker", *options, log=name))

    def _start(self, kind: str, *options: str, log: str = "scheduler") -> subprocess.Popen[bytes]:
        with (self.folder / f"{log}.log").open("wb") as stream:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", *options],
                cwd=self.folder, env=self._environment, stdout=stream, stderr=stream,
            )  # fmt: skip

    def log(self, name: str) -> str:
        """What a process has said."""
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
        for process in (*self.workers, self.scheduler):
            process.wait()
