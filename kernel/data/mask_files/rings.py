"""Outlines as masks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Crossings of edges and rows that are looked at together: an outline may have any number of corners.
MOST_CROSSINGS = 1 << 20


def fill_rings(rings: Sequence[np.ndarray], image_shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The pixels whose centres lie inside an odd number of rings, and inside the image.

    Pixel (x, y) is the square from (x, y) to (x + 1, y + 1), as ImageJ and QuPath count; so outlines along pixels'
    edges give exactly these pixels. Of a centre on the line the right and lower side is inside: cells with a common
    outline have no pixel in common.

    Args:
        rings: arrays (N, 2) of corners x, y, finite; whether the last one is the first again does not matter.
        image_shape: height, width.

    Returns:
        crop (h, w) bool and the row and column of its top left pixel; (0, 0) in size where no pixel is inside.
    """
    height, width = image_shape
    starts = np.concatenate([np.asarray(ring, float).reshape(-1, 2) for ring in rings] or [np.zeros((0, 2))])
    ends = np.concatenate([np.roll(np.asarray(ring, float).reshape(-1, 2), -1, axis=0) for ring in rings] or [starts])
    (x0, y0), (x1, y1) = starts.T, ends.T
    # The rows whose centres an edge passes, its lower end left out, which belongs to the next edge.
    first = np.clip(np.ceil(np.minimum(y0, y1) - 0.5), 0, height).astype(np.int64)
    after = np.clip(np.ceil(np.maximum(y0, y1) - 0.5), 0, height).astype(np.int64)
    counts = after - first
    edges = np.flatnonzero(counts)
    if not edges.size:
        return np.zeros((0, 0), bool), (0, 0)

    def columns_at(edge: np.ndarray, row: np.ndarray) -> np.ndarray:
        """From where on the line is to the left."""
        x = x0[edge] + (row + 0.5 - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
        return np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)

    # No edge is farther out than at its first or its last row.
    outermost = np.concatenate([columns_at(edges, first[edges]), columns_at(edges, after[edges] - 1)])
    top, left = int(first[edges].min()), int(outermost.min())
    shape = int(after[edges].max()) - top, int(outermost.max()) - left + 1
    crossings = np.zeros(shape, np.uint8)  # what counts is whether they are odd, which holds beyond 255 as well
    totals = np.cumsum(counts[edges])
    for some in np.split(edges, np.searchsorted(totals, np.arange(MOST_CROSSINGS, totals[-1], MOST_CROSSINGS))):
        edge = np.repeat(some, counts[some])
        row = np.arange(len(edge)) - np.repeat(np.cumsum(counts[some]) - counts[some], counts[some]) + first[edge]
        place = (row - top) * shape[1] + columns_at(edge, row) - left
        np.add.at(crossings.reshape(-1), place, np.uint8(1))
    crop = (np.cumsum(crossings, axis=1, dtype=np.uint8) % 2).astype(bool)[:, :-1]  # the last column only closes
    return (crop, (top, left)) if crop.any() else (np.zeros((0, 0), bool), (0, 0))
