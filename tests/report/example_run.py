"""A run of `predict` for the tests of its page: cells found, none found, and an image that failed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from report.example_report import SHAPE, squares

from kernel.export.svg import svg_picture
from kernel.masks.instances import CellMasks
from kernel.report.run_page import RunImage

#: A file's name may hold all of this.
NASTY = "a<b>&\"c' é\N{SNOWMAN}\\1"


def noise(shape: tuple[int, int] = SHAPE) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)


def draw(path: Path, masks: CellMasks, name: str = "image") -> Path:
    path.write_text(svg_picture(noise(masks.image_shape), masks, name), encoding="utf-8", newline="\n")
    return path


def example_run(folder: Path) -> list[RunImage]:
    some, none = squares([(2, 2), (40, 60)]), CellMasks.empty(SHAPE)
    return [
        RunImage("first", [144, 144], "astro", 0.02, None, draw(folder / "first.svg", some)),
        RunImage(NASTY, [900], "cort", 0.1, None, draw(folder / "nasty.svg", squares([(9, 9)], 30), NASTY)),
        RunImage("bare", picture=draw(folder / "bare.svg", none)),
        RunImage("broken", failure="broken.png is not an image: <script>alert(1)</script>"),
    ]
