"""The samples of a TIFF's strips and tiles: decoded by tifffile where it is installed, else by OpenCV."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kernel.errors import InputError
from kernel.images.decoding import DECODER_ERRORS, decode_by_opencv, is_installed
from kernel.images.tiff_layout import (
    FLOAT,
    HORIZONTAL,
    MIN_IS_BLACK,
    MIN_IS_WHITE,
    NO_PREDICTOR,
    PALETTE,
    PREDICTED,
    UNDEFINED,
    UNSIGNED,
    YCBCR,
    TiffLayout,
)
from kernel.images.tiff_segments import DEFLATE, JPEG_COMPRESSION, SEGMENT_SIZES, check_segment
from kernel.images.tiff_tags import TiffDirectory, TiffTag

#: What tifffile decodes by itself, without imagecodecs.
TIFFFILE_COMPRESSIONS = (1, 8, 32773, 32946, 34925)
#: Read from the file at a time; tifffile's own default would take as much as the image.
READ_BYTES = 1 << 24


def decode_samples(
    path: Path, stream: BinaryIO, directory: TiffDirectory, layout: TiffLayout, page: int = 0
) -> np.ndarray:
    """The samples of a page as (H, W, S), as stored: by tifffile if it reads them, else by OpenCV.

    Raises:
        InputError: they are damaged, or nothing that is installed decodes them right. OpenCV reads first pages alone.
    """
    by_tifffile = tifffile_reads(layout)
    if not by_tifffile and (page or not opencv_reads(layout)):
        raise InputError(
            f"the TIFF is stored in a way ({layout.describe()}) that needs the packages tifffile and imagecodecs, or "
            "that these do not read: install both (pip install tifffile imagecodecs), or save it without compression"
        )
    if not by_tifffile or not is_installed("imagecodecs"):
        most = max(layout.segment_sizes(), default=0)  # the last strip may be filled up to the others' size
        for offset, count, size in zip(layout.offsets, layout.counts, layout.segment_sizes(), strict=False):
            stream.seek(offset)
            check_segment(layout.compression, stream.read(count), 0 if layout.subsampled else size, most)
    return decode_by_tifffile(path, layout, page) if by_tifffile else decode_strips_by_opencv(stream, directory, layout)


def tifffile_reads(layout: TiffLayout) -> bool:
    """Whether tifffile is there, and imagecodecs where it needs it."""
    if not is_installed("tifffile"):
        return False
    if layout.photometric == YCBCR and layout.compression != JPEG_COMPRESSION:
        return False  # it leaves these colours as they are
    if is_installed("imagecodecs"):
        return True
    return (
        layout.compression in TIFFFILE_COMPRESSIONS and layout.predictor in (1, 2) and layout.bits in (1, 8, 16, 32, 64)
    )


def decode_by_tifffile(path: Path, layout: TiffLayout, page: int = 0) -> np.ndarray:
    """`decode_samples` by that package.

    Raises:
        InputError: the samples cannot be decoded.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            values = file.pages[page].asarray(maxworkers=1, buffersize=READ_BYTES, squeeze=False)
    except DECODER_ERRORS as error:
        reason = str(error) or type(error).__name__
        raise InputError(f"the TIFF is damaged, or of an uncommon kind ({layout.describe()}): {reason}") from error
    planes, samples = (layout.samples, 1) if layout.planar else (1, layout.samples)
    expected = (planes, layout.depth, layout.height, layout.width, samples)
    if values.shape != expected:
        raise InputError(f"the TIFF is of an uncommon kind ({layout.describe()}): its pixels are {values.shape}")
    plane = values[:, 0]
    return np.moveaxis(plane[..., 0], 0, -1) if layout.planar else plane[0]


def opencv_reads(layout: TiffLayout) -> bool:
    """Whether OpenCV reads a layout right, as tests have shown, and `check_segment` finds damage."""
    plain = layout.sample_format in (UNSIGNED, UNDEFINED) and layout.bits in (8, 16)
    predictor = layout.predictor == NO_PREDICTOR or (layout.predictor == HORIZONTAL and layout.compression in PREDICTED)
    return (
        layout.compression in (*SEGMENT_SIZES, *DEFLATE, JPEG_COMPRESSION)
        and (plain or (layout.sample_format == FLOAT and layout.bits in (32, 64)))
        and predictor
        and (layout.samples == layout.colours or (layout.samples == 4 and layout.colours == 3 and plain))
        and not layout.planar
        and layout.depth == layout.fill_order == 1
    )


def decode_strips_by_opencv(stream: BinaryIO, directory: TiffDirectory, layout: TiffLayout) -> np.ndarray:
    """`decode_samples` by that package.

    Raises:
        InputError: the samples cannot be decoded.
    """
    stream.seek(0)
    content = bytearray(stream.read())
    patch_tag(content, directory, TiffTag.ORIENTATION, 1)
    if layout.photometric in (MIN_IS_WHITE, PALETTE):
        patch_tag(content, directory, TiffTag.PHOTOMETRIC_INTERPRETATION, MIN_IS_BLACK)
    patch_tag(content, directory, TiffTag.EXTRA_SAMPLES, 0)  # an alpha of a known kind would be multiplied in
    values = decode_by_opencv(content)
    if values is None or values.shape[:2] != (layout.height, layout.width):
        raise InputError(f"the TIFF is damaged, or of a kind that OpenCV does not read ({layout.describe()})")
    values = values[..., None] if values.ndim == 2 else values
    return values[..., [2, 1, 0]] if layout.colours == 3 else values


def patch_tag(content: bytearray, directory: TiffDirectory, tag: int, value: int) -> None:
    """Write another number into the first value of a tag, where it is there."""
    field = directory.fields.get(tag)
    if field is not None:
        struct.pack_into(directory.order + ("H" if field.type_code == 3 else "I"), content, field.at, value)
