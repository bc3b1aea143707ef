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
import shutil
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
from kernel.log import LOG
from kernel.mounts import find_files, is_file, join_paths, walk_paths

#: Modules that must come from the wheels: a copy that was imported before would stay in use.
VENDORED_MODULES = ("mmcv", "mmdet")
#: No wheel of ours is larger. Weights beside renamed wheels, zip files as well, need not be read for their sums.
LARGEST_WHEEL_BYTES = 64 << 20
#: pip takes seconds. One that waits, for a lock or a file system that does not answer, is not waited for.
PIP_SECONDS = 600
#: What the names of the folders begin with in which the wheels are installed for a run.
PACKAGES_PREFIX = "kernel-wheels-"


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
    found = {wheel.wheel: [path for path in (folder / wheel.wheel,) if path.is_file()] for wheel in lock}
    return right_wheels(lock, found, f"in {folder}")


def find_wheels(folders: Sequence[Path], lock: Sequence[LockedWheel]) -> list[Path]:
    """The paths of the lock's wheels in or below some of `folders`, in the lock's order, by their SHA-256.

    A wheel is looked for by its name first, then among all files: a download or an upload may have renamed it.

    Raises:
        InputError: wheels are missing or altered, each of which has a line.
    """
    renamed = [path for folder in folders for path in walk_paths(folder) if may_be_wheel(path)]
    found = {
        wheel.wheel: [path for folder in folders for path in find_files(folder, wheel.wheel)] + renamed
        for wheel in lock
    }
    return right_wheels(lock, found, f"in {join_paths(folders)}")


def may_be_wheel(path: Path) -> bool:
    """Whether a file may be a wheel, whatever it is called: a zip file that is not too large."""
    try:
        return is_file(path) and path.stat().st_size <= LARGEST_WHEEL_BYTES and zipfile.is_zipfile(path)
    except OSError:  # it cannot be opened
        return False


def right_wheels(lock: Sequence[LockedWheel], found: Mapping[str, Sequence[Path]], where: str) -> list[Path]:
    """Of the paths `found` for each wheel's name the first of the right SHA-256, in the lock's order.

    Raises:
        InputError: wheels have no such path; each has a line.
    """
    sums: dict[Path, str] = {}

    def sum_of(path: Path) -> str:
        if path not in sums:
            try:
                sums[path] = file_sha256(path)
            except OSError as error:
                sums[path] = f"nothing ({error.strerror})"
        return sums[path]

    right: list[Path] = []
    problems: list[str] = []
    for wheel in lock:
        paths = found[wheel.wheel]
        named = [path for path in paths if path.name == wheel.wheel]
        match = next((path for path in paths if sum_of(path) == wheel.wheel_sha256), None)
        if match is not None:
            right.append(match)
        elif named:
            problems.append(f"{wheel.wheel}: expected sha256 {wheel.wheel_sha256}, found {sum_of(named[0])}")
        else:
            problems.append(f"{wheel.wheel}: missing")
    if problems:
        raise InputError(
            f"the wheels {where} are not those of the lock:\n  "
            + "\n  ".join(problems)
            + "\nbuild them again with `python -m bundle.vendor`, and publish the wheel dataset again if it is one"
        )
    return right


@contextlib.contextmanager
def installed_wheels(folders: Sequence[Path], lock_json: str, working: Path) -> Iterator[Path]:
    """Install the lock's wheels, which lie in or below `folders`, for as long as the block lasts.

    They go to the system's folder for temporary files, or to `working` where there is none, or no room in it.

    Yields:
        The folder in which they are installed. That it cannot be deleted afterwards is no failure.

    Raises:
        InputError: as `find_wheels` and `install_wheels` do.
        RunError: they can be installed nowhere; with all reasons.
    """
    wheels = find_wheels(folders, parse_locked_wheels(json.loads(lock_json), "the embedded wheels lock"))
    packages = install_somewhere(wheels, working)
    try:
        yield packages
    finally:
        remove_packages(packages)


def install_somewhere(wheels: Sequence[Path], working: Path) -> Path:
    """`install_wheels` into a new folder of the first place that takes it, which is returned.

    Raises:
        InputError: as `install_wheels` does.
        RunError: no place takes them.
    """
    problems: list[str] = []
    for place in (None, working):
        try:
            packages = Path(tempfile.mkdtemp(prefix=PACKAGES_PREFIX, dir=place))
        except OSError as error:
            problems.append(str(error))
        else:
            installed = False
            try:
                install_wheels(wheels, packages)
                installed = True
                return packages
            except (OSError, RunError) as error:
                problems.append(str(error))
            finally:
                if not installed:
                    remove_packages(packages)
        if place is None:
            LOG.warning("there is no place for temporary files: %s; the working folder is tried", problems[-1])
    raise RunError("the vendored wheels can be installed nowhere:\n  " + "\n  ".join(problems))


def remove_packages(packages: Path) -> None:
    """Delete a folder of installed wheels as far as that is possible."""
    shutil.rmtree(packages, ignore_errors=True)
    if packages.exists():
        LOG.warning("%s could not be deleted", packages)


def install_wheels(wheels: Sequence[Path], target: Path) -> None:
    """Install pure wheels into the folder `target`, without network, and put it in front on sys.path.

    pip is preferred, for it checks tags, metadata and RECORD. It ignores the user's configuration (which may name an
    index or a prefix) and dependencies. Where there is no pip, or it fails, the wheels are unpacked: a pure wheel is a
    zip file of what goes into site-packages. Nothing is compiled to bytecode ahead, since most of mmdet's modules are
    never imported. Without wheels, `target` is only put on sys.path.

    Raises:
        InputError: mmcv or mmdet was imported from elsewhere before.
        RunError: pip has failed, and the wheels cannot be unpacked either.
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
    if wheels and not pip_installs_wheels(wheels, target):
        unpack_wheels(wheels, target)
    sys.path[:] = [str(target), *(path for path in sys.path if path != str(target))]
    importlib.invalidate_caches()


def pip_installs_wheels(wheels: Sequence[Path], target: Path) -> bool:
    """Install with pip; returns whether it could. If not, the log says why.

    Looking for pip with importlib.util.find_spec would be shorter, and would break this process: setuptools' hook
    takes it for the start of pip, switches its distutils off, and can then not be imported itself.
    """
    options = ["--isolated", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--no-input", "--quiet"]
    options += ["--disable-pip-version-check", "--no-warn-conflicts", "--upgrade", "--target", str(target)]
    # --isolated makes pip ignore PIP_* variables and the user's file, PIP_CONFIG_FILE all other configuration files.
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    env["PIP_CONFIG_FILE"] = os.devnull
    try:
        result = subprocess.run(
            [sys.executable, "-m", "pip", "install", *options, *map(str, wheels)],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=PIP_SECONDS,
            check=False,
        )
    except (OSError, TypeError, subprocess.TimeoutExpired) as error:  # TypeError: an embedded Python is no program
        LOG.warning("pip cannot be run: %s; the wheels are unpacked instead", error)
        return False
    if result.returncode == 0:
        return True
    said = result.stdout.strip()
    if not said.endswith("No module named pip"):
        reason = said.splitlines()[-1] if said else "it said nothing"
        LOG.warning("pip failed (exit code %d): %s; the wheels are unpacked instead", result.returncode, reason)
    return False


def unpack_wheels(wheels: Sequence[Path], target: Path) -> None:
    """Write what is in the wheels into `target`.

    Raises:
        RunError: a wheel is damaged, or cannot be read, or `target` cannot be written.
    """
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise RunError(f"{wheel} could not be unpacked into {target}: {error}") from error
