"""From a trained member to its entry in a manifest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernel.errors import InputError
from kernel.manifest import parse_manifest, read_manifest
from kernel.models.detectors import DetectorSpec
from kernel.runtime.files import whole_file
from kernel.runtime.text import read_any_text
from kernel.runtime.wheels import file_sha256


def manifest_entry(weights: Path, spec: DetectorSpec, use_for: Sequence[str]) -> dict[str, Any]:
    """What a manifest's list of members says of a member: to be pasted, once its dataset is known."""
    return {
        "name": weights.stem,
        "kind": spec.kind,
        "encoder": spec.encoder,
        "use_for": list(use_for),
        "dataset": None,
        "file": weights.name,
        "sha256": file_sha256(weights),
    }


def add_to_manifest(path: Path, entry: dict[str, Any]) -> None:
    """Put an entry into the manifest `path`, in the place of the member of its name, if there is one.

    Raises InputError, and leaves the file as it is, where the manifest is wrong before or would be afterwards.
    """
    read_manifest(path)
    data = json.loads(read_any_text(path))
    names = [member["name"] for member in data["members"]]
    if entry["name"] in names:
        # What is not known of the new weights stays as it was said.
        data["members"][names.index(entry["name"])] |= {key: value for key, value in entry.items() if value is not None}
    else:
        data["members"].append(entry)
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    try:
        parse_manifest(text, f"{path} with {entry['name']}")
    except InputError as error:
        raise InputError(f"{path} was left as it is, for with the new member it would be wrong: {error}") from error
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
