"""Outlines of cells, drawn at random, and their masks.

Points are (x, y) around (0, 0); lengths are in units of a cell's mean radius until the shape is rasterised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

#: cv2 draws in 1/16 pixel.
SUBPIXEL_BITS = 4


def blob_outline(rng: np.random.Generator, elongation: float, roughness: float, taper: float) -> np.ndarray:
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


def wandering_path(
    rng: np.random.Generator, start: np.ndarray, angle: float, length: float, step: float, bend: float
) -> np.ndarray:
    """A smoothly wandering line (n, 2) from `start`; `bend` is the spread of the turn per step, radians."""
    n = max(2, int(length / step) + 1)
    turns = rng.normal(0, bend, n)
    turns[1:] = 0.5 * (turns[1:] + turns[:-1])
    headings = angle + np.cumsum(turns)
    steps = step * np.stack([np.cos(headings), np.sin(headings)], axis=1)
    return np.concatenate([start[None], start + np.cumsum(steps, axis=0)])


def ribbon_outline(path: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """The outline (2n, 2) of a line that is `widths` (n,) thick along its way."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
    normal = tangent[:, ::-1] * (-1, 1)
    half = 0.5 * widths[:, None]
    return np.concatenate([path + half * normal, (path - half * normal)[::-1]])


def arm_outline(
    rng: np.random.Generator, angle: float, length: float, width: float, tip: float
) -> tuple[np.ndarray, np.ndarray]:
    """A tapering arm from the centre: its outline, and its middle line."""
    path = wandering_path(rng, np.zeros(2), angle, length, max(length / 10, 0.05), 0.08)
    along = np.linspace(0, 1, len(path))
    return ribbon_outline(path, tip + (width - tip) * (1 - along) ** 1.2), path


@dataclass(frozen=True)
class CellShape:
    """Outlines whose union is a cell, and where neurites leave it."""

    parts: list[np.ndarray]  # (n, 2) float each
    tips: list[tuple[np.ndarray, float]]  # (point (2,), direction in radians)
    look: str  # "flat", "thick" or "round"


def body_with_arms(
    rng: np.random.Generator,
    elongation: float,
    arms: Sequence[tuple[float, float]],
    width: float,
    tip: float,
    roughness: float,
    taper: float,
) -> CellShape:
    """A body with arms (angle, length); lengths and widths in units of the body's mean radius."""
    parts, tips = [blob_outline(rng, elongation, roughness, taper)], []
    for angle, length in arms:
        outline, path = arm_outline(rng, angle, length, width * rng.uniform(0.7, 1.2), tip)
        parts.append(outline)
        direction = path[-1] - path[-2]
        tips.append((path[-1], float(np.arctan2(direction[1], direction[0]))))
    return CellShape(parts, tips, "thick")


def shsy5y_shape(rng: np.random.Generator, elongation: float) -> CellShape:
    """Bipolar spindles when long, triangles and polygons when short; a mask ends where the arm gets thin."""
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
    return body_with_arms(rng, max(1.0, 0.95 * elongation), arms, 1.3 / half, 0.2, 0.18, 0.3)


def sheet_shape(rng: np.random.Generator, elongation: float) -> CellShape:
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
        parts.append(arm_outline(rng, angle, reach * rng.uniform(1.0, 1.6), 0.45, 0.1)[0])
    return CellShape(parts, [], "flat")


def astro_shape(rng: np.random.Generator, elongation: float, family: str) -> CellShape:
    """A cell of one of the families "round", "flat", "spindle" and "star"."""
    if family == "round":
        return CellShape([blob_outline(rng, 1 + 0.15 * rng.random(), 0.05, 0.0)], [], "round")
    if family == "flat":
        return sheet_shape(rng, elongation)
    if family == "spindle":
        ends = [(rng.normal(0, 0.1), np.sqrt(elongation) * rng.uniform(1.2, 2.4)) for _ in range(2)]
        arms = [(float(ends[0][0]), ends[0][1]), (float(np.pi + ends[1][0]), ends[1][1])]
        if rng.random() < 0.35:
            arms.append((float(rng.choice([0, np.pi]) + rng.normal(0, 0.5)), rng.uniform(1.5, 3.0)))
        return body_with_arms(rng, max(1.0, 0.7 * elongation), arms, 0.45, 0.15, 0.2, 0.6)
    n = int(rng.integers(3, 7))
    angles = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(n) / n + rng.normal(0, 0.5, n)
    arms = [(float(angle), rng.uniform(1.8, 6.5)) for angle in angles]
    return body_with_arms(rng, min(elongation, 2.5), arms, 0.5, 0.16, 0.25, 0.4)


def cort_shape(rng: np.random.Generator, elongation: float) -> CellShape:
    """A small rounded body, with up to four neurites."""
    n = int(rng.integers(1, 5))
    tips = []
    for angle in rng.uniform(0, 2 * np.pi, n):
        tips.append((0.9 * np.array([np.cos(angle), np.sin(angle)]), float(angle)))
    look = "round" if elongation < 1.5 and rng.random() < 0.3 else "thick"
    return CellShape([blob_outline(rng, elongation, 0.2, 0.2 if elongation > 1.4 else 0.0)], tips, look)


def rasterise(parts: list[np.ndarray], scale: float, angle: float) -> tuple[np.ndarray, tuple[int, int]]:
    """The union of scaled and turned outlines, corners rounded: (crop bool, (y, x) of its corner to the centre)."""
    turn = scale * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    turned = [part @ turn for part in parts]
    points = np.concatenate(turned)
    x0, y0 = np.floor(points.min(axis=0)).astype(int) - 3
    x1, y1 = np.ceil(points.max(axis=0)).astype(int) + 4
    canvas = np.zeros((y1 - y0, x1 - x0), np.uint8)
    for part in turned:
        fixed = np.round((part - (x0, y0)) * 2**SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(canvas, [fixed], 255, cv2.LINE_AA, SUBPIXEL_BITS)
    canvas = cv2.GaussianBlur(canvas, (0, 0), 0.9)
    return canvas > 110, (int(y0), int(x0))


def rasterise_to_area(parts: list[np.ndarray], area: float, angle: float) -> tuple[np.ndarray, tuple[int, int], float]:
    """As rasterise, at the scale that gives about `area` pixels; also returns the scale."""
    scale = np.sqrt(area / np.pi)
    crop, corner = rasterise(parts, scale, angle)
    for _ in range(2):
        scale *= np.sqrt(area / max(1, np.count_nonzero(crop)))
        crop, corner = rasterise(parts, scale, angle)
    return crop, corner, float(scale)
