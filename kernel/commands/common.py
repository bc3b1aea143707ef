"""What several commands take: annotated images, and an ensemble.

Beside each function that adds options to a parser stand those that read them. They take `options`, and leave it as it
is; everything else takes plain values.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kernel.commands.options import number, positive_number, whole_number
from kernel.commands.rules import flag
from kernel.data.annotated import AnnotatedImage, list_annotated
from kernel.data.splits import FOLDS_NAME
from kernel.errors import InputError
from kernel.folders import replace_folder, scratch_folder
from kernel.images.zoom import LARGEST_ZOOM
from kernel.local_weights import resolve_weights
from kernel.manifest.presets import MEMBERS_FOLDER, Preset, choose_preset, describe_presets, shipped_members
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import Manifest
from kernel.processes import is_one_of_several
from kernel.settings import NETWORK_DTYPES
from kernel.text import first_line

if TYPE_CHECKING:
    from kernel.scoring.predicting import EnsembleFiles


#: The options of `add_ensemble_arguments` that name what is read.
ENSEMBLE_READS = ("manifest", "weights_dir", "data", "folds_csv")
#: What --device takes, for its help.
ONE_DEVICE = "cpu, cuda, cuda:1, ... (default: the first GPU, or the CPU)"
ALL_DEVICES = "cpu, cuda:1, or several that share the images, as cuda:0,cuda:1 (default: all GPUs, or the CPU)"
#: Stands in a help text for what `describe_presets` says.
PRESETS_PLACE = "(presets)"


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


def add_ensemble_arguments(parser: argparse.ArgumentParser, stored: bool = False, shipped: bool = False) -> None:
    """The options that name an ensemble and annotated images; `stored`, `shipped` as for `add_member_arguments`."""
    add_member_arguments(parser, stored, shipped)
    add_data_arguments(parser, "take the images of this fold alone: those that train --fold left out")


def add_member_arguments(
    parser: argparse.ArgumentParser, stored: bool = False, shipped: bool = False, device_help: str = ONE_DEVICE
) -> None:
    """The options that name an ensemble and where it runs, for `choose_members` and `check_device`.

    Args:
        parser: of a command.
        stored: whether stored predictions may be given in the weights' place.
        shipped: whether the members that come with the program may be taken.
        device_help: what --device takes.
    """
    parser.add_argument("--manifest", type=Path, required=not shipped, help="the ensemble")
    source = parser.add_mutually_exclusive_group(required=True) if stored else parser
    source.add_argument(
        "--weights-dir", type=Path, required=not (stored or shipped), help="folder of its members' weight files"
    )
    if shipped:
        parser.add_argument(
            "--members", choices=("shipped",), help="in the place of --manifest: those that come with the program"
        )
        parser.add_argument("--preset", metavar="NAME", help="of the shipped members: see below")
        parser.formatter_class = PresetsHelpFormatter
        parser.epilog = PRESETS_PLACE
    if stored:
        source.add_argument(
            "--predictions", type=Path, metavar="FOLDER", help="what `validate --predictions` has stored, for weights"
        )
    parser.add_argument("--device", help=device_help)
    parser.add_argument(
        "--dtype",
        choices=NETWORK_DTYPES,
        help="of the networks' arithmetic; the short ones are faster and less exact (default: the manifest's"
        + (", or the preset's)" if shipped else ")"),
    )


def add_scale_arguments(parser: argparse.ArgumentParser, description: str) -> None:
    """The options that say at which scale members are shown images."""
    scale = parser.add_argument_group("scale", description)
    scale.add_argument(
        "--pixel-size",
        type=positive_number(),
        metavar="UM",
        help="side of a pixel in micrometres (default: as the file tells)",
    )
    scale.add_argument(
        "--zoom",
        type=number(1 / LARGEST_ZOOM, LARGEST_ZOOM),
        help="stretch images by this factor for the members (default: by the pixel size; without one, not at all)",
    )


def add_gray_argument(parser: argparse.ArgumentParser, description: str) -> None:
    """The switch --match-gray."""
    gray = parser.add_argument_group("gray levels", description)
    gray.add_argument(
        "--match-gray",
        action="store_true",
        help="bring images of 8 bits to the gray levels that members know, as those of more bits always are",
    )


def add_plane_arguments(parser: argparse.ArgumentParser, description: str, frame_help: str) -> None:
    """The options that choose a plane of images of many dimensions, for `choice_of_texts`."""
    depth = "Of images without a time axis, --frame counts along the depth, unless --z is given."
    planes = parser.add_argument_group("images of many dimensions", f"{description} {depth}")
    planes.add_argument(
        "--channel", metavar="INDEX", help="or its name, which counts first where the file tells it (default: 0)"
    )
    planes.add_argument("--z", metavar="INDEX", help="or max, the largest value of each pixel, or middle (default)")
    planes.add_argument("--frame", metavar="INDEX", help=frame_help)


class PresetsHelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Describes the presets where a help text is to have them; they are read only then."""

    def add_text(self, text: str | None) -> None:
        super().add_text("\n".join(describe_presets()).replace("%", "%%") if text == PRESETS_PLACE else text)


@dataclass(frozen=True)
class ChosenMembers:
    """An ensemble as the command line names it."""

    manifest: Manifest
    weights_dir: Path
    dtype: str
    preset: Preset | None = None  # of the shipped members
    told: str = ""  # which members these are, where nobody has named them

    def on(self, devices: Sequence[str]) -> ChosenMembers:
        """The same in the dtype that these devices have for its own, where it is one for all: as `own_dtype`."""
        import torch

        from kernel.gpus import own_dtype

        own = {own_dtype(torch.device(device), getattr(torch, self.dtype)) for device in devices}
        return replace(self, dtype=str(own.pop()).removeprefix("torch.")) if len(own) == 1 else self

    def files(self) -> EnsembleFiles:
        """Its weight files. Raises InputError as `find_ensemble`."""
        return find_ensemble(self.manifest, self.weights_dir, self.dtype)


def choose_members(options: argparse.Namespace) -> ChosenMembers:
    """The ensemble that the options of `add_member_arguments` name; without a manifest, the shipped members.

    Raises:
        InputError: as `read_manifest` and `choose_preset`; or options that contradict each other.
    """
    if options.manifest is not None:
        for name in ("members", "preset"):
            if getattr(options, name, None) is not None:
                raise InputError(f"{flag(name)} is of the members that come with the program: leave out --manifest")
        if options.weights_dir is None:
            raise InputError("--manifest needs --weights-dir, the folder of its members' weight files")
        manifest = read_manifest(options.manifest)
        return ChosenMembers(manifest, options.weights_dir, options.dtype or manifest.dtype)
    if options.weights_dir is not None:
        raise InputError("--weights-dir belongs to --manifest, which is not given")
    return shipped_ensemble(options.preset, options.dtype)


def shipped_ensemble(preset_name: str | None, dtype: str | None) -> ChosenMembers:
    """The shipped members by a preset; None: the default one, in its own dtype.

    Raises:
        InputError: as `shipped_members` and `choose_preset`.
    """
    shipped = shipped_members()
    preset = choose_preset(shipped, preset_name)
    told = f"members: shipped, {MEMBERS_FOLDER}; preset {preset.name}: {preset.describe()}"
    if dtype is not None and dtype != preset.manifest.dtype:
        told += f", here {dtype}"
    return ChosenMembers(preset.manifest, shipped.weights, dtype or preset.manifest.dtype, preset, told)


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
    """The device of --device; without a name the first GPU that this torch can compute on, or the CPU.

    Of several processes each has the GPU of its number, by whatever name of a GPU: `ProcessGroup` looks at that one.

    Raises:
        InputError: this machine has no such device, or it cannot be used.
    """
    import torch  # takes seconds, which `--help` need not

    from kernel.gpus import require_kernels

    if name is None:
        return next(usable_devices(), "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise refused_device(name, "networks run on these alone")
        if device.type == "cuda" and is_one_of_several():
            if device.index is not None:
                raise refused_device(name, "torchrun gives each process one of its own, by --device cuda")
            return name
        if device.type == "cuda" and torch.cuda.is_available():
            require_kernels(device)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # of an unknown name; of a CUDA that is not there, or is full
        raise refused_device(name, first_line(error)) from error
    return name


def refused_device(name: str, reason: str) -> InputError:
    """What to raise for a device that cannot be used: of --device, or of an argument in Python."""
    import torch

    count = torch.cuda.device_count()
    return InputError(f"device {name}: this machine has cpu and {count} GPU(s) (cuda, cuda:1, ...): {reason}")


def usable_devices() -> Iterator[str]:
    """The GPUs of `usable_gpus` by name; "cuda" alone where there is one."""
    import torch

    from kernel.gpus import usable_gpus

    return ("cuda" if torch.cuda.device_count() == 1 else f"cuda:{index}" for index in usable_gpus())


def check_devices(names: str | None, *, every_gpu: bool = False) -> list[str]:
    """The devices of --device, as "cuda:0,cuda:1"; without names the first GPU, or with `every_gpu` all, or the CPU.

    Raises:
        InputError: as `check_device`.
    """
    if names is None and every_gpu:
        return list(usable_devices()) or ["cpu"]
    return [check_device(name) for name in names.split(",")] if names else [check_device(None)]


def find_ensemble(manifest: Manifest, weights_dir: Path, dtype: str | None = None) -> EnsembleFiles:
    """The manifest's ensemble with its weight files, not loaded yet; in the manifest's dtype, where none is given.

    Raises:
        InputError: as `resolve_weights`.
    """
    from kernel.scoring.predicting import EnsembleFiles

    manifest, found = resolve_weights(manifest, weights_dir)
    return EnsembleFiles(manifest, {weights.member.name: weights.path for weights in found}, dtype or manifest.dtype)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder to write into, put in `target`'s place at the end; if anything fails, `target` stays as it was.

    Where `target` is a link, the folder that it leads to is replaced.

    Raises:
        InputError: the folder around it cannot be written, or `target` cannot be replaced.
    """
    target = target.resolve()
    with scratch_folder(target.parent, target.name) as scratch:
        folder = scratch / "new"
        folder.mkdir()
        yield folder
        replace_folder(folder, target)
