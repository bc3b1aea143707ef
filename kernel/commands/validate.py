"""`validate`: score an ensemble, and its members alone, on annotated images."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle.folders import refuse_to_replace, replace_folder, scratch_folder
from bundle.site import use_vendored_packages
from kernel.commands.common import add_ensemble_arguments, check_device, ensemble_jobs, folds_file, list_fold
from kernel.data.splits import read_folds
from kernel.errors import InputError
from kernel.manifest import read_manifest

if TYPE_CHECKING:
    from kernel.validation.predicting import PredictionJob

VALIDATE_HELP = """\
Score an ensemble on annotated images, by the competition's metric.

Out of fold, each image is predicted by weights that were trained without its fold (train --fold K): in the manifest,
each member's `file` then holds {fold}, as in "htc_{fold}.safetensors". With --fold K, that fold alone.

Stored predictions (--predictions) are soft: no threshold of the post-processing is in them. An image whose prediction
is there already, made of the same weights, settings and pixels, is not predicted again, so that a run that was stopped
goes on; `tune --predictions` needs no weights.

Several devices (--device cuda:0,cuda:1) share the images."""


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "validate",
        help="score an ensemble on annotated images",
        description=VALIDATE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_ensemble_arguments(parser)
    parser.add_argument("--out", type=Path, help="folder for report.html, scores.csv and a picture of each image")
    parser.add_argument(
        "--tuning", type=Path, metavar="FOLDER", help="what `tune --out` has written: its surfaces go into the report"
    )
    parser.add_argument("--each-member", action="store_true", help="score each member alone as well")
    parser.add_argument(
        "--out-of-fold", action="store_true", help="predict each image by the weights that have not seen its fold"
    )
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FOLDER",
        help="store the predictions there, a file per image, and use those that are there",
    )
    parser.set_defaults(run=run_validate)


def run_validate(options: argparse.Namespace) -> None:
    """Score an ensemble."""
    use_vendored_packages()
    from kernel.validation.evidence import read_surfaces
    from kernel.validation.report import REPORT_FOLDER, REPORT_PAGE, ReportBuilder
    from kernel.validation.validate import describe_folds, describe_scores, results_to_csv, validate_jobs

    if options.out is not None:
        refuse_to_replace(options.out, ("scores.csv", "pictures", REPORT_PAGE, REPORT_FOLDER), marker="scores.csv")
    elif options.tuning is not None:
        raise InputError("--tuning is for the report of --out, which is not given")
    surfaces = read_surfaces(options.tuning) if options.tuning is not None else []
    devices = check_devices(options.device)
    jobs = list_jobs(options)
    with ExitStack() as stack:
        pictures = report = None
        if options.out is not None:
            scratch = stack.enter_context(scratch_folder(options.out.parent, options.out.name))
            pictures = scratch / "new" / "pictures"
            pictures.mkdir(parents=True)
            report = ReportBuilder(f"Cells found and missed in {options.data.resolve().name}")
        results = validate_jobs(jobs, devices, options.predictions, pictures, report)
        if pictures is not None and report is not None:
            report.write(pictures.parent, surfaces)
            (pictures.parent / "scores.csv").write_text(results_to_csv(results), encoding="utf-8")
            replace_folder(pictures.parent, options.out)
    for line in describe_folds(results):
        print(line)
    print(describe_scores("ensemble", results))
    if options.out is not None:
        print(f"report.html, scores.csv and pictures: {options.out}")
    if options.each_member:
        for member in jobs[0].files.manifest.members:
            folder = options.predictions and options.predictions / "alone" / member.name
            print(
                describe_scores(member.name, validate_jobs([job.alone(member.name) for job in jobs], devices, folder))
            )


def list_jobs(options: argparse.Namespace) -> list[PredictionJob]:
    """The images that the command line names, each with the ensemble that is to predict it."""
    from kernel.validation.out_of_fold import out_of_fold_jobs

    images = list_fold(options)
    manifest = read_manifest(options.manifest)
    if not options.out_of_fold:
        jobs = ensemble_jobs(manifest, options.weights_dir, images)
    else:
        folds = read_folds(folds_file(options))
        jobs = out_of_fold_jobs(manifest, options.weights_dir, images, folds, options.data)
    return [job.in_dtype(options.dtype) for job in jobs]


def check_devices(names: str | None) -> list[str]:
    """The devices of --device, as "cuda:0,cuda:1". Raises InputError as `check_device`."""
    return [check_device(name) for name in names.split(",")] if names else [check_device(None)]
