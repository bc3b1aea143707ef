"""The built script of the synthetic members, and runs of it on small images, for tests that inject faults."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2

import build_kernel
from kernel.data.synthetic.generate import generate_image
from kernel.main import SCORING_RUN_VARIABLE
from kernel.postprocess.submitted import read_submission
from kernel.runtime.journal import read_journal

DEMO = Path(__file__).resolve().parents[1] / "bundle" / "synthetic"
TEST_FOLDER = "competitions/sartorius-cell-instance-segmentation/test"
WEIGHTS_FOLDER = "in-network-ensemble-demo-weights"
WHEELS_FOLDER = "mmdet-pure-python-wheels"
#: For a run as Kaggle scores it.
SCORED = {SCORING_RUN_VARIABLE: "1"}


def build_demo(out: Path, manifest: Path = DEMO / "manifest.json") -> Path:
    """Build a manifest's script, the synthetic members' unless another is given, without wheels; returns the script."""
    assert (
        build_kernel.main(["--manifest", str(manifest), "--out", str(out), "--weights-dir", str(DEMO / "weights")]) == 0
    )
    return out / "kernel" / "kernel.py"


def write_cells(folder: Path, count: int, side: int = 96) -> list[Path]:
    """Write so many small images of cells."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"image{number:04}.png" for number in range(count)]
    for number, path in enumerate(paths):
        kind = ("cort", "shsy5y", "astro")[number % 3]
        path.write_bytes(
            cv2.imencode(".png", generate_image(kind, number, (side, side + 8 * (number % 4))).image)[1].tobytes()
        )
    return paths


@dataclass
class BuiltRun:
    """Where a built script runs: its mounts, its working folder, its folder for temporary files.

    Args:
        script: the built kernel.py.
        home: an empty folder for all of it.
        wheels: the wheels' folder.
    """

    script: Path
    home: Path
    wheels: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs, self.working, self.temporary = self.home / "input", self.home / "working", self.home / "temporary"
        self.images, self.weights = self.inputs / TEST_FOLDER, self.inputs / WEIGHTS_FOLDER
        for folder in (self.working, self.temporary, self.images):
            folder.mkdir(parents=True, exist_ok=True)
        if not self.weights.exists():
            shutil.copytree(DEMO / "weights", self.weights)
            (self.inputs / WHEELS_FOLDER).symlink_to(self.wheels)

    @property
    def submission(self) -> Path:
        return self.working / "submission.csv"

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        given = {"KERNEL_INPUT_ROOT": self.inputs, "KERNEL_WORKING": self.working, "TMPDIR": self.temporary}
        plain = {"KERNEL_DEVICE": "cpu", "KERNEL_PATIENCE": "0", "OMP_NUM_THREADS": "1"}
        texts = {name: str(value) for name, value in given.items()}
        kept = {name: value for name, value in os.environ.items() if name != "KAGGLE_IS_COMPETITION_RERUN"}
        return {**kept, **texts, **plain, **self.variables, **variables}

    def start(
        self, variables: Mapping[str, str] = {}, launcher: Sequence[str] = ("-I",), log: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start the script; its output and errors go to `log`, else to one pipe."""
        target = subprocess.PIPE if log is None else log.open("ab")
        return subprocess.Popen(
            self.start_command(launcher),
            env=self.environment(variables),
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def start_command(self, launcher: Sequence[str] = ("-I",)) -> list[str]:
        return [sys.executable, *launcher, str(self.script)]

    def run(self, variables: Mapping[str, str] = {}) -> tuple[int, str]:
        """Run the script to its end; returns the exit code, and what it wrote."""
        script = self.start(variables)
        told, _ = script.communicate()
        return script.returncode, told

    def with_script(self, change: str) -> None:
        """Put code before the script's last lines: what it defines takes the place of what was there."""
        start, ending = self.script.read_text(encoding="utf-8").rsplit('if __name__ == "__main__":', 1)
        self.script = self.home / "kernel.py"
        self.script.write_text(
            f'{start}{change}\n\n\nif __name__ == "__main__":{ending}', encoding="utf-8", newline="\n"
        )


def wait_for(told: list[str], script: subprocess.Popen[str], text: str, count: int = 1) -> None:
    """Read the script's log until so many lines of it hold a text."""
    assert script.stdout is not None
    for line in script.stdout:
        told.append(line)
        count -= text in line
        if not count:
            return
    raise AssertionError(f"no {text!r} in:\n{''.join(told)}")


def end_of(told: list[str], script: subprocess.Popen[str]) -> tuple[int, str]:
    """Read the log to its end; returns the exit code, and all of the log."""
    told.append(script.communicate()[0])
    return script.returncode, "".join(told)


def done(run: BuiltRun) -> dict[str, int]:
    """How many masks each image has in the submission."""
    return {image_id: len(rles) for image_id, rles in read_submission(run.submission).items()}


def summary_of(run: BuiltRun) -> dict[str, Any]:
    return json.loads((run.working / "summary.json").read_text(encoding="utf-8"))


def journalled(run: BuiltRun) -> set[str]:
    """The images that the run's journal has a result for."""
    records = read_journal(run.working / "journal.log").records
    return {record["image"] for record in records if record["failure"] is None}


def images_done(log: str) -> list[str]:
    """The images that a run has done, by its log."""
    return re.findall(r" INFO image (\w+): ", log)
