"""Where annotated cells come from: the competition, or a submission as pseudo-labels.

LIVECell, and folders of images and masks, have their own modules.

A source reads tables only. What is wrong in them is kept by name, so that the preparation can tell it; images
and masks are looked at later, by several processes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy.ndimage import label

from kernel.data.annotations import WRONGLY_ANNOTATED, BadRow, CellRow, images_of_table, part_empty_rows, read_cell_rows
from kernel.data.image_names import ambiguous_ids, composed, images_by_name, known_name
from kernel.data.json_files import read_json
from kernel.data.splits import COLUMN_REMEDY
from kernel.data.tables import TableRow, read_table
from kernel.errors import InputError
from kernel.images.planes import PlaneChoice
from kernel.images.reading import list_images, read_image_shape
from kernel.images.zoom import COMPETITION_PIXEL_UM
from kernel.masks.rle import decode_rle_crop
from kernel.settings import CELL_TYPES

#: How samples are told where annotations do not tell them, for messages.
TABLE_REMEDY = (
    "give samples in a column sample_id of the CSV of --cell-types, or name images by plate and well (as "
    "shsy5y_E10-4_Vessel-714_Ph_3)"
)
#: Cells that are looked at to see along what their run lengths count; and so many must say columns, and be the most.
CELLS_LOOKED_AT = 50
FEWEST_BY_COLUMNS = 3
#: Pixels of images beyond which they are not looked at: stripes over all of one would take long.
MOST_LOOKED_AT = 1 << 24


@dataclass(frozen=True)
class SourceCell:
    """One annotated cell as its file has it, not yet decoded."""

    place: str  # "row 17" or "annotation 4711"
    label: int
    outline: Any  # str: the competition's row-major run lengths; else one of COCO's segmentations


@dataclass(frozen=True)
class Showing:
    """How images are shown to members, as `predict` shows them: which plane, at which scale and gray levels.

    Attributes:
        choice: of the plane.
        pixel_um: the side of a pixel; None: as the file tells it.
        zoom: by how much the image is stretched; None: by the size of its pixels.
        member_um: the side of a pixel that the members know.
        match_gray: bring images of 8 bits to the gray levels that members know.
    """

    choice: PlaneChoice = field(default_factory=PlaneChoice)
    pixel_um: float | None = None
    zoom: float | None = None
    member_um: float = COMPETITION_PIXEL_UM
    match_gray: bool = False


@dataclass(frozen=True)
class SourceImage:
    """An image file and the cells that are annotated in it."""

    image_id: str
    path: Path
    cell_type: str
    sample_id: str  # "" where unknown
    image_shape: tuple[int, int] | None  # height, width as the annotations say; None: the file decides
    cells: tuple[SourceCell, ...]
    showing: Showing | None = None  # None: as the file is read
    shown_path: Path | None = None  # the PNG to write where it is not shown as its file is read, or `is_renamed`
    correction: Path | None = None  # an image whose third channel (of B, G, R: red) is zero where no cell is

    @property
    def is_renamed(self) -> bool:
        """Whether its file is called otherwise: it is one of several of a name, and known by its folders, too."""
        return composed(self.path.stem) != self.image_id


@dataclass(frozen=True)
class DroppedImage:
    """An image left out, why, and how many rows or annotations went with it that are not listed one by one."""

    image_id: str
    reason: str
    rows: int


@dataclass(frozen=True)
class DroppedCell:
    """A cell left out: the file's row or annotation, and why."""

    image_id: str  # "" where even that is unknown
    place: str
    reason: str


@dataclass(frozen=True)
class Source:
    """What was read, and what could not be."""

    name: str
    class_names: tuple[str, ...]  # a class's place is its label
    images: tuple[SourceImage, ...]
    rows: int  # rows or annotations in the files
    dropped_images: tuple[DroppedImage, ...] = ()
    dropped_cells: tuple[DroppedCell, ...] = ()
    images_without_annotations: tuple[str, ...] = ()
    without_correction: tuple[str, ...] = ()  # images that a folder of corrections should have had, and has not
    notes: tuple[str, ...] = ()  # how something that can be read in two ways was read
    sample_remedy: str = TABLE_REMEDY  # how its images' samples can be told, for messages


def read_competition(folder: Path, astro_fix: Path | None = None) -> Source:
    """The competition's training data: train.csv, one row per cell, and train/<id>.png.

    Args:
        folder: holds both.
        astro_fix: corrected masks of the astro images, <id>.png.

    Raises:
        InputError: train.csv or the images cannot be read at all, run lengths count along columns, or `astro_fix` has
            none of the astro images.
    """
    paths = images_of_table(folder)
    rows: dict[str, list[CellRow]] = {}
    bad: list[DroppedCell] = []
    for row in read_cell_rows(folder / "train.csv", paths):
        if isinstance(row, BadRow):
            bad.append(DroppedCell(row.image_id, f"row {row.number}", row.reason))
        else:
            rows.setdefault(row.image_id, []).append(row)
    count = sum(map(len, rows.values())) + len(bad)
    images, dropped = [], _without_good_rows(bad, rows)
    for image_id, of_image in rows.items():
        cells, contradicting = part_empty_rows(of_image)
        bad += [DroppedCell(image_id, f"row {row.number}", row.reason) for row in contradicting]
        if image_id in WRONGLY_ANNOTATED:
            reason = "its annotations are plainly wrong: the published solution leaves it out as well"
            dropped.append(DroppedImage(image_id, reason, len(cells)))
        elif image_id not in paths:
            dropped.append(DroppedImage(image_id, f"no image of this name in {folder / 'train'}", len(cells)))
        else:
            first, label = cells[0], CELL_TYPES.index(cells[0].cell_type)
            sample_id = next((cell.sample_id for cell in cells if cell.sample_id), "")
            found = tuple(SourceCell(f"row {cell.number}", label, cell.rle) for cell in cells if cell.rle)
            images.append(SourceImage(image_id, paths[image_id], first.cell_type, sample_id, first.image_shape, found))
    refuse_columns(images, folder / "train.csv")
    named = {*rows, *(cell.image_id for cell in bad)}
    source = Source(
        name="competition",
        class_names=CELL_TYPES,
        images=tuple(images),
        rows=count,
        dropped_images=tuple(dropped),
        dropped_cells=tuple(bad),
        images_without_annotations=tuple(stem for stem in paths if stem not in named),
        sample_remedy=COLUMN_REMEDY,
    )
    return source if astro_fix is None else with_corrections(source, astro_fix)


def refuse_columns(images: Sequence[SourceImage], path: Path) -> None:
    """Refuse run lengths that count along columns, as those of other competitions do: along rows, cells are stripes.

    In square images nothing shows it: each mask is another whole one there.

    Raises:
        InputError: most of some cells are in one piece only if theirs count so.
    """
    places = [(image, cell.outline) for image in images for cell in image.cells]
    looked_at = places[:: -(-len(places) // CELLS_LOOKED_AT) or 1]
    found = sum(is_by_columns(image, text) for image, text in looked_at)
    if found >= FEWEST_BY_COLUMNS and 2 * found > len(looked_at):
        raise InputError(
            f"{path}: {found} of {len(looked_at)} cells are in pieces as they are read, and would be whole if their "
            "run lengths counted along columns; they must count along rows, as the competition's own do: encode "
            "mask.ravel(), and not mask.T.ravel()"
        )


def is_by_columns(image: SourceImage, text: str) -> bool:
    """Whether a cell is in one piece if its run lengths count along columns, and else in several."""
    try:
        height, width = image.image_shape or read_image_shape(image.path) or (0, 0)
        if not 0 < height * width <= MOST_LOOKED_AT:
            return False
        return pieces_of(text, (height, width)) > 1 and pieces_of(text, (width, height)) == 1
    except InputError:  # as is told where each image is prepared
        return False


def pieces_of(text: str, image_shape: tuple[int, int]) -> int:
    """Of how many pieces a mask is, of which some may touch at corners."""
    crop, _ = decode_rle_crop(text, image_shape)
    _, pieces = cast(tuple[np.ndarray, int], label(crop, np.ones((3, 3))))
    return pieces


def _without_good_rows(bad: list[DroppedCell], rows: Mapping[str, object]) -> list[DroppedImage]:
    lost = dict.fromkeys(cell.image_id for cell in bad if cell.image_id and cell.image_id not in rows)
    return [DroppedImage(image_id, "none of its rows can be read", 0) for image_id in lost]


def with_corrections(source: Source, folder: Path) -> Source:
    """The same source, its astro images with their corrected masks from `folder`, <id>.png.

    Raises:
        InputError: no images in the folder, none of an astro image, or there is no astro image to correct.
    """
    paths = images_by_name(list_images(folder))
    images = tuple(
        replace(image, correction=paths.get(image.image_id)) if image.cell_type == "astro" else image
        for image in source.images
    )
    astro = [image for image in images if image.cell_type == "astro"]
    if source.images and not astro:
        raise InputError(f"{folder} corrects astro images, and there are none: leave --astro-fix away")
    if astro and not any(image.correction for image in astro):
        raise InputError(
            f"{folder} has a corrected mask of none of the {len(astro)} astro images, {astro[0].image_id}.png for one: "
            "give the folder that holds <id>.png"
        )
    lacking = tuple(image.image_id for image in astro if image.correction is None)
    return replace(source, images=images, without_correction=lacking)


def read_pseudo_labels(submission: Path, images_folder: Path, cell_types: str, *, keep_empty: bool = False) -> Source:
    """The masks that a kernel found, taken for annotations.

    Args:
        submission: CSV file with id and predicted, run lengths as the competition wants them.
        images_folder: the images, <id> with any of the known endings.
        cell_types: as `cell_type_lookup` takes it.
        keep_empty: images in which nothing was found are images without cells; else they are dropped by name.

    Raises:
        InputError: one of the three cannot be read at all, or run lengths count along columns.
    """
    paths = images_by_name(list_images(images_folder))
    type_of = cell_type_lookup(cell_types, paths)
    rows: dict[str, list[tuple[int, str]]] = {}
    bad: list[DroppedCell] = []
    table = list(read_table(submission, ("id", "predicted"), "pseudo-labels", "a submission.csv"))
    ambiguous = ambiguous_ids((row.values["id"] for row in table), paths)
    for row in table:
        image_id = known_name(row.values["id"], paths)
        if not image_id or row.surplus or image_id in ambiguous:
            reason = f"it has {row.surplus} more fields than the header" if image_id else "it has no image id"
            reason = ambiguous.get(image_id, reason)
            bad.append(DroppedCell(image_id, f"row {row.number}", reason))
        else:
            rows.setdefault(image_id, []).append((row.number, row.values["predicted"]))
    images, dropped = [], _without_good_rows(bad, rows)
    for image_id, texts in rows.items():
        cell_type, found = type_of(image_id), [(number, text) for number, text in texts if text]
        if not found and not keep_empty:
            dropped.append(DroppedImage(image_id, "nothing was found in it", len(texts)))
            continue
        bad.extend(
            DroppedCell(image_id, f"row {number}", "it has no run lengths, and other rows of its image have")
            for number, text in texts
            if found and not text
        )
        if image_id not in paths:
            dropped.append(DroppedImage(image_id, f"no image of this name in {images_folder}", len(found)))
        elif cell_type not in CELL_TYPES:
            flaw = f"its cell type is '{cell_type}' in {cell_types}" if cell_type else f"{cell_types} has no cell type"
            allowed = ", ".join(CELL_TYPES)
            dropped.append(DroppedImage(image_id, f"{flaw}; it must be one of {allowed}", len(found)))
        else:
            label = CELL_TYPES.index(cell_type)
            cells = tuple(SourceCell(f"row {number}", label, text) for number, text in found)
            images.append(SourceImage(image_id, paths[image_id], cell_type, "", None, cells))
    refuse_columns(images, submission)
    named = {*rows, *(cell.image_id for cell in bad)}
    return Source(
        name="pseudo-labels",
        class_names=CELL_TYPES,
        images=tuple(images),
        rows=len(table),
        dropped_images=tuple(dropped),
        dropped_cells=tuple(bad),
        images_without_annotations=tuple(stem for stem in paths if stem not in named),
    )


def refuse_no_type(cell_type: str, given: str) -> None:
    """Refuse what `cell_type_lookup` of `given` has said of an image.

    Raises:
        InputError: it is no cell type, or "".
    """
    if cell_type not in CELL_TYPES:
        flaw = f"is '{cell_type}' in {given}" if cell_type else f"is not in {given}"
        raise InputError(f"its cell type {flaw}; it must be one of {', '.join(CELL_TYPES)}")


def cell_type_lookup(given: str, names: Collection[str]) -> Callable[[str], str]:
    """A function that gives an image's cell type by its id, "" where unknown.

    Args:
        given: one cell type for all images; or a CSV file with the columns id (or image) and cell_type, as the
            images.csv of `predict`; or the summary.json that the kernel wrote beside the submission.
        names: the images' ids.

    Raises:
        InputError: it is neither a cell type nor a file of one of the two forms, or its rows contradict each other.
    """
    if given in CELL_TYPES:
        return lambda image_id: given
    path = Path(given)
    if not path.is_file():
        raise InputError(
            f"cell types '{given}': give one of {', '.join(CELL_TYPES)}, or a file: a CSV with the columns id and "
            "cell_type, or the kernel's summary.json"
        )
    if path.suffix.lower() == ".json":
        images = read_json(path, "cell types").get("images")
        if not isinstance(images, dict):
            raise InputError(f'{path} has no "images": expected the summary.json that the kernel writes')
        known = {
            composed(key): str(image.get("cell_type") or "") for key, image in images.items() if isinstance(image, dict)
        }
    else:
        known = {image_id: values["cell_type"] for image_id, values in _type_rows(path, names).items()}
    types = {text: text.lower() for text in known.values() if text.lower() in CELL_TYPES}  # as classes in mask files
    return lambda image_id: types.get(told := known.get(image_id, ""), told)


def _type_rows(path: Path, names: Collection[str]) -> dict[str, dict[str, str]]:
    """The values of each image in a CSV file of cell types, of which rows may repeat one.

    Raises:
        InputError: as `cell_type_lookup`; or rows contradict each other.
    """
    table = list(read_table(path, ("cell_type",), "cell types", "a CSV file with the columns id and cell_type"))
    column = "image" if table and "id" not in table[0].values else "id"  # as predict's images.csv
    if table and column not in table[0].values:
        raise InputError(f"{path} lacks the column id; expected a CSV file with the columns id and cell_type")
    ambiguous = ambiguous_ids((row.values[column] for row in table), names)
    rows: dict[str, dict[str, str]] = {}
    told: dict[tuple[str, str], TableRow] = {}  # by name and column, the first row that fills it in
    for row in table:
        name = known_name(row.values[column], names)
        values = rows.setdefault(name, dict(row.values))
        for key in ("cell_type", "sample_id"):
            here = row.values.get(key, "")
            if name in ambiguous and here != values.get(key, ""):
                raise InputError(f"{path}, row {row.number}: {ambiguous[name]}")
            if not here:
                continue
            first = told.setdefault((name, key), row)
            values[key] = above = first.values[key]
            is_other = here.lower() != above.lower() if key == "cell_type" else here != above
            if is_other and name in names:
                raise InputError(
                    f"{path}, row {row.number}: the image {name} has the {key} '{here}' here and '{above}' in row "
                    f"{first.number}: leave the wrong row out"
                )
    return rows


def with_samples(source: Source, cell_types: str | None) -> Source:
    """The same source, its images with the samples that a CSV file of cell types tells in a column sample_id, if any.

    Raises:
        InputError: as `cell_type_lookup`, which takes the same `cell_types`.
    """
    if cell_types is None or cell_types in CELL_TYPES or Path(cell_types).suffix.lower() == ".json":
        return source
    rows = _type_rows(Path(cell_types), {image.image_id for image in source.images})
    told = {image_id: sample_id for image_id, values in rows.items() if (sample_id := values.get("sample_id"))}
    images = (replace(image, sample_id=told.get(image.image_id, image.sample_id)) for image in source.images)
    return replace(source, images=tuple(images))
