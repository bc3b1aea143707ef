"""What every reader of masks gives: cells as crops, and what of the file could not be used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kernel.data.mask_files.taken import TakenPlane


@dataclass(frozen=True, eq=False)
class MaskCell:
    """A cell of a mask file.

    Attributes:
        place: which one it is in the file, for messages.
        crop: (h, w) bool; it may be empty.
        offset_yx: the row and column of the crop's top left pixel in the image.
        class_name: as the file says, "" where it says none.
    """

    place: str
    crop: np.ndarray
    offset_yx: tuple[int, int]
    class_name: str = ""


@dataclass(frozen=True, eq=False)
class FoundMasks:
    """The cells of one image, and what is wrong with those that were left out: where, and why."""

    cells: tuple[MaskCell, ...]
    flaws: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class MaskForm:
    """A format.

    Attributes:
        name: by which it is asked for.
        what: it is called in a sentence, of several.
        read: gives the masks of a file for an image of a (H, W), of which a plane is taken.

            Raises:
                InputError: the file holds no masks that can be used, without its path.
        package: that it needs, if any.
    """

    name: str
    what: str
    read: Callable[[Path, tuple[int, int], TakenPlane], FoundMasks]
    package: str | None = None
