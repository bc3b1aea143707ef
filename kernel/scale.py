"""Images at the scale that members know: zoomed before the networks see them, their masks in the image's own pixels.

Members know cells of a size in pixels: that of the images they have learned from. The size of these images' pixels
stands in the metadata of the weight files, as `pixel_size_um`, beside a training's record or in it; where it does not,
they are taken for members of the competition's images, and of LIVECell's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from kernel.data.learned import read_member_record
from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.fallbacks import predict_image
from kernel.errors import InputError
from kernel.images.zoom import COMPETITION_PIXEL_UM, NO_ZOOM, Zoom, resized, zoomed_shape
from kernel.masks.instances import CellMasks
from kernel.runtime.memory import apply_plan, free_memory, plan_memory
from kernel.segment import Segmentation, finish_prediction, segment_image

#: The usual diameter of a cell in micrometres, by cell type: that of a circle of the median area of the competition's
#: annotated cells, 199, 660 and 207 pixels of 1.24 um, in 519 images.
USUAL_DIAMETER_UM = {"shsy5y": 19.7, "astro": 35.9, "cort": 20.1}
#: Under this key a weight file tells of itself.
PIXEL_SIZE_KEY = "pixel_size_um"
#: Cells whose median diameter differs from the usual one by more than this factor are likely at a wrong scale ...
FAR_FACTOR = 1.6
#: ... where there are so many of them.
FEWEST_CELLS = 10


def member_pixel_um(weights: Mapping[str, Path]) -> float:
    """The side of a pixel in the images that an ensemble's members have learned from, in micrometres.

    Args:
        weights: the members' files, by their names.

    Raises:
        InputError: a file tells what is no size, or they tell different ones.
    """
    told = {name: told_pixel_um(path) or COMPETITION_PIXEL_UM for name, path in weights.items()}
    if len({round(size, 3) for size in told.values()}) > 1:
        listed = ", ".join(f"{name} {size:g}" for name, size in told.items())
        raise InputError(
            f"the members have learned from pixels of different sizes ({listed} um), and cannot be averaged at one "
            "scale: take those of one size"
        )
    return next(iter(told.values()), COMPETITION_PIXEL_UM)


def told_pixel_um(path: Path) -> float | None:
    """What a weight file tells of the pixels that it has learned from; None: nothing.

    What `convert` has noted counts instead of what the record of its training says.

    Raises:
        InputError: what it tells is no size.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, "np") as file:
            told: Any = (file.metadata() or {}).get(PIXEL_SIZE_KEY)
    except (SafetensorError, OSError):
        return None  # whoever loads the file says what is wrong
    if told is None:
        record = read_member_record(path)
        told = None if record is None else record.pixel_size_um
    if told is None:
        return None
    try:
        size = float(told)
    except (ValueError, OverflowError):
        size = math.nan
    if not (math.isfinite(size) and size > 0):
        raise InputError(f"{path}: its metadata say {PIXEL_SIZE_KEY} = {told!r}, which is no size in micrometres")
    return size


class ScaledEnsemble:
    """An ensemble on its device, with the scale that its members know; plans the memory as images ask for it.

    Args:
        ensemble: loaded.
        member_um: the side of a pixel that its members know.
    """

    def __init__(self, ensemble: Ensemble, member_um: float = COMPETITION_PIXEL_UM):
        self.ensemble = ensemble
        self.member_um = member_um
        self._planned_pixels = 0  # of the largest image so far, for which the memory is planned

    def plan(self, shape: tuple[int, int]) -> None:
        """Plan the memory for images up to this height and width, as the members see them."""
        if shape[0] * shape[1] > self._planned_pixels:
            apply_plan(self.ensemble, plan_memory(self.ensemble, shape, free_memory(self.ensemble.device)))
            self._planned_pixels = shape[0] * shape[1]

    def segment(self, image_bgr: np.ndarray, zoom: Zoom = NO_ZOOM) -> Segmentation:
        """Find the cells of an image.

        Masks are pasted into the image's own pixels from what the networks say of each box, so they are as smooth as
        those of an image that needs no zoom.

        Args:
            image_bgr: (H, W, 3) uint8 of any size.
            zoom: by how much rows and columns are stretched for the members.

        Raises:
            NotFiniteError, torch.OutOfMemoryError: as `segment_image` does.
        """
        height, width = image_bgr.shape[:2]
        rows, columns = zoomed_shape((height, width), zoom)
        self.plan((rows, columns))
        if (rows, columns) == (height, width):
            return segment_image(self.ensemble, image_bgr)
        shown = resized(image_bgr, (rows, columns))
        prediction = predict_image(self.ensemble, shown)
        stretch = prediction.boxes_xyxy.new_tensor([width / columns, height / rows] * 2)
        prediction = replace(prediction, boxes_xyxy=prediction.boxes_xyxy * stretch, image_shape=(height, width))
        grown = height * width / (rows * columns)  # a pixel that the members see is so many of the image's
        thresholds = {
            cell_type: replace(each, min_size=int(each.min_size * grown))
            for cell_type, each in self.ensemble.settings.thresholds.items()
        }
        return finish_prediction(prediction, thresholds)


@dataclass(frozen=True)
class CellSize:
    """How large the cells of one image are for the members, against what is usual for their type."""

    cells: int
    diameter_px: float  # the median, in the pixels that the members see
    usual_px: float

    @property
    def is_far(self) -> bool:
        """Whether the image is likely at a wrong scale."""
        ratio = self.diameter_px / self.usual_px
        return self.cells >= FEWEST_CELLS and not 1 / FAR_FACTOR <= ratio <= FAR_FACTOR


def cell_size(masks: CellMasks, member_um: float) -> CellSize | None:
    """The size of the cells of an image that was not zoomed; None without cells, or of a type without a usual size."""
    usual = USUAL_DIAMETER_UM.get(masks.cell_type or "")
    if usual is None or not len(masks):
        return None
    return CellSize(len(masks), float(np.median(2 * np.sqrt(masks.sizes / np.pi))), usual / member_um)
