"""A trained member's entry in a manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from kernel.errors import InputError
from kernel.manifest.edit import add_to_manifest, manifest_entry
from kernel.manifest.reader import read_manifest

PUBLISHED = Path(__file__).resolve().parents[2] / "weights_manifest.json"


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "manifest.json"
    path.write_bytes(PUBLISHED.read_bytes())
    return path


@pytest.fixture
def entry(tmp_path: Path) -> dict:
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"weights")
    return manifest_entry(weights, "htc", "resnet50", ["cort", "cls"])


def test_the_entry(entry: dict) -> None:
    assert entry == {
        "name": "mine",
        "kind": "htc",
        "encoder": "resnet50",
        "use_for": ["cort", "cls"],
        "dataset": None,
        "file": "mine.safetensors",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }


def test_a_name_that_no_manifest_takes_is_made_one(tmp_path: Path, manifest: Path) -> None:
    weights = tmp_path / "mein mitglied.safetensors"
    weights.write_bytes(b"weights")
    entry = manifest_entry(weights, "htc", "resnet50", ["cort", "cls"])
    assert (entry["name"], entry["file"]) == ("mein_mitglied", weights.name)
    add_to_manifest(manifest, entry)
    assert read_manifest(manifest).members[-1].name == "mein_mitglied"


def test_adding_and_replacing(manifest: Path, entry: dict) -> None:
    before = read_manifest(manifest)
    add_to_manifest(manifest, entry)
    after = read_manifest(manifest)
    assert after.members[:-1] == before.members and after.members[-1].sha256 == entry["sha256"]
    add_to_manifest(manifest, entry | {"use_for": ["astro"]})
    again = read_manifest(manifest)
    assert len(again.members) == 14 and again.members[-1].use_for == ("astro",)
    assert again.ensemble == before.ensemble


def test_all_else_keeps_its_bytes(manifest: Path, entry: dict) -> None:
    old = b"\xef\xbb\xbf" + manifest.read_bytes().replace(b"\n", b"\r\n")
    manifest.write_bytes(old)
    add_to_manifest(manifest, entry)
    added = manifest.read_bytes()
    end = old.index(b"\r\n  ]", old.index(b'"members"'))
    assert added.startswith(old[:end] + b",\r\n    {") and added.endswith(old[end:])
    assert added.count(b"\n") == added.count(b"\r\n") and len(read_manifest(manifest).members) == 14
    add_to_manifest(manifest, entry | {"use_for": ["astro"], "sha256": None})
    changed = added.replace(
        b'"use_for": [\r\n        "cort",\r\n        "cls"\r\n      ]', b'"use_for": [\r\n        "astro"\r\n      ]'
    )
    assert changed != added and manifest.read_bytes() == changed


def test_a_manifest_that_would_be_wrong_is_left_alone(manifest: Path, entry: dict) -> None:
    kept = manifest.read_bytes()
    with pytest.raises(InputError, match="is left as it is"):
        add_to_manifest(manifest, entry | {"kind": "yolo"})
    assert manifest.read_bytes() == kept
    data = json.loads(kept)
    data["members"] = []
    manifest.write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(InputError, match="a list of at least one member"):
        add_to_manifest(manifest, entry)
