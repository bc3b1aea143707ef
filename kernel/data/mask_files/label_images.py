"""Label images in PNG and TIFF files, by the stored values: a palette or a table for display does not count."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kernel.data.mask_files.found import FoundMasks
from kernel.data.mask_files.label_arrays import cells_of_labels
from kernel.data.mask_files.taken import FIRST_PLANE, TakenPlane
from kernel.errors import InputError
from kernel.images.jpeg import JPEG_SIGNATURE
from kernel.images.png import PNG_GRAY, PNG_PALETTE, PNG_SIGNATURE, chunk_data, parse_png_header, png_chunks, read_png
from kernel.images.tiff import count_planes
from kernel.images.tiff_decoding import decode_samples
from kernel.images.tiff_layout import check_segments, read_layout
from kernel.images.tiff_tags import TIFF_SIGNATURES, tiff_directories


def read_label_image(path: Path, image_shape: tuple[int, int], _plane: TakenPlane = FIRST_PLANE) -> FoundMasks:
    """The cells of a label image, which is of one plane; errors as a `MaskForm`'s reader."""
    return cells_of_labels(read_labels(path), image_shape)


def read_labels(path: Path) -> np.ndarray:
    """The stored values of a PNG, or of a TIFF of one page, (H, W, S).

    Raises:
        InputError: it is another file, has several pages, or is damaged.
    """
    with path.open("rb") as stream:
        head = stream.read(8)
        stream.seek(0)
        if head.startswith(PNG_SIGNATURE):
            return read_png(without_palette(stream))[0]
        if head.startswith(TIFF_SIGNATURES):
            return read_stored_tiff(path, stream)
    if head.startswith(JPEG_SIGNATURE):
        raise InputError("it is a JPEG, which changes the values: save label images as PNG or TIFF")
    raise InputError("it is no PNG or TIFF" if head else "the file is empty")


def without_palette(stream: BinaryIO) -> BinaryIO:
    """A PNG with its palette's numbers as gray values; of other PNGs the file itself."""
    chunk_type, length = next(png_chunks(stream))
    header = parse_png_header(chunk_type, chunk_data(stream, chunk_type, length))
    rest = stream.read() if header.colour_type == PNG_PALETTE else b""
    stream.seek(0)
    if not rest:
        return stream
    return io.BytesIO(PNG_SIGNATURE + replace(header, colour_type=PNG_GRAY).chunk() + rest)


def read_stored_tiff(path: Path, stream: BinaryIO) -> np.ndarray:
    """The values of a TIFF of one page, (H, W, S).

    Raises:
        InputError: it has several, or cannot be read.
    """
    planes = count_planes(stream)
    if planes > 1:
        raise InputError(f"it has {planes} pages: a single plane is needed, as its image is")
    directory = next(tiff_directories(stream))
    layout = check_segments(read_layout(directory), stream.seek(0, io.SEEK_END))
    return decode_samples(path, stream, directory, layout)
