"""Cellpose's `_seg.npy`, as its window saves it, read without running any code of the file.

It is a pickled dict. Only numpy's arrays and numbers in it are built; whatever else it may hold is passed over. Layouts
by their time: masks as a label image with background 0, and before that with background -1; before that no masks but
outlines, a list of the strokes that were drawn. Arrays saved alone, of whole numbers, are label images as well.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import cv2
import numpy as np
from numpy.lib import format as npy

from kernel.data.mask_files.found import FoundMasks, MaskCell
from kernel.data.mask_files.label_arrays import cells_of_labels
from kernel.data.mask_files.taken import FIRST_PLANE, TakenPlane
from kernel.errors import InputError

#: What reading a pickle raises for bytes that are none, or another's than expected.
DAMAGED_PICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError,
    ImportError, OSError, RecursionError,
)  # fmt: skip
#: Functions and classes of a pickle that only put arrays and numbers together.
ARRAY_GLOBALS = frozenset(
    {
        ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode"), ("collections", "OrderedDict"),
        *(("numpy._core.multiarray", name) for name in ("_reconstruct", "scalar")),
        ("numpy._core.numeric", "_frombuffer"),
        *(("builtins", name) for name in ("set", "slice", "complex", "bytearray")),
    }
)  # fmt: skip
#: Of a stroke's points: plane, row, column, and whether the pen was down.
STROKE_VALUES = 4


class PassedOver:
    """Stands for an object of any other class: takes whatever a pickle does to it, and keeps nothing."""

    def __new__(cls, *_args: Any, **_named: Any) -> PassedOver:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_named: Any) -> None:
        """Of any arguments."""

    def __call__(self, *_args: Any, **_named: Any) -> PassedOver:
        return PassedOver()

    def __setstate__(self, _held: Any) -> None:
        """Of any state."""

    def __setitem__(self, _key: Any, _value: Any) -> None:
        """As of a class derived from dict."""

    def append(self, _value: Any) -> None:
        """As of a class derived from list."""

    def extend(self, _values: Any) -> None:
        """As of a class derived from list."""

    def add(self, _value: Any) -> None:
        """As of a class derived from set."""


class ArrayUnpickler(pickle.Unpickler):
    """Builds numpy's arrays and numbers, and nothing else."""

    def find_class(self, module: str, name: str, /) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # as numpy 1 called it
        return super().find_class(module, name) if (module, name) in ARRAY_GLOBALS else PassedOver


def read_seg_npy(path: Path, image_shape: tuple[int, int], plane: TakenPlane = FIRST_PLANE) -> FoundMasks:
    """The cells of a `_seg.npy`; errors as a `MaskForm`'s reader."""
    with path.open("rb") as stream:
        try:
            held = read_npy(stream)
        except DAMAGED_PICKLE_ERRORS as error:
            raise InputError(f"it is no readable .npy file ({type(error).__name__}): save it again") from error
    if isinstance(held, np.ndarray):
        return cells_of_labels(held, image_shape)
    if not isinstance(held, Mapping) or not {"masks", "outlines"} & held.keys():
        raise InputError("it holds neither masks nor outlines, as Cellpose's window saves them")
    masks, outlines = held.get("masks"), held.get("outlines")
    if isinstance(masks, np.ndarray) and masks.dtype.kind in "uif":
        if masks.dtype.kind != "u" and masks.size and masks.min() == -1:
            masks = masks + 1
        return cells_of_labels(masks, image_shape)
    if isinstance(outlines, (list, np.ndarray)):
        return cells_of_strokes(list(outlines), image_shape, plane)
    raise InputError(f"its masks are no array of numbers, but {type(masks).__name__}")


def read_npy(stream: BinaryIO) -> Any:
    """An array of numbers, or the one object that is saved in its place; raises DAMAGED_PICKLE_ERRORS."""
    version = npy.read_magic(stream)
    read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
    shape, _, dtype = read_header(stream)
    if not dtype.hasobject:
        stream.seek(0)
        return npy.read_array(stream, allow_pickle=False)
    held = ArrayUnpickler(stream).load()
    return held.item() if isinstance(held, np.ndarray) and shape == () else held


def cells_of_strokes(outlines: list[Any], image_shape: tuple[int, int], plane: TakenPlane) -> FoundMasks:
    """Cells by the strokes that were drawn around them, filled with their outlines as Cellpose's window does.

    A pixel that two strokes have belongs to the first cell, as there. Those on other planes of a stack are named.
    """
    free = np.ones(image_shape, np.uint8)
    cells, flaws = [], []
    for number, outline in enumerate(outlines, start=1):
        place = f"outline {number}"
        points = stroke_points(outline)
        if points is None:
            flaws.append((place, "it is no list of points with plane, row and column"))
            continue
        others = filter(None, (plane.flaw(position=position) for position in np.unique(points[:, 0]).tolist()))
        if flaw := next(others, ""):
            flaws.append((place, flaw))
            continue
        if points[:, 1:].min() < -max(image_shape) or points[:, 1:].max() > 2 * max(image_shape):
            flaws.append((place, "a point of it lies far outside the image"))  # OpenCV draws each row on the way there
            continue
        drawn = np.zeros(image_shape, np.uint8)
        cv2.fillPoly(drawn, [points[:, [2, 1]].astype(np.int32)], [1])
        drawn &= free
        free &= ~drawn & 1
        cells.append(MaskCell(place, drawn.astype(bool), (0, 0)))
    return FoundMasks(tuple(cells), tuple(flaws))


def stroke_points(outline: Any) -> np.ndarray | None:
    """The points (N, 3) of plane, row and column of an outline, which may be in several strokes; None if it is none."""
    if isinstance(outline, (list, tuple)) or (isinstance(outline, np.ndarray) and outline.dtype == object):
        parts = [part for part in map(stroke_points, outline) if part is not None]
        return np.concatenate(parts) if parts and len(parts) == len(outline) else None
    if not isinstance(outline, np.ndarray) or outline.dtype.kind not in "uif" or not outline.size:
        return None
    if outline.ndim == 1 and len(outline) in (STROKE_VALUES - 1, STROKE_VALUES):
        outline = outline[None]
    if (
        outline.ndim != 2
        or outline.shape[1] not in (STROKE_VALUES - 1, STROKE_VALUES)
        or not np.isfinite(outline).all()
    ):
        return None
    return outline[:, :3].round().astype(np.int64)
