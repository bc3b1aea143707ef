"""Values of the post-processing's thresholds to try: a grid, from a TOML file or as it is by default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from kernel.data.toml_files import read_toml
from kernel.errors import InputError
from kernel.manifest.rules import THRESHOLD_RULES
from kernel.settings import CELL_TYPES, Thresholds

#: What is tuned of `Thresholds`, in the order of the grid's axes.
TUNED_FIELDS = ("mask_threshold", "mask_nms_threshold", "min_size", "confidence")


@dataclass(frozen=True)
class ThresholdGrid:
    """The values to try along each axis, rising; every combination is a point."""

    mask_thresholds: tuple[float, ...]
    nms_thresholds: tuple[float, ...]
    min_sizes: tuple[int, ...]
    confidences: tuple[float, ...]

    @property
    def axes(self) -> tuple[tuple[float, ...], ...]:
        """The values along each axis, in the order of `TUNED_FIELDS`."""
        return self.mask_thresholds, self.nms_thresholds, self.min_sizes, self.confidences

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.mask_thresholds), len(self.nms_thresholds), len(self.min_sizes), len(self.confidences)

    def positions(self) -> np.ndarray:
        """(P, 4) float64: the place of each point along each axis, in steps; points are counted as `ravel` does."""
        return np.indices(self.shape).reshape(4, -1).T.astype(np.float64)

    def position_of(self, thresholds: Thresholds) -> np.ndarray:
        """(4,) float64: the place of any thresholds, in steps; between two values by interpolation, outside at the end.

        The values must rise along each axis.
        """
        return np.array(
            [
                np.interp(getattr(thresholds, name), values, np.arange(len(values)))
                for name, values in zip(TUNED_FIELDS, self.axes, strict=True)
            ]
        )

    def including(self, thresholds: Thresholds) -> ThresholdGrid:
        """This grid with the values of `thresholds` as well, so that any of them can stay; axes in rising order."""
        masks, nms, sizes, confidences = (
            tuple(sorted({*values, getattr(thresholds, name)}))
            for name, values in zip(TUNED_FIELDS, self.axes, strict=True)
        )
        return ThresholdGrid(masks, nms, tuple(int(size) for size in sizes), confidences)

    def values(self) -> np.ndarray:
        """(P, 4) float64: the thresholds of each point, in the order of `TUNED_FIELDS`."""
        return np.stack([part.ravel() for part in np.meshgrid(*self.axes, indexing="ij")], axis=1)

    def thresholds_at(self, point: int, base: Thresholds) -> Thresholds:
        """`base` with the values of a point put in."""
        places = np.unravel_index(point, self.shape)
        values = [axis[int(place)] for axis, place in zip(self.axes, places, strict=True)]
        return replace(base, **dict(zip(TUNED_FIELDS, values, strict=True)))


#: What `python -m kernel tune` tries.
DEFAULT_GRID = ThresholdGrid(
    mask_thresholds=(0.35, 0.4, 0.45, 0.5, 0.55),
    nms_thresholds=(0.05, 0.1, 0.15, 0.2, 0.3),
    min_sizes=(0, 20, 40, 70, 100, 150),
    confidences=tuple(step / 20 for step in range(2, 18)),
)


def tuned_values(thresholds: Thresholds) -> dict[str, float]:
    """The tuned fields alone."""
    return {name: getattr(thresholds, name) for name in TUNED_FIELDS}


def read_grids(path: Path) -> tuple[ThresholdGrid, dict[str, ThresholdGrid]]:
    """The values to try, from a TOML file: for all cell types, and of those that have a table of their own.

        confidence = [0.2, 0.3, 0.4]
        min_size = [0, 50]

        [cort]
        confidence = [0.5, 0.6, 0.7, 0.8]

    Keys are `TUNED_FIELDS`. What a cell type's table leaves out is as for all types, and what that leaves out is as in
    `DEFAULT_GRID`.

    Raises:
        InputError: no such file, no TOML, an unknown key, or values that do not rise or are no such thresholds.
    """
    data = read_toml(path, "grid")
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    common = _grid_of(
        {key: value for key, value in data.items() if key not in tables}, DEFAULT_GRID, str(path),
        f"{', '.join(TUNED_FIELDS)}, and tables of these for {', '.join(CELL_TYPES)}",
    )  # fmt: skip
    for name in tables:
        if name not in CELL_TYPES:
            raise InputError(f"{path}: [{name}] is no cell type; the types are {', '.join(CELL_TYPES)}")
    own = {
        name: _grid_of(values, common, f"{path} [{name}]", ", ".join(TUNED_FIELDS)) for name, values in tables.items()
    }
    return common, own


def _grid_of(given: Mapping[str, Any], base: ThresholdGrid, source: str, known: str) -> ThresholdGrid:
    axes = dict(zip(TUNED_FIELDS, base.axes, strict=True))
    for key, values in given.items():
        if key not in axes:
            raise InputError(f"{source}: unknown key '{key}'; known are {known}")
        rule = THRESHOLD_RULES[key]
        if not isinstance(values, list) or not values or not all(rule.allows(value) for value in values):
            raise InputError(f"{source} {key}: found {values!r:.60}, expected a list, each {rule.description}")
        if any(later <= earlier for earlier, later in pairwise(values)):
            raise InputError(f"{source} {key}: {values!r:.60} must rise from value to value")
        axes[key] = tuple(values)
    masks, nms, sizes, confidences = axes.values()
    return ThresholdGrid(masks, nms, tuple(int(size) for size in sizes), confidences)
