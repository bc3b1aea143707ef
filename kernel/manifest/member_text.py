"""Members edited in a manifest's text, all else in it unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kernel.manifest.json_text import append_item, list_spans, object_spans, set_value, skip_blanks
from kernel.settings import EVERY_USE


def set_uses(text: str, uses: Mapping[str, Sequence[str]]) -> str:
    """A valid manifest's text with `use_for` set for the members in `uses`. Those used for nothing are taken out."""
    start = object_spans(text, skip_blanks(text, 0))["members"].start
    pieces: list[str] = []
    place = start + 1
    for span in list_spans(text, start):
        before, item = text[place : span.start], text[span.start : span.end]
        place = span.end
        name = json.loads(item)["name"]
        if name in uses:
            if not uses[name]:
                continue
            item = set_use_for(item, uses[name])
        # The comma before an item goes with it; the first one that stays has none.
        pieces.append((before if pieces else before.replace(",", "", 1)) + item)
    return text[: start + 1] + "".join(pieces) + text[place:]


def set_use_for(item: str, use_for: Sequence[str]) -> str:
    """A member's text with `use_for` set, over one line or several as it was."""
    span = object_spans(item, 0)["use_for"]
    start, end = span.start, span.end
    if set(json.loads(item[start:end])) == set(use_for):
        return item
    ordered = [use for use in EVERY_USE if use in use_for]
    lead = item[start + 1 : skip_blanks(item, start + 1)]
    trail = item[len(item[: end - 1].rstrip()) : end - 1]
    return item[:start] + "[" + lead + f",{lead or ' '}".join(map(json.dumps, ordered)) + trail + "]" + item[end:]


def put_member(text: str, entry: Mapping[str, Any]) -> str:
    """A valid manifest's text with a member's entry in it.

    A member of that name takes over the entry's values, except for None; otherwise the entry is put after the last one.
    """
    start = object_spans(text, skip_blanks(text, 0))["members"].start
    names = [json.loads(text[span.start : span.end])["name"] for span in list_spans(text, start)]
    if entry["name"] not in names:
        return append_item(text, start, entry)
    return set_member(text, entry["name"], {key: value for key, value in entry.items() if value is not None})


def set_member(text: str, name: str, values: Mapping[str, Any]) -> str:
    """A valid manifest's text with values of the member `name` set, all else in it unchanged.

    None for a key that the member has not is left out.
    """
    start = object_spans(text, skip_blanks(text, 0))["members"].start
    for span in list_spans(text, start):
        item = text[span.start : span.end]
        if json.loads(item)["name"] != name:
            continue
        for key, value in values.items():
            if key == "use_for":
                item = set_use_for(item, value)
            elif value is not None or key in object_spans(item, 0):
                item = set_value(item, (key,), value)
        text = text[: span.start] + item + text[span.end :]
        break
    return text
