"""`tune --stages`: choose what needs the network: thresholds of proposals and boxes, the masks' views, members."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel.commands.common import check_device
from kernel.commands.results import refuse_to_replace_result
from kernel.commands.scoring import describe_unseen, list_jobs, tell_seen
from kernel.commands.tuning_results import evidence_folder, leave_results
from kernel.data.annotated import AnnotatedImage
from kernel.errors import InputError
from kernel.manifest.rules import ENSEMBLE_RULES, THRESHOLD_RULES
from kernel.settings import CELL_TYPES
from kernel.text import name_hint, parse_json

if TYPE_CHECKING:
    from kernel.ensemble.ensemble import Ensemble
    from kernel.tuning.plan import TuningPlan
    from kernel.tuning.stage_scores import StagePoint
    from kernel.tuning.stage_tuning import StageTuning


def add_stage_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tune` for the stages before the post-processing, for `run_stages`."""
    parser.add_argument(
        "--stages",
        action="store_true",
        help="choose for proposals, boxes and masks, not the post-processing's thresholds",
    )
    parser.add_argument(
        "--stage-grid",
        action="append",
        metavar="NAME=VALUE,...",
        help="with --stages: values to try, e.g. rpn_iou_threshold=0.6,0.7 or use_tta_masks=true,false; may be given "
        "for several names (default: a small grid)",
    )
    parser.add_argument(
        "--try-members",
        action="append",
        metavar="NAME,...",
        help="with --stages: members to try in the place of a cell type's; may be given several times",
    )


def run_stages(options: argparse.Namespace, images: Sequence[AnnotatedImage], plan: TuningPlan) -> None:
    """Choose the settings of the stages before the post-processing on `images`; the plan is for `tune_stages`."""
    from kernel.manifest.edit import edited_manifest
    from kernel.scoring.predicting import FoldEnsembles, LastEnsemble
    from kernel.tuning.evidence import write_evidence
    from kernel.tuning.stage_evidence import stage_evidence
    from kernel.tuning.stage_scores import DEFAULT_STAGE_GRID, MASK_VIEWS, STAGE_THRESHOLDS, score_stages, stage_points
    from kernel.tuning.stage_tuning import tune_stages

    given = parse_grid(options.stage_grid or (), (*STAGE_THRESHOLDS, MASK_VIEWS))
    grid = given if given or options.try_members else DEFAULT_STAGE_GRID
    out = evidence_folder(options, "stages")
    if out is not None:
        refuse_to_replace_result(out, "stages", replace=options.replace)
    member_sets = [tuple(words.split(",")) for words in options.try_members or ()]
    last = LastEnsemble(check_device(options.device))
    jobs = list_jobs(options, images, plan.folds)
    seen = tell_seen(jobs)
    ensembles = FoldEnsembles(jobs, last)
    ensemble = last.load(jobs[0].files)
    settings = ensemble.settings
    points = stage_points(grid, settings, member_sets)
    tuning = tune_stages(points, score_stages(ensembles, points), settings.thresholds, plan)
    print("\n".join([*describe_stages(tuning, ensemble, plan), *describe_unseen(seen, tuning.types.values())]))
    chosen = {cell_type: tuning.chosen_point(cell_type) for cell_type in tuning.types}
    views = tuning.use_tta_masks
    text, difference = edited_manifest(
        options.manifest,
        settings.thresholds,
        {cell_type: point.thresholds_of(settings.thresholds[cell_type]) for cell_type, point in chosen.items()},
        {MASK_VIEWS: views} if views != settings.use_tta_masks else {},
        uses_of_points(ensemble, chosen),
    )

    def write_files(folder: Path) -> None:
        write_evidence(folder, stage_evidence(tuning, plan), difference)

    leave_results(options, text, difference, out, write_files)


def describe_stages(tuning: StageTuning, ensemble: Ensemble, plan: TuningPlan) -> list[str]:
    """What was chosen and what it is worth, in words: a few lines per cell type, and some for all together."""
    from kernel.tuning.descriptions import describe_assessment, describe_choice, describe_folds
    from kernel.tuning.stage_scores import MASK_VIEWS, STAGE_THRESHOLDS

    lines: list[str] = []
    choice, points, views = tuning.choice, tuning.points, tuning.use_tta_masks
    tried = sum(point.use_tta_masks == views for point in points)
    for cell_type, found in tuning.types.items():
        point = tuning.chosen_point(cell_type)
        thresholds = point.thresholds_of(found.old)
        lines += describe_assessment(cell_type, found.assessment)
        lines.append(f"  {describe_choice(choice.of_type[cell_type], tried, plan.significance)}")
        lines.append("  " + ", ".join(f"{name} {getattr(thresholds, name)}" for name in STAGE_THRESHOLDS))
        if any(other.members is not None for other in points):
            lines.append(f"  members {', '.join(point.members or used_now(ensemble, cell_type))}")
    lines += describe_assessment("all", tuning.assessment)
    lines.append(f"  {describe_folds(tuning.folds, tuning.folds_given)}")
    reason = ""
    if any(point.use_tta_masks != views for point in points):
        reason = ": " + describe_choice(choice.views, len({p.use_tta_masks for p in points}), plan.significance)
    return [*lines, f"  {MASK_VIEWS} {json.dumps(views)}, for all types together{reason}"]


def parse_grid(words: Sequence[str], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """The values to try by name, of words NAME=VALUE,...

    Raises:
        InputError: an unknown name, one that is given twice, or a wrong value.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for word in words:
        name, _, given = word.partition("=")
        if name not in names:
            raise InputError(f"--stage-grid {word}: unknown name {name!r}; {name_hint(name, names)}")
        if name in grid:
            raise InputError(f"--stage-grid {word}: {name} is given twice: name all its values at once")
        rule = {**THRESHOLD_RULES, **ENSEMBLE_RULES}[name]
        values = []
        for text in given.split(","):
            try:
                value = parse_json(text)
            except ValueError:
                value = None
            if not rule.allows(value):
                raise InputError(f"--stage-grid {word}: found {text!r}, expected {rule.description}")
            values.append(value)
        grid[name] = tuple(dict.fromkeys(values))
    return grid


def used_now(ensemble: Ensemble, cell_type: str) -> list[str]:
    """The names of the members used for a cell type."""
    return [member.name for member in ensemble.members_for(cell_type)]


def uses_of_points(ensemble: Ensemble, chosen: dict[str, StagePoint]) -> dict[str, list[str]]:
    """What members are used for, by name, with the chosen points; {} where none of them changes that."""
    if all(point.members is None for point in chosen.values()):
        return {}
    named = {cell_type: point.members for cell_type, point in chosen.items() if point.members is not None}
    return {
        member.name: [
            *(use for use in CELL_TYPES if (member.name in named[use] if use in named else use in member.use_for)),
            *(member.use_for - set(CELL_TYPES)),
        ]
        for member in ensemble.members
    }
