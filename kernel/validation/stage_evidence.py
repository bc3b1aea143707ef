"""What `tune --stages` leaves beside the manifest: what was tried, what each image scored with it, and what was chosen.

The folder holds

- `stages.json`: seed, level, the points tried, what was chosen for each cell type and from which images, the score of
  every image before, after and unseen, its folds, and what all that is worth, with intervals;
- `stages.npz`: per cell type TYPE the array `TYPE_scores` (n, P) of each image at each point;
- `points.csv`: a row per point, with its mean score per cell type;
- `manifest.diff`: the change to the manifest as a unified diff, empty for none.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kernel.data.annotated import AnnotatedImage
from kernel.settings import Thresholds
from kernel.validation.evidence import without_nan
from kernel.validation.search import TuningPlan
from kernel.validation.stage_tuning import StageTuning
from kernel.validation.stages import MASK_VIEWS, STAGE_THRESHOLDS, StagePoint

#: What makes a folder an earlier one of these, which may be replaced.
STAGE_EVIDENCE_MARKER = "stages.json"
STAGE_EVIDENCE_NAMES = (STAGE_EVIDENCE_MARKER, "stages.npz", "points.csv", "manifest.diff")


def write_stage_evidence(
    folder: Path,
    points: Sequence[StagePoint],
    images: Iterable[AnnotatedImage],
    scores: Mapping[str, np.ndarray],
    thresholds: Mapping[str, Thresholds],
    tuning: StageTuning,
    plan: TuningPlan,
    difference: str,
) -> None:
    """Write the files into an existing folder; the arguments are those of `tune_stages`, its answer, and the diff."""
    names: dict[str, list[str]] = {cell_type: [] for cell_type in scores}
    for entry in images:
        names[entry.cell_type].append(entry.image_id)
    folds = iter(tuning.folds.T.tolist())  # type by type, as the scores
    types = {}
    for cell_type, found in tuning.types.items():
        choice = tuning.choice.of_type[cell_type]
        columns = zip(names[cell_type], found.before, found.after, found.unseen, strict=True)
        types[cell_type] = {
            "old": told_thresholds(thresholds[cell_type]),
            "new": told_thresholds(points[tuning.choice.points[cell_type]].thresholds_of(thresholds[cell_type])),
            "members": points[tuning.choice.points[cell_type]].members,
            "gain_beyond_noise": choice.point is not None,
            "p_value": choice.p_value,
            "points_beyond_noise": choice.counting,
            "assessment": without_nan(asdict(found.assessment)),
            "images": [
                {"id": name, "before": float(old), "after": float(new), "unseen": float(unseen), "folds": next(folds)}
                for name, old, new, unseen in columns
            ],
        }
    data = {
        "seed": plan.seed,
        "level": plan.level,
        "overall": without_nan(asdict(tuning.assessment)),
        MASK_VIEWS: {
            "old": points[0].use_tta_masks,
            "new": points[tuning.choice.base].use_tta_masks,
            "p_value": tuning.choice.views.p_value,
        },
        "folds_given": tuning.folds_given,
        "types": types,
        "points": [asdict(point) for point in points],
    }
    write_points(folder / "points.csv", points, scores)
    np.savez_compressed(folder / "stages.npz", **{f"{name}_scores": rows for name, rows in scores.items()})
    (folder / "manifest.diff").write_bytes(difference.encode("utf-8"))
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)
    (folder / STAGE_EVIDENCE_MARKER).write_text(text + "\n", encoding="utf-8", newline="\n")


def told_thresholds(thresholds: Thresholds) -> dict[str, Any]:
    """Those of the stages alone."""
    return {name: getattr(thresholds, name) for name in STAGE_THRESHOLDS}


def write_points(path: Path, points: Sequence[StagePoint], scores: Mapping[str, np.ndarray]) -> None:
    """A row per point; what it leaves as it is, and the score of a type without images, is an empty field."""
    tried = [name for name in STAGE_THRESHOLDS if any(name in point.thresholds for point in points)]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([MASK_VIEWS, *tried, "members", *scores])
        for place, point in enumerate(points):
            means = [f"{rows[:, place].mean():.6f}" if len(rows) else "" for rows in scores.values()]
            settings = [json.dumps(point.use_tta_masks), *(point.thresholds.get(name, "") for name in tried)]
            writer.writerow([*settings, " ".join(point.members or ()), *means])
