"""What a command has written into a folder, and which files there are others since: the work of somebody, perhaps."""

from __future__ import annotations

import json
from pathlib import Path

from kernel.folders import is_of_the_system
from kernel.text import parse_json

#: The note of what was written, in the folder itself: it goes where the folder goes.
WRITTEN_NAME = ".written.json"


def file_facts(folder: Path) -> dict[str, list[int]]:
    """Size in bytes and time of the last change in nanoseconds of each file below a folder, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): [facts.st_size, facts.st_mtime_ns]
        for path, facts in ((path, path.stat()) for path in files)
    }


def note_written(folder: Path) -> None:
    """Note in a folder which files it holds now, for `changed_files`.

    Raises:
        OSError: the note cannot be written.
    """
    facts = file_facts(folder)
    facts.pop(WRITTEN_NAME, None)  # of an earlier go on the same folder
    (folder / WRITTEN_NAME).write_text(json.dumps(facts) + "\n", encoding="utf-8", newline="\n")


def changed_files(folder: Path) -> list[str]:
    """The files of a folder, missing or not, that are not as `note_written` has noted them; those of systems are not.

    Without a note, or with a damaged one, these are all: each may be somebody's work. A copy has other times, too.
    """
    try:
        known = parse_json((folder / WRITTEN_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    noted = known if isinstance(known, dict) else {}
    return [
        path
        for path, facts in file_facts(folder).items()
        if path != WRITTEN_NAME and noted.get(path) != facts and not is_of_the_system(path.rpartition("/")[2])
    ]
