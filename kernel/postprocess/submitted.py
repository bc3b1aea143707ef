"""submission.csv read back and checked, as Kaggle would: the form of its rows, its images, its masks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernel.errors import InputError
from kernel.log import LOG
from kernel.masks.rle import common_pixels, parse_rle
from kernel.postprocess.submission import SUBMISSION_HEADER

#: Problems that are told one by one; of more, the number.
PROBLEMS_TOLD = 20
#: Characters of a row that a message shows.
SHOWN = 60
#: A row, or a line that is none, which has no second field: an id in quotes or without, and run lengths.
SUBMISSION_ROW = re.compile(
    r"""(?:"([^"]*(?:""[^"]*)*)"|([^,"\r\n]*)),([^,"\r\n]*)(?:\r\n|\n|\r|\Z)|[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+\Z"""
)


@dataclass(frozen=True, order=True)
class SubmissionProblem:
    """What is wrong with a submission, in one line."""

    row: int  # of the file, counted from 1, the header's; 0: no row in particular
    text: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.text}" if self.row else self.text


@dataclass(frozen=True)
class SubmittedMask:
    """A row with run lengths."""

    row: int
    text: str


@dataclass(frozen=True)
class Submission:
    """What a file holds, and what is wrong with its form."""

    masks: dict[str, list[SubmittedMask]]  # by image id, in the file's order; an image with an empty row has none
    first_rows: dict[str, int]  # of each image
    problems: list[SubmissionProblem]

    @property
    def rles(self) -> dict[str, list[str]]:
        """The run lengths by image id."""
        return {image_id: [mask.text for mask in masks] for image_id, masks in self.masks.items()}


def parse_submission(path: Path) -> Submission:
    """Read a file; what is wrong with its rows is not raised.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        content = Path(path).read_bytes().decode("utf-8")
    except OSError as error:
        raise InputError(f"cannot read the submission {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8: {error}") from error
    rows = list(SUBMISSION_ROW.finditer(content))
    found = Submission({}, {}, [])
    header = ",".join(SUBMISSION_HEADER)
    first = rows[0].group().rstrip("\r\n") if rows else ""
    if first != header:
        wrong = f"the file must begin with the row '{header}', not {first[:SHOWN]!r}"
        found.problems.append(SubmissionProblem(1, wrong))
    empty_rows: set[str] = set()
    for number, fields in enumerate(rows[1:], start=2):
        quoted, plain, text = fields.groups()
        image_id = plain if quoted is None else quoted.replace('""', '"')
        if not image_id or text is None:
            got = fields.group().rstrip("\r\n")[:SHOWN]
            wrong = f"expected an image id, a comma and run lengths, got {got!r}"
            found.problems.append(SubmissionProblem(number, wrong))
            continue
        is_empty = not text.strip()
        if image_id in empty_rows or (is_empty and image_id in found.masks):
            wrong = (
                f"image {image_id!r} has an empty row and another one; without masks it has one row, else none is empty"
            )
            found.problems.append(SubmissionProblem(number, wrong))
        found.first_rows.setdefault(image_id, number)
        masks = found.masks.setdefault(image_id, [])
        if is_empty:
            empty_rows.add(image_id)
        else:
            masks.append(SubmittedMask(number, text))
    return found


def find_problems(
    submission: Submission, image_shapes: Mapping[str, tuple[int, int] | None]
) -> list[SubmissionProblem]:
    """All that is wrong with a submission for these images, by row.

    Args:
        submission: the file's content.
        image_shapes: (H, W) of every image by id; None for one that cannot be read, which can have no mask.
    """
    problems = list(submission.problems)
    for image_id in image_shapes:
        if image_id not in submission.masks:
            wrong = f"image {image_id!r} has no row; without masks it needs the row '{image_id},'"
            problems.append(SubmissionProblem(0, wrong))
    for image_id, masks in submission.masks.items():
        if image_id not in image_shapes:
            wrong = f"image {image_id!r} is not among the {len(image_shapes)} images"
            problems.append(SubmissionProblem(submission.first_rows[image_id], wrong))
        else:
            problems += image_problems(image_id, masks, image_shapes[image_id])
    return sorted(problems, key=lambda problem: (problem.row == 0, problem.row))


def image_problems(
    image_id: str, masks: Iterable[SubmittedMask], image_shape: tuple[int, int] | None
) -> list[SubmissionProblem]:
    """What is wrong with the masks of one image (H, W): each one's run lengths, and pixels that two of them have."""
    problems: list[SubmissionProblem] = []
    starts, ends, rows = [], [], []
    for mask in masks:
        if image_shape is None:
            wrong = f"image {image_id!r} has a mask, and its file cannot be read"
            problems.append(SubmissionProblem(mask.row, wrong))
            continue
        try:
            first, last = parse_submitted_rle(mask.text, image_shape)
        except InputError as error:
            problems.append(SubmissionProblem(mask.row, f"image {image_id!r}: {error}"))
            continue
        starts.append(first)
        ends.append(last)
        rows.append(np.full(first.size, mask.row))
    if image_shape is None or len(rows) < 2:
        return problems
    for row, other, pixel in common_pixels(*(np.concatenate(parts) for parts in (starts, ends, rows))):
        wrong = (
            f"image {image_id!r}: the mask overlaps that of row {other} at row {pixel // image_shape[1]}, column "
            f"{pixel % image_shape[1]} of the image (from 0); a pixel may belong to one mask only"
        )
        problems.append(SubmissionProblem(row, wrong))
    return problems


def parse_submitted_rle(text: str, image_shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """`parse_rle` of digits and spaces alone: Python takes more for numbers, such as 1_000, than other readers do.

    Raises:
        InputError: as `parse_rle` does.
    """
    if not (text.isascii() and text.replace(" ", "").isdigit()):
        raise InputError(f"run lengths must be whole numbers with spaces between them, got {text[:SHOWN]!r}")
    return parse_rle(text, image_shape)


def read_submission(path: Path) -> dict[str, list[str]]:
    """Read run lengths by image id, in the file's order; an image with an empty row has an empty list.

    Raises:
        InputError: as `parse_submission`; or the form of a row is wrong.
    """
    submission = parse_submission(path)
    refuse_problems(path, submission.problems)
    return submission.rles


def validate_submission(path: Path, image_shapes: Mapping[str, tuple[int, int] | None]) -> dict[str, list[str]]:
    """Read a submission and check it against its images; the arguments are those of `find_problems`.

    Returns:
        What `read_submission` returns.

    Raises:
        InputError: as `parse_submission`; or there is a problem.
    """
    submission = parse_submission(path)
    refuse_problems(path, find_problems(submission, image_shapes))
    return submission.rles


def refuse_problems(path: Path, problems: list[SubmissionProblem]) -> None:
    """Raise InputError of the first problem, if there is any."""
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{path}, {problems[0]}{more}")


def told_problems(problems: list[SubmissionProblem], limit: int = PROBLEMS_TOLD) -> list[str]:
    """The first problems, a line for each, and how many more there are."""
    lines = [str(problem) for problem in problems[:limit]]
    return [*lines, f"and {len(problems) - limit} more"] if len(problems) > limit else lines


def is_valid_submission(path: Path, image_shapes: Mapping[str, tuple[int, int] | None]) -> bool:
    """Whether a submission that has just been written is right; the log says what is not."""
    try:
        problems = find_problems(parse_submission(path), image_shapes)
    except InputError as error:
        problems = [SubmissionProblem(0, str(error))]
    for line in told_problems(problems):
        LOG.critical("%s is not valid: %s", path, line)
    return not problems
