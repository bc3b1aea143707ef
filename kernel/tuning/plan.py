"""How to tune: what is tried, how a choice is made, and which images are held out together to judge it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from kernel.errors import InputError
from kernel.tuning.choosing import REPEATS, SIGNIFICANCE, draw_folds, number_units
from kernel.tuning.threshold_grid import DEFAULT_GRID, ThresholdGrid

SearchName = Literal["grid", "optuna"]


@dataclass(frozen=True)
class TuningPlan:
    """How to tune. Of the ensembling stages (`tune --stages`) only seed, significance level, folds and groups count."""

    grid: ThresholdGrid = DEFAULT_GRID
    grid_of_type: Mapping[str, ThresholdGrid] = field(default_factory=dict)  # where a cell type has its own
    search: SearchName = "grid"
    trials: int = 200  # of optuna, for each choice
    seed: int = 0  # of everything that is drawn: folds, sign flips, bootstrap, optuna
    significance: float = SIGNIFICANCE  # the chance to report a gain where there is none; optuna's is higher
    folds: Mapping[str, int] | None = None  # by image id; None: drawn
    #: What an image belongs to, by its id, as its well: held out as one, and one unit of `kernel.tuning.choosing`.
    #: Images that are not there are alone.
    groups: Mapping[str, str] = field(default_factory=dict)

    def grid_for(self, cell_type: str) -> ThresholdGrid:
        """What to try for a cell type."""
        return self.grid_of_type.get(cell_type, self.grid)


def groups_of(image_ids: Sequence[str], plan: TuningPlan) -> list[str]:
    """What each image belongs to; one that belongs to nothing is its own."""
    return [f"of {plan.groups[image_id]}" if image_id in plan.groups else image_id for image_id in image_ids]


def units_of(image_ids: Sequence[str], plan: TuningPlan) -> np.ndarray:
    """(n,) int64: images of one number belong together, as `number_units` numbers them."""
    return number_units(groups_of(image_ids, plan))


def folds_of(image_ids: Sequence[str], plan: TuningPlan) -> tuple[np.ndarray, bool]:
    """The folds to hold out in cross-validation.

    Returns:
        (repeats, n) int64, images of one number being held out together; and whether these are the plan's. They are
        drawn where the plan has none, or one for all images.

    Raises:
        InputError: the plan's folds lack an image.
    """
    groups = groups_of(image_ids, plan)
    if len(set(groups)) == 1:
        groups = list(image_ids)  # nothing else can be held out: `tune` tells it
    if plan.folds is not None:
        lacking = [image_id for image_id in image_ids if image_id not in plan.folds]
        if lacking:
            raise InputError(
                f"the folds lack {len(lacking)} of the images, '{lacking[0]}' first: give the folds.csv of these images"
            )
        of_group: dict[str, int] = {}  # the fold of the first one's: a folds.csv made elsewhere may tear a well
        for image_id, group in zip(image_ids, groups, strict=True):
            of_group.setdefault(group, plan.folds[image_id])
        folds = np.array([of_group[group] for group in groups], dtype=np.int64)
        if len(np.unique(folds)) > 1:
            return folds[None], True
    repeats = REPEATS if plan.search == "grid" else 1
    return draw_folds(len(image_ids), plan.seed, repeats=repeats, groups=groups), False
