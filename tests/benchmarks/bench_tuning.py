"""The tuning's grid against the submission's own functions called once per grid point: equal scores, ratio of times.

    PYTHONPATH=.:tests python tests/benchmarks/bench_tuning.py [images] [cells] [points]

Images are of 520 x 704 with cells in clumps, some found twice, as detectors find them; the grid is DEFAULT_GRID. The
slow version runs at a random sample of `points` and its time is extrapolated to the whole grid.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
from oracles import random_instances

from kernel.masks.instances import CellMasks, Instances
from kernel.postprocess.clean import binarise, postprocess_instances
from kernel.scoring.metric import image_score
from kernel.settings import Thresholds
from kernel.tuning.grid_scores import score_grid
from kernel.tuning.threshold_grid import DEFAULT_GRID

SHAPE = (520, 704)
SMALL = (32, 32)


def clumped_image(seed: int, cells: int) -> tuple[Instances, CellMasks]:
    """Cells of a small canvas in clumps of about ten; a third of them found again, moved a little, with another score.

    The truth is most of the cells at a threshold of its own.
    """
    rng = np.random.default_rng(seed)
    small = random_instances(rng, cells, SMALL)
    high = np.array(SHAPE) - SMALL
    centres = rng.uniform(0, high, (max(cells // 10, 1), 2))
    offsets = centres[rng.integers(0, len(centres), cells)] + rng.normal(0, 25, (cells, 2))
    offsets = small.offsets_yx + np.clip(offsets, 0, high).astype(int)
    first = Instances(small.crops, offsets, small.boxes_xyxy, small.scores, small.labels, SHAPE)
    again = rng.choice(cells, cells // 3, replace=False)
    sizes = np.array([small.crops[index].shape for index in again]).reshape(-1, 2)
    moved = np.clip(offsets[again] + rng.integers(-2, 3, (len(again), 2)), 0, np.array(SHAPE) - sizes)
    instances = Instances(
        crops=(*first.crops, *(small.crops[index] for index in again)),
        offsets_yx=np.concatenate([offsets, moved]),
        boxes_xyxy=np.concatenate([small.boxes_xyxy, small.boxes_xyxy[again]]),
        scores=np.concatenate([small.scores, small.scores[again] * rng.uniform(0.3, 1, len(again))]),
        labels=np.concatenate([small.labels, small.labels[again]]),
        image_shape=SHAPE,
    )
    return instances, binarise(first, 0.42).select(np.flatnonzero(rng.random(cells) < 0.8))


def main(images: int, cells: int, points: int) -> None:
    rng = np.random.default_rng(0)
    grid = DEFAULT_GRID
    for corrupt in (False, True):
        fast = slow = 0.0
        for seed in range(images):
            instances, truth = clumped_image(seed, cells)
            start = time.perf_counter()
            scores = score_grid(instances, truth, grid, corrupt=corrupt)
            fast += time.perf_counter() - start
            chosen = rng.choice(scores.size, min(points, scores.size), replace=False)
            start = time.perf_counter()
            expected = [image_score(postprocess_instances(instances, at(index, corrupt)), truth) for index in chosen]
            slow += (time.perf_counter() - start) * scores.size / len(chosen)
            np.testing.assert_array_equal(scores.ravel()[chosen], expected)
        print(
            f"{images} images of {len(instances)} detected cells, {scores.size} grid points"
            f"{', corrupted' if corrupt else ''}: grid {fast / images:.2f} s per image, point by point "
            f"{slow / images:.1f} s (extrapolated from {len(chosen)} points), ratio {slow / fast:.0f}; equal scores"
        )


def at(index: int, corrupt: bool) -> Thresholds:
    """The thresholds of a point of DEFAULT_GRID, counted as `ravel` does."""
    mask, nms, size, confidence = np.unravel_index(index, DEFAULT_GRID.shape)
    return replace(
        Thresholds(corrupt=corrupt),
        mask_threshold=DEFAULT_GRID.mask_thresholds[mask],
        mask_nms_threshold=DEFAULT_GRID.nms_thresholds[nms],
        min_size=DEFAULT_GRID.min_sizes[size],
        confidence=DEFAULT_GRID.confidences[confidence],
    )


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    main(*given, *(2, 300, 60)[len(given) :])
