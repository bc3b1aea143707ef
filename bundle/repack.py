"""From a package's file to the wheel that the kernel installs.

Two packages change. mmcv-full loses its C++ and CUDA sources and gets mmcv_ops.py as mmcv/_ext.py; mmdet gets
fcn_mask_head.py in the place of its own, which stays beside it. The rest is carried as it came.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from kernel.errors import InputError
from kernel.runtime.wheels import LockedWheel

BUNDLE_DIR = Path(__file__).parent
#: The oldest time that a zip file can hold.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_MASK_HEADS = "mmdet/models/roi_heads/mask_heads"
_WHEEL_FILE = b"Wheel-Version: 1.0\nGenerator: inside-ensemble\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_MMCV_METADATA = """\
Metadata-Version: 2.1
Name: mmcv-full
Version: {version}+torchvision
Summary: OpenMMLab Computer Vision Foundation, repacked without compiled operators
License: Apache-2.0
Requires-Python: >=3.7
Requires-Dist: addict
Requires-Dist: numpy
Requires-Dist: packaging
Requires-Dist: Pillow
Requires-Dist: pyyaml
Requires-Dist: yapf

mmcv-full {version} without its C++ and CUDA sources; mmcv/_ext.py, which stands for
the compiled module, was added and calls torchvision. No other file was changed.
"""


def make_wheel(entry: LockedWheel, source: Path, folder: Path) -> Path:
    """Write the wheel of the package's file `source` into `folder`; return its path.

    Raises:
        InputError: `source` cannot be read, or is not the package's.
    """
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
                    raise InputError(f"{source} holds {member.name}, which is no plain file: do not use it")
                # The first folder of a source archive is name-version.
                name = PurePosixPath(*PurePosixPath(member.name).parts[1:]).as_posix()
                if name in ("LICENSE", "LICENSES.md") or (
                    name.startswith("mmcv/") and not name.startswith("mmcv/ops/csrc/")
                ):
                    file = archive.extractfile(member)
                    assert file is not None  # a plain file has contents
                    contents[name] = file.read()
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{source} is no readable source archive: {error}; delete it and run again") from error
    version = f"{entry.version}+torchvision"
    info = f"mmcv_full-{version}.dist-info"
    files = {name: data for name, data in contents.items() if name.startswith("mmcv/")}
    if "mmcv/__init__.py" not in files:
        raise InputError(f"{source} holds no package mmcv: expected mmcv-full's source archive")
    files["mmcv/_ext.py"] = _our_file("mmcv_ops.py")
    for name in ("LICENSE", "LICENSES.md"):
        if name in contents:
            files[f"{info}/{name}"] = contents[name]
    files[f"{info}/METADATA"] = _MMCV_METADATA.format(version=entry.version).encode()
    files[f"{info}/WHEEL"] = _WHEEL_FILE
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
        raise InputError(f"{source} is no readable wheel: {error}; delete it and run again") from error
    head = f"{_MASK_HEADS}/fcn_mask_head.py"
    metadata = files.get(f"{info}/METADATA", b"")
    old_version, new_version = f"Version: {entry.version}\n".encode(), f"Version: {version}\n".encode()
    if head not in files or metadata.count(old_version) != 1:
        raise InputError(f"{source} is not the wheel of mmdet {entry.version}: {head} or its version is missing")
    files[f"{_MASK_HEADS}/mmdet_fcn_mask_head.py"] = files[head]
    files[head] = _our_file("fcn_mask_head.py")
    files[f"{info}/METADATA"] = metadata.replace(old_version, new_version)
    files[f"{info}/WHEEL"] = _WHEEL_FILE
    return write_wheel(folder / f"mmdet-{version}-py3-none-any.whl", files)


_REPACKED: Mapping[str, Callable[[LockedWheel, Path, Path], Path]] = {
    "mmcv-full": _repack_mmcv,
    "mmdet": _repack_mmdet,
}


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


def _our_file(name: str) -> bytes:
    # Read as text, so that a checkout with other line ends gives the same wheel.
    return (BUNDLE_DIR / name).read_text(encoding="utf-8").encode()


def _refuse_to_leave(name: str, source: Path) -> None:
    """Refuse a path in an archive that would be written outside the folder it is unpacked into.

    Raises:
        InputError: `name` is absolute or climbs up.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{source} holds {name}, which leads out of the archive: do not use it")
