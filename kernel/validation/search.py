"""Tuning the post-processing of one cell type: which thresholds are tried, which are chosen, what that is worth.

Two ways to try: every point of a grid, or optuna's TPE sampler anywhere in the ranges that the grid's values span
(Bergstra et al., Algorithms for Hyper-Parameter Optimization, 2011), for grids too fine to be exhausted. Both are
scored by the submission's own functions, and chosen from by `kernel.validation.choosing`. In cross-validation optuna
searches anew for every fold, since where it looks depends on the images that it sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from kernel.data.toml_files import read_toml
from kernel.errors import InputError
from kernel.manifest import THRESHOLD_RULES
from kernel.postprocess.instances import CellMasks, Instances
from kernel.settings import CELL_TYPES, Thresholds
from kernel.validation.choosing import (
    LEVEL,
    REPEATS,
    Assessment,
    Candidates,
    Choice,
    CrossValidation,
    assess,
    choose_point,
    cross_validate,
    draw_folds,
    make_candidates,
    scores_of_choice,
)
from kernel.validation.tuning import DEFAULT_GRID, TUNED_FIELDS, ThresholdGrid, score_at, score_grids

SearchName = Literal["grid", "optuna"]


@dataclass(frozen=True)
class TuningPlan:
    """How to tune."""

    grid: ThresholdGrid = DEFAULT_GRID
    grid_of_type: Mapping[str, ThresholdGrid] = field(default_factory=dict)  # where a cell type has its own
    search: SearchName = "grid"
    trials: int = 200  # of optuna, for each choice
    seed: int = 0  # of everything that is drawn: folds, sign flips, bootstrap, optuna
    level: float = LEVEL  # the chance to report a gain where there is none
    folds: Mapping[str, int] | None = None  # by image id; None: drawn

    def grid_for(self, cell_type: str) -> ThresholdGrid:
        """What to try for a cell type."""
        return self.grid_of_type.get(cell_type, self.grid)


@dataclass(frozen=True, eq=False)
class TuningImage:
    """One image to tune on."""

    image_id: str
    instances: Instances  # soft masks, before the post-processing
    truth: CellMasks


@dataclass(frozen=True, eq=False)
class Found:
    """What one search found on some of the images."""

    thresholds: Thresholds
    choice: Choice
    candidates: Candidates  # of the images that were searched on, and perhaps of others
    values: np.ndarray  # (P, 4) float64, the thresholds tried, in the order of TUNED_FIELDS


@dataclass(frozen=True, eq=False)
class TypeTuning:
    """The thresholds chosen for one cell type, and the evidence for them. n images, P points tried."""

    cell_type: str
    image_ids: tuple[str, ...]
    grid: ThresholdGrid  # the plan's, and the old values
    old: Thresholds
    found: Found  # on all n images
    before: np.ndarray  # (n,) scores with the old thresholds
    after: np.ndarray  # (n,) scores with the new ones: of the images that they were chosen on
    validation: CrossValidation[Found]
    folds_given: bool  # whether the folds were given, else drawn
    assessment: Assessment

    @property
    def new(self) -> Thresholds:
        return self.found.thresholds

    @property
    def has_gain(self) -> bool:
        """Whether anything beat the old thresholds beyond noise; else the new ones are the old ones."""
        return self.found.choice.point is not None


class Search(Protocol):
    """A way to try thresholds on the images of one cell type."""

    def choose(self, images: np.ndarray) -> Found:
        """Choose by the images at these indices alone."""
        ...

    def score(self, found: Found, images: np.ndarray) -> np.ndarray:
        """(len(images),) scores of the images at these indices with what was found."""
        ...


class GridSearch:
    """Every point of a grid, scored once for all images."""

    def __init__(self, images: Sequence[TuningImage], base: Thresholds, grid: ThresholdGrid, plan: TuningPlan) -> None:
        self.base, self.grid, self.plan = base, grid, plan
        scores = score_grids(((image.instances, image.truth) for image in images), grid, corrupt=base.corrupt)
        current = np.array([score_at(image.instances, image.truth, base) for image in images])
        self.candidates = make_candidates(scores, current, grid.positions(), grid.position_of(base))
        self.values = np.stack([part.ravel() for part in np.meshgrid(*grid.axes, indexing="ij")], axis=1)

    def choose(self, images: np.ndarray) -> Found:
        choice = choose_point(self.candidates, images, level=self.plan.level, seed=self.plan.seed)
        thresholds = self.base if choice.point is None else self.grid.thresholds_at(choice.point, self.base)
        return Found(thresholds, choice, self.candidates, self.values)

    def score(self, found: Found, images: np.ndarray) -> np.ndarray:
        return scores_of_choice(self.candidates, found.choice, images)


class OptunaSearch:
    """Trials of optuna's TPE sampler, within the ranges that a grid's values span."""

    def __init__(self, images: Sequence[TuningImage], base: Thresholds, grid: ThresholdGrid, plan: TuningPlan) -> None:
        self.images, self.base, self.grid, self.plan = images, base, grid, plan
        self._known: dict[tuple[Thresholds, int], float] = {}

    def _scores(self, thresholds: Thresholds, images: np.ndarray) -> np.ndarray:
        for index in images.tolist():
            if (thresholds, index) not in self._known:
                image = self.images[index]
                self._known[thresholds, index] = score_at(image.instances, image.truth, thresholds)
        return np.array([self._known[thresholds, index] for index in images.tolist()])

    def choose(self, images: np.ndarray) -> Found:
        tried = self._search(images) if len(images) else []
        values = np.array([[getattr(point, name) for name in TUNED_FIELDS] for point in tried]).reshape(-1, 4)
        candidates = make_candidates(
            np.array([self._scores(point, images) for point in tried]).reshape(len(tried), len(images)).T,
            self._scores(self.base, images),
            np.array([self.grid.position_of(point) for point in tried]).reshape(-1, 4),
            self.grid.position_of(self.base),
        )
        choice = choose_point(candidates, level=self.plan.level, seed=self.plan.seed)
        return Found(self.base if choice.point is None else tried[choice.point], choice, candidates, values)

    def score(self, found: Found, images: np.ndarray) -> np.ndarray:
        return self._scores(found.thresholds, images)

    def _search(self, images: np.ndarray) -> list[Thresholds]:
        """The thresholds that were tried, each once, in order; the first are the old ones, which lie in the grid."""
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


_SEARCHES = {"grid": GridSearch, "optuna": OptunaSearch}


def tune_cell_type(cell_type: str, images: Sequence[TuningImage], base: Thresholds, plan: TuningPlan) -> TypeTuning:
    """Choose the post-processing's thresholds for images of one cell type, and find out what that is worth.

    Args:
        cell_type: theirs.
        images: n of them.
        base: the thresholds as they are; they stay where nothing beats them beyond noise.
        plan: how to tune.

    Raises:
        InputError: the plan's folds lack an image; optuna is asked for and not installed.
    """
    if plan.search not in get_args(SearchName):
        raise ValueError(f"search '{plan.search}' is not one of {get_args(SearchName)}")
    everything = np.arange(len(images))
    grid = plan.grid_for(cell_type).including(base)
    folds, given = folds_of([image.image_id for image in images], plan)
    search: Search = _SEARCHES[plan.search](images, base, grid, plan)
    found = search.choose(everything)
    validation = cross_validate(search.choose, search.score, folds)
    before = np.array([score_at(image.instances, image.truth, base) for image in images])
    after = np.array([score_at(image.instances, image.truth, found.thresholds) for image in images])
    return TypeTuning(
        cell_type=cell_type,
        image_ids=tuple(image.image_id for image in images),
        grid=grid,
        old=base,
        found=found,
        before=before,
        after=after,
        validation=validation,
        folds_given=given,
        assessment=assess(before, after, validation.scores, plan.seed),
    )


def assess_together(tunings: Sequence[TypeTuning], seed: int = 0) -> Assessment:
    """What the tuning of several cell types is worth over all their images, each counting the same."""
    before, after, unseen = (
        np.concatenate([np.zeros(0), *scores])
        for scores in (
            [tuning.before for tuning in tunings],
            [tuning.after for tuning in tunings],
            [tuning.validation.scores for tuning in tunings],
        )
    )
    return assess(before, after, unseen, seed)


def folds_of(image_ids: Sequence[str], plan: TuningPlan) -> tuple[np.ndarray, bool]:
    """The folds (repeats, n) to hold out, and whether they are the plan's: these must hold out at least one image."""
    if plan.folds is not None:
        lacking = [image_id for image_id in image_ids if image_id not in plan.folds]
        if lacking:
            raise InputError(
                f"the folds lack {len(lacking)} of the images, '{lacking[0]}' first: give the folds.csv of these images"
            )
        folds = np.array([plan.folds[image_id] for image_id in image_ids], dtype=np.int64)
        if len(np.unique(folds)) > 1:
            return folds[None], True
    return draw_folds(len(image_ids), plan.seed, repeats=REPEATS if plan.search == "grid" else 1), False


def read_grids(path: Path) -> tuple[ThresholdGrid, dict[str, ThresholdGrid]]:
    """The values to try, from a TOML file: for all cell types, and of those that have a table of their own.

        confidence = [0.2, 0.3, 0.4]
        min_size = [0, 50]

        [cort]
        confidence = [0.5, 0.6, 0.7, 0.8]

    Keys are `TUNED_FIELDS`. What is not given is as above it: in a table as for all types, there as in `DEFAULT_GRID`.

    Raises:
        InputError: no such file, no TOML, an unknown key, or values that do not rise or are no such thresholds.
    """
    data = read_toml(path, "grid")
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    common = _grid_of(
        {key: value for key, value in data.items() if key not in tables}, DEFAULT_GRID, str(path),
        f"{', '.join(TUNED_FIELDS)}, and tables of these for {', '.join(CELL_TYPES)}",
    )  # fmt: skip
    for name in tables:
        if name not in CELL_TYPES:
            raise InputError(f"{path}: [{name}] is no cell type; the types are {', '.join(CELL_TYPES)}")
    own = {
        name: _grid_of(values, common, f"{path} [{name}]", ", ".join(TUNED_FIELDS)) for name, values in tables.items()
    }
    return common, own


def _grid_of(given: Mapping[str, Any], base: ThresholdGrid, source: str, known: str) -> ThresholdGrid:
    axes = dict(zip(TUNED_FIELDS, base.axes, strict=True))
    for key, values in given.items():
        if key not in axes:
            raise InputError(f"{source}: unknown key '{key}'; known are {known}")
        rule = THRESHOLD_RULES[key]
        if not isinstance(values, list) or not values or not all(rule.allows(value) for value in values):
            raise InputError(f"{source} {key}: found {values!r:.60}, expected a list, each {rule.told}")
        if any(later <= earlier for earlier, later in pairwise(values)):
            raise InputError(f"{source} {key}: {values!r:.60} must rise from value to value")
        axes[key] = tuple(values)
    masks, nms, sizes, confidences = axes.values()
    return ThresholdGrid(masks, nms, tuple(int(size) for size in sizes), confidences)
