"""A manifest's text with other uses of its members: the difference is those and nothing else."""

from __future__ import annotations

import difflib
import json
from pathlib import Path

import pytest

from kernel.manifest.edit import edited_manifest, replaced_manifest
from kernel.manifest.member_text import set_uses
from kernel.manifest.reader import parse_manifest

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = (ROOT / "weights_manifest.json").read_text(encoding="utf-8")


def difference(old: str, new: str) -> list[str]:
    """The lines that differ, with their sign."""
    lines = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def test_one_line_changes_for_one_member() -> None:
    changed = set_uses(PUBLISHED, {"maskrcnn_resnet50": ("cls", "cort", "shsy5y"), "htc_resnet50": ("astro",)})
    assert difference(PUBLISHED, changed) == [
        '-      "use_for": ["shsy5y"],',
        '+      "use_for": ["shsy5y", "cort", "cls"],',
        '-      "use_for": ["shsy5y", "astro", "cls"],',
        '+      "use_for": ["astro"],',
    ]


def test_the_same_uses_in_another_order_change_nothing() -> None:
    assert set_uses(PUBLISHED, {"htc_resnet50": ("cls", "astro", "shsy5y")}) == PUBLISHED
    assert set_uses(PUBLISHED, {}) == PUBLISHED


@pytest.mark.parametrize("gone", [(0,), (5,), (12,), (0, 1), (11, 12), (0, 6, 12), tuple(range(12))])
def test_members_used_for_nothing_are_taken_out(gone: tuple[int, ...]) -> None:
    names = [member.name for member in parse_manifest(PUBLISHED, "m").members]
    changed = set_uses(PUBLISHED, {names[index]: () for index in gone})
    left = json.loads(changed)["members"]
    assert [entry["name"] for entry in left] == [name for index, name in enumerate(names) if index not in gone]
    assert left == [entry for entry in json.loads(PUBLISHED)["members"] if entry in left]
    lines = difference(PUBLISHED, changed)
    added = sum(line.startswith("+") for line in lines)
    assert added <= 1  # the end of the list has no comma
    assert len(lines) - 2 * added == 10 * len(gone)


def test_a_list_over_several_lines_stays_one() -> None:
    expanded = json.dumps(json.loads(PUBLISHED), indent=2, ensure_ascii=False) + "\n"
    changed = set_uses(expanded, {"maskrcnn_resnet50": ("shsy5y", "astro")})
    assert difference(expanded, changed) == ['-        "shsy5y"', '+        "shsy5y",', '+        "astro"']
    compact = json.dumps(json.loads(PUBLISHED), separators=(",", ":"))
    changed = json.loads(set_uses(compact, {"maskrcnn_resnet50": ("astro",), "htc_resnet50": ()}))
    assert changed["members"][1]["use_for"] == ["astro"] and len(changed["members"]) == 12


def test_the_file_keeps_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    old = b"\xef\xbb\xbf" + PUBLISHED.replace("\n", "\r\n").encode()
    path.write_bytes(old)
    with replaced_manifest(path, edited_manifest(path, uses={"maskrcnn_resnet50": ("shsy5y", "cls")})[0]):
        pass
    assert path.read_bytes() == old.replace(b'["shsy5y"]', b'["shsy5y", "cls"]', 1)
    assert [entry.name for entry in tmp_path.iterdir()] == ["manifest.json"]
