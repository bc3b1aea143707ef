"""By how much an image is stretched for the members, which know cells of a certain size in pixels."""

from __future__ import annotations

import cv2
import numpy as np

from kernel.errors import InputError
from kernel.images.pixel_size import PixelSize

#: The side of a pixel of the competition's images and of LIVECell's, in micrometres: an Incucyte's objective of 10x
#: gives fields of 1.75 x 1.29 mm in 1408 x 1040 pixels, which both data sets cut into four of 704 x 520.
COMPETITION_PIXEL_UM = 1.24
#: Zooms that differ from 1 by less are not worth the blur.
UNZOOMED = 0.05
#: A zoom beyond these, or their inverse, shows no cells.
LARGEST_ZOOM = 32.0
#: By how much enlarged images are sharpened, and by a mask blurred over how many of their own pixels. The synthetic
#: images, at half their pixels, find more of their cells again so than without (`resized`).
SHARPENING = 0.6
SHARPENED_PIXELS = 0.7

#: By how much rows and columns are stretched.
Zoom = tuple[float, float]
NO_ZOOM: Zoom = (1.0, 1.0)


def zoom_of(pixel: PixelSize | None, member_um: float, given: float | None = None) -> Zoom:
    """By how much an image is stretched for the members.

    Args:
        pixel: the size of its pixels; None: not known.
        member_um: the side of a pixel that they know.
        given: the zoom that is asked for, which overrides the sizes.

    Raises:
        InputError: it is beyond `LARGEST_ZOOM`.
    """
    if given is not None:
        zoom, origin = (given, given), "it is asked for"
    elif pixel is not None:
        zoom = (pixel.y_um / member_um, pixel.x_um / member_um)
        origin = f"pixels are of {pixel}, by {pixel.source}, and members know those of {member_um:g} um"
    else:
        return NO_ZOOM
    if not all(1 / LARGEST_ZOOM <= factor <= LARGEST_ZOOM for factor in zoom):
        raise InputError(
            f"a zoom of {max(zoom):.3g} shows no cells ({origin}): correct the pixel size, or give a zoom between "
            f"{1 / LARGEST_ZOOM:g} and {LARGEST_ZOOM:g}"
        )
    return NO_ZOOM if all(abs(factor - 1) <= UNZOOMED for factor in zoom) and given is None else zoom


def shown_pixel_um(pixel: PixelSize | None, member_um: float, given: float | None = None) -> float | None:
    """The side of a pixel of the image that members see, in micrometres; None: not known. Arguments as of `zoom_of`."""
    if pixel is None:
        return None
    return member_um if given is None else pixel.side_um / given  # also where it is so near that there is no zoom


def is_same_scale(one_um: float, other_um: float) -> bool:
    """Whether images whose pixels have these sides are not worth a zoom from one to the other."""
    return abs(one_um / other_um - 1) <= UNZOOMED


def zoomed_shape(shape: tuple[int, int], zoom: Zoom) -> tuple[int, int]:
    """The rows and columns of an image after a zoom."""
    rows, columns = (max(1, round(side * factor)) for side, factor in zip(shape, zoom, strict=True))
    return rows, columns


def zoom_text(zoom: Zoom) -> str:
    """A zoom for people: one factor, or those of rows and columns where they differ."""
    rows, columns = (f"{factor:.4g}" for factor in zoom)
    return rows if rows == columns else f"{rows} x {columns}"


def resized(image_bgr: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """An image (H, W, 3) uint8 with other numbers of rows and columns.

    What is shrunk is averaged. What is enlarged is sharpened: its large pixels have averaged over what members know as
    several, and so lack contrast at edges.
    """
    height, width = image_bgr.shape[:2]
    rows, columns = shape
    if (rows, columns) == (height, width):
        return image_bgr
    if rows * columns < height * width:
        return cv2.resize(image_bgr, (columns, rows), interpolation=cv2.INTER_AREA)
    large = cv2.resize(image_bgr, (columns, rows), interpolation=cv2.INTER_CUBIC)
    blurred = cv2.GaussianBlur(
        large, (0, 0), sigmaX=SHARPENED_PIXELS * columns / width, sigmaY=SHARPENED_PIXELS * rows / height
    )
    return cv2.addWeighted(large, 1 + SHARPENING, blurred, -SHARPENING, 0)


def zoomed_mask(
    crop: np.ndarray, offset_yx: tuple[int, int], shape: tuple[int, int], shown: tuple[int, int]
) -> np.ndarray:
    """A mask in the pixels of the zoomed image: those of which at least half is covered.

    Args:
        crop: (h, w) bool.
        offset_yx: its first row and column in the image.
        shape: of the image, rows and columns.
        shown: of the zoomed image.

    Returns:
        `shown` bool, the whole image.
    """
    whole = np.zeros(shape, np.float32)
    y, x = offset_yx
    whole[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    shrunk = shown[0] * shown[1] < shape[0] * shape[1]
    covered = cv2.resize(whole, shown[::-1], interpolation=cv2.INTER_AREA if shrunk else cv2.INTER_LINEAR)
    return covered >= 0.5
