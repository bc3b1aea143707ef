"""TIFF files: right pixels, or a refusal that says what is wrong or missing.

What a file holds is read from its tags here. Its strips and tiles are decoded by tifffile and imagecodecs where these
are installed, since they say what is damaged. Without them OpenCV does it, for those layouts only that it reads right,
and only after each strip was checked.
"""

from __future__ import annotations

import importlib.util
import io
import json
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kernel.data.decoding import decode_by_opencv
from kernel.data.jpeg import scan_jpeg
from kernel.data.lookup_tables import display_table
from kernel.data.tiff_segments import JPEG_COMPRESSION, SEGMENT_SIZES, check_segment
from kernel.data.tiff_tags import ORIENTATION_TAG, TiffDirectory, tiff_directories
from kernel.errors import InputError
from kernel.runtime.log import LOG

#: Values of PhotometricInterpretation that are read, and what others mean.
MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR = 0, 1, 2, 3, 6
OTHER_COLOURS = {
    4: "a transparency mask", 5: "CMYK colours, for print", 8: "CIELab colours", 9: "ICCLab colours",
    10: "ITULab colours", 32803: "a camera's raw mosaic", 32844: "LogL values", 32845: "LogLuv colours",
    34892: "a camera's raw values",
}  # fmt: skip
#: Values of Compression, as they are called.
COMPRESSIONS = {
    1: "no compression", 2: "CCITT RLE", 3: "CCITT fax 3", 4: "CCITT fax 4", 5: "LZW", 6: "old JPEG", 7: "JPEG",
    8: "Deflate", 32773: "PackBits", 32946: "Deflate", 33003: "JPEG 2000 over YCbCr", 33004: "JPEG 2000",
    33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34925: "LZMA", 34926: "zstd", 34933: "PNG", 34934: "JPEG XR",
    22610: "JPEG XR", 34927: "WebP", 50000: "zstd", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
#: What decodes to other colours than it should, or differs between decoders.
REFUSED_COMPRESSIONS = (6, 33003)
#: What tifffile decodes by itself, without imagecodecs.
TIFFFILE_COMPRESSIONS = (1, 8, 32773, 32946, 34925)
JPEG_2000 = (33003, 33004, 33005, 34712)
LERC = 34887
#: With more bits the wavelets of JPEG 2000 run over.
JPEG_2000_BITS = 24
#: Values of Predictor: none, of whole numbers, of floats.
NO_PREDICTOR, HORIZONTAL, FLOATING = 1, 2, 3
#: The compressions that a predictor goes with, for libtiff.
PREDICTED = (5, 8, 32946)
#: What bounds the pixels of compressed data, as a multiple of their bytes; other methods reach that on blank ones.
COMPRESSION_RATIOS = {1: 1, 5: 2048, 8: 1032, 32773: 64, 32946: 1032}
MOST_RATIO = 1 << 16
#: Values of SampleFormat: unsigned, signed, float, undefined (taken as unsigned).
UNSIGNED, SIGNED, FLOAT, UNDEFINED = 1, 2, 3, 4
#: What tifffile, imagecodecs and what they are made of raise over files that are damaged or beyond them.
DECODER_ERRORS = (
    ValueError, RuntimeError, LookupError, ArithmeticError, TypeError, AttributeError, AssertionError, ImportError,
    OSError, EOFError, struct.error, zlib.error, lzma.LZMAError,
)  # fmt: skip
#: Read from the file at a time; tifffile's own default would take as much as the image.
READ_BYTES = 1 << 24


@dataclass(frozen=True)
class TiffLayout:
    """How the pixels of a page are stored."""

    height: int
    width: int
    depth: int  # planes of a volume in one page
    samples: int
    bits: int  # of a sample
    sample_format: int
    photometric: int
    compression: int
    predictor: int
    planar: bool  # each sample has a plane of its own
    fill_order: int
    tile: tuple[int, int] | None  # (H, W)
    tile_depth: int  # planes of a volume in one tile
    rows_per_strip: int
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    subsampled: bool

    @property
    def colours(self) -> int:
        """Samples that are colours or gray; what comes after them is alpha, or no part of the picture."""
        return 3 if self.photometric in (RGB, YCBCR) else 1

    def describe(self) -> str:
        """For messages."""
        kind = {SIGNED: "signed ", FLOAT: "float "}.get(self.sample_format, "")
        how = COMPRESSIONS.get(self.compression, f"compression {self.compression}")
        return (
            f"{self.bits} bit {kind}samples, {self.samples} a pixel{' in planes' if self.planar else ''}, {how}"
            + (f", predictor {self.predictor}" if self.predictor != 1 else "")
            + (", tiles" if self.tile else "")
        )

    @property
    def segments(self) -> int:
        """How many strips or tiles there are."""
        planes = self.samples if self.planar else 1
        if not self.tile:
            return -(-self.height // self.rows_per_strip) * self.depth * planes
        height, width = self.tile
        return -(-self.height // height) * -(-self.width // width) * -(-self.depth // self.tile_depth) * planes

    def segment_sizes(self) -> Iterator[int]:
        """The bytes that each strip or tile holds, decompressed, in the file's order."""
        samples = 1 if self.planar else self.samples
        per_plane = -(-self.height // self.rows_per_strip)
        for number in range(self.segments):
            if self.tile:
                rows, width = self.tile_depth * self.tile[0], self.tile[1]
            else:
                left = self.height - number % per_plane * self.rows_per_strip
                rows, width = min(self.rows_per_strip, left), self.width
            yield rows * -(-width * samples * self.bits // 8)


def read_layout(directory: TiffDirectory) -> TiffLayout:
    """How a page is stored, from its tags.

    Raises:
        InputError: a tag is missing, or says what is not read; a strip or tile is missing, or not all in the file.
    """
    height, width = directory.value(257, 0), directory.value(256, 0)
    if height < 1 or width < 1:
        raise InputError("the TIFF is damaged: it has no size")
    photometric = directory.value(262, -1)
    if photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR):
        what = OTHER_COLOURS.get(photometric, f"colours of an unknown kind (PhotometricInterpretation {photometric})")
        raise InputError(f"the TIFF holds {what}: gray or RGB is needed")
    samples = directory.value(277, 1)
    bits, formats = directory.values(258) or (1,), directory.values(339) or (UNSIGNED,)
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise InputError(f"the samples of the TIFF differ: they have {bits} bits, and are of the formats {formats}")
    if formats[0] not in (UNSIGNED, SIGNED, FLOAT, UNDEFINED):
        raise InputError("the TIFF holds complex numbers: real ones are needed")
    if not 1 <= bits[0] <= 64 or samples < 1:
        raise InputError(f"the TIFF has {samples} samples of {bits[0]} bits: 1 to 64 bits are needed")
    planar = directory.value(284, 1)
    compression = directory.value(259, 1)
    if planar not in (1, 2) or compression in REFUSED_COMPRESSIONS:
        how = COMPRESSIONS.get(compression, "")
        raise InputError(f"the TIFF is stored in a way that is not read ({how}, PlanarConfiguration {planar})")
    if directory.value(254, 0) & 1:
        raise InputError("the first page of the TIFF is a reduced picture of another one")
    tile = (directory.value(323, 0), directory.value(322, 0)) if 322 in directory.fields else None
    if tile and min(tile) < 1:
        raise InputError("the TIFF is damaged: its tiles have no size")
    subsampling = directory.values(530) or (2, 2)
    layout = TiffLayout(
        height=height,
        width=width,
        depth=max(1, directory.value(32997, 1)),
        samples=samples,
        bits=bits[0],
        sample_format=formats[0],
        photometric=photometric,
        compression=compression,
        predictor=directory.value(317, 1),
        planar=planar == 2 and samples > 1,
        fill_order=directory.value(266, 1),
        tile=tile,
        tile_depth=max(1, directory.value(32998, 1)),
        rows_per_strip=min(height, max(1, directory.value(278, height))),
        offsets=directory.values(324) or directory.values(273),
        counts=directory.values(325) or directory.values(279),
        subsampled=photometric == YCBCR and subsampling != (1, 1),
    )
    if (
        samples < layout.colours
        or (photometric == YCBCR and (samples != 3 or layout.bits != 8 or layout.planar))
        or (layout.bits == 1 and samples > 1 and not layout.planar)  # programs disagree about how these are packed
        or (compression in JPEG_2000 and layout.bits > JPEG_2000_BITS)
        or (compression == JPEG_COMPRESSION and samples > layout.colours and not layout.planar)  # of what colours?
        or (compression == LERC and layout.predictor == FLOATING)
    ):
        raise InputError(f"the TIFF is stored in a way that is not read right ({layout.describe()})")
    return layout


def check_segments(layout: TiffLayout, file_size: int) -> TiffLayout:
    """The layout with all its strips or tiles, which must be there and lie in the file. Raises InputError otherwise."""
    segments = layout.segments
    offsets, counts = layout.offsets[:segments], layout.counts[:segments]
    if not layout.counts and layout.compression == 1 and segments == 1:
        counts = tuple(layout.segment_sizes())  # some programs leave out what follows from the size
    kind = "tiles" if layout.tile else "strips"
    if not len(offsets) == len(counts) == segments or min(offsets) < 1 or min(counts) < 1:
        raise InputError(f"the TIFF is damaged or sparse: {kind} are missing")
    if max(map(sum, zip(offsets, counts, strict=True))) > file_size:
        raise InputError(f"the TIFF is truncated: {kind} are missing at its end")
    ratio = COMPRESSION_RATIOS.get(layout.compression, MOST_RATIO)
    if not layout.subsampled:
        for size, count in zip(layout.segment_sizes(), counts, strict=True):
            if size > ratio * count:
                raise InputError(
                    f"the TIFF is damaged: {kind} are too short for {layout.width} x {layout.height} pixels"
                )
    return layout


def read_tiff_shape(stream: BinaryIO) -> tuple[int, int]:
    """The (H, W) of the first page, from its tags. Raises InputError as `read_tiff` does over these."""
    layout = read_layout(next(tiff_directories(stream)))
    check_segments(layout, stream.seek(0, io.SEEK_END))
    return layout.height, layout.width


def read_tiff(path: Path, stream: BinaryIO) -> tuple[np.ndarray, int]:
    """The pixels of the first page, (H, W, C) of any real type, C 1 or 3 in the order B, G, R; and its orientation tag.

    Samples beyond the colours are dropped; fewer than 8 bits are spread over 0 to 255; MinIsWhite is inverted; a
    palette gives its colours, but the stored values where it is a display table over gray.

    Raises:
        InputError: the file is damaged, or stored in a way that nothing that is installed reads right.
    """
    directory = next(tiff_directories(stream))
    layout = check_segments(read_layout(directory), stream.seek(0, io.SEEK_END))
    if layout.compression == JPEG_COMPRESSION:
        for offset, count in zip(layout.offsets, layout.counts, strict=False):
            stream.seek(offset)
            if scan_jpeg(stream.read(count)).precision < layout.bits:
                raise InputError(f"the TIFF is damaged: its JPEG data have fewer than {layout.bits} bits")
    by_tifffile = tifffile_reads(layout)
    if not by_tifffile and not opencv_reads(layout):
        raise InputError(
            f"the TIFF is stored in a way ({layout.describe()}) that needs the packages tifffile and imagecodecs, or "
            "that these do not read: install both (pip install tifffile imagecodecs), or save it without compression"
        )
    if not by_tifffile or not is_installed("imagecodecs"):
        for offset, count, size in zip(layout.offsets, layout.counts, layout.segment_sizes(), strict=False):
            stream.seek(offset)
            check_segment(layout.compression, stream.read(count), 0 if layout.subsampled else size)
    if by_tifffile:
        values = decode_by_tifffile(path, layout)
    else:
        values = decode_strips_by_opencv(stream, directory, layout)
    if layout.samples > layout.colours:
        LOG.debug("%s has %d samples a pixel: the first %d are used", path.name, layout.samples, layout.colours)
    table = read_palette(directory, layout.bits) if layout.photometric == PALETTE else None
    return to_gray_or_colour(values, layout, table), directory.value(ORIENTATION_TAG, 1)


def read_palette(directory: TiffDirectory, bits: int) -> np.ndarray:
    """The table (N, 3) of R, G, B, uint16, one for each value. Raises InputError where they are not as many."""
    field = directory.fields.get(320)
    if field is None or field.kind != 3 or bits > 16 or field.count != 3 << bits:
        raise InputError(f"the TIFF is damaged: its palette has not the entries that {bits} bits need")
    table = np.array(directory.values(320), np.uint16).reshape(3, -1).T
    return table if table.max() > 255 else table * 257  # some programs write 8 bits


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


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


def decode_by_tifffile(path: Path, layout: TiffLayout) -> np.ndarray:
    """The samples of the first page as (H, W, S), as stored. Raises InputError where they cannot be decoded."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            values = page.asarray(maxworkers=1, buffersize=READ_BYTES, squeeze=False)
    except DECODER_ERRORS as error:
        raise InputError(
            f"the TIFF is damaged, or of an uncommon kind ({layout.describe()}): {str(error) or type(error).__name__}"
        ) from error
    planes, samples = (layout.samples, 1) if layout.planar else (1, layout.samples)
    expected = (planes, layout.depth, layout.height, layout.width, samples)
    if values.shape != expected:
        raise InputError(f"the TIFF is of an uncommon kind ({layout.describe()}): its pixels are {values.shape}")
    plane = values[:, 0]
    return np.moveaxis(plane[..., 0], 0, -1) if layout.planar else plane[0]


def opencv_reads(layout: TiffLayout) -> bool:
    """Whether OpenCV reads a layout right, as tests have shown, and damage can be told."""
    plain = layout.sample_format in (UNSIGNED, UNDEFINED) and layout.bits in (8, 16)
    predictor = layout.predictor == NO_PREDICTOR or (layout.predictor == HORIZONTAL and layout.compression in PREDICTED)
    return (
        layout.compression in (*SEGMENT_SIZES, JPEG_COMPRESSION)
        and (plain or (layout.sample_format == FLOAT and layout.bits in (32, 64)))
        and predictor
        and (layout.samples == layout.colours or (layout.samples == 4 and layout.colours == 3 and plain))
        and not layout.planar
        and layout.depth == layout.fill_order == 1
    )


def decode_strips_by_opencv(stream: BinaryIO, directory: TiffDirectory, layout: TiffLayout) -> np.ndarray:
    """The samples of the first page as (H, W, S), as stored. Raises InputError where they cannot be decoded."""
    stream.seek(0)
    content = bytearray(stream.read())
    patch_tag(content, directory, ORIENTATION_TAG, 1)
    if layout.photometric in (MIN_IS_WHITE, PALETTE):
        patch_tag(content, directory, 262, MIN_IS_BLACK)
    patch_tag(content, directory, 338, 0)  # an alpha of a known kind would be multiplied in
    values = decode_by_opencv(content)
    if values is None or values.shape[:2] != (layout.height, layout.width):
        raise InputError(f"the TIFF is damaged, or of a kind that OpenCV does not read ({layout.describe()})")
    values = values[..., None] if values.ndim == 2 else values
    return values[..., [2, 1, 0]] if layout.colours == 3 else values


def patch_tag(content: bytearray, directory: TiffDirectory, tag: int, value: int) -> None:
    """Write another number into the first value of a tag, where it is there."""
    field = directory.fields.get(tag)
    if field is not None:
        struct.pack_into(directory.order + ("H" if field.kind == 3 else "I"), content, field.at, value)


def to_gray_or_colour(values: np.ndarray, layout: TiffLayout, table: np.ndarray | None) -> np.ndarray:
    """Samples (H, W, S) as gray or B, G, R, (H, W, 1) or (H, W, 3), see `read_tiff`; `table` (N, 3) is a palette."""
    values = values[..., : layout.colours]
    if values.dtype == bool:
        values = values.view(np.uint8)
    if table is not None:
        direction = display_table(table)
        if not direction:
            if layout.compression == JPEG_COMPRESSION:
                raise InputError("the TIFF is damaged: JPEG mixes up the entries of its palette")
            return (table[:, ::-1] >> 8).astype(np.uint8)[values[..., 0]]
        return values if direction > 0 else inverted(values)
    if layout.bits < 8:
        most = (1 << layout.bits) - 1
        values = (np.arange(most + 1) * 255 / most).round().astype(np.uint8)[values]
    if layout.photometric == MIN_IS_WHITE:
        values = inverted(values)
    return values[..., ::-1]


def inverted(values: np.ndarray) -> np.ndarray:
    """Dark to bright. What is not of 8 bits is mapped linearly afterwards, so that its zero does not matter."""
    if values.dtype == np.uint8:
        return ~values
    if values.dtype.kind == "u":
        return values.max() - values
    return ~values if values.dtype.kind == "i" else -values


def count_planes(stream: BinaryIO) -> int:
    """How many pictures a TIFF holds: its pages, but those that are reduced, or what the first one's text tells of.

    Fiji and tifffile store a stack in one page where they can, MetaMorph always. What is behind a damaged page does
    not count.
    """
    pages = planes = 0
    try:
        for number, directory in enumerate(tiff_directories(stream)):
            pages += not directory.value(254, 0) & 1
            if number == 0:
                planes = stored_planes(directory)
    except InputError as error:
        LOG.debug("counting pages: %s", error)
    return max(pages, planes)


def stored_planes(directory: TiffDirectory) -> int:
    """How many pictures follow each other in the one page of a directory."""
    text = directory.text(270)
    planes = max(1, directory.value(32997, 1))
    if 33629 in directory.fields:  # MetaMorph's UIC2
        planes = max(planes, directory.fields[33629].count)
    if text.startswith("ImageJ="):
        found = re.search(r"^images=(\d+)", text, re.MULTILINE)
        planes = max(planes, int(found.group(1)) if found else 1)
    if text.startswith('{"shape"'):
        try:
            shape = json.loads(text)["shape"]
        except (ValueError, KeyError):
            return planes
        page = directory.value(256, 1) * directory.value(257, 1) * directory.value(277, 1)
        planes = max(planes, int(np.prod(shape, dtype=np.float64) / page))
    return planes
