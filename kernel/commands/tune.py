"""`tune`: choose thresholds on annotated images: the post-processing's, or with --stages those before it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundle.site import use_vendored_packages
from kernel.commands.common import add_ensemble_arguments, list_fold, load_options_ensemble
from kernel.commands.scoring import add_out_of_fold
from kernel.commands.tune_stages import add_stage_arguments, run_stages
from kernel.commands.tuning_results import evidence_folder, leave_results
from kernel.data.annotated import AnnotatedImage
from kernel.data.splits import FOLDS_NAME, read_folds
from kernel.errors import InputError
from kernel.manifest import read_manifest

if TYPE_CHECKING:
    from kernel.validation.search import TuningPlan


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "tune",
        help="choose the post-processing's thresholds on annotated images",
        description="Choose, per cell type, mask_threshold, mask_nms_threshold, min_size and confidence. Thresholds "
        "that nothing beats beyond noise stay. What the tuning is worth on unseen images is found by cross-validation "
        f"over the images: by their folds in --folds-csv, or in {FOLDS_NAME} of --data, or else (as with --fold) by "
        "folds that are drawn.",
    )
    add_ensemble_arguments(parser, stored=True)
    for name, kind, metavar, text in (
        (
            "--grid",
            Path,
            "TOML",
            "values to try: a list by threshold, for all cell types or in a type's table, [cort]",
        ),
        ("--trials", int, "N", "optuna's trials for each choice, of which there is one more than folds (default: 200)"),
        ("--seed", int, "S", "of everything that is drawn (default: 0)"),
        ("--level", float, "P", "the chance to report a gain where there is none (default: 0.05)"),
        (
            "--out",
            Path,
            "FOLDER",
            "for the evidence (default with --write: MANIFEST-tuning or MANIFEST-stages, beside the manifest)",
        ),
    ):
        parser.add_argument(name, type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--search",
        choices=("grid", "optuna"),
        help="score every point of the grid (default), or optuna's trials within its ranges",
    )
    parser.add_argument("--write", action="store_true", help="put the thresholds into the manifest")
    add_stage_arguments(parser)
    add_out_of_fold(parser)
    parser.set_defaults(run=run_tune)


def run_tune(options: argparse.Namespace) -> None:
    """Choose the post-processing's thresholds, or those of the stages before it."""
    use_vendored_packages()
    if not options.stages and (options.stage_grid or options.try_members):
        raise InputError("--stage-grid and --try-members belong to --stages, which is not given")
    if options.stages:
        _refuse_with_stages(options)
    elif options.out_of_fold:
        raise InputError(
            "--out-of-fold is for --stages; for the post-processing's thresholds store such predictions by "
            "`validate --out-of-fold --predictions FOLDER`, and give that folder by --predictions"
        )
    from kernel.validation.search import TuningPlan, folds_of, read_grids

    _check_numbers(options)
    given = {name: getattr(options, name) for name in ("search", "trials", "seed", "level")}
    given = {name: value for name, value in given.items() if value is not None}
    if options.grid is not None:
        given["grid"], given["grid_of_type"] = read_grids(options.grid)
    given["folds"] = _take_folds(options)
    plan = TuningPlan(**given)
    images = list_fold(options)
    folds_of([entry.image_id for entry in images], plan)  # where they lack an image, it is told before the long part
    if options.stages:
        run_stages(options, images, plan)
    else:
        _run_thresholds(options, images, plan)


def _run_thresholds(options: argparse.Namespace, images: Sequence[AnnotatedImage], plan: TuningPlan) -> None:
    from kernel.validation.evidence import EVIDENCE_MARKER, EVIDENCE_NAMES, describe_tuning, write_evidence
    from kernel.validation.manifest_edit import edited_manifest
    from kernel.validation.predictions import read_predictions, settings_fingerprint
    from kernel.validation.validate import refuse_other_types, tune_ensemble, tune_predictions

    out = evidence_folder(options, "tuning", EVIDENCE_NAMES, EVIDENCE_MARKER)
    if options.predictions is None:
        ensemble = load_options_ensemble(options)
        thresholds = ensemble.settings.thresholds
        tunings = tune_ensemble(ensemble, images, plan)
    else:
        manifest = read_manifest(options.manifest)
        thresholds = manifest.ensemble.thresholds
        refuse_other_types(thresholds, images)
        stored = read_predictions(options.predictions, images, settings_fingerprint(manifest))
        tunings = tune_predictions(stored, thresholds, plan)
    print(describe_tuning(list(tunings.values()), plan))
    text, difference = edited_manifest(
        options.manifest,
        thresholds,
        {cell_type: tuning.new for cell_type, tuning in tunings.items()},
    )
    leave_results(
        options, text, difference, out, lambda folder: write_evidence(folder, list(tunings.values()), plan, difference)
    )


def _refuse_with_stages(options: argparse.Namespace) -> None:
    if options.predictions is not None:
        raise InputError("--stages needs the network again and again: give --weights-dir, and not --predictions")
    for name in ("grid", "search", "trials"):
        if getattr(options, name) is not None:
            instead = ": use --stage-grid" if name == "grid" else ""
            raise InputError(f"--{name} is for the post-processing's thresholds, not for --stages{instead}")


def _check_numbers(options: argparse.Namespace) -> None:
    if options.trials is not None and options.trials < 1:
        raise InputError(f"--trials {options.trials}: it must be at least 1")
    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise InputError(f"--seed {options.seed}: it must be from 0 to {2**32 - 1}")
    if options.level is not None and not 0 < options.level < 1:
        raise InputError(f"--level {options.level}: it must lie between 0 and 1, as 0.05 does")


def _take_folds(options: argparse.Namespace) -> dict[str, int] | None:
    """The fold of each image, to hold out in cross-validation; None with --fold, which leaves one, or without a file.

    Takes --folds-csv out of the options where it serves this, and does not belong to --fold.
    """
    if options.fold is not None:
        return None
    path = options.folds_csv or options.data / FOLDS_NAME
    if options.folds_csv is None and not path.is_file():
        return None
    options.folds_csv = None
    return read_folds(path)
