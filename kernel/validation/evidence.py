"""What a tuning leaves for people and for the report: in words, and as a folder of files.

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
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from kernel.errors import InputError
from kernel.settings import CELL_TYPES, Thresholds
from kernel.validation.choosing import Assessment, Choice, Estimate, adjusted_p_values
from kernel.validation.report_tuning import ThresholdSurface
from kernel.validation.search import Found, TuningPlan, TypeTuning, assess_together
from kernel.validation.tuning import TUNED_FIELDS, ThresholdGrid

#: What makes a folder an earlier tuning's, which may be replaced.
EVIDENCE_MARKER = "tuning.json"
EVIDENCE_NAMES = (
    EVIDENCE_MARKER,
    "tuning.npz",
    "manifest.diff",
    *(f"surface_{cell_type}.{suffix}" for cell_type in CELL_TYPES for suffix in ("csv", "png")),
)


def tuned_values(thresholds: Thresholds) -> dict[str, float]:
    """The tuned fields alone."""
    return {name: getattr(thresholds, name) for name in TUNED_FIELDS}


def describe_tuning(tunings: Sequence[TypeTuning], plan: TuningPlan) -> str:
    """What was chosen and what it is worth, in words: a few lines per cell type, and one for all together."""
    lines = []
    for tuning in tunings:
        lines += describe_assessment(tuning.cell_type, tuning.assessment)
        folds = describe_folds(tuning.validation.folds, tuning.folds_given)
        tried, images = len(tuning.found.values), len(tuning.image_ids)
        lines.append(f"  {folds}; {describe_choice(tuning.found.choice, tried, images, plan.level)}")
        lines.append("  " + ", ".join(f"{name} {value}" for name, value in tuned_values(tuning.new).items()))
    if len(tunings) > 1:
        lines += describe_assessment("all", assess_together(tunings, plan.seed))
    return "\n".join(lines)


def describe_assessment(name: str, found: Assessment) -> list[str]:
    """Two lines: the scores before and after, and what to expect on unseen images, with intervals."""
    images = f"{found.images} image{'s' if found.images != 1 else ''}"
    return [
        f"{name}: {found.before:.4f} before, {found.after:.4f} after, on the {images} tuned on",
        f"  expected on unseen images: {_describe_estimate(found.expected, '')}, gain "
        f"{_describe_estimate(found.gain, '+')}",
    ]


def _describe_estimate(found: Estimate, sign: str) -> str:
    if math.isnan(found.low):
        return f"{found.mean:{sign}.4f} (no interval from one image)"
    return f"{found.mean:{sign}.4f} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


def describe_folds(folds: np.ndarray, given: bool) -> str:
    """How often and into how many folds (repeats, n) the images were parted; `given`: not drawn."""
    repeats, count = len(folds), len(np.unique(folds[0]))
    drawn = "as given" if given else f"drawn {repeats} time{'s' if repeats != 1 else ''}"
    return f"95 % intervals, {count} folds {drawn}"


def describe_choice(choice: Choice, tried: int, images: int, level: float) -> str:
    """Whether there was a gain, by so many images, among so many points tried."""
    if choice.point is not None:
        return f"{choice.counting} of {tried} points beat the old settings beyond noise, p = {choice.p_value:.3f}"
    if 0.5**images > level:
        return "no gain: so few images cannot tell one from noise, the settings stay"
    return f"no gain: none of {tried} points beats the old settings beyond noise, p = {choice.p_value:.3f}; they stay"


def write_evidence(folder: Path, tunings: Sequence[TypeTuning], plan: TuningPlan, difference: str) -> None:
    """Write the files into an existing folder. `difference`: the change to the manifest as a unified diff."""
    arrays = {}
    for tuning in tunings:
        found, name = tuning.found, tuning.cell_type
        arrays |= {
            f"{name}_values": found.values,
            f"{name}_scores": found.candidates.scores,
            f"{name}_current": tuning.before,
            f"{name}_folds": tuning.validation.folds,
        }
        (folder / f"surface_{name}.csv").write_text(surface_csv(found, plan.seed), encoding="utf-8", newline="\n")
        draw_surface(tuning, folder / f"surface_{name}.png")
    np.savez_compressed(folder / "tuning.npz", **arrays)
    (folder / "manifest.diff").write_bytes(difference.encode("utf-8"))
    text = json.dumps(evidence_data(tunings, plan), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / EVIDENCE_MARKER).write_text(text + "\n", encoding="utf-8", newline="\n")


def evidence_data(tunings: Sequence[TypeTuning], plan: TuningPlan) -> dict[str, Any]:
    """What `tuning.json` says."""
    return {
        "search": plan.search,
        "trials": plan.trials if plan.search == "optuna" else None,
        "seed": plan.seed,
        "level": plan.level,
        "overall": without_nan(asdict(assess_together(tunings, plan.seed))),
        "types": {tuning.cell_type: _type_data(tuning) for tuning in tunings},
    }


def _type_data(tuning: TypeTuning) -> dict[str, Any]:
    choice, validation = tuning.found.choice, tuning.validation
    columns = zip(
        tuning.image_ids, tuning.before, tuning.after, validation.scores, validation.folds.T.tolist(), strict=True
    )
    return {
        "old": tuned_values(tuning.old),
        "new": tuned_values(tuning.new),
        "gain_beyond_noise": tuning.has_gain,
        "p_value": choice.p_value,
        "points": len(tuning.found.values),
        "points_beyond_noise": choice.counting,
        "optimum": None if choice.peak is None else _point_values(tuning.found, choice.peak),
        "grid": dict(zip(TUNED_FIELDS, tuning.grid.axes, strict=True)),
        "assessment": without_nan(asdict(tuning.assessment)),
        "folds_given": tuning.folds_given,
        "chosen_without_each_fold": [[tuned_values(found.thresholds) for found in row] for row in validation.chosen],
        "images": [
            {"id": image_id, "before": float(old), "after": float(new), "unseen": float(unseen), "folds": folds}
            for image_id, old, new, unseen, folds in columns
        ],
    }


def _point_values(found: Found, point: int) -> dict[str, float]:
    return dict(zip(TUNED_FIELDS, found.values[point].tolist(), strict=True))


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


def surface_csv(found: Found, seed: int) -> str:
    """A row per point tried, as CSV text. `seed`: of the sign flips, as they were chosen by."""
    candidates = found.candidates
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*TUNED_FIELDS, "score", "smoothed", "gain", "p_value"])
    if not len(candidates.scores):
        return stream.getvalue()
    gains = candidates.scores - candidates.current[:, None]
    means = (candidates.scores.mean(axis=0), candidates.smoothed.mean(axis=0), gains.mean(axis=0))
    for values, *numbers, p_value in zip(found.values, *means, adjusted_p_values(gains, seed), strict=True):
        shown = [f"{value:g}" for value in values], [f"{number:.6f}" for number in numbers]
        writer.writerow([*shown[0], *shown[1], f"{p_value:.4f}"])
    return stream.getvalue()


def read_surfaces(folder: Path) -> list[ThresholdSurface]:
    """The mean scores at all points of the grids, by cell type, from a folder that `write_evidence` has written.

    Raises InputError where it is no such folder, or where optuna searched: its trials are no grid.
    """
    try:
        told = json.loads((folder / EVIDENCE_MARKER).read_text(encoding="utf-8"))
        if told["search"] != "grid":
            raise InputError(f"{folder} is of a search by {told['search']}: a grid's scores alone make a surface")
        surfaces = []
        with np.load(folder / "tuning.npz") as arrays:
            for cell_type, of_type in told["types"].items():
                grid = ThresholdGrid(*(tuple(of_type["grid"][name]) for name in TUNED_FIELDS))
                scores = arrays[f"{cell_type}_scores"]
                means = scores.mean(axis=0) if len(scores) else np.full(scores.shape[1], np.nan)
                surfaces.append(ThresholdSurface(cell_type, grid, means.reshape(grid.shape)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{folder} is no folder that `tune --out` has written ({type(error).__name__}: {error})"
        ) from error
    return surfaces


def draw_surface(tuning: TypeTuning, path: Path) -> None:
    """The mean scores along each axis: a dot per point tried, the best of each value, the old and new thresholds."""
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
    figure.savefig(path, format="png", dpi=100)
