"""Ensembles on annotated images, out of fold too, and their scores, with the report where a folder is given."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kernel.commands.common import choose_members, folds_file, whole_folder
from kernel.commands.results import SCORES_TABLE
from kernel.data.annotated import AnnotatedImage
from kernel.data.splits import read_folds
from kernel.manifest.types import MASK_KINDS

if TYPE_CHECKING:
    from kernel.scoring.predicting import PredictionJob
    from kernel.scoring.scores import ImageResult, ScoredImage
    from kernel.scoring.seen import SeenImages
    from kernel.tuning.stage_tuning import TypeStages
    from kernel.tuning.surface import ThresholdSurface
    from kernel.tuning.threshold_tuning import TypeTuning


def add_out_of_fold(parser: argparse.ArgumentParser) -> None:
    """The option --out-of-fold, for `list_jobs`."""
    parser.add_argument(
        "--out-of-fold", action="store_true", help="predict each image by the weights that have not seen its fold"
    )


def list_jobs(
    options: argparse.Namespace,
    images: Sequence[AnnotatedImage],
    folds: Mapping[str, int] | None = None,
    devices: Sequence[str] = (),
) -> list[PredictionJob]:
    """The images, as `list_fold` lists them, each with the ensemble that is to predict it.

    Args:
        options: with those of `add_ensemble_arguments` and `add_out_of_fold`.
        images: to predict.
        folds: of --out-of-fold, by image id, where they were read already.
        devices: that predict them, for what is stored to tell the dtype that they compute in; none: that is asked for.

    Raises:
        InputError: as `choose_members`, `find_ensemble`, `read_folds` and `out_of_fold_jobs`.
    """
    from kernel.scoring.out_of_fold import out_of_fold_jobs
    from kernel.scoring.predicting import PredictionJob

    chosen = choose_members(options).on(devices)
    if not options.out_of_fold:
        files = chosen.files()
        return [PredictionJob(entry, files) for entry in images]
    if folds is None:
        folds = read_folds(folds_file(options), {entry.image_id for entry in images})
    jobs = out_of_fold_jobs(chosen.manifest, chosen.weights_dir, images, folds, options.data)
    return [job.in_dtype(chosen.dtype) for job in jobs]


def tell_seen(jobs: Sequence[PredictionJob]) -> SeenImages:
    """Print which images members have learned from that are to predict them, and warn of those at another scale.

    Raises:
        InputError: an image cannot be read; or as `warn_of_other_scales`.
    """
    from kernel.scoring.predicting import warn_of_other_scales
    from kernel.scoring.seen import find_seen

    warn_of_other_scales(jobs)
    seen = find_seen(jobs)
    for line in seen.describe():
        print(line)
    return seen


def describe_unseen(seen: SeenImages, types: Iterable[TypeTuning | TypeStages]) -> list[str]:
    """What a tuning of several cell types is worth on the images that no member has learned from."""
    found = list(types)
    ids = [image_id for one in found for image_id in one.image_ids]
    before, after = (
        np.concatenate([np.zeros(0), *scores])
        for scores in ([one.before for one in found], [one.after for one in found])
    )
    return seen.describe_choice(ids, before, after)


def score_jobs(
    jobs: Sequence[PredictionJob],
    devices: Sequence[str],
    out: Path | None,
    title: str,
    predictions: Path | None = None,
    surfaces: Sequence[ThresholdSurface] = (),
    seen: SeenImages | None = None,
) -> list[ImageResult]:
    """Predict and score images; `out` gets report.html, scores.csv and a picture of each, whole or not at all.

    Args:
        jobs: the images, each with the ensemble that predicts it.
        devices: as ["cpu"] or ["cuda:0", "cuda:1"].
        out: a folder to write, one that `refuse_to_replace_result` has let pass. None: no report.
        title: of the report.
        predictions: a folder that keeps the soft predictions, or has them.
        surfaces: of a tuning, for the report.
        seen: who has learned from which image, for the results.

    Raises:
        InputError: as `validate_jobs`, and where `out` cannot be written.
    """
    from kernel.report.builder import ReportBuilder
    from kernel.scoring.scores import draw_scored, results_to_csv, validate_jobs

    mark = list if seen is None else seen.mark
    if out is None:
        return mark(validate_jobs(jobs, devices, predictions))
    report = ReportBuilder(title)
    with whole_folder(out) as folder:
        pictures = folder / "pictures"
        pictures.mkdir()

        def show(scored: ScoredImage) -> None:
            report.add(scored)
            draw_scored(scored, pictures)

        results = mark(validate_jobs(jobs, devices, predictions, show))
        report.write(folder, surfaces)
        (folder / SCORES_TABLE).write_text(results_to_csv(results), encoding="utf-8", newline="\n")
    return results


def print_each_member(jobs: Sequence[PredictionJob], devices: Sequence[str], predictions: Path | None = None) -> None:
    """Score each member of the jobs' ensembles alone, but for mask networks, which find no cells.

    Args:
        jobs: as for `score_jobs`, told who has seen their images (`SeenImages.told_to`); at least one.
        devices: as for `score_jobs`.
        predictions: a folder that keeps the soft predictions, each member's in one of its own, or has them.
    """
    from kernel.scoring.scores import describe_scores, validate_jobs
    from kernel.scoring.seen import known_seen

    for member in jobs[0].files.manifest.members:
        if member.kind in MASK_KINDS:
            continue
        folder = predictions and predictions / "alone" / member.name
        alone = [job.alone(member.name) for job in jobs]
        results = validate_jobs(alone, devices, folder)
        print("\n".join([describe_scores(member.name, results), *known_seen(alone).describe_results(results)]))
