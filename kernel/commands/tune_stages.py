"""`tune --stages`: choose what needs the network: thresholds of proposals and boxes, the masks' views, members."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kernel.commands.common import list_fold, load_options_ensemble
from kernel.errors import InputError
from kernel.manifest import ENSEMBLE_RULES, THRESHOLD_RULES
from kernel.settings import CELL_TYPES

if TYPE_CHECKING:
    from kernel.ensemble.ensemble import Ensemble
    from kernel.validation.stages import StagePoint


def add_stage_arguments(parser: argparse.ArgumentParser) -> None:
    """What `tune` takes for the stages."""
    parser.add_argument(
        "--stages", action="store_true", help="choose thresholds of proposals and boxes, not the post-processing's"
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


def run_stages(options: argparse.Namespace) -> None:
    """Choose the stages' thresholds."""
    from kernel.validation.manifest_edit import write_thresholds
    from kernel.validation.stages import (
        DEFAULT_STAGE_GRID,
        MASK_VIEWS,
        STAGE_THRESHOLDS,
        choose_points,
        score_stages,
        stage_points,
    )
    from kernel.validation.uses import write_uses

    names = (*STAGE_THRESHOLDS, MASK_VIEWS)
    given = parse_grid(options.stage_grid or (), names)
    grid = given if given or options.try_members else DEFAULT_STAGE_GRID
    member_sets = [tuple(words.split(",")) for words in options.try_members or ()]
    images = list_fold(options)
    ensemble = load_options_ensemble(options)
    settings = ensemble.settings
    points = stage_points(grid, settings, member_sets)
    scores = score_stages(ensemble, images, points)
    picked = choose_points(points, scores)
    chosen = {cell_type: points[place] for cell_type, place in picked.items()}
    tuned = {cell_type: point.thresholds_of(settings.thresholds[cell_type]) for cell_type, point in chosen.items()}
    views = next(iter(chosen.values())).use_tta_masks
    for cell_type, rows in scores.items():
        before, after = rows[:, 0].mean(), rows[:, picked[cell_type]].mean()
        print(f"{cell_type}: {before:.4f} before, {after:.4f} after, on the images tuned on; {len(points)} settings")
        print("  " + ", ".join(f"{name} {getattr(tuned[cell_type], name)}" for name in STAGE_THRESHOLDS))
        if member_sets:
            print(f"  members {', '.join(chosen[cell_type].members or used_now(ensemble, cell_type))}")
    print(f"{MASK_VIEWS} {json.dumps(views)}, for all types together")
    if options.write:
        uses = uses_of_points(ensemble, chosen)
        if uses:
            write_uses(options.manifest, uses)
        switches = {MASK_VIEWS: views} if views != settings.use_tta_masks else {}
        write_thresholds(options.manifest, settings.thresholds, tuned, switches)
        print(f"written: {options.manifest}")


def parse_grid(words: Sequence[str], names: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Read NAME=VALUE,... of each word. Raises InputError for an unknown name, one given twice, or a wrong value."""
    grid: dict[str, tuple[Any, ...]] = {}
    for word in words:
        name, _, given = word.partition("=")
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(names)}"
            raise InputError(f"--stage-grid {word}: unknown name {name!r}; {hint}")
        if name in grid:
            raise InputError(f"--stage-grid {word}: {name} is given twice: name all its values at once")
        rule = {**THRESHOLD_RULES, **ENSEMBLE_RULES}[name]
        values = []
        for text in given.split(","):
            try:
                value = json.loads(text)
            except json.JSONDecodeError:
                value = None
            if not rule.allows(value):
                raise InputError(f"--stage-grid {word}: found {text!r}, expected {rule.told}")
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
