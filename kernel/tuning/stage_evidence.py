"""What `tune --stages` leaves in its folder.

The folder holds

- `stages.json`: seed, level, the points tried, what was chosen for each cell type and from which images, the score of
  every image before, after and unseen, its folds, and what all that is worth, with intervals;
- `stages.npz`: per cell type TYPE the array `TYPE_scores` (n, P) of each image at each point;
- `points.csv`: a row per point, with its mean score per cell type;
- `manifest.diff`: the change to the manifest as a unified diff, empty for none.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from typing import Any

from kernel.settings import Thresholds
from kernel.tuning.evidence import Evidence, image_rows, without_nan
from kernel.tuning.plan import TuningPlan
from kernel.tuning.stage_scores import MASK_VIEWS, STAGE_THRESHOLDS
from kernel.tuning.stage_tuning import StageTuning

#: What makes a folder an earlier one of these, which may be replaced.
STAGE_EVIDENCE_MARKER = "stages.json"
STAGE_EVIDENCE_NAMES = (STAGE_EVIDENCE_MARKER, "stages.npz", "points.csv", "manifest.diff")


def stage_evidence(tuning: StageTuning, plan: TuningPlan) -> Evidence:
    """The evidence for the settings chosen."""
    types = {}
    for cell_type, found in tuning.types.items():
        choice, point = tuning.choice.of_type[cell_type], tuning.chosen_point(cell_type)
        types[cell_type] = {
            "old": stage_values(found.old),
            "new": stage_values(point.thresholds_of(found.old)),
            "members": point.members,
            "gain_beyond_noise": choice.point is not None,
            "p_value": choice.p_value,
            "units": choice.units,
            "points_beyond_noise": choice.counting,
            "assessment": without_nan(asdict(found.assessment)),
            "images": image_rows(found.image_ids, found.before, found.after, found.unseen, found.folds),
        }
    data = {
        "seed": plan.seed,
        "level": plan.significance,
        "overall": without_nan(asdict(tuning.assessment)),
        MASK_VIEWS: {
            "old": tuning.points[0].use_tta_masks,
            "new": tuning.use_tta_masks,
            "p_value": tuning.choice.views.p_value,
            "units": tuning.choice.views.units,
        },
        "folds_given": tuning.folds_given,
        "types": types,
        "points": [asdict(point) for point in tuning.points],
    }
    arrays = {f"{cell_type}_scores": found.scores for cell_type, found in tuning.types.items()}
    return Evidence("stages", data, arrays, tables={"points.csv": points_csv(tuning)})


def stage_values(thresholds: Thresholds) -> dict[str, Any]:
    """The thresholds of the ensembling stages alone."""
    return {name: getattr(thresholds, name) for name in STAGE_THRESHOLDS}


def points_csv(tuning: StageTuning) -> str:
    """A row per point, as CSV text. A setting that a point leaves as it is, is an empty field; so is the score of a
    type without images.
    """
    points = tuning.points
    tried = [name for name in STAGE_THRESHOLDS if any(name in point.thresholds for point in points)]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([MASK_VIEWS, *tried, "members", *tuning.types])
    for place, point in enumerate(points):
        means = [f"{found.scores[:, place].mean():.6f}" if len(found.scores) else "" for found in tuning.types.values()]
        settings = [json.dumps(point.use_tta_masks), *(point.thresholds.get(name, "") for name in tried)]
        writer.writerow([*settings, " ".join(point.members or ()), *means])
    return stream.getvalue()
