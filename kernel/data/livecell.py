"""COCO annotations as a source of cells: LIVECell's (CC BY-NC 4.0, Edlund et al. 2021), of eight lines, and others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kernel.data.image_names import composed, last_part, path_parts
from kernel.data.json_files import read_json
from kernel.data.sources import (
    DroppedCell,
    DroppedImage,
    Showing,
    Source,
    SourceCell,
    SourceImage,
    cell_type_lookup,
    refuse_no_type,
)
from kernel.data.tables import whole_number
from kernel.errors import InputError
from kernel.images.listing import IMAGE_SUFFIXES, search_images
from kernel.settings import CELL_TYPES
from kernel.text import first_names

#: LIVECell's cell lines in the published solution's order; a line's place is its label.
LIVECELL_CLASSES = ("skbr3", "a172", "huh7", "bv2", "mcf7", "bt474", "skov3", "shsy5y")

#: The one category of LIVECell's own files; the cell line is then what the image's name begins with.
_ANY_CELL = "cell"
#: What tells the type where categories do not.
_GIVE_TYPES = f"give all cells one type, {', '.join(CELL_TYPES)}, or each image's, by --cell-type"


@dataclass
class _Draft:
    """An image while its annotations are gathered."""

    parts: tuple[str, ...]  # of its file_name: the folders, and the name without ending
    image_shape: tuple[int, int]
    frame: int | None  # that it is, as predict's coco.json tells; None: nothing is told
    label: int | None = None  # of the class that the file's name begins with, or of the type that is given
    flaw: str = ""  # why no type is given, where types are
    cells: list[SourceCell] = field(default_factory=list)
    has_dropped_cells: bool = False

    @property
    def image_id(self) -> str:
        return self.parts[-1]

    @property
    def path_text(self) -> str:
        return "/".join(self.parts)


def read_livecell(
    annotations: Sequence[Path],
    images_folder: Path,
    *,
    cell_types: str | None = None,
    keep_empty: bool = False,
    showing: Showing | None = None,
) -> Source:
    """The cells of one or several COCO files: of LIVECell, or of `predict` and others with cell types as categories.

    A category that is one of the classes (in any case of letters) is the cell's class; with LIVECell's own "cell" it is
    the class that the image's name begins with (BT474_Phase_...). The classes are LIVECELL_CLASSES; where the files
    name categories of CELL_TYPES that are not among these, and no others of them, they are CELL_TYPES. Where cell types
    are given, the classes are these too, and a cell is of its image's, whatever its category. Ids are the same whether
    they are written as numbers or as text, and file names whatever system's path is before them.

    Crowd regions (iscrowd 1) are no single cells and are dropped by name; but where a file marks all of its run lengths
    so, the mark only says that a mask is run lengths, as CVAT means it for its brush masks: these are cells.

    Args:
        annotations: the JSON files.
        images_folder: searched with its sub-folders; an image is known by its name without ending. Where the files name
            several so, in other folders, it is the one whose whole path is the end of its own.
        cell_types: as `cell_type_lookup` takes it; None: the categories tell the classes.
        keep_empty: images that a file lists, and that no annotation belongs to, are images without cells; else they
            count as not annotated, and are dropped by name.
        showing: how the images are shown to members; None: as their files are read. Masks are of the files' pixels; of
            an image whose frames the files tell apart, those of the frame that is shown count.

    Raises:
        InputError: a file cannot be read at all, or the folder holds no image; or as `cell_type_lookup`.
    """
    paths = _images_below(images_folder)
    contents = [(path, read_json(path, "annotations")) for path in annotations]
    classes, allowed = _classes_of(contents)
    if cell_types is None:
        reader = _CocoReader(classes, allowed)
    else:
        reader = _CocoReader(CELL_TYPES, allowed, cell_types, cell_type_lookup(cell_types, paths))
    for path, data in contents:
        reader.read(path, data)
    frame = showing.choice.frame if showing is not None else None
    frame = frame if isinstance(frame, int) else 0
    images = reader.match_files(paths, images_folder, keep_empty=keep_empty, frame=frame)
    described = {draft.image_id for draft in reader.drafts.values()}
    return Source(
        name="livecell" if reader.classes == LIVECELL_CLASSES else "COCO annotations",
        class_names=reader.classes,
        images=tuple(replace(image, showing=showing) for image in images),
        rows=reader.rows,
        dropped_images=tuple(reader.dropped_images),
        dropped_cells=tuple(reader.dropped_cells),
        images_without_annotations=tuple(stem for stem in sorted(paths) if stem not in described),
        notes=(*reader.notes, *reader.told_categories()),
    )


class _CocoReader:
    """Gathers the images and cells of several COCO files, and what of them is dropped."""

    def __init__(
        self,
        classes: tuple[str, ...],
        allowed: tuple[str, ...],
        cell_types: str = "",
        type_of: Callable[[str], str] | None = None,
    ) -> None:
        self.classes = classes
        self.allowed = allowed  # names of categories, for messages
        self.cell_types = cell_types  # by which types are given, with `type_of`
        self.type_of = type_of  # None: the categories tell the classes
        self.strange: Counter[str] = Counter()  # categories that are no cell types, where types are given
        self.drafts: dict[tuple[tuple[str, ...], int | None], _Draft] = {}  # by the parts of their paths, and frames
        self.dropped_images: list[DroppedImage] = []
        self.dropped_cells: list[DroppedCell] = []
        self.notes: list[str] = []
        self.rows = 0

    def read(self, path: Path, data: dict[str, Any]) -> None:
        """Add a file's images and cells.

        Raises:
            InputError: it is not of COCO's form.
        """
        images, cells = (_records(data, key, path) for key in ("images", "annotations"))
        names = _category_names(data, path)
        run_lengths = [record for record in cells if isinstance(record.get("segmentation"), dict)]
        crowds = sum(map(_is_crowd, run_lengths))
        brushed = 0 < crowds == len(run_lengths)
        if brushed:
            self.notes.append(f"{path.name}: all {crowds} run lengths have iscrowd 1: taken as cells, as CVAT means it")
        drafts, repeated = self._read_images(images, path)
        for number, record in enumerate(cells, start=1):
            self.rows += 1
            place = f"annotation {record.get('id', f'without id, number {number} of {path.name}')}"
            key = _key(record, "image_id")
            if key in drafts:
                name = names.get(_key(record, "category_id"))
                cell = self._cell(record, place, name, drafts[key], brushed=brushed)
                drafts[key].has_dropped_cells |= isinstance(cell, DroppedCell)
            elif key in repeated:
                cell = DroppedCell(repeated[key], place, "its image was dropped")
            else:
                reason = f"its image ({record.get('image_id')}) is not among those of {path.name}"
                cell = DroppedCell("", place, reason)
            if isinstance(cell, SourceCell):
                drafts[key].cells.append(cell)
            else:
                self.dropped_cells.append(cell)

    def _read_images(
        self, records: list[dict[str, Any]], path: Path
    ) -> tuple[dict[str | None, _Draft], dict[str | None, str]]:
        """The images of a file by their id in it; and the names of those that an earlier file had, by their id."""
        drafts: dict[str | None, _Draft] = {}
        repeated: dict[str | None, str] = {}
        for number, record in enumerate(records, start=1):
            draft, reason = _draft(record)
            if draft is not None:
                self._label(draft)
            key = _key(record, "id")
            if draft is None:
                self.dropped_images.append(DroppedImage(f"{path.name}, image {number}", reason, 0))
            elif key is None or key in drafts:
                reason = f"{path.name} gives it the id {record.get('id')!r}, which must be one of its own"
                self.dropped_images.append(DroppedImage(draft.image_id, reason, 0))
            elif (draft.parts, draft.frame) in self.drafts:
                self.dropped_images.append(DroppedImage(draft.image_id, f"{path} describes it once more", 0))
                repeated[key] = draft.image_id
            else:
                self.drafts[draft.parts, draft.frame] = drafts[key] = draft
        return drafts, repeated

    def _label(self, draft: _Draft) -> None:
        """Note the class of an image's cells where it is known without a category."""
        if self.type_of is None:
            line = draft.image_id.split("_")[0].lower()
            draft.label = self.classes.index(line) if line in self.classes else None
            return
        try:
            cell_type = self.type_of(draft.image_id)
            refuse_no_type(cell_type, self.cell_types)
            draft.label = CELL_TYPES.index(cell_type)
        except InputError as error:
            draft.flaw = str(error)

    def _cell(
        self, record: dict[str, Any], place: str, name: str | None, draft: _Draft, *, brushed: bool
    ) -> SourceCell | DroppedCell:
        """A cell, or why it is none.

        Args:
            record: of the file.
            place: what messages call it.
            name: of its category, in lower case; None: the file does not explain it.
            draft: its image.
            brushed: iscrowd 1 does not say that run lengths are a crowd.
        """
        outline = record.get("segmentation")
        is_given = self.type_of is not None
        if _is_crowd(record) and not (brushed and isinstance(outline, dict)):
            reason = "it outlines a crowd, not a cell"
        elif not outline or outline == [[]]:
            box = ", only a box, which is no mask" if record.get("bbox") else ""
            reason = f"it has no outline: its segmentation is missing or empty{box}"
        elif not isinstance(outline, (list, dict)):
            reason = f"its segmentation is neither a list of polygons nor run lengths, but {str(outline)[:60]!r}"
        elif draft.flaw:
            reason = draft.flaw
        elif name in self.classes and not is_given:
            return SourceCell(place, self.classes.index(name), outline)
        elif (name == _ANY_CELL or is_given) and draft.label is not None:
            if name and name not in (_ANY_CELL, *CELL_TYPES):
                self.strange[name] += 1
            return SourceCell(place, draft.label, outline)
        elif name == _ANY_CELL:
            reason = (
                f"the image's name begins with none of {', '.join(self.classes)}, and its category is only '{name}': "
                f"give the category its cell line's name or cell type, one of {', '.join(self.allowed)}, let the "
                f"image's name begin with its line, or {_GIVE_TYPES}"
            )
        else:
            category = f"'{name}'" if name else f"{record.get('category_id')!r}, which the file does not explain"
            reason = (
                f"its category is {category}; it must be '{_ANY_CELL}' or one of {', '.join(self.allowed)}; or "
                f"{_GIVE_TYPES}"
            )
        return DroppedCell(draft.image_id, place, reason)

    def told_categories(self) -> list[str]:
        """What is to be told of categories that do not count."""
        named = first_names([f"{name!r} ({count})" for name, count in self.strange.most_common()], 5)
        return [f"categories that are no cell types, so that the cells count as their image: {named}"] if named else []

    def match_files(
        self, paths: dict[str, list[Path]], folder: Path, *, keep_empty: bool = False, frame: int = 0
    ) -> list[SourceImage]:
        """The images that have one file among `paths`, those below `folder` by name, and cells; others are dropped.

        With `keep_empty` images without any annotation are taken, too, where their name says the cell line. Of those
        whose frames the files tell apart `frame` is.
        """
        found = []
        of_name: dict[str, list[_Draft]] = {}
        for draft in self.drafts.values():
            if draft.frame in (None, frame):
                of_name.setdefault(draft.image_id, []).append(draft)
        for draft in self.drafts.values():
            if draft.frame not in (None, frame):
                reason = f"its masks are of frame {draft.frame}, and {frame} is taken, counted from 0 (see --frame)"
                self.dropped_images.append(DroppedImage(draft.image_id, reason, len(draft.cells)))
                continue
            files = paths.get(draft.image_id, [])
            all_dropped = not draft.cells and draft.has_dropped_cells
            is_empty = keep_empty and not draft.cells and not all_dropped
            if len(files) == 1 and (flaw := _other_folder(draft, of_name[draft.image_id], files[0])):
                self.dropped_images.append(DroppedImage(draft.path_text, flaw, len(draft.cells)))
                continue
            if len(files) == 1 and (draft.cells or (is_empty and draft.label is not None)):
                found.append(_source_image(draft, files[0], self.classes))
                continue
            if is_empty and draft.label is None:
                lines = ", ".join(self.classes)
                reason = draft.flaw or (
                    f"no cell is annotated in it, and its name begins with none of {lines}: its cell line is unknown; "
                    f"{_GIVE_TYPES}"
                )
            elif not draft.cells and not is_empty:
                hint = "; if nothing is in it: --keep-empty"
                reason = "none of its cells can be used" if all_dropped else f"no cell is annotated in it{hint}"
            elif not files:
                reason = f"no image of this name below {folder}"
            else:
                reason = f"two images have this name, {files[0]} and {files[1]}"
            self.dropped_images.append(DroppedImage(draft.image_id, reason, len(draft.cells)))
        return found


def _other_folder(draft: _Draft, of_name: Sequence[_Draft], path: Path) -> str:
    """Why an image file is not a draft, but perhaps another one `of_name`, by their folders; or ""."""
    if len(of_name) == 1:
        return ""
    parts = tuple(map(composed, path.absolute().with_suffix("").parts))
    ends = [other for other in of_name if parts[-len(other.parts) :] == other.parts]
    if not ends:
        named = first_names([other.path_text for other in of_name])
        return f"{len(of_name)} images are called so, {named}, and none of these is the end of the path {path}"
    right = max(ends, key=lambda other: len(other.parts))
    return "" if right is draft else f"{path} is the image {right.path_text}"


def _images_below(folder: Path) -> dict[str, list[Path]]:
    """Image files by name without ending."""
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give the folder of LIVECell's images")
    paths: dict[str, list[Path]] = {}
    content = search_images(folder, below=True)
    for path in content.images:
        paths.setdefault(composed(path.stem), []).append(path)
    if not paths:
        allowed = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"no image in {folder} or below: {content.describe()}; expected {allowed} files")
    content.warn_of_passed_over(folder)
    return paths


def _records(data: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """The entries of a list of the file; an entry that is no record has no fields.

    Raises:
        InputError: there is no such list.
    """
    values = data.get(key)
    if isinstance(values, dict):  # some of LIVECell's files number their annotations this way
        values = list(values.values())
    if not isinstance(values, list):
        raise InputError(f'{path} has no list "{key}": expected COCO annotations, as LIVECell has them')
    return [value if isinstance(value, dict) else {} for value in values]


def _category_names(data: dict[str, Any], path: Path) -> dict[str | None, str]:
    """The names of a file's categories, in lower case, by their id; errors as `_records`."""
    categories = _records(data, "categories", path)
    return {_key(category, "id"): str(category.get("name", "")).strip().lower() for category in categories}


def _classes_of(contents: Sequence[tuple[Path, dict[str, Any]]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """LIVECELL_CLASSES or CELL_TYPES, which have one in common, by the categories of files; errors as `_records`.

    And the names that their categories may have, beside "cell": both, as long as no line's that is no type is there.
    Where that one is the only category, the cells are of the type: LIVECell's own files call all of theirs "cell".
    """
    named = {name for path, data in contents for name in _category_names(data, path).values()}
    has_lines = any(name in named for name in LIVECELL_CLASSES if name not in CELL_TYPES)
    has_types = any(name in named for name in CELL_TYPES if name not in LIVECELL_CLASSES)
    is_typed = (has_types and not has_lines) or (named and named <= {*CELL_TYPES})
    classes = CELL_TYPES if is_typed else LIVECELL_CLASSES
    return classes, classes if has_types or has_lines else tuple(dict.fromkeys((*classes, *CELL_TYPES)))


def _key(record: dict[str, Any], name: str) -> str | None:
    """An id as text: 7, 7.0 and "7" are the same. None where it is no id."""
    value = record.get(name)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return composed(str(value)).strip() if isinstance(value, (int, str)) else None


def _is_crowd(record: dict[str, Any]) -> bool:
    return record.get("iscrowd") not in (None, 0, "", "0")


def _side(record: dict[str, Any], name: str) -> int | None:
    """A height or width in pixels, also written as 704.0 or "704"; None where it is none."""
    value = record.get(name)
    return (whole_number(str(value)) or None) if isinstance(value, (int, float, str)) else None


def _draft(record: dict[str, Any]) -> tuple[_Draft | None, str]:
    """An image without its cells and its class, or why there is none."""
    name = record.get("file_name")
    image_id = Path(last_part(name)).stem if isinstance(name, str) else ""
    if not isinstance(name, str) or not image_id:
        return None, f"its file_name is {name!r}"
    height, width = _side(record, "height"), _side(record, "width")
    if height is None or width is None:
        return None, f"the height and width of {name} are {record.get('height')!r} and {record.get('width')!r}"
    parts = (*(part for part in map(str.strip, path_parts(name)[:-1]) if part not in ("", ".", "..")), image_id)
    return _Draft(parts, (height, width), whole_number(str(record.get("frame", "")))), ""


def _source_image(draft: _Draft, path: Path, classes: tuple[str, ...]) -> SourceImage:
    label = draft.label
    if label is None:  # the commonest class of its cells, the first in order among equals
        counts = Counter(cell.label for cell in draft.cells)
        label = min(counts, key=lambda one: (-counts[one], one))
    # The place in the well: the name up to the time, as BT474_Phase_D3_1_02d16h00m_1.
    sample_id = "_".join(draft.image_id.split("_")[:4]) if "_Phase_" in draft.image_id else ""
    return SourceImage(draft.image_id, path, classes[label], sample_id, draft.image_shape, tuple(draft.cells))
