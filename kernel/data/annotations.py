"""The competition's train.csv: annotated cells as run lengths per image, decoded to crops when asked for."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_fill_holes

from kernel.errors import InputError
from kernel.postprocess.instances import CellMasks
from kernel.postprocess.rle import decode_rle_crop
from kernel.settings import CELL_TYPES

#: Images whose annotations are plainly wrong; the published solution does not train on them.
WRONGLY_ANNOTATED = frozenset({"03b27b381a5f", "e92c56871769", "eec79772cb99"})

_NEEDED_COLUMNS = ("id", "annotation", "width", "height", "cell_type")


@dataclass(frozen=True)
class ImageAnnotations:
    """The annotated cells of one image: `rles` row-major and 1-based, `image_shape` height and width."""

    image_id: str
    cell_type: str
    image_shape: tuple[int, int]
    rles: tuple[str, ...]

    def masks(self, *, fill_holes: bool = False) -> CellMasks:
        """The cells as crops, in the file's order; annotated cells may overlap.

        Scores are 1, labels the cell type's, boxes the masks' own (x1 and y1 exclusive).

        Args:
            fill_holes: as for training. The metric's truth is unfilled.

        Raises:
            InputError: run lengths that cannot be read.
        """
        crops, windows = [], np.zeros((len(self.rles), 4), dtype=np.int64)
        for index, text in enumerate(self.rles):
            try:
                crop, (y0, x0) = decode_rle_crop(text, self.image_shape)
            except InputError as error:
                raise InputError(f"image '{self.image_id}', annotation {index + 1}: {error}") from error
            windows[index] = y0, x0, y0 + crop.shape[0], x0 + crop.shape[1]
            crops.append(binary_fill_holes(crop) if fill_holes and crop.size else crop)
        return CellMasks(
            crops=tuple(crops),
            offsets_yx=windows[:, :2],
            boxes_xyxy=windows[:, [1, 0, 3, 2]],
            scores=np.ones(len(crops)),
            labels=np.full(len(crops), CELL_TYPES.index(self.cell_type)),
            image_shape=self.image_shape,
        )


def _annotation_row(row: dict[str, str | None], place: str) -> tuple[str, str, tuple[int, int], str]:
    values = [row.get(column) for column in _NEEDED_COLUMNS]
    if any(not value for value in values):
        raise InputError(f"{place}: each of {', '.join(_NEEDED_COLUMNS)} must be filled in")
    image_id, rle, width, height, cell_type = (str(value) for value in values)
    if cell_type not in CELL_TYPES:
        raise InputError(f"{place}: cell type '{cell_type}' is not one of {', '.join(CELL_TYPES)}")
    if not (width.isdecimal() and height.isdecimal()):
        raise InputError(f"{place}: width and height must be whole numbers, got '{width}' and '{height}'")
    return image_id, cell_type, (int(height), int(width)), rle


def read_annotations(path: Path, *, exclude: Collection[str] = WRONGLY_ANNOTATED) -> dict[str, ImageAnnotations]:
    """All images of a train.csv, by id, in the file's order.

    Args:
        path: the CSV file, one row per cell.
        exclude: images to leave out.

    Raises:
        InputError: no such file, a column is missing, a row cannot be read, or an image's rows disagree.
    """
    heads: dict[str, tuple[str, tuple[int, int]]] = {}
    rles: dict[str, list[str]] = {}
    try:
        with Path(path).open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in _NEEDED_COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path} lacks the columns {', '.join(missing)}; expected the competition's train.csv")
            for number, row in enumerate(reader, start=2):
                image_id, cell_type, shape, rle = _annotation_row(row, f"{path}, row {number}")
                if image_id in exclude:
                    continue
                if heads.setdefault(image_id, (cell_type, shape)) != (cell_type, shape):
                    raise InputError(
                        f"{path}, row {number}: image '{image_id}' is {cell_type} {shape} here and "
                        f"{heads[image_id]} above; an image has one cell type and one size"
                    )
                rles.setdefault(image_id, []).append(rle)
    except OSError as error:
        raise InputError(f"cannot read annotations from {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from error
    return {image_id: ImageAnnotations(image_id, *heads[image_id], tuple(texts)) for image_id, texts in rles.items()}
