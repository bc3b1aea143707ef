"""Score an ensemble, or each of its members alone, on annotated images by the competition's metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from kernel.data.annotated import AnnotatedImage
from kernel.ensemble.ensemble import Ensemble
from kernel.errors import InputError
from kernel.postprocess.clean import postprocess_instances
from kernel.runtime.pictures import draw_picture
from kernel.settings import CELL_TYPES, CLS_USE, EQUAL_WEIGHTS, Thresholds
from kernel.validation.metric import MetricScores, image_score, mean_scores
from kernel.validation.predicting import PredictionJob, predict_jobs
from kernel.validation.predictions import SoftPrediction, soft_prediction
from kernel.validation.report import ReportBuilder, ReportImage
from kernel.validation.search import TuningImage, TuningPlan, TypeTuning, tune_cell_type


@dataclass(frozen=True)
class ImageResult:
    """What came of one image."""

    image_id: str
    cell_type: str  # the true one
    found_type: str | None  # of the masks; None where nothing was found
    counted_type: str  # by the proposals' counts, or by the first pass
    cells: int  # annotated
    found_cells: int
    score: float
    seconds: float
    level_counts: tuple[int, ...]
    fold: int | None = None  # out of fold: that of the image, which the ensemble has not seen


def validate_ensemble(
    ensemble: Ensemble,
    images: Sequence[AnnotatedImage],
    pictures: Path | None = None,
    report: ReportBuilder | None = None,
) -> list[ImageResult]:
    """Segment each image as the kernel does and score its masks; `pictures`: an existing folder for outlines.

    Each image is added to `report` as well.

    Raises InputError for an image that cannot be read.
    """
    predictions = ((entry, soft_prediction(ensemble.predict(entry.read()))) for entry in images)
    return [
        score_image(entry, prediction, ensemble.settings.thresholds, pictures, report)
        for entry, prediction in tqdm(predictions, total=len(images), unit="image", mininterval=2)
    ]


def validate_jobs(
    jobs: Sequence[PredictionJob],
    devices: Sequence[str],
    folder: Path | None = None,
    pictures: Path | None = None,
    report: ReportBuilder | None = None,
) -> list[ImageResult]:
    """As `validate_ensemble`, by ensembles that are loaded on `devices`; `folder`: where predictions are stored.

    Raises InputError and RunError as `predict_jobs` does.
    """
    predictions = predict_jobs(jobs, devices, folder)
    return [
        score_image(job.image, prediction, job.files.manifest.ensemble.thresholds, pictures, report, job.fold)
        for job, prediction in tqdm(predictions, total=len(jobs), unit="image", mininterval=2)
    ]


def score_image(
    entry: AnnotatedImage,
    prediction: SoftPrediction,
    thresholds: Mapping[str, Thresholds],
    pictures: Path | None = None,
    report: ReportBuilder | None = None,
    fold: int | None = None,
) -> ImageResult:
    """Make the masks of the submission of what was predicted, and score them: every image's result comes from here.

    `pictures`: an existing folder for outlines. `report`: what the image is added to. `fold`: which the ensemble has
    not seen.
    """
    masks = postprocess_instances(prediction.instances, thresholds)
    truth = entry.masks()
    result = ImageResult(
        image_id=entry.image_id,
        cell_type=entry.cell_type,
        found_type=masks.cell_type,
        counted_type=prediction.cell_type,
        cells=len(truth),
        found_cells=len(masks),
        score=image_score(masks.masks, truth),
        seconds=sum(prediction.seconds.values()),
        level_counts=prediction.level_counts,
        fold=fold,
    )
    if report is not None:
        report.add(
            ReportImage(
                image_id=result.image_id,
                cell_type=result.cell_type,
                found_type=result.found_type,
                prediction=masks.masks,
                truth=truth,
                read_pixels=entry.read,
                seconds=result.seconds,
            )
        )
    if pictures is not None:
        caption = (
            f"{result.image_id}, {result.cell_type}: {result.found_cells} cells found, {result.cells} annotated, "
            f"score {result.score:.3f}"
        )
        draw_picture(pictures / f"{result.cell_type}_{result.image_id}.png", entry.read(), masks.rles(), caption)
    return result


def lone_member(ensemble: Ensemble, name: str) -> Ensemble:
    """An ensemble of the one member `name`, used for every cell type, with the same settings."""
    (member,) = (member for member in ensemble.members if member.name == name)
    alone = replace(member, use_for=frozenset((*CELL_TYPES, CLS_USE)), weights=EQUAL_WEIGHTS)
    return Ensemble(
        [alone],
        ensemble.settings,
        ensemble.device,
        ensemble.dtype,
        ensemble.views_per_batch,
        ensemble.feature_budget_bytes,
    )


def refuse_other_types(
    thresholds: Mapping[str, Thresholds], images: Iterable[AnnotatedImage], remedy: str = "give images of these"
) -> None:
    """Raise InputError, with a `remedy`, where an image is of a cell type without thresholds, as LIVECell's."""
    foreign = sorted({entry.cell_type for entry in images} - set(thresholds))
    if foreign:
        raise InputError(
            f"the images are of {', '.join(foreign)}, and there are thresholds for {', '.join(thresholds)}: {remedy}"
        )


def tune_ensemble(
    ensemble: Ensemble, images: Sequence[AnnotatedImage], plan: TuningPlan | None = None
) -> dict[str, TypeTuning]:
    """`tune_predictions` of what the ensemble predicts.

    Raises InputError for a cell type that the ensemble has no thresholds of, as LIVECell's, and as `tune_cell_type`.
    """
    refuse_other_types(ensemble.settings.thresholds, images)
    predictions = ((entry, soft_prediction(ensemble.predict(entry.read()))) for entry in images)
    seen = tqdm(predictions, total=len(images), unit="image", mininterval=2)
    return tune_predictions(seen, ensemble.settings.thresholds, plan)


def tune_predictions(
    predictions: Iterable[tuple[AnnotatedImage, SoftPrediction]],
    thresholds: Mapping[str, Thresholds],
    plan: TuningPlan | None = None,
) -> dict[str, TypeTuning]:
    """Per cell type among the images: the thresholds of the post-processing to take, and what they are worth.

    Cells are those that the ensemble's own box thresholds let through. thresholds: those so far, of each of the types.
    plan: how to tune; None: as `TuningPlan` says.

    Raises InputError as `tune_cell_type`.
    """
    plan = plan or TuningPlan()
    by_type: dict[str, list[TuningImage]] = {}
    for entry, prediction in predictions:
        image = TuningImage(entry.image_id, prediction.instances, entry.masks())
        by_type.setdefault(entry.cell_type, []).append(image)
    return {
        cell_type: tune_cell_type(cell_type, seen, thresholds[cell_type], plan) for cell_type, seen in by_type.items()
    }


def scores_of(results: Sequence[ImageResult]) -> MetricScores:
    """The metric over all images and per cell type."""
    return mean_scores((result.cell_type, result.score) for result in results)


def describe_scores(name: str, results: Sequence[ImageResult]) -> str:
    """One line: overall and per type scores, cell types found, seconds per image."""
    scores = scores_of(results)
    types = ", ".join(f"{cell_type} {score:.4f}" for cell_type, score in sorted(scores.per_type.items()))
    right = sum(result.found_type == result.cell_type for result in results)
    seconds = sum(result.seconds for result in results) / max(len(results), 1)
    return (
        f"{name}: {scores.overall:.4f} on {scores.images} images ({types}); "
        f"cell type right on {right}; {seconds:.1f} s per image"
    )


def describe_folds(results: Sequence[ImageResult]) -> list[str]:
    """A line per fold, as `describe_scores`; none where the images are not of folds."""
    folds = sorted({result.fold for result in results if result.fold is not None})
    return [describe_scores(f"fold {fold}", [r for r in results if r.fold == fold]) for fold in folds]


def results_to_csv(results: Sequence[ImageResult]) -> str:
    """The results as CSV text, a row per image."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        [
            "id",
            "cell_type",
            "found_type",
            "counted_type",
            "cells",
            "found_cells",
            "score",
            "seconds",
            "level_counts",
            "fold",
        ]
    )
    for r in results:
        counts = " ".join(map(str, r.level_counts))
        row = [r.image_id, r.cell_type, r.found_type or "", r.counted_type, r.cells, r.found_cells]
        writer.writerow([*row, f"{r.score:.6f}", f"{r.seconds:.2f}", counts, "" if r.fold is None else r.fold])
    return stream.getvalue()
