"""Values set in a JSON text, all else in it unchanged to the last blank."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from json.decoder import scanstring
from typing import Any

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class Span:
    """Where the value of an object's key, or an item of a list, is in the text."""

    before: str  # the white space before it (or its key), after the brace, bracket or comma
    start: int
    end: int


def skip_blanks(text: str, place: int) -> int:
    """The first index from `place` on that holds no white space."""
    found = _SPACE.match(text, place)
    return found.end() if found else place


def object_spans(text: str, start: int) -> dict[str, Span]:
    """The values, by key, of the object whose brace is at `start` of a JSON text.

    Raises:
        ValueError: there is no object.
    """
    if text[start] != "{":
        raise ValueError(f"expected an object at {start}, found {text[start : start + 20]!r}")
    spans: dict[str, Span] = {}
    separator = start
    while text[separator] != "}" and text[place := skip_blanks(text, separator + 1)] != "}":
        key, end_of_key = scanstring(text, place + 1)
        value = skip_blanks(text, skip_blanks(text, end_of_key) + 1)
        _, end = _DECODER.raw_decode(text, value)
        spans[key] = Span(text[separator + 1 : place], value, end)
        separator = skip_blanks(text, end)
    return spans


def list_spans(text: str, start: int) -> list[Span]:
    """The items of the list whose bracket is at `start` of a JSON text."""
    spans: list[Span] = []
    separator = start
    while text[separator] != "]" and text[place := skip_blanks(text, separator + 1)] != "]":
        _, end = _DECODER.raw_decode(text, place)
        spans.append(Span(text[separator + 1 : place], place, end))
        separator = skip_blanks(text, end)
    return spans


def set_value(text: str, path: tuple[str, ...], value: Any) -> str:
    """A JSON text with the value at `path` (keys of nested objects) set, all else unchanged.

    A key that is not there yet is put after the last one of its object, indented as that one is.

    Raises:
        ValueError: the text is no JSON, or something on the path is no object.
    """
    json.loads(text)
    place = skip_blanks(text, 0)
    for depth, key in enumerate(path):
        members = object_spans(text, place)
        if key not in members:
            for missing in reversed(path[depth + 1 :]):
                value = {missing: value}
            return insert_key(text, place, members, key, value)
        place, end = members[key].start, members[key].end
    return text[:place] + json.dumps(value, ensure_ascii=False) + text[end:]


def append_item(text: str, start: int, value: Any) -> str:
    """A JSON text with `value` after the last item of the list, which is not empty, whose bracket is at `start`."""
    last = list_spans(text, start)[-1]
    return f"{text[: last.end]},{last.before}{json_after(last.before, value)}{text[last.end :]}"


def json_after(before: str, value: Any) -> str:
    """A value as JSON to stand after the white space `before`: over several lines if that has a line's end."""
    if "\n" not in before:
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, indent=2).replace("\n", before)


def insert_key(text: str, brace: int, members: Mapping[str, Span], key: str, value: Any) -> str:
    """A JSON text with a new key in the object whose brace is at `brace` and whose values are `members`."""
    if members:
        last = list(members.values())[-1]
        place, before, comma = last.end, last.before, ","
    else:
        indent = re.search(r"[ \t]*", text[text.rfind("\n", 0, brace) + 1 :])
        newline = "\r\n" if "\r\n" in text else "\n"
        place, before, comma = brace + 1, newline + (indent[0] if indent else "") + "  ", ""
    after = "" if members else before[:-2]
    return f"{text[:place]}{comma}{before}{json.dumps(key)}: {json_after(before, value)}{after}{text[place:]}"
