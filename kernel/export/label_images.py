"""Masks as label images: OME-TIFF, an OME-Zarr label, and the `_seg.npy` that Cellpose's window corrects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

from kernel.images.pixel_size import PixelSize
from kernel.masks.instances import CellMasks
from kernel.masks.labels import label_image

#: Viewers of OME-Zarr read large images at these parts of their resolution, down to a side of SMALLEST_LEVEL.
ZARR_FACTORS = (2, 4, 8, 16)
SMALLEST_LEVEL = 256


def write_ome_tiff(masks: CellMasks, path: Path, pixel: PixelSize | None = None) -> None:
    """Write the label image as OME-TIFF, with the size of a pixel where it is known."""
    size = {} if pixel is None else {"PhysicalSizeX": pixel.x_um, "PhysicalSizeY": pixel.y_um}
    tifffile.imwrite(
        path,
        label_image(masks),
        ome=True,
        photometric="minisblack",
        compression="zlib",
        metadata={"axes": "YX", **size},
    )


def write_seg_npy(image_bgr: np.ndarray, masks: CellMasks, path: Path, image_path: Path | None) -> None:
    """Write what Cellpose's window opens, for correction.

    It shows the file that is named and saves beside it. Where there is none it shows the image that is kept here, and
    saves as this file is called, but for what follows a last dot in its name.

    Args:
        image_bgr: (H, W, 3) uint8; kept in the file, for where the image is not found.
        masks: of the image.
        path: by Cellpose's custom the image's name with `_seg.npy` in the place of its ending.
        image_path: the image's file; None where that holds other planes as well, which would be shown.
    """
    labels = label_image(masks)
    areas = masks.sizes
    told: dict[str, Any] = {
        "masks": labels,
        "outlines": labels * is_outline(labels),
        "chan_choose": [0, 0],
        "ismanual": np.zeros(len(masks), bool),
        "filename": str(image_path or path.name.removesuffix("_seg.npy") + ".png"),
        "flows": [[], [], [], [], [[]]],
        "est_diam": float(np.median(2 * np.sqrt(areas / np.pi))) if len(areas) else 30.0,
        "img": cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB),
    }
    with path.open("wb") as stream:  # numpy adds .npy to a path that lacks it
        np.save(stream, np.array(told, dtype=object), allow_pickle=True)


def is_outline(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: cells' pixels of which a neighbour, also across a corner, is another cell's, background, or beyond
    the image."""
    padded = np.pad(labels, 1).astype(np.float32)  # exact up to 2**24 cells
    around = np.ones((3, 3), np.uint8)
    differs = cv2.dilate(padded, around) != cv2.erode(padded, around)
    return differs[1:-1, 1:-1] & (labels > 0)


def write_ome_zarr(image_bgr: np.ndarray, masks: CellMasks, path: Path, pixel: PixelSize | None = None) -> None:
    """Write the image, gray where its colours are alike, with the label `cells`, as OME-Zarr 0.4.

    Args:
        image_bgr: (H, W, 3) uint8.
        masks: of the image.
        path: the new folder, by custom ending in `.ome.zarr`.
        pixel: the size of a pixel, where it is known.
    """
    import zarr
    from ome_zarr.format import FormatV04
    from ome_zarr.writer import write_image, write_labels

    is_gray = (image_bgr == image_bgr[..., :1]).all()
    pixels = image_bgr[..., :1] if is_gray else image_bgr[..., ::-1]
    axes = [{"name": "c", "type": "channel"}, *({"name": name, "type": "space"} for name in "yx")]
    size = {"y": 1.0, "x": 1.0} if pixel is None else {"y": pixel.y_um, "x": pixel.x_um}
    options: dict[str, Any] = dict(
        fmt=FormatV04(),
        scale_factors=[factor for factor in ZARR_FACTORS if min(masks.image_shape) // factor >= SMALLEST_LEVEL],
        axes_units=None if pixel is None else dict.fromkeys("yx", "micrometer"),
    )
    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    write_image(np.moveaxis(pixels, -1, 0), root, axes=axes, scale={"c": 1.0, **size}, **options)
    # By its default scaler, which overrides the factors, the label would have other levels than the image.
    write_labels(label_image(masks), root, name="cells", axes=axes[1:], scale=size, scaler=None, **options)
