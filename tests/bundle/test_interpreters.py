"""Whichever Python builds, the bytes are the same; each that is found on this machine is asked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from interpreters import SOUGHT, SUPPORTED, find_interpreters

from build_kernel import ROOT
from bundle.pythons import BUILTIN_NAMES, STANDARD_MODULES

INTERPRETERS = find_interpreters()


#: Fetches a source archive into a cache, as the build does, from a folder in the place of an index.
FETCH = """
import sys
from pathlib import Path
from bundle.fetch import fetch
from kernel.runtime.wheels import LockedWheel
digest, cache = sys.argv[1:]
print(fetch(LockedWheel("mmcv-full", "1.7.2", "mmcv-full-1.7.2.tar.gz", digest, "", ""), Path(cache)))
"""


def run_python(interpreter: Path | str, *arguments: str, hash_seed: str = "random") -> str:
    """What a bare interpreter says: none of this environment's packages, none of the user's variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment["PYTHONHASHSEED"] = hash_seed
    done = subprocess.run(
        [interpreter, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def built_files(interpreter: Path | str, folder: Path, hash_seed: str) -> dict[str, str]:
    """Build the demo's kernel and its wheels; the digest of each file by its place."""
    manifest = ROOT / "bundle" / "synthetic" / "manifest.json"
    run_python(
        interpreter, "-B", "build_kernel.py", "--manifest", str(manifest), "--out", str(folder), hash_seed=hash_seed
    )
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def files_here(wheels_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """As the Python of this session builds. `wheels_dir`: what they are made of has been fetched."""
    return built_files(sys.executable, tmp_path_factory.mktemp("here"), hash_seed="0")


def interpreter_of(version: str) -> Path:
    if version not in INTERPRETERS:
        pytest.skip(f"no Python {version} on PATH or among pyenv's")
    return INTERPRETERS[version]


@pytest.mark.xdist_group("interpreters")
def test_every_build_has_the_same_bytes(files_here: dict[str, str], tmp_path: Path) -> None:
    assert {"kernel/kernel.py", "kernel/kernel-metadata.json", "wheels/dataset-metadata.json"} <= set(files_here)
    assert built_files(sys.executable, tmp_path / "again", hash_seed="1") == files_here


@pytest.mark.xdist_group("interpreters")
@pytest.mark.parametrize("version", SOUGHT)
def test_every_python_builds_the_same_bytes(version: str, files_here: dict[str, str], tmp_path: Path) -> None:
    assert built_files(interpreter_of(version), tmp_path / "other", hash_seed="2") == files_here


@pytest.mark.parametrize("version", SUPPORTED)
def test_every_python_has_what_a_script_may_use(version: str) -> None:
    code = "import builtins, json, sys; print(json.dumps([dir(builtins), sorted(sys.stdlib_module_names)]))"
    names, modules = json.loads(run_python(interpreter_of(version), "-c", code))
    assert set(names) >= BUILTIN_NAMES
    assert set(modules) >= STANDARD_MODULES


@pytest.mark.parametrize("version", SOUGHT)
def test_every_python_fetches_a_source_archive_and_runs_none_of_it(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmcv-full's setup.py fails from Python 3.13 on; this one fails everywhere."""
    interpreter = interpreter_of(version)
    if subprocess.run([interpreter, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip(f"{interpreter} has no pip")
    archive = tmp_path / "index" / "mmcv-full-1.7.2.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as opened:
        for name, text in (
            ("setup.py", b"raise SystemExit('run')"),
            ("PKG-INFO", b"Name: mmcv-full\nVersion: 1.7.2\n"),
        ):
            member = tarfile.TarInfo(f"mmcv-full-1.7.2/{name}")
            member.size = len(text)
            opened.addfile(member, io.BytesIO(text))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(archive.parent))
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    fetched = Path(run_python(interpreter, "-c", FETCH, digest, str(tmp_path / "cache")).strip())
    assert fetched.read_bytes() == archive.read_bytes()
