"""Train and judge members: `python -m kernel <command> --help` tells what each command takes.

    python -m kernel synthesize runs/cells --images 40 --seed 1
    python -m kernel train --data runs/cells --recipe bundle/demo/recipe.toml --kind htc --out runs/htc.safetensors
    python -m kernel validate --manifest bundle/demo/manifest.json --weights-dir bundle/demo/weights --data runs/test

Exit codes: 0 done, 1 something failed, 2 something given was wrong.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bundle.folders import replace_folder, scratch_folder
from bundle.site import use_vendored_packages
from bundle.weights import resolve_weights
from kernel.errors import InputError, RunError
from kernel.manifest import ENCODER_NAMES, KIND_NAMES, read_manifest
from kernel.settings import CELL_TYPES

if TYPE_CHECKING:
    from kernel.ensemble.ensemble import Ensemble


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
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

    train = commands.add_parser("train", help="train a member on annotated images")
    train.add_argument("--data", type=Path, required=True, help="folder with train.csv and train/<id>.png")
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
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv and train/<id>.png")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: %(default)s)")


def run_synthesize(options: argparse.Namespace) -> None:
    """Write synthetic images."""
    from kernel.data.synthetic import write_dataset

    write_dataset(options.out, dict.fromkeys(CELL_TYPES, options.images), options.seed)
    print(f"{options.images} images of each of {', '.join(CELL_TYPES)}: {options.out}")


def run_train(options: argparse.Namespace) -> None:
    """Train a member."""
    use_vendored_packages()
    from kernel.training.recipe import read_recipe
    from kernel.training.samples import read_training_images
    from kernel.training.trainer import train_detector

    overrides = {key: getattr(options, key) for key in ("kind", "encoder", "iterations", "seed", "workers")}
    recipe = read_recipe(options.recipe, overrides)
    images = read_training_images(options.data)
    train_detector(recipe.detector, images, recipe.training, options.out, options.init, options.device, options.half)
    print(f"weights: {options.out}")


def run_validate(options: argparse.Namespace) -> None:
    """Score an ensemble."""
    use_vendored_packages()
    from kernel.data.annotated import list_annotated
    from kernel.validation.validate import describe_scores, lone_member, results_to_csv, validate_ensemble

    images = list_annotated(options.data)
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
    from kernel.data.annotated import list_annotated
    from kernel.validation.tuning import write_thresholds
    from kernel.validation.validate import tune_ensemble

    images = list_annotated(options.data)
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
