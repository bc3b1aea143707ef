"""Pictures: outlines where the masks are, each in its own colour."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from kernel.postprocess.pictures import draw_picture, outline_colour


@pytest.mark.parametrize("shape", [(40, 60, 3), (1500, 700, 3)])
def test_pictures_show_outlines(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    image = np.full(shape, 128, np.uint8)
    width = shape[1]
    square = " ".join(f"{row * width + 11} 10" for row in range(10, 20))
    draw_picture(tmp_path / "none.png", image, [], "none: 0 cells")
    draw_picture(tmp_path / "one.png", image, [square], "one: 1 cell")
    none, one = (cv2.imread(str(tmp_path / name)) for name in ("none.png", "one.png"))
    scale = one.shape[1] // width
    drawn = np.argwhere((none != one).any(axis=2))
    drawn = drawn[drawn[:, 0] < shape[0] * scale]
    assert (drawn.min(axis=0) == 10 * scale).all() and (drawn.max(axis=0) == 20 * scale - 1).all()


def test_colours_differ() -> None:
    assert len({outline_colour(index) for index in range(200)}) == 200


@pytest.mark.parametrize("name", ["M\udcfcller_01", "\u7d30\u80de", "a\nb", ""])
def test_a_caption_may_hold_any_character(tmp_path: Path, name: str) -> None:
    """OpenCV ends the process over half a character, and draws ASCII alone."""
    draw_picture(tmp_path / "picture.png", np.zeros((20, 30, 3), np.uint8), [], f"{name}: 0 cells")
    assert (tmp_path / "picture.png").stat().st_size > 0
