"""`tune`: choose thresholds on annotated images: the post-processing's, or with --stages those before it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel.commands.common import (
    ENSEMBLE_READS,
    add_ensemble_arguments,
    check_device,
    folds_file,
    list_fold,
)
from kernel.commands.options import number, whole_number
from kernel.commands.results import refuse_to_replace_result
from kernel.commands.rules import CommandRules, Idle, Needs, is_given
from kernel.commands.scoring import add_out_of_fold, describe_unseen, list_jobs, tell_seen
from kernel.commands.tune_stages import add_stage_arguments, run_stages
from kernel.commands.tuning_results import REPLACE_NEEDS, add_result_arguments, evidence_folder, leave_results
from kernel.data.annotated import AnnotatedImage
from kernel.data.splits import FOLDS_NAME, belongs_to, read_folds, torn_groups
from kernel.errors import InputError
from kernel.log import LOG
from kernel.manifest.reader import read_manifest
from kernel.text import first_names
from kernel.vendored import use_vendored_packages

if TYPE_CHECKING:
    from kernel.tuning.plan import TuningPlan


def written(options: argparse.Namespace) -> Iterator[Path]:
    """The folder of the evidence; the manifest is read and written in one."""
    out = evidence_folder(options, "stages" if options.stages else "tuning")
    if out is not None:
        yield out


def has_stages(options: argparse.Namespace) -> bool:
    """Whether it is about the stages before the post-processing."""
    return options.stages


RULES = CommandRules(
    effects=(
        Needs(["stage_grid", "try_members"], ["stages"]),
        Idle(
            ["predictions"],
            has_stages,
            "is of no use: --stages needs the network again and again: give --weights-dir in its place",
        ),
        Idle(
            ["grid"],
            has_stages,
            "is for the post-processing's thresholds, not for --stages: use --stage-grid",
        ),
        Idle(["search", "trials"], has_stages, "is for the post-processing's thresholds, not for --stages"),
        Idle(
            ["out_of_fold"],
            lambda options: not options.stages,
            "is for --stages; for the post-processing's thresholds store such predictions by "
            "`validate --out-of-fold --predictions FOLDER`, and give that folder by --predictions",
        ),
        Idle(
            ["trials"],
            lambda options: options.search != "optuna",
            "is for --search optuna: a grid tries each of its points",
        ),
        Idle(
            ["device", "dtype"],
            lambda options: options.predictions,
            "is for the networks, and --predictions has what they found",
        ),
        REPLACE_NEEDS,
    ),
    reads=(*ENSEMBLE_READS, "predictions", "grid"),
    writes=written,
)


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "tune",
        help="choose the post-processing's thresholds on annotated images",
        description="Choose, per cell type, mask_threshold, mask_nms_threshold, min_size and confidence. Thresholds "
        "that nothing beats beyond noise stay, where images of a well count as one. What the tuning is worth on unseen "
        "images is found by cross-validation over the images: by their folds in --folds-csv, or in "
        f"{FOLDS_NAME} of --data, or else (as with --fold) by folds that are drawn.",
    )
    add_ensemble_arguments(parser, stored=True)
    parser.add_argument(
        "--grid",
        type=Path,
        metavar="TOML",
        help="values to try: a list by threshold, for all cell types or in a type's table, [cort]",
    )
    parser.add_argument(
        "--search",
        choices=("grid", "optuna"),
        help="score every point of the grid (default), or optuna's trials within its ranges",
    )
    parser.add_argument(
        "--trials",
        type=whole_number(1),
        metavar="N",
        help="optuna's trials for each choice, of which there is one more than folds (default: 200)",
    )
    parser.add_argument("--seed", type=whole_number(), metavar="S", help="of everything that is drawn (default: 0)")
    parser.add_argument(
        "--level",
        type=number(),
        metavar="P",
        help="the chance to report a gain where there is none (default: 0.05); with --search optuna it is higher",
    )
    add_result_arguments(
        parser,
        "for the evidence (default with --write: MANIFEST-tuning or MANIFEST-stages, beside the manifest)",
        "put the thresholds into the manifest",
    )
    add_stage_arguments(parser)
    add_out_of_fold(parser)
    parser.set_defaults(run=run_tune, rules=RULES)


def run_tune(options: argparse.Namespace) -> None:
    """Choose the post-processing's thresholds, or those of the stages before it."""
    use_vendored_packages()
    from kernel.tuning.plan import folds_of

    plan = read_plan(options)
    images = list_fold(options)
    plan = keep_together(replace(plan, folds=read_held_out_folds(options, images)), images)
    folds_of([entry.image_id for entry in images], plan)  # an image in no fold: told before the long part
    if options.stages:
        run_stages(options, images, plan)
    else:
        run_thresholds(options, images, plan)


def run_thresholds(options: argparse.Namespace, images: Sequence[AnnotatedImage], plan: TuningPlan) -> None:
    """Choose the post-processing's thresholds on `images`."""
    from kernel.manifest.edit import edited_manifest
    from kernel.scoring.predictions import read_predictions
    from kernel.scoring.scores import refuse_other_types
    from kernel.scoring.seen import stored_seen
    from kernel.tuning.descriptions import describe_tuning
    from kernel.tuning.evidence import write_evidence
    from kernel.tuning.threshold_evidence import threshold_evidence
    from kernel.tuning.threshold_tuning import tune_ensemble, tune_predictions

    out = evidence_folder(options, "tuning")
    if out is not None:
        refuse_to_replace_result(out, "tune", replace=options.replace)
    if options.predictions is None:
        jobs = list_jobs(options, images)
        seen = tell_seen(jobs)
        ensemble = jobs[0].files.load(check_device(options.device))  # of all: --out-of-fold is for --stages
        thresholds = ensemble.settings.thresholds
        tunings = tune_ensemble(ensemble, images, plan)
    else:
        manifest = read_manifest(options.manifest)
        thresholds = manifest.ensemble.thresholds
        refuse_other_types(thresholds, images)
        stored = read_predictions(options.predictions, images, manifest)
        seen = stored_seen(options.predictions, images)
        print("\n".join(seen.describe()), end="\n" if seen.describe() else "")
        tunings = tune_predictions(stored, thresholds, plan)
    print(describe_tuning(list(tunings.values()), plan))
    for line in describe_unseen(seen, tunings.values()):
        print(line)
    text, difference = edited_manifest(
        options.manifest,
        thresholds,
        {cell_type: tuning.new for cell_type, tuning in tunings.items()},
    )

    def write_files(folder: Path) -> None:
        write_evidence(folder, threshold_evidence(list(tunings.values()), plan), difference)

    leave_results(options, text, difference, out, write_files)


def read_plan(options: argparse.Namespace) -> TuningPlan:
    """How to tune: the defaults, but for what is given.

    Raises:
        InputError: a number is out of its range; or as `read_grids`.
    """
    from kernel.tuning.choosing import LEAST_P_VALUE
    from kernel.tuning.plan import TuningPlan
    from kernel.tuning.threshold_grid import read_grids

    if options.seed is not None and not 0 <= options.seed < 2**32:
        raise InputError(f"--seed {options.seed}: it must be from 0 to {2**32 - 1}")
    if options.level is not None and not LEAST_P_VALUE <= options.level < 1:
        raise InputError(
            f"--level {options.level}: it must be from {LEAST_P_VALUE}, the least that the test can tell, to below 1"
        )
    given = {name: getattr(options, name) for name in ("search", "trials", "seed") if is_given(options, name)}
    if options.level is not None:
        given["significance"] = options.level
    if options.grid is not None:
        given["grid"], given["grid_of_type"] = read_grids(options.grid)
    return TuningPlan(**given)


def keep_together(plan: TuningPlan, images: Sequence[AnnotatedImage]) -> TuningPlan:
    """The plan with what each image belongs to, as far as it is known; a warning where all belong to one."""
    found = {entry.image_id: belongs_to(entry.annotations) for entry in images}
    groups = {image_id: group for image_id, group in found.items() if group is not None}
    if len(groups) == len(images) > 1 and len(set(groups.values())) == 1:
        LOG.warning(
            "all images are of one well or sample, %s: what is better for it may be worse for others, so that no gain "
            "counts and everything stays: give images of five wells or more",
            next(iter(groups.values())),
        )
    torn = torn_groups([entry.annotations for entry in images], plan.folds or {})
    if torn:
        LOG.warning(
            "%d wells or samples lie in several of the folds (%s): each is held out as one, in the fold of its first "
            "image",
            len(torn), first_names(list(torn), 5),
        )  # fmt: skip
    return replace(plan, groups=groups)


def read_held_out_folds(options: argparse.Namespace, images: Sequence[AnnotatedImage]) -> dict[str, int] | None:
    """The fold of each of the images, to hold out in cross-validation.

    None with --fold, which leaves a single one; and where there is no folds.csv, nor asked for.

    Raises:
        InputError: as `read_folds`.
    """
    path = folds_file(options)
    if options.fold is not None or (options.folds_csv is None and not path.is_file()):
        return None
    return read_folds(path, {entry.image_id for entry in images})
