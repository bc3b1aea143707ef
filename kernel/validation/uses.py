"""What members are used for, put into a manifest's text with all else in it as it was, to the last blank."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from json.decoder import scanstring
from pathlib import Path

from kernel.errors import InputError
from kernel.manifest import parse_manifest, read_manifest
from kernel.runtime.files import whole_file
from kernel.settings import CELL_TYPES, CLS_USE

Span = tuple[int, int]  # start and end in a text

_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


def write_uses(path: Path, uses: Mapping[str, Sequence[str]]) -> None:
    """Set what members, by name, are used for in the manifest file `path`; whole or not at all.

    Members that are used for nothing are taken out of it. Raises InputError, and leaves the file as it is, where the
    manifest is wrong before or would be afterwards.
    """
    read_manifest(path)
    text = path.read_bytes().decode("utf-8")
    mark = "\ufeff" if text.startswith("\ufeff") else ""
    changed = set_uses(text.removeprefix(mark), uses)
    try:
        parse_manifest(changed, f"{path} with other members")
    except InputError as error:
        raise InputError(f"{path} was left as it is, for with these members it would be wrong: {error}") from error
    with whole_file(path) as temporary:
        temporary.write_bytes((mark + changed).encode("utf-8"))


def set_uses(text: str, uses: Mapping[str, Sequence[str]]) -> str:
    """The text of a manifest, which is known to be one, with `use_for` of the named members set."""
    start, _ = object_spans(text, skip_blanks(text, 0))["members"]
    pieces: list[str] = []
    place = start + 1
    for item_start, item_end in list_spans(text, start):
        before, item = text[place:item_start], text[item_start:item_end]
        place = item_end
        name = json.loads(item)["name"]
        if name in uses:
            if not uses[name]:
                continue
            item = set_use_for(item, uses[name])
        # The separator in front of an item goes with it, but for the first one: it has none.
        pieces.append((before if pieces else before.replace(",", "", 1)) + item)
    return text[: start + 1] + "".join(pieces) + text[place:]


def set_use_for(item: str, use_for: Sequence[str]) -> str:
    """The text of a member's entry with `use_for` set, on one line or several as it was."""
    start, end = object_spans(item, 0)["use_for"]
    if set(json.loads(item[start:end])) == set(use_for):
        return item
    ordered = [use for use in (*CELL_TYPES, CLS_USE) if use in use_for]
    lead = item[start + 1 : skip_blanks(item, start + 1)]
    trail = item[len(item[: end - 1].rstrip()) : end - 1]
    return item[:start] + "[" + lead + f",{lead or ' '}".join(map(json.dumps, ordered)) + trail + "]" + item[end:]


def skip_blanks(text: str, place: int) -> int:
    """The first place from `place` on that is no white space."""
    found = _BLANKS.match(text, place)
    return found.end() if found else place


def list_spans(text: str, start: int) -> list[Span]:
    """Where the items of the list at `start` of a JSON text stand."""
    spans: list[Span] = []
    place = skip_blanks(text, start + 1)
    while text[place] != "]":
        _, end = _DECODER.raw_decode(text, place)
        spans.append((place, end))
        place = skip_blanks(text, end)
        if text[place] == ",":
            place = skip_blanks(text, place + 1)
    return spans


def object_spans(text: str, start: int) -> dict[str, Span]:
    """Where the values of the object at `start` of a JSON text stand, by key."""
    spans: dict[str, Span] = {}
    place = skip_blanks(text, start + 1)
    while text[place] != "}":
        key, place = scanstring(text, place + 1)
        value = skip_blanks(text, skip_blanks(text, place) + 1)
        _, end = _DECODER.raw_decode(text, value)
        spans[key] = value, end
        place = skip_blanks(text, end)
        if text[place] == ",":
            place = skip_blanks(text, place + 1)
    return spans
