"""`select`: choose the members of each cell type on annotated images, and show what they cost in time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from kernel.commands.common import (
    ENSEMBLE_READS,
    add_ensemble_arguments,
    check_device,
    list_fold,
)
from kernel.commands.options import whole_number
from kernel.commands.results import refuse_to_replace_result
from kernel.commands.rules import CommandRules, Needs
from kernel.commands.scoring import add_out_of_fold, list_jobs, tell_seen
from kernel.commands.tuning_results import add_result_arguments, leave_results
from kernel.manifest.reader import read_manifest
from kernel.vendored import use_vendored_packages

#: As many images as the competition hides.
HIDDEN_IMAGES = 240
RULES = CommandRules(
    effects=(Needs(["folds_csv"], ["fold", "out_of_fold"]), Needs(["replace"], ["out"])),
    reads=ENSEMBLE_READS,
    writes=lambda options: [] if options.out is None else [options.out],
)


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser("select", help="choose the members of each cell type, by score and time")
    add_ensemble_arguments(parser)
    add_out_of_fold(parser)
    parser.add_argument(
        "--max-members", type=whole_number(1), metavar="K", help="at most so many per type (default: any)"
    )
    parser.add_argument(
        "--images",
        type=whole_number(1),
        metavar="N",
        default=HIDDEN_IMAGES,
        help="how many images share the manifest's time limit (default: %(default)s, the competition's)",
    )
    add_result_arguments(
        parser,
        "for selection.csv and selection.png",
        "set `use_for` in the manifest; who is unused is taken out",
    )
    parser.set_defaults(run=run_select, rules=RULES)


def run_select(options: argparse.Namespace) -> None:
    """Choose members."""
    use_vendored_packages()
    from kernel.manifest.edit import edited_manifest
    from kernel.scoring.predicting import FoldEnsembles, LastEnsemble
    from kernel.tuning.member_selection import seconds_of_type, select_members, uses_of_selections
    from kernel.tuning.member_selection_output import describe_selection, draw_selections, selections_to_csv

    if options.out is not None:
        refuse_to_replace_result(options.out, "select", replace=options.replace)
    manifest = read_manifest(options.manifest)
    hours = manifest.time_limit_hours - manifest.time_margin_hours
    budget = hours * 3600 / options.images
    last = LastEnsemble(check_device(options.device))
    jobs = list_jobs(options, list_fold(options))
    seen = tell_seen(jobs)
    by_type = {
        cell_type: FoldEnsembles([job for job in jobs if job.image.cell_type == cell_type], last)
        for cell_type in dict.fromkeys(job.image.cell_type for job in jobs)
    }
    ensemble = last.load(jobs[0].files)
    selections = select_members(by_type, options.max_members)
    for selection in selections.values():
        print("\n".join(describe_selection(selection, budget)))
        images = [job.image.image_id for job in jobs if job.image.cell_type == selection.cell_type]
        first, last_step = (np.array(step.scores) for step in (selection.steps[0], selection.steps[-1]))
        for line in seen.describe_choice(images, first, last_step):
            print(f"  {line}, of one member and of all chosen" if "before" in line else f"  {line}")
    uses = uses_of_selections(ensemble, selections)
    mean = sum(seconds_of_type(each, uses) * each.images for each in selections.values()) / len(jobs)
    print(
        f"{mean:.2f} s per image of these types on {ensemble.device}, with the first pass if one is needed; "
        f"{hours:g} h for {options.images} images leave {budget:.2f}: {'fits' if mean <= budget else 'too slow'}"
    )
    for name, use_for in uses.items():
        print(f"  {name}: {', '.join(use_for) or 'not used'}")
    text, difference = edited_manifest(options.manifest, uses=uses)

    def write_files(folder: Path) -> None:
        table = selections_to_csv(selections, budget)
        (folder / "selection.csv").write_text(table, encoding="utf-8", newline="\n")
        draw_selections(folder / "selection.png", selections, budget)

    leave_results(options, text, difference, options.out, write_files, "selection.csv and selection.png")
