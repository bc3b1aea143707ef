"""A run's folder for temporary files, deleted at its end; what killed runs have left is deleted by the next ones."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from kernel.files import lock_descriptor
from kernel.log import LOG

#: What the names of these folders begin with.
SCRATCH_PREFIX = "kernel-scratch-"
#: Seconds in which an empty folder may be one that another process is about to lock.
NEW_SECONDS = 1.0
#: Another process has the lock of a new folder for a moment only.
LOCKING_SECONDS = 0.005


@contextlib.contextmanager
def scratch_home(working: Path) -> Iterator[Path]:
    """Have all temporary files of this process, and of those it starts, in one new folder while the block lasts.

    The folder is locked. A killed process leaves its folder without a lock, by which the next run knows it: at its
    start, and at its end, for what the killed one had started (pip) may go on writing for a while.

    Args:
        working: a folder for the new one, where the system has none for temporary files.
    """
    try:
        parent = Path(tempfile.gettempdir())
    except FileNotFoundError:
        LOG.warning("no folder for temporary files can be written: they go to %s", working)
        parent = working
    remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=parent))
    lock = locked_folder(folder, NEW_SECONDS)  # another process may look just now whether it is abandoned
    before, variable = tempfile.tempdir, os.environ.get("TMPDIR")
    tempfile.tempdir, os.environ["TMPDIR"] = str(folder), str(folder)
    try:
        yield folder
    finally:
        tempfile.tempdir = before
        if variable is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = variable
        if lock is not None:
            os.close(lock)
        remove_scratch(folder)
        remove_abandoned(parent)


def remove_scratch(folder: Path) -> None:
    """Delete a folder of temporary files as far as that is possible: nothing depends on it."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        LOG.warning("%s could not be deleted", folder)


def remove_abandoned(parent: Path) -> None:
    """Delete what killed runs have left in `parent`: folders of ours that no process has locked."""
    for folder in parent.glob(f"{SCRATCH_PREFIX}*"):
        lock = locked_folder(folder)
        if lock is None:
            continue
        if not is_new(lock):
            shutil.rmtree(folder, ignore_errors=True)
            if not folder.exists():
                LOG.info("deleted %s, which a killed run had left", folder)
        os.close(lock)


def is_new(descriptor: int) -> bool:
    """Whether an open folder is empty, and so young that its process may not have locked it yet."""
    return not os.listdir(descriptor) and 0 <= time.time() - os.fstat(descriptor).st_mtime < NEW_SECONDS


def locked_folder(folder: Path, patience: float = 0.0) -> int | None:
    """Lock a folder until the returned descriptor is closed, or this process ends.

    None: it is locked, and so for `patience` seconds; or not ours, or the system has no such locks.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (OSError, AttributeError):  # Windows opens no folders
        return None
    until = time.monotonic() + patience
    while True:
        try:
            if lock_descriptor(descriptor):
                return descriptor
            break
        except BlockingIOError:
            if time.monotonic() >= until:
                break
        time.sleep(LOCKING_SECONDS)
    os.close(descriptor)
    return None
