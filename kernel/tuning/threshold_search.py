"""Two ways to search thresholds of the post-processing: a grid, or optuna's trials.

The grid scores every one of its points. Optuna's TPE sampler tries any values in the ranges that the grid's values span
(Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011), for grids too fine to be exhausted. Both score by
the submission's own functions, and choose by `kernel.tuning.choosing`.

A grid's points are fixed before any score is known, which the test of the choice needs. Optuna looks on where it scored
well, so that its points follow the very images that they are tested on: p-values are too small, and of noise a gain is
reported more often than the significance level says. Cross-validation searches without the images held out, and is not
touched by that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from kernel.errors import InputError
from kernel.masks.instances import CellMasks, Instances
from kernel.settings import Thresholds
from kernel.tuning.choosing import Candidates, Choice, choose_point, make_candidates, scores_of_choice
from kernel.tuning.grid_scores import score_at, score_grids
from kernel.tuning.plan import TuningPlan, units_of
from kernel.tuning.threshold_grid import TUNED_FIELDS, ThresholdGrid


@dataclass(frozen=True, eq=False)
class TuningImage:
    """One image to tune on."""

    image_id: str
    instances: Instances  # soft masks, before the post-processing
    truth: CellMasks


@dataclass(frozen=True, eq=False)
class SearchResult:
    """What one search found on some of the images."""

    thresholds: Thresholds
    choice: Choice
    candidates: Candidates  # of the images that were searched on, and perhaps of others
    values: np.ndarray  # (P, 4) float64, the thresholds tried, in the order of TUNED_FIELDS


class Search(Protocol):
    """A way to try thresholds on the images of one cell type."""

    def choose(self, images: np.ndarray) -> SearchResult:
        """Choose by the images at these indices alone."""
        ...

    def score(self, found: SearchResult, images: np.ndarray) -> np.ndarray:
        """(len(images),) scores of the images at these indices with what was found."""
        ...


class GridSearch:
    """Every point of a grid, scored once for all images."""

    def __init__(self, images: Sequence[TuningImage], base: Thresholds, grid: ThresholdGrid, plan: TuningPlan) -> None:
        self.base, self.grid, self.plan = base, grid, plan
        scores = score_grids(((image.instances, image.truth) for image in images), grid, corrupt=base.corrupt)
        current = np.array([score_at(image.instances, image.truth, base) for image in images])
        units = units_of([image.image_id for image in images], plan)
        self.candidates = make_candidates(scores, current, grid.positions(), grid.position_of(base), units)
        self.values = grid.values()

    def choose(self, images: np.ndarray) -> SearchResult:
        choice = choose_point(self.candidates, images, significance=self.plan.significance, seed=self.plan.seed)
        thresholds = self.base if choice.point is None else self.grid.thresholds_at(choice.point, self.base)
        return SearchResult(thresholds, choice, self.candidates, self.values)

    def score(self, found: SearchResult, images: np.ndarray) -> np.ndarray:
        return scores_of_choice(self.candidates, found.choice, images)


class OptunaSearch:
    """Trials of optuna's TPE sampler, within the ranges that a grid's values span."""

    def __init__(self, images: Sequence[TuningImage], base: Thresholds, grid: ThresholdGrid, plan: TuningPlan) -> None:
        self.images, self.base, self.grid, self.plan = images, base, grid, plan
        self.units = units_of([image.image_id for image in images], plan)
        self._known: dict[tuple[Thresholds, int], float] = {}

    def _scores(self, thresholds: Thresholds, images: np.ndarray) -> np.ndarray:
        for index in images.tolist():
            if (thresholds, index) not in self._known:
                image = self.images[index]
                self._known[thresholds, index] = score_at(image.instances, image.truth, thresholds)
        return np.array([self._known[thresholds, index] for index in images.tolist()])

    def choose(self, images: np.ndarray) -> SearchResult:
        tried = self._search(images) if len(images) else []
        values = np.array([[getattr(point, name) for name in TUNED_FIELDS] for point in tried]).reshape(-1, 4)
        candidates = make_candidates(
            np.array([self._scores(point, images) for point in tried]).reshape(len(tried), len(images)).T,
            self._scores(self.base, images),
            np.array([self.grid.position_of(point) for point in tried]).reshape(-1, 4),
            self.grid.position_of(self.base),
            self.units[images],
        )
        choice = choose_point(candidates, significance=self.plan.significance, seed=self.plan.seed)
        return SearchResult(self.base if choice.point is None else tried[choice.point], choice, candidates, values)

    def score(self, found: SearchResult, images: np.ndarray) -> np.ndarray:
        return self._scores(found.thresholds, images)

    def _search(self, images: np.ndarray) -> list[Thresholds]:
        """The thresholds that were tried, each once, in order; the first are the old ones, rounded as all are."""
        try:
            import optuna
        except ImportError as error:
            raise InputError("--search optuna needs optuna: install it as requirements.txt has it") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        tried: list[Thresholds] = []
        ranges = {name: (values[0], values[-1]) for name, values in zip(TUNED_FIELDS, self.grid.axes, strict=True)}

        def objective(trial: Any) -> float:
            values = {
                # Four digits are more than noise leaves, and can be read in the manifest.
                name: trial.suggest_int(name, low, high)
                if name == "min_size"
                else round(trial.suggest_float(name, low, high), 4)
                for name, (low, high) in ranges.items()
            }
            tried.append(replace(self.base, **values))
            return float(self._scores(tried[-1], images).mean())

        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=self.plan.seed))
        study.enqueue_trial({name: getattr(self.base, name) for name in ranges})
        study.optimize(objective, n_trials=self.plan.trials)
        return list(dict.fromkeys(tried))


#: By the name of the plan.
SEARCHES = {"grid": GridSearch, "optuna": OptunaSearch}
