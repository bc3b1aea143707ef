"""One writer at a time: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from kernel.errors import InputError
from kernel.files import writing

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

#: Which byte Windows locks: far behind the process's number, which those that do not get the lock read and tell.
_LOCKED_BYTE = 1 << 30


def _try_lock(file: IO[str]) -> bool:
    """Whether this process has the lock now."""
    try:
        if fcntl is not None:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            # It locks bytes from where the file stands, which is its end after "a+"; other processes cannot read them.
            os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        return False
    return True


@contextmanager
def sole_writer(target: Path) -> Iterator[None]:
    """Let no other process that asks for the same be in the block: of two runs into one place, the second is refused.

    The lock is a file beside `target` (made in its folder, which must be there), deleted at the end. One that a killed
    process left behind locks nothing.

    Raises:
        InputError: another process is in the block, or the folder cannot be written.
    """
    path = target.with_name(f".{target.name}.lock")
    while True:
        with writing(path):
            file = path.open("a+", encoding="utf-8", newline="\n")
        with file:
            with writing(path):
                is_ours = _try_lock(file)
            if not is_ours:
                raise InputError(f"another run (its process is {_holder(file)}) writes {target}: wait, or name another")
            if not _is_in_place(file, path):
                continue  # its holder ended and deleted it just now
            with writing(path):
                file.truncate(0)
                file.write(str(os.getpid()))
                file.flush()
            try:
                yield
            finally:
                if os.name != "nt":  # Windows deletes no open file
                    path.unlink(missing_ok=True)
            break
    if os.name == "nt":
        with suppress(OSError):  # another process has opened it since, and is about to write
            path.unlink(missing_ok=True)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(20).strip() or "unknown"


def _is_in_place(file: IO[str], path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
