"""Which cells are wanted: not those that the image's edge cuts, nor those that are too small."""

from __future__ import annotations

import numpy as np

from kernel.masks.instances import CellMasks


def keep_cells(masks: CellMasks, exclude_edges: bool = False, min_area: int = 0) -> CellMasks:
    """The cells that are wanted, in their order.

    Args:
        masks: of an image; none is empty.
        exclude_edges: leave out cells with a pixel in the image's first or last row or column.
        min_area: leave out cells of fewer pixels than these.
    """
    wanted = masks.sizes >= min_area
    if exclude_edges:
        wanted &= ~on_border(masks)
    return masks.select(np.flatnonzero(wanted))


def on_border(masks: CellMasks) -> np.ndarray:
    """(N,) bool: whether a cell has a pixel in the image's first or last row or column."""
    height, width = masks.image_shape
    touching = np.zeros(len(masks), bool)
    for number, (crop, (y0, x0, y1, x1)) in enumerate(zip(masks.crops, masks.windows.tolist(), strict=True)):
        touching[number] = (
            (y0 == 0 and crop[0].any())
            or (x0 == 0 and crop[:, 0].any())
            or (y1 == height and crop[-1].any())
            or (x1 == width and crop[:, -1].any())
        )
    return touching
