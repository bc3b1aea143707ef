"""The picture in the making: what is drawn into it, and the microscope that shows it."""

from __future__ import annotations

import cv2
import numpy as np

from kernel.data.synthetic.shapes import SUBPIXEL_BITS

CropMask = tuple[np.ndarray, tuple[int, int]]


def largest_piece(crop: np.ndarray) -> np.ndarray:
    """Only the largest 4-connected piece of a mask (h, w) bool."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(crop.astype(np.uint8), connectivity=4)
    if count <= 2:
        return crop
    return labels == 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))


def noise_field(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Smooth noise (H, W) float32 of mean 0 and std 1; `sigma` is its grain, pixels."""
    step = max(1, int(sigma / 2))  # coarse grains need no fine grid
    small = (shape[0] // step + 2, shape[1] // step + 2)
    field = rng.standard_normal(small, dtype=np.float32)
    field = cv2.GaussianBlur(field, (0, 0), sigma / step, borderType=cv2.BORDER_REFLECT)
    if step > 1:
        field = cv2.resize(field, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    field = field[: shape[0], : shape[1]]
    return (field - field.mean()) / (field.std() + 1e-6)


class Scene:
    """The picture in the making: optical thickness, light added behind the optics, who owns which pixel."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng = rng
        self.shape = shape
        self.thickness = np.zeros(shape, np.float32)
        self.light = np.zeros(shape, np.float32)
        self.owned = np.zeros(shape, bool)
        self.masks: list[CropMask] = []
        self.grain = noise_field(rng, shape, 1.0)
        self.fine = noise_field(rng, shape, 0.6)

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
        free = largest_piece(free)
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
        fixed = [np.round(line * 2**SUBPIXEL_BITS).astype(np.int32) for line in lines]
        cv2.polylines(layer, fixed, False, 255, width, cv2.LINE_AA, SUBPIXEL_BITS)
        flanks = np.zeros(self.shape, np.uint8)
        cv2.polylines(flanks, fixed, False, 255, width + 2, cv2.LINE_AA, SUBPIXEL_BITS)
        uneven = np.clip(1 + beads * self.grain, 0.25, 3.0)
        self.thickness += (depth / 255) * (layer - 0.18 * flanks) * uneven

    def draw_arms(self, outlines: list[np.ndarray], depth: float) -> None:
        """Stems of neurites, (n, 2) outlines: they thin out from the body and belong to no mask."""
        layer = np.zeros(self.shape, np.uint8)
        for outline in outlines:
            fixed = np.round(outline * 2**SUBPIXEL_BITS).astype(np.int32)
            cv2.fillPoly(layer, [fixed], 255, cv2.LINE_AA, SUBPIXEL_BITS)
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
