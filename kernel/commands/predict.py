"""`predict`: masks of images, for other programs to open."""

from __future__ import annotations

import argparse
import logging
import uuid
from dataclasses import replace
from functools import partial
from itertools import tee
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel.commands.common import (
    ALL_DEVICES,
    add_gray_argument,
    add_member_arguments,
    add_plane_arguments,
    add_replace,
    add_scale_arguments,
    check_device,
    check_devices,
    choose_members,
)
from kernel.commands.options import whole_number
from kernel.commands.results import refuse_to_replace_result
from kernel.commands.resuming import resumed_folder
from kernel.commands.rules import CommandRules
from kernel.errors import InputError, RunError
from kernel.images.planes import choice_of_texts
from kernel.log import LOG
from kernel.manifest.types import manifest_to_json
from kernel.processes import own_device, share_over_devices
from kernel.vendored import use_vendored_packages

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from kernel.export.folder import ImageWork, Outcome
    from kernel.export.inputs import InputImage
    from kernel.scale import ScaledEnsemble
    from kernel.scoring.predicting import EnsembleFiles

#: An image that has ended so many runs, each time by the loss of the GPU, is not tried again.
MOST_STOPS = 2
RULES = CommandRules(
    reads=("images", "manifest", "weights_dir"),
    unflagged=("images",),
    writes=lambda options: [options.out],
)


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "predict",
        help="write the masks of images: label images, outlines, a table, pictures",
        description="Write the masks of images: label images, outlines, a table, pictures. Where it is\n"
        "stopped, the same command goes on from there. Without --manifest, by the members that come with the program.",
    )
    parser.add_argument(
        "images",
        nargs="+",
        help="images, folders of images, or patterns in quotes, as 'plate*/*.tif': PNG, JPEG, TIFF, OME-Zarr, and ND2, "
        "CZI, LIF by bioio",
    )
    parser.add_argument("--recursive", action="store_true", help="look into sub-folders, which --out then has as well")
    parser.add_argument(
        "--out", type=Path, required=True, help="the folder to write; an earlier one is replaced if nobody changed it"
    )
    add_replace(
        parser, "replace what --out holds of another command, of other images or such that fail now, or your work"
    )
    parser.add_argument(
        "--export",
        default="labels,geojson,pictures,tables",
        metavar="NAMES",
        help="what to write, with commas between: labels, geojson, pictures, rois (ImageJ), seg-npy (Cellpose), "
        "ome-tiff, ome-zarr, tables, coco, submission, report (a page to look at; default: %(default)s)",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="have the workers of a dask cluster do it: its scheduler's address, as tcp://host:8786; images, weights "
        "and --out must lie in folders that all of them share (default: this machine)",
    )
    add_scale_arguments(parser, "Members know cells of a certain size in pixels; files tell theirs.")
    add_gray_argument(parser, "One line tells of images whose gray levels are far from what members know.")
    add_plane_arguments(parser, "Indices are counted from 0.", frame_help="or all, for a result each (default: 0)")
    cells = parser.add_argument_group("cells", "Confluence and density count those as well that are left out.")
    cells.add_argument("--exclude-edges", action="store_true", help="leave out cells that the image's edge cuts")
    cells.add_argument(
        "--min-area",
        type=whole_number(0),
        default=0,
        metavar="PIXELS",
        help="leave out cells of fewer pixels of the image",
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("-q", "--quiet", action="store_true", help="tell only what is wrong")
    shown.add_argument("-v", "--verbose", action="store_true", help="tell more, and a line for each image")
    add_member_arguments(parser, shipped=True, device_help=ALL_DEVICES)
    parser.set_defaults(run=run_predict, rules=RULES)


def run_predict(options: argparse.Namespace) -> None:
    """Segment images."""
    LOG.setLevel(logging.WARNING if options.quiet else logging.DEBUG if options.verbose else logging.INFO)
    use_vendored_packages()
    from kernel.export.folder import ImageWork, LostDeviceError, Wanted, largest_input, predict_images
    from kernel.export.inputs import is_inside, list_inputs
    from kernel.export.kinds import IMAGES_TABLE, RUN_PAGE, chosen_exports
    from kernel.export.progress import shown_progress
    from kernel.report.run_page import run_images, write_run_page
    from kernel.runtime.cluster import map_on_cluster
    from kernel.runtime.failures import FailedImage

    exports = chosen_exports(options.export)
    choice = choice_of_texts(options.channel, options.z, options.frame)
    out = options.out
    wanted = Wanted(
        exports,
        choice,
        options.pixel_size,
        options.zoom,
        options.exclude_edges,
        options.min_area,
        match_gray=options.match_gray,
    )
    chosen = choose_members(options)
    images = list_inputs(options.images, choice, options.recursive, [out] if (out / IMAGES_TABLE).is_file() else [])
    if any(is_inside(image.path, [out.resolve()]) for image in images):
        raise InputError(f"--out {out} holds the images themselves, and is replaced as a whole: name another")
    refuse_to_replace_result(out, "predict", {image.name for image in images}, replace=options.replace)
    if chosen.told and not options.quiet:
        print(chosen.told)
    if options.scheduler is None:
        devices = check_devices(options.device, every_gpu=True)
        chosen = chosen.on(devices)
    else:  # each worker looks for its own, and for the images from its own folder
        devices = [options.device]
        images = [replace(image, path=image.path.resolve()) for image in images]
    files = chosen.files()
    made_of = [manifest_to_json(files.manifest), files.dtype, repr(wanted)]
    made_of += ["--match-gray"] if wanted.match_gray else []  # without it, runs that were begun before go on
    with (
        resumed_folder(out, made_of, images, replace=options.replace) as (folder, finished),
        shown_progress(len(images), quiet=options.quiet, verbose=options.verbose) as progress,
    ):
        here = folder.resolve()
        load = partial(load_scaled, absolute(files), devices[0] if len(devices) == 1 else None)
        work = ImageWork(uuid.uuid4().hex, load, largest_input(images), wanted, here)
        if options.scheduler is not None:
            outcomes = partial(map_on_cluster, options.scheduler, work, folder=here)
        else:
            outcomes = partial(work_here, work) if len(devices) == 1 else partial(work_on, devices, work)

        def done_before(image: InputImage) -> Outcome | None:
            record = finished.get(image)
            if record is None and finished.stops(image) >= MOST_STOPS:
                return FailedImage(f"it has cost the GPU {MOST_STOPS} times, and is not tried again", wrong_input=False)
            return record

        try:
            result = predict_images(outcomes, images, folder, wanted, progress, done_before, finished.add)
        except LostDeviceError as error:
            image = next(image for image in images if image.name == error.image)
            if finished.stopped(image, error.reason) >= MOST_STOPS:
                LOG.error("image %s: the same command goes on without it", image.name)
            raise
        if "report" in exports:
            write_run_page(folder / RUN_PAGE, f"Cells found in {out.name}", run_images(images, result, folder))
    failed = result.failed
    if result.records and not options.quiet:
        print(f"{len(result.records)} images: {', '.join(exports)} in {out}")
    broken = [name for name, failure in failed.items() if not failure.wrong_input]
    if broken:
        raise RunError(f"{len(failed)} image(s) are not there, {', '.join(broken)} for no fault of theirs: see above")
    if failed:
        raise InputError(
            f"{len(failed)} image(s) could not be read and are not there: {', '.join(failed)}; once they are mended, "
            "the same command does these alone"
        )


def load_scaled(files: EnsembleFiles, device: str | None) -> ScaledEnsemble:
    """The ensemble of these files at the scale that its members know; also in other processes, and on other machines.

    Args:
        files: found before.
        device: to run it on; None: the one of this process of several, else the first GPU, or the CPU.
    """
    use_vendored_packages()
    from kernel.scale import ScaledEnsemble, member_pixel_um

    return ScaledEnsemble(files.load(check_device(device or own_device())), member_pixel_um(files.paths))


def absolute(files: EnsembleFiles) -> EnsembleFiles:
    """The same files by paths that do not depend on the folder that a process works in."""
    return replace(files, paths={name: path.resolve() for name, path in files.paths.items()})


def work_here(work: ImageWork, images: Iterable[InputImage]) -> Iterator[tuple[InputImage, Outcome]]:
    """The work for each image, one after the other, in this process."""
    return ((image, work(image)) for image in images)


def work_on(
    devices: Sequence[str], work: ImageWork, images: Iterable[InputImage]
) -> Iterator[tuple[InputImage, Outcome]]:
    """The work for each image, in a process for each device.

    Raises:
        RunError: a process dies, is stopped or hangs.
    """
    advice = "what is finished stays: the same command goes on from there, on fewer devices if need be"
    named, worked = tee(images)
    return zip(named, share_over_devices(work, worked, devices, advice), strict=True)
