"""A manifest's text after the thresholds were put in: the numbers changed, and nothing else."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.errors import InputError
from kernel.manifest import read_manifest
from kernel.settings import Thresholds
from kernel.validation.manifest_edit import set_value, write_thresholds

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.json"
    path.write_bytes((ROOT / "bundle" / "demo" / "manifest.json").read_bytes())
    return path


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


def test_nothing_changed_writes_nothing(demo: Path) -> None:
    before, base = demo.stat(), thresholds_of(demo)
    assert write_thresholds(demo, base, base) == ""
    assert demo.stat() == before


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


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(max_size=3), values, max_size=4),
    st.lists(st.text(max_size=3), min_size=1, max_size=3),
    values,
    st.sampled_from([None, 1, 4, "\t"]),
)
def test_any_value_of_any_text(data: dict[str, Any], path: list[str], value: Any, indent: Any) -> None:
    expected = json.loads(json.dumps(data))
    place = expected
    for key in path[:-1]:
        if not isinstance(place, dict):
            break
        place = place.setdefault(key, {})
    text = json.dumps(data, indent=indent)
    if not isinstance(place, dict):
        with pytest.raises(ValueError, match="expected an object"):
            set_value(text, tuple(path), value)
        return
    place[path[-1]] = value
    found = set_value(text, tuple(path), value)
    assert json.loads(found) == expected
