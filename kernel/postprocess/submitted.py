"""submission.csv read back and checked, as Kaggle would."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from kernel.errors import InputError
from kernel.postprocess.submission import SUBMISSION_HEADER, check_image_rles

#: A row, or a line that is none, which has no second field: an id in quotes or without, and run lengths.
SUBMISSION_ROW = re.compile(
    r"""(?:"([^"]*(?:""[^"]*)*)"|([^,"\r\n]*)),([^,"\r\n]*)(?:\r\n|\n|\r|\Z)|[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+\Z"""
)


def read_submission(path: Path) -> dict[str, list[str]]:
    """Read run lengths by image id, in the file's order; an image with an empty row has an empty list.

    Raises:
        InputError: the file is missing or has another header, a row is not an id and run lengths, an image has an
            empty row beside another one.
    """
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            content = stream.read()
    except OSError as error:
        raise InputError(f"cannot read the submission {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a text file in UTF-8: {error}") from error
    header = ",".join(SUBMISSION_HEADER)
    rows = list(SUBMISSION_ROW.finditer(content))
    if not rows or rows[0].group().rstrip("\r\n") != header:
        first = content[:60].splitlines()
        raise InputError(f"{path}: must begin with the row '{header}', not '{first[0] if first else ''}'")
    found: dict[str, list[str]] = {}
    empty_rows: set[str] = set()
    for number, row in enumerate(rows[1:], start=2):
        quoted, plain, text = row.groups()
        image_id = plain if quoted is None else quoted.replace('""', '"')
        if not image_id or text is None:
            got = row.group().rstrip("\r\n")[:60]
            raise InputError(f"{path}, row {number}: expected an image id, a comma and run lengths, got '{got}'")
        if image_id in empty_rows or (not text.strip() and image_id in found):
            raise InputError(f"{path}, row {number}: image '{image_id}' has an empty row and another one")
        texts = found.setdefault(image_id, [])
        if text.strip():
            texts.append(text)
        else:
            empty_rows.add(image_id)
    return found


def validate_submission(path: Path, image_shapes: Mapping[str, tuple[int, int]]) -> dict[str, list[str]]:
    """Read a submission and check it against its images.

    Args:
        path: the file.
        image_shapes: height and width of every image, by id.

    Returns:
        What `read_submission` returns.

    Raises:
        InputError: as `read_submission` and `check_image_rles` do, or an image is missing or unknown.
    """
    found = read_submission(path)
    for image_id in image_shapes:
        if image_id not in found:
            raise InputError(f"{path}: image '{image_id}' has no row; without masks it needs the row '{image_id},'")
    for image_id, rles in found.items():
        if image_id not in image_shapes:
            raise InputError(f"{path}: image '{image_id}' is not among the {len(image_shapes)} images")
        check_image_rles(image_id, rles, image_shapes[image_id])
    return found
