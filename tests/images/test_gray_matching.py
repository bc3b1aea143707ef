"""Gray levels of 8 bits: which are far from what members know, and how they are brought to those."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from kernel.images.gray_levels import to_eight_bit
from kernel.images.gray_matching import far_grays, matched_grays

BUNDLE = Path(__file__).resolve().parents[2] / "bundle"
SAMPLES = sorted([*(BUNDLE / "members" / "images").glob("*.png"), *(BUNDLE / "synthetic" / "images").glob("*.png")])


def read(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def changed(image: np.ndarray, mean: float, contrast: float) -> np.ndarray:
    """The image around another mean, of less or more contrast."""
    return np.clip(np.rint((image - image.mean()) * contrast + mean), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_what_is_far(path: Path) -> None:
    image = read(path)
    assert far_grays(image) is None
    for dim in (image // 2, image // 4, changed(image, 220, 1), changed(image, 128, 0.1)):
        assert far_grays(dim) is not None
    for likewise in (image[:, ::2], changed(image, 110, 1.5), matched_grays(image // 4)):
        assert far_grays(likewise) is None


def test_what_is_told() -> None:
    noise = np.repeat(np.random.default_rng(0).normal(30, 3, (90, 80, 1)), 3, axis=2).astype(np.uint8)
    assert far_grays(noise) == pytest.approx((29.5, 3), abs=0.1)
    noise[20:40, 10:70] = 255  # a scale bar
    assert far_grays(noise) == pytest.approx((29.5, 3), abs=0.1)
    assert far_grays(np.full((9, 8, 3), 7, np.uint8)) is None
    harsh = np.random.default_rng(0).integers(0, 256, (90, 80, 1)).astype(np.uint8)
    assert far_grays(np.repeat(harsh, 3, axis=2)) == pytest.approx((127.5, 74), abs=2)


def test_the_mapping_is_that_of_other_depths() -> None:
    image = read(SAMPLES[0])
    dim = image // 3
    deep = dim.astype(np.uint16)
    np.testing.assert_array_equal(matched_grays(dim), to_eight_bit(deep))
    colour = np.dstack([dim[..., 0], dim[..., 0] // 2, dim[..., 0]])
    np.testing.assert_array_equal(matched_grays(colour), to_eight_bit(colour.astype(np.int32)))
    mapped = to_eight_bit(deep * 57 + 900)
    assert matched_grays(mapped) is mapped  # as it is read from a file of 16 bits
    np.testing.assert_array_equal(matched_grays(np.full((9, 8, 3), 7, np.uint8)), 128)
