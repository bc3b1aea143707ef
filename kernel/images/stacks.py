"""Image files of any number of dimensions, by their axes, with the size of their pixels.

TIFF is opened by tifffile where it is installed, OME-Zarr by zarr, ND2, CZI and LIF by bioio's readers. What has one
plane alone, and TIFF without tifffile, is read as every image is (`kernel.images.reading`).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from kernel.errors import InputError
from kernel.images.decoding import DECODER_ERRORS, is_installed
from kernel.images.ome_sets import own_part
from kernel.images.pixel_size import (
    PixelSize,
    imagej_pixel_size,
    ome_channel_names,
    ome_pixel_size,
    pixel_size,
    tags_pixel_size,
)
from kernel.images.planes import PlaneChoice, choose_planes
from kernel.images.reading import read_first, read_page, shown_pixels, too_large
from kernel.images.tiff import inverted
from kernel.images.tiff_layout import MIN_IS_WHITE, RGB, YCBCR
from kernel.images.tiff_tags import TIFF_SIGNATURES
from kernel.log import LOG

#: Formats that bioio reads: the ending, and the package of its reader.
BIOIO_READERS = {".nd2": "bioio-nd2", ".czi": "bioio-czi", ".lif": "bioio-lif"}
ZARR_SUFFIX = ".zarr"
#: Endings of images beside those that are always read.
STACK_SUFFIXES = (ZARR_SUFFIX, *BIOIO_READERS)
#: What shows that a folder is one of OME-Zarr.
ZARR_FILES = ("zarr.json", ".zgroup", ".zattrs")
#: Axes of one plane.
PLANE_AXES = "YXS"


@dataclass(frozen=True)
class Stack:
    """An opened image.

    Attributes:
        axes: a letter for each axis but rows, columns and colours.
        sizes: of these axes.
        read: gives a plane by its place along each, (H, W, C) as stored, C 1 or 3 in the order B, G, R.
        pixel: the size of a pixel, where the file tells it.
        channel_names: where the file tells them.
        told: what of the file is left out from the start, or read otherwise than as pages; empty: nothing.
        plane_shape: H, W of each plane, where the file's axes tell it; its pages may be of other axes.
    """

    axes: str
    sizes: tuple[int, ...]
    read: Callable[[tuple[int, ...]], np.ndarray]
    pixel: PixelSize | None = None
    channel_names: tuple[str, ...] = ()
    told: str = ""
    plane_shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Picture:
    """What is segmented.

    Attributes:
        image_bgr: (H, W, 3) uint8, as members see it.
        stored: (H, W, C) as the file has it, C 1 or 3 in the order B, G, R: only these values compare between images.
        pixel: the size of its pixels, where it is known.
        told: what was taken by default.
        is_whole: whether other programs that open its file see the same: it holds no other planes.
    """

    image_bgr: np.ndarray
    stored: np.ndarray
    pixel: PixelSize | None
    told: str
    is_whole: bool


def is_zarr(path: Path) -> bool:
    """Whether a path is a folder of OME-Zarr."""
    return path.is_dir() and any((path / name).is_file() for name in ZARR_FILES)


def read_picture(path: Path, choice: PlaneChoice, frame: int | None = None) -> Picture:
    """Read what is asked for of an image.

    Args:
        path: of its file, or of its folder for OME-Zarr.
        choice: what is asked for.
        frame: which one, where all are asked for.

    Raises:
        InputError: it cannot be read, or has not what is asked for.
    """
    stack = open_stack(path, choice)
    try:
        planes = choose_planes(stack.axes, stack.sizes, choice, stack.channel_names, frame)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    told = "; ".join(filter(None, (stack.told, planes.told)))
    first, *others = planes.places
    try:
        pixels = stack.read(first)
        for place in others:
            pixels = np.fmax(pixels, stack.read(place))
        is_whole = not stack.axes and not stack.told
        return Picture(shown_pixels(path, pixels), pixels, stack.pixel, told, is_whole)
    except MemoryError as error:
        raise too_large(path) from error


def open_stack(path: Path, choice: PlaneChoice) -> Stack:
    """Open an image; nothing of its pixels is read yet. The last one stays open, since many frames may be of one.

    Raises:
        InputError: it needs a package that is not installed, or cannot be opened.
    """
    try:
        facts = path.stat()
    except OSError:
        return plain_image(path)  # its reader tells why
    return opened(path.absolute(), (facts.st_mtime_ns, facts.st_size), choice)


@lru_cache(maxsize=1)
def opened(path: Path, state: tuple[int, int], choice: PlaneChoice) -> Stack:
    """`open_stack` of a file in this state."""
    if path.is_dir():
        return open_zarr(path)
    if path.suffix.lower() in BIOIO_READERS:
        return open_by_bioio(path, BIOIO_READERS[path.suffix.lower()])
    if not is_tiff(path):
        return plain_image(path) if choice.channel is None else plain_samples(path)
    if is_installed("tifffile"):
        return open_tiff(path, choice)
    hint = "axes and pixel sizes of TIFF files are not read, for tifffile is not installed (pip install tifffile)"
    if choice != PlaneChoice():
        raise InputError(f"{path}: {hint}")
    return plain_image(path, told=hint)


def plain_image(path: Path, pixel: PixelSize | None = None, told: str = "") -> Stack:
    """An image of one plane, or of which the first page is taken."""
    return Stack("", (), lambda place: read_first(path), pixel, told=told)


def plain_samples(path: Path) -> Stack:
    """The same by its channels, red, green and blue; it is read at once, for only its pixels tell whether it has them.

    Raises:
        InputError: it cannot be read.
    """
    pixels = read_first(path)
    if pixels.shape[2] == 1:
        return Stack("", (), lambda place: pixels)
    return Stack("C", (3,), lambda place: pixels[..., 2 - place[0], None])


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) in TIFF_SIGNATURES
    except OSError:
        return False


# --- TIFF ---


def open_tiff(path: Path, choice: PlaneChoice) -> Stack:
    """A TIFF, by what tifffile makes of its pages and texts; one that it cannot make out is read as a plain image.

    Raises:
        InputError: no two of its axes are those of a plane.
    """
    try:
        with opened_alone(path) as (file, xml, told):
            series = file.series[0]
            axes, shape = tiff_axes(series), tuple(map(int, series.shape))
            pixel, names = tiff_pixel_size(file, xml), tiff_channel_names(file)
            if len(file.series) > 1:
                told = "; ".join(filter(None, (told, f"the first of its {len(file.series)} images is taken")))
            order = [place for place, letter in enumerate(axes) if letter not in PLANE_AXES]
            numbers = page_numbers(series)
            values = StoredValues(
                path, axes, shape, np.dtype(series.dtype).newbyteorder(file.byteorder), series.dataoffset,
                int(series.keyframe.photometric) == MIN_IS_WHITE,
            )  # fmt: skip
    except DECODER_ERRORS as error:
        LOG.debug("%s: tifffile: %s", path, error)
        return plain_image(path)
    if axes.count("Y") != 1 or axes.count("X") != 1:
        raise InputError(f"{path}: its axes are {axes}, and one should be Y and one X: write it again with such axes")
    in_planes = axes.replace("S", "").endswith("YX")  # else they lie across pages, which are of other axes
    letters = "".join(axes[place] for place in order)
    counts = tuple(shape[place] for place in order)  # of planes along each axis
    pages = None
    if numbers is not None and len(numbers) == math.prod(counts) and in_planes:
        pages = np.array(numbers, object).reshape(counts)
    of_samples = choice.channel is not None and "C" not in letters and "S" in axes and shape[axes.index("S")] > 1
    if of_samples:
        order, letters = [*order, axes.index("S")], letters + "C"
    sizes = tuple(shape[place] for place in order)
    if math.prod(sizes) == 1 and in_planes:
        return plain_image(path, pixel, told)
    if not in_planes:
        told = "; ".join(filter(None, (told, f"its axes are {axes}: Y is taken as rows, X as columns")))

    def read(place: tuple[int, ...]) -> np.ndarray:
        if pages is None:
            return values.read(order, place)
        page = pages[place[: len(counts)]]
        if page is None:
            where = ", ".join(f"{axis} {at}" for axis, at in zip(letters, place, strict=True))
            raise InputError(
                f"{path} lacks the plane at {where}, counted from 0: its text tells of {pages.size} planes, and "
                f"{list(pages.flat).count(None)} are missing; copy the file again where it was cut, or choose "
                "another plane by --channel, --z and --frame"
            )
        return values.read(order, place) if of_samples else read_page(path, page)

    return Stack(letters, sizes, read, pixel, names, told, (shape[axes.index("Y")], shape[axes.index("X")]))


@contextmanager
def opened_alone(path: Path) -> Iterator[tuple[Any, str | None, str]]:
    """A TIFF by tifffile, with its OME-XML, if any, and what is left out of it.

    Where its metadata tell of a set of files, tifffile would give what all of them hold, the same for each: it is told
    of this file's planes alone.
    """
    import tifffile

    with tifffile.TiffFile(path) as file:
        xml = file.ome_metadata
        part = own_part(xml, path.name, len(file.pages)) if xml else None
        if part is None and not any(series.is_multifile for series in file.series):
            yield file, xml, ""
            return
    flags: dict[str, Any] = {"is_mmstack": False, "is_ndtiff": False}  # these look for other files, too
    if part is not None:
        flags |= {"omexml": part.text} if part.has_axes else {"is_ome": False}
    with tifffile.TiffFile(path, **flags) as file:
        yield file, part.text if part is not None else xml, "of the set of files that it belongs to, it alone is read"


def tiff_axes(series: Any) -> str:
    """A letter for each axis of a series, by its text; samples that a page shows as colours are no channels."""
    axes, page = series.axes.upper(), series.keyframe
    in_colours = page.axes.endswith("S") and int(page.photometric) in (RGB, YCBCR)
    return axes[:-1] + "S" if in_colours and axes.endswith("C") else axes


def page_numbers(series: Any) -> list[int | None] | None:
    """The numbers of a series' pages in its file; None where its planes are no pages of their own.

    Planes that a text tells of, and that the file lacks, have None for a number: tifffile would show them black.
    """
    numbers: list[int | None] = []
    for page in series.pages:
        if page is not None and not isinstance(page.index, int):
            return None
        numbers.append(None if page is None else page.index)
    return numbers


@dataclass(frozen=True)
class StoredValues:
    """A TIFF's values of planes that do not lie in pages of their own: behind each other, as samples, across pages.

    Attributes:
        path: of the file.
        axes, shape, dtype: of its first series, by tifffile.
        offset: where in the file they begin; None where they are not plain numbers behind each other.
        zero_is_white: whether dark and bright are the other way round.
    """

    path: Path
    axes: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None
    zero_is_white: bool

    def read(self, order: Sequence[int], place: tuple[int, ...]) -> np.ndarray:
        """The plane at a place, (H, W, C), C 1 or 3 in the order B, G, R.

        Args:
            order: the axes that are not the plane's own, by their number.
            place: along each of these.

        Raises:
            InputError: it cannot be read.
        """
        where: list[Any] = [slice(None)] * len(self.axes)
        for axis, at in zip(order, place, strict=True):
            where[axis] = at
        try:
            plane = np.asarray(self.whole()[tuple(where)])
        except DECODER_ERRORS as error:
            raise InputError(f"cannot read the image {self.path}: {error}; replace it by an intact file") from error
        plane = plane.astype(plane.dtype.newbyteorder("="))
        left = [letter for axis, letter in enumerate(self.axes) if axis not in order]
        plane = plane.transpose([left.index(letter) for letter in PLANE_AXES if letter in left])
        if "S" not in left:
            plane = plane[..., None]
        else:
            plane = plane[..., 2::-1] if plane.shape[-1] > 2 else plane[..., :1]
        return inverted(plane) if self.zero_is_white else plane

    def whole(self) -> np.ndarray:
        """All values, of which only what is asked for is read where that can be."""
        if self.offset is not None:
            return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
        with opened_alone(self.path) as (file, _, _):
            return file.series[0].asarray(maxworkers=1)


def tiff_pixel_size(file: Any, xml: str | None) -> PixelSize | None:
    """What the OME-XML, the texts and tags of a file that tifffile has opened tell; the texts come first."""
    tags = file.pages.first.tags
    y, x = (per_unit(tags.get(name)) for name in ("YResolution", "XResolution"))
    if xml:
        told = ome_pixel_size(xml)
        if told is not None:
            return told
    if file.is_imagej:
        return imagej_pixel_size(str((file.imagej_metadata or {}).get("unit", "")), y, x)
    unit = tags.get("ResolutionUnit")
    return tags_pixel_size(2 if unit is None else int(unit.value), y, x)


def tiff_channel_names(file: Any) -> tuple[str, ...]:
    """The names of the channels of a file that tifffile has opened; empty where it tells none."""
    return ome_channel_names(file.ome_metadata) if file.is_ome and file.ome_metadata else ()


def per_unit(tag: Any) -> float | None:
    """The number of a resolution tag, a fraction; None without a tag or number."""
    if tag is None or not isinstance(tag.value, tuple) or len(tag.value) != 2 or not tag.value[1]:
        return None
    return tag.value[0] / tag.value[1]


# --- OME-Zarr ---


def open_zarr(path: Path) -> Stack:
    """An image of OME-Zarr, at its full resolution.

    Raises:
        InputError: zarr is not installed; it is a plate, or no image.
    """
    if not is_installed("zarr"):
        raise InputError(f"{path}: OME-Zarr needs the package zarr, which is not installed: pip install zarr")
    import zarr

    try:
        group = zarr.open_group(str(path), mode="r")
        told: Any = dict(group.attrs)
        told = told.get("ome", told)
        if "plate" in told or "well" in told:
            raise InputError(f"{path} is a plate of many images: name the folders of its fields, as {path.name}/A/1/0")
        if "multiscales" not in told:
            if "0" not in group or not isinstance(group["0"], zarr.Group):
                raise InputError(f"{path} is Zarr, but no image of OME-Zarr: its metadata has no multiscales")
            inner = open_zarr(path / "0")  # as bioformats2raw lays several images out
            return replace(inner, told="; ".join(filter(None, ("its first image, 0, is taken", inner.told))))
        scales = told["multiscales"][0]
        largest = scales["datasets"][0]
        array: Any = group[largest["path"]]
        if oddity := zarr_oddity(array):
            raise InputError(f"{path} {oddity}")
        axes = zarr_axes(scales.get("axes"), array.ndim)
        pixel = zarr_pixel_size(scales, largest, axes)
        channels = [channel.get("label") for channel in told.get("omero", {}).get("channels", [])]
    except DECODER_ERRORS as error:
        raise InputError(f"cannot read {path} as OME-Zarr: {error or type(error).__name__}") from error
    letters = "".join(letter for letter in axes if letter not in PLANE_AXES)
    if not axes.endswith("YX") or axes.count("Y") != 1 or axes.count("X") != 1:
        raise InputError(f"{path}: its axes are {axes}, and its last two should be Y and X")

    def read(place: tuple[int, ...]) -> np.ndarray:
        try:
            return np.asarray(array[(*place, slice(None), slice(None))])[..., None]
        except DECODER_ERRORS as error:
            raise InputError(f"cannot read {path}: {error}; copy the whole folder again") from error

    names = tuple(map(str, channels)) if channels and all(channels) else ()
    return Stack(letters, tuple(map(int, array.shape[:-2])), read, pixel, names)


def zarr_oddity(array: Any) -> str:
    """What makes the pixels of a Zarr array none to read, for a message that begins with its place; empty if nothing.

    Objects are none, and reading what was pickled runs the code of whoever wrote it; of no chunk is anything read here.
    """
    if array.dtype.kind not in "biuf":
        return f"holds {array.dtype} where pixels should be: allowed are real numbers"
    told = array.metadata.to_dict()
    if "pickle" in repr([told.get(name) for name in ("filters", "compressor", "codecs")]).lower():
        return "holds pickles, which run code where they are read: it is refused; write its pixels with another codec"
    return ""


def zarr_axes(told: Any, count: int) -> str:
    """A letter for each of `count` axes, by OME-Zarr's metadata of any version."""
    if told is None:  # before 0.3
        return "TCZYX"[-count:]
    letters = {"time": "T", "channel": "C", "t": "T", "c": "C", "z": "Z", "y": "Y", "x": "X"}
    names = [axis if isinstance(axis, str) else axis["name"] for axis in told]
    types = ["" if isinstance(axis, str) else axis.get("type", "") for axis in told]
    return "".join(
        letters.get(kind) or letters.get(name.lower()) or "Q" for name, kind in zip(names, types, strict=True)
    )


def zarr_pixel_size(scales: Any, largest: Any, axes: str) -> PixelSize | None:
    """What the metadata of OME-Zarr tell: the product of the scales of the array and of all, with the axes' units."""
    units = [axis.get("unit", "") if isinstance(axis, dict) else "" for axis in scales.get("axes") or []]
    if len(units) != len(axes):
        return None
    factors = np.ones(len(axes))
    for transformation in (*largest.get("coordinateTransformations", ()), *scales.get("coordinateTransformations", ())):
        if transformation.get("type") == "scale":
            factors = factors * np.asarray(transformation["scale"], float)
    y, x = axes.index("Y"), axes.index("X")
    return pixel_size(factors[y], factors[x], units[y], units[x], "OME-Zarr")


# --- ND2, CZI, LIF ---


def open_by_bioio(path: Path, package: str) -> Stack:
    """An image of a microscope's own format.

    Raises:
        InputError: the reader is not installed, or cannot read the file.
    """
    module = package.replace("-", "_")
    if not is_installed("bioio") or not is_installed(module):
        raise InputError(
            f"{path}: files of {path.suffix} are read by bioio, which is not installed: pip install bioio {package}"
        )
    from bioio import BioImage
    from bioio_base.exceptions import UnsupportedFileFormatError

    failures = (*DECODER_ERRORS, UnsupportedFileFormatError)
    try:
        image = BioImage(path, reader=importlib.import_module(module).Reader)
        order = image.dims.order
        letters = "".join(letter for letter in order if letter not in PLANE_AXES)
        sizes = tuple(int(image.dims[letter][0]) for letter in letters)
        sides = image.physical_pixel_sizes
        names = tuple(str(name) for name in image.channel_names or ())
        scenes = len(image.scenes)
    except failures as error:
        raise InputError(f"cannot read {path} by {package}: {error or type(error).__name__}") from error
    told = f"the first of its {scenes} scenes is taken" if scenes > 1 else ""
    pixel = pixel_size(sides.Y, sides.X, "um", "um", package)

    def read(place: tuple[int, ...]) -> np.ndarray:
        try:
            plane = image.get_image_dask_data(
                "YXS" if "S" in order else "YX", **dict(zip(letters, place, strict=True))
            ).compute()
        except failures as error:
            raise InputError(f"cannot read {path} by {package}: {error}") from error
        return plane[..., 2::-1] if "S" in order else plane[..., None]

    return Stack(letters, sizes, read, pixel, names, told)
