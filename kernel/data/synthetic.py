"""Synthetic phase-contrast images of three kinds of neuronal cells, with exact instance masks.

    image = generate_image("cort", seed=7)
    image.image                 # (520, 704) uint8
    for crop, (y0, x0) in image.masks: ...

    write_dataset(Path("synthetic"), {"shsy5y": 20, "astro": 20, "cort": 40}, seed=1)

How a picture comes about. Cells, neurites and debris are drawn as optical thickness into one float map.
The microscope is then a band-pass filter of that map: thickness shows dark against a blurred copy of itself,
which leaves every edge a bright halo and the inside of a wide flat cell as gray as the background, the two
marks of phase contrast. Rounded cells bend the light too far for that model: their bright rims and cores are
added behind it, and last the noise of the camera.

Counts, areas, elongations and gray levels are drawn from the quantiles measured on the competition's
annotated images. No pixel of a real image is used. Pictures are reproducible for one version of numpy and OpenCV.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kernel.errors import InputError
from kernel.postprocess.rle import encode_rle
from kernel.runtime.pictures import write_image_file
from kernel.settings import CELL_TYPES

#: Height and width of the competition's images, pixels.
COMPETITION_SHAPE = (520, 704)
#: Smaller images cannot hold a cell with its surroundings.
MIN_SIDE = 64
_BACKGROUND = 128.0
_SUBPIXEL_BITS = 4  # cv2 draws in 1/16 pixel
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

CropMask = tuple[np.ndarray, tuple[int, int]]


@dataclass(frozen=True)
class SyntheticImage:
    """One picture and its truth."""

    image: np.ndarray  # (H, W) uint8
    masks: list[CropMask]  # (crop bool (h, w), (y0, x0)); no pixel belongs to two cells
    cell_type: str
    seed: int


@dataclass(frozen=True)
class _Kind:
    """What distinguishes a cell type; tables are values at _QUANTILES, the inner five as measured."""

    count: tuple[float, ...]  # cells per image of 520 x 704
    area: tuple[float, ...]  # visible pixels of a cell
    elongation: tuple[float, ...]  # long over short side of the smallest rectangle around a cell
    gray_std: tuple[float, float, float]  # of whole images: quantiles 0.05, 0.5, 0.95
    clustering: float  # chance that a cell settles beside another one
    min_area: int  # what is left of a covered cell counts as a cell above so many pixels


_KINDS = {
    "shsy5y": _Kind(
        count=(50, 78.2, 197.5, 305.5, 412, 543.1, 650),
        area=(50, 79, 140, 199, 292.2, 498, 900),
        elongation=(1.0, 1.07, 1.37, 1.82, 2.42, 3.81, 6),
        gray_std=(7.8, 13.9, 15.5),
        clustering=0.3,
        min_area=40,
    ),
    "astro": _Kind(
        count=(10, 15, 50, 73, 100, 150, 190),
        area=(90, 184, 399, 660, 1100.2, 2439.1, 5500),
        elongation=(1.0, 1.15, 1.87, 2.79, 4.18, 7.44, 11),
        gray_std=(6.3, 7.7, 11.6),
        clustering=0.45,
        min_area=80,
    ),
    "cort": _Kind(
        count=(10, 16, 23, 30, 39, 70.1, 100),
        area=(60, 95, 150, 207, 285.2, 486, 900),
        elongation=(1.0, 1.01, 1.12, 1.3, 1.57, 2.25, 3),
        gray_std=(10.7, 13.8, 18.9),
        clustering=0.5,
        min_area=40,
    ),
}


def _from_quantiles(table: Sequence[float], u: float) -> float:
    """The value at quantile `u` of a table over _QUANTILES; logarithmic between the entries."""
    return float(np.exp(np.interp(u, _QUANTILES, np.log(table))))


# --- outlines, in pixels around (0, 0); points are (x, y)


def _blob(rng: np.random.Generator, elongation: float, roughness: float, taper: float) -> np.ndarray:
    """A closed outline (n, 2) of area about pi: an ellipse with low harmonics, tips pointed by `taper` in 0..1."""
    theta = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    harmonics = np.arange(2, 6)
    amplitudes = roughness * rng.normal(size=4) / harmonics
    radius = 1 + amplitudes @ np.cos(np.outer(harmonics, theta) + rng.uniform(0, 2 * np.pi, (4, 1)))
    radius = np.clip(radius, 0.35, 2.0)
    x, y = radius * np.cos(theta), radius * np.sin(theta)
    y = y * (1 - taper * np.minimum(np.abs(x), 1) ** 1.3)
    stretch = np.sqrt(elongation)
    return np.stack([x * stretch, y / stretch], axis=1)


def _path(
    rng: np.random.Generator, start: np.ndarray, angle: float, length: float, step: float, bend: float
) -> np.ndarray:
    """A smoothly wandering line (n, 2) from `start`; `bend` is the spread of the turn per step, radians."""
    n = max(2, int(length / step) + 1)
    turns = rng.normal(0, bend, n)
    turns[1:] = 0.5 * (turns[1:] + turns[:-1])
    headings = angle + np.cumsum(turns)
    steps = step * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def _ribbon(path: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The outline (2n, 2) of a line that is `widths` (n,) thick along its way."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    normal = tangent[:, ::-1] * (-1, 1)
    half = 0.5 * widths[:, None]
    return np.concatenate([path + half * normal, (path - half * normal)[::-1]])


def _process(
    rng: np.random.Generator, angle: float, length: float, width: float, tip: float, bend: float = 0.08
) -> tuple[np.ndarray, np.ndarray]:
    """A tapering arm from the centre: its outline, and its middle line."""
    path = _path(rng, np.zeros(2), angle, length, max(length / 10, 0.05), bend)
    along = np.linspace(0, 1, len(path))
    return _ribbon(path, tip + (width - tip) * (1 - along) ** 1.2), path


@dataclass(frozen=True)
class _Shape:
    """Outlines whose union is a cell, and where neurites leave it."""

    parts: list[np.ndarray]  # (n, 2) float each
    tips: list[tuple[np.ndarray, float]]  # (point (2,), direction in radians)
    look: str  # "flat", "thick" or "round"


def _arm_shape(
    rng: np.random.Generator,
    elongation: float,
    arms: Sequence[tuple[float, float]],
    width: float,
    tip: float,
    roughness: float,
    taper: float,
    look: str,
) -> _Shape:
    """A body with arms (angle, length); lengths and widths in units of the body's mean radius."""
    parts, tips = [_blob(rng, elongation, roughness, taper)], []
    for angle, length in arms:
        outline, path = _process(rng, angle, length, width * rng.uniform(0.7, 1.2), tip)
        parts.append(outline)
        direction = path[-1] - path[-2]
        tips.append((path[-1], float(np.arctan2(direction[1], direction[0]))))
    return _Shape(parts, tips, look)


def _shsy5y_shape(rng: np.random.Generator, elongation: float) -> _Shape:
    # Bipolar spindles when long, triangles and polygons when short; a mask ends where the arm gets thin.
    half = np.sqrt(elongation)
    if elongation > 1.6:
        angles = [rng.normal(0, 0.12), np.pi + rng.normal(0, 0.12)]
        if rng.random() < 0.3:
            angles.append(rng.choice([-1, 1]) * rng.uniform(0.5, 1.2))
    else:
        n = int(rng.integers(2, 5))
        angles = list(rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(n) / n + rng.normal(0, 0.3, n))
    arms = []
    for angle in angles:
        reach = half if abs(np.sin(angle)) < 0.35 else 1.0
        arms.append((float(angle), reach * rng.uniform(0.9, 1.25)))
    return _arm_shape(rng, max(1.0, 0.95 * elongation), arms, 1.3 / half, 0.2, 0.18, 0.3, "thick")


def _sheet(rng: np.random.Generator, elongation: float) -> _Shape:
    """A spread-out flat cell: three to five drawn-out corners, the edges between them sagging."""
    n = int(rng.integers(3, 6))
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * (np.arange(n) + rng.uniform(-0.28, 0.28, n)) / n
    stretch = np.array([np.sqrt(elongation), 1 / np.sqrt(elongation)])
    corners = rng.uniform(0.8, 1.7, n)[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1) * stretch
    following = np.roll(corners, -1, axis=0)
    middles = 0.5 * (corners + following) * rng.uniform(0.5, 1.15, (n, 1))
    t = np.linspace(0, 1, 10, endpoint=False)[None, :, None]
    edges = (1 - t) ** 2 * corners[:, None] + 2 * t * (1 - t) * middles[:, None] + t**2 * following[:, None]
    outline = edges.reshape(-1, 2) * (1 + 0.1 * rng.normal(0, 1, (10 * n, 1)))
    for _ in range(3):  # no corner of a cell is sharp
        outline = 0.5 * outline + 0.25 * (np.roll(outline, 1, axis=0) + np.roll(outline, -1, axis=0))
    # Bent as a whole: a long sheet is rarely straight.
    bend = rng.normal(0, 0.12) / stretch[0]
    outline[:, 1] += bend * outline[:, 0] ** 2
    parts = [outline]
    for corner in corners[rng.random(n) < 0.2]:
        angle, reach = float(np.arctan2(corner[1], corner[0])), float(np.hypot(*corner))
        parts.append(_process(rng, angle, reach * rng.uniform(1.0, 1.6), 0.45, 0.1)[0])
    return _Shape(parts, [], "flat")


def _astro_shape(rng: np.random.Generator, elongation: float, family: str) -> _Shape:
    if family == "round":
        return _Shape([_blob(rng, 1 + 0.15 * rng.random(), 0.05, 0.0)], [], "round")
    if family == "flat":
        return _sheet(rng, elongation)
    if family == "spindle":
        ends = [(rng.normal(0, 0.1), np.sqrt(elongation) * rng.uniform(1.2, 2.4)) for _ in range(2)]
        arms = [(float(ends[0][0]), ends[0][1]), (float(np.pi + ends[1][0]), ends[1][1])]
        if rng.random() < 0.35:
            arms.append((float(rng.choice([0, np.pi]) + rng.normal(0, 0.5)), rng.uniform(1.5, 3.0)))
        return _arm_shape(rng, max(1.0, 0.7 * elongation), arms, 0.45, 0.15, 0.2, 0.6, "thick")
    n = int(rng.integers(3, 7))
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(n) / n + rng.normal(0, 0.5, n)
    arms = [(float(angle), rng.uniform(1.8, 6.5)) for angle in angles]
    return _arm_shape(rng, min(elongation, 2.5), arms, 0.5, 0.16, 0.25, 0.4, "thick")


def _cort_shape(rng: np.random.Generator, elongation: float) -> _Shape:
    n = int(rng.integers(1, 5))
    tips = []
    for angle in rng.uniform(0, 2 * np.pi, n):
        tips.append((0.9 * np.array([np.cos(angle), np.sin(angle)]), float(angle)))
    look = "round" if elongation < 1.5 and rng.random() < 0.3 else "thick"
    return _Shape([_blob(rng, elongation, 0.2, 0.2 if elongation > 1.4 else 0.0)], tips, look)


# --- rasterising


def _rasterise(parts: list[np.ndarray], scale: float, angle: float) -> tuple[np.ndarray, tuple[int, int]]:
    """The union of scaled and turned outlines, corners rounded: (crop bool, (y, x) of its corner to the centre)."""
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = [part @ turn for part in parts]
    points = np.concatenate(turned)
    x0, y0 = np.floor(points.min(axis=0)).astype(int) - 3
    x1, y1 = np.ceil(points.max(axis=0)).astype(int) + 4
    canvas = np.zeros((y1 - y0, x1 - x0), np.uint8)
    for part in turned:
        fixed = np.round((part - (x0, y0)) * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(canvas, [fixed], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.9)
    return canvas > 110, (int(y0), int(x0))


def _sized(parts: list[np.ndarray], area: float, angle: float) -> tuple[np.ndarray, tuple[int, int], float]:
    """As _rasterise, at the scale that gives about `area` pixels; also returns the scale."""
    scale = np.sqrt(area / np.pi)
    crop, corner = _rasterise(parts, scale, angle)
    for _ in range(2):
        scale *= np.sqrt(area / max(1, np.count_nonzero(crop)))
        crop, corner = _rasterise(parts, scale, angle)
    return crop, corner, float(scale)


def _largest_piece(crop: np.ndarray) -> np.ndarray:
    """Only the largest 4-connected piece of a mask (h, w) bool."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(crop.astype(np.uint8), connectivity=4)
    if count <= 2:
        return crop
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def _noise_field(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Smooth noise (H, W) float32 of mean 0 and std 1; `sigma` is its grain, pixels."""
    step = max(1, int(sigma / 2))  # coarse grains need no fine grid
    small = (shape[0] // step + 2, shape[1] // step + 2)
    field = rng.standard_normal(small, dtype=np.float32)
    field = cv2.GaussianBlur(field, (0, 0), sigma / step, borderType=cv2.BORDER_REFLECT)
    if step > 1:
        field = cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    field = field[: shape[0], : shape[1]]
    return (field - field.mean()) / (field.std() + 1e-6)


class _Scene:
    """The picture in the making: optical thickness, light added behind the optics, who owns which pixel."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng = rng
        self.shape = shape
        self.thickness = np.zeros(shape, np.float32)
        self.light = np.zeros(shape, np.float32)
        self.owned = np.zeros(shape, bool)
        self.masks: list[CropMask] = []
        self.grain = _noise_field(rng, shape, 1.0)
        self.fine = _noise_field(rng, shape, 0.6)

    def place(self, crop: np.ndarray, y: int, x: int, max_covered: float, min_area: int) -> CropMask | None:
        """Claim what is free under a mask with its corner at (y, x); None where too little of it would be seen."""
        y0, x0 = max(0, y), max(0, x)
        y1, x1 = min(self.shape[0], y + crop.shape[0]), min(self.shape[1], x + crop.shape[1])
        if y0 >= y1 or x0 >= x1:
            return None
        inside = crop[y0 - y : y1 - y, x0 - x : x1 - x]
        free = inside & ~self.owned[y0:y1, x0:x1]
        if np.count_nonzero(free) < (1 - max_covered) * np.count_nonzero(inside):
            return None
        free = _largest_piece(free)
        if np.count_nonzero(free) < min_area:
            return None
        rows, cols = np.flatnonzero(free.any(axis=1)), np.flatnonzero(free.any(axis=0))
        free = np.ascontiguousarray(free[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1])
        y0, x0 = int(y0 + rows[0]), int(x0 + cols[0])
        self.owned[y0 : y0 + free.shape[0], x0 : x0 + free.shape[1]] |= free
        self.masks.append((free, (y0, x0)))
        return free, (y0, x0)

    def window(self, mask: CropMask, pad: int) -> tuple[np.ndarray, tuple[slice, slice]]:
        """A mask as float32 with `pad` pixels around it, cut at the picture's edge, and its place there."""
        crop, (y, x) = mask
        y0, x0 = max(0, y - pad), max(0, x - pad)
        y1, x1 = min(self.shape[0], y + crop.shape[0] + pad), min(self.shape[1], x + crop.shape[1] + pad)
        out = np.zeros((y1 - y0, x1 - x0), np.float32)
        out[y - y0 : y - y0 + crop.shape[0], x - x0 : x - x0 + crop.shape[1]] = crop
        return out, (slice(y0, y1), slice(x0, x1))

    def draw_thick(self, mask: CropMask, depth: float, halo: float, texture: float, shade: float = 0.12) -> None:
        """A cell body: dark from about a pixel inside its outline, its rim lit, with grains `texture` deep.

        `shade` is how much of its depth shows as gray over its whole width, which the optics would take away.
        """
        solid, place = self.window(mask, 4)
        soft = cv2.GaussianBlur(solid, (0, 0), 1.0, borderType=cv2.BORDER_REPLICATE)
        body = np.clip(2.2 * soft - 1.2, 0, 1)
        grain = 0.5 * self.grain[place] + 0.5 * self.fine[place]
        self.thickness[place] += body * (depth + texture * grain)
        rim = np.clip(4 * soft * (1 - soft) - 0.4, 0, 1) / 0.6
        self.light[place] += halo * rim - shade * depth * body

    def draw_round(self, mask: CropMask, strength: float) -> None:
        """A rounded-up cell: white rim, black ring within, a bright core."""
        solid, place = self.window(mask, 6)
        depth = cv2.distanceTransform((solid > 0).astype(np.uint8), cv2.DIST_L2, 5)
        outside = cv2.distanceTransform((solid == 0).astype(np.uint8), cv2.DIST_L2, 5)
        signed = cv2.GaussianBlur(depth - outside, (0, 0), 0.7)
        deepest = max(2.0, float(depth.max()))
        rim = np.exp(-((signed - 0.3) ** 2) / 1.1)
        ring = np.exp(-((signed - 2.4) ** 2) / 1.7)
        core = np.clip((signed - 3.2) / max(1.5, deepest - 3.2), 0, 1)
        outer = np.exp(-((signed + 2.2) ** 2) / 1.5)
        inside = np.clip(signed - 2, 0, 1)
        grain = self.grain[place] + self.fine[place]
        self.light[place] += strength * (80 * rim - 75 * ring + 30 * core - 14 * outer + 14 * grain * inside)

    def draw_lines(self, lines: list[np.ndarray], depth: float, width: int, beads: float) -> None:
        """Neurites of (n, 2) points; `beads` is how unevenly thick they are."""
        if not lines:
            return
        layer = np.zeros(self.shape, np.uint8)
        fixed = [np.round(line * 2**_SUBPIXEL_BITS).astype(np.int32) for line in lines]
        cv2.polylines(layer, fixed, False, 255, width, cv2.LINE_AA, _SUBPIXEL_BITS)
        flanks = np.zeros(self.shape, np.uint8)
        cv2.polylines(flanks, fixed, False, 255, width + 2, cv2.LINE_AA, _SUBPIXEL_BITS)
        uneven = np.clip(1 + beads * self.grain, 0.25, 3.0)
        self.thickness += (depth / 255) * (layer - 0.18 * flanks) * uneven

    def draw_arms(self, outlines: list[np.ndarray], depth: float) -> None:
        """Stems of neurites, (n, 2) outlines: they thin out from the body and belong to no mask."""
        layer = np.zeros(self.shape, np.uint8)
        for outline in outlines:
            fixed = np.round(outline * 2**_SUBPIXEL_BITS).astype(np.int32)
            cv2.fillPoly(layer, [fixed], 255, cv2.LINE_AA, _SUBPIXEL_BITS)
        self.thickness += (depth / 255) * np.where(self.owned, 0, layer) * (1 + 0.2 * self.fine)

    def draw_debris(self, centres: np.ndarray, radii: np.ndarray, depth: float, hollow: np.ndarray) -> None:
        """Specks (n, 2) around (x, y): dark dots with bright rims, the hollow ones bright inside."""
        height, width = self.shape
        for (x, y), radius, is_hollow in zip(centres, radii, hollow, strict=True):
            reach = radius + 2
            y0, y1 = max(0, int(y - reach)), min(height, int(y + reach) + 2)
            x0, x1 = max(0, int(x - reach)), min(width, int(x + reach) + 2)
            if y0 >= y1 or x0 >= x1:
                continue
            distance = np.hypot(np.arange(y0, y1)[:, None] - y, np.arange(x0, x1) - x)
            dot = 1.4 * np.clip(radius + 0.5 - distance, 0, 1) - 0.45 * np.clip(radius + 1.5 - distance, 0, 1)
            if is_hollow:
                dot -= 1.6 * np.clip(0.55 * radius + 0.5 - distance, 0, 1)
            self.thickness[y0:y1, x0:x1] += depth * dot

    def signal(self) -> np.ndarray:
        """What the camera sees of all that, gray levels around 0: (H, W) float32."""
        sharp = cv2.GaussianBlur(self.thickness, (0, 0), 0.55)
        near = cv2.GaussianBlur(self.thickness, (0, 0), 1.5)
        wide = cv2.GaussianBlur(self.thickness, (0, 0), 8.0)
        flattened = self.light - cv2.GaussianBlur(self.light, (0, 0), 12.0)
        return flattened - 0.9 * (sharp - near) - 0.08 * (sharp - wide)


# --- the three types


def _share(shape: tuple[int, int]) -> float:
    """The size of a picture in units of the competition's."""
    return shape[0] * shape[1] / (COMPETITION_SHAPE[0] * COMPETITION_SHAPE[1])


def _settle(scene: _Scene, kind: _Kind, radius: float, margin: float) -> tuple[float, float]:
    """A place (y, x) for a cell of about that radius: anywhere, or beside one that is there."""
    rng = scene.rng
    if scene.masks and rng.random() < kind.clustering:
        crop, (y0, x0) = scene.masks[int(rng.integers(len(scene.masks)))]
        distance = radius + np.sqrt(np.count_nonzero(crop) / np.pi)
        angle = rng.uniform(0, 2 * np.pi)
        y = y0 + crop.shape[0] / 2 + distance * np.sin(angle) * rng.uniform(0.8, 1.2)
        x = x0 + crop.shape[1] / 2 + distance * np.cos(angle) * rng.uniform(0.8, 1.2)
        if 0 <= y < scene.shape[0] and 0 <= x < scene.shape[1]:
            return y, x
    return (
        rng.uniform(-margin, scene.shape[0] + margin),
        rng.uniform(-margin, scene.shape[1] + margin),
    )


def _neurites_from(
    scene: _Scene,
    tips: list[tuple[np.ndarray, float]],
    scale: float,
    angle: float,
    centre: tuple[float, float],
    length: tuple[float, float],
    bend: float,
) -> list[np.ndarray]:
    """Lines that go on where a placed shape's arms end."""
    rng = scene.rng
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    lines = []
    for tip, direction in tips:
        start = tip @ turn * 0.85 + (centre[1], centre[0])
        lines.append(_path(rng, start, direction + angle, rng.uniform(*length), 5.0, bend))
    return lines


def _fill_shsy5y(scene: _Scene, kind: _Kind, count: int) -> None:
    rng = scene.rng
    flow = _noise_field(rng, scene.shape, 60.0)  # neighbours lie roughly alike
    thin: list[np.ndarray] = []
    arms: list[np.ndarray] = []
    for _ in range(4 * count):
        if len(scene.masks) >= count:
            break
        elongation = _from_quantiles(kind.elongation, rng.random())
        area = 1.1 * _from_quantiles(kind.area, rng.random())  # a part of it will be covered
        y, x = _settle(scene, kind, 0.8 * np.sqrt(area / np.pi), 4)
        at = flow[int(np.clip(y, 0, scene.shape[0] - 1)), int(np.clip(x, 0, scene.shape[1] - 1))]
        angle = 1.5 * float(at) + rng.normal(0, 0.6)
        shape = _shsy5y_shape(rng, elongation)
        crop, corner, scale = _sized(shape.parts, area, angle)
        mask = scene.place(crop, round(y) + corner[0], round(x) + corner[1], 0.3, kind.min_area)
        if mask is None:
            continue
        if elongation < 1.25 and rng.random() < 0.2:
            scene.draw_round(mask, rng.uniform(0.3, 0.6))
        else:
            scene.draw_thick(mask, rng.uniform(28, 50), rng.uniform(4, 14), rng.uniform(8, 20))
        for line in _neurites_from(scene, shape.tips, scale, angle, (y, x), (15, 75), 0.15):
            thin.append(line)
            stem = np.concatenate([[(x, y)], line[:4]])
            arms.append(_ribbon(stem, np.linspace(1.0 * scale / np.sqrt(elongation), 1.2, len(stem))))
    for _ in range(count // 3):  # neurites whose cell one cannot tell
        start = rng.uniform((0, 0), scene.shape[::-1])
        thin.append(_path(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(15, 90), 5.0, 0.12))
    scene.draw_lines(thin[::2], 40, 1, 0.3)
    scene.draw_lines(thin[1::2], 26, 1, 0.3)
    scene.draw_arms(arms, 38)
    for _ in range(int(rng.poisson(count / 14))):  # heaps of dead cells, which are not annotated
        centre = rng.uniform((0, 0), scene.shape[::-1])
        n = int(rng.integers(3, 26))
        _heap(scene, centre, n, 1.2 + 1.1 * np.sqrt(n), 110)


def _heap(scene: _Scene, centre: np.ndarray, n: int, spread: float, depth: float) -> None:
    rng = scene.rng
    centres = centre + rng.normal(0, spread, (n, 2))
    scene.draw_debris(centres, rng.uniform(1.0, 2.6, n), depth, rng.random(n) < 0.7)


def _fill_astro(scene: _Scene, kind: _Kind, count: int) -> None:
    rng = scene.rng
    fibres: list[np.ndarray] = []
    share = _share(scene.shape)
    families = ["flat", "spindle", "star", "round"]
    mixture = rng.dirichlet([4.4, 3.7, 1.4, 0.5])  # cultures differ
    for _ in range(5 * count):
        if len(scene.masks) >= count:
            break
        family = str(rng.choice(families, p=mixture))
        u = rng.random()
        # Sheets are the large ones and round cells the small; cells lose a fifth to the ones above them.
        area = 1.2 * _from_quantiles(kind.area, {"flat": 0.25 + 0.75 * u, "round": 0.2 * u}.get(family, 0.95 * u))
        low, high = (0.15, 0.9) if family == "flat" else (0.35, 1.0)
        elongation = _from_quantiles(kind.elongation, rng.uniform(low, high))
        y, x = _settle(scene, kind, 1.1 * np.sqrt(area / np.pi), 10)
        angle = rng.uniform(0, 2 * np.pi)
        shape = _astro_shape(rng, elongation, family)
        crop, corner, scale = _sized(shape.parts, area, angle)
        mask = scene.place(crop, round(y) + corner[0], round(x) + corner[1], 0.4, kind.min_area)
        if mask is None:
            continue
        if family == "round":
            scene.draw_round(mask, rng.uniform(0.3, 0.5))
            continue
        if family == "flat":
            scene.draw_thick(mask, rng.uniform(15, 26), rng.uniform(1, 4), rng.uniform(4, 9), shade=0.06)
        else:
            scene.draw_thick(mask, rng.uniform(40, 75), rng.uniform(6, 18), rng.uniform(8, 18), shade=0.04)
            fibres += _neurites_from(scene, shape.tips, scale, angle, (y, x), (4, 25), 0.12)
        _granules(scene, mask, family)
    scene.draw_lines(fibres, 24, 1, 0.4)
    n = int(rng.poisson(40 * share))
    _scatter(scene, n, (0.5, 1.6), 30)
    for _ in range(int(rng.poisson(9 * share))):
        _heap(scene, rng.uniform((0, 0), scene.shape[::-1]), int(rng.integers(1, 5)), 3.0, 70)


def _granules(scene: _Scene, mask: CropMask, family: str) -> None:
    """Specks around the nucleus, which lies where the cell is thickest."""
    rng = scene.rng
    solid, (rows, cols) = scene.window(mask, 2)
    depth = cv2.distanceTransform((solid > 0).astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    radius = float(depth[y, x])
    centre = (cols.start + float(x), rows.start + float(y))
    n = int(rng.integers(4, 14 if family == "flat" else 8))
    points = centre + rng.normal(0, 0.45 * radius, (n, 2))
    unit = 2**_SUBPIXEL_BITS
    layer = np.zeros(solid.shape, np.uint8)
    for px, py in points - (cols.start, rows.start):
        place = (round(float(px) * unit), round(float(py) * unit))
        size, gray = round(rng.uniform(0.5, 1.3) * unit), int(rng.integers(90, 255))
        cv2.circle(layer, place, size, gray, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    squared = (np.arange(solid.shape[0])[:, None] - y) ** 2 + (np.arange(solid.shape[1]) - x) ** 2
    near = np.exp(-squared / (2 * (0.6 * radius) ** 2 + 1))
    near = near.astype(np.float32)
    scene.thickness[rows, cols] += solid * (80 / 255 * layer + 8 * near + 9 * near * scene.fine[rows, cols])


def _scatter(scene: _Scene, n: int, radii: tuple[float, float], depth: float) -> None:
    rng = scene.rng
    centres = rng.uniform((0, 0), scene.shape[::-1], (n, 2))
    scene.draw_debris(centres, rng.uniform(*radii, n), depth, rng.random(n) < 0.35)


def _fill_cort(scene: _Scene, kind: _Kind, count: int) -> None:
    rng = scene.rng
    height, width = scene.shape
    share = _share(scene.shape)
    tangle = rng.uniform(0.2, 1.0)
    lines: list[np.ndarray] = []
    for _ in range(int(900 * share * tangle)):
        start = rng.uniform((0, 0), (width, height))
        lines.append(_path(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(8, 80), 3.0, 0.25))
    for _ in range(int(120 * share * tangle)):
        start = rng.uniform((0, 0), (width, height))
        lines.append(_path(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(80, 300), 4.0, 0.1))
    rays: list[np.ndarray] = []
    dendrites: list[np.ndarray] = []
    for _ in range(6 * count):
        if len(scene.masks) >= count:
            break
        elongation = 1.03 * _from_quantiles(kind.elongation, rng.random())
        area = _from_quantiles(kind.area, rng.random())
        y, x = _settle(scene, kind, np.sqrt(area / np.pi), 0)
        angle = rng.uniform(0, 2 * np.pi)
        shape = _cort_shape(rng, elongation)
        crop, corner, scale = _sized(shape.parts, area, angle)
        mask = scene.place(crop, round(y) + corner[0], round(x) + corner[1], 0.12, kind.min_area)
        if mask is None:
            continue
        if shape.look == "round":
            scene.draw_round(mask, rng.uniform(0.7, 1.2))
        else:
            scene.draw_thick(mask, rng.uniform(70, 110), rng.uniform(25, 60), rng.uniform(20, 45))
        dendrites += _neurites_from(scene, shape.tips, scale, angle, (y, x), (20, 160), 0.08)
        if rng.random() < 0.35 * tangle:
            for ray in rng.uniform(0, 2 * np.pi, int(rng.integers(8, 26))):
                start = np.array([x, y]) + 1.1 * scale * np.array([np.cos(ray), np.sin(ray)])
                rays.append(_path(rng, start, ray, rng.uniform(8, 45), 4.0, 0.05))
    scene.draw_lines(lines[::2], 20, 1, 0.6)
    scene.draw_lines(lines[1::2], 36, 1, 0.6)
    scene.draw_lines(rays, 75, 1, 0.3)
    scene.draw_lines(dendrites, 60, 1, 0.4)
    scene.draw_lines(dendrites[::3], 40, 2, 0.4)
    _scatter(scene, int(rng.uniform(250, 700) * share), (0.4, 1.1), 110)
    _scatter(scene, int(rng.uniform(60, 300) * share), (1.0, 2.8), 150)
    for _ in range(int(rng.poisson(12 * share))):
        _heap(scene, rng.uniform((0, 0), (width, height)), int(rng.integers(2, 9)), 3.5, 140)


_FILL = {"shsy5y": _fill_shsy5y, "astro": _fill_astro, "cort": _fill_cort}


def generate_image(cell_type: str, seed: int, shape: tuple[int, int] = COMPETITION_SHAPE) -> SyntheticImage:
    """One picture of (height, width) pixels; the same arguments give the same picture.

    The number of cells is the competition's, scaled with the area, and at least 1.

    Raises:
        InputError: the type is none of CELL_TYPES, the seed is negative, or a side is shorter than MIN_SIDE.
    """
    if cell_type not in _KINDS:
        raise InputError(f"Unknown cell type {cell_type!r}: choose one of {', '.join(CELL_TYPES)}.")
    if seed < 0:
        raise InputError(f"The seed of a synthetic image is {seed}: give a whole number from 0 on.")
    if min(shape) < MIN_SIDE:
        raise InputError(
            f"A synthetic image of {shape[0]} x {shape[1]} is too small: give sides of at least {MIN_SIDE} pixels."
        )
    kind = _KINDS[cell_type]
    rng = np.random.Generator(np.random.PCG64([CELL_TYPES.index(cell_type), seed]))
    scene = _Scene(rng, (int(shape[0]), int(shape[1])))
    crowd = rng.random()
    share = _share(shape)
    _FILL[cell_type](scene, kind, max(1, round(_from_quantiles(kind.count, crowd) * share)))

    signal = scene.signal()
    # Fuller pictures have more contrast: the quantile of the count, loosely, is that of the gray levels.
    contrast = np.interp(0.6 * crowd + 0.4 * rng.random(), (0.05, 0.5, 0.95), kind.gray_std)
    signal *= np.clip(contrast / max(1e-3, float(signal.std())), 0.6, 1.6)
    camera = cv2.GaussianBlur(rng.standard_normal(scene.shape, dtype=np.float32), (0, 0), 0.5)
    gray = signal + 1.6 * camera
    gray += _BACKGROUND - float(gray.mean())
    return SyntheticImage(np.clip(np.rint(gray), 0, 255).astype(np.uint8), scene.masks, cell_type, seed)


def _image_seed(seed: int, index: int) -> int:
    """Data sets of different seeds share no image."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])


def _image_id(cell_type: str, seed: int) -> str:
    return hashlib.sha256(f"{cell_type}/{seed}".encode()).hexdigest()[:12]


def write_dataset(out: Path, counts: dict[str, int], seed: int, shape: tuple[int, int] = COMPETITION_SHAPE) -> None:
    """Write images and annotations as the competition does: train.csv, one row per cell, and train/<id>.png.

    Args:
        out: the folder to write into; it is made.
        counts: images per cell type.
        seed: another seed gives other images.
        shape: (height, width) of the images.

    Raises:
        InputError: as generate_image.
    """
    if seed < 0:
        raise InputError(f"The seed of a data set is {seed}: give a whole number from 0 on.")
    if (out / "train.csv").exists():
        raise InputError(f"{out} holds a train.csv already: name another folder, its annotations would be lost.")
    try:
        (out / "train").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot write into {out}: {error.strerror}. Name another folder.") from error
    header = (
        "id", "annotation", "width", "height", "cell_type", "plate_time", "sample_date", "sample_id",
        "elapsed_timedelta",
    )  # fmt: skip
    with (out / "train.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(header)
        for cell_type, count in counts.items():
            for index in range(count):
                picture = generate_image(cell_type, _image_seed(seed, index), shape)
                name = _image_id(cell_type, picture.seed)
                write_image_file(out / "train" / f"{name}.png", picture.image)
                # Four pictures per well, as fields of one vessel: what the folds are grouped by.
                well, place = f"{'ABCDEFGH'[index // 4 % 8]}{1 + index // 32 % 12}", 1 + index % 4
                sample = f"{cell_type}[synthetic]_{well}-{place}_Vessel-{1 + index // 384}_Ph_{place}"
                after = (shape[1], shape[0], cell_type, "11h30m00s", "2019-06-16", sample, "0 days 11:30:00")
                for crop, corner in picture.masks:
                    rows.writerow((name, encode_rle(crop, corner, shape), *after))


def statistics(images: Iterable[SyntheticImage]) -> dict[str, dict[str, Any]]:
    """The figures of cell_statistics.json, per cell type.

    `images` and `cells` are counts; `cells_per_image`, `area_px`, `elongation` (long over short side
    of the smallest rectangle around a cell) and `solidity` (area over that of the convex hull, both of the outline
    through the boundary's pixels) hold the percentiles p5, p25, p50, p75 and p95; `gray_mean` and `gray_std` of
    the images are [p5, p50, p95]. Types without an image are left out.
    """
    by_type: dict[str, list[SyntheticImage]] = {}
    for image in images:
        by_type.setdefault(image.cell_type, []).append(image)
    figures: dict[str, dict[str, Any]] = {}
    for cell_type, group in by_type.items():
        shapes = np.array([_shape_figures(crop) for image in group for crop, _ in image.masks])
        shapes = shapes.reshape(-1, 3)
        figures[cell_type] = {
            "images": len(group),
            "cells": len(shapes),
            "cells_per_image": _percentiles([len(image.masks) for image in group]),
            "area_px": _percentiles(shapes[:, 0]),
            "elongation": _percentiles(shapes[:, 1]),
            "solidity": _percentiles(shapes[:, 2]),
            "gray_mean": _spread([image.image.mean() for image in group]),
            "gray_std": _spread([image.image.std() for image in group]),
        }
    return figures


def _percentiles(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    if len(values) == 0:
        return {}
    return {f"p{q}": round(float(np.percentile(values, q)), 2) for q in (5, 25, 50, 75, 95)}


def _spread(values: Sequence[float]) -> list[float]:
    return [round(float(np.percentile(values, q)), 1) for q in (5, 50, 95)]


def _shape_figures(crop: np.ndarray) -> tuple[float, float, float]:
    """Area, elongation and solidity of a mask (h, w) bool of one piece."""
    area = float(np.count_nonzero(crop))
    padded = np.pad(crop.astype(np.uint8), 1)
    contours, _ = cv2.findContours(padded, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    points = np.concatenate(contours)
    sides = np.array(cv2.minAreaRect(points)[1])
    hull = cv2.convexHull(points)
    return (
        area,
        float(max(1.0, sides.max()) / max(1.0, sides.min())),
        min(1.0, sum(map(cv2.contourArea, contours)) / max(1.0, cv2.contourArea(hull))),
    )
