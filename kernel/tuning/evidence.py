"""The folder that a tuning leaves for people and for the report: figures as JSON, CSV and NPZ, and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a tuning found, as the files that `write_evidence` writes.

    Attributes:
        name: of the JSON and the NPZ file, as "tuning".
        data: for `<name>.json`, without NaN.
        arrays: for `<name>.npz`.
        tables: CSV text by file name.
        pictures: PNG by file name.
    """

    name: str
    data: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]
    tables: Mapping[str, str]
    pictures: Mapping[str, bytes] = field(default_factory=dict)


def write_evidence(folder: Path, evidence: Evidence, difference: str) -> None:
    """Write the files into an existing folder, and `manifest.diff`: the change to the manifest as a unified diff."""
    for name, text in evidence.tables.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    for name, content in evidence.pictures.items():
        (folder / name).write_bytes(content)
    np.savez_compressed(folder / f"{evidence.name}.npz", **evidence.arrays)
    (folder / "manifest.diff").write_bytes(difference.encode("utf-8"))
    text = json.dumps(evidence.data, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / f"{evidence.name}.json").write_text(text + "\n", encoding="utf-8", newline="\n")


def image_rows(
    image_ids: Iterable[str], before: np.ndarray, after: np.ndarray, unseen: np.ndarray, folds: np.ndarray
) -> list[dict[str, Any]]:
    """What the JSON says of each of n images: three scores, each (n,), and its folds (repeats, n)."""
    columns = zip(image_ids, before, after, unseen, folds.T.tolist(), strict=True)
    return [
        {"id": image_id, "before": float(old), "after": float(new), "unseen": float(held_out), "folds": numbers}
        for image_id, old, new, held_out, numbers in columns
    ]


def without_nan(data: Mapping[str, Any]) -> dict[str, Any]:
    """Not a number is no JSON: null."""
    return {
        key: without_nan(value)
        if isinstance(value, dict)
        else None
        if isinstance(value, float) and math.isnan(value)
        else value
        for key, value in data.items()
    }
