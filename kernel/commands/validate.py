"""`validate`: score an ensemble, and its members alone, on annotated images."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bundle.folders import refuse_to_replace, replace_folder, scratch_folder
from bundle.site import use_vendored_packages
from kernel.commands.common import add_ensemble_arguments, list_fold, load_options_ensemble


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser("validate", help="score an ensemble on annotated images")
    add_ensemble_arguments(parser)
    parser.add_argument("--out", type=Path, help="folder for report.html, scores.csv and a picture of each image")
    parser.add_argument("--each-member", action="store_true", help="score each member alone as well")
    parser.set_defaults(run=run_validate)


def run_validate(options: argparse.Namespace) -> None:
    """Score an ensemble."""
    use_vendored_packages()
    from kernel.validation.report import REPORT_FOLDER, REPORT_PAGE, ReportBuilder
    from kernel.validation.validate import describe_scores, lone_member, results_to_csv, validate_ensemble

    if options.out is not None:
        refuse_to_replace(options.out, ("scores.csv", "pictures", REPORT_PAGE, REPORT_FOLDER), marker="scores.csv")
    images = list_fold(options)
    ensemble = load_options_ensemble(options)
    if options.out is None:
        print(describe_scores("ensemble", validate_ensemble(ensemble, images)))
    else:
        with scratch_folder(options.out.parent, options.out.name) as scratch:
            (scratch / "new" / "pictures").mkdir(parents=True)
            report = ReportBuilder(f"Cells found and missed in {options.data.resolve().name}")
            results = validate_ensemble(ensemble, images, scratch / "new" / "pictures", report)
            report.write(scratch / "new")
            (scratch / "new" / "scores.csv").write_text(results_to_csv(results), encoding="utf-8")
            replace_folder(scratch / "new", options.out)
        print(describe_scores("ensemble", results))
        print(f"report.html, scores.csv and pictures: {options.out}")
    if options.each_member:
        for member in ensemble.members:
            alone = validate_ensemble(lone_member(ensemble, member.name), images)
            print(describe_scores(member.name, alone))
