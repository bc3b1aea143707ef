"""`predict`: masks of a folder of images, for other programs to open."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kernel.commands.common import add_member_arguments, check_device, choose_members
from kernel.commands.resuming import resumed_folder
from kernel.errors import InputError, RunError
from kernel.folders import refuse_to_replace
from kernel.images.reading import list_images
from kernel.manifest.types import manifest_to_json
from kernel.vendored import use_vendored_packages


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "predict",
        help="write the masks of a folder of images: label images, outlines, a table, pictures",
        description="Write the masks of a folder of images: label images, outlines, a table, pictures. Where it is\n"
        "stopped, the same command goes on from there. Without --manifest, by the members that come with the program.",
    )
    parser.add_argument("images", type=Path, help="folder of PNG, TIFF or JPEG images")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; an earlier one is replaced")
    parser.add_argument(
        "--export",
        default="labels,geojson,pictures,tables",
        metavar="NAMES",
        help="what to write, with commas between: labels, geojson, pictures, rois (ImageJ), seg-npy (Cellpose), "
        "ome-tiff, ome-zarr, tables, coco, submission (default: %(default)s)",
    )
    add_member_arguments(parser, shipped=True)
    parser.set_defaults(run=run_predict)


def run_predict(options: argparse.Namespace) -> None:
    """Segment the images of a folder."""
    use_vendored_packages()
    from kernel.export.folder import predict_folder
    from kernel.export.kinds import IMAGES_TABLE, RESULT_NAMES, chosen_exports

    exports = chosen_exports(options.export)
    images = list_images(options.images)
    if options.images.resolve().is_relative_to(options.out.resolve()):
        raise InputError(f"--out {options.out} holds the images themselves, and is replaced as a whole: name another")
    earlier = "cells.csv" if (options.out / "cells.csv").is_file() else IMAGES_TABLE
    refuse_to_replace(options.out, RESULT_NAMES, marker=earlier)
    chosen = choose_members(options)
    if chosen.told:
        print(chosen.told)
    files = chosen.files()
    ensemble = files.load(check_device(options.device))
    made_of = [manifest_to_json(files.manifest), files.dtype, *exports]
    with resumed_folder(options.out, made_of, images) as (folder, finished):
        failed = predict_folder(ensemble, images, folder, exports, finished.get, finished.add)
    print(f"{len(images) - len(failed)} images: {', '.join(exports)} in {options.out}")
    broken = [name for name, failure in failed.items() if not failure.wrong_input]
    if broken:
        raise RunError(f"{len(failed)} image(s) are not there, {', '.join(broken)} for no fault of theirs: see above")
    if failed:
        raise InputError(f"{len(failed)} image(s) could not be read and are not there: {', '.join(failed)}")
