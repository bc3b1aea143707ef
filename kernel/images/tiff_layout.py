"""How the pixels of a TIFF's page are stored, by its tags; what is not read right is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kernel.errors import InputError
from kernel.images.tiff_segments import JPEG_COMPRESSION
from kernel.images.tiff_tags import TiffDirectory, TiffTag

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
        """In words, for messages."""
        number = {SIGNED: "signed ", FLOAT: "float "}.get(self.sample_format, "")
        how = COMPRESSIONS.get(self.compression, f"compression {self.compression}")
        return (
            f"{self.bits} bit {number}samples, {self.samples} a pixel{' in planes' if self.planar else ''}, {how}"
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
    """How a page is stored, from its tags; its strips or tiles are not looked at.

    Raises:
        InputError: a tag is missing, or says what is not read.
    """
    height, width = directory.value(TiffTag.IMAGE_LENGTH, 0), directory.value(TiffTag.IMAGE_WIDTH, 0)
    if height < 1 or width < 1:
        raise InputError("the TIFF is damaged: it has no size")
    photometric = directory.value(TiffTag.PHOTOMETRIC_INTERPRETATION, -1)
    if photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, YCBCR):
        what = OTHER_COLOURS.get(photometric, f"colours of an unknown kind (PhotometricInterpretation {photometric})")
        raise InputError(f"the TIFF holds {what}: gray or RGB is needed")
    samples, bits, sample_format = read_samples(directory)
    planar, compression = directory.value(TiffTag.PLANAR_CONFIGURATION, 1), directory.value(TiffTag.COMPRESSION, 1)
    if planar not in (1, 2) or compression in REFUSED_COMPRESSIONS:
        how = COMPRESSIONS.get(compression, "")
        raise InputError(f"the TIFF is stored in a way that is not read ({how}, PlanarConfiguration {planar})")
    if directory.value(TiffTag.NEW_SUBFILE_TYPE, 0) & 1:
        raise InputError("the first page of the TIFF is a reduced picture of another one")
    layout = TiffLayout(
        height=height,
        width=width,
        depth=max(1, directory.value(TiffTag.IMAGE_DEPTH, 1)),
        samples=samples,
        bits=bits,
        sample_format=sample_format,
        photometric=photometric,
        compression=compression,
        predictor=directory.value(TiffTag.PREDICTOR, 1),
        planar=planar == 2 and samples > 1,
        fill_order=directory.value(TiffTag.FILL_ORDER, 1),
        tile=read_tile_shape(directory),
        tile_depth=max(1, directory.value(TiffTag.TILE_DEPTH, 1)),
        rows_per_strip=min(height, max(1, directory.value(TiffTag.ROWS_PER_STRIP, height))),
        offsets=directory.values(TiffTag.TILE_OFFSETS) or directory.values(TiffTag.STRIP_OFFSETS),
        counts=directory.values(TiffTag.TILE_BYTE_COUNTS) or directory.values(TiffTag.STRIP_BYTE_COUNTS),
        subsampled=photometric == YCBCR and (directory.values(TiffTag.YCBCR_SUB_SAMPLING) or (2, 2)) != (1, 1),
    )
    if decoders_disagree(layout):
        raise InputError(f"the TIFF is stored in a way that is not read right ({layout.describe()})")
    return layout


def read_samples(directory: TiffDirectory) -> tuple[int, int, int]:
    """The samples of a pixel, the bits of each, and their SampleFormat.

    Raises:
        InputError: the samples differ from each other, or are no real numbers of 1 to 64 bits.
    """
    samples = directory.value(TiffTag.SAMPLES_PER_PIXEL, 1)
    bits = directory.values(TiffTag.BITS_PER_SAMPLE) or (1,)
    formats = directory.values(TiffTag.SAMPLE_FORMAT) or (UNSIGNED,)
    if len(set(bits)) > 1 or len(set(formats)) > 1:
        raise InputError(f"the samples of the TIFF differ: they have {bits} bits, and are of the formats {formats}")
    if formats[0] not in (UNSIGNED, SIGNED, FLOAT, UNDEFINED):
        raise InputError("the TIFF holds complex numbers: real ones are needed")
    if not 1 <= bits[0] <= 64 or samples < 1:
        raise InputError(f"the TIFF has {samples} samples of {bits[0]} bits: 1 to 64 bits are needed")
    return samples, bits[0], formats[0]


def read_tile_shape(directory: TiffDirectory) -> tuple[int, int] | None:
    """The (H, W) of a tile; None where the page is stored in strips.

    Raises:
        InputError: a side is not positive.
    """
    if TiffTag.TILE_WIDTH not in directory.fields:
        return None
    tile = (directory.value(TiffTag.TILE_LENGTH, 0), directory.value(TiffTag.TILE_WIDTH, 0))
    if min(tile) < 1:
        raise InputError("the TIFF is damaged: its tiles have no size")
    return tile


def decoders_disagree(layout: TiffLayout) -> bool:
    """Whether the tags contradict each other, or decoders give different pixels for what they say."""
    compression, samples = layout.compression, layout.samples
    return (
        samples < layout.colours
        or (layout.photometric == YCBCR and (samples != 3 or layout.bits != 8 or layout.planar))
        or (layout.bits == 1 and samples > 1 and not layout.planar)  # programs disagree about how these are packed
        or (compression in JPEG_2000 and layout.bits > JPEG_2000_BITS)
        or (compression == JPEG_COMPRESSION and samples > layout.colours and not layout.planar)  # of what colours?
        or (compression == LERC and layout.predictor == FLOATING)
    )


def check_segments(layout: TiffLayout, file_size: int) -> TiffLayout:
    """Look whether all strips or tiles of a page are there, and lie in its file of so many bytes.

    Returns:
        the same layout.

    Raises:
        InputError: one is missing, or beyond the file's end, or too short for its pixels.
    """
    segments = layout.segments
    offsets, counts = layout.offsets[:segments], layout.counts[:segments]
    if not layout.counts and layout.compression == 1 and segments == 1:
        counts = tuple(layout.segment_sizes())  # some programs leave out what follows from the size
    if layout.compression == 1 and not layout.subsampled and len(counts) == segments:
        # Some programs count more than the pixels take, beyond the file's end too.
        counts = tuple(map(min, counts, layout.segment_sizes()))
    segment_name = "tiles" if layout.tile else "strips"
    if not len(offsets) == len(counts) == segments or min(offsets) < 1 or min(counts) < 1:
        raise InputError(f"the TIFF is damaged or sparse: {segment_name} are missing")
    if max(map(sum, zip(offsets, counts, strict=True))) > file_size:
        raise InputError(f"the TIFF is truncated: {segment_name} are missing at its end")
    ratio = COMPRESSION_RATIOS.get(layout.compression, MOST_RATIO)
    if not layout.subsampled:
        for size, count in zip(layout.segment_sizes(), counts, strict=True):
            if size > ratio * count:
                raise InputError(
                    f"the TIFF is damaged: {segment_name} are too short for {layout.width} x {layout.height} pixels"
                )
    return layout
