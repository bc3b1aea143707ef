"""What a tuning of the post-processing's thresholds leaves in its folder, and the surfaces read from it again.

The folder holds

- `tuning.json`: seeds, what was tried, old and new thresholds, the score of every image before, after and unseen, its
  folds, what was chosen without each fold, and what all that is worth, with intervals;
- `tuning.npz`: per cell type TYPE the arrays `TYPE_values` (P, 4) of the thresholds tried (in the order of
  `TUNED_FIELDS`), `TYPE_scores` (n, P) of each image with them, `TYPE_current` (n,) with the old ones, and `TYPE_folds`
  (repeats, n);
- `surface_TYPE.csv`, a row per point tried: its thresholds, mean score, smoothed mean, gain and adjusted p-value;
- `surface_TYPE.png`, these means along each of the four axes;
- `manifest.diff`, the change to the manifest as a unified diff, empty for none.
"""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kernel.errors import InputError
from kernel.settings import CELL_TYPES
from kernel.text import parse_json
from kernel.tuning.choosing import adjusted_p_values
from kernel.tuning.evidence import Evidence, image_rows, without_nan
from kernel.tuning.plan import TuningPlan
from kernel.tuning.surface import ThresholdSurface
from kernel.tuning.threshold_grid import TUNED_FIELDS, ThresholdGrid, tuned_values
from kernel.tuning.threshold_search import SearchResult
from kernel.tuning.threshold_tuning import TypeTuning, assess_together

#: What makes a folder an earlier tuning's, which may be replaced.
EVIDENCE_MARKER = "tuning.json"
EVIDENCE_NAMES = (
    EVIDENCE_MARKER,
    "tuning.npz",
    "manifest.diff",
    *(f"surface_{cell_type}.{suffix}" for cell_type in CELL_TYPES for suffix in ("csv", "png")),
)


def threshold_evidence(tunings: Sequence[TypeTuning], plan: TuningPlan) -> Evidence:
    """The evidence for the thresholds chosen."""
    arrays: dict[str, np.ndarray] = {}
    for tuning in tunings:
        found, cell_type = tuning.found, tuning.cell_type
        arrays |= {
            f"{cell_type}_values": found.values,
            f"{cell_type}_scores": found.candidates.scores,
            f"{cell_type}_current": tuning.before,
            f"{cell_type}_folds": tuning.validation.folds,
        }
    data = {
        "search": plan.search,
        "trials": plan.trials if plan.search == "optuna" else None,
        "seed": plan.seed,
        "level": plan.significance,
        "overall": without_nan(asdict(assess_together(tunings, plan))),
        "types": {tuning.cell_type: _type_data(tuning) for tuning in tunings},
    }
    return Evidence(
        "tuning",
        data,
        arrays,
        tables={f"surface_{tuning.cell_type}.csv": surface_csv(tuning.found, plan.seed) for tuning in tunings},
        pictures={f"surface_{tuning.cell_type}.png": draw_surface(tuning) for tuning in tunings},
    )


def _type_data(tuning: TypeTuning) -> dict[str, Any]:
    found, choice, validation = tuning.found, tuning.found.choice, tuning.validation
    peak = None if choice.peak is None else found.values[choice.peak].tolist()
    return {
        "old": tuned_values(tuning.old),
        "new": tuned_values(tuning.new),
        "gain_beyond_noise": tuning.has_gain,
        "p_value": choice.p_value,
        "units": choice.units,
        "points": len(found.values),
        "points_beyond_noise": choice.counting,
        "optimum": None if peak is None else dict(zip(TUNED_FIELDS, peak, strict=True)),
        "grid": dict(zip(TUNED_FIELDS, tuning.grid.axes, strict=True)),
        "assessment": without_nan(asdict(tuning.assessment)),
        "folds_given": tuning.folds_given,
        "chosen_without_each_fold": [[tuned_values(result.thresholds) for result in row] for row in validation.chosen],
        "images": image_rows(tuning.image_ids, tuning.before, tuning.after, validation.scores, validation.folds),
    }


def surface_csv(found: SearchResult, seed: int) -> str:
    """A row per point tried, as CSV text. `seed`: of the sign flips, as they were chosen by."""
    candidates = found.candidates
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*TUNED_FIELDS, "score", "smoothed", "gain", "p_value"])
    if not len(candidates.scores):
        return stream.getvalue()
    gains = candidates.scores - candidates.current[:, None]
    means = (candidates.scores.mean(axis=0), candidates.smoothed.mean(axis=0), gains.mean(axis=0))
    p_values = adjusted_p_values(gains, candidates.units, seed)
    for values, *numbers, p_value in zip(found.values, *means, p_values, strict=True):
        shown = [f"{value:g}" for value in values], [f"{number:.6f}" for number in numbers]
        writer.writerow([*shown[0], *shown[1], f"{p_value:.4f}"])
    return stream.getvalue()


def read_surfaces(folder: Path) -> list[ThresholdSurface]:
    """The mean scores at all points of the grids, by cell type, from a folder that `tune --out` has written.

    Raises:
        InputError: it is no such folder, or optuna searched: its trials are no grid.
    """
    try:
        stored = parse_json((folder / EVIDENCE_MARKER).read_text(encoding="utf-8"))
        if stored["search"] != "grid":
            raise InputError(
                f"{folder} is of a search by {stored['search']}, and only a grid's scores make a surface: "
                "tune with --search grid"
            )
        surfaces = []
        with np.load(folder / "tuning.npz") as arrays:
            for cell_type, of_type in stored["types"].items():
                grid = ThresholdGrid(*(tuple(of_type["grid"][name]) for name in TUNED_FIELDS))
                scores = arrays[f"{cell_type}_scores"]
                means = scores.mean(axis=0) if len(scores) else np.full(scores.shape[1], np.nan)
                surfaces.append(ThresholdSurface(cell_type, grid, means.reshape(grid.shape)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{folder} is no folder that `tune --out` has written ({type(error).__name__}: {error}): name one"
        ) from error
    return surfaces


def draw_surface(tuning: TypeTuning) -> bytes:
    """Draw the mean scores along each axis: a dot per point tried, the best of each value, the old and new thresholds.

    Returns:
        A PNG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found, exhausted = tuning.found, len(tuning.found.values) == int(np.prod(tuning.grid.shape))
    figure = Figure(figsize=(9, 6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{tuning.cell_type}: mean score of {len(tuning.image_ids)} images, tuned on these")
    means = found.candidates.scores.mean(axis=0) if len(found.candidates.scores) else np.zeros(len(found.values))
    for axes, name, values in zip(figure.subplots(2, 2).ravel(), TUNED_FIELDS, found.values.T, strict=True):
        axes.plot(values, means, ".", color="0.7", markersize=3)
        if exhausted:
            different = np.unique(values)
            axes.plot(different, [means[values == value].max() for value in different], label="best with this value")
        for when, thresholds, scores, marker in (
            ("old", tuning.old, tuning.before, "o"),
            ("new", tuning.new, tuning.after, "*"),
        ):
            if len(scores):
                axes.plot([getattr(thresholds, name)], [scores.mean()], marker, markersize=10, label=when)
        axes.set(xlabel=name)
        axes.grid(alpha=0.3)
    if figure.axes[0].get_legend_handles_labels()[0]:
        figure.axes[0].legend(fontsize="small")
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()
