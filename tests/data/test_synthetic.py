"""The generator of synthetic cells: exact masks, reproducible, the competition's figures."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kernel.data.synthetic.generate import SyntheticImage, generate_image, write_dataset
from kernel.errors import InputError
from kernel.settings import CELL_TYPES

#: Medians over the competition's 519 annotated images: area in pixels, elongation, solidity, cells per image.
MEDIANS = {
    "shsy5y": (199.0, 1.82, 0.91, 305.5),
    "astro": (660.0, 2.79, 0.75, 73.0),
    "cort": (207.0, 1.30, 0.95, 30.0),
}
#: 5 % and 95 % quantiles over the same images: cells per image, standard deviation of the gray levels.
RANGES = {
    "shsy5y": ((78, 543), (7.8, 15.5)),
    "astro": ((15, 150), (6.3, 11.6)),
    "cort": ((16, 70), (10.7, 18.9)),
}


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


@pytest.fixture(scope="module", params=CELL_TYPES)
def pictures(request: pytest.FixtureRequest) -> list[SyntheticImage]:
    return [generate_image(request.param, seed) for seed in range(8)]


def test_figures_match_the_competition(pictures: list[SyntheticImage]) -> None:
    cell_type = pictures[0].cell_type
    figures = statistics(pictures)[cell_type]
    area, elongation, solidity, count = MEDIANS[cell_type]
    # Eight images: shapes are many, hence near; counts are eight draws from a broad distribution.
    assert figures["area_px"]["p50"] == pytest.approx(area, rel=0.2)
    assert figures["elongation"]["p50"] == pytest.approx(elongation, rel=0.12)
    assert figures["solidity"]["p50"] == pytest.approx(solidity, abs=0.04)
    assert figures["cells_per_image"]["p50"] == pytest.approx(count, rel=0.45)
    (fewest, most), (faintest, strongest) = RANGES[cell_type]
    for picture in pictures:
        assert 0.6 * fewest <= len(picture.masks) <= 1.25 * most
        assert abs(picture.image.mean() - 128) < 0.3
        assert 0.85 * faintest <= picture.image.std() <= 1.15 * strongest


def test_masks_are_apart_inside_and_of_one_piece(pictures: list[SyntheticImage]) -> None:
    for picture in pictures[:3]:
        covered = np.zeros(picture.image.shape, int)
        for crop, (y, x) in picture.masks:
            assert crop.dtype == bool
            assert y >= 0 and x >= 0 and y + crop.shape[0] <= 520 and x + crop.shape[1] <= 704
            assert crop[0].any() and crop[-1].any() and crop[:, 0].any() and crop[:, -1].any()
            assert cv2.connectedComponents(crop.astype(np.uint8), connectivity=4)[0] == 2
            covered[y : y + crop.shape[0], x : x + crop.shape[1]] += crop
        assert covered.max() == 1


def test_cells_can_be_seen(pictures: list[SyntheticImage]) -> None:
    # Inside a cell and on its rim the gray levels vary well above the camera's noise of about one level.
    for picture in pictures[:3]:
        spread = []
        for crop, (y, x) in picture.masks:
            window = picture.image[y : y + crop.shape[0], x : x + crop.shape[1]]
            spread.append(float(window[crop].std()))
        assert np.quantile(spread, 0.02) > 2.5


def test_same_arguments_same_picture() -> None:
    first, second = (generate_image("cort", 5, (128, 160)) for _ in range(2))
    np.testing.assert_array_equal(first.image, second.image)
    assert len(first.masks) == len(second.masks)
    for (crop, corner), (other, other_corner) in zip(first.masks, second.masks, strict=True):
        assert corner == other_corner
        np.testing.assert_array_equal(crop, other)
    assert not np.array_equal(first.image, generate_image("cort", 6, (128, 160)).image)
    assert not np.array_equal(first.image, generate_image("shsy5y", 5, (128, 160)).image)


@pytest.mark.parametrize("cell_type", CELL_TYPES)
@pytest.mark.parametrize("shape", [(64, 64), (65, 301), (256, 256)])
def test_other_shapes(cell_type: str, shape: tuple[int, int]) -> None:
    picture = generate_image(cell_type, 1, shape)
    assert picture.image.shape == shape
    assert picture.image.dtype == np.uint8
    assert picture.masks


@pytest.mark.parametrize(
    ("cell_type", "seed", "shape", "message"),
    [
        ("neuron", 0, (520, 704), "shsy5y, astro, cort"),
        ("cort", -1, (520, 704), "from 0 on"),
        ("cort", 0, (20, 704), "at least 64"),
    ],
)
def test_wrong_arguments(cell_type: str, seed: int, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        generate_image(cell_type, seed, shape)


def _decoded(text: str, shape: tuple[int, int]) -> np.ndarray:
    """The obvious way to read run lengths, as the oracle."""
    flat = np.zeros(shape[0] * shape[1], bool)
    numbers = [int(word) for word in text.split()]
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        flat[start - 1 : start - 1 + length] = True
    return flat.reshape(shape)


def test_write_dataset_in_the_competitions_layout(tmp_path: Path) -> None:
    shape = (96, 128)
    write_dataset(tmp_path, {"cort": 2, "astro": 1}, seed=3, shape=shape)
    with (tmp_path / "train.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "id", "annotation", "width", "height", "cell_type", "plate_time", "sample_date", "sample_id",
        "elapsed_timedelta",
    ]  # fmt: skip
    types = {row["id"]: row["cell_type"] for row in rows}
    assert sorted(types.values()) == ["astro", "cort", "cort"]
    assert all(len(name) == 12 and int(name, 16) >= 0 for name in types)
    assert {path.stem for path in (tmp_path / "train").glob("*.png")} == set(types)
    for name in types:
        assert cv2.imread(str(tmp_path / "train" / f"{name}.png"), cv2.IMREAD_UNCHANGED).shape == shape
        masks = [_decoded(row["annotation"], shape) for row in rows if row["id"] == name]
        assert np.sum(masks, axis=0).max() == 1
    assert {(row["height"], row["width"]) for row in rows} == {("96", "128")}


def test_data_sets_of_other_seeds_share_no_image(tmp_path: Path) -> None:
    names = []
    for seed in (0, 1):
        write_dataset(tmp_path / str(seed), {"cort": 3}, seed=seed, shape=(64, 64))
        names += [path.stem for path in (tmp_path / str(seed) / "train").iterdir()]
    assert len(set(names)) == 6


def test_empty_dataset_and_no_images(tmp_path: Path) -> None:
    write_dataset(tmp_path, {}, seed=0)
    assert (tmp_path / "train.csv").read_text().count("\n") == 1
    assert statistics([]) == {}


def test_statistics_of_known_shapes() -> None:
    square = np.ones((21, 21), bool)
    bar = np.ones((11, 41), bool)
    image = SyntheticImage(np.full((64, 64), 128, np.uint8), [(square, (0, 0)), (bar, (30, 0))], "astro", 0)
    figures = statistics([image])["astro"]
    assert (figures["images"], figures["cells"]) == (1, 2)
    assert figures["area_px"]["p50"] == (441 + 451) / 2
    assert figures["elongation"]["p50"] == pytest.approx((1 + 4) / 2)
    assert figures["solidity"]["p5"] == pytest.approx(1.0)
    assert figures["gray_std"] == [0.0, 0.0, 0.0]
    empty = SyntheticImage(np.full((64, 64), 128, np.uint8), [], "cort", 0)
    assert statistics([empty])["cort"]["cells"] == 0
