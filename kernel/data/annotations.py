"""The competition's train.csv: annotated cells as run lengths per image, decoded to crops when asked for."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_fill_holes

from kernel.data.image_names import folders_of_id, images_by_name, known_name
from kernel.data.tables import TableRow, read_table, whole_number
from kernel.data.twins import part_twins, same_run_lengths, warn_of_twins
from kernel.errors import InputError
from kernel.images.reading import list_images
from kernel.masks.instances import CellMasks
from kernel.masks.rle import decode_rle_crop
from kernel.settings import CELL_TYPES

#: Images whose annotations are plainly wrong; the published solution does not train on them.
WRONGLY_ANNOTATED = frozenset({"03b27b381a5f", "e92c56871769", "eec79772cb99"})

#: Of an image; a mask of more may not fit into the memory.
MOST_PIXELS = 1 << 32

_NEEDED_COLUMNS = ("id", "annotation", "width", "height", "cell_type")


@dataclass(frozen=True)
class ImageAnnotations:
    """The annotated cells of one image: `rles` row-major and 1-based, `image_shape` height and width."""

    image_id: str
    cell_type: str
    image_shape: tuple[int, int]
    rles: tuple[str, ...]  # none: nothing is in the image
    sample_id: str = ""  # "" where unknown

    @property
    def pixel_um(self) -> None:
        """The side of a pixel, which the table does not tell."""

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64: the cell type's, for each cell."""
        return np.full(len(self.rles), CELL_TYPES.index(self.cell_type))

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
            labels=self.labels,
            image_shape=self.image_shape,
        )


@dataclass(frozen=True)
class CellRow:
    """One row of train.csv: one cell, its run lengths not yet looked at; or, without them, an image without cells."""

    number: int  # the line in the file
    image_id: str
    cell_type: str
    image_shape: tuple[int, int]  # height, width
    rle: str
    sample_id: str  # "" where the file has none


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and why."""

    number: int
    image_id: str  # "" where that is missing
    reason: str


def images_of_table(folder: Path) -> dict[str, Path]:
    """The competition's training images, train/<id>.png or another of the endings, by id, in the order of their files.

    Raises:
        InputError: as `list_images` and `images_by_name` do.
    """
    images = folder / "train"
    if folder.is_dir() and not images.is_dir():
        raise InputError(
            f"no folder {images}: the competition's layout is expected, train.csv and train/<id>.png; "
            f"{folder} holds {', '.join(sorted(path.name for path in folder.iterdir())[:10]) or 'nothing'}"
        )
    return images_by_name(list_images(images))


def read_cell_rows(path: Path, names: Collection[str] = ()) -> Iterator[CellRow | BadRow]:
    """The rows of a train.csv. A row is bad in itself, or because it contradicts its image's first good row.

    A row whose annotation is empty says that nothing is in its image, as in a submission: see `part_empty_rows`.

    Args:
        path: the CSV file.
        names: of the images, which ids with a path or an ending (train/abc.png) are matched with.

    Raises:
        InputError: no such file, a column is missing, or it is no CSV file.
    """
    heads: dict[str, tuple[str, tuple[int, int]]] = {}
    sample_ids: dict[str, str] = {}
    written: dict[str, str] = {}  # the ids as the rows have them
    for row in read_table(path, _NEEDED_COLUMNS, "annotations", "the competition's train.csv"):
        text = row.values["id"]
        row.values["id"] = known_name(text, names)
        cell = _cell_row(row)
        if isinstance(cell, CellRow):
            head = cell.cell_type, cell.image_shape
            first_text = written.setdefault(cell.image_id, text)
            first_head = heads.setdefault(cell.image_id, head)
            first_sample = sample_ids.get(cell.image_id, "")
            if cell.sample_id:
                first_sample = sample_ids.setdefault(cell.image_id, cell.sample_id)
            if folders_of_id(first_text) != folders_of_id(text):
                reason = f"the ids '{first_text}' above and '{text}' here both mean the image '{cell.image_id}'"
                cell = BadRow(cell.number, cell.image_id, reason)
            elif first_head != head:
                cell = BadRow(
                    cell.number,
                    cell.image_id,
                    f"image '{cell.image_id}' is {cell.cell_type} {cell.image_shape} here and {first_head} above; "
                    "an image has one cell type and one size",
                )
            elif cell.sample_id and cell.sample_id != first_sample:
                cell = BadRow(
                    cell.number,
                    cell.image_id,
                    f"image '{cell.image_id}' is of sample '{cell.sample_id}' here and '{first_sample}' above",
                )
        yield cell


def _cell_row(row: TableRow) -> CellRow | BadRow:
    image_id, rle, width, height, cell_type = (row.values[column] for column in _NEEDED_COLUMNS)
    if not all((image_id, width, height, cell_type)):
        reason = f"each of {', '.join(_NEEDED_COLUMNS)} must be filled in; without cells, all but the annotation"
    elif row.surplus:
        reason = f"it has {row.surplus} more fields than the header"
    elif cell_type not in CELL_TYPES:
        reason = f"cell type '{cell_type}' is not one of {', '.join(CELL_TYPES)}"
    elif (rows := whole_number(height)) is None or (columns := whole_number(width)) is None:
        reason = f"width and height must be whole numbers, got '{width[:60]}' and '{height[:60]}'"
    elif rows * columns > MOST_PIXELS:
        reason = f"an image of {height} x {width} has more pixels than an image may have, {MOST_PIXELS}"
    else:
        return CellRow(row.number, image_id, cell_type, (rows, columns), rle, row.values.get("sample_id", ""))
    return BadRow(row.number, image_id, reason)


def part_empty_rows(rows: Sequence[CellRow]) -> tuple[Sequence[CellRow], list[BadRow]]:
    """The rows of one image that count, and those that say nothing is in it though others have cells."""
    cells = [row for row in rows if row.rle]
    if not cells or len(cells) == len(rows):
        return rows, []
    reason = (
        f"each of {', '.join(_NEEDED_COLUMNS)} must be filled in; an empty annotation means an image without cells, "
        "and other rows of this one have some"
    )
    return cells, [BadRow(row.number, row.image_id, reason) for row in rows if not row.rle]


def read_annotations(
    path: Path, *, exclude: Collection[str] = WRONGLY_ANNOTATED, names: Collection[str] = ()
) -> dict[str, ImageAnnotations]:
    """All images of a train.csv, by id, in the file's order. Identical cells of an image count once, with a warning.

    Args:
        path: the CSV file, one row per cell.
        exclude: images to leave out.
        names: as `read_cell_rows` takes them.

    Raises:
        InputError: no such file, a column is missing, a row cannot be read, or an image's rows disagree.
    """
    rows: dict[str, list[CellRow]] = {}
    for row in read_cell_rows(path, names):
        if isinstance(row, BadRow):
            raise InputError(f"{path}, row {row.number}: {row.reason}")
        if row.image_id not in exclude:
            rows.setdefault(row.image_id, []).append(row)
    images: dict[str, ImageAnnotations] = {}
    repeated: list[str] = []
    for image_id, of_image in rows.items():
        of_image, bad = part_empty_rows(of_image)
        if bad:
            raise InputError(f"{path}, row {bad[0].number} (image '{image_id}'): {bad[0].reason}")
        cells, twins = part_twins(of_image, lambda row: same_run_lengths(row.rle))
        repeated += [f"row {twin.number} is row {first.number} ('{image_id}')" for twin, first in twins]
        images[image_id] = ImageAnnotations(
            image_id,
            cells[0].cell_type,
            cells[0].image_shape,
            tuple(cell.rle for cell in cells if cell.rle),
            next((cell.sample_id for cell in of_image if cell.sample_id), ""),
        )
    warn_of_twins(path, repeated)
    return images
