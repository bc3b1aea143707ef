"""Crops against full frames: the same post-processing of one image of 800 masks at 520 x 704, timed once each.

    PYTHONPATH=.:tests python tests/benchmarks/bench_postprocess.py [count]

From soft masks to submission.csv. It compares the results as well, and prints the ratio of the times.
"""

from __future__ import annotations

import csv
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from oracles import full_corrupt, full_frames, full_remove_overlaps, random_instances, write_submission

from kernel.export.formats import outlines_of
from kernel.masks.instances import CellMasks, Instances
from kernel.masks.rle import encode_rle
from kernel.postprocess.clean import (
    binarise,
    corrupt_masks,
    drop_empty,
    postprocess_instances,
    remove_overlaps,
    remove_small,
)
from kernel.postprocess.mask_nms import best_first, mask_nms
from kernel.settings import Thresholds

SHAPE = (520, 704)


def timed(function, *arguments):
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def scattered_cells(count: int) -> Instances:
    """Cells of a small canvas, moved to random places."""
    rng = np.random.default_rng(0)
    small = random_instances(rng, count, (32, 32))
    offsets = small.offsets_yx + np.stack([rng.integers(0, SHAPE[side] - 32, count) for side in (0, 1)], axis=1)
    return Instances(small.crops, offsets, small.boxes_xyxy, small.scores, small.labels, SHAPE)


def full_frame_masks(soft: np.ndarray, scores: np.ndarray, mask_threshold: float) -> np.ndarray:
    """Binary masks, best first."""
    return (soft > mask_threshold * 255)[np.argsort(-scores)]


def full_frame_nms(frames: np.ndarray, threshold: float) -> np.ndarray:
    """Vectorised over the kept masks: the pair by pair oracle would take hours here."""
    flat = frames.reshape(len(frames), -1)
    sizes = flat.sum(axis=1)
    kept: list[int] = []
    for index in range(len(flat)):
        common = np.array([np.count_nonzero(flat[index] & flat[other]) for other in kept])
        union = sizes[index] + sizes[kept] - common
        if not (common > threshold * np.maximum(union, 1)).any():
            kept.append(index)
    return np.array(kept)


def frames_to_rows(frames: np.ndarray) -> list[str]:
    """Run lengths of full frames, by the differences of neighbours, as everybody writes them."""
    rows = []
    for frame in frames:
        edges = np.flatnonzero(np.diff(np.concatenate([[0], frame.ravel(), [0]]).astype(np.int8))) + 1
        edges[1::2] -= edges[::2]
        rows.append(" ".join(map(str, edges)))
    return rows


def write_frames(frames: np.ndarray, path: Path) -> None:
    """Full frames as a submission; that no two masks overlap is looked up in a frame of counts."""
    assert frames.sum(axis=0, dtype=np.uint16).max() <= 1
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["id", "predicted"])
        writer.writerows(["image", row] for row in frames_to_rows(frames))


def write_crops(masks: CellMasks, path: Path) -> None:
    """As the kernel writes its submission, checks included."""
    rles = [encode_rle(crop, offset, SHAPE) for crop, offset in zip(masks.crops, masks.offsets_yx, strict=True)]
    write_submission(path, [("image", rles)], {"image": SHAPE})


def main(count: int) -> None:
    thresholds = Thresholds(confidence=0.0, min_size=20, corrupt=True)
    instances = scattered_cells(count)
    found, whole = timed(postprocess_instances, instances, thresholds)
    print(f"{count} masks at {SHAPE[0]} x {SHAPE[1]}: {len(found)} left, in crops {whole * 1e3:.1f} ms in all")

    _, full_binarised = timed(full_frame_masks, full_frames(instances), instances.scores, thresholds.mask_threshold)
    masks, binarised = timed(binarise, instances, thresholds.mask_threshold)
    masks, ordered = timed(lambda: masks.select(best_first(masks)))
    kept, suppressed = timed(mask_nms, masks, thresholds.mask_nms_threshold)
    large, _ = timed(lambda: remove_small(masks.select(kept), thresholds.min_size))
    corrupted, corruption = timed(corrupt_masks, large)
    final, overlap = timed(remove_overlaps, corrupted)

    frames = full_frames(masks)
    full_kept, full_suppressed = timed(full_frame_nms, frames, thresholds.mask_nms_threshold)
    np.testing.assert_array_equal(full_kept, kept)
    full_corrupted, full_corruption = timed(lambda: np.stack([full_corrupt(frame) for frame in full_frames(large)]))
    np.testing.assert_array_equal(full_corrupted, full_frames(corrupted))
    some = full_corrupted[:100]  # quadratic in full frames: a part of it, scaled up
    full_final, part = timed(full_remove_overlaps, some)
    np.testing.assert_array_equal(full_final, full_frames(final)[: len(some)])
    full_overlap = part * (len(full_corrupted) / len(some)) ** 2

    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("crops.csv", "frames.csv")]
        _, written = timed(write_crops, drop_empty(final), files[0])
        frames = full_frames(drop_empty(final))
        _, full_written = timed(write_frames, frames, files[1])
        assert files[0].read_bytes() == files[1].read_bytes()

    stages = (
        ("binarise and sort", binarised + ordered, full_binarised),
        ("mask NMS", suppressed, full_suppressed),
        ("corruption", corruption, full_corruption),
        ("overlap removal (full frames extrapolated from 100)", overlap, full_overlap),
        ("run lengths and submission", written, full_written),
    )
    for name, ours, full in (
        *stages,
        ("together", sum(ours for _, ours, _ in stages), sum(full for *_, full in stages)),
    ):
        print(f"{name}: crops {ours * 1e3:.1f} ms, full frames {full:.2f} s, ratio {full / ours:.0f}")
    assert len(drop_empty(final)) == len(found)

    cells = drop_empty(masks)
    _, outlined = timed(lambda: json.dumps(outlines_of(cells)))
    print(f"outlines (GeoJSON) of {len(cells)} cells: {outlined * 1e3:.1f} ms")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 800)
