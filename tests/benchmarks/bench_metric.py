"""The metric of one image of 800 cells at 520 x 704: on crops and on COCO's run lengths against decoded full frames.

    PYTHONPATH=.:tests python tests/benchmarks/bench_metric.py [count]

All start from the same crops or run lengths and must give the same IoU and score. Full frames are compared by one
matrix product of all pixels, for a part of the rows, scaled up: pair by pair they would take many minutes. Times are
the processor's, so that other programs do not count. Also timed: the figures of `kernel.scoring.mask_quality`.
"""

from __future__ import annotations

import sys
import time

import numpy as np
from coco_metric import CocoRle, as_coco, coco_iou_matrix, image_score_coco
from pycocotools import mask as coco_mask

from kernel.masks.instances import CellMasks
from kernel.scoring.mask_quality import measure_image
from kernel.scoring.metric import image_score, score_from_iou

SHAPE = (520, 704)
TARGET = 10
#: Rows of the full frames' matrix that are worked out.
ROWS = 40


def disks(count: int) -> tuple[CellMasks, CellMasks]:
    """Round cells of 8 to 30 pixels across, and the same ones found: moved by a pixel or two, a tenth left out."""
    rng = np.random.default_rng(0)
    radii = rng.integers(4, 16, count)
    rows, columns = np.mgrid[-15:16, -15:16]
    crops = tuple(
        (rows**2 + columns**2 <= radius**2)[15 - radius : 16 + radius, 15 - radius : 16 + radius] for radius in radii
    )
    offsets = np.stack([rng.integers(2, side - 33, count) for side in SHAPE], axis=1)
    truth = CellMasks(crops, offsets, np.zeros((count, 4)), np.ones(count), np.zeros(count), SHAPE)
    moved = offsets + rng.integers(-2, 3, (count, 2))
    found = CellMasks(crops, moved, np.zeros((count, 4)), rng.random(count), np.zeros(count), SHAPE)
    return found.select(np.flatnonzero(rng.random(count) < 0.9)), truth


def decoded_frames(rles: list[CocoRle]) -> np.ndarray:
    """(N, pixels) float32."""
    return np.stack([coco_mask.decode(rle).ravel() for rle in rles]).astype(np.float32)


def full_frame_iou(found: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(P, T) IoU of all pairs at once."""
    common = (found @ cells.T).astype(np.float64)
    union = found.sum(axis=1)[:, None] + cells.sum(axis=1)[None] - common
    return common / np.maximum(union, 1)


def timed(function, *arguments, repeats: int = 1):
    """The result, and the shortest of `repeats` times in seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        result = function(*arguments)
        seconds.append(time.process_time() - start)
    return result, min(seconds)


def main(count: int) -> None:
    pred, truth = disks(count)
    rles = as_coco(pred), as_coco(truth)
    iou = coco_iou_matrix(*rles)
    expected = score_from_iou(iou)
    print(f"{len(pred)} found and {len(truth)} annotated cells at {SHAPE[0]} x {SHAPE[1]}, score {expected:.4f}")

    cells, decoding = timed(decoded_frames, rles[1])
    part, rows = timed(lambda: full_frame_iou(decoded_frames(rles[0][:ROWS]), cells))
    np.testing.assert_array_equal(part, iou[:ROWS])
    full = decoding + rows * len(pred) / len(part)
    print(f"full frames, decoded and compared: {full:.2f} s (extrapolated from {len(part)} of the found cells)")
    for name, function, arguments in (
        ("image_score on crops", image_score, (pred, truth)),
        ("image_score_coco on run lengths", image_score_coco, rles),
    ):
        score, seconds = timed(function, *arguments, repeats=3)
        assert score == expected, f"{name} gives {score}, not {expected}"
        ratio = full / seconds
        verdict = "reached" if ratio >= TARGET else "MISSED"
        print(f"{name}: {seconds * 1e3:.1f} ms, ratio {ratio:.0f} (target {TARGET}: {verdict})")
    _, seconds = timed(measure_image, pred, truth, repeats=3)
    print(f"measure_image on crops: {seconds * 1e3:.1f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 800)
