"""What several commands take: annotated images, and an ensemble.

Beside each function that adds options to a parser stand those that read them. They take `options`, and leave it as it
is; everything else takes plain values.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kernel.commands.options import whole_number
from kernel.data.annotated import AnnotatedImage, list_annotated
from kernel.data.splits import FOLDS_NAME
from kernel.errors import InputError
from kernel.folders import replace_folder, scratch_folder
from kernel.local_weights import resolve_weights
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import Manifest
from kernel.settings import NETWORK_DTYPES

if TYPE_CHECKING:
    from kernel.ensemble.ensemble import Ensemble
    from kernel.scoring.predicting import EnsembleFiles


#: What options stand for that are not given.
ENSEMBLE_DEFAULTS = {"dtype": NETWORK_DTYPES[0]}
#: The options of `add_ensemble_arguments` that name what is read.
ENSEMBLE_READS = ("manifest", "weights_dir", "data", "folds_csv")


def add_replace(parser: argparse.ArgumentParser, help_text: str) -> None:
    """The switch --replace."""
    parser.add_argument("--replace", action="store_true", help=help_text)


def add_data_arguments(parser: argparse.ArgumentParser, fold_help: str) -> None:
    """The options that name annotated images, for `list_fold` and `folds_file`."""
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with train.csv and train/<id>.png, or one that prepare has written",
    )
    parser.add_argument("--fold", type=whole_number(), metavar="K", help=f"{fold_help} (default: all images)")
    parser.add_argument(
        "--folds-csv", type=Path, metavar="CSV", help="which image is in which fold (default: folds.csv in --data)"
    )


def add_ensemble_arguments(parser: argparse.ArgumentParser, stored: bool = False) -> None:
    """The options that name an ensemble and annotated images; `stored` as for `add_member_arguments`."""
    add_member_arguments(parser, stored)
    add_data_arguments(parser, "take the images of this fold alone: those that train --fold left out")


def add_member_arguments(parser: argparse.ArgumentParser, stored: bool = False) -> None:
    """The options that name an ensemble and where it runs, for `load_options_ensemble`.

    Args:
        parser: of a command.
        stored: whether stored predictions may be given in the weights' place.
    """
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
        help=f"of the networks' arithmetic; the short ones are faster and less exact (default: {NETWORK_DTYPES[0]})",
    )


def list_fold(options: argparse.Namespace) -> list[AnnotatedImage]:
    """The images of --data, of --fold alone if that is given.

    Raises:
        InputError: as `list_annotated`; or there are none.
    """
    images = list_annotated(options.data, None if options.fold is None else [options.fold], folds_file(options))
    if not images:
        raise InputError(f"{options.data} has no annotated image" + ("" if options.fold is None else " in this fold"))
    return images


def folds_file(options: argparse.Namespace) -> Path:
    """Which image is in which fold; the file need not exist where no fold is asked for."""
    return options.folds_csv or options.data / FOLDS_NAME


def check_device(name: str | None) -> str:
    """The device of --device; without a name the first GPU, or the CPU.

    Raises:
        InputError: this machine has no such device.
    """
    import torch  # takes seconds, which `--help` need not

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # of an unknown name; of a CUDA that is not there
        count = torch.cuda.device_count()
        raise InputError(f"--device {name}: this machine has cpu and {count} GPU(s) (cuda, cuda:1, ...)") from error
    return name


def find_ensemble(manifest: Manifest, weights_dir: Path, dtype: str = NETWORK_DTYPES[0]) -> EnsembleFiles:
    """The manifest's ensemble with its weight files, not loaded yet.

    Raises:
        InputError: as `resolve_weights`.
    """
    from kernel.scoring.predicting import EnsembleFiles

    manifest, found = resolve_weights(manifest, weights_dir)
    return EnsembleFiles(manifest, {weights.member.name: weights.path for weights in found}, dtype)


def load_options_ensemble(options: argparse.Namespace) -> Ensemble:
    """The ensemble that the command line names, on its device.

    Raises:
        InputError: as `read_manifest`, `find_ensemble` and `check_device`; or a weight file cannot be used.
    """
    files = find_ensemble(read_manifest(options.manifest), options.weights_dir, options.dtype)
    return files.load(check_device(options.device))


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder to write into, put in `target`'s place at the end; if anything fails, `target` stays as it was.

    Raises:
        InputError: the folder around it cannot be written, or `target` cannot be replaced.
    """
    with scratch_folder(target.parent, target.name) as scratch:
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        replace_folder(folder, target)
