"""An image and its cells as one SVG, which any browser opens: the pixels as JPEG, over them a path for each cell.

Outlines run through the centres of the masks' outermost pixels, so that those of touching cells lie side by side.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

import cv2
import numpy as np

from kernel.errors import RunError
from kernel.masks.instances import CellMasks
from kernel.postprocess.pictures import PICTURE_SIDE, stretch_gray
from kernel.settings import CELL_TYPES

JPEG_QUALITY = 82
#: The colour of found cells, of Okabe and Ito's palette.
FOUND_COLOUR = "#56b4e9"


def svg_picture(image_bgr: np.ndarray, masks: CellMasks, label: str) -> str:
    """The picture of an image (H, W, 3) uint8, in the image's own coordinates.

    The paths are in one group of the class `found`; each has a title with the cell's number (that of label images and
    tables), area in pixels, score and type.

    Args:
        image_bgr: the pixels.
        masks: of an image of this shape.
        label: says in words what the picture shows.
    """
    height, width = image_bgr.shape[:2]
    paths = []
    for number, (crop, offset, score, kind) in enumerate(
        zip(masks.crops, masks.offsets_yx.tolist(), masks.scores.tolist(), masks.labels.tolist(), strict=True), start=1
    ):
        title = f"cell {number}: {int(crop.sum())} pixels, score {score:.2f}, {CELL_TYPES[kind]}"
        paths.append(f'<path d="{svg_path(contours_of(crop, offset))}"><title>{escape(title)}</title></path>')
    pixels = base64.b64encode(encode_jpeg(image_bgr)).decode()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" '
        f'viewBox="-0.5 -0.5 {width} {height}">'
        f'<image x="-0.5" y="-0.5" width="{width}" height="{height}" href="data:image/jpeg;base64,{pixels}"/>'
        f'<g class="found" fill="none" stroke="{FOUND_COLOUR}" stroke-width="1.4" stroke-linejoin="round" '
        f'pointer-events="all">{"".join(paths)}</g></svg>\n'
    )


def contours_of(crop: np.ndarray, offset_yx: Sequence[int]) -> list[np.ndarray]:
    """Closed lines around a mask (h, w) and its holes: each (K, 2) int32 (x, y) of the image; [] without a pixel."""
    top, left = offset_yx
    mask = np.ascontiguousarray(crop, dtype=np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    return [contour[:, 0] for contour in contours]


def svg_path(rings: Sequence[np.ndarray]) -> str:
    """Closed lines as a path's data. Relative steps take half the space of places; a ring of one pixel is a dot."""
    return "".join(
        f"M{ring[0][0]} {ring[0][1]}l"
        + " ".join(f"{x} {y}" for x, y in np.diff(ring, axis=0).tolist() or [(0, 0)])
        + "z"
        for ring in rings
    )


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """Pixels (H, W, 3) uint8 BGR, stretched, as a JPEG of at most PICTURE_SIDE on the longer side; gray stays gray."""
    picture = stretch_gray(pixels)
    if (picture == picture[..., :1]).all():
        picture = picture[..., 0]
    scale = PICTURE_SIDE / max(picture.shape[:2])
    if scale < 1:
        sides = tuple(max(1, round(side * scale)) for side in picture.shape[1::-1])
        picture = cv2.resize(picture, sides, interpolation=cv2.INTER_AREA)
    return encode_picture(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])


def encode_picture(suffix: str, picture: np.ndarray, parameters: Sequence[int] = ()) -> bytes:
    """A picture as the content of a file.

    Raises:
        RunError: OpenCV cannot.
    """
    written, encoded = cv2.imencode(suffix, picture, parameters)
    if not written:
        raise RunError(f"OpenCV could not encode a picture of shape {picture.shape} as {suffix}")
    return encoded.tobytes()
