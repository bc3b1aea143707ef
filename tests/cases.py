"""Small annotated folders of rectangular cells, and a recipe that trains on them in a second, for the commands."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from kernel.masks.rle import encode_rle

COLUMNS = ("id", "annotation", "width", "height", "cell_type", "sample_id")
#: Top, left, height and width of cells in an image of 160 x 160 or more.
GRID = tuple((y, x, 14, 14) for y in range(5, 130, 25) for x in range(5, 130, 25))
RECIPE = """
[detector]
kind = "maskrcnn"
encoder = "resnet18_narrow"
num_classes = 3
neck_channels = 16
fc_channels = 16
mask_channels = 16
[training]
iterations = 2
batch_size = 2
crop_size = 64
rpn_nms_pre = 50
rois_per_image = 16
checkpoint_every = 1
"""

#: Rectangles: top, left, height, width.
Cells = Sequence[tuple[int, int, int, int]]


def write_recipe(folder: Path) -> Path:
    """The recipe as a file."""
    path = folder / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8", newline="\n")
    return path


def draw_image(seed: int, cells: Cells, side: int = 160) -> np.ndarray:
    """(side, side) uint8: noise over waves of its own, so that no two seeds look alike, with bright cells."""
    rng = np.random.default_rng(seed)
    waves = cv2.resize(rng.uniform(90, 150, (20, 20)), (side, side), interpolation=cv2.INTER_CUBIC)
    pixels = (waves + rng.normal(0, 3, (side, side))).clip(0, 200).astype(np.uint8)
    for y, x, height, width in cells:
        pixels[y : y + height, x : x + width] = 230
    return pixels


def rows_of_cells(name: str, kind: str, cells: Cells, side: int = 160, sample: str = "") -> list[list[str]]:
    """Rows of train.csv; one without an annotation where there are no cells."""
    rles = [encode_rle(np.ones((h, w), bool), np.array([y, x]), (side, side)) for y, x, h, w in cells]
    return [[name, rle, str(side), str(side), kind, sample] for rle in rles or [""]]


def write_rows(folder: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write train.csv."""
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([COLUMNS, *rows])


def competition(
    folder: Path, images: Sequence[tuple[str, str, Cells]], samples: Sequence[str] = (), side: int = 160
) -> Path:
    """A competition's folder of images (id, cell type, cells), each of its own look."""
    (folder / "train").mkdir(parents=True)
    rows = []
    for number, (name, kind, cells) in enumerate(images):
        rows += rows_of_cells(name, kind, cells, side, samples[number] if samples else "")
        cv2.imwrite(str(folder / "train" / f"{name}.png"), draw_image(number, cells, side))
    write_rows(folder, rows)
    return folder


THREE = (("one", "cort", GRID), ("two", "astro", GRID), ("three", "shsy5y", GRID))


def forget_samples(folder: Path) -> Path:
    """A competition's folder, its images now of no known sample, so that each is alone in any split."""
    table = folder / "train.csv"
    with table.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with table.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "sample_id": ""} for row in rows)
    return folder
