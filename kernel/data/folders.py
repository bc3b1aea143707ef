"""Folders that people keep images in: which files are images, what is passed over, by what name an image is known."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from kernel.errors import InputError
from kernel.runtime.log import LOG

#: File name endings that count as images, in any case.
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")

#: What systems leave in folders for themselves, besides names that begin with a dot; in lower case.
_SYSTEM_NAMES = frozenset(
    {"__macosx", "@eadir", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "#recycle", "lost+found"}
)

#: Kinds of entries that are passed over, for one and for several.
_OTHER_FORMAT = ("of another format", "of other formats")
_SUB_FOLDER = ("sub-folder", "sub-folders")
_FOLDER_LINK = ("link to a folder", "links to folders")
_BROKEN_LINK = ("broken link", "broken links")
_NO_FILE = ("that is no plain file", "that are no plain files")
_UNREADABLE = ("folder that cannot be read", "folders that cannot be read")

#: Names of each kind that are told.
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class FolderContent:
    """What a search found."""

    images: list[Path]  # sorted
    passed_over: dict[tuple[str, str], list[str]]  # names by kind, in the order of the search
    hidden: int  # entries that are hidden or of the system's own: passed over, and worth no word beside images

    def describe(self) -> str:
        """What is in a folder without images, as the end of a message."""
        told = [self._kinds()] if self.passed_over else []
        if self.hidden:
            told.append(f"{self.hidden} hidden")
        return f"it holds {' and '.join(told)}" if told else "it is empty"

    def _kinds(self) -> str:
        """What is passed over: the kinds, how many of each, and the first names."""
        told = []
        for (one, many), names in self.passed_over.items():
            shown = ", ".join(map(printable_name, names[:_NAMES_SHOWN]))
            more = ", ..." if len(names) > _NAMES_SHOWN else ""
            told.append(f"{len(names)} {one if len(names) == 1 else many} ({shown}{more})")
        return ", ".join(told)

    def warn_of_passed_over(self, folder: Path) -> None:
        """Say in one line of the log what of `folder` is not used, if there is anything."""
        count = sum(map(len, self.passed_over.values()))
        if count:
            entries = "1 entry is" if count == 1 else f"{count} entries are"
            LOG.warning("%s: %s passed over: %s", folder, entries, self._kinds())


def search_images(folder: Path, *, below: bool = False) -> FolderContent:
    """The images in a folder, and all else that it holds.

    Links to files are taken, links to folders are not followed, so that no circle of links is walked in. Nothing is
    opened: a pipe does not make this wait.

    Args:
        folder: where to look.
        below: in its sub-folders, too, at any depth.

    Raises:
        InputError: the folder itself cannot be read.
    """
    images: list[Path] = []
    passed_over: dict[tuple[str, str], list[str]] = {}
    hidden = 0

    def pass_over(kind: tuple[str, str], path: Path, ending: str = "") -> None:
        passed_over.setdefault(kind, []).append(path.relative_to(folder).as_posix() + ending)

    def refuse(error: OSError) -> None:
        place = Path(error.filename)
        if place == folder:
            raise InputError(f"Cannot read the folder {folder}: {error.strerror}. Check its permissions.") from error
        pass_over(_UNREADABLE, place, "/")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        seen = [name for name in sorted(folders) if not is_hidden(name)]
        hidden += len(folders) - len(seen)
        folders.clear()
        for name in seen:
            path = Path(parent, name)
            if not below:
                pass_over(_SUB_FOLDER, path, "/")
            elif path.is_symlink():
                pass_over(_FOLDER_LINK, path, "/")
            else:
                folders.append(name)  # what os.walk goes into
        for name in sorted(files):
            path = Path(parent, name)
            if is_hidden(name):
                hidden += 1
            elif not os.path.isfile(path):  # noqa: PTH113 (Path's own raises where a link leads to a closed folder)
                pass_over(_BROKEN_LINK if path.is_symlink() else _NO_FILE, path)
            elif path.suffix.lower() not in IMAGE_SUFFIXES:
                pass_over(_OTHER_FORMAT, path)
            else:
                images.append(path)
    return FolderContent(sorted(images), passed_over, hidden)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a system's own."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def printable_name(name: str) -> str:
    """A file's name for a message of one line: bytes that are no text, and line ends, are written as escapes."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in name
    )


def composed(text: str) -> str:
    """Text in Unicode's composed form (NFC), in which it is compared.

    macOS decomposes names of files (an e and an accent), annotation tools compose them.
    """
    return unicodedata.normalize("NFC", text)


def last_part(path_text: str) -> str:
    """The file's name at the end of a path as any system writes it, composed, without blanks around it."""
    return composed(path_text).replace("\\", "/").rsplit("/", 1)[-1].strip()


def images_by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Image files by the name that they are known by: without ending, composed.

    Raises:
        InputError: two have the same name.
    """
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(composed(path.stem), path)
        if other is not path:
            raise InputError(f"Two images have the same name, {other} and {path}: rename or remove one.")
    return by_name


def known_name(text: str, names: Collection[str]) -> str:
    """Which of the images' `names` an image id in a table means.

    The id itself, if there is such a name; else what is left of it without a path before and an image's ending behind
    it, or, where a program took the ids for numbers, without the .0 that it appended; else the id, for a message.
    """
    name = Path(last_part(text))
    bare = name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name
    return next((known for known in (text, bare, bare.removesuffix(".0")) if known in names), text)


def present_form(path: Path) -> Path:
    """The path in the Unicode form in which there is such a file; as it is, where there is none in any."""
    if not str(path).isascii() and not path.exists():
        for form in ("NFC", "NFD"):
            other = Path(unicodedata.normalize(form, str(path)))
            if other.exists():
                return other
    return path
