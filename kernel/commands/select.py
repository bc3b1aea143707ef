"""`select`: choose the members of each cell type on annotated images, and show what they cost in time."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bundle.folders import refuse_to_replace, replace_folder, scratch_folder
from bundle.site import use_vendored_packages
from kernel.commands.common import add_ensemble_arguments, check_device, list_fold, told_written
from kernel.commands.scoring import add_out_of_fold, list_jobs
from kernel.errors import InputError
from kernel.manifest import read_manifest

#: As many images as the competition hides.
HIDDEN_IMAGES = 240


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser("select", help="choose the members of each cell type, by score and time")
    add_ensemble_arguments(parser)
    add_out_of_fold(parser)
    parser.add_argument("--max-members", type=int, metavar="K", help="at most so many per type (default: any)")
    parser.add_argument(
        "--images",
        type=int,
        metavar="N",
        default=HIDDEN_IMAGES,
        help="how many images share the manifest's time limit (default: %(default)s, the competition's)",
    )
    parser.add_argument("--out", type=Path, help="folder for selection.csv and selection.png")
    parser.add_argument(
        "--write", action="store_true", help="set `use_for` in the manifest; who is unused is taken out"
    )
    parser.set_defaults(run=run_select)


def run_select(options: argparse.Namespace) -> None:
    """Choose members."""
    use_vendored_packages()
    from kernel.validation.manifest_edit import edited_manifest, write_manifest
    from kernel.validation.predicting import FoldEnsembles, LastEnsemble
    from kernel.validation.selection import (
        describe_selection,
        draw_selections,
        seconds_of_type,
        select_members,
        selections_to_csv,
        uses_of_selections,
    )

    for name, value in (("--max-members", options.max_members), ("--images", options.images)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: give at least 1")
    if options.out is not None:
        refuse_to_replace(options.out, ("selection.csv", "selection.png"), marker="selection.csv")
    manifest = read_manifest(options.manifest)
    hours = manifest.time_limit_hours - manifest.time_margin_hours
    budget = hours * 3600 / options.images
    last = LastEnsemble(check_device(options.device))
    jobs = list_jobs(options, list_fold(options))
    by_type = {
        cell_type: FoldEnsembles([job for job in jobs if job.image.cell_type == cell_type], last)
        for cell_type in dict.fromkeys(job.image.cell_type for job in jobs)
    }
    ensemble = last.load(jobs[0].files)
    selections = select_members(by_type, options.max_members)
    for selection in selections.values():
        print("\n".join(describe_selection(selection, budget)))
    uses = uses_of_selections(ensemble, selections)
    mean = sum(seconds_of_type(each, uses) * each.images for each in selections.values()) / len(jobs)
    print(
        f"{mean:.2f} s per image of these types on {ensemble.device}, with the first pass if one is needed; "
        f"{hours:g} h for {options.images} images leave {budget:.2f}: {'fits' if mean <= budget else 'too slow'}"
    )
    for name, use_for in uses.items():
        print(f"  {name}: {', '.join(use_for) or 'not used'}")
    if options.out is not None:
        with scratch_folder(options.out.parent, options.out.name) as scratch:
            (scratch / "new").mkdir()
            text = selections_to_csv(selections, budget)
            (scratch / "new" / "selection.csv").write_text(text, encoding="utf-8", newline="\n")
            draw_selections(scratch / "new" / "selection.png", selections, budget)
            replace_folder(scratch / "new", options.out)
        print(f"selection.csv and selection.png: {options.out}")
    text, difference = edited_manifest(options.manifest, uses=uses)
    print(difference, end="")
    if options.write and difference:
        write_manifest(options.manifest, text)
    if options.write:
        print(told_written(options.manifest, difference))
