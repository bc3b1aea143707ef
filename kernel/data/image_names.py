"""By what name an image is known: its file's, whatever a table, a program or a system has made of it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from kernel.errors import InputError
from kernel.images.listing import IMAGE_SUFFIXES

#: Folders that say no more than that images are in them, in lower case: no part of a name.
IMAGE_FOLDERS = frozenset({"image", "images", "img", "imgs"})


def composed(text: str) -> str:
    """Text in Unicode's composed form (NFC), in which it is compared.

    macOS decomposes names of files (an e and an accent), annotation tools compose them.
    """
    return unicodedata.normalize("NFC", text)


def last_part(path_text: str) -> str:
    """The file's name at the end of a path as any system writes it, composed, without blanks around it."""
    return path_parts(path_text)[-1].strip()


def path_parts(path_text: str) -> list[str]:
    """The parts of a path as any system writes it, composed."""
    return composed(path_text).replace("\\", "/").split("/")


def images_by_name(
    paths: Iterable[Path], folders_of: Callable[[Path], Sequence[str]] = lambda path: ()
) -> dict[str, Path]:
    """Image files by the name that they are known by: without ending, composed.

    Args:
        paths: of the images.
        folders_of: the folders, composed, that tell images of one name apart; they stand before it, as in `ctrl_A1`,
            for names are those of files, too.

    Raises:
        InputError: two have the same name.
    """
    paths = list(paths)
    count = Counter(composed(path.stem) for path in paths)
    by_name: dict[str, Path] = {}
    for path in paths:
        stem = composed(path.stem)
        other = by_name.setdefault(stem if count[stem] == 1 else "_".join([*folders_of(path), stem]), path)
        if other is not path:
            raise InputError(f"two images have the same name, {other} and {path}: rename or remove one")
    return by_name


def image_name(text: str) -> str:
    """What is left of an id without a path before and an image's ending behind it."""
    name = Path(last_part(text))
    return name.stem if name.suffix.lower() in IMAGE_SUFFIXES else name.name


def names_with_folders(text: str) -> list[str]:
    """What an image id with a path before it may be called, with all the folders that tell something, then fewer."""
    folders = [part for part in path_parts(text)[:-1] if part.lower() not in IMAGE_FOLDERS]
    return ["_".join([*folders[first:], image_name(text)]) for first in range(len(folders))]


def known_name(text: str, names: Collection[str]) -> str:
    """Which of the images' `names` an image id in a table means.

    The id itself, if there is such a name; else what is left of it without an image's ending, with as many folders
    before it as a name has (ctrl/A1 means ctrl_A1, see `images_by_name`), or without any, or, where a program took the
    ids for numbers, without the .0 that it appended; else the same without the apostrophe that `spreadsheet_cell` puts
    before some; else the id, for a message.
    """
    forms = (text, text.removeprefix("'"))
    placed = [name for written in forms for name in names_with_folders(written)]
    for written in forms:
        bare = image_name(written)
        for known in (written, *placed, bare, bare.removesuffix(".0")):
            if known in names:
                return known
    return text


def ambiguous_ids(texts: Iterable[str], names: Collection[str]) -> dict[str, str]:
    """Why ids in a table do not tell which image they mean, by the name that they have: those of several folders.

    ctrl/A1 and drug/A1 both become A1 where only one plate's images are at hand, and nothing says which one's.
    """
    written: dict[str, dict[tuple[str, ...], str]] = {}
    for text in texts:
        written.setdefault(known_name(text, names), {}).setdefault(folders_of_id(text), text)
    return {
        name: f"the ids {' and '.join(map(repr, list(ids.values())[:2]))} both mean the image {name}: leave out those "
        "of others"
        for name, ids in written.items()
        if len(ids) > 1
    }


def folders_of_id(text: str) -> tuple[str, ...]:
    """The folders in an image id; of one image a table may write abc, abc.png and, for a program, 'abc."""
    return tuple(path_parts(text.strip().removeprefix("'"))[:-1])


def present_form(path: Path) -> Path:
    """The path in the Unicode form in which there is such a file; as it is, where there is none in any."""
    if not str(path).isascii() and not path.exists():
        for form in ("NFC", "NFD"):
            other = Path(unicodedata.normalize(form, str(path)))
            if other.exists():
                return other
    return path
