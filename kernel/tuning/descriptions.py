"""A tuning in words: what was chosen, and what that is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kernel.tuning.choosing import Assessment, Choice, Estimate
from kernel.tuning.plan import TuningPlan
from kernel.tuning.threshold_grid import tuned_values
from kernel.tuning.threshold_tuning import TypeTuning, assess_together


def describe_tuning(tunings: Sequence[TypeTuning], plan: TuningPlan) -> str:
    """What was chosen and what it is worth, in words: a few lines per cell type, and one for all together."""
    lines = []
    for tuning in tunings:
        lines += describe_assessment(tuning.cell_type, tuning.assessment)
        folds = describe_folds(tuning.validation.folds, tuning.folds_given)
        choice = describe_choice(tuning.found.choice, len(tuning.found.values), plan.significance)
        lines.append(f"  {folds}; {choice}")
        if plan.search == "optuna" and tuning.has_gain:
            lines.append(
                "  optuna looks on where these images scored well: p is too small, go by the gain on unseen ones"
            )
        lines.append("  " + ", ".join(f"{name} {value}" for name, value in tuned_values(tuning.new).items()))
    if len(tunings) > 1:
        lines += describe_assessment("all", assess_together(tunings, plan))
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
        return f"{found.mean:{sign}.4f} (no interval from one image or well)"
    return f"{found.mean:{sign}.4f} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


def describe_folds(folds: np.ndarray, given: bool) -> str:
    """How often and into how many folds (repeats, n) the images were parted; `given`: not drawn."""
    repeats, count = len(folds), len(np.unique(folds[0]))
    drawn = "as given" if given else f"drawn {repeats} time{'s' if repeats != 1 else ''}"
    return f"95 % intervals, {count} folds {drawn}"


def describe_choice(choice: Choice, tried: int, significance: float) -> str:
    """Whether there was a gain, among so many points tried."""
    if choice.point is not None:
        return f"{choice.counting} of {tried} points beat the old settings beyond noise, p = {choice.p_value:.3f}"
    if 0.5**choice.units > significance:
        return "no gain: so few images cannot tell one from noise (those of a well count as one), the settings stay"
    return f"no gain: none of {tried} points beats the old settings beyond noise, p = {choice.p_value:.3f}; they stay"
