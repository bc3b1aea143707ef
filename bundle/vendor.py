"""Write the wheels that the offline kernel installs, and the metadata of the Kaggle dataset that carries them.

    python -m bundle.vendor --out dist/wheels --dataset-id OWNER/SLUG
    python -m bundle.vendor --update-lock      # after a deliberate change of bundle/*.py or of a version

Needs a bare Python 3.11 or later with pip. Each package of wheels.lock.json is fetched by pip from the index that
pip is configured for, checked against the lock, repacked where it must change, and checked again: the same
lock gives the same bytes on every machine. What was fetched once is kept in the user's cache folder.

Two packages change. mmcv-full loses its C++ and CUDA sources and gets mmcv_ops.py as mmcv/_ext.py; mmdet gets
fcn_mask_head.py in the place of its own, which stays beside it. The rest is carried as it came.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath

from bundle.folders import replace_folder, scratch_folder
from bundle.kaggle import DATASET_METADATA_NAME, PLACEHOLDER_OWNER
from kernel.errors import InputError, RunError
from kernel.runtime.files import whole_file
from kernel.runtime.log import LOG
from kernel.runtime.wheels import LockedWheel, file_sha256, parse_locked_wheels

PROJECT = "inside-ensemble"
DEFAULT_DATASET_ID = f"{PLACEHOLDER_OWNER}/mmdet-pure-python-wheels"

BUNDLE_DIR = Path(__file__).parent
LOCK_PATH = BUNDLE_DIR / "wheels.lock.json"

# The oldest time a zip file can hold.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_MASK_HEADS = "mmdet/models/roi_heads/mask_heads"
#: What answers pip in the place of a source archive's own code.
_BUILD_BACKEND = """
from pathlib import Path


class __legacy__:
    @staticmethod
    def prepare_metadata_for_build_wheel(metadata_directory, config_settings=None):
        info = Path(metadata_directory) / "FOLDER"
        info.mkdir()
        (info / "METADATA").write_text(TOLD, encoding="utf-8")
        return info.name
"""


class FetchError(RunError):
    """A package is not in the cache and pip could not fetch it: no network, most often."""


def load_lock(path: Path = LOCK_PATH) -> tuple[LockedWheel, ...]:
    """The locked wheels, in installation order. Raises InputError for a missing or malformed file."""
    return parse_locked_wheels(_read_json(path), str(path))


def build_wheels(
    out: Path, dataset_id: str = DEFAULT_DATASET_ID, lock_path: Path = LOCK_PATH, cache: Path | None = None
) -> list[Path]:
    """Write the lock's wheels and dataset-metadata.json into the folder `out`; return the wheels' paths.

    Everything is made in a folder beside `out` that takes its place at the end: on any error, what was
    at `out` before is still there, whole.

    Args:
        out: the folder; one that exists may hold nothing but an earlier bundle.
        dataset_id: "owner/slug" of the Kaggle dataset.
        lock_path: the lock.
        cache: where fetched files are kept; none: `cache_dir()`.

    Raises:
        InputError: a bad `dataset_id` or lock, a file that is not what the lock says, an `out` that
            holds other files.
        FetchError: a package is not in the cache and pip could not fetch it.
    """
    metadata = dataset_metadata(dataset_id)
    lock = load_lock(lock_path)
    _refuse_foreign_files(out)
    with scratch_folder(out.parent, out.name) as scratch:
        made = scratch / "new"
        made.mkdir()
        for entry in lock:
            path = _make_wheel(entry, fetch(entry, cache or cache_dir()), made)
            if (path.name, file_sha256(path)) != (entry.wheel, entry.wheel_sha256):
                raise InputError(
                    f"{entry.wheel} comes out otherwise than {lock_path} says: expected sha256 {entry.wheel_sha256}, "
                    f"found {path.name} with {file_sha256(path)}. If bundle/*.py was changed on purpose, run "
                    f"`python -m bundle.vendor --update-lock`; otherwise restore the checkout."
                )
        (made / DATASET_METADATA_NAME).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8", newline="\n")
        replace_folder(made, out)
    LOG.info("%d wheels written to %s", len(lock), out)
    return [out / entry.wheel for entry in lock]


def update_lock(lock_path: Path = LOCK_PATH, cache: Path | None = None) -> tuple[LockedWheel, ...]:
    """Write the lock anew for what the sources give now; return its entries.

    Names and versions are the lock's. A source whose hash is in the lock must still have it; for another
    version, edit "version" and set "source" and "source_sha256" to "": what pip fetches is then believed.
    """
    data = _read_json(lock_path)
    packages = data.get("packages") if isinstance(data, Mapping) else None
    if not isinstance(packages, list):
        raise InputError(f'{lock_path}: expected an object with a list "packages"; restore the file.')
    entries: list[LockedWheel] = []
    for package in packages:
        given = package if isinstance(package, Mapping) else {}
        texts = [given.get(name, "") for name in ("name", "version", "source", "source_sha256")]
        if not all(isinstance(text, str) for text in texts) or not all(texts[:2]):
            raise InputError(
                f"{lock_path}: each package needs a name and a version, all fields being text, and one is {package!r}."
            )
        known = LockedWheel(*texts, wheel="", wheel_sha256="")
        with tempfile.TemporaryDirectory() as temporary:
            source = fetch(known, cache or cache_dir())
            entry = replace(known, source=source.name, source_sha256=file_sha256(source))
            wheel = _make_wheel(entry, source, Path(temporary))
            entries.append(replace(entry, wheel=wheel.name, wheel_sha256=file_sha256(wheel)))
    text = json.dumps({"packages": [asdict(entry) for entry in entries]}, indent=2) + "\n"
    parse_locked_wheels(json.loads(text), str(lock_path))
    with whole_file(lock_path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return tuple(entries)


def dataset_metadata(dataset_id: str) -> dict[str, object]:
    """What `kaggle datasets create` wants in dataset-metadata.json. Raises InputError for a bad id."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_-]*)/([a-z0-9](?:[a-z0-9-]{4,48})[a-z0-9])", dataset_id)
    if not match:
        raise InputError(
            f"{dataset_id!r} is no Kaggle dataset. Allowed is owner/slug: your user name, a slash, and 6 to 50 "
            f"small letters, digits and inner hyphens, like {DEFAULT_DATASET_ID}."
        )
    # The slug's limits are the title's, 6 to 50 characters; each package has its own license inside.
    return {
        "id": dataset_id,
        "title": match[2].replace("-", " ").capitalize(),
        "licenses": [{"name": "other"}],
    }


# Fetching


def cache_dir() -> Path:
    """The user's cache of fetched packages: $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / PROJECT / "packages"


def fetch(entry: LockedWheel, cache: Path) -> Path:
    """The package's file as it is on the index, from `cache` or by pip; checked unless `source_sha256` is empty.

    Raises FetchError, or InputError if what pip fetched is not what the lock says, or `cache` cannot be written.
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
            raise FetchError(f"pip fetched {names} for {entry.name} {entry.version}: one file was expected.")
        found = file_sha256(files[0])
        if entry.source_sha256 and (files[0].name, found) != (entry.source, entry.source_sha256):
            raise InputError(
                f"{entry.name} {entry.version} from the package index is not what the lock says: expected "
                f"{entry.source} with sha256 {entry.source_sha256}, found {files[0].name} with {found}. Do not use it; "
                f"check which index pip is configured for (`python -m pip config list`)."
            )
        kept = cache / found / files[0].name
        kept.parent.mkdir(exist_ok=True)
        files[0].replace(kept)
    return kept


def _pip_download(entry: LockedWheel, download: Path, scratch: Path) -> None:
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
        raise InputError(
            f"{entry.name} {entry.version} from the package index is not what the lock says: expected {entry.source} "
            f"with sha256 {entry.source_sha256}. Do not use it; check which index pip is configured for "
            f"(`python -m pip config list`). pip said:\n{output}"
        )
    raise FetchError(
        f"pip could not fetch {entry.name} {entry.version}, and it is not in the cache. Connect to the network (or "
        f"point pip at an index that you reach) and run the command again. pip said:\n{output}"
    )


def _write_build_backend(entry: LockedWheel, folder: Path) -> Path:
    """Write what answers pip when it asks a source archive for its name and version, for PYTHONPATH.

    By itself pip would run the archive's setup.py in setuptools' place, and mmcv-full's fails from Python 3.13 on. So
    nothing of the archive is run.
    """
    package = folder / "setuptools"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("", encoding="utf-8", newline="\n")
    metadata = f"Metadata-Version: 2.1\nName: {entry.name}\nVersion: {entry.version}\n"
    info = f"{entry.name.replace('-', '_')}-{entry.version}.dist-info"
    backend = _BUILD_BACKEND.replace("FOLDER", info).replace("TOLD", repr(metadata))
    (package / "build_meta.py").write_text(backend, encoding="utf-8", newline="\n")
    return folder


# Repacking


def _make_wheel(entry: LockedWheel, source: Path, folder: Path) -> Path:
    repack = _REPACKED.get(entry.name)
    if repack:
        return repack(entry, source, folder)
    return Path(shutil.copyfile(source, folder / source.name))


def _repack_mmcv(entry: LockedWheel, source: Path, folder: Path) -> Path:
    """mmcv-full's source archive as a pure wheel with our operators."""
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                if member.isdir():
                    continue
                _refuse_to_leave(member.name, source)
                if not member.isfile():
                    raise InputError(f"{source} holds {member.name}, which is no plain file. Do not use it.")
                # The first folder of a source archive is name-version.
                name = PurePosixPath(*PurePosixPath(member.name).parts[1:]).as_posix()
                if name in ("LICENSE", "LICENSES.md") or (
                    name.startswith("mmcv/") and not name.startswith("mmcv/ops/csrc/")
                ):
                    file = archive.extractfile(member)
                    assert file is not None  # a plain file has contents
                    contents[name] = file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{source} is no readable source archive: {error}. Delete it and run again.") from error
    version = f"{entry.version}+torchvision"
    info = f"mmcv_full-{version}.dist-info"
    files = {name: data for name, data in contents.items() if name.startswith("mmcv/")}
    if "mmcv/__init__.py" not in files:
        raise InputError(f"{source} holds no package mmcv: expected mmcv-full's source archive.")
    files["mmcv/_ext.py"] = _our_file("mmcv_ops.py")
    for name in ("LICENSE", "LICENSES.md"):
        if name in contents:
            files[f"{info}/{name}"] = contents[name]
    files[f"{info}/METADATA"] = (
        "Metadata-Version: 2.1\n"
        "Name: mmcv-full\n"
        f"Version: {version}\n"
        "Summary: OpenMMLab Computer Vision Foundation, repacked without compiled operators\n"
        "License: Apache-2.0\n"
        "Requires-Python: >=3.7\n"
        "Requires-Dist: addict\n"
        "Requires-Dist: numpy\n"
        "Requires-Dist: packaging\n"
        "Requires-Dist: Pillow\n"
        "Requires-Dist: pyyaml\n"
        "Requires-Dist: yapf\n"
        "\n"
        f"mmcv-full {entry.version} without its C++ and CUDA sources; mmcv/_ext.py, which stands for\n"
        "the compiled module, was added and calls torchvision. No other file was changed.\n"
    ).encode()
    files[f"{info}/WHEEL"] = _wheel_file()
    return write_wheel(folder / f"mmcv_full-{version}-py3-none-any.whl", files)


def _repack_mmdet(entry: LockedWheel, source: Path, folder: Path) -> Path:
    """mmdet's wheel with our mask head in front of its own."""
    old_info = f"mmdet-{entry.version}.dist-info"
    version = f"{entry.version}+ensemble"
    info = f"mmdet-{version}.dist-info"
    files: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(source) as archive:
            for name in archive.namelist():
                # .mim is a copy of the configuration files for another tool, and half of the wheel.
                if name.endswith("/") or name.startswith("mmdet/.mim/"):
                    continue
                _refuse_to_leave(name, source)
                files[name.replace(f"{old_info}/", f"{info}/", 1)] = archive.read(name)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{source} is no readable wheel: {error}. Delete it and run again.") from error
    head = f"{_MASK_HEADS}/fcn_mask_head.py"
    metadata = files.get(f"{info}/METADATA", b"")
    old_version, new_version = f"Version: {entry.version}\n".encode(), f"Version: {version}\n".encode()
    if head not in files or metadata.count(old_version) != 1:
        raise InputError(f"{source} is not the wheel of mmdet {entry.version}: {head} or its version is missing.")
    files[f"{_MASK_HEADS}/mmdet_fcn_mask_head.py"] = files[head]
    files[head] = _our_file("fcn_mask_head.py")
    files[f"{info}/METADATA"] = metadata.replace(old_version, new_version)
    files[f"{info}/WHEEL"] = _wheel_file()
    return write_wheel(folder / f"mmdet-{version}-py3-none-any.whl", files)


_REPACKED: Mapping[str, Callable[[LockedWheel, Path, Path], Path]] = {
    "mmcv-full": _repack_mmcv,
    "mmdet": _repack_mmdet,
}
_FROM_SOURCE = ("mmcv-full",)


def write_wheel(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a wheel whose bytes depend on the names and contents alone, with its RECORD; return `path`.

    `files` maps the paths inside to contents and holds one .dist-info/WHEEL; a RECORD in it is replaced.
    Entries are sorted, of one time and one mode, and stored: a compressed stream would depend on the zlib at hand.
    """
    (info,) = {name.split("/")[0] for name in files if name.endswith(".dist-info/WHEEL")}
    record_name = f"{info}/RECORD"
    contents = {name: data for name, data in sorted(files.items()) if name != record_name}
    record = io.StringIO()
    writer = csv.writer(record, lineterminator="\n")
    for name, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        writer.writerow([name, f"sha256={digest}", len(data)])
    writer.writerow([record_name, "", ""])
    contents[record_name] = record.getvalue().encode()  # last, as the wheel format recommends
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in contents.items():
            member = zipfile.ZipInfo(name, _ZIP_TIME)
            member.create_system = 3  # Unix, also when written on Windows
            member.external_attr = 0o100644 << 16
            archive.writestr(member, data)
    return path


def _wheel_file() -> bytes:
    return f"Wheel-Version: 1.0\nGenerator: {PROJECT}\nRoot-Is-Purelib: true\nTag: py3-none-any\n".encode()


def _our_file(name: str) -> bytes:
    # Read as text, so that a checkout with other line ends gives the same wheel.
    return (BUNDLE_DIR / name).read_text(encoding="utf-8").encode()


def _refuse_to_leave(name: str, source: Path) -> None:
    """Raise InputError for a path in an archive that would be written outside the folder it is unpacked into."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{source} holds {name}, which leads out of the archive. Do not use it.")


# Files


def _read_json(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}. Restore it from the repository.") from error
    except ValueError as error:
        raise InputError(f"{path} is no valid JSON: {error}. Restore it from the repository.") from error


def _refuse_foreign_files(out: Path) -> None:
    """`out` will be replaced as a whole, so it must not hold anything but an earlier bundle."""
    if not out.exists():
        return
    if not out.is_dir():
        raise InputError(f"{out} is a file; the wheels need a folder. Give another --out.")
    names = sorted(path.name for path in out.iterdir())
    foreign = [name for name in names if not name.endswith(".whl") and name != DATASET_METADATA_NAME]
    if foreign:
        raise InputError(
            f"{out} holds other files than wheels ({', '.join(foreign[:5])}) and would be replaced as a whole. "
            f"Give an empty or new folder as --out."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bundle.vendor", description="Write the vendored wheels.")
    parser.add_argument(
        "--out", type=Path, default=Path("dist/wheels"), help="the folder to write (default: %(default)s)"
    )
    parser.add_argument("--dataset-id", default=DEFAULT_DATASET_ID, help="owner/slug (default: %(default)s)")
    parser.add_argument("--lock", type=Path, default=LOCK_PATH, help="another lock file")
    parser.add_argument("--update-lock", action="store_true", help="write the lock anew before building")
    options = parser.parse_args(arguments)
    try:
        if options.update_lock:
            update_lock(options.lock)
        wheels = build_wheels(options.out, options.dataset_id, options.lock)
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except RunError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("".join(f"{wheel}\n" for wheel in [*wheels, options.out / DATASET_METADATA_NAME]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
