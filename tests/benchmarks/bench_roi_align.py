"""RoIAlign of ours against torchvision's: 1,024 RoIs of cells of 10 to 60 pixels in four maps of 128 x 128, on the CPU.

    PYTHONPATH=.:tests python tests/benchmarks/bench_roi_align.py [repeats]

Both get the maps in the order of memory that suits them, and the same RoIs. Forward alone as in inference, and forward
with backward as in training; each timed in turn with the other. It prints the ratios of the medians of processor time,
and the largest differences of the features and of the maps' gradients.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch
from torchvision.ops import RoIAlign

from kernel.models.roi_align import align_rois

CHANNELS, SIDE, MAPS, COUNT, SCALE = 96, 128, 4, 1024, 0.5


def cells() -> torch.Tensor:
    """(COUNT, 5) RoIs: their map, then corners in pixels of the image."""
    draw = torch.Generator().manual_seed(0)
    sides = 10 * 6 ** torch.rand(COUNT, 2, generator=draw)
    corners = torch.rand(COUNT, 2, generator=draw) * (SIDE / SCALE - sides)
    index = torch.arange(COUNT).remainder(MAPS)[:, None].float()
    return torch.cat([index, corners, corners + sides], dim=1)


def gradient(pool: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    """That of half the sum of the features' squares, by the maps."""
    leaf = maps.detach().requires_grad_()
    pooled = pool(leaf)
    return torch.autograd.grad(pooled, leaf, pooled.detach())[0]


def forward(pool: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor) -> torch.Tensor:
    return pool(maps)


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rois = cells()
    maps = torch.randn(MAPS, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    channels_last = maps.contiguous(memory_format=torch.channels_last)
    for size, compute in itertools.product((7, 14), (forward, gradient)):
        layer = RoIAlign(size, spatial_scale=SCALE, sampling_ratio=0, aligned=True)
        runs = {
            "ours": partial(
                compute, lambda maps, size=size: align_rois(maps, rois, size, SCALE).permute(0, 3, 1, 2), channels_last
            ),
            "torchvision": partial(compute, lambda maps, layer=layer: layer(maps, rois), maps),
        }
        found, expected = (run() for run in runs.values())
        difference = float((found - expected).abs().max() / expected.abs().max())
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(repeats):
            for name, run in runs.items():
                start = time.process_time()
                run()
                seconds[name].append(time.process_time() - start)
        ratio = median(seconds["torchvision"]) / median(seconds["ours"])
        what = f"{size} x {size} bins, {'forward' if compute is forward else 'forward and backward'}"
        print(f"{what}: {ratio:.1f} times less, largest relative difference {difference:.1e}")


if __name__ == "__main__":
    main()
