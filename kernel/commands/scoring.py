"""Ensembles on annotated images, out of fold too, and their scores, with the report where a folder is given."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bundle.folders import refuse_to_replace, replace_folder, scratch_folder
from kernel.commands.common import ensemble_jobs, folds_file
from kernel.data.annotated import AnnotatedImage
from kernel.data.splits import read_folds
from kernel.manifest import read_manifest

if TYPE_CHECKING:
    from kernel.validation.predicting import PredictionJob
    from kernel.validation.report_tuning import ThresholdSurface
    from kernel.validation.validate import ImageResult


def add_out_of_fold(parser: argparse.ArgumentParser) -> None:
    """The option --out-of-fold, for `list_jobs`."""
    parser.add_argument(
        "--out-of-fold", action="store_true", help="predict each image by the weights that have not seen its fold"
    )


def list_jobs(
    options: argparse.Namespace, images: Sequence[AnnotatedImage], folds: Mapping[str, int] | None = None
) -> list[PredictionJob]:
    """The images, as `list_fold` lists them, each with the ensemble that is to predict it.

    `folds`: of --out-of-fold, by image id, where they were read already.
    """
    from kernel.validation.out_of_fold import out_of_fold_jobs

    manifest = read_manifest(options.manifest)
    if not options.out_of_fold:
        jobs = ensemble_jobs(manifest, options.weights_dir, images)
    else:
        folds = read_folds(folds_file(options)) if folds is None else folds
        jobs = out_of_fold_jobs(manifest, options.weights_dir, images, folds, options.data)
    return [job.in_dtype(options.dtype) for job in jobs]


def refuse_to_replace_report(out: Path) -> None:
    """Raise InputError where `out` is there and no earlier report: better before the images than after."""
    from kernel.validation.report import REPORT_FOLDER, REPORT_PAGE

    refuse_to_replace(out, ("scores.csv", "pictures", REPORT_PAGE, REPORT_FOLDER), marker="scores.csv")


def score_jobs(
    jobs: Sequence[PredictionJob],
    devices: Sequence[str],
    out: Path | None,
    title: str,
    predictions: Path | None = None,
    surfaces: Sequence[ThresholdSurface] = (),
) -> list[ImageResult]:
    """Predict and score images; `out` gets report.html, scores.csv and a picture of each, whole or not at all.

    Args:
        jobs: the images, each with the ensemble that predicts it.
        devices: as ["cpu"] or ["cuda:0", "cuda:1"].
        out: a folder to write, one that `refuse_to_replace_report` has let pass. None: no report.
        title: of the report.
        predictions: a folder that keeps the soft predictions, or has them.
        surfaces: of a tuning, for the report.

    Raises InputError as `validate_jobs` does.
    """
    from kernel.validation.report import ReportBuilder
    from kernel.validation.validate import results_to_csv, validate_jobs

    if out is None:
        return validate_jobs(jobs, devices, predictions)
    with scratch_folder(out.parent, out.name) as scratch:
        folder, report = scratch / "new", ReportBuilder(title)
        pictures = folder / "pictures"
        pictures.mkdir(parents=True)
        results = validate_jobs(jobs, devices, predictions, pictures, report)
        report.write(folder, surfaces)
        (folder / "scores.csv").write_text(results_to_csv(results), encoding="utf-8", newline="\n")
        replace_folder(folder, out)
    return results
