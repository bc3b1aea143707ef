"""The vendored wheels at run time: their lock, their check against it, and their installation without network.

Standard library only: this runs before anything in the wheels can be imported, and bundle/vendor.py, which writes the
wheels by the same lock, runs on a bare Python.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from kernel.errors import InputError, RunError
from kernel.files import file_sha256

#: Modules that must come from the wheels: a copy that was imported before would stay in use.
VENDORED_MODULES = ("mmcv", "mmdet")


@dataclass(frozen=True)
class LockedWheel:
    """One entry of wheels.lock.json."""

    name: str  # the project's name on the package index
    version: str  # the version fetched; a repacked wheel adds a local tag to it
    source: str  # file name on the package index, a wheel or a source archive
    source_sha256: str  # 64 lowercase hexadecimal digits
    wheel: str  # file name of the wheel that is carried along; == source when carried unmodified
    wheel_sha256: str  # 64 lowercase hexadecimal digits


def parse_locked_wheels(data: object, where: str) -> tuple[LockedWheel, ...]:
    """The lock's entries, in its order.

    Args:
        data: the lock's parsed JSON: {"packages": [entry, ...]}.
        where: names the file in messages.

    Raises:
        InputError: a field is missing, unknown or malformed, or two entries have the same name or wheel.
    """
    packages = data.get("packages") if isinstance(data, Mapping) else None
    if not isinstance(packages, list) or not packages:
        raise InputError(f'{where}: expected an object with a non-empty list "packages"; restore the file')
    names = [field.name for field in fields(LockedWheel)]
    locked: list[LockedWheel] = []
    for i, entry in enumerate(packages):
        if not isinstance(entry, Mapping) or sorted(entry) != sorted(names):
            got = sorted(entry) if isinstance(entry, Mapping) else type(entry).__name__
            raise InputError(f"{where}: packages[{i}] must have exactly the fields {names}, and has {got}")
        for name in names:
            value = entry[name]
            if not isinstance(value, str) or not value:
                raise InputError(f"{where}: packages[{i}].{name} must be a non-empty string, and is {value!r}")
            if name.endswith("sha256") and not re.fullmatch(r"[0-9a-f]{64}", value):
                raise InputError(
                    f"{where}: packages[{i}].{name} must be 64 lowercase hexadecimal digits, and is {value!r}"
                )
            if name in ("source", "wheel") and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", value):
                raise InputError(f"{where}: packages[{i}].{name} must be a plain file name, and is {value!r}")
        if not entry["wheel"].endswith(".whl"):
            raise InputError(f"{where}: packages[{i}].wheel must end in .whl, and is {entry['wheel']!r}")
        locked.append(LockedWheel(**entry))
    for what in ("name", "wheel"):
        values = [getattr(wheel, what) for wheel in locked]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise InputError(f"{where}: more than one entry with {what} {', '.join(twice)}; keep one of each")
    return tuple(locked)


def verify_wheels(folder: Path, lock: Sequence[LockedWheel]) -> list[Path]:
    """The paths of the lock's wheels in `folder`, in the lock's order, after checking each one's SHA-256.

    Other files in the folder do not matter.

    Raises:
        InputError: there is no such folder, or wheels are missing or altered, each of which has a line.
    """
    if not folder.is_dir():
        raise InputError(
            f"no folder of wheels at {folder}: write it with `python -m bundle.vendor`, or attach the wheel dataset"
        )
    problems = []
    for wheel in lock:
        path = folder / wheel.wheel
        if not path.is_file():
            problems.append(f"{wheel.wheel}: missing")
            continue
        found = file_sha256(path)
        if found != wheel.wheel_sha256:
            problems.append(f"{wheel.wheel}: expected sha256 {wheel.wheel_sha256}, found {found}")
    if problems:
        raise InputError(
            f"the wheels in {folder} are not those of the lock:\n  "
            + "\n  ".join(problems)
            + "\nbuild them again with `python -m bundle.vendor`, and publish the wheel dataset again if it is one"
        )
    return [folder / wheel.wheel for wheel in lock]


@contextlib.contextmanager
def installed_wheels(folder: Path, lock_json: str) -> Iterator[Path]:
    """Install the wheels of `folder`, which must be those of the lock, for as long as the block lasts.

    Yields:
        The folder in which they are installed.

    Raises:
        InputError: as `verify_wheels` and `install_wheels` do.
        RunError: as `install_wheels` does.
    """
    wheels = verify_wheels(folder, parse_locked_wheels(json.loads(lock_json), "the embedded wheels lock"))
    with tempfile.TemporaryDirectory(prefix="kernel-wheels-") as packages:
        install_wheels(wheels, Path(packages))
        yield Path(packages)


def install_wheels(wheels: Sequence[Path], target: Path) -> None:
    """Install pure wheels into the folder `target`, without network, and put it in front on sys.path.

    pip is preferred, for it checks tags, metadata and RECORD. It ignores the user's configuration (which may name an
    index or a prefix) and dependencies. Where the interpreter has no pip, the wheels are unpacked: a pure wheel is a
    zip file of what goes into site-packages. Nothing is compiled to bytecode ahead, since most of mmdet's modules are
    never imported. Without wheels, `target` is only put on sys.path.

    Raises:
        InputError: mmcv or mmdet was imported from elsewhere before.
        RunError: the installation fails; with pip's output.
    """
    target = target.resolve()
    for name in VENDORED_MODULES:
        origin = getattr(sys.modules.get(name), "__file__", None)
        if name in sys.modules and not (origin and Path(origin).resolve().is_relative_to(target)):
            raise InputError(
                f"{name} was already imported from {origin or 'elsewhere'}; the vendored wheels must be installed "
                "before anything imports it: start a fresh Python"
            )
    target.mkdir(parents=True, exist_ok=True)
    if wheels and not _pip_installs_wheels(wheels, target):
        _unpack_wheels(wheels, target)
    sys.path[:] = [str(target), *(path for path in sys.path if path != str(target))]
    importlib.invalidate_caches()


def _pip_installs_wheels(wheels: Sequence[Path], target: Path) -> bool:
    """Install with pip; returns False if the interpreter has none.

    Looking for pip with importlib.util.find_spec would be shorter, and would break this process: setuptools' hook
    takes it for the start of pip, switches its distutils off, and can then not be imported itself.
    """
    options = ["--isolated", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--no-input", "--quiet"]
    options += ["--disable-pip-version-check", "--no-warn-conflicts", "--upgrade", "--target", str(target)]
    # --isolated makes pip ignore PIP_* variables and the user's file, PIP_CONFIG_FILE all other configuration files.
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    env["PIP_CONFIG_FILE"] = os.devnull
    result = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *map(str, wheels)],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if result.returncode != 0 and result.stdout.strip().endswith("No module named pip"):
        return False
    if result.returncode != 0:
        raise RunError(
            f"pip could not install the vendored wheels into {target} (exit code {result.returncode}):\n"
            f"{result.stdout.strip()}"
        )
    return True


def _unpack_wheels(wheels: Sequence[Path], target: Path) -> None:
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise RunError(f"{wheel} could not be unpacked into {target}: {error}") from error
