"""Tuning the post-processing's thresholds, cell type by cell type: which are chosen, and what that is worth.

In cross-validation optuna searches anew for every fold, since where it looks depends on the images that it sees.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from tqdm import tqdm

from kernel.data.annotated import AnnotatedImage
from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.fallbacks import predict_image
from kernel.postprocess.clean import most_frequent_cell_type, thresholds_for
from kernel.scoring.predictions import SoftPrediction, soft_prediction
from kernel.scoring.scores import refuse_other_types, tell_mistaken_types
from kernel.settings import Thresholds
from kernel.tuning.choosing import Assessment, CrossValidation, assess, cross_validate
from kernel.tuning.plan import SearchName, TuningPlan, folds_of, units_of
from kernel.tuning.threshold_grid import ThresholdGrid
from kernel.tuning.threshold_search import SEARCHES, Search, SearchResult, TuningImage


@dataclass(frozen=True, eq=False)
class TypeTuning:
    """The thresholds chosen for one cell type, and the evidence for them. n images, P points tried."""

    cell_type: str
    image_ids: tuple[str, ...]
    grid: ThresholdGrid  # the plan's, and the old values
    old: Thresholds
    found: SearchResult  # on all n images
    before: np.ndarray  # (n,) scores with the old thresholds
    after: np.ndarray  # (n,) scores with the new ones: of the images that they were chosen on
    validation: CrossValidation[SearchResult]
    folds_given: bool  # whether the folds were given, else drawn
    assessment: Assessment

    @property
    def new(self) -> Thresholds:
        return self.found.thresholds

    @property
    def has_gain(self) -> bool:
        """Whether anything beat the old thresholds beyond noise; else the new ones are the old ones."""
        return self.found.choice.point is not None


def tune_cell_type(cell_type: str, images: Sequence[TuningImage], base: Thresholds, plan: TuningPlan) -> TypeTuning:
    """Choose the post-processing's thresholds for images of one cell type, and find out what that is worth.

    Args:
        cell_type: theirs.
        images: n of them.
        base: the thresholds as they are; they stay where nothing beats them beyond noise.
        plan: how to tune.

    Raises:
        InputError: the plan's folds lack an image; optuna is asked for and not installed.
        ValueError: an unknown search.
    """
    if plan.search not in get_args(SearchName):
        raise ValueError(f"search '{plan.search}' is not one of {get_args(SearchName)}")
    everything = np.arange(len(images))
    grid = plan.grid_for(cell_type).including(base)
    image_ids = [image.image_id for image in images]
    folds, given = folds_of(image_ids, plan)
    search: Search = SEARCHES[plan.search](images, base, grid, plan)
    found = search.choose(everything)
    validation = cross_validate(search.choose, search.score, folds)
    before, after = found.candidates.current, search.score(found, everything)
    return TypeTuning(
        cell_type=cell_type,
        image_ids=tuple(image_ids),
        grid=grid,
        old=base,
        found=found,
        before=before,
        after=after,
        validation=validation,
        folds_given=given,
        assessment=assess(before, after, validation.scores, plan.seed, units_of(image_ids, plan)),
    )


def assess_together(tunings: Sequence[TypeTuning], plan: TuningPlan) -> Assessment:
    """What the tuning of several cell types by a plan is worth over all their images, each counting the same."""
    before, after, unseen = (
        np.concatenate([np.zeros(0), *scores])
        for scores in (
            [tuning.before for tuning in tunings],
            [tuning.after for tuning in tunings],
            [tuning.validation.scores for tuning in tunings],
        )
    )
    units = units_of([image_id for tuning in tunings for image_id in tuning.image_ids], plan)
    return assess(before, after, unseen, plan.seed, units)


def tune_ensemble(
    ensemble: Ensemble, images: Sequence[AnnotatedImage], plan: TuningPlan | None = None
) -> dict[str, TypeTuning]:
    """`tune_predictions` of what the ensemble predicts.

    Raises:
        InputError: a cell type that the ensemble has no thresholds of, as LIVECell's; and as `tune_cell_type`.
    """
    refuse_other_types(ensemble.settings.thresholds, images)
    predictions = ((entry, soft_prediction(predict_image(ensemble, entry.read()))) for entry in images)
    seen = tqdm(predictions, total=len(images), unit="image", mininterval=2)
    return tune_predictions(seen, ensemble.settings.thresholds, plan)


def tune_predictions(
    predictions: Iterable[tuple[AnnotatedImage, SoftPrediction]],
    thresholds: Mapping[str, Thresholds],
    plan: TuningPlan | None = None,
) -> dict[str, TypeTuning]:
    """Choose thresholds of the post-processing for each cell type among the images.

    An image counts for the type that the members find, since the submission takes that type's thresholds for it.

    Args:
        predictions: of annotated images: the cells that the ensemble's own box thresholds let through.
        thresholds: those so far, by cell type.
        plan: how to tune; None: as `TuningPlan` says.

    Returns:
        By cell type, what was chosen and what it is worth.

    Raises:
        InputError: as `tune_cell_type`.
    """
    plan = plan or TuningPlan()
    by_type: dict[str, list[TuningImage]] = {}
    counted: list[tuple[AnnotatedImage, str]] = []
    for entry, prediction in predictions:
        found_type = most_frequent_cell_type(prediction.instances.labels) or entry.cell_type
        counted.append((entry, found_type))
        image = TuningImage(entry.image_id, prediction.instances, entry.masks())
        by_type.setdefault(found_type, []).append(image)
    tell_mistaken_types(counted)
    return {
        cell_type: tune_cell_type(cell_type, seen, thresholds_for(thresholds, cell_type), plan)
        for cell_type, seen in by_type.items()
    }
