"""Finding and reading images: PNG, TIFF or JPEG, gray or colour, of any depth, as (H, W, 3) uint8 BGR."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from kernel.data.folders import IMAGE_SUFFIXES, search_images
from kernel.errors import InputError
from kernel.runtime.log import LOG

#: What images of other depths than 8 bits are mapped to: the competition's mean, and a usual standard deviation there.
GRAY_MEAN = 128.0
GRAY_STD = 12.0
#: Between these the two are measured, so that hot pixels do not count.
USUAL_PERCENTILES = (0.5, 99.5)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_JPEG_SIGNATURE = b"\xff\xd8\xff"


def list_images(folder: Path) -> list[Path]:
    """The images directly in a folder, sorted by name; what else it holds is passed over and told in the log.

    Raises:
        InputError: the folder does not exist or holds no image, or two images differ only in their ending
            (an image is known by its name without it).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"No folder {folder}: give a folder that holds {', '.join(IMAGE_SUFFIXES)} files.")
    content = search_images(folder)
    images = content.images
    if not images:
        allowed = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"No image in {folder}: {content.describe()}. Put {allowed} files directly into it.")
    content.warn_of_passed_over(folder)
    by_stem: dict[str, Path] = {}
    for path in images:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise InputError(
                f"Two images in {folder} have the same name without ending: {other.name} and {path.name}. "
                "The submission knows an image by that name: rename or remove one."
            )
    return images


def read_image(path: Path, *, only_eight_bit: bool = False) -> np.ndarray:
    """One image as (H, W, 3) uint8, channels B, G, R: gray is repeated, alpha dropped, of a stack the first page read.

    8 bit values stay as they are. Other depths are mapped linearly to the gray levels of the competition's images,
    mean 128 and standard deviation 12, measured between the 0.5th and 99.5th percentile: cameras of 10, 12 and 14
    bits store their values in 16, so dividing by the depth's full range would leave most images nearly black, and a
    stretch from the darkest to the brightest value gives a contrast that no member was trained on. The channels share
    one mapping, which keeps colours; a constant image becomes 128; not-a-number counts as the mean.

    Args:
        path: the file.
        only_eight_bit: refuse other depths, where values have a meaning that the mapping would lose.

    Raises:
        InputError: the file is missing, empty, truncated, no image that OpenCV reads, or of a refused depth.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"Cannot read the image {path}: {error.strerror}. Check the path and its permissions."
        ) from error
    flaw = _image_flaw(content)
    if flaw:
        raise InputError(f"Cannot read the image {path}: {flaw}. Replace it by an intact PNG, TIFF or JPEG file.")
    # IMREAD_UNCHANGED ignores a JPEG's orientation tag on purpose: masks lie on the pixels as they are stored.
    pixels = _decoded(np.frombuffer(content, np.uint8))
    if pixels is None or pixels.size == 0:
        raise InputError(
            f"Cannot read the image {path}: OpenCV cannot decode it, it is damaged or of an uncommon kind. "
            "Save it again as an 8 or 16 bit PNG or TIFF."
        )
    if content.startswith(_TIFF_SIGNATURES):
        pages = _tiff_pages(content)
        if pages > 1:
            LOG.warning("%s has %d pages: only the first is used", path.name, pages)
    if only_eight_bit and pixels.dtype != np.uint8:
        raise InputError(f"{path} holds {pixels.dtype} values, and 8 bits are expected: save it again as an 8 bit PNG")
    return _three_channels(_eight_bit(pixels))


def read_image_shape(path: Path) -> tuple[int, int] | None:
    """The (H, W) of an image, of a PNG from its header alone; None for one that `read_image` refuses."""
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(24)
            if content.startswith(_PNG_SIGNATURE) and content[12:16] == b"IHDR":
                width, height = struct.unpack(">II", content[16:24])
                return height, width
            content += stream.read()
    except OSError:
        return None
    pixels = _decoded(np.frombuffer(content, np.uint8)) if content and not _image_flaw(content) else None
    return None if pixels is None else (pixels.shape[0], pixels.shape[1])


def largest_image_shape(paths: Iterable[Path]) -> tuple[int, int]:
    """The (H, W) of the image with the most pixels; (1, 1) where none can be read."""
    shapes = [shape for shape in map(read_image_shape, paths) if shape is not None]
    return max(shapes, key=lambda shape: shape[0] * shape[1], default=(1, 1))


def _decoded(content: np.ndarray) -> np.ndarray | None:
    """Pixels as they are stored, or None; OpenCV's own warnings are held back, they would only repeat our error."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        return cv2.imdecode(content, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # sizes beyond OpenCV's limits
        LOG.debug("OpenCV: %s", error)
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)


def _image_flaw(content: bytes) -> str:
    """What is visibly wrong with a file, or nothing; OpenCV fills a truncated PNG or JPEG up in silence."""
    if not content:
        return "the file is empty"
    if content.startswith(_PNG_SIGNATURE):
        return "" if _png_is_whole(content) else "the PNG is truncated or damaged"
    if content.startswith(_JPEG_SIGNATURE):
        # Cameras may append data after the end marker, never cut it off.
        return "" if b"\xff\xd9" in content[-65536:] else "the JPEG is truncated"
    if content.startswith(_TIFF_SIGNATURES):
        return ""  # OpenCV refuses a TIFF whose strips are missing
    return f"it is no PNG, TIFF or JPEG (it starts with {content[:8]!r})"


def _png_is_whole(content: bytes) -> bool:
    """Whether every chunk up to the closing one is there in full, with the right checksum."""
    view = memoryview(content)
    at = len(_PNG_SIGNATURE)
    while at + 12 <= len(content):
        length, kind = struct.unpack(">I4s", view[at : at + 8])
        end = at + 12 + length  # length, kind, data, checksum
        if end > len(content):
            return False
        (checksum,) = struct.unpack(">I", view[end - 4 : end])
        if zlib.crc32(view[at + 4 : end - 4]) != checksum:
            return False
        if kind == b"IEND":
            return True
        at = end
    return False


def _tiff_pages(content: bytes) -> int:
    """How many pages a classic TIFF chains together; 1 where that cannot be told."""
    if content[2:4] not in (b"*\0", b"\0*"):
        return 1  # BigTIFF
    order = "<" if content[:2] == b"II" else ">"
    seen: set[int] = set()
    (at,) = struct.unpack(order + "I", content[4:8])
    while at and at not in seen and at + 2 <= len(content):
        seen.add(at)
        (entries,) = struct.unpack(order + "H", content[at : at + 2])
        link = at + 2 + 12 * entries
        if link + 4 > len(content):
            break
        (at,) = struct.unpack(order + "I", content[link : link + 4])
    return max(1, len(seen))


def _eight_bit(pixels: np.ndarray) -> np.ndarray:
    """Any depth as uint8, see read_image."""
    if pixels.dtype == np.uint8:
        return pixels
    colour = pixels[..., :3] if pixels.ndim == 3 else pixels  # alpha is no gray level
    values = colour.astype(np.float64)
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if finite.size else 0.0
    if largest > 0:
        values, finite = values / largest, finite / largest  # squares of large floats would not fit
    if not finite.size or finite.min() == finite.max():
        return np.full(values.shape, round(GRAY_MEAN), np.uint8)
    low, high = np.percentile(finite, USUAL_PERCENTILES)
    usual = np.clip(finite, low, high) if low < high else finite
    values = np.nan_to_num(values, nan=usual.mean(), posinf=high, neginf=low)
    standard = (values - usual.mean()) / usual.std()
    return np.clip(np.rint(GRAY_MEAN + GRAY_STD * standard), 0, 255).astype(np.uint8)


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    """(H, W), (H, W, 1), (H, W, 2), (H, W, 3) or (H, W, 4) as contiguous (H, W, 3)."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.shape[2] in (1, 2):  # gray, or gray with alpha
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    return np.ascontiguousarray(pixels[..., :3])
