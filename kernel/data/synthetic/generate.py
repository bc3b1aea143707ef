"""Synthetic phase-contrast images of three types of neuronal cells, with exact instance masks.

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
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from kernel.data.synthetic.cells import DRAW_CELLS, TYPE_FIGURES, relative_size, value_at_quantile
from kernel.data.synthetic.scene import CropMask, Scene
from kernel.errors import InputError
from kernel.images.writing import write_image_file
from kernel.masks.rle import encode_rle
from kernel.settings import CELL_TYPES, COMPETITION_SHAPE

#: Smaller images cannot hold a cell with its surroundings.
MIN_SIDE = 64
_BACKGROUND = 128.0


@dataclass(frozen=True)
class SyntheticImage:
    """One picture and its truth."""

    image: np.ndarray  # (H, W) uint8
    masks: list[CropMask]  # (crop bool (h, w), (y0, x0)); no pixel belongs to two cells
    cell_type: str
    seed: int


def generate_image(cell_type: str, seed: int, shape: tuple[int, int] = COMPETITION_SHAPE) -> SyntheticImage:
    """One picture of (height, width) pixels; the same arguments give the same picture.

    The number of cells is the competition's, scaled with the area, and at least 1.

    Raises:
        InputError: the type is none of CELL_TYPES, the seed is negative, or a side is shorter than MIN_SIDE.
    """
    if cell_type not in TYPE_FIGURES:
        raise InputError(f"unknown cell type {cell_type!r}: choose one of {', '.join(CELL_TYPES)}")
    if seed < 0:
        raise InputError(f"the seed of a synthetic image is {seed}: give a whole number from 0 on")
    if min(shape) < MIN_SIDE:
        raise InputError(
            f"a synthetic image of {shape[0]} x {shape[1]} is too small: give sides of at least {MIN_SIDE} pixels"
        )
    figures = TYPE_FIGURES[cell_type]
    rng = np.random.Generator(np.random.PCG64([CELL_TYPES.index(cell_type), seed]))
    scene = Scene(rng, (int(shape[0]), int(shape[1])))
    crowd = rng.random()
    share = relative_size(shape)
    DRAW_CELLS[cell_type](scene, figures, max(1, round(value_at_quantile(figures.count, crowd) * share)))

    signal = scene.signal()
    # Fuller pictures have more contrast: the quantile of the count, loosely, is that of the gray levels.
    contrast = np.interp(0.6 * crowd + 0.4 * rng.random(), (0.05, 0.5, 0.95), figures.gray_std)
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
        InputError: as `generate_image`; or `out` holds a train.csv, or cannot be written.
    """
    if seed < 0:
        raise InputError(f"the seed of a data set is {seed}: give a whole number from 0 on")
    if (out / "train.csv").exists():
        raise InputError(f"{out} holds a train.csv already: name another folder, its annotations would be lost")
    try:
        (out / "train").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write into {out}: {error.strerror}; name another folder") from error
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
                # Four pictures per well, as fields of one vessel, which has one cell type: what folds are grouped by.
                well, place = f"{'ABCDEFGH'[index // 4 % 8]}{1 + index // 32 % 12}", 1 + index % 4
                vessel = 1 + CELL_TYPES.index(cell_type) + index // 384 * len(CELL_TYPES)
                sample = f"{cell_type}[synthetic]_{well}-{place}_Vessel-{vessel}_Ph_{place}"
                after = (shape[1], shape[0], cell_type, "11h30m00s", "2019-06-16", sample, "0 days 11:30:00")
                for crop, corner in picture.masks:
                    rows.writerow((name, encode_rle(crop, corner, shape), *after))
