"""Folders that are written whole or not at all, also where the program is terminated."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from kernel.errors import InputError
from kernel.signals import heard_hang_up


def end_on_sigterm() -> None:
    """Let SIGTERM end this process by an exception from now on, so that scratch folders are deleted; SIGHUP as well.

    To be called once, when a program starts. The exit code of a terminated program stays 143, or 129. A SIGHUP that is
    ignored, by nohup, stays so. A SIGINT is heard also where a shell started this in the background, and had it
    ignored.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for heard in (signal.SIGTERM, *heard_hang_up()):
        signal.signal(heard, lambda number, frame: sys.exit(128 + number))


def user_cache() -> Path:
    """What the project keeps for this user over all its checkouts: below $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "inside-ensemble"


@contextmanager
def scratch_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder below `parent` (made if need be) that is deleted afterwards, whatever happened.

    Raises:
        InputError: `parent` cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
    except OSError as error:
        raise InputError(f"cannot write into {parent}: {error.strerror}; choose another folder") from error
    try:
        yield folder
    finally:
        remove_folder(folder)


def refuse_to_replace(target: Path, own: Collection[str], marker: str) -> None:
    """Refuse a target that may not be replaced as a whole: anything but a missing or empty folder or an earlier result.

    Args:
        target: a path.
        own: the names that a result may hold.
        marker: the one of them that shows that it is a result.

    Raises:
        InputError: `target` may not be replaced.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file, and a folder is to be written there: name another folder")
    names = sorted(path.name for path in target.iterdir())
    others = [name for name in names if name not in own]
    if names and (others or marker not in names):
        raise InputError(
            f"{target} holds other files ({', '.join((others or names)[:5])}), and would be replaced as a whole: "
            "name a new or empty folder"
        )


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` in `target`'s place; both must lie on one file system. Until then `target` stays.

    Raises:
        InputError: `target` is a file, or cannot be moved out of the way.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, and a folder is to be written there: move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
    new.chmod(0o755)  # a scratch folder is for its owner only
    if not target.exists():
        new.rename(target)
        return
    with scratch_folder(target.parent, "replaced") as away:
        try:
            target.rename(away / "old")
        except PermissionError as error:  # on Windows also where a program has a file of it open
            raise InputError(
                f"{target} cannot be replaced ({error.strerror}): close the programs that show what is in it, and run "
                "the same again"
            ) from error
        new.rename(target)


def make_read_only(folder: Path) -> None:
    """Take away the right to write the folder and all in it, except files that have other hard links elsewhere."""
    for path in [folder, *folder.rglob("*")]:
        mode = path.stat()
        if path.is_dir() or mode.st_nlink == 1:
            path.chmod(stat.S_IMODE(mode.st_mode) & ~0o222)


def remove_folder(folder: Path) -> None:
    """Delete a folder, even if it is read-only; a missing one is fine."""
    if not folder.exists():
        return
    for path in [folder, *folder.rglob("*")]:
        if path.is_symlink():
            continue
        if path.is_dir():
            path.chmod(0o755)
        elif path.stat().st_nlink == 1:  # Windows deletes no read-only file
            path.chmod(0o644)
    shutil.rmtree(folder)
