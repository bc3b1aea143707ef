"""Score an ensemble, or each of its members alone, on annotated images by the competition's metric."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from kernel.data.annotated import AnnotatedImage
from kernel.data.splits import belongs_to
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.errors import InputError
from kernel.log import LOG
from kernel.masks.instances import CellMasks
from kernel.postprocess.clean import postprocess_instances
from kernel.postprocess.pictures import draw_picture
from kernel.scoring.metric import MetricScores, image_score, mean_scores
from kernel.scoring.predicting import PredictionJob, predict_jobs
from kernel.scoring.predictions import SoftPrediction
from kernel.segment import segment_image
from kernel.settings import Thresholds
from kernel.text import first_names, spreadsheet_cell


@dataclass(frozen=True)
class ImageResult:
    """The score of one image, and how it was predicted."""

    image_id: str
    cell_type: str  # the true one
    found_type: str | None  # of the masks; None where nothing was found
    counted_type: str  # by the proposals' counts, or by the first pass: whose members and thresholds were used
    cells: int  # annotated
    found_cells: int
    score: float
    seconds: float
    level_counts: tuple[int, ...]  # confident positions per FPN level
    fold: int | None = None  # out of fold: that of the image, which the ensemble has not seen
    seen_by: tuple[str, ...] = ()  # members that have learned from the image
    group: str | None = None  # what it belongs to, as its well (`belongs_to`); None: not known, it is alone
    is_stored: bool = False  # predicted by another run, whose seconds these are


@dataclass(frozen=True, eq=False)
class ScoredImage:
    """One image with its result and the masks that were scored."""

    entry: AnnotatedImage
    result: ImageResult
    masks: CellMasks  # of the submission
    truth: CellMasks


#: What is called with each image as soon as it is scored: to draw it, say, or to add it to a report.
Watcher = Callable[[ScoredImage], None]


def validate_ensemble(
    ensemble: Ensemble,
    images: Sequence[AnnotatedImage],
    watch: Watcher | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[ImageResult] | None:
    """Segment each image as the kernel does and score its masks.

    None where `is_stopped`, which is asked before each image, says so.

    Raises:
        InputError: an image cannot be read.
    """
    results = []
    for entry in tqdm(images, unit="image", mininterval=2):
        if is_stopped():
            return None
        found = segment_image(ensemble, entry.read())
        results.append(score_masks(entry, found.masks, found.prediction, watch))
    return results


def validate_jobs(
    jobs: Sequence[PredictionJob],
    devices: Sequence[str],
    folder: Path | None = None,
    watch: Watcher | None = None,
) -> list[ImageResult]:
    """As `validate_ensemble`, by ensembles that are loaded on `devices`; `folder`: where predictions are stored.

    Raises:
        InputError, RunError: as `predict_jobs`.
    """
    predictions = predict_jobs(jobs, devices, folder)
    return [
        score_image(job.image, prediction, job.files.manifest.ensemble.thresholds, watch, job.fold)
        for job, prediction in tqdm(predictions, total=len(jobs), unit="image", mininterval=2)
    ]


def score_image(
    entry: AnnotatedImage,
    prediction: SoftPrediction,
    thresholds: Mapping[str, Thresholds],
    watch: Watcher | None = None,
    fold: int | None = None,
) -> ImageResult:
    """Make the masks of the submission from a soft prediction, and score them. See `score_masks`."""
    return score_masks(entry, postprocess_instances(prediction.instances, thresholds), prediction, watch, fold)


def score_masks(
    entry: AnnotatedImage,
    masks: CellMasks,
    prediction: Prediction | SoftPrediction,
    watch: Watcher | None = None,
    fold: int | None = None,
) -> ImageResult:
    """Score the masks of an image: every image's result comes from here.

    Args:
        entry: the image.
        masks: of the submission.
        prediction: what they were made of; the result keeps its cell type, counts and seconds.
        watch: called with the result.
        fold: of the image, where the ensemble has not seen it; None: not known to any fold.
    """
    truth = entry.masks()
    result = ImageResult(
        image_id=entry.image_id,
        cell_type=entry.cell_type,
        found_type=masks.cell_type,
        counted_type=prediction.cell_type,
        cells=len(truth),
        found_cells=len(masks),
        score=image_score(masks, truth),
        seconds=sum(prediction.seconds.values()),
        level_counts=prediction.level_counts,
        fold=fold,
        group=belongs_to(entry.annotations),
        is_stored=isinstance(prediction, SoftPrediction) and prediction.is_stored,
    )
    if watch is not None:
        watch(ScoredImage(entry, result, masks, truth))
    return result


def draw_scored(scored: ScoredImage, folder: Path) -> None:
    """Draw the outlines of what was found into the existing folder, with the score below."""
    result = scored.result
    caption = (
        f"{result.image_id}, {result.cell_type}: {result.found_cells} cells found, {result.cells} annotated, "
        f"score {result.score:.3f}"
    )
    draw_picture(
        folder / f"{result.cell_type}_{result.image_id}.png", scored.entry.read(), scored.masks.rles(), caption
    )


def refuse_other_types(
    thresholds: Mapping[str, Thresholds], images: Iterable[AnnotatedImage], remedy: str = "give images of these"
) -> None:
    """Refuse images of a cell type without thresholds, as LIVECell's; `remedy`: what the message advises.

    Raises:
        InputError: there is such an image.
    """
    foreign = sorted({entry.cell_type for entry in images} - set(thresholds))
    if foreign:
        raise InputError(
            f"the images are of {', '.join(foreign)}, and there are thresholds for {', '.join(thresholds)}: {remedy}"
        )


def tell_mistaken_types(counted: Iterable[tuple[AnnotatedImage, str]]) -> None:
    """Warn of images that are counted, in a tuning, for another cell type than the annotated one."""
    mistaken = [
        f"{entry.image_id}, {entry.cell_type} found as {name}" for entry, name in counted if name != entry.cell_type
    ]
    if mistaken:
        LOG.warning("%d image(s) count for the type that the members find: %s", len(mistaken), first_names(mistaken))


def scores_of(results: Sequence[ImageResult]) -> MetricScores:
    """The metric over all images and per cell type."""
    return mean_scores((result.cell_type, result.score) for result in results)


def describe_scores(name: str, results: Sequence[ImageResult]) -> str:
    """One line: overall and per type scores, cell types found, seconds per image."""
    scores = scores_of(results)
    types = ", ".join(f"{cell_type} {score:.4f}" for cell_type, score in sorted(scores.per_type.items()))
    right = sum(result.found_type == result.cell_type for result in results)
    seconds = sum(result.seconds for result in results) / max(len(results), 1)
    stored = sum(result.is_stored for result in results)
    of_stored = f", as stored for {stored} of {len(results)}" if stored else ""
    return (
        f"{name}: {scores.overall:.4f} on {scores.images} images ({types}); "
        f"cell type right on {right}; {seconds:.1f} s per image{of_stored}"
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
            "seen_by",
        ]
    )
    for r in results:
        counts = " ".join(map(str, r.level_counts))
        row = [spreadsheet_cell(r.image_id), r.cell_type, r.found_type or "", r.counted_type, r.cells, r.found_cells]
        fold = "" if r.fold is None else r.fold
        writer.writerow([*row, f"{r.score:.6f}", f"{r.seconds:.2f}", counts, fold, "; ".join(r.seen_by)])
    return stream.getvalue()
