"""Outlines that are the mask: areas, validity and pixels, by shapely and by filling them again."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from oracles import random_soft_frames
from scipy.ndimage import label
from shapely.geometry import MultiPolygon

from kernel.data.synthetic.generate import generate_image
from kernel.masks.instances import tight_window
from kernel.masks.rle import decode_rle_crop
from kernel.postprocess.outlines import Ring, mask_polygons
from kernel.settings import CELL_TYPES

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def geometries_of(masks: Sequence[list[list[Ring]]]) -> np.ndarray:
    """(N,) a MultiPolygon for the polygons of each mask, none of them empty; all at once, which is quicker by far."""
    polygons = [polygon for mask in masks for polygon in mask]
    rings = [ring for polygon in polygons for ring in polygon]
    lines = shapely.linearrings(np.concatenate(rings), indices=places(rings))
    return shapely.multipolygons(shapely.polygons(lines, indices=places(polygons)), indices=places(masks))


def places(groups: Sequence[Sequence]) -> np.ndarray:
    """For each member of each group the group's place."""
    return np.repeat(np.arange(len(groups)), [len(group) for group in groups])


def geometry_of(polygons: list[list[Ring]]) -> MultiPolygon:
    return geometries_of([polygons])[0] if polygons else MultiPolygon()


def signed_area(ring: Ring) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in pairwise(ring)) / 2


def fill(polygons: list[list[Ring]], shape: tuple[int, int]) -> np.ndarray:
    """(H, W) bool by the even-odd rule: a pixel is inside if an odd number of vertical edges lies to its left."""
    crossings = np.zeros(shape, int)
    for ring in (ring for polygon in polygons for ring in polygon):
        for (x, y0), (x1, y1) in pairwise(ring):
            if x == x1:
                crossings[min(y0, y1) : max(y0, y1), x:] += 1
    return crossings % 2 == 1


def assert_is_the_mask(mask: np.ndarray, polygons: list[list[Ring]]) -> None:
    """All that `mask_polygons` promises of one mask (H, W) bool at (0, 0)."""
    geometry = geometry_of(polygons)
    assert shapely.is_valid(geometry), shapely.is_valid_reason(geometry)
    assert geometry.area == np.count_nonzero(mask)
    np.testing.assert_array_equal(fill(polygons, mask.shape), mask)
    assert len(polygons) == label(mask)[1]
    for polygon in polygons:
        areas = [signed_area(ring) for ring in polygon]
        assert areas[0] > 0 and all(area < 0 for area in areas[1:])
        for ring in polygon:
            assert ring[0] == ring[-1] and len({tuple(point) for point in ring}) == len(ring) - 1
            steps = np.diff([*ring, ring[1]], axis=0)
            assert ((steps != 0).sum(axis=1) == 1).all()  # along one axis, never on the spot
            assert (steps[1:] * steps[:-1] == 0).all()  # and along the other one next: no point on a straight line


def union_of_pixels(mask: np.ndarray) -> shapely.Geometry:
    """The slow way: a square for each pixel, joined by shapely."""
    y, x = np.nonzero(mask)
    return shapely.union_all(shapely.box(x, y, x + 1, y + 1))


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (3, 3), (2, 5)])
def test_every_small_mask(shape: tuple[int, int]) -> None:
    pixels = shape[0] * shape[1]
    for bits in range(2**pixels):
        mask = ((bits >> np.arange(pixels)) & 1).astype(bool).reshape(shape)
        polygons = mask_polygons(mask)
        assert_is_the_mask(mask, polygons)
        union = union_of_pixels(mask)
        assert geometry_of(polygons).equals(union)
        assert sum(map(len, polygons)) == sum(1 + len(part.interiors) for part in shapely.get_parts(union))


def test_every_mask_of_four_by_four_pixels() -> None:
    """All 65536, side by side in one mask, a pixel apart."""
    bits = np.arange(2**16).reshape(256, 256)
    sheet = np.zeros((256, 5, 256, 5), bool)
    sheet[:, :4, :, :4] = (bits[:, None, :, None] >> np.arange(16).reshape(1, 4, 1, 4)) & 1
    sheet = sheet.reshape(1280, 1280)
    polygons = mask_polygons(sheet)
    np.testing.assert_array_equal(fill(polygons, sheet.shape), sheet)
    parts = defaultdict(list)
    for polygon in polygons:
        x, y = polygon[0][0]
        parts[y // 5, x // 5].append(polygon)
    assert len(parts) == 2**16 - 1  # one mask is empty
    geometries = geometries_of(list(parts.values()))
    assert shapely.is_valid(geometries).all()
    assert shapely.area(geometries).tolist() == [int(bits[place]).bit_count() for place in parts]


@given(st.integers(0, 2**32 - 1), st.floats(0.2, 0.95))
def test_noise(seed: int, density: float) -> None:
    """Masks that touch themselves all over, holes within holes."""
    rng = np.random.default_rng(seed)
    mask = rng.random(rng.integers(1, 25, 2)) < density
    assert_is_the_mask(mask, mask_polygons(mask))


def test_blobs_against_the_union_of_their_pixels() -> None:
    for frame in random_soft_frames(np.random.default_rng(0), 40, (24, 30)):
        mask = frame > 100
        polygons = mask_polygons(mask)
        assert_is_the_mask(mask, polygons)
        assert geometry_of(polygons).equals(union_of_pixels(mask))


def test_pieces_that_touch_at_a_corner_are_two_polygons() -> None:
    assert mask_polygons(np.eye(2, dtype=bool), (10, 20)) == [
        [[[20, 10], [21, 10], [21, 11], [20, 11], [20, 10]]],
        [[[21, 11], [22, 11], [22, 12], [21, 12], [21, 11]]],
    ]


def test_a_hole_that_touches_the_outside_at_a_corner_is_a_hole() -> None:
    mask = np.array([[1, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 1]], bool)
    (polygon,) = mask_polygons(mask)
    assert [abs(signed_area(ring)) for ring in polygon] == [14, 1, 1]  # and two holes that touch each other
    mask = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], bool)
    (polygon,) = mask_polygons(mask)
    assert [abs(signed_area(ring)) for ring in polygon] == [8, 1]
    assert_is_the_mask(mask, [polygon])


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (4, 5)])
def test_no_pixels(shape: tuple[int, int]) -> None:
    assert mask_polygons(np.zeros(shape, bool), (3, 4)) == []


# --- cells -------------------------------------------------------------------------------------------------------


def synthetic_cells() -> Iterator[np.ndarray]:
    for seed in range(3):
        for cell_type in CELL_TYPES:
            yield from (crop for crop, _ in generate_image(cell_type, seed).masks)


def sartorius_cells() -> Iterator[np.ndarray]:
    with (DATA / "sartorius" / "train.csv").open(newline="") as stream:
        for row in csv.DictReader(stream):
            yield decode_rle_crop(row["annotation"], (int(row["height"]), int(row["width"])))[0]


def t98g_cells() -> Iterator[np.ndarray]:
    for path in sorted((DATA / "usiigaci_t98g" / "masks").iterdir()):
        labels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        for number in np.unique(labels[labels > 0]):
            y0, x0, y1, x1 = tight_window(labels == number)
            yield labels[y0:y1, x0:x1] == number


@pytest.mark.parametrize("cells", [synthetic_cells, sartorius_cells, t98g_cells])
def test_cells(cells) -> None:
    """500 cells of each source."""
    if cells is not synthetic_cells and not DATA.is_dir():
        pytest.skip(f"no real cells: {DATA} is not there")
    crops = [crop for crop, _ in zip(cells(), range(500), strict=False)]
    assert len(crops) == 500
    outlines = [mask_polygons(crop) for crop in crops]
    geometries = geometries_of(outlines)
    assert shapely.is_valid(geometries).all()
    assert shapely.area(geometries).tolist() == [np.count_nonzero(crop) for crop in crops]
    for crop, polygons in zip(crops, outlines, strict=True):
        np.testing.assert_array_equal(fill(polygons, crop.shape), crop)
