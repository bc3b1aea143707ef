"""Files that are written whole or not at all, and their checksums."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel.errors import InputError, RunError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write into, put in its place at the end; if anything fails, `path` stays as it was.

    Raises:
        OSError: the folder is missing or cannot be written, or the disk is full.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as stream:  # Windows syncs only what may be written
            os.fsync(stream.fileno())
        temporary.chmod(0o644)  # mkstemp's file is for its owner only
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, failure: type[InputError | RunError] = InputError) -> Iterator[None]:
    """Raise an OSError of the block, which writes to `path`, as `failure` with a message; a full disk's as RunError.

    `failure` is InputError for a place that was just chosen, RunError for one that was good when the work began.
    """
    try:
        yield
    except OSError as error:
        wrong = f"cannot write {path} ({error.strerror or error})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(f"{wrong}: free some space, and run the same again") from error
        raise failure(f"{wrong}: choose a folder that can be written") from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise an OSError of the block, which reads `path`, as InputError; its cause tells whether it may pass."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error})") from error


@contextmanager
def written_file(path: Path, failure: type[InputError | RunError] = InputError) -> Iterator[Path]:
    """`whole_file` in a folder that is made if need be, with the messages of `writing`."""
    with writing(path, failure):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            yield temporary


def file_sha256(path: Path) -> str:
    """The file's SHA-256 as 64 lowercase hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def lock_descriptor(descriptor: int) -> bool:
    """Lock an open file or folder until its descriptor is closed, or this process ends, however that comes.

    Returns:
        Whether it is locked now; False where the system has no such locks, too.

    Raises:
        BlockingIOError: another process has it.
    """
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    return True
