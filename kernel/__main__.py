"""Train and judge members: `python -m kernel <command> --help` tells what each command takes.

    python -m kernel synthesize runs/cells --images 40 --seed 1
    python -m kernel prepare --competition runs/cells --out runs/prepared
    python -m kernel train --data runs/cells --recipe bundle/demo/recipe.toml --kind htc --out runs/htc.safetensors
    python -m kernel validate --manifest bundle/demo/manifest.json --weights-dir bundle/demo/weights --data runs/test

Exit codes: 0 done, 1 something failed, 2 something given was wrong.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bundle.folders import replace_folder, scratch_folder
from bundle.site import use_vendored_packages
from bundle.weights import resolve_weights
from kernel.data.splits import FOLDS_NAME, SPLIT_NAMES, other_folds
from kernel.errors import InputError, RunError
from kernel.manifest import ENCODER_NAMES, KIND_NAMES, read_manifest
from kernel.runtime.log import show_log
from kernel.settings import CELL_TYPES

if TYPE_CHECKING:
    from kernel.data.annotated import AnnotatedImage
    from kernel.ensemble.ensemble import Ensemble

PREPARE_HELP = """\
Make a folder that train, validate and tune take as --data: annotations.json (COCO, run lengths), folds.csv, and
report.json, which says what was read, mended and dropped, by row and by image.

    python -m kernel prepare --competition DIR [--astro-fix DIR/hck_fix] --out OUT
    python -m kernel prepare --livecell-annotations train.json val.json --livecell-images DIR --out OUT
    python -m kernel prepare --pseudo-labels submission.csv --images DIR --cell-types summary.json --out OUT

The images stay where they are. validate's truth is the masks of --data, and prepared ones have their holes filled and
corrections applied: to score one fold by the competition's own masks, give it the competition's folder and
--folds-csv OUT/folds.csv."""

#: prepare's sources, the options that belong to each, and whether these are needed.
PREPARE_OPTIONS = {
    "competition": {"astro_fix": False},
    "livecell_annotations": {"livecell_images": True},
    "pseudo_labels": {"images": True, "cell_types": True},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    options = parse_arguments(arguments)
    show_log(sys.stderr, "%(message)s")
    try:
        options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; `run` is the command's function."""
    parser = argparse.ArgumentParser(
        prog="python -m kernel", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    synthesize = commands.add_parser("synthesize", help="write a folder of synthetic annotated images")
    synthesize.add_argument("out", type=Path, help="the folder: train.csv and train/<id>.png")
    synthesize.add_argument("--images", type=int, default=10, help="images per cell type (default: %(default)s)")
    synthesize.add_argument("--seed", type=int, default=0, help="other seeds share no image (default: %(default)s)")
    synthesize.set_defaults(run=run_synthesize)

    add_prepare_arguments(
        commands.add_parser(
            "prepare",
            help="make COCO annotations and folds of the competition's, LIVECell's or a submission's cells",
            description=PREPARE_HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )

    train = commands.add_parser("train", help="train a member on annotated images")
    add_data_arguments(train, "train on all folds but this one")
    train.add_argument("--recipe", type=Path, required=True, help="TOML file: what to train, and how")
    train.add_argument("--out", type=Path, required=True, help="the weights to write, ending in .safetensors")
    train.add_argument("--init", type=Path, help="weights to start from: what fits is taken")
    train.add_argument("--kind", choices=KIND_NAMES, help="instead of the recipe's")
    train.add_argument("--encoder", choices=ENCODER_NAMES, help="instead of the recipe's")
    train.add_argument("--iterations", type=int, help="instead of the recipe's")
    train.add_argument("--seed", type=int, help="instead of the recipe's")
    train.add_argument("--workers", type=int, help="processes that make crops, instead of the recipe's")
    train.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")
    train.add_argument("--half", action="store_true", help="write the weights as float16: half the size")
    train.set_defaults(run=run_train)

    validate = commands.add_parser("validate", help="score an ensemble on annotated images")
    add_ensemble_arguments(validate)
    validate.add_argument("--out", type=Path, help="folder for scores.csv and a picture of each image")
    validate.add_argument("--each-member", action="store_true", help="score each member alone as well")
    validate.set_defaults(run=run_validate)

    tune = commands.add_parser("tune", help="choose the post-processing's thresholds on annotated images")
    add_ensemble_arguments(tune)
    tune.add_argument("--write", action="store_true", help="put the thresholds into the manifest")
    tune.set_defaults(run=run_tune)
    return parser.parse_args(arguments)


def add_ensemble_arguments(parser: argparse.ArgumentParser) -> None:
    """What names an ensemble and annotated images."""
    parser.add_argument("--manifest", type=Path, required=True, help="the ensemble")
    parser.add_argument("--weights-dir", type=Path, required=True, help="folder of its members' weight files")
    add_data_arguments(parser, "take the images of this fold alone: those that train --fold left out")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")


def add_data_arguments(parser: argparse.ArgumentParser, fold_help: str) -> None:
    """What names annotated images."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with train.csv and train/<id>.png, or one that prepare has written",
    )
    parser.add_argument("--fold", type=int, metavar="K", help=f"{fold_help} (default: all images)")
    parser.add_argument(
        "--folds-csv", type=Path, metavar="CSV", help="which image is in which fold (default: folds.csv in --data)"
    )


def add_prepare_arguments(parser: argparse.ArgumentParser) -> None:
    """What prepare takes: one of three sources, and how to split it."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--competition", type=Path, metavar="DIR", help="train.csv and train/<id>.png")
    source.add_argument("--livecell-annotations", type=Path, nargs="+", metavar="JSON", help="LIVECell's COCO files")
    source.add_argument("--pseudo-labels", type=Path, metavar="CSV", help="a submission.csv: its masks as annotations")
    parser.add_argument(
        "--astro-fix",
        type=Path,
        metavar="DIR",
        help="with --competition: corrected masks of its astro images, <id>.png; where the third channel (of B, G, R: "
        "red) is zero, no mask keeps a pixel",
    )
    parser.add_argument(
        "--livecell-images", type=Path, metavar="DIR", help="with --livecell-annotations; its sub-folders are searched"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="with --pseudo-labels: the images that it is of")
    parser.add_argument(
        "--cell-types",
        metavar="TYPE|FILE",
        help="with --pseudo-labels: the type of all images, or a CSV of id and cell_type, or the kernel's summary.json",
    )
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument(
        "--split",
        choices=(*SPLIT_NAMES, "none"),
        help="group: plates and wells stay together; stratified-group: samples "
        "stay together, cell types are balanced; stratified: only that; none: no folds.csv "
        "(default: group; none for pseudo-labels, which are trained on and never scored)",
    )
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument(
        "--or-next-best",
        action="store_true",
        help="where sample ids are missing or too few for the split: the "
        "next one that is possible, of group, stratified-group, stratified",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes; they do not change the result (default: one per core)",
    )
    parser.set_defaults(run=run_prepare)


def run_synthesize(options: argparse.Namespace) -> None:
    """Write synthetic images."""
    from kernel.data.synthetic import write_dataset

    write_dataset(options.out, dict.fromkeys(CELL_TYPES, options.images), options.seed)
    print(f"{options.images} images of each of {', '.join(CELL_TYPES)}: {options.out}")


def run_prepare(options: argparse.Namespace) -> None:
    """Prepare annotated images."""
    from kernel.data.livecell import read_livecell
    from kernel.data.prepare import prepare
    from kernel.data.sources import read_competition, read_pseudo_labels

    for main_option, others in PREPARE_OPTIONS.items():
        for other, needed in others.items():
            given = getattr(options, other) is not None
            if getattr(options, main_option) is None and given:
                raise InputError(f"{flag(other)} belongs to {flag(main_option)}, which is not given")
            if getattr(options, main_option) is not None and needed and not given:
                raise InputError(
                    f"{flag(main_option)} needs {flag(other)} as well: see python -m kernel prepare --help"
                )
    if options.competition:
        source = read_competition(options.competition, options.astro_fix)
    elif options.livecell_annotations:
        source = read_livecell(options.livecell_annotations, options.livecell_images)
    else:
        source = read_pseudo_labels(options.pseudo_labels, options.images, options.cell_types)
    split = options.split or ("none" if options.pseudo_labels else "group")
    report = prepare(
        source,
        options.out,
        None if split == "none" else split,
        options.folds,
        or_next_best=options.or_next_best,
        workers=options.workers,
    )
    print(report.describe())
    print(f"annotations.json, {'' if split == 'none' else 'folds.csv, '}report.json: {options.out}")


def flag(name: str) -> str:
    """An option as it is written."""
    return "--" + name.replace("_", "-")


def list_fold(options: argparse.Namespace) -> list[AnnotatedImage]:
    """The images of --data, of --fold alone if that is given."""
    from kernel.data.annotated import list_annotated

    return list_annotated(options.data, None if options.fold is None else [options.fold], folds_file(options))


def folds_file(options: argparse.Namespace) -> Path:
    """Which image is in which fold; the file need not exist where no fold is asked for."""
    if options.folds_csv is not None and options.fold is None:
        raise InputError("--folds-csv belongs to --fold, which is not given")
    return options.folds_csv or options.data / FOLDS_NAME


def run_train(options: argparse.Namespace) -> None:
    """Train a member."""
    use_vendored_packages()
    from kernel.training.recipe import read_recipe
    from kernel.training.samples import check_classes, read_training_images
    from kernel.training.trainer import train_detector

    overrides = {key: getattr(options, key) for key in ("kind", "encoder", "iterations", "seed", "workers")}
    recipe = read_recipe(options.recipe, overrides)
    folds_csv = folds_file(options)
    folds = None if options.fold is None else other_folds(folds_csv, options.fold)
    images = read_training_images(options.data, folds, folds_csv)
    check_classes(images, recipe.detector.num_classes)
    train_detector(recipe.detector, images, recipe.training, options.out, options.init, options.device, options.half)
    print(f"weights: {options.out}")


def run_validate(options: argparse.Namespace) -> None:
    """Score an ensemble."""
    use_vendored_packages()
    from kernel.validation.validate import describe_scores, lone_member, results_to_csv, validate_ensemble

    images = list_fold(options)
    ensemble = load_options_ensemble(options)
    if options.out is None:
        print(describe_scores("ensemble", validate_ensemble(ensemble, images)))
    else:
        with scratch_folder(options.out.parent, options.out.name) as scratch:
            (scratch / "new" / "pictures").mkdir(parents=True)
            results = validate_ensemble(ensemble, images, scratch / "new" / "pictures")
            (scratch / "new" / "scores.csv").write_text(results_to_csv(results), encoding="utf-8")
            replace_folder(scratch / "new", options.out)
        print(describe_scores("ensemble", results))
        print(f"scores.csv and pictures: {options.out}")
    if options.each_member:
        for member in ensemble.members:
            alone = validate_ensemble(lone_member(ensemble, member.name), images)
            print(describe_scores(member.name, alone))


def run_tune(options: argparse.Namespace) -> None:
    """Choose the post-processing's thresholds."""
    use_vendored_packages()
    from kernel.validation.tuning import write_thresholds
    from kernel.validation.validate import tune_ensemble

    images = list_fold(options)
    ensemble = load_options_ensemble(options)
    tuned = tune_ensemble(ensemble, images)
    for cell_type, (thresholds, before, after) in tuned.items():
        print(f"{cell_type}: {before:.4f} before, {after:.4f} after, on the images tuned on")
        print(
            f"  mask_threshold {thresholds.mask_threshold}, mask_nms_threshold {thresholds.mask_nms_threshold}, "
            f"min_size {thresholds.min_size}, confidence {thresholds.confidence}"
        )
    if options.write:
        write_thresholds(options.manifest, {cell_type: result[0] for cell_type, result in tuned.items()})
        print(f"written: {options.manifest}")


def load_options_ensemble(options: argparse.Namespace) -> Ensemble:
    """The ensemble that the command line names."""
    from kernel.segment import load_ensemble

    manifest, found = resolve_weights(read_manifest(options.manifest), options.weights_dir)
    return load_ensemble(manifest, {weights.member.name: weights.path for weights in found}, options.device)


if __name__ == "__main__":
    raise SystemExit(main())
