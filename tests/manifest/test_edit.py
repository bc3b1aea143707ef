"""A manifest's text after the thresholds were put in: the numbers changed, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from kernel.errors import InputError
from kernel.manifest.edit import edited_manifest, replaced_manifest
from kernel.manifest.reader import read_manifest
from kernel.settings import Thresholds

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.json"
    path.write_bytes((ROOT / "bundle" / "synthetic" / "manifest.json").read_bytes())
    return path


def write_thresholds(path: Path, base: dict[str, Thresholds], tuned: dict[str, Thresholds]) -> str:
    text, difference = edited_manifest(path, base, tuned)
    with replaced_manifest(path, text):
        return difference


def thresholds_of(path: Path) -> dict[str, Thresholds]:
    return dict(read_manifest(path).ensemble.thresholds)


def test_only_the_changed_numbers_change(demo: Path) -> None:
    before, base = demo.read_text(encoding="utf-8"), thresholds_of(demo)
    tuned = {
        "cort": replace(base["cort"], confidence=0.25, mask_threshold=0.4),
        "astro": replace(base["astro"], min_size=40),
    }
    difference = write_thresholds(demo, base, tuned)
    after = demo.read_text(encoding="utf-8")
    assert thresholds_of(demo) == base | tuned
    changed = [(old, new) for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    assert changed == [
        ('        "min_size": 100,', '        "min_size": 40,'),
        ('        "confidence": 0.2,', '        "confidence": 0.25,'),
    ]
    assert [line for line in difference.splitlines() if line[0] in "+-"] == [
        "--- a/manifest.json",
        "+++ b/manifest.json",
        '-        "min_size": 100,',
        '+        "min_size": 40,',
        '-        "confidence": 0.2,',
        '+        "confidence": 0.25,',
    ]
    assert '"use_for": ["shsy5y", "astro", "cort"]' in after


def test_nothing_changed_is_no_difference(demo: Path) -> None:
    base = thresholds_of(demo)
    assert edited_manifest(demo, base, base) == edited_manifest(demo) == (demo.read_bytes().decode(), "")


def test_thresholds_switches_and_members_change_together(demo: Path) -> None:
    base = thresholds_of(demo)
    tuned = {"cort": replace(base["cort"], rcnn_score_threshold=0.25)}
    before = json.loads(demo.read_text(encoding="utf-8"))
    uses = {"maskrcnn": ["cort", "cls"], "cascade": [], "htc": ["shsy5y", "astro", "cort"]}
    text, difference = edited_manifest(demo, base, tuned, {"use_tta_masks": False}, uses)
    with replaced_manifest(demo, text):
        pass
    manifest = read_manifest(demo)
    assert dict(manifest.ensemble.thresholds) == base | tuned and not manifest.ensemble.use_tta_masks
    assert {member.name: member.use_for for member in manifest.members} == {
        "maskrcnn": ("cort", "cls"),
        "htc": ("shsy5y", "astro", "cort"),
    }
    after = json.loads(text)
    assert {**after, "members": 0, "ensemble": 0} == {**before, "members": 0, "ensemble": 0}
    added = [line for line in difference.splitlines() if line.startswith("+")]
    assert added[0] == "+++ b/manifest.json" and len(added) <= 5


def test_a_manifest_that_would_be_wrong_is_left_alone(demo: Path) -> None:
    with pytest.raises(InputError, match=r"is left as it is: with these settings it would be wrong(.|\n)*'astro'"):
        edited_manifest(demo, uses=dict.fromkeys(("maskrcnn", "cascade", "htc"), ("cort",)))


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_what_is_not_there_is_put_in_as_the_rest_is_written(demo: Path, newline: str, mark: str) -> None:
    data = json.loads(demo.read_text(encoding="utf-8"))
    del data["ensemble"]["thresholds"]["cort"]["confidence"], data["ensemble"]["thresholds"]["astro"]
    old = json.dumps(data, indent=4, ensure_ascii=False).replace("\n", newline)
    demo.write_bytes((mark + old).encode())
    base = thresholds_of(demo)
    tuned = {
        "cort": replace(base["cort"], confidence=0.9),
        "astro": replace(base["astro"], confidence=0.8, min_size=1),
    }
    difference = write_thresholds(demo, base, tuned)
    new = demo.read_bytes().decode()
    assert new.startswith(mark + "{") and new.replace("\r\n", "\n").count("\n") == new.count(newline)
    data["ensemble"]["thresholds"]["cort"]["confidence"] = 0.9
    data["ensemble"]["thresholds"]["astro"] = {"min_size": 1, "confidence": 0.8}
    assert json.loads(new.removeprefix(mark)) == data
    assert thresholds_of(demo) == base | tuned
    # Lines gain at most a comma.
    removed = [line for line in difference.splitlines() if line.startswith("-") and not line.startswith("---")]
    added = [line for line in difference.splitlines() if line.startswith("+")]
    assert all("+" + line[1:].rstrip("\r") + "," in [new.rstrip("\r") for new in added] for line in removed)
    assert len(removed) <= 2


def test_a_manifest_that_was_changed_meanwhile_is_left_alone(demo: Path) -> None:
    base = thresholds_of(demo)
    old = replace(base["cort"], rpn_nms_pre=7)
    before = demo.read_bytes()
    with pytest.raises(InputError, match="has other cort thresholds than those that the tuning began with"):
        write_thresholds(demo, base | {"cort": old}, {"cort": replace(old, confidence=0.9)})
    assert demo.read_bytes() == before
    demo.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not JSON"):
        write_thresholds(demo, base, base)
