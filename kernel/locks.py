"""One writer at a time: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from kernel.errors import InputError
from kernel.files import lock_descriptor, writing

#: Which byte Windows locks: far behind the process's number, which those that do not get the lock read and tell.
_LOCKED_BYTE = 1 << 30
#: Between looks at a lock that is waited for.
WAIT_SECONDS = 0.2


def _try_lock(file: IO[str]) -> bool:
    """Whether this process has the lock now, or the file system has none, and nobody could."""
    try:
        import msvcrt
    except ImportError:  # anywhere but on Windows
        try:
            lock_descriptor(file.fileno())
        except BlockingIOError:
            return False
        return True
    # It locks bytes from where the file stands, which is its end after "a+"; other processes cannot read them.
    os.lseek(file.fileno(), _LOCKED_BYTE, os.SEEK_SET)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except PermissionError:
        return False
    return True


@contextmanager
def sole_writer(target: Path, wait: bool = False, doing: str = "") -> Iterator[None]:
    """Let no other process that asks for the same be in the block: of two runs into one place, the second is refused.

    The lock is a file beside `target` (made in its folder, which must be there), deleted at the end. One that a killed
    process left behind locks nothing. A file system without locks, as some of clusters are, refuses nobody.

    Args:
        target: what is written.
        wait: until the other process is done, however long that takes, in the place of refusing.
        doing: what the other process does, and what to do about it, for the message; empty: it writes `target`.

    Raises:
        InputError: another process is in the block and `wait` is false, the folder cannot be written, or something else
            than a lock lies there.
    """
    path = target.with_name(f".{target.name}.lock")
    while True:
        with _open_lock(path) as file:
            with writing(path):
                is_ours = _try_lock(file)
            if not is_ours and wait:
                time.sleep(WAIT_SECONDS)
                continue
            if not is_ours:
                what = doing or f"writes {target}: wait, or name another"
                raise InputError(f"another run (its process is {_holder(file)}) {what}")
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


def _open_lock(path: Path) -> IO[str]:
    """Open the lock's file, made if need be; what a link there leads to would be emptied by whoever gets the lock.

    Raises:
        InputError: it is a link, has other names, is no plain file, or cannot be opened.
    """
    with writing(path):
        if not path.is_symlink():  # for the message, and for Windows, which cannot refuse to follow one
            file = open(path, "a+", encoding="utf-8", newline="\n", opener=_open_no_link)  # noqa: SIM115 - to return
            facts = os.fstat(file.fileno())
            if stat.S_ISREG(facts.st_mode) and facts.st_nlink < 2:  # 0: its holder deleted it just now
                return file
            file.close()
    raise InputError(f"{path} is no lock, but a link or a device: see what it is, and delete it")


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(20).strip() or "unknown"


def _is_in_place(file: IO[str], path: Path) -> bool:
    """Whether the open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False
