"""Files that are written whole or not at all, their checksums, and files that are nobody's."""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

from kernel.errors import InputError, RunError
from kernel.log import printable_name

#: Errors of file systems that lack what is asked for: syncing, rights, renaming over a file.
LACKING = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM)

#: What systems and programs put for themselves into folders that are looked at, in small letters: Finder, Windows'
#: Explorer, network storages with their thumbnails, and LibreOffice, which locks what it shows.
SYSTEM_FILES = (
    ".ds_store", "._*", "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "lost+found",
    "@eadir", ".~lock.*#",
)  # fmt: skip
#: The note of what a command has written, in the folder of its results: it goes where the folder goes.
WRITTEN_NAME = ".written.json"


def is_of_the_system(name: str) -> bool:
    """Whether a file or folder of this name was put where it is by the system that showed it, and is nobody's."""
    return any(fnmatchcase(name.lower(), pattern) for pattern in SYSTEM_FILES)


@contextmanager
def lacking_allowed() -> Iterator[None]:
    """Go on where the block asks for what the file system lacks, and content does not depend on it."""
    try:
        yield
    except OSError as error:
        if error.errno not in LACKING:
            raise


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write into, put in its place at the end; if anything fails, `path` stays as it was.

    A file system that cannot rename over a file has the bytes copied: there, another program may see a part of them.
    Who may read it is what the user's umask says of any new file.

    Raises:
        OSError: the folder is missing or cannot be written, or the disk is full.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"
    temporary.touch(exist_ok=False)  # not by mkstemp, whose file is for its owner only
    try:
        yield temporary
        with temporary.open("r+b") as stream, lacking_allowed():  # Windows syncs only what may be written
            os.fsync(stream.fileno())
        try:
            temporary.replace(path)
        except OSError as error:
            if error.errno not in LACKING:
                raise
            shutil.copyfile(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Delete what killed processes had written of `path` in `whole_file`. For whoever alone writes it.

    Raises:
        OSError: they cannot be deleted.
    """
    for temporary in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 8}.partial"):
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, failure: type[InputError | RunError] = InputError) -> Iterator[None]:
    """Raise an OSError of the block, which writes to `path`, as `failure` with a message; a full disk's as RunError.

    `failure` is InputError for a place that was just chosen, RunError for one that was good when the work began.
    """
    try:
        yield
    except OSError as error:
        wrong = f"cannot write {printable_name(str(path))} ({error.strerror or error})"
        if is_full(error):
            raise RunError(f"{wrong}: free some space, and run the same again") from error
        raise failure(f"{wrong}: choose a folder that can be written") from error


def is_full(error: BaseException) -> bool:
    """Whether an error, or its cause, is that of a disk without room, or of a used up share of it."""
    return any(
        isinstance(each, OSError) and each.errno in (errno.ENOSPC, errno.EDQUOT) for each in (error, error.__cause__)
    )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise an OSError of the block, which reads `path`, as InputError; its cause tells whether it may pass."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {printable_name(str(path))} ({error.strerror or error})") from error


@contextmanager
def written_file(path: Path, failure: type[InputError | RunError] = InputError) -> Iterator[Path]:
    """`whole_file` in a folder that is made if need be, with the messages of `writing`."""
    with writing(path, failure):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            yield temporary


def open_plain(path: Path) -> BinaryIO:
    """Open a file to read its bytes; a pipe or a device, which could make this wait for ever, is none.

    Raises:
        OSError: it cannot be opened, or is no plain file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return file


def free_beside(path: Path, ending: str) -> Path:
    """The first free path `<name>.<ending>`, `<name>.<ending>2`, ...; a link that leads nowhere holds its own."""
    number = 1
    while os.path.lexists(free := path.with_name(f"{path.name}.{ending}{number if number > 1 else ''}")):
        number += 1
    return free


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
    try:
        import fcntl
    except ImportError:  # on Windows
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # a file system without locks
        return False
    return True
