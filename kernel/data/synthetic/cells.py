"""What pictures of the three cell types show: how many cells of what size and look, and what lies between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from kernel.data.synthetic.scene import CropMask, Scene, noise_field
from kernel.data.synthetic.shapes import (
    SUBPIXEL_BITS,
    astro_shape,
    cort_shape,
    rasterise_to_area,
    ribbon_outline,
    shsy5y_shape,
    wandering_path,
)
from kernel.settings import COMPETITION_SHAPE

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class TypeFigures:
    """What distinguishes a cell type.

    Tables are values at QUANTILES, of which the inner five were measured on the competition's annotated images.
    """

    count: tuple[float, ...]  # cells per image of 520 x 704
    area: tuple[float, ...]  # visible pixels of a cell
    elongation: tuple[float, ...]  # long over short side of the smallest rectangle around a cell
    gray_std: tuple[float, float, float]  # of whole images: quantiles 0.05, 0.5, 0.95
    clustering: float  # chance that a cell settles beside another one
    min_area: int  # what is left of a covered cell counts as a cell above so many pixels


TYPE_FIGURES = {
    "shsy5y": TypeFigures(
        count=(50, 78.2, 197.5, 305.5, 412, 543.1, 650),
        area=(50, 79, 140, 199, 292.2, 498, 900),
        elongation=(1.0, 1.07, 1.37, 1.82, 2.42, 3.81, 6),
        gray_std=(7.8, 13.9, 15.5),
        clustering=0.3,
        min_area=40,
    ),
    "astro": TypeFigures(
        count=(10, 15, 50, 73, 100, 150, 190),
        area=(90, 184, 399, 660, 1100.2, 2439.1, 5500),
        elongation=(1.0, 1.15, 1.87, 2.79, 4.18, 7.44, 11),
        gray_std=(6.3, 7.7, 11.6),
        clustering=0.45,
        min_area=80,
    ),
    "cort": TypeFigures(
        count=(10, 16, 23, 30, 39, 70.1, 100),
        area=(60, 95, 150, 207, 285.2, 486, 900),
        elongation=(1.0, 1.01, 1.12, 1.3, 1.57, 2.25, 3),
        gray_std=(10.7, 13.8, 18.9),
        clustering=0.5,
        min_area=40,
    ),
}


def value_at_quantile(table: Sequence[float], u: float) -> float:
    """The value at quantile `u` of a table over QUANTILES; logarithmic between the entries."""
    return float(np.exp(np.interp(u, QUANTILES, np.log(table))))


def relative_size(shape: tuple[int, int]) -> float:
    """The size of a picture in units of the competition's."""
    return shape[0] * shape[1] / (COMPETITION_SHAPE[0] * COMPETITION_SHAPE[1])


def settle(scene: Scene, figures: TypeFigures, radius: float, margin: float) -> tuple[float, float]:
    """A place (y, x) for a cell of about that radius: anywhere, or beside one that is there."""
    rng = scene.rng
    if scene.masks and rng.random() < figures.clustering:
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


def neurites_from_tips(
    scene: Scene,
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
        lines.append(wandering_path(rng, start, direction + angle, rng.uniform(*length), 5.0, bend))
    return lines


def draw_shsy5y(scene: Scene, figures: TypeFigures, count: int) -> None:
    """Draw so many spindles with long thin neurites, which lie roughly alike, and heaps of dead cells."""
    rng = scene.rng
    flow = noise_field(rng, scene.shape, 60.0)  # neighbours lie roughly alike
    thin: list[np.ndarray] = []
    arms: list[np.ndarray] = []
    for _ in range(4 * count):
        if len(scene.masks) >= count:
            break
        elongation = value_at_quantile(figures.elongation, rng.random())
        area = 1.1 * value_at_quantile(figures.area, rng.random())  # a part of it will be covered
        y, x = settle(scene, figures, 0.8 * np.sqrt(area / np.pi), 4)
        at = flow[int(np.clip(y, 0, scene.shape[0] - 1)), int(np.clip(x, 0, scene.shape[1] - 1))]
        angle = 1.5 * float(at) + rng.normal(0, 0.6)
        shape = shsy5y_shape(rng, elongation)
        crop, corner, scale = rasterise_to_area(shape.parts, area, angle)
        mask = scene.place(crop, round(y) + corner[0], round(x) + corner[1], 0.3, figures.min_area)
        if mask is None:
            continue
        if elongation < 1.25 and rng.random() < 0.2:
            scene.draw_round(mask, rng.uniform(0.3, 0.6))
        else:
            scene.draw_thick(mask, rng.uniform(28, 50), rng.uniform(4, 14), rng.uniform(8, 20))
        for line in neurites_from_tips(scene, shape.tips, scale, angle, (y, x), (15, 75), 0.15):
            thin.append(line)
            stem = np.concatenate([[(x, y)], line[:4]])
            arms.append(ribbon_outline(stem, np.linspace(1.0 * scale / np.sqrt(elongation), 1.2, len(stem))))
    for _ in range(count // 3):  # neurites whose cell one cannot tell
        start = rng.uniform((0, 0), scene.shape[::-1])
        thin.append(wandering_path(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(15, 90), 5.0, 0.12))
    scene.draw_lines(thin[::2], 40, 1, 0.3)
    scene.draw_lines(thin[1::2], 26, 1, 0.3)
    scene.draw_arms(arms, 38)
    for _ in range(int(rng.poisson(count / 14))):  # heaps of dead cells, which are not annotated
        centre = rng.uniform((0, 0), scene.shape[::-1])
        n = int(rng.integers(3, 26))
        draw_heap(scene, centre, n, 1.2 + 1.1 * np.sqrt(n), 110)


def draw_heap(scene: Scene, centre: np.ndarray, n: int, spread: float, depth: float) -> None:
    """Draw `n` specks around a point (x, y), spread by so many pixels."""
    rng = scene.rng
    centres = centre + rng.normal(0, spread, (n, 2))
    scene.draw_debris(centres, rng.uniform(1.0, 2.6, n), depth, rng.random(n) < 0.7)


def draw_astro(scene: Scene, figures: TypeFigures, count: int) -> None:
    """Draw so many cells, flat sheets for the most part, with granules around their nuclei."""
    rng = scene.rng
    fibres: list[np.ndarray] = []
    share = relative_size(scene.shape)
    families = ["flat", "spindle", "star", "round"]
    mixture = rng.dirichlet([4.4, 3.7, 1.4, 0.5])  # cultures differ
    for _ in range(5 * count):
        if len(scene.masks) >= count:
            break
        family = str(rng.choice(families, p=mixture))
        u = rng.random()
        # Sheets are the large ones and round cells the small; cells lose a fifth to the ones above them.
        area = 1.2 * value_at_quantile(figures.area, {"flat": 0.25 + 0.75 * u, "round": 0.2 * u}.get(family, 0.95 * u))
        low, high = (0.15, 0.9) if family == "flat" else (0.35, 1.0)
        elongation = value_at_quantile(figures.elongation, rng.uniform(low, high))
        y, x = settle(scene, figures, 1.1 * np.sqrt(area / np.pi), 10)
        angle = rng.uniform(0, 2 * np.pi)
        shape = astro_shape(rng, elongation, family)
        crop, corner, scale = rasterise_to_area(shape.parts, area, angle)
        mask = scene.place(crop, round(y) + corner[0], round(x) + corner[1], 0.4, figures.min_area)
        if mask is None:
            continue
        if family == "round":
            scene.draw_round(mask, rng.uniform(0.3, 0.5))
            continue
        if family == "flat":
            scene.draw_thick(mask, rng.uniform(15, 26), rng.uniform(1, 4), rng.uniform(4, 9), shade=0.06)
        else:
            scene.draw_thick(mask, rng.uniform(40, 75), rng.uniform(6, 18), rng.uniform(8, 18), shade=0.04)
            fibres += neurites_from_tips(scene, shape.tips, scale, angle, (y, x), (4, 25), 0.12)
        draw_granules(scene, mask, family)
    scene.draw_lines(fibres, 24, 1, 0.4)
    n = int(rng.poisson(40 * share))
    scatter_debris(scene, n, (0.5, 1.6), 30)
    for _ in range(int(rng.poisson(9 * share))):
        draw_heap(scene, rng.uniform((0, 0), scene.shape[::-1]), int(rng.integers(1, 5)), 3.0, 70)


def draw_granules(scene: Scene, mask: CropMask, family: str) -> None:
    """Specks around the nucleus, which lies where the cell is thickest."""
    rng = scene.rng
    solid, (rows, cols) = scene.window(mask, 2)
    depth = cv2.distanceTransform((solid > 0).astype(np.uint8), cv2.DIST_L2, 3)
    y, x = np.unravel_index(int(np.argmax(depth)), depth.shape)
    radius = float(depth[y, x])
    centre = (cols.start + float(x), rows.start + float(y))
    n = int(rng.integers(4, 14 if family == "flat" else 8))
    points = centre + rng.normal(0, 0.45 * radius, (n, 2))
    unit = 2**SUBPIXEL_BITS
    layer = np.zeros(solid.shape, np.uint8)
    for px, py in points - (cols.start, rows.start):
        place = (round(float(px) * unit), round(float(py) * unit))
        size, gray = round(rng.uniform(0.5, 1.3) * unit), int(rng.integers(90, 255))
        cv2.circle(layer, place, size, gray, -1, cv2.LINE_AA, SUBPIXEL_BITS)
    squared = (np.arange(solid.shape[0])[:, None] - y) ** 2 + (np.arange(solid.shape[1]) - x) ** 2
    near = np.exp(-squared / (2 * (0.6 * radius) ** 2 + 1))
    near = near.astype(np.float32)
    scene.thickness[rows, cols] += solid * (80 / 255 * layer + 8 * near + 9 * near * scene.fine[rows, cols])


def scatter_debris(scene: Scene, n: int, radii: tuple[float, float], depth: float) -> None:
    """Draw `n` specks anywhere, of radii from the least to the largest."""
    rng = scene.rng
    centres = rng.uniform((0, 0), scene.shape[::-1], (n, 2))
    scene.draw_debris(centres, rng.uniform(*radii, n), depth, rng.random(n) < 0.35)


def draw_cort(scene: Scene, figures: TypeFigures, count: int) -> None:
    """Draw so many small round bodies in a tangle of neurites, which no mask holds."""
    rng = scene.rng
    height, width = scene.shape
    share = relative_size(scene.shape)
    tangle = rng.uniform(0.2, 1.0)
    lines: list[np.ndarray] = []
    for _ in range(int(900 * share * tangle)):
        start = rng.uniform((0, 0), (width, height))
        lines.append(wandering_path(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(8, 80), 3.0, 0.25))
    for _ in range(int(120 * share * tangle)):
        start = rng.uniform((0, 0), (width, height))
        lines.append(wandering_path(rng, start, rng.uniform(0, 2 * np.pi), rng.uniform(80, 300), 4.0, 0.1))
    rays: list[np.ndarray] = []
    dendrites: list[np.ndarray] = []
    for _ in range(6 * count):
        if len(scene.masks) >= count:
            break
        elongation = 1.03 * value_at_quantile(figures.elongation, rng.random())
        area = value_at_quantile(figures.area, rng.random())
        y, x = settle(scene, figures, np.sqrt(area / np.pi), 0)
        angle = rng.uniform(0, 2 * np.pi)
        shape = cort_shape(rng, elongation)
        crop, corner, scale = rasterise_to_area(shape.parts, area, angle)
        mask = scene.place(crop, round(y) + corner[0], round(x) + corner[1], 0.12, figures.min_area)
        if mask is None:
            continue
        if shape.look == "round":
            scene.draw_round(mask, rng.uniform(0.7, 1.2))
        else:
            scene.draw_thick(mask, rng.uniform(70, 110), rng.uniform(25, 60), rng.uniform(20, 45))
        dendrites += neurites_from_tips(scene, shape.tips, scale, angle, (y, x), (20, 160), 0.08)
        if rng.random() < 0.35 * tangle:
            for ray in rng.uniform(0, 2 * np.pi, int(rng.integers(8, 26))):
                start = np.array([x, y]) + 1.1 * scale * np.array([np.cos(ray), np.sin(ray)])
                rays.append(wandering_path(rng, start, ray, rng.uniform(8, 45), 4.0, 0.05))
    scene.draw_lines(lines[::2], 20, 1, 0.6)
    scene.draw_lines(lines[1::2], 36, 1, 0.6)
    scene.draw_lines(rays, 75, 1, 0.3)
    scene.draw_lines(dendrites, 60, 1, 0.4)
    scene.draw_lines(dendrites[::3], 40, 2, 0.4)
    scatter_debris(scene, int(rng.uniform(250, 700) * share), (0.4, 1.1), 110)
    scatter_debris(scene, int(rng.uniform(60, 300) * share), (1.0, 2.8), 150)
    for _ in range(int(rng.poisson(12 * share))):
        draw_heap(scene, rng.uniform((0, 0), (width, height)), int(rng.integers(2, 9)), 3.5, 140)


DRAW_CELLS = {"shsy5y": draw_shsy5y, "astro": draw_astro, "cort": draw_cort}
