"""`validate`: score an ensemble, and its members alone, on annotated images."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kernel.commands.common import (
    ENSEMBLE_READS,
    add_ensemble_arguments,
    add_replace,
    check_devices,
    choose_members,
    list_fold,
)
from kernel.commands.model_card import card_of, describe_card, write_card
from kernel.commands.results import refuse_to_replace_result
from kernel.commands.resuming import unfinished_folder
from kernel.commands.rules import CommandRules, Idle, Needs
from kernel.commands.scoring import (
    add_out_of_fold,
    list_jobs,
    print_each_member,
    score_jobs,
    tell_seen,
)
from kernel.data.mask_files.pairing import is_below
from kernel.errors import InputError
from kernel.folders import remove_folder
from kernel.vendored import use_vendored_packages

VALIDATE_HELP = """\
Score an ensemble on annotated images, by the competition's metric.

Out of fold, each image is predicted by weights that were trained without its fold (train --fold K): in the manifest,
each member's `file` then holds {fold}, as in "htc_{fold}.safetensors". With --fold K, that fold alone.

Stored predictions (--predictions) are soft: no threshold of the post-processing is in them. An image whose prediction
is there already, made of the same weights, settings and pixels, is not predicted again, so that a run that was stopped
goes on; `tune --predictions` needs no weights. With --out alone they are kept until the end, for the same command to go
on.

The members that come with the program (--members shipped) are scored beside what their model card says. Images that
members have learned from are left out of that table and of --card, unless there are no others.

Several devices (--device cuda:0,cuda:1) share the images."""

RULES = CommandRules(
    effects=(
        Idle(["tuning"], lambda options: options.out is None, "is for the report of --out, which is not given"),
        Needs(["folds_csv"], ["fold", "out_of_fold"]),
        Needs(["replace"], ["out"]),
        Idle(
            ["card"],
            lambda options: options.out is not None and is_below(options.card, options.out),
            "lies in --out, which is replaced as a whole: name a file elsewhere",
        ),
    ),
    reads=(*ENSEMBLE_READS, "predictions", "tuning"),
    writes=lambda options: [path for path in (options.out, options.card) if path is not None],
)


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "validate",
        help="score an ensemble on annotated images",
        description=VALIDATE_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_ensemble_arguments(parser, shipped=True)
    parser.add_argument("--out", type=Path, help="folder for report.html, scores.csv and a picture of each image")
    add_replace(parser, "replace what --out holds of another command, or of other images")
    parser.add_argument(
        "--tuning", type=Path, metavar="FOLDER", help="what `tune --out` has written: its surfaces go into the report"
    )
    parser.add_argument("--each-member", action="store_true", help="score each member alone as well")
    add_out_of_fold(parser)
    parser.add_argument(
        "--predictions",
        type=Path,
        metavar="FOLDER",
        help="store the predictions there, a file per image, and use those that are there",
    )
    parser.add_argument(
        "--card",
        type=Path,
        metavar="JSON",
        help="write the unseen images' scores by type, with intervals, as a model card has them",
    )
    parser.set_defaults(run=run_validate, rules=RULES)


def run_validate(options: argparse.Namespace) -> None:
    """Score an ensemble."""
    use_vendored_packages()
    from kernel.scoring.scores import describe_folds, describe_scores
    from kernel.tuning.threshold_evidence import read_surfaces

    if options.manifest is None and options.members is None and options.preset is None:
        raise InputError("which members? give --manifest with --weights-dir, or --members shipped")
    chosen = choose_members(options)
    if chosen.preset is not None and options.out_of_fold:
        raise InputError("--out-of-fold needs weights of each fold, which the shipped members are not: give --manifest")
    images = list_fold(options)
    if options.out is not None:
        ids = {entry.image_id for entry in images}
        refuse_to_replace_result(options.out, "validate", ids, replace=options.replace)
    surfaces = read_surfaces(options.tuning) if options.tuning is not None else []
    devices = check_devices(options.device)
    jobs = list_jobs(options, images, devices=devices)
    title = f"Cells found and missed in {options.data.resolve().name}"
    seen = tell_seen(jobs)
    jobs = seen.told_to(jobs)
    with kept_predictions(options.predictions, options.out) as predictions:
        results = score_jobs(jobs, devices, options.out, title, predictions, surfaces, seen)
        for line in describe_folds(results):
            print(line)
        print(describe_scores("ensemble", results))
        for line in seen.describe_results(results):
            print(line)
        if chosen.preset is not None or options.card is not None:
            card = card_of(results, seen.untold)
            if chosen.preset is not None:
                print("\n".join([chosen.told, *describe_card(card, chosen.preset.measured)]))
            if options.card is not None:
                write_card(card, options.card)
        if options.out is not None:
            print(f"report.html, scores.csv and pictures: {options.out}")
        if options.each_member:
            print_each_member(jobs, devices, predictions)


@contextmanager
def kept_predictions(given: Path | None, out: Path | None) -> Iterator[Path | None]:
    """Where predictions are stored: the folder given, else a hidden one beside `out` that is deleted at the end.

    Where the block ends too soon, however that comes, it stays, and the same command goes on from there.

    Raises:
        InputError: as `unfinished_folder`.
    """
    if given is not None or out is None:
        yield given
        return
    with unfinished_folder(out) as unfinished:
        yield unfinished
        remove_folder(unfinished)
