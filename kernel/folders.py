"""Folders that are written whole or not at all, also where the program is terminated."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from kernel.errors import InputError
from kernel.files import is_of_the_system
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
    """What the project keeps for this user over all its checkouts: below $XDG_CACHE_HOME or ~/.cache.

    Raises:
        InputError: this user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "inside-ensemble"
    except RuntimeError as error:
        raise InputError(
            "this user has no home folder to keep a cache in: name a folder by the environment variable XDG_CACHE_HOME"
        ) from error


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


@dataclass(frozen=True)
class ResultFolder:
    """A folder that is written as a whole, and by what an earlier one is known."""

    writer: str  # who writes it, for messages
    names: Collection[str]  # what it may hold: names, or patterns such as *.whl
    markers: Collection[str]  # of which it holds one

    def holds(self, target: Path) -> bool:
        """Whether the folder `target` is one of these, and holds nothing else."""
        names = [path.name for path in target.iterdir()]
        return any(name in self.markers for name in names) and not self.others(names)

    def others(self, names: Iterable[str]) -> list[str]:
        """Those of the names that it does not have; what systems put into any folder is not among them."""
        return [
            name
            for name in sorted(names)
            if not is_of_the_system(name) and not any(fnmatchcase(name, pattern) for pattern in self.names)
        ]


def refuse_to_replace(
    target: Path, own: ResultFolder, known: Sequence[ResultFolder] = (), *, replace: bool = False
) -> None:
    """Refuse a target that may not be replaced as a whole.

    Args:
        target: a path. A missing or empty folder may be replaced, and an earlier result of the same. What a system
            puts into any folder that it shows does not count.
        own: what is to be written there.
        known: results of others, which are replaced only where `replace` says so.
        replace: whether that was asked for.

    Raises:
        InputError: `target` may not be replaced.
    """
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file, and a folder is to be written there: name another folder")
    names = [path.name for path in target.iterdir() if not is_of_the_system(path.name)]
    if not names or own.holds(target):
        return
    other = next((result for result in known if result.holds(target)), None)
    if other is None:
        raise InputError(
            f"{target} holds other files ({', '.join((own.others(names) or sorted(names))[:5])}), and would be "
            "replaced as a whole: name a new or empty folder"
        )
    if not replace:
        raise InputError(
            f"{target} holds what {other.writer} has written, and would be replaced as a whole: name another folder, "
            "or give --replace"
        )


def refuse_to_lose(read: Iterable[tuple[str, Path]], written: Iterable[Path]) -> None:
    """Refuse to write over what is read: the same file, or something in a folder that is replaced as a whole.

    Paths are compared by what they lead to: relative ones, links and hard links too.

    Args:
        read: files and folders that are read, with the names of their options.
        written: files that are written, and folders that are replaced.

    Raises:
        InputError: one of `read` would be lost.
    """
    places = [(target, target.resolve()) for target in written]
    for name, path in read:
        own = path.resolve()
        for target, place in places:
            if any(place == other or _is_same_file(place, other) for other in (own, *own.parents)):
                raise InputError(
                    f"{name} {path} is read, and would be lost: this command writes {target} anew; name another --out"
                )


def _is_same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # there is none of the two, or it cannot be looked at: then nothing is written there either
        return False


def replace_folder(new: Path, target: Path) -> None:
    """Put the finished folder `new` in `target`'s place; both must lie on one file system. Until then `target` stays.

    `new` keeps its mode: let `Path.mkdir` make it, in a scratch folder, which itself is for its owner only.

    Raises:
        InputError: `target` is a file, or cannot be moved out of the way.
        OSError: `new` cannot be moved; `target` is in its place again.
    """
    if target.exists() and not target.is_dir():
        raise InputError(f"{target} is a file, and a folder is to be written there: move it away")
    target.parent.mkdir(parents=True, exist_ok=True)
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
        try:
            new.rename(target)
        except BaseException:  # on Windows a scanner may have a file of it open; a signal may come just here
            if not target.exists():  # a signal may also come just after the move
                (away / "old").rename(target)
            raise


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
            path.chmod(0o700)
        elif path.stat().st_nlink == 1:  # Windows deletes no read-only file
            path.chmod(0o600)
    shutil.rmtree(folder)
