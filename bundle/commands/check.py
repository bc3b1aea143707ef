"""Check a submission.csv against its images, as Kaggle would: header, ids, run lengths, sizes, overlaps.

    python build_kernel.py check dist/dry-run/submission.csv --images bundle/members/images

Each problem is a line with the row's number. Of the images only the headers are read. Where sample_submission.csv lies
beside their folder and asks for some of them, its ids count, as in the kernel: an id may be spelled otherwise than its
file, or have none, and then an empty row.

Exit codes: 0 valid, 2 not valid, or it cannot be read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from kernel.commands.options import whole_number
from kernel.errors import InputError


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("submission", type=Path, help="the file")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="the folder of its images")
    parser.add_argument(
        "--limit",
        type=whole_number(0),
        default=20,
        metavar="N",
        help="how many problems are shown (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> int:
    """Check. Returns the exit code.

    Raises:
        InputError: the submission is not valid or cannot be read, or there are no images.
    """
    from kernel.images.listing import SAMPLE_NAME, asked_ids
    from kernel.images.reading import list_images, read_image_shape
    from kernel.postprocess.submitted import find_problems, parse_submission, told_problems

    submission = parse_submission(options.submission)
    shapes = {path.stem: read_image_shape(path) for path in list_images(options.images)}
    asked = asked_ids(options.images.absolute().parent / SAMPLE_NAME, shapes, may_be_of_others=True)
    problems = find_problems(submission, asked.shapes(shapes))
    for line in told_problems(problems, options.limit):
        print(f"{options.submission}: {line}")
    if problems:
        raise InputError(
            f"{options.submission} is not valid for the images in {options.images}: {len(problems)} problem(s)"
        )
    cells = sum(map(len, submission.masks.values()))
    print(f"{options.submission} is valid: {cells} cells in {len(shapes)} images")
    return 0
