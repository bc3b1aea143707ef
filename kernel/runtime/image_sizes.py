"""The sizes of a run's images before any is done, from their headers; headers that lie are found out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from kernel.errors import InputError
from kernel.images.reading import read_image, read_image_shape
from kernel.log import LOG
from kernel.runtime.failures import FailedImage, attempt

#: An image is read to see whether its header lies where that says so many times the median's pixels,
DOUBTFUL_FACTOR = 4.0
#: but no more than these: they would take memory that the run needs.
READABLE_PIXELS = 1 << 27
#: Stands for an image that cannot be read: it takes no time, and the worker says why.
NO_SHAPE = (1, 1)


def image_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, int]]:
    """The (H, W) of every image by its id; (1, 1) where it cannot be read, or not to the size that its header tells."""
    shapes = {path.stem: shape_of(path) for path in paths}
    limit = DOUBTFUL_FACTOR * statistics.median(height * width for height, width in shapes.values()) if shapes else 0
    for path in paths:
        height, width = shapes[path.stem]
        if limit < height * width <= READABLE_PIXELS and not can_be_read(path):
            LOG.warning(
                "%s tells of %d x %d pixels and cannot be read: it is no part of forecasts", path, width, height
            )
            shapes[path.stem] = NO_SHAPE
    return shapes


def shape_of(path: Path) -> tuple[int, int]:
    """The (H, W) that an image's header tells; (1, 1) where it has none."""
    shape = attempt(path.stem, lambda: read_image_shape(path))
    return NO_SHAPE if shape is None or isinstance(shape, FailedImage) else shape


def can_be_read(path: Path) -> bool:
    """Whether an image can be read; why not is told when its turn comes."""

    def read() -> bool:
        try:
            read_image(path)
        except (InputError, MemoryError):
            return False
        return True

    return attempt(path.stem, read) is True
