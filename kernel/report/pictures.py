"""Pictures of the report: an image's pixels, and over them its hits, misses and false alarms as outlines.

Outlines run through the centres of the masks' outermost pixels, so that those of touching cells lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import cv2
import numpy as np

from kernel.export.svg import FOUND_COLOUR, contours_of, encode_picture, svg_path
from kernel.masks.instances import CellMasks
from kernel.postprocess.pictures import PICTURE_SIDE, stretch_gray
from kernel.scoring.mask_quality import ImageQuality


@dataclass(frozen=True)
class OutlineStyle:
    """How one sort of outline is drawn. Styles differ in colour and in line, for those who do not see the colours."""

    name: str  # also its CSS class
    meaning: str
    colour: str  # of Okabe and Ito's palette, which people of all kinds of colour vision tell apart
    dash: int  # pixels of the image drawn and left out in turn; 0: a whole line
    width: int  # pixels of a dash
    crossed: bool = False


#: Drawn in this order, the last on top.
OUTLINE_STYLES = (
    OutlineStyle("truth", "annotated outline of a hit", "#ffffff", 1, 1),
    OutlineStyle("hit", "hit: found, IoU with an annotated cell at least 0.5", FOUND_COLOUR, 0, 2),
    OutlineStyle("miss", "miss: annotated, not found", "#f0e442", 4, 2),
    OutlineStyle("false", "false alarm: found, nothing annotated fits", "#e4572e", 0, 2, crossed=True),
)


@dataclass(frozen=True)
class Outline:
    """A cell's outlines, points (x, y) in pixels of the image, its centre, and what to say about it."""

    style: OutlineStyle
    rings: tuple[np.ndarray, ...]  # each (K, 2) int
    centre_xy: tuple[int, int]
    label: str


@dataclass(frozen=True, eq=False)
class Example:
    """An image that the report shows: pixels (H, W, 3) uint8 BGR, masks, and how they were matched."""

    pixels: np.ndarray
    prediction: CellMasks
    truth: CellMasks
    quality: ImageQuality

    def outlines(self) -> Iterator[Outline]:
        """All outlines, style by style in the order of OUTLINE_STYLES. Empty masks have none."""
        truth_style, hit, miss, false_alarm = OUTLINE_STYLES
        matches = self.quality.matches.tolist()
        iou = dict(zip(self.quality.matches[:, 0].tolist(), self.quality.match_iou.tolist(), strict=True))
        scores = self.prediction.scores.tolist()
        matched_truths = {truth for _, truth in matches}
        for _, truth in matches:
            yield from _outline(truth_style, self.truth, truth, "annotated cell that was found")
        for index in iou:
            label = f"hit: score {scores[index]:.2f}, IoU {iou[index]:.2f}"
            yield from _outline(hit, self.prediction, index, label)
        for truth in range(len(self.truth)):
            if truth not in matched_truths:
                yield from _outline(miss, self.truth, truth, "miss: annotated, not found")
        for index in range(len(self.prediction)):
            if index not in iou:
                yield from _outline(false_alarm, self.prediction, index, f"false alarm: score {scores[index]:.2f}")


def _outline(style: OutlineStyle, masks: CellMasks, index: int, label: str) -> Iterator[Outline]:
    crop = masks.crops[index]
    if not crop.any():
        return
    top, left = offset = masks.offsets_yx[index].tolist()
    rows, columns = np.nonzero(crop)
    middle = int(np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2))  # a pixel of the cell
    centre = int(columns[middle]) + left, int(rows[middle]) + top
    yield Outline(style, tuple(contours_of(crop, offset)), centre, label)


def to_svg(example: Example) -> str:
    """The outlines as an SVG element to lie over the pixels; each says by its title what it is."""
    height, width = example.pixels.shape[:2]
    paths = []
    for outline in example.outlines():
        path = svg_path(outline.rings)
        if outline.style.crossed:
            x, y = outline.centre_xy
            path += f"M{x - 2} {y - 2}l4 4m0 -4l-4 4"
        paths.append(f'<path class="{outline.style.name}" d="{path}"><title>{escape(outline.label)}</title></path>')
    return (
        f'<svg viewBox="-0.5 -0.5 {width} {height}" aria-hidden="true" focusable="false">' + "".join(paths) + "</svg>"
    )


def write_png(path: Path, example: Example) -> None:
    """Write the pixels, enlarged, with the outlines and a legend below."""
    height, width = example.pixels.shape[:2]
    scale = max(1, round(PICTURE_SIDE / max(height, width)))
    picture = cv2.resize(stretch_gray(example.pixels), (width * scale, height * scale), interpolation=cv2.INTER_LINEAR)
    for outline in example.outlines():
        x, y = (value * scale + scale // 2 for value in outline.centre_xy)
        rings = [ring * scale + scale // 2 for ring in outline.rings]
        _draw_outline(picture, outline.style, rings, (x, y), scale)
    path.write_bytes(encode_picture(".png", np.vstack([picture, _legend(picture.shape[1])])))


def _draw_outline(
    picture: np.ndarray, style: OutlineStyle, rings: list[np.ndarray], centre_xy: tuple[int, int], scale: int
) -> None:
    red, green, blue = bytes.fromhex(style.colour[1:])
    colour = blue, green, red
    for ring in rings:
        if not style.dash:
            cv2.polylines(picture, [ring.astype(np.int32)], True, colour, scale)
            continue
        for x, y in _dashes(ring, style.dash * scale).tolist():
            picture[y : y + style.width, x : x + style.width] = colour
    if style.crossed:
        cv2.drawMarker(picture, centre_xy, colour, cv2.MARKER_TILTED_CROSS, 4 * scale, scale)


def _dashes(ring: np.ndarray, length: int) -> np.ndarray:
    """(K, 2) the pixels x, y of a closed line, `length` of them drawn and as many left out in turn."""
    corner = ring.min(axis=0) - 1
    window = np.zeros((ring.max(axis=0) - corner + 2)[::-1], np.uint8)
    cv2.polylines(window, [(ring - corner).astype(np.int32)], True, 1, 1)
    contours, _ = cv2.findContours(window, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = np.concatenate([contour[:, 0] for contour in contours]) + corner
    return points[np.arange(len(points)) % (2 * length) < length]


def _legend(width: int) -> np.ndarray:
    """(h, width, 3) uint8, a line per style; narrow pictures get small letters."""
    size = min(0.6, width / 1100)
    line = max(12, round(40 * size))
    strip = np.full((line * len(OUTLINE_STYLES) + line // 2, width, 3), 24, np.uint8)
    for number, style in enumerate(OUTLINE_STYLES):
        y = line * number + round(0.8 * line)
        ring = np.array([[8, y - line // 2], [8 + 2 * line, y - line // 2], [8 + 2 * line, y], [8, y]])
        _draw_outline(strip, style, [ring], (8 + line, y - line // 4), max(1, line // 12))
        place = (16 + 2 * line, y)
        cv2.putText(strip, style.meaning, place, cv2.FONT_HERSHEY_SIMPLEX, size, (240, 240, 240), 1, cv2.LINE_AA)
    return strip
