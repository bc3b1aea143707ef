"""Polygons of masks: rings along the edges of their pixels, holes included."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import label

#: Corner points [x, y] of a closed line; the last one is the first one again.
Ring = list[list[int]]


def mask_polygons(crop: np.ndarray, offset_yx: tuple[int, int] | np.ndarray = (0, 0)) -> list[list[Ring]]:
    """The polygons that cover exactly a mask's pixels. Pixel (x, y) is the square from (x, y) to (x + 1, y + 1).

    Each 4-connected piece is a polygon of its own. No ring passes a point twice: a hole that touches the outside, or
    another hole, at a corner is a ring of its own. So the polygons are valid by OGC's rules (Simple Features), and
    together a valid MultiPolygon. Rings turn at each of their points.

    Args:
        crop: (h, w) bool.
        offset_yx: the row and column of the crop's top left pixel in the image.

    Returns:
        Per piece its exterior, then its holes, in coordinates (x, y) of the image. In these coordinates the signed
        area of an exterior is positive and that of a hole negative, as RFC 7946 wants it; on a screen, where y points
        down, exteriors run clockwise. [] for an empty mask.
    """
    inside = np.pad(np.asarray(crop, dtype=bool), 1)
    pieces = np.zeros(inside.shape, np.int32)
    label(inside, output=pieces)
    above, below = inside[:-1], inside[1:]
    # Each point of the grid has four pixels around it. Where an odd number of them is inside, one line turns; where
    # two diagonal ones are, two lines do.
    falls, rises = above[:, :-1] ^ below[:, 1:], above[:, 1:] ^ below[:, :-1]
    crosses = ~falls & ~rises & (above[:, :-1] ^ above[:, 1:])
    y, x = np.nonzero((falls ^ rises) | crosses)
    twice = np.repeat(np.arange(len(y)), 1 + crosses[y, x])
    y, x, second = y[twice], x[twice], np.diff(twice, prepend=-1) == 0
    top_left, over, bottom_left, under = pieces[y, x], pieces[y, x + 1], pieces[y + 1, x], pieces[y + 1, x + 1]

    # Along each row of the grid, and along each column, every two corners are the ends of one edge. Of two corners at
    # one point, the first ends the edge on its left. Its line goes on up, around the top left pixel, or down, around
    # the bottom left one: where the two diagonal pixels inside are of two pieces, the lines keep these apart; where
    # they are of one, the lines keep apart the two pixels outside, which are of two holes or of a hole and the outside.
    goes_up = np.where(top_left > 0, top_left != under, over == bottom_left)
    in_columns = np.lexsort((second == goes_up, y, x))
    along_column = np.empty_like(in_columns)
    along_column[in_columns] = in_columns.reshape(-1, 2)[:, ::-1].ravel()

    points = np.stack([x + int(offset_yx[1]), y + int(offset_yx[0])], axis=1).tolist()
    next_of, under, over = along_column.tolist(), under.tolist(), over.tolist()
    polygons: dict[int, list[Ring]] = {}
    seen = [False] * len(points)
    for first in range(0, len(points), 2):  # from the top: a ring's first corner is its top left one
        if seen[first]:
            continue
        ring, corner = [], first
        while not seen[corner]:
            across = corner ^ 1  # the other end of the edge along the row
            seen[corner] = seen[across] = True
            ring += [points[corner], points[across]]
            corner = next_of[across]
        ring.append(points[first])
        # The mask is below the top of an exterior, and above that of a hole.
        polygons.setdefault(under[first] or over[first], []).append(ring if under[first] else ring[::-1])
    return list(polygons.values())
