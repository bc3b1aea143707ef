"""The formats, and which of them a file has by its name."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from kernel.data.mask_files.cell_masks import read_cell_masks
from kernel.data.mask_files.found import MaskForm
from kernel.data.mask_files.geojson import read_geojson
from kernel.data.mask_files.imagej_rois import read_imagej_rois
from kernel.data.mask_files.label_images import read_label_image
from kernel.data.mask_files.ome_zarr import read_ome_zarr
from kernel.data.mask_files.seg_npy import read_seg_npy
from kernel.errors import InputError
from kernel.images.listing import IMAGE_SUFFIXES

#: By name, in the order in which they are told.
MASK_FORMS: Mapping[str, MaskForm] = {
    form.name: form
    for form in (
        MaskForm("seg-npy", "Cellpose's _seg.npy files", read_seg_npy),
        MaskForm("rois", "ImageJ's ROIs", read_imagej_rois, "roifile"),
        MaskForm("geojson", "GeoJSON outlines", read_geojson),
        MaskForm("ome-zarr", "OME-Zarr labels", read_ome_zarr, "zarr"),
        MaskForm("labels", "label images", read_label_image),
        MaskForm("cell-masks", "a mask file for each cell", read_cell_masks),
    )
}
#: Endings of images, and so of label images.
IMAGE_ENDINGS = (*IMAGE_SUFFIXES, *(f".ome{suffix}" for suffix in IMAGE_SUFFIXES))
#: What ends a name, in lower case, and the format. The longest that fits counts.
FORM_ENDINGS: Mapping[str, str] = {
    "_seg.npy": "seg-npy",
    ".npy": "seg-npy",
    ".zip": "rois",
    ".roi": "rois",
    ".geojson": "geojson",
    ".json": "geojson",
    ".ome.zarr": "ome-zarr",
    ".zarr": "ome-zarr",
    **dict.fromkeys(IMAGE_ENDINGS, "labels"),
}
#: Endings of much else: such a file is of masks only if another one does not say better what they are.
WEAK_ENDINGS = (".npy", ".json")
#: Endings that files of other kinds have as well: one without an image is of masks only in a folder that says so.
COMMON_ENDINGS = (*WEAK_ENDINGS, ".zip", ".roi", *IMAGE_ENDINGS)
#: What names of mask files have behind the image's, in lower case; the longest that fits counts.
MASK_MARKS = (
    "_cp_masks", "_masks", "_mask", "_labels", "_label", "_rois", "_roiset", "_seg", "_segmentation", "_annotations",
    "-masks", "-mask", "-labels", "-label", "-rois",
)  # fmt: skip
#: What Cellpose writes beside its masks that is neither an image nor masks.
OTHER_MARKS = ("_flows", "_cp_flows", "_cp_output", "_cp_outlines", "_outlines", "_dp")
#: Marks that no image has, be it there or not.
PLAIN_MARKS = ("_cp_masks", "_masks")


def form_of(path: Path) -> tuple[str, str] | None:
    """The name of a file's format, and its ending; None where it has none of them."""
    name = path.name.lower()
    endings = [ending for ending in FORM_ENDINGS if name.endswith(ending)]
    if not endings:
        return None
    ending = max(endings, key=len)
    return FORM_ENDINGS[ending], ending


def require_package(form: MaskForm) -> None:
    """Raise InputError where a package is not installed that the format needs."""
    if form.package is not None and importlib.util.find_spec(form.package) is None:
        raise InputError(
            f"to read {form.what} the package {form.package} is needed, which is not installed: "
            f"pip install {form.package}"
        )
