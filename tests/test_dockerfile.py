"""The Dockerfile's steps, tried without docker: what it copies is enough, and what it runs works.

torch comes from the environment of the tests, by a file of paths; its download is the one step left out.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from fnmatch import fnmatch
from pathlib import Path

import pytest

from bundle.install import UV

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.xdist_group("script")


def steps() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, and what each is given."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, given) for name, _, given in (line.partition(" ") for line in lines)]


def is_copied(name: str) -> bool:
    """Whether .dockerignore lets a path through: its last pattern that fits decides, for the path or a folder above."""
    copied = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.removeprefix("!")
        parts = name.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        if any(fnmatch(each, pattern) if "/" not in each else each == pattern for each in above) or (
            pattern.startswith("**/") and pattern[3:] in parts
        ):
            copied = line.startswith("!")
    return copied


def test_what_is_copied_is_what_the_package_needs() -> None:
    assert all(map(is_copied, ("kernel/main.py", "bundle/site.py", "README.md", "pyproject.toml", "LICENSE")))
    left_out = ("weights_manifest.json", "dist/wheels/x.whl", "bundle/synthetic/weights/htc.safetensors", ".git/config")
    assert not any(map(is_copied, (*left_out, "tests/conftest.py", "kernel/__pycache__/main.pyc")))


def test_uv_is_the_one_that_the_checkout_installs_by() -> None:
    (install,) = [given for name, given in steps() if name == "RUN" and "uv" in given]
    assert f"pip install {UV} " in install and "--torch-backend=${TORCH}" in install
    assert ("ARG", "TORCH=cpu") in steps()


def test_its_steps_give_a_command_that_runs(tmp_path: Path, wheels_dir: Path) -> None:
    work, data, cache = tmp_path / "work", tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    for path in sorted(ROOT.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and not name.startswith((".venv", "dist", ".git/")) and is_copied(name):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, work / name)
    (cache / "inside-ensemble").mkdir(parents=True)
    shutil.copytree(wheels_dir, cache / "inside-ensemble" / "wheels")  # else they would be fetched

    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8", newline="\n")
    (venv / "bin" / "pip").write_text(
        f'#!/bin/sh\nexec {venv}/bin/python -m pip "$@"\n', encoding="utf-8", newline="\n"
    )
    (venv / "bin" / "pip").chmod(0o755)

    # hatchling is there; a build of its own would fetch it again.
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment = {
        **os.environ, **offline, "PATH": f"{venv}/bin:{os.environ['PATH']}", "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": "",
    }  # fmt: skip
    ran = 0
    for name, given in steps():
        if name == "RUN" and "uv" not in given:
            command = given.replace("/opt/cache", str(cache))
            done = subprocess.run(
                ["sh", "-c", command], cwd=work, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            ran += 1
    assert ran == 2

    (entry,) = [json.loads(given) for name, given in steps() if name == "ENTRYPOINT"]
    for arguments in (["--help"], ["predict", "--help"]):
        done = subprocess.run(
            [*entry, *arguments], cwd=data, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and re.match("usage: inside-ensemble", done.stdout), done.stdout + done.stderr
    assert list((cache / "inside-ensemble" / "site").iterdir())  # mmdet's packages, ready without a network
