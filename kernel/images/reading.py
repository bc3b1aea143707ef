"""Finding and reading images: PNG, TIFF or JPEG, gray or colour, of any depth, as (H, W, 3) uint8 BGR.

list_images(folder)          the images of a folder
read_image(path)             the pixels of one
read_image_shape(path)       its height and width, without decoding it
largest_image_shape(paths)   those of the largest of many
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from kernel.errors import InputError
from kernel.files import open_plain
from kernel.images.gray_levels import to_eight_bit
from kernel.images.jpeg import JPEG_SIGNATURE, read_jpeg, read_jpeg_shape
from kernel.images.listing import IMAGE_SUFFIXES, search_images
from kernel.images.png import PNG_SIGNATURE, read_png, read_png_shape
from kernel.images.tiff import count_planes, read_tiff, read_tiff_shape
from kernel.images.tiff_tags import TIFF_SIGNATURES
from kernel.log import LOG, printable_name


def list_images(folder: Path, *, twins: bool = False) -> list[Path]:
    """The images directly in a folder, sorted by name; the log says what else it holds.

    Args:
        folder: where to look.
        twins: take the first of images that differ only in their ending, with a word: an image is known by its name
            without it, and a run that nobody watches should not end for one.

    Raises:
        InputError: the folder does not exist or holds no image; or it holds twins, where these are not allowed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"no folder {folder}: give a folder that holds {', '.join(IMAGE_SUFFIXES)} files")
    content = search_images(folder)
    images = content.images
    if not images:
        allowed = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"no image in {folder}: {content.describe()}; put {allowed} files directly into it")
    content.warn_of_passed_over(folder)
    by_stem: dict[str, Path] = {}
    for path in images:
        other = by_stem.setdefault(path.stem, path)
        if other is path:
            continue
        names = f"{printable_name(other.name)} and {printable_name(path.name)}"
        same = f"two images in {folder} have the same name without ending: {names}"
        if not twins:
            raise InputError(f"{same}; the submission knows an image by that name: rename or remove one")
        LOG.warning("%s; the first one is used", same)
    return list(by_stem.values())


def read_image(path: Path, *, only_eight_bit: bool = False) -> np.ndarray:
    """One image, its gray repeated, its alpha dropped, of a stack the first page.

    Pixels are those that are stored, in their place: an orientation tag is ignored, since masks lie on these. 8 bit
    values stay as they are, fewer bits are spread over 0 to 255, other depths are mapped by `to_eight_bit`.

    Args:
        path: the file.
        only_eight_bit: refuse other depths, where values have a meaning that the mapping would lose.

    Returns:
        (H, W, 3) uint8, channels B, G, R.

    Raises:
        InputError: the file is missing, empty, truncated, damaged, of a refused depth, or of a kind whose pixels
            cannot be trusted to be right.
    """
    path = Path(path)
    pixels = read_first(path)
    if only_eight_bit and pixels.dtype != np.uint8:
        held = f"{printable_name(str(path))} holds {pixels.dtype} values"
        raise InputError(f"{held}, and 8 bits are expected: save it again as an 8 bit PNG")
    return shown_pixels(path, pixels)


def shown_pixels(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Pixels as stored, (H, W, C) of any real type, C 1 or 3 in the order B, G, R, as (H, W, 3) uint8."""
    warn_of_gaps(path, pixels)
    pixels = to_eight_bit(pixels)
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else np.ascontiguousarray(pixels)


def read_first(path: Path) -> np.ndarray:
    """The pixels of a file as stored, (H, W, C) of any real type, C 1 or 3, of a stack the first page.

    The log says what of the file is passed over.

    Raises:
        InputError: as `read_image`.
    """
    name = printable_name(path.name)
    with opened_image(path) as stream:
        pixels, orientation, pages = read_pixels(path, stream)
    if pages > 1:
        LOG.warning("%s has %d pages: only the first is used", name, pages)
    if orientation != 1:
        LOG.info("%s has the orientation tag %d, which is ignored: pixels are as stored", name, orientation)
    return pixels


def read_page(path: Path, page: int) -> np.ndarray:
    """As `read_first`, a TIFF's page by its number, from 0; the pages behind it are not looked at.

    Raises:
        InputError: as `read_image`.
    """
    with opened_image(path) as stream:
        return read_tiff(path, stream, page)[0]


@contextmanager
def opened_image(path: Path) -> Iterator[BinaryIO]:
    """The file of an image; what is wrong with it is told with its path, and what to do.

    Raises:
        InputError: it cannot be opened, or what is read of it is refused or does not fit into the memory.
    """
    name = printable_name(str(path))
    try:
        with open_plain(path) as stream:
            yield stream
    except OSError as error:
        raise InputError(
            f"cannot read the image {name}: {error.strerror}; check the path and its permissions"
        ) from error
    except InputError as error:
        raise InputError(
            f"cannot read the image {name}: {error}; replace it by an intact PNG, JPEG or TIFF file, of gray or RGB"
        ) from error
    except MemoryError as error:
        raise too_large(path) from error


def too_large(path: Path) -> InputError:
    """What is to be said of an image that does not fit into the memory."""
    return InputError(
        f"cannot read the image {printable_name(str(path))}: its pixels do not fit into the memory; replace it by a "
        "smaller one, or by an intact one if its size is wrong"
    )


def warn_of_gaps(path: Path, pixels: np.ndarray) -> None:
    """Say in the log how many values of an image are no numbers, or infinite: these have no gray level of their own."""
    if pixels.dtype.kind != "f":
        return
    gaps = pixels.size - int(np.isfinite(pixels).sum())
    if gaps == pixels.size:
        LOG.warning("%s holds no finite value: it is read as uniform gray", printable_name(path.name))
    elif gaps:
        LOG.warning(
            "%s: %d of %d values are not finite: not-a-number is read as the mean, infinity as the usual extremes",
            printable_name(path.name), gaps, pixels.size,
        )  # fmt: skip


def read_pixels(path: Path, stream: BinaryIO) -> tuple[np.ndarray, int, int]:
    """As `read_first`, from the open file; the file's orientation tag; how many pages it has.

    Raises:
        InputError: as `read_image`, without the path.
    """
    head = stream.read(8)
    stream.seek(0)
    if head.startswith(PNG_SIGNATURE):
        return *read_png(stream), 1
    if head.startswith(JPEG_SIGNATURE):
        return *read_jpeg(stream), 1
    if head.startswith(TIFF_SIGNATURES):
        return *read_tiff(path, stream), count_planes(stream)
    raise InputError(f"it is no PNG, TIFF or JPEG (it starts with {head!r})" if head else "the file is empty")


def read_image_shape(path: Path) -> tuple[int, int] | None:
    """The (H, W) of an image from its header or tags, without decoding it.

    None where these show already that `read_image` refuses it: more pixels than the file can hold, for one.
    """
    try:
        with open_plain(Path(path)) as stream:
            head = stream.read(8)
            stream.seek(0)
            if head.startswith(PNG_SIGNATURE):
                return read_png_shape(stream)
            if head.startswith(JPEG_SIGNATURE):
                return read_jpeg_shape(stream)
            if head.startswith(TIFF_SIGNATURES):
                return read_tiff_shape(stream)
    except (OSError, InputError) as error:
        LOG.debug("%s: %s", path, error)
    return None


def largest_image_shape(paths: Iterable[Path]) -> tuple[int, int]:
    """The (H, W) of the image with the most pixels; (1, 1) where none can be read."""
    shapes = [shape for shape in map(read_image_shape, paths) if shape is not None]
    return max(shapes, key=lambda shape: shape[0] * shape[1], default=(1, 1))
