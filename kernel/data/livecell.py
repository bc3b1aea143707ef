"""LIVECell (CC BY-NC 4.0, Edlund et al. 2021): its COCO annotations as a source of cells of eight lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernel.data.coco import read_json
from kernel.data.images import IMAGE_SUFFIXES
from kernel.data.sources import DroppedCell, DroppedImage, Source, SourceCell, SourceImage
from kernel.errors import InputError

#: LIVECell's cell lines in the published solution's order; a line's place is its label.
LIVECELL_CLASSES = ("skbr3", "a172", "huh7", "bv2", "mcf7", "bt474", "skov3", "shsy5y")

#: The one category of LIVECell's own files; the cell line is then what the image's name begins with.
_ANY_CELL = "cell"


@dataclass
class _Draft:
    """An image while its annotations are gathered."""

    image_id: str
    image_shape: tuple[int, int]
    label: int | None  # of the cell line that the file's name begins with
    cells: list[SourceCell] = field(default_factory=list)


def read_livecell(annotations: Sequence[Path], images_folder: Path) -> Source:
    """The cells of one or several of LIVECell's COCO files.

    A category that is one of LIVECELL_CLASSES (in any case of letters) is the cell's class; with LIVECell's own
    "cell" it is the line that the image's name begins with (BT474_Phase_...). Crowd regions (iscrowd 1) are no
    single cells and are dropped by name.

    Args:
        annotations: the JSON files.
        images_folder: searched with its sub-folders; an image is known by its name without ending.

    Raises:
        InputError: a file cannot be read at all, or the folder holds no image.
    """
    paths = _images_below(images_folder)
    drafts: dict[str, _Draft] = {}
    dropped_images: list[DroppedImage] = []
    dropped_cells: list[DroppedCell] = []
    rows = 0
    for path in annotations:
        data = read_json(path, "annotations")
        images, cells, categories = (_records(data, key, path) for key in ("images", "annotations", "categories"))
        names = {_key(category, "id"): str(category.get("name", "")).lower() for category in categories}
        by_number: dict[Any, _Draft] = {}
        lost: dict[Any, str] = {}
        for number, record in enumerate(images, start=1):
            draft, reason = _draft(record)
            key = _key(record, "id")
            if draft is None:
                dropped_images.append(DroppedImage(f"{path.name}, image {number}", reason, 0))
            elif key is None or key in by_number:
                reason = f"{path.name} gives it the id {record.get('id')!r}, which must be one of its own"
                dropped_images.append(DroppedImage(draft.image_id, reason, 0))
            elif draft.image_id in drafts:
                dropped_images.append(DroppedImage(draft.image_id, f"{path} describes it once more", 0))
                lost[key] = draft.image_id
            else:
                drafts[draft.image_id] = by_number[key] = draft
        for record in cells:
            rows += 1
            place = f"annotation {record.get('id')}"
            draft = by_number.get(_key(record, "image_id"))
            if draft is None:
                image_id = lost.get(_key(record, "image_id"), "")
                reason = f"its image ({record.get('image_id')}) is not among those of {path.name}"
                dropped_cells.append(DroppedCell(image_id, place, "its image was dropped" if image_id else reason))
                continue
            cell = _cell(record, place, names, draft)
            if isinstance(cell, SourceCell):
                draft.cells.append(cell)
            else:
                dropped_cells.append(cell)
    found = []
    for draft in drafts.values():
        candidates = paths.get(draft.image_id, [])
        if len(candidates) == 1 and draft.cells:
            found.append(_source_image(draft, candidates[0]))
        else:
            if not draft.cells:
                reason = "no cell is annotated in it"
            elif not candidates:
                reason = f"no image of this name below {images_folder}"
            else:
                reason = f"two images have this name, {candidates[0]} and {candidates[1]}"
            dropped_images.append(DroppedImage(draft.image_id, reason, len(draft.cells)))
    return Source(
        name="livecell",
        class_names=LIVECELL_CLASSES,
        images=tuple(found),
        rows=rows,
        dropped_images=tuple(dropped_images),
        dropped_cells=tuple(dropped_cells),
        images_without_annotations=tuple(stem for stem in sorted(paths) if stem not in drafts),
    )


def _images_below(folder: Path) -> dict[str, list[Path]]:
    """Image files by name without ending, hidden ones passed over."""
    if not folder.is_dir():
        raise InputError(f"No folder {folder}: give the folder of LIVECell's images.")
    paths: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file():
            paths.setdefault(path.stem, []).append(path)
    if not paths:
        raise InputError(f"No image in {folder} or below: expected {', '.join(IMAGE_SUFFIXES)} files.")
    return paths


def _records(data: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    values = data.get(key)
    if isinstance(values, dict):  # some of LIVECell's files number their annotations this way
        values = list(values.values())
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise InputError(f'{path} has no list "{key}": expected COCO annotations, as LIVECell has them')
    return values


def _key(record: dict[str, Any], name: str) -> int | str | None:
    value = record.get(name)
    return value if isinstance(value, (int, str)) else None


def _draft(record: dict[str, Any]) -> tuple[_Draft | None, str]:
    """An image without its cells, or why there is none."""
    name, height, width = record.get("file_name"), record.get("height"), record.get("width")
    if not isinstance(name, str) or not Path(name).stem:
        return None, f"its file_name is {name!r}"
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        return None, f"the height and width of {name} are {height!r} and {width!r}"
    line = Path(name).name.split("_")[0].lower()
    label = LIVECELL_CLASSES.index(line) if line in LIVECELL_CLASSES else None
    return _Draft(Path(name).stem, (height, width), label), ""


def _cell(record: dict[str, Any], place: str, names: dict[Any, str], draft: _Draft) -> SourceCell | DroppedCell:
    number = _key(record, "category_id")
    name = names.get(number)
    if record.get("iscrowd"):
        reason = "it outlines a crowd, not a cell"
    elif name in LIVECELL_CLASSES:
        return SourceCell(place, LIVECELL_CLASSES.index(name), record.get("segmentation"))
    elif name == _ANY_CELL and draft.label is not None:
        return SourceCell(place, draft.label, record.get("segmentation"))
    elif name == _ANY_CELL:
        reason = (
            f"the image's name begins with none of {', '.join(LIVECELL_CLASSES)}, and its category is only '{name}'"
        )
    else:
        told = f"'{name}'" if name else f"{number!r}, which the file does not explain"
        reason = f"its category is {told}; it must be '{_ANY_CELL}' or one of {', '.join(LIVECELL_CLASSES)}"
    return DroppedCell(draft.image_id, place, reason)


def _source_image(draft: _Draft, path: Path) -> SourceImage:
    label = draft.label
    if label is None:  # the commonest class of its cells, the first in order among equals
        counts = Counter(cell.label for cell in draft.cells)
        label = min(counts, key=lambda one: (-counts[one], one))
    # The place in the well: the name up to the time, as BT474_Phase_D3_1_02d16h00m_1.
    sample_id = "_".join(draft.image_id.split("_")[:4]) if "_Phase_" in draft.image_id else ""
    return SourceImage(draft.image_id, path, LIVECELL_CLASSES[label], sample_id, draft.image_shape, tuple(draft.cells))
