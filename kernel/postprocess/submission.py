"""submission.csv: header `id,predicted`, one row per mask, `id,` for an image without masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from kernel.errors import InputError
from kernel.files import whole_file
from kernel.images.listing import is_text
from kernel.log import printable_name
from kernel.masks.rle import common_pixels, parse_rle

SUBMISSION_HEADER = ("id", "predicted")


def check_image_rles(image_id: str, rles: Iterable[str], image_shape: tuple[int, int]) -> None:
    """Refuse masks of one image that Kaggle would not accept.

    Raises:
        InputError: a mask is empty, run lengths are wrong or leave the image, masks overlap.
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
    overlaps = common_pixels(*(np.concatenate(parts) for parts in (starts, ends, owners)))
    if overlaps:
        other, one, pixel = overlaps[0]
        raise InputError(
            f"image '{image_id}': masks {one} and {other} overlap at row {pixel // image_shape[1]}, "
            f"column {pixel % image_shape[1]} (from 0); a pixel may belong to one mask only"
        )


def check_image_id(image_id: str) -> None:
    """Refuse an id that the file cannot hold: one without characters, or whose bytes are no text in UTF-8.

    Raises:
        InputError: with the id, and what to do.
    """
    if not image_id or not is_text(image_id):
        raise InputError(
            f"image id '{printable_name(image_id)}' cannot stand in a submission, which is text in UTF-8: rename the "
            "image"
        )


def id_field(image_id: str) -> str:
    """An id as a field of the file: in quotes where a sign in it has a meaning there."""
    return '"' + image_id.replace('"', '""') + '"' if any(sign in image_id for sign in ',"\r\n') else image_id


class SubmissionWriter:
    """Collects the rows of image after image, and writes them all: at the end, or before with what there is.

    Args:
        expected_ids: the images that the submission must have, each once.
        spelled: by such an id, what is written in its place.

    Raises:
        InputError: an id is given twice or cannot be written.
    """

    def __init__(self, expected_ids: Iterable[str], spelled: Mapping[str, str] | None = None) -> None:
        self._spelled = spelled or {}
        self._rows: dict[str, list[str] | None] = {}
        for image_id in expected_ids:
            check_image_id(image_id)
            if image_id in self._rows:
                raise InputError(f"image '{image_id}' is given twice; ids are file names without suffix")
            self._rows[image_id] = None

    def add(self, image_id: str, rles: Iterable[str], image_shape: tuple[int, int]) -> None:
        """Add one image's masks; without any it gets an empty row, and its shape does not matter.

        Raises:
            InputError: the image was not expected or was added before, or `check_image_rles` refuses its masks.
        """
        if image_id not in self._rows:
            raise InputError(f"image '{image_id}' does not belong to this submission of {len(self._rows)} images")
        if self._rows[image_id] is not None:
            raise InputError(f"image '{image_id}' was added before: add all of its masks at once")
        texts = list(rles)
        check_image_rles(image_id, texts, image_shape)
        self._rows[image_id] = texts

    def content(self) -> bytes:
        """What the file holds; an image that was not added yet has an empty row."""
        lines = [",".join(SUBMISSION_HEADER)]
        for image_id, rles in self._rows.items():
            written = id_field(self._spelled.get(image_id, image_id))
            lines.extend(f"{written},{text}" for text in rles or [""])
        return ("\n".join(lines) + "\n").encode("utf-8")

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        content = self.content()
        try:
            with whole_file(Path(path)) as temporary:
                temporary.write_bytes(content)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}; choose a folder that can be written") from error
