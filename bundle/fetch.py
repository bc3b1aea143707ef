"""The vendored packages' files as they are on the package index: from the user's cache, or by pip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kernel.errors import InputError, RunError
from kernel.files import file_sha256
from kernel.folders import scratch_folder, user_cache
from kernel.log import LOG
from kernel.runtime.wheels import LockedWheel

#: Packages that the index has for us as a source archive alone.
_FROM_SOURCE = ("mmcv-full",)
#: What answers pip in the place of a source archive's own code.
_BUILD_BACKEND = """
from pathlib import Path


class __legacy__:
    @staticmethod
    def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
        info = Path(metadata_directory) / "FOLDER"
        info.mkdir()
        (info / "METADATA").write_text(CONTENT, encoding="utf-8")
        return info.name
"""


class FetchError(RunError):
    """A package is not in the cache and pip could not fetch it: no network, most often."""


def cache_dir() -> Path:
    """The user's cache of fetched packages."""
    return user_cache() / "packages"


def fetch(entry: LockedWheel, cache: Path) -> Path:
    """The package's file as it is on the index, from `cache` or by pip; checked unless `source_sha256` is empty.

    Raises:
        FetchError: pip could not fetch it.
        InputError: what pip fetched is not what the lock says, or `cache` cannot be written.
    """
    if entry.source_sha256:
        cached = cache / entry.source_sha256 / entry.source
        if cached.is_file():
            if file_sha256(cached) == entry.source_sha256:
                return cached
            LOG.warning("%s is damaged and is fetched again", cached)
    with scratch_folder(cache, "fetch") as scratch:
        download = scratch / "download"
        download.mkdir()
        LOG.info("fetching %s %s", entry.name, entry.version)
        _pip_download(entry, download, scratch)
        files = sorted(download.iterdir())
        if len(files) != 1:
            names = [file.name for file in files]
            raise FetchError(f"pip fetched {names} for {entry.name} {entry.version}: one file was expected")
        found = file_sha256(files[0])
        if entry.source_sha256 and (files[0].name, found) != (entry.source, entry.source_sha256):
            raise InputError(_other_file(entry, f", found {files[0].name} with {found}"))
        kept = cache / found / files[0].name
        kept.parent.mkdir(exist_ok=True)
        files[0].replace(kept)
    return kept


def _pip_download(entry: LockedWheel, download: Path, scratch: Path) -> None:
    """Have pip fetch one package into `download`; raises as `fetch` does."""
    requirement = f"{entry.name}=={entry.version}"
    if entry.source_sha256:
        # pip then refuses another file before it runs anything of it (a source archive's setup.py).
        requirement += f" --hash=sha256:{entry.source_sha256}"
    requirements = scratch / "requirements.txt"
    requirements.write_text(requirement + "\n", encoding="utf-8", newline="\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--retries", "2"]
    command += ["--disable-pip-version-check", "--dest", str(download), "--requirement", str(requirements)]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if entry.name in _FROM_SOURCE:
        command += ["--no-binary", entry.name, "--no-build-isolation", "--use-pep517"]
        env["PYTHONPATH"] = str(_write_build_backend(entry, scratch / "backend"))
    else:
        command += ["--only-binary", ":all:", "--platform", "any", "--implementation", "py", "--abi", "none"]
        command += ["--python-version", "3.11"]
    result = subprocess.run(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
    )
    if result.returncode == 0:
        return
    output = result.stdout.strip()
    if output.endswith("No module named pip"):
        raise FetchError(
            f"{entry.name} {entry.version} is not in the cache, and this Python has no pip to fetch it: run "
            f"`{sys.executable} -m ensurepip` (on Debian and Ubuntu: apt install python3-pip), or use another Python"
        )
    if "DO NOT MATCH THE HASHES" in output:
        raise InputError(f"{_other_file(entry)}; pip said:\n{output}")
    raise FetchError(
        f"pip could not fetch {entry.name} {entry.version}, and it is not in the cache: connect to the network (or "
        f"point pip at an index that you reach) and run the command again; pip said:\n{output}"
    )


def _other_file(entry: LockedWheel, found: str = "") -> str:
    """The message where the index has another file than the lock says; `found` names it."""
    return (
        f"{entry.name} {entry.version} from the package index is not what the lock says: expected {entry.source} with "
        f"sha256 {entry.source_sha256}{found}; do not use it, and check which index pip is configured for "
        "(`python -m pip config list`)"
    )


def _write_build_backend(entry: LockedWheel, folder: Path) -> Path:
    """Write what answers pip when it asks a source archive for its name and version; returns `folder`, for PYTHONPATH.

    By itself pip would run the archive's setup.py in setuptools' place, and mmcv-full's fails from Python 3.13 on. So
    nothing of the archive is run.
    """
    package = folder / "setuptools"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8", newline="\n")
    metadata = f"Metadata-Version: 2.1\nName: {entry.name}\nVersion: {entry.version}\n"
    info = f"{entry.name.replace('-', '_')}-{entry.version}.dist-info"
    backend = _BUILD_BACKEND.replace("FOLDER", info).replace("CONTENT", repr(metadata))
    (package / "build_meta.py").write_text(backend, encoding="utf-8", newline="\n")
    return folder
