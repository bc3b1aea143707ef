"""Cellpose's `_seg.npy`, as its window saves it, read without running any code of the file.

It is a pickled dict. Only numpy's arrays and numbers in it are built; whatever else it may hold is passed over. Layouts
by their time: masks as a label image with background 0, and before that with background -1; before that no masks but
outlines, a list of the strokes that were drawn. Arrays saved alone, of whole numbers, are label images as well.
"""

from __future__ import annotations

import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import cv2
import numpy as np
from numpy.lib import format as npy

from kernel.data.mask_files.found import FoundMasks, MaskCell
from kernel.data.mask_files.label_arrays import cells_of_labels
from kernel.data.mask_files.taken import FIRST_PLANE, TakenPlane
from kernel.errors import InputError
from kernel.masks.instances import tight_window
from kernel.unpickling import CodeFreeUnpickler, Maker, StandIn, make_dict

#: What reading a pickle raises for bytes that are none, or another's than expected.
DAMAGED_PICKLE_ERRORS = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError,
    ImportError, OSError, RecursionError, struct.error,
)  # fmt: skip
#: Of numbers as pickles name their dtype, without the byte order; longer floats differ between machines.
NUMBER_TYPES = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")
#: How pickles name that of objects.
OBJECT_TYPES = ("O", "O4", "O8")
BYTE_ORDERS = ("<", ">", "=", "|")
#: Of a stroke's points: plane, row, column, and whether the pen was down.
STROKE_VALUES = 4
#: How deep points lie in an outline: in its strokes, in lists, each a row of its own.
STROKE_DEPTH = 4


class DtypeStandIn(StandIn):
    """Stands for a dtype: of numbers or objects, in `held`, or of none of them, where that is None."""

    def __init__(self, name: Any = None, *_rules: Any) -> None:
        super().__init__()
        if type(name) is str and (NUMBER_TYPES.fullmatch(name) or name in OBJECT_TYPES):
            self.held = np.dtype(object if name in OBJECT_TYPES else name)

    def take_state(self, state: Any) -> None:
        """Of all that a dtype's state has, the byte order: fields and flags would make others of the same bytes."""
        order = state[1]
        if type(order) is not str or order not in BYTE_ORDERS:
            raise pickle.UnpicklingError("a dtype without byte order")
        if self.held is not None:
            self.held = self.held.newbyteorder(order)


class ArrayStandIn(StandIn):
    """Stands for an array: of numbers or objects, in `held`, or of none of them, where that is None."""

    def take_state(self, state: Any) -> None:
        """The state is a version (or none, before numpy 1), shape, dtype, whether it is Fortran's, and content."""
        shape, dtype, is_fortran, content = state[-4:]
        self.held = make_array(content, dtype, shape, "F" if is_fortran else "C")


def make_array(content: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray | None:
    """The array of a pickle, not to be written to; None for one of texts, dates, records.

    Raises:
        pickle.UnpicklingError: a part is of another kind than numpy writes.
        ValueError: the parts do not fit.
    """
    if not isinstance(dtype, DtypeStandIn) or type(shape) is not tuple:
        raise pickle.UnpicklingError("an array without dtype or shape")
    if dtype.held is None:
        return None
    if dtype.held.kind != "O":
        if type(content) not in (bytes, bytearray):
            raise pickle.UnpicklingError("an array of numbers without their bytes")
        return np.frombuffer(content, dtype.held).reshape(shape, order=order)
    if type(content) is not list:
        raise pickle.UnpicklingError("an array of objects without a list of them")
    array = np.empty(len(content), object)
    for place, value in enumerate(content):
        array[place] = value
    return array.reshape(shape, order=order)


def make_buffered_array(content: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> ArrayStandIn:
    """As `make_array`, of a pickle of protocol 5.

    Args:
        axes: of an array whose order is neither C's nor Fortran's ("K"): which each of its axes is in that of C.
    """
    array = ArrayStandIn()
    array.held = make_array(content, dtype, shape, "F" if order == "F" else "C")
    if axes is not None and array.held is not None:
        array.held = array.held.transpose(axes)
    return array


def encode_bytes(text: Any, encoding: Any) -> bytes:
    """Bytes as the pickles of protocols 0 to 2 have them.

    Raises:
        pickle.UnpicklingError: they are written otherwise.
    """
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError("bytes that are no text of latin1")
    return text.encode("latin1")


class ArrayUnpickler(CodeFreeUnpickler):
    """Builds arrays of numbers and objects: for each its stand-in, as a pickle names an array before it is whole."""

    known: ClassVar[Mapping[tuple[str, str], Any]] = {
        ("numpy", "dtype"): Maker(DtypeStandIn),
        ("numpy._core.multiarray", "_reconstruct"): Maker(lambda *_class: ArrayStandIn()),
        ("numpy._core.numeric", "_frombuffer"): Maker(make_buffered_array),
        ("_codecs", "encode"): Maker(encode_bytes),
        ("builtins", "bytes"): Maker(lambda: b""),
        ("collections", "OrderedDict"): Maker(make_dict),
    }

    def find_class(self, module: str, name: str, /) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # as numpy 1 called it
        return super().find_class("builtins" if module == "__builtin__" else module, name)


def array_or_value(value: Any) -> Any:
    """The array that a stand-in stands for, and any other value as it is."""
    return value.held if isinstance(value, ArrayStandIn) else value


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
    masks, outlines = array_or_value(held.get("masks")), array_or_value(held.get("outlines"))
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
    held = array_or_value(ArrayUnpickler(stream).load())
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
        y0, x0, y1, x1 = tight_window(drawn)
        cells.append(MaskCell(place, drawn[y0:y1, x0:x1].astype(bool), (y0, x0)))
    return FoundMasks(tuple(cells), tuple(flaws))


def stroke_points(outline: Any, depth: int = 0) -> np.ndarray | None:
    """The points (N, 3) of plane, row and column of an outline, which may be in several strokes; None if it is none."""
    outline = array_or_value(outline)
    if isinstance(outline, (list, tuple)) or (isinstance(outline, np.ndarray) and outline.dtype == object):
        if depth == STROKE_DEPTH:  # a list may hold itself
            return None
        parts = [part for each in outline if (part := stroke_points(each, depth + 1)) is not None]
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
