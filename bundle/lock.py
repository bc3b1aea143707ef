"""wheels.lock.json: which file each vendored package is made of, and which wheel it becomes."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from bundle.fetch import cache_dir, fetch
from bundle.repack import make_wheel
from kernel.errors import InputError
from kernel.files import file_sha256, whole_file
from kernel.runtime.wheels import LockedWheel, parse_locked_wheels
from kernel.text import parse_json, read_any_text

LOCK_PATH = Path(__file__).with_name("wheels.lock.json")


def load_lock(path: Path = LOCK_PATH) -> tuple[LockedWheel, ...]:
    """The locked wheels, in installation order.

    Raises:
        InputError: a missing or malformed file.
    """
    return parse_locked_wheels(_read_json(path), str(path))


def update_lock(path: Path = LOCK_PATH, cache: Path | None = None) -> tuple[LockedWheel, ...]:
    """Write the lock anew for what the sources give now; return its entries.

    Names and versions are the lock's. A source whose hash is in the lock must still have it; for another
    version, edit "version" and set "source" and "source_sha256" to "": what pip fetches is then believed.

    Args:
        path: the lock.
        cache: where fetched files are kept; None: `cache_dir()`.

    Raises:
        InputError: a missing or malformed lock, or a source that is not what the lock says.
        FetchError: a package is not in the cache and pip could not fetch it.
    """
    data = _read_json(path)
    packages = data.get("packages") if isinstance(data, Mapping) else None
    if not isinstance(packages, list):
        raise InputError(f'{path}: expected an object with a list "packages"; restore the file')
    entries: list[LockedWheel] = []
    for package in packages:
        given = package if isinstance(package, Mapping) else {}
        texts = [given.get(name, "") for name in ("name", "version", "source", "source_sha256")]
        if not all(isinstance(text, str) for text in texts) or not all(texts[:2]):
            raise InputError(
                f"{path}: each package needs a name and a version, all fields being text, and one is {package!r}"
            )
        known = LockedWheel(*texts, wheel="", wheel_sha256="")
        with tempfile.TemporaryDirectory() as temporary:
            source = fetch(known, cache or cache_dir())
            entry = replace(known, source=source.name, source_sha256=file_sha256(source))
            wheel = make_wheel(entry, source, Path(temporary))
            entries.append(replace(entry, wheel=wheel.name, wheel_sha256=file_sha256(wheel)))
    text = json.dumps({"packages": [asdict(entry) for entry in entries]}, indent=2) + "\n"
    parse_locked_wheels(json.loads(text), str(path))
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return tuple(entries)


def _read_json(path: Path) -> object:
    try:
        return parse_json(read_any_text(path))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; restore it from the repository") from error
    except ValueError as error:
        raise InputError(f"{path} is no valid JSON: {error}; restore it from the repository") from error
