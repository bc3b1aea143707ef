"""The manifest of members that were trained here, as a training of several leaves it beside their weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernel.data.tables import whole_text
from kernel.errors import InputError
from kernel.log import LOG
from kernel.manifest.reader import parse_manifest, read_manifest
from kernel.manifest.types import USUAL_COMPETITION, Manifest
from kernel.runtime.journal import put_aside
from kernel.training.evaluation import EVALUATION_SETTINGS


def new_manifest(members: Sequence[Mapping[str, Any]], *, of_competition: bool = False) -> dict[str, Any]:
    """A manifest of these entries, with placeholders for names, and the settings that trainings are evaluated with.

    The published thresholds, which count where a manifest states none, are of thirteen members.

    Args:
        members: the entries.
        of_competition: whether they are for the competition's images: its astro annotations, and nobody else's, are
            filled as if they were convex, so the masks are to be, too.
    """
    thresholds = {name: asdict(limits) for name, limits in EVALUATION_SETTINGS.thresholds.items()}
    thresholds["astro"]["corrupt"] = of_competition
    return {
        "kernel": {
            "id": "your-kaggle-name/in-network-ensemble",
            "title": "In-network ensemble",
            "competition": USUAL_COMPETITION,
        },
        "wheels_dataset": "your-kaggle-name/mmdet-pure-python-wheels",
        "weight_datasets": ["your-kaggle-name/in-network-ensemble-weights"],
        "members": members,
        "ensemble": {
            "mask_score_power": EVALUATION_SETTINGS.mask_score_power,
            "thresholds": thresholds,
        },
    }


def leave_manifest(path: Path, data: Mapping[str, Any]) -> None:
    """Write the manifest `data`. One of the same members is left as it is, for it may have been tuned or edited since;
    one of other members is put aside.

    Raises:
        InputError: it is not valid, or cannot be written.
        RunError: the disk is full.
    """
    text = json.dumps(data, indent=2) + "\n"
    manifest = parse_manifest(text, str(path))
    if path.exists():
        if has_same_members(path, manifest):
            LOG.info("%s has these members already, and is left as it is", path)
            return
        LOG.warning("%s has other members, and is put aside as %s", path, put_aside(path).name)
    with whole_text(path) as stream:
        stream.write(text)


def has_same_members(path: Path, manifest: Manifest) -> bool:
    """Whether a manifest file has the members of `manifest`, by the same weights; not where it cannot be read."""
    try:
        found = read_manifest(path)
    except InputError:
        return False
    ours, theirs = (
        [(member.name, member.kind, member.encoder, member.file, member.sha256) for member in each.members]
        for each in (manifest, found)
    )
    return ours == theirs
