"""The same pictures under other names are found, and different ones are not taken for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from cases import GRID, THREE, competition, draw_image, rows_of_cells, write_rows

from kernel.__main__ import main
from kernel.data.pictures import LOOK_TOLERANCE, Picture, PictureIndex, picture_of, same_pictures
from kernel.data.splits import read_folds

SIDE = 320


def picture(seed: int) -> np.ndarray:
    return cv2.cvtColor(draw_image(seed, GRID, SIDE), cv2.COLOR_GRAY2BGR)


CHANGES = {
    "brighter": lambda image: np.clip(image * 1.2 + 5, 0, 255).astype(np.uint8),
    "gamma": lambda image: (255 * (image / 255) ** 0.8).astype(np.uint8),
    "half": lambda image: cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "jpeg": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 70])[1], 1),
    "noise": lambda image: np.clip(image + np.random.default_rng(0).normal(0, 2, image.shape), 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_copy_is_found_among_others(change: str) -> None:
    index = PictureIndex([picture_of(f"i{seed}", picture(seed)) for seed in range(8)])
    changed = picture_of("copy", CHANGES[change](picture(5)))
    found = index.find(changed)
    assert found is not None and found.image_id == "i5" and found.pixels != changed.pixels
    assert index.find(picture_of("other", picture(9))) is None
    assert index.find(picture_of("equal", picture(5))) == index.pictures[5]


def faint(seed: int) -> np.ndarray:
    """A picture of faint cells, as a microscope shows it whose light is brighter in the middle and on the left."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    return ((120 + 0.1 * picture(seed)) * (1 - 0.2 * (x**2 + y**2) - 0.1 * x)[..., None]).astype(np.uint8)


@pytest.mark.parametrize("change", CHANGES)
def test_a_common_shading_does_not_make_pictures_the_same(change: str) -> None:
    pictures = [picture_of(f"i{seed}", faint(seed)) for seed in range(8)]
    assert same_pictures(pictures) == []
    copy = picture_of("copy", CHANGES[change](faint(5)))
    assert [pictures[place].image_id for place in PictureIndex(pictures).same(copy)] == ["i5"]


def within(frame: str, seed: int) -> np.ndarray:
    """A picture of faint cells, as a microscope shows it that has a strong structure in every picture."""
    rng = np.random.default_rng(seed)
    image = 90 + 0.2 * picture(seed) + rng.normal(0, 1, (SIDE, SIDE, 1))
    framed = np.roll(image, tuple(rng.integers(SIDE, size=2)), (0, 1))
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    framed[(np.hypot(y, x) > 0.95) if frame == "round field" else (np.maximum(abs(x), abs(y)) > 0.8)] = 0
    return framed


@pytest.mark.parametrize("frame", ["round field", "black frame"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_common_structure_does_not_make_pictures_the_same(frame: str, change: str) -> None:
    images = [within(frame, seed).astype(np.uint8) for seed in range(8)]
    pictures = [picture_of(f"i{seed}", image) for seed, image in enumerate(images)]
    looks_alone = [replace(one, detail="") for one in pictures]
    assert same_pictures(pictures) == [] and len(same_pictures(looks_alone)[0]) > 4
    copy = picture_of("copy", CHANGES[change](images[5]))
    assert [pictures[place].image_id for place in PictureIndex(pictures).same(copy)] == ["i5"]
    assert PictureIndex(looks_alone).find(copy) is not None  # files of weights that do not tell any detail


def test_flat_pictures_are_the_same_only_where_their_pixels_are() -> None:
    pictures = [picture_of(str(level), np.full((40, 60, 3), level, np.uint8)) for level in (90, 120, 90)]
    assert {one.look for one in pictures} == {""}
    assert same_pictures(pictures) == [[0, 2]]
    assert same_pictures([]) == []
    assert PictureIndex([]).find(pictures[0]) is None


@pytest.mark.parametrize("seed", range(4))
def test_the_same_pictures_are_those_of_a_search_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2, (4, 1024)).astype(np.uint8)
    pictures: list[Picture] = []
    for number in range(60):
        look = bits[rng.integers(len(bits))].copy()
        look[rng.choice(1024, rng.integers(115, 136), replace=False)] ^= 1  # of two, in the mean 219 bits differ
        flat = rng.random() < 0.2
        pictures.append(
            Picture(str(number), f"{rng.integers(40):016x}", "" if flat else np.packbits(look).tobytes().hex())
        )

    def is_near(one: Picture, other: Picture) -> bool:
        difference = int(one.look or "0", 16) ^ int(other.look or "0", 16)
        return bool(one.look and other.look) and difference.bit_count() <= LOOK_TOLERANCE

    known, group_of = PictureIndex(pictures[:50]), list(range(len(pictures)))
    for place, picture in enumerate(pictures):
        equal = [other for other in range(50) if pictures[other].pixels == picture.pixels]
        near = [other for other in range(50) if other not in equal and is_near(pictures[other], picture)]
        assert known.same(picture) == equal + near
        assert known.find(picture) == next((pictures[other] for other in equal + near), None)
        for other in range(place):
            if pictures[other].pixels == picture.pixels or is_near(pictures[other], picture):
                one, two = sorted((group_of[place], group_of[other]))
                group_of = [one if group == two else group for group in group_of]
    groups = [[place for place, of in enumerate(group_of) if of == group] for group in dict.fromkeys(group_of)]
    assert same_pictures(pictures) == [group for group in groups if len(group) > 1]


def test_the_preparation_names_copies_and_keeps_them_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [(f"{kind}{number}", kind, GRID) for _, kind, _ in THREE for number in range(4)]
    folder = competition(tmp_path / "cells", images)
    rows = [row for name, kind, cells in images for row in rows_of_cells(name, kind, cells)]
    for name, kind, cells in images[::2]:  # half of them once more, brighter
        image = cv2.imread(str(folder / "train" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(folder / "train" / f"again_{name}.png"), cv2.add(image, 7))
        rows += rows_of_cells(f"again_{name}", kind, cells)
    write_rows(folder, rows)
    words = ["--competition", str(folder), "--split", "stratified", "--folds", "4", "--out", str(tmp_path / "out")]
    assert main(["prepare", *words]) == 0
    told = capsys.readouterr().out
    assert "the same pictures under several ids, kept together in one fold: 6\n" in told
    folds = read_folds(tmp_path / "out" / "folds.csv")
    assert len(folds) == 18
    for name, _, _ in images[::2]:
        assert folds[name] == folds[f"again_{name}"]


def test_small_pictures_are_the_same_by_their_pixels_alone() -> None:
    """Stretched to the look's size, any two would be nearly equal."""
    noise = [np.random.default_rng(seed).integers(0, 255, (6, 10, 3)).astype(np.uint8) for seed in range(12)]
    pictures = [picture_of(str(number), pixels) for number, pixels in enumerate([*noise, noise[3]])]
    assert same_pictures(pictures) == [[3, 12]]
