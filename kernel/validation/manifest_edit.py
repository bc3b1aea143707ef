"""Thresholds into a manifest's text with nothing else touched, so that the difference is the numbers and no more."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from json.decoder import scanstring
from pathlib import Path
from typing import Any

from kernel.errors import InputError, RunError
from kernel.manifest import parse_manifest
from kernel.runtime.files import whole_file
from kernel.settings import Thresholds

_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True)
class _Member:
    """Where a member of a JSON object stands in the text."""

    before: str  # the white space between the brace or comma before it and its key
    start: int  # of its value
    end: int


def _skip(text: str, place: int) -> int:
    """The first place from `place` on that is no white space."""
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _members(text: str, start: int) -> dict[str, _Member]:
    """The members of the object whose brace is at `start` of a JSON text, which is known to be one."""
    if text[start] != "{":
        raise ValueError(f"expected an object at {start}, found {text[start : start + 20]!r}")
    members: dict[str, _Member] = {}
    separator = start
    while text[place := _skip(text, separator + 1)] != "}":
        key, end_of_key = scanstring(text, place + 1)
        value = _skip(text, _skip(text, end_of_key) + 1)
        _, end = _DECODER.raw_decode(text, value)
        members[key] = _Member(text[separator + 1 : place], value, end)
        separator = _skip(text, end)
        if text[separator] == "}":
            break
    return members


def set_value(text: str, path: tuple[str, ...], value: Any) -> str:
    """The JSON text with the value at `path` (keys of objects within objects) set, and all else as it was.

    What is not there yet is put behind the last member of its object, in the same way of indenting.

    Raises:
        ValueError: the text is no JSON, or something on the path is no object.
    """
    json.loads(text)
    place = _skip(text, 0)
    for depth, key in enumerate(path):
        members = _members(text, place)
        if key not in members:
            for missing in reversed(path[depth + 1 :]):
                value = {missing: value}
            return _insert(text, place, members, key, value)
        place, end = members[key].start, members[key].end
    return text[:place] + json.dumps(value, ensure_ascii=False) + text[end:]


def _insert(text: str, brace: int, members: Mapping[str, _Member], key: str, value: Any) -> str:
    if members:
        last = list(members.values())[-1]
        place, before, comma = last.end, last.before, ","
    else:
        indent = re.search(r"[ \t]*", text[text.rfind("\n", 0, brace) + 1 :])
        newline = "\r\n" if "\r\n" in text else "\n"
        place, before, comma = brace + 1, newline + (indent[0] if indent else "") + "  ", ""
    if "\n" in before:
        written = json.dumps(value, ensure_ascii=False, indent=2).replace("\n", before)
    else:
        written = json.dumps(value, ensure_ascii=False)
    after = "" if members else before[:-2]
    return f"{text[:place]}{comma}{before}{json.dumps(key)}: {written}{after}{text[place:]}"


def read_text(path: Path) -> str:
    """A file's text with its line ends as they are; a byte order mark stays as its first character."""
    return path.read_bytes().decode("utf-8")


def edited_manifest(
    path: Path,
    base: Mapping[str, Thresholds],
    tuned: Mapping[str, Thresholds],
    switches: Mapping[str, bool] | None = None,
) -> tuple[str, str]:
    """The text of the manifest file with new thresholds, and its difference to the file as a unified diff.

    Args:
        path: the manifest.
        base: its thresholds by cell type, which those of `tuned` began with.
        tuned: the new ones, of any of the types. Only fields in which they differ from `base` are written.
        switches: of the ensemble, by name, to be written as well.

    Raises:
        InputError: the file is no manifest, or its thresholds are no longer `base`.
    """
    old = read_text(path)
    mark = "\ufeff" if old.startswith("\ufeff") else ""
    text = old.removeprefix(mark)
    now = parse_manifest(text, str(path)).ensemble.thresholds
    for cell_type, thresholds in tuned.items():
        if now[cell_type] != base[cell_type]:
            raise InputError(
                f"{path} has other {cell_type} thresholds than those that the tuning began with; it is left as it is: "
                "tune again"
            )
        for field in fields(thresholds):
            value = getattr(thresholds, field.name)
            if value != getattr(base[cell_type], field.name):
                text = set_value(text, ("ensemble", "thresholds", cell_type, field.name), value)
    for name, value in (switches or {}).items():
        text = set_value(text, ("ensemble", name), value)
    written = parse_manifest(text, f"{path} with the new thresholds").ensemble.thresholds
    if any(written[cell_type] != thresholds for cell_type, thresholds in tuned.items()):
        raise RunError(f"{path} would not say the thresholds that were tuned; it is left as it is")
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), (mark + text).splitlines(keepends=True), f"a/{path.name}", f"b/{path.name}"
    )
    return mark + text, "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def write_thresholds(
    path: Path,
    base: Mapping[str, Thresholds],
    tuned: Mapping[str, Thresholds],
    switches: Mapping[str, bool] | None = None,
) -> str:
    """Put new thresholds into the manifest file, whole or not at all; returns the unified diff, "" for none.

    Arguments and errors are those of `edited_manifest`.
    """
    text, difference = edited_manifest(path, base, tuned, switches)
    if difference:
        with whole_file(path) as temporary:
            temporary.write_bytes(text.encode("utf-8"))
    return difference
