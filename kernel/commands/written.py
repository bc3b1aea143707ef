"""What a command has written into a folder, and which files there are others since: the work of somebody, perhaps."""

from __future__ import annotations

import json
from pathlib import Path

from kernel.files import WRITTEN_NAME, is_of_the_system
from kernel.text import parse_json


def file_facts(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and time of the last change in nanoseconds of each file below a folder, by its path there.

    The note itself does not count, nor what systems put into any folder, nor all below that. A missing folder has none.
    """
    found: dict[str, list[int]] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        place = path.relative_to(folder)
        if place != Path(WRITTEN_NAME) and not any(map(is_of_the_system, place.parts)):
            facts = path.stat()
            found[place.as_posix()] = [facts.st_size, facts.st_mtime_ns]
    return found


def note_written(folder: Path) -> None:
    """Note in a folder which files it holds now, for `changed_files`.

    Raises:
        OSError: the note cannot be written.
    """
    (folder / WRITTEN_NAME).write_text(json.dumps(file_facts(folder)) + "\n", encoding="utf-8", newline="\n")


def read_note(folder: Path) -> dict[str, list[int]]:
    """What `note_written` has noted in a folder; nothing where there is no note, or a damaged one."""
    try:
        known = parse_json((folder / WRITTEN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def changed_files(folder: Path) -> list[str]:
    """The files of a folder that are not as `note_written` has noted them, by their paths there.

    Without a note these are all: each may be somebody's work. A copy has other times, too.
    """
    noted = read_note(folder)
    return [path for path, facts in file_facts(folder).items() if noted.get(path) != facts]
