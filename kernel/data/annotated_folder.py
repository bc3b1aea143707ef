"""Images with masks of other programs, or of `predict`, as a source of cells: for correcting and retraining."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from kernel.data.image_names import ambiguous_ids, composed, known_name
from kernel.data.mask_files.forms import MASK_FORMS, require_package
from kernel.data.mask_files.pairing import MASK_FOLDERS, MaskFile, Pairing, pair_masks
from kernel.data.mask_files.taken import FIRST_PLANE, TakenPlane, taken_plane
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
from kernel.data.tables import read_table
from kernel.errors import InputError
from kernel.images.reading import read_image, read_image_shape
from kernel.images.stacks import open_stack
from kernel.masks.rle import encode_rle
from kernel.settings import CELL_TYPES
from kernel.text import first_names

#: Of cells of which nobody says the type. Nothing is special about its cells, as is about astro's masks, which the
#: competition's annotators left as they were.
DEFAULT_CELL_TYPE = CELL_TYPES[0]
#: What `predict` tells of each image, in its results.
PREDICTED_TABLE = "images.csv"

#: A cell as it is kept: its place, its run lengths, its class as the file says.
_Row = tuple[str, str, str]


def read_annotated_folder(
    folder: Path,
    masks_folder: Path | None = None,
    *,
    form: str | None = None,
    cell_types: str | None = None,
    keep_empty: bool = False,
    showing: Showing | None = None,
) -> Source:
    """The cells of a folder of images and masks; see `kernel.data.mask_files.pairing` for which belong together.

    A cell's type is what `cell_types` says of its image; else its class in the file, where that is a cell type; else
    the folder's name that its image lies in; else what `predict` found the image to be, in the images.csv of its
    results; else DEFAULT_CELL_TYPE. The image's is that of most of its cells.

    Args:
        folder: of the images; its sub-folders are searched.
        masks_folder: of the masks; None: the same.
        form: of MASK_FORMS, the one to read where images have several; None: they must say the same.
        cell_types: as for `read_pseudo_labels`; None: as above.
        keep_empty: images whose masks have no cell are images without cells; else they are dropped by name.
        showing: how the images are shown to members; None: as their files are read. Masks are of the files' pixels;
            of shapes that tell their plane those on the one that is shown count.

    Raises:
        InputError: a folder cannot be read, no image has masks, or several that differ.
    """
    frame = None if showing is None else showing.choice.frame
    pairing = pair_masks(folder, masks_folder, frame if isinstance(frame, int) else None)
    types = _TypesOfImages(pairing, folder, masks_folder, cell_types)
    images, dropped, bad = [], [], []
    pairs: dict[str, list[str]] = {}
    rows = 0
    for image_id, files in tqdm(pairing.masks.items(), unit="image", desc="reading masks", mininterval=1):
        chosen = [file for file in files if form in (None, file.form)]
        if not chosen:
            continue
        path = pairing.images[image_id]
        for file in chosen:
            require_package(MASK_FORMS[file.form])
        try:
            stack = None if showing is None else open_stack(path, showing.choice)
            image_shape = (stack and stack.plane_shape) or read_image_shape(path) or shape_of_pixels(path)
            plane = FIRST_PLANE if showing is None else taken_plane(path, showing.choice)
            results = [read_masks(file, image_shape, plane) for file in chosen]
        except InputError as error:
            dropped.append(DroppedImage(image_id, str(error), 0))
            continue
        refuse_different(chosen, [found for found, _ in results])
        found, flaws = results[0]
        rows += len(found) + len(flaws)
        pairs.setdefault(chosen[0].form, []).append(
            f"{path.name} with {chosen[0].path.parent.name}/{chosen[0].path.name}"
        )
        bad += [DroppedCell(image_id, place, reason) for place, reason in flaws]
        if not found and not keep_empty:
            reason = (
                "none of its cells can be used" if flaws else "no cell is in its masks; if none is in it: --keep-empty"
            )
            dropped.append(DroppedImage(image_id, reason, 0))
            continue
        try:
            images.append(replace(types.image_of(image_id, image_shape, found), showing=showing))
        except InputError as error:
            dropped.append(DroppedImage(image_id, str(error), len(found)))
    if not pairs and not dropped:
        raise InputError(_nothing_paired(pairing, folder, masks_folder, form))
    stems = {composed(path.stem) for path in pairing.images.values()}
    several = "several images have this name, and none of them lies in folders called as those of the masks"
    without = [
        DroppedImage(file.path.name, several if file.image_name in stems else "no image of this name", 0)
        for file in pairing.without_image
        if form in (None, file.form)
    ]
    lacking = tuple(
        image_id
        for image_id in pairing.images
        if not any(form in (None, file.form) for file in pairing.masks.get(image_id, ()))
    )
    return Source(
        name="annotated images",
        class_names=CELL_TYPES,
        images=tuple(images),
        rows=rows,
        dropped_images=(*dropped, *without),
        dropped_cells=tuple(bad),
        images_without_annotations=lacking,
        notes=(_told(pairs, len(lacking), len(without)), *types.notes()),
    )


def shape_of_pixels(path: Path) -> tuple[int, int]:
    """The (H, W) of an image whose header does not tell it; errors as `read_image`, for the most part."""
    height, width, _ = read_image(path).shape
    return height, width


def read_masks(
    file: MaskFile, image_shape: tuple[int, int], plane: TakenPlane
) -> tuple[list[_Row], Sequence[tuple[str, str]]]:
    """The cells of a mask file for a plane of its image, and the place and reason of each that is left out.

    Raises:
        InputError: it cannot be used, with its name.
    """
    try:
        found = MASK_FORMS[file.form].read(file.path, image_shape, plane)
    except InputError as error:
        raise InputError(f"{file.path.name}: {error}") from error
    except OSError as error:
        raise InputError(f"{file.path.name} cannot be read: {error.strerror}") from error
    except MemoryError as error:
        raise InputError(f"{file.path.name} cannot be read: what it holds does not fit into the memory") from error
    rows = [(cell.place, encode_rle(cell.crop, cell.offset_yx, image_shape), cell.class_name) for cell in found.cells]
    return rows, found.flaws


def refuse_different(files: Sequence[MaskFile], rows: Sequence[Sequence[_Row]]) -> None:
    """Refuse several mask files of one image that do not hold the same cells: nobody says which ones are corrected.

    Raises:
        InputError: two differ.
    """
    pixels = [sorted(rle for _, rle, _ in of_file if rle) for of_file in rows]
    for file, other in zip(files, pixels, strict=True):
        if other != pixels[0]:
            raise InputError(
                f"{files[0].path} and {file.path} are both of the image {file.image_name}, and hold different cells: "
                "name the folder of those that count by --masks, or their format by --mask-form"
            )


class _TypesOfImages:
    """The cell type of each image and of its cells, and by what it is known."""

    def __init__(self, pairing: Pairing, folder: Path, masks_folder: Path | None, cell_types: str | None) -> None:
        self.pairing = pairing
        self.roots = [folder] if masks_folder is None else [folder, masks_folder]
        self.given: Callable[[str], str] | None = None
        self.source = cell_types
        if cell_types is not None:
            self.given = cell_type_lookup(cell_types, pairing.images)
        self.predicted = predicted_types(pairing, self.roots[-1])
        self.strange: Counter[str] = Counter()  # classes of files that are no cell types
        self.unknown: list[str] = []  # images of which nothing says the type

    def image_of(self, image_id: str, image_shape: tuple[int, int], found: Sequence[_Row]) -> SourceImage:
        """The image with its cells.

        Raises:
            InputError: its type is given, and none.
        """
        path = self.pairing.images[image_id]
        if self.given is not None:
            image_type = self.given(image_id)
            refuse_no_type(image_type, str(self.source))
            labels = [CELL_TYPES.index(image_type)] * len(found)
        else:
            classes = [name.strip().lower() for _, _, name in found]
            self.strange.update(name for _, _, name in found if name and name.strip().lower() not in CELL_TYPES)
            votes = Counter(name for name in classes if name in CELL_TYPES)
            image_type = max(CELL_TYPES, key=lambda name: votes[name]) if votes else self.type_by_place(image_id)
            labels = [CELL_TYPES.index(name if name in CELL_TYPES else image_type) for name in classes]
        cells = tuple(SourceCell(place, label, rle) for (place, rle, _), label in zip(found, labels, strict=True))
        return SourceImage(image_id, path, image_type, "", image_shape, cells)

    def type_by_place(self, image_id: str) -> str:
        """The type by the folders of the image or its masks, by what `predict` told, or else the default."""
        paths = [self.pairing.images[image_id], *(file.path for file in self.pairing.masks[image_id])]
        parts = [part for path in paths for root in self.roots for part in parts_below(path, root)]
        named = next((part for part in parts if part in CELL_TYPES), None) or self.predicted.get(image_id)
        if named is None:
            self.unknown.append(image_id)
        return named or DEFAULT_CELL_TYPE

    def notes(self) -> list[str]:
        """What is to be told of the types."""
        told = []
        if self.unknown:
            told.append(
                f"cell type: nothing says that of {len(self.unknown)} images, so they count as {DEFAULT_CELL_TYPE} "
                "(--cell-type says another)"
            )
        if self.strange:
            named = first_names([f"{name!r} ({count})" for name, count in self.strange.most_common()], 5)
            told.append(f"classes that are no cell types, so that the cells count as their image: {named}")
        return told


def parts_below(path: Path, root: Path) -> list[str]:
    """The folders from a file up to the root, this included, in lower case; none where the file is not below it."""
    if not path.is_relative_to(root):
        return []
    return [part.lower() for part in (*reversed(path.parent.relative_to(root).parts), root.name)]


def predicted_types(pairing: Pairing, folder: Path) -> dict[str, str]:
    """The cell types that `predict` told of images, where the folder is its results, or one in them."""
    known: dict[str, str] = {}
    for place in (folder, folder.absolute().parent):
        with suppress(InputError):  # there is none, or it is another's table
            table = list(read_table(place / PREDICTED_TABLE, ("image", "file", "cell_type"), "cell types", "its own"))
            ambiguous = ambiguous_ids((row.values["image"] for row in table), pairing.images)
            for row in table:
                name = known_name(row.values["image"], pairing.images)
                if row.values["cell_type"] in CELL_TYPES and name not in ambiguous:
                    known.setdefault(name, row.values["cell_type"])
    return known


def _told(pairs: Mapping[str, Sequence[str]], lacking: int, without: int) -> str:
    """Which pairing was found, in one line."""
    told = [
        f"{len(pairs[name])} images with {form.what} ({pairs[name][0]})"
        for name, form in MASK_FORMS.items()
        if name in pairs
    ]
    return f"pairing: {', '.join(told) or 'none'}; images without masks: {lacking}; masks without image: {without}"


def _nothing_paired(pairing: Pairing, folder: Path, masks_folder: Path | None, form: str | None) -> str:
    """The message where no image has masks."""
    place = masks_folder or folder
    kinds = ", ".join(f"{each.name} ({each.what})" for each in MASK_FORMS.values())
    others = first_names([file.path.name for file in pairing.without_image], 5)
    siblings = [str(folder.absolute().parent / name) for name in sorted(MASK_FOLDERS)]
    beside = [path for path in siblings if os.path.isdir(path)]  # noqa: PTH112 (Path's own raises where it is closed)
    return (
        f"none of the {len(pairing.images)} images of {folder}, {next(iter(pairing.images.values())).name} first, has "
        f"masks below {place}"
        + (f" in the form {form}" if form else f" in one of the forms {kinds}")
        + (f"; masks without an image are there: {others}" if others else "")
        + "; masks have their image's name, as a.png and a_masks.tif, a_seg.npy, a.geojson, masks/a.png, or masks/a/ "
        "with a file for each cell, and lie in folders called as its own where several images have this name; COCO "
        "annotations of many images are read by --livecell-annotations"
        + (f"; {beside[0]} lies beside it: --masks names it" if beside and masks_folder is None else "")
    )
