"""submission.csv: header `id,predicted`, one row per mask, `id,` for an image without masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from kernel.errors import InputError
from kernel.postprocess.rle import parse_rle
from kernel.runtime.files import whole_file

SUBMISSION_HEADER = ("id", "predicted")


def check_image_rles(image_id: str, rles: Iterable[str], image_shape: tuple[int, int]) -> None:
    """Whether the masks of one image are what Kaggle accepts.

    Raises:
        InputError: an empty mask, run lengths that are wrong or leave the image, masks that overlap.
    """
    starts, ends, owners = [], [], []
    for number, text in enumerate(rles, start=1):
        try:
            first, last = parse_rle(text, image_shape)
        except InputError as error:
            raise InputError(f"image '{image_id}', mask {number}: {error}") from error
        if first.size == 0:
            raise InputError(f"image '{image_id}', mask {number}: the mask is empty; leave it out")
        starts.append(first)
        ends.append(last)
        owners.append(np.full(first.size, number))
    if not starts:
        return
    all_starts, all_ends, all_owners = (np.concatenate(parts) for parts in (starts, ends, owners))
    order = np.argsort(all_starts, kind="stable")
    clash = np.flatnonzero(all_starts[order][1:] < all_ends[order][:-1])
    if clash.size:
        one, other = sorted(all_owners[order][clash[0] : clash[0] + 2].tolist())
        pixel = int(all_starts[order][clash[0] + 1])
        raise InputError(
            f"image '{image_id}': masks {one} and {other} overlap at row {pixel // image_shape[1]}, "
            f"column {pixel % image_shape[1]} (from 0); a pixel may belong to one mask only"
        )


def _check_image_id(image_id: str) -> None:
    if not image_id or image_id != image_id.strip() or any(sign in image_id for sign in ',"\r\n'):
        raise InputError(f"image id {image_id!r} cannot stand in a submission: no commas, quotes or outer spaces")


class SubmissionWriter:
    """Collects an image's rows as text, so that no mask needs to be kept, and writes them all at the end.

    Args:
        expected_ids: the images that the submission must have, each once.

    Raises:
        InputError: an id is given twice or cannot be written.
    """

    def __init__(self, expected_ids: Iterable[str]) -> None:
        self._rows: dict[str, list[str] | None] = {}
        for image_id in expected_ids:
            _check_image_id(image_id)
            if image_id in self._rows:
                raise InputError(f"image '{image_id}' is given twice; ids are file names without suffix")
            self._rows[image_id] = None

    def add(self, image_id: str, rles: Iterable[str], image_shape: tuple[int, int]) -> None:
        """One image's masks, checked at once. No masks give the empty row; the shape does not matter then.

        Raises:
            InputError: an image not expected or added before, or masks that `check_image_rles` refuses.
        """
        if image_id not in self._rows:
            raise InputError(f"image '{image_id}' does not belong to this submission of {len(self._rows)} images")
        if self._rows[image_id] is not None:
            raise InputError(f"image '{image_id}' was added before; its masks must come all at once")
        texts = list(rles)
        check_image_rles(image_id, texts, image_shape)
        self._rows[image_id] = texts

    @property
    def missing_ids(self) -> list[str]:
        """Expected images that have not been added yet, in order."""
        return [image_id for image_id, rles in self._rows.items() if rles is None]

    def write(self, path: Path) -> None:
        """Write the file whole or not at all: beside it first, then put in its place.

        Raises:
            InputError: an expected image is missing, or the file cannot be written.
        """
        missing = self.missing_ids
        if missing:
            raise InputError(
                f"{len(missing)} of {len(self._rows)} images have no rows, '{missing[0]}' first; "
                "add an image without masks too, with an empty list"
            )
        lines = [",".join(SUBMISSION_HEADER)]
        for image_id, rles in self._rows.items():
            lines.extend(f"{image_id},{text}" for text in rles or [""])
        try:
            with whole_file(Path(path)) as temporary:
                temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error


def write_submission(
    path: Path, rows: Iterable[tuple[str, Iterable[str]]], image_shapes: Mapping[str, tuple[int, int]]
) -> None:
    """Check and write a submission.

    Args:
        path: the file to write; one that is there is replaced only if all is well.
        rows: image id and its run lengths.
        image_shapes: height and width of every expected image.

    Raises:
        InputError: as `SubmissionWriter`.
    """
    writer = SubmissionWriter(image_shapes)
    for image_id, rles in rows:
        writer.add(image_id, rles, image_shapes.get(image_id, (0, 0)))
    writer.write(path)


def read_submission(path: Path) -> dict[str, list[str]]:
    """Run lengths by image id, in the file's order; an image with its empty row has an empty list.

    Raises:
        InputError: the file is missing, has another header, or a row is not an id and run lengths.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the submission {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not a text file in UTF-8: {error}") from error
    header = ",".join(SUBMISSION_HEADER)
    if not lines or lines[0] != header:
        raise InputError(f"{path} must begin with the row '{header}', not '{lines[0][:60] if lines else ''}'")
    found: dict[str, list[str]] = {}
    empty_rows: set[str] = set()
    for number, line in enumerate(lines[1:], start=2):
        # No field of ours ever needs quotes, so that a comma can only be the one between the two.
        image_id, comma, text = line.partition(",")
        if not image_id or not comma or "," in text or '"' in line:
            raise InputError(f"{path}, row {number}: expected an image id, a comma and run lengths, got '{line[:60]}'")
        if image_id in empty_rows or (not text.strip() and image_id in found):
            raise InputError(f"{path}, row {number}: image '{image_id}' has an empty row and another one")
        texts = found.setdefault(image_id, [])
        if text.strip():
            texts.append(text)
        else:
            empty_rows.add(image_id)
    return found


def validate_submission(path: Path, image_shapes: Mapping[str, tuple[int, int]]) -> dict[str, list[str]]:
    """Read a submission and check it against the images, by id with height and width.

    Returns:
        What `read_submission` returns.

    Raises:
        InputError: names the image and what is wrong: missing, unknown, malformed, outside, overlapping.
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
