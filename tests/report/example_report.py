"""Images for the report's tests: squares on noise, some found, some missed, some invented."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kernel.data.annotated import AnnotatedImage
from kernel.data.annotations import ImageAnnotations
from kernel.masks.instances import CellMasks
from kernel.report.builder import ReportBuilder
from kernel.scoring.scores import ImageResult, ScoredImage
from kernel.tuning.surface import ThresholdSurface
from kernel.tuning.threshold_grid import ThresholdGrid

SHAPE = (90, 120)
GRID = ThresholdGrid((0.4, 0.5), (0.05, 0.1, 0.2), (0, 70), (0.1, 0.3, 0.5))


class NoiseImage(AnnotatedImage):
    """An image whose pixels lie in no file."""

    def read(self) -> np.ndarray:
        pixels = np.random.default_rng(len(self.image_id)).normal(128, 20, (*SHAPE, 1)).clip(0, 255).astype(np.uint8)
        return np.repeat(pixels, 3, axis=2)


def squares(corners: list[tuple[int, int]], side: int = 12) -> CellMasks:
    """Squares of pixels at (row, column), the first the surest."""
    return CellMasks(
        crops=tuple(np.ones((side, side), bool) for _ in corners),
        offsets_yx=np.array(corners),
        boxes_xyxy=np.array([(x, y, x + side, y + side) for y, x in corners]),
        scores=np.linspace(0.9, 0.4, len(corners)),
        labels=np.zeros(len(corners)),
        image_shape=SHAPE,
    )


def report_image(
    name: str, cell_type: str, hits: int, misses: int = 0, false_alarms: int = 0, found_type: str | None = ""
) -> ScoredImage:
    """An image with so many cells of each fate; `found_type` "": the true one."""
    places = [(20 * row + 2, 20 * column + 2) for row in range(4) for column in range(6)]
    truth = places[: hits + misses]
    found = places[:hits] + places[hits + misses :][:false_alarms]
    result = ImageResult(
        image_id=name,
        cell_type=cell_type,
        found_type=(found_type or (cell_type if found_type == "" and found else None)),
        counted_type=cell_type,
        cells=len(truth),
        found_cells=len(found),
        score=0.0,  # the report measures for itself
        seconds=1.5,
        level_counts=(),
    )
    entry = NoiseImage(Path(f"{name}.png"), ImageAnnotations(name, cell_type, SHAPE, ()))
    return ScoredImage(entry, result, masks=squares(found), truth=squares(truth))


def surface(cell_type: str, best: tuple[int, int, int, int] = (1, 1, 0, 2)) -> ThresholdSurface:
    """Scores that fall with the distance from the best point."""
    places = np.indices(GRID.shape)
    distance = np.abs(places - np.array(best).reshape(4, 1, 1, 1, 1)).sum(axis=0)
    return ThresholdSurface(cell_type, GRID, 0.8 - 0.05 * distance)


def example_report() -> ReportBuilder:
    """All that a report may hold: types, confusion, an image without cells, names that want to be code."""
    builder = ReportBuilder("Squares & <noise>", examples=1)
    for image in (
        report_image("good", "shsy5y", hits=6),
        report_image("middling", "shsy5y", hits=4, misses=2, false_alarms=1),
        report_image('<img src=x onerror="alert(1)">', "shsy5y", hits=1, misses=5, false_alarms=3),
        report_image("empty", "astro", hits=0),
        report_image("lost", "astro", hits=0, misses=3),
        report_image("../taken/for another", "cort", hits=3, false_alarms=1, found_type="astro"),
    ):
        builder.add(image)
    return builder
