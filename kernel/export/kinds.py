"""What `predict` can write, by name: files of each image, and files of all images together."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernel.errors import InputError
from kernel.export.formats import outlines_of, write_labels
from kernel.export.svg import svg_picture
from kernel.images.pixel_size import PixelSize
from kernel.log import printable_name
from kernel.masks.instances import CellMasks
from kernel.postprocess.pictures import draw_picture


@dataclass(frozen=True, eq=False)
class FoundCells:
    """An image and its cells.

    Attributes:
        path: of the image's file.
        name: the image's own in this run.
        image_bgr: (H, W, 3) uint8.
        stored: (H, W, C), the same as its file has it.
        masks: of its cells.
        pixel: the size of its pixels, where it is known.
        is_whole: whether other programs that open its file see the same.
    """

    path: Path
    name: str
    image_bgr: np.ndarray
    stored: np.ndarray
    masks: CellMasks
    pixel: PixelSize | None = None
    is_whole: bool = True


@dataclass(frozen=True)
class ImageExport:
    """A file (or a folder) of each image: where it goes, how it ends, what writes it, and the package which that needs.

    The path that is given to `write` is in a folder that exists.
    """

    folder: str
    ending: str
    write: Callable[[FoundCells, Path], None]
    package: str | None = None


def write_outlines(found: FoundCells, path: Path) -> None:
    path.write_text(json.dumps(outlines_of(found.masks, found.pixel)) + "\n", encoding="utf-8", newline="\n")


def write_picture(found: FoundCells, path: Path) -> None:
    draw_picture(path, found.image_bgr, found.masks.rles(), picture_caption(found))


def write_svg_picture(found: FoundCells, path: Path) -> None:
    label = f"Image {printable_name(picture_caption(found))}, with the outlines of its cells"
    path.write_text(svg_picture(found.image_bgr, found.masks, label), encoding="utf-8", newline="\n")


def picture_caption(found: FoundCells) -> str:
    """What a picture is of: the image's name, its cells and their type."""
    cells = found.masks
    return f"{found.name}: {len(cells)} cells" + (f", {cells.cell_type}" if cells.cell_type else "")


def write_image_rois(found: FoundCells, path: Path) -> None:
    from kernel.export.rois import write_rois

    write_rois(found.masks, path)


def write_image_seg(found: FoundCells, path: Path) -> None:
    from kernel.export.label_images import write_seg_npy

    write_seg_npy(found.image_bgr, found.masks, path, found.path.resolve() if found.is_whole else None)


def write_image_ome_tiff(found: FoundCells, path: Path) -> None:
    from kernel.export.label_images import write_ome_tiff

    write_ome_tiff(found.masks, path, found.pixel)


def write_image_ome_zarr(found: FoundCells, path: Path) -> None:
    from kernel.export.label_images import write_ome_zarr

    write_ome_zarr(found.image_bgr, found.masks, path, found.pixel)


#: By the name that asks for it. Packages that only some need are imported when they are asked for.
IMAGE_EXPORTS: Mapping[str, ImageExport] = {
    "labels": ImageExport("labels", ".tif", lambda found, path: write_labels(found.masks, path)),
    "geojson": ImageExport("outlines", ".geojson", write_outlines),
    "pictures": ImageExport("pictures", ".png", write_picture),
    "report": ImageExport("report", ".svg", write_svg_picture, "matplotlib"),
    "rois": ImageExport("rois", ".zip", write_image_rois, "roifile"),
    "seg-npy": ImageExport("seg-npy", "_seg.npy", write_image_seg),
    "ome-tiff": ImageExport("ome-tiff", ".ome.tif", write_image_ome_tiff, "tifffile"),
    "ome-zarr": ImageExport("ome-zarr", ".ome.zarr", write_image_ome_zarr, "ome_zarr"),
}
#: Files of all images together, by the name that asks for each.
SET_EXPORTS: Mapping[str, str] = {"tables": "cells.csv", "coco": "coco.json", "submission": "submission.csv"}
#: Packages that some of them need, by the name to import.
SET_PACKAGES: Mapping[str, str] = {"tables": "skimage"}
#: Of packages that are called otherwise on the index.
INDEX_NAMES: Mapping[str, str] = {"skimage": "scikit-image", "ome_zarr": "ome-zarr"}
#: The page of a run, which `report` asks for beside its pictures.
RUN_PAGE = "report.html"
#: A row per image, whatever else is written: how it went.
IMAGES_TABLE = "images.csv"
DEFAULT_EXPORTS = ("labels", "geojson", "pictures", "tables")
#: What a folder of results may hold.
RESULT_NAMES = (*(kind.folder for kind in IMAGE_EXPORTS.values()), *SET_EXPORTS.values(), IMAGES_TABLE, RUN_PAGE)


def chosen_exports(text: str) -> tuple[str, ...]:
    """The names of a list with commas, each once, in the order of the tables above.

    Raises:
        InputError: a name is not known, none is given, or what it needs is not installed.
    """
    names = {name.strip() for name in text.split(",") if name.strip()}
    known = (*IMAGE_EXPORTS, *SET_EXPORTS)
    unknown = sorted(names - set(known))
    if unknown or not names:
        raise InputError(f"--export {text!r}: {', '.join(unknown) or 'nothing'} is not one of {', '.join(known)}")
    chosen = tuple(name for name in known if name in names)
    require_packages(chosen)
    return chosen


def require_packages(names: Sequence[str]) -> None:
    """Raise InputError where a package is not installed that one of these exports needs."""
    for name in names:
        package = IMAGE_EXPORTS[name].package if name in IMAGE_EXPORTS else SET_PACKAGES.get(name)
        if package is not None and importlib.util.find_spec(package) is None:
            wanted = INDEX_NAMES.get(package, package)
            raise InputError(
                f"--export {name} needs the package {wanted}, which is not installed: pip install {wanted}"
            )
