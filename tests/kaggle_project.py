"""A small kernel that is built, and the commands of build_kernel.py run on it against the stub of Kaggle's server."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaggle_stub import StubServer, client_environment, running_stub

import build_kernel

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "bundle" / "synthetic"
WEIGHTS_DATASET, WHEELS_DATASET = "ada/my-cell-weights", "ada/mmdet-pure-python-wheels"


@dataclass
class Project:
    """A folder with a manifest, its weights, what was built, and the user's home."""

    folder: Path
    server: StubServer
    login: dict[str, str] = field(default_factory=dict)

    @property
    def manifest(self) -> Path:
        return self.folder / "mine.json"

    @property
    def out(self) -> Path:
        return self.folder / "dist"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def edit(self, change: dict[str, Any], **kernel: Any) -> None:
        """Change fields of the manifest, and of its kernel."""
        data = json.loads(self.manifest.read_text(encoding="utf-8")) | change
        data["kernel"] |= kernel
        self.manifest.write_text(json.dumps(data, indent=2), encoding="utf-8")

    def build(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Build, with the weights at hand."""
        return self.run("--weights-dir", str(self.folder / "weights"), *arguments)

    def run(self, *arguments: str, answer: str | None = None, **more: str) -> subprocess.CompletedProcess[str]:
        """Run build_kernel.py; `answer` is what standard input gives, `more` goes into the environment."""
        words = list(arguments)
        at = 1 if words and not words[0].startswith("-") else 0
        if not (words[:1] and words[0] in ("init", "quota")):
            words[at:at] = ["--manifest", str(self.manifest)]
            if words[:1] != ["members"] or len(words) == 3:
                words += ["--out", str(self.out)]
        return subprocess.run(
            [sys.executable, str(ROOT / "build_kernel.py"), *words],
            env=client_environment(self.server, self.home, **self.login) | more,
            cwd=self.folder,
            input=answer or "",
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=300,
            check=False,
        )

    def push(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Push without being asked, quickly."""
        quickly = [] if {"--offline", "--check"} & set(arguments) else ["--yes", "--poll", "0.05"]
        return self.run("push", *quickly, *arguments)


def make_project(folder: Path, server: StubServer, wheels: Path) -> Project:
    """A project of one of the synthetic members, not built yet, whose wheels are there already."""
    server.user = "ada"
    project = Project(folder, server, {"KAGGLE_API_TOKEN": server.token})
    (folder / "weights").mkdir(parents=True)
    shutil.copy(DEMO / "weights" / "maskrcnn.safetensors", folder / "weights" / "maskrcnn.safetensors")
    demo = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))
    data = {
        "kernel": demo["kernel"] | {"id": "ada/my-cell-kernel", "title": "My cell kernel"},
        "wheels_dataset": WHEELS_DATASET,
        "weight_datasets": [WEIGHTS_DATASET],
        "members": demo["members"][:1],
    }
    project.manifest.write_text(json.dumps(data, indent=2), encoding="utf-8")
    copy_wheels(wheels, project.out / "wheels", WHEELS_DATASET)
    return project


def build_project(folder: Path, wheels: Path) -> Path:
    """The folder of such a project, which is built."""
    with running_stub() as server:
        project = make_project(folder, server, wheels)
    words = ["--manifest", str(project.manifest), "--out", str(project.out), "--weights-dir", str(folder / "weights")]
    assert build_kernel.main(words) == 0
    return folder


def copy_wheels(wheels: Path, target: Path, dataset: str) -> None:
    """The wheels for another dataset, without packing them anew."""
    shutil.copytree(wheels, target, copy_function=os.link)
    path = target / "dataset-metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8")) | {"id": dataset}
    path.unlink()  # a link to the original
    path.write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    (target / "sha256sums.txt").unlink(missing_ok=True)
