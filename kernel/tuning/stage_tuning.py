"""Choosing settings of the ensembling stages by their scores, as `choosing` does for the post-processing's.

The views of the masks are one setting for all cell types. They are therefore chosen first, over all images, with all
else as it is. Then thresholds and members are chosen for each cell type, with these views. So views that are better
only together with other thresholds are not found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kernel.settings import Thresholds
from kernel.tuning.choosing import (
    SMOOTHING_REACH,
    Assessment,
    Candidates,
    Choice,
    assess,
    choose_point,
    cross_validate,
    make_candidates,
)
from kernel.tuning.plan import TuningPlan, folds_of, units_of
from kernel.tuning.stage_scores import StagePoint, StageScores


@dataclass(frozen=True)
class StageChoice:
    """What was chosen on some of the images: indices of points, 0 for the settings as they are."""

    base: int  # the point that has the chosen views of the masks, and all else as it is
    views: Choice
    points: Mapping[str, int]  # by cell type; all with the views of `base`
    of_type: Mapping[str, Choice]  # how each was chosen


@dataclass(frozen=True, eq=False)
class TypeStages:
    """What the choice is worth for the n images that the unchanged ensemble takes for one cell type."""

    image_ids: tuple[str, ...]
    old: Thresholds  # as they were
    scores: np.ndarray  # (n, P) at each point
    before: np.ndarray  # (n,) scores with the settings as they are
    after: np.ndarray  # (n,) with the chosen ones: of the images that they were chosen on
    unseen: np.ndarray  # (n,) by cross-validation
    folds: np.ndarray  # (repeats, n) int64, which images of all types were held out together
    assessment: Assessment


@dataclass(frozen=True, eq=False)
class StageTuning:
    """What was chosen on all images, and what that is worth."""

    points: Sequence[StagePoint]  # those tried; the first is the settings as they are
    choice: StageChoice
    types: Mapping[str, TypeStages]
    assessment: Assessment  # of all images together, each counting the same
    folds: np.ndarray  # (repeats, n) int64, which of all images were held out together, type by type
    folds_given: bool  # else drawn

    @property
    def use_tta_masks(self) -> bool:
        """The chosen views of the masks."""
        return self.points[self.choice.base].use_tta_masks

    def chosen_point(self, cell_type: str) -> StagePoint:
        """The settings chosen for a cell type."""
        return self.points[self.choice.points[cell_type]]


def point_positions(points: Sequence[StagePoint], thresholds: Thresholds) -> np.ndarray:
    """Where points lie; a step leads from one of the values tried to the next.

    Args:
        points: those to place; a threshold that a point does not set is that of `thresholds`.
        thresholds: of the cell type, as they are.

    Returns:
        (P, A) float64, an axis for each threshold, and one for each set of members. On the latter a set lies so far out
        that no other is its neighbour.
    """
    axes = []
    for name in dict.fromkeys(name for point in points for name in point.thresholds):
        values = [point.thresholds.get(name, getattr(thresholds, name)) for point in points]
        axes.append(np.searchsorted(np.unique(values), values))
    for members in dict.fromkeys(point.members for point in points if point.members is not None):
        axes.append([SMOOTHING_REACH * (point.members == members) for point in points])
    return np.array(axes, dtype=np.float64).reshape(len(axes), len(points)).T


class StageSearch:
    """Chooses on some of the images, by the scores that all of them got at all points.

    Images are counted over all cell types, type by type as in `scores`.
    """

    def __init__(
        self,
        points: Sequence[StagePoint],
        scores: Mapping[str, np.ndarray],
        thresholds: Mapping[str, Thresholds],
        units: np.ndarray,
        plan: TuningPlan,
    ) -> None:
        self.plan, self.scores = plan, scores
        ends = np.cumsum([0, *(len(rows) for rows in scores.values())])
        self.starts = dict(zip(scores, ends.tolist(), strict=False))
        views = [point.use_tta_masks for point in points]
        #: Points that differ from the settings as they are in the views alone; `stage_points` puts them first.
        self.bases = [place for place, point in enumerate(points) if point == StagePoint(views[place])]
        everything = np.concatenate([np.zeros((0, len(points))), *scores.values()])
        places = np.arange(len(self.bases), dtype=np.float64)[:, None]
        self.views = make_candidates(everything[:, self.bases], everything[:, 0], places, places[0], units)
        #: By base and cell type: the points with its views, and their candidates.
        self.candidates: dict[tuple[int, str], tuple[np.ndarray, Candidates]] = {}
        for base in self.bases:
            allowed = np.flatnonzero(np.array(views) == views[base])
            for cell_type, rows in scores.items():
                positions = point_positions(points, thresholds[cell_type])
                start = self.starts[cell_type]
                own = units[start : start + len(rows)]
                candidates = make_candidates(rows[:, allowed], rows[:, base], positions[allowed], positions[base], own)
                self.candidates[base, cell_type] = allowed, candidates

    def parts(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """By cell type, which of its images are among `images`."""
        found = {}
        for cell_type, rows in self.scores.items():
            places = images - self.starts[cell_type]
            found[cell_type] = places[(places >= 0) & (places < len(rows))]
        return found

    def choose(self, images: np.ndarray) -> StageChoice:
        """Choose by the images at these indices alone."""
        how = {"significance": self.plan.significance, "seed": self.plan.seed}
        views = choose_point(self.views, images, **how)
        base = 0 if views.point is None else self.bases[views.point]
        points, of_type = {}, {}
        for cell_type, part in self.parts(images).items():
            allowed, candidates = self.candidates[base, cell_type]
            choice = of_type[cell_type] = choose_point(candidates, part, **how)
            points[cell_type] = base if choice.point is None else int(allowed[choice.point])
        return StageChoice(base, views, points, of_type)

    def score(self, chosen: StageChoice, images: np.ndarray) -> np.ndarray:
        """(len(images),) scores of the images at these indices, which rise, with what was chosen."""
        parts = self.parts(images)
        scores = [self.scores[cell_type][part, chosen.points[cell_type]] for cell_type, part in parts.items()]
        return np.concatenate([np.zeros(0), *scores])


def tune_stages(
    points: Sequence[StagePoint],
    scored: Mapping[str, StageScores],
    thresholds: Mapping[str, Thresholds],
    plan: TuningPlan,
) -> StageTuning:
    """Choose a point for each cell type, and find out what that is worth on unseen images.

    Args:
        points: as `stage_points` makes them; the first is the settings as they are.
        scored: by cell type, from `score_stages`.
        thresholds: by cell type, as they are.
        plan: its seed, significance level, folds and groups count here.

    Raises:
        InputError: the plan's folds lack an image.
    """
    image_ids = [image_id for each in scored.values() for image_id in each.image_ids]
    scores = {cell_type: each.scores for cell_type, each in scored.items()}
    (folds, given), units = folds_of(image_ids, plan), units_of(image_ids, plan)
    search = StageSearch(points, scores, thresholds, units, plan)
    choice = search.choose(np.arange(folds.shape[1]))
    unseen = cross_validate(search.choose, search.score, folds).scores
    before = np.concatenate([np.zeros(0), *(rows[:, 0] for rows in scores.values())])
    after = search.score(choice, np.arange(len(before)))
    types = {}
    for cell_type, rows in scores.items():
        part = slice(search.starts[cell_type], search.starts[cell_type] + len(rows))
        types[cell_type] = TypeStages(
            image_ids=scored[cell_type].image_ids,
            old=thresholds[cell_type],
            scores=rows,
            before=before[part],
            after=after[part],
            unseen=unseen[part],
            folds=folds[:, part],
            assessment=assess(before[part], after[part], unseen[part], plan.seed, units[part]),
        )
    return StageTuning(points, choice, types, assess(before, after, unseen, plan.seed, units), folds, given)
