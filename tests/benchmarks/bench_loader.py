"""Crop-first samples against decoding every full-frame mask for each crop: one image of 500 cells at 520 x 704.

    PYTHONPATH=.:tests python tests/benchmarks/bench_loader.py [samples]

It compares the samples to the bit, and prints the ratio of samples per second.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from slow_samples import assert_equal_samples, crowded_image, decoded_sample, encoded_cells

from kernel.training.samples import cut_sample

CELLS, SIZE = 500, 256
#: Samples of ours for one of the slow way, which is timed long enough with a few.
REPEATS = 10


def main(count: int) -> None:
    torch.set_num_threads(1)  # a sample is made by one worker
    image = crowded_image(CELLS)
    rles = encoded_cells(image)
    height, width = image.image_bgr.shape[:2]
    rng = np.random.default_rng(0)
    draws = [
        (
            (int(rng.integers(height - SIZE + 1)), int(rng.integers(width - SIZE + 1))),
            (bool(rng.integers(2)), bool(rng.integers(2))),
        )
        for _ in range(count)
    ]
    ours = [cut_sample(image, *place, SIZE, flips) for place, flips in draws]

    start = time.perf_counter()
    for _ in range(REPEATS):
        for place, flips in draws:
            cut_sample(image, *place, SIZE, flips)
    fast = (time.perf_counter() - start) / (REPEATS * count)

    start = time.perf_counter()
    slow = [decoded_sample(image.image_bgr, rles, image.labels, place, SIZE, flips) for place, flips in draws]
    decoding = (time.perf_counter() - start) / count

    for one, other in zip(ours, slow, strict=True):
        assert_equal_samples(one, other)
    cells = np.mean([len(sample.labels) for sample in ours])
    print(f"{CELLS} cells at {height} x {width}, {count} equal samples of {SIZE} x {SIZE} with {cells:.0f} cells each")
    print(
        f"crop first {1 / fast:.0f} samples/s ({fast * 1e3:.1f} ms), decode all {1 / decoding:.2f} samples/s "
        f"({decoding * 1e3:.0f} ms), ratio {decoding / fast:.0f}"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
