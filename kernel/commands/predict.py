"""`predict`: masks of a folder of images, for other programs to open."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kernel.commands.common import add_member_arguments, load_options_ensemble, whole_folder
from kernel.errors import InputError, RunError
from kernel.folders import refuse_to_replace
from kernel.images.reading import list_images
from kernel.vendored import use_vendored_packages


def add_parser(commands: Any) -> None:
    """Add the command to the command line's `commands`."""
    parser = commands.add_parser(
        "predict", help="write the masks of a folder of images: label images, outlines, a table, pictures"
    )
    parser.add_argument("images", type=Path, help="folder of PNG, TIFF or JPEG images")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; an earlier one is replaced")
    add_member_arguments(parser)
    parser.set_defaults(run=run_predict)


def run_predict(options: argparse.Namespace) -> None:
    """Segment the images of a folder."""
    use_vendored_packages()
    from kernel.export.folder import predict_folder

    images = list_images(options.images)
    if options.images.resolve().is_relative_to(options.out.resolve()):
        raise InputError(f"--out {options.out} holds the images themselves, and is replaced as a whole: name another")
    refuse_to_replace(options.out, ("labels", "outlines", "pictures", "cells.csv"), marker="cells.csv")
    ensemble = load_options_ensemble(options)
    with whole_folder(options.out) as folder:
        failed = predict_folder(ensemble, images, folder)
    print(f"{len(images) - len(failed)} images: labels/, outlines/, pictures/ and cells.csv in {options.out}")
    broken = [name for name, failure in failed.items() if not failure.wrong_input]
    if broken:
        raise RunError(f"{len(failed)} image(s) are not there, {', '.join(broken)} for no fault of theirs: see above")
    if failed:
        raise InputError(f"{len(failed)} image(s) could not be read and are not there: {', '.join(failed)}")
