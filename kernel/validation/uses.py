"""What members are used for, put into a manifest's text with all else in it as it was."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from kernel.settings import CELL_TYPES, CLS_USE
from kernel.validation.json_text import list_spans, object_spans, skip_blanks


def set_uses(text: str, uses: Mapping[str, Sequence[str]]) -> str:
    """The text of a manifest, which is known to be one, with `use_for` of the members named in `uses` set.

    Members that are used for nothing are taken out of it.
    """
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
        # The separator in front of an item goes with it, but for the first one: it has none.
        pieces.append((before if pieces else before.replace(",", "", 1)) + item)
    return text[: start + 1] + "".join(pieces) + text[place:]


def set_use_for(item: str, use_for: Sequence[str]) -> str:
    """The text of a member's entry with `use_for` set, on one line or several as it was."""
    span = object_spans(item, 0)["use_for"]
    start, end = span.start, span.end
    if set(json.loads(item[start:end])) == set(use_for):
        return item
    ordered = [use for use in (*CELL_TYPES, CLS_USE) if use in use_for]
    lead = item[start + 1 : skip_blanks(item, start + 1)]
    trail = item[len(item[: end - 1].rstrip()) : end - 1]
    return item[:start] + "[" + lead + f",{lead or ' '}".join(map(json.dumps, ordered)) + trail + "]" + item[end:]
