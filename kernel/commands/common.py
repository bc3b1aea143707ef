"""What several commands take: annotated images, and an ensemble."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bundle.weights import resolve_weights
from kernel.data.annotated import AnnotatedImage, list_annotated
from kernel.data.splits import FOLDS_NAME
from kernel.errors import InputError
from kernel.manifest import Manifest, read_manifest
from kernel.settings import NETWORK_DTYPES

if TYPE_CHECKING:
    from kernel.ensemble.ensemble import Ensemble
    from kernel.validation.predicting import PredictionJob


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


def add_ensemble_arguments(parser: argparse.ArgumentParser, stored: bool = False) -> None:
    """What names an ensemble and annotated images; `stored`: predictions may be given in the weights' place."""
    add_member_arguments(parser, stored)
    add_data_arguments(parser, "take the images of this fold alone: those that train --fold left out")


def add_member_arguments(parser: argparse.ArgumentParser, stored: bool = False) -> None:
    """What names an ensemble, and where it runs; `stored`: predictions may be given in the weights' place."""
    parser.add_argument("--manifest", type=Path, required=True, help="the ensemble")
    source = parser.add_mutually_exclusive_group(required=True) if stored else parser
    source.add_argument("--weights-dir", type=Path, required=not stored, help="folder of its members' weight files")
    if stored:
        source.add_argument(
            "--predictions", type=Path, metavar="FOLDER", help="what `validate --predictions` has stored, for weights"
        )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: the first GPU, or the CPU)")
    parser.add_argument(
        "--dtype",
        choices=NETWORK_DTYPES,
        default=NETWORK_DTYPES[0],
        help="of the networks' arithmetic; the short ones are faster and less exact (default: %(default)s)",
    )


def list_fold(options: argparse.Namespace) -> list[AnnotatedImage]:
    """The images of --data, of --fold alone if that is given."""
    images = list_annotated(options.data, None if options.fold is None else [options.fold], folds_file(options))
    if not images:
        raise InputError(f"{options.data} has no annotated image" + ("" if options.fold is None else " in this fold"))
    return images


def folds_file(options: argparse.Namespace) -> Path:
    """Which image is in which fold; the file need not exist where no fold is asked for."""
    if options.folds_csv is not None and options.fold is None and not getattr(options, "out_of_fold", False):
        raise InputError("--folds-csv belongs to --fold, which is not given")
    return options.folds_csv or options.data / FOLDS_NAME


def check_device(name: str | None) -> str:
    """The device `name`; None: the first GPU, or the CPU. Raises InputError where this machine has no such device."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # of an unknown name; of a CUDA that is not there
        count = torch.cuda.device_count()
        raise InputError(f"--device {name}: this machine has cpu and {count} GPU(s) (cuda, cuda:1, ...)") from error
    return name


def ensemble_jobs(manifest: Manifest, weights_dir: Path, images: Sequence[AnnotatedImage]) -> list[PredictionJob]:
    """Each image with the manifest's ensemble, from `weights_dir`. Raises InputError as `resolve_weights`."""
    from kernel.validation.predicting import EnsembleFiles, PredictionJob

    manifest, found = resolve_weights(manifest, weights_dir)
    files = EnsembleFiles(manifest, {weights.member.name: weights.path for weights in found})
    return [PredictionJob(entry, files) for entry in images]


def load_options_ensemble(options: argparse.Namespace) -> Ensemble:
    """The ensemble that the command line names."""
    from kernel.segment import load_ensemble

    manifest, found = resolve_weights(read_manifest(options.manifest), options.weights_dir)
    device = check_device(options.device)
    files = {weights.member.name: weights.path for weights in found}
    return load_ensemble(manifest, files, device, getattr(torch, options.dtype))


def told_written(manifest: Path, difference: str) -> str:
    """What to say after --write."""
    return f"written: {manifest}" if difference else f"nothing to write: {manifest} stays as it is"
