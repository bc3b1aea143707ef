"""Folders that people keep images in: which files are images, what else there is, and which ones are asked for."""

from __future__ import annotations

import csv
import io
import os
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kernel.errors import InputError
from kernel.files import WRITTEN_NAME, is_of_the_system
from kernel.log import LOG, printable_name
from kernel.text import first_names, read_any_text

#: File name endings that count as images, in any case.
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg")

#: Where a competition says which images it asks for, beside the folder of the images.
SAMPLE_NAME = "sample_submission.csv"

#: Entries that are passed over, by their sort: for one, and for several.
FOLDER_LINK = ("link to a folder", "links to folders")
_OTHER_FORMAT = ("of another format", "of other formats")
_SUB_FOLDER = ("sub-folder", "sub-folders")
RESULT_FOLDER = ("folder of results", "folders of results")
_BROKEN_LINK = ("broken link", "broken links")
_NO_FILE = ("that is no plain file", "that are no plain files")
_NO_TEXT = ("with a name that is no text in UTF-8", "with names that are no text in UTF-8")
_UNREADABLE = ("folder that cannot be read", "folders that cannot be read")

#: (H, W); None of an image that cannot be read, or is not there.
ImageShape = tuple[int, int] | None

#: Names of each sort that a message shows.
_NAMES_SHOWN = 5


@dataclass(frozen=True)
class FolderContent:
    """What a search found."""

    images: list[Path]  # sorted
    passed_over: dict[tuple[str, str], list[str]]  # names by their sort, in the order of the search
    hidden: int  # entries that are hidden or of the system's own: passed over, and worth no word beside images

    def describe(self) -> str:
        """What is in a folder without images, as the end of a message."""
        held = [self._describe_passed_over()] if self.passed_over else []
        if self.hidden:
            held.append(f"{self.hidden} hidden")
        return f"it holds {' and '.join(held)}" if held else "it is empty"

    def _describe_passed_over(self) -> str:
        """What is passed over: how many of each sort, and the first names."""
        sorts = []
        for (one, many), names in self.passed_over.items():
            sorts.append(f"{len(names)} {one if len(names) == 1 else many} ({_first_names(names)})")
        return ", ".join(sorts)

    def warn_of_passed_over(self, folder: Path | str) -> None:
        """Say in one line of the log what of `folder`, or of a pattern, is not used, if there is anything."""
        count = sum(map(len, self.passed_over.values()))
        if count:
            entries = "1 entry is" if count == 1 else f"{count} entries are"
            LOG.warning("%s: %s passed over: %s", folder, entries, self._describe_passed_over())


def search_images(folder: Path, *, below: bool = False, more: Collection[str] = ()) -> FolderContent:
    """The images in a folder, and all else that it holds.

    Links to files are taken, links to folders are not followed, so that no circle of links is walked in. Nothing is
    opened: a pipe does not make this wait.

    Args:
        folder: where to look.
        below: in its sub-folders, too, at any depth; but not in those that hold results, whose pictures are no images.
        more: endings that count besides, in lower case; a folder that ends so is an image as a whole.

    Raises:
        InputError: the folder itself cannot be read.
    """
    images: list[Path] = []
    passed_over: dict[tuple[str, str], list[str]] = {}
    hidden = 0

    def pass_over(sort: tuple[str, str], path: Path, ending: str = "") -> None:
        passed_over.setdefault(sort, []).append(path.relative_to(folder).as_posix() + ending)

    def refuse(error: OSError) -> None:
        place = Path(error.filename)
        if place == folder:
            raise InputError(f"cannot read the folder {folder}: {error.strerror}; check its permissions") from error
        pass_over(_UNREADABLE, place, "/")

    for parent, folders, files in os.walk(folder, onerror=refuse):
        seen = [name for name in sorted(folders) if not is_hidden(name)]
        hidden += len(folders) - len(seen)
        folders.clear()
        for name in seen:
            path = Path(parent, name)
            if path.suffix.lower() in more and is_text(name):
                images.append(path)
            elif not below:
                pass_over(_SUB_FOLDER, path, "/")
            elif path.is_symlink():
                pass_over(FOLDER_LINK, path, "/")
            elif holds_results(path):
                pass_over(RESULT_FOLDER, path, "/")
            else:
                folders.append(name)  # what os.walk goes into
        for name in sorted(files):
            path = Path(parent, name)
            if is_hidden(name):
                hidden += 1
            elif not os.path.isfile(path):  # noqa: PTH113 (Path's own raises where a link leads to a closed folder)
                pass_over(_BROKEN_LINK if path.is_symlink() else _NO_FILE, path)
            elif path.suffix.lower() not in (*IMAGE_SUFFIXES, *more):
                pass_over(_OTHER_FORMAT, path)
            elif not is_text(name):
                pass_over(_NO_TEXT, path)
            else:
                images.append(path)
    return FolderContent(sorted(images), passed_over, hidden)


@dataclass(frozen=True)
class AskedIds:
    """How the ids that a competition asks for differ from those of its images."""

    absent: tuple[str, ...] = ()  # without an image, in the competition's order
    spelled: Mapping[str, str] = field(default_factory=dict)  # by the image's id, where the competition's is another

    def shapes(self, image_shapes: Mapping[str, ImageShape]) -> dict[str, ImageShape]:
        """The shapes of the images by the ids that are asked for; None for those without an image."""
        return {
            self.spelled.get(image_id, image_id): shape for image_id, shape in image_shapes.items()
        } | dict.fromkeys(self.absent)


def asked_ids(sample: Path, image_ids: Collection[str], *, may_be_of_others: bool = False) -> AskedIds:
    """What a competition's sample_submission.csv asks for otherwise than the images' ids say; the log tells.

    An id with an image's ending, or in another form of Unicode, means the image that is called so but for that.
    A file that is not there, or cannot be read, asks for nothing: that is no reason to do without the images.

    Args:
        sample: a table with a column `id`.
        image_ids: those of the images.
        may_be_of_others: pass it over where it asks for none of the images, as one beside those of a training does.
    """
    try:
        if not os.path.isfile(sample):  # noqa: PTH113 (a pipe would make this wait)
            return AskedIds()
        csv.field_size_limit(2**31 - 1)  # its example may be a large cell
        rows = list(csv.reader(io.StringIO(read_any_text(sample), newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        LOG.warning("%s is passed over: it cannot be read (%s)", sample, error)
        return AskedIds()
    head, *rows = [row for row in rows if any(row)] or [[""]]
    columns = [name.strip().lower() for name in head]
    if "id" not in columns:
        named = printable_name(", ".join(head)[:60])
        LOG.warning("%s is passed over: it has no column 'id', but '%s'", sample, named)
        return AskedIds()
    place = columns.index("id")
    known = {unicodedata.normalize("NFC", image_id): image_id for image_id in image_ids}
    fields = [row[place] for row in rows if row[place:] and row[place].strip()]
    # Blanks around a field are the table's, unless a file is called so.
    asked = dict.fromkeys(name if unicodedata.normalize("NFC", name) in known else name.strip() for name in fields)
    meant = {known[form]: name for name in asked if (form := unicodedata.normalize("NFC", name)) in known}
    for name in asked:
        bare = Path(unicodedata.normalize("NFC", name))
        if bare.suffix.lower() in IMAGE_SUFFIXES and bare.stem in known:
            meant.setdefault(known[bare.stem], name)
    if may_be_of_others and not meant:
        return AskedIds()
    there = set(meant.values())
    absent = [name for name in asked if name not in there]
    spelled = {image_id: name for image_id, name in meant.items() if name != image_id}
    if absent:
        LOG.warning(
            "%d of the %d images that %s asks for are not there, and have empty rows: %s",
            len(absent), len(asked), sample.name, _first_names(absent),
        )  # fmt: skip
    unasked = [image_id for image_id in image_ids if image_id not in meant]
    if unasked:
        LOG.warning(
            "%d of the %d images are not asked for by %s, and have rows all the same: %s",
            len(unasked), len(image_ids), sample.name, _first_names(unasked),
        )  # fmt: skip
    if spelled:
        LOG.info("%d ids are written as %s has them: %s", len(spelled), sample.name, _first_names([*spelled.values()]))
    return AskedIds(tuple(absent), spelled)


def holds_results(folder: Path) -> bool:
    """Whether a command has written a folder, by the note in it."""
    return os.path.lexists(folder / WRITTEN_NAME)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or a system's own."""
    return name.startswith(".") or is_of_the_system(name)


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: in one of another encoding Python keeps bytes that cannot."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _first_names(names: list[str]) -> str:
    return first_names(list(map(printable_name, names)), _NAMES_SHOWN)
