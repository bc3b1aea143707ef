"""RoIAlign of ours against torchvision's: 1,024 RoIs of cells of 10 to 60 pixels in four maps of 128 x 128, on the CPU.

    PYTHONPATH=.:tests python tests/benchmarks/bench_roi_align.py [repeats]

Both get the maps in the order of memory that suits them, and the same RoIs. Forward alone as in inference, and forward
with backward as in training; each timed in turn with the other. It prints the ratios of the medians of processor time,
and the largest differences of the features and of the maps' gradients.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
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


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    rois = cells()
    first = torch.randn(MAPS, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    last = first.contiguous(memory_format=torch.channels_last)
    for size in (7, 14):
        torchvisions = RoIAlign(size, spatial_scale=SCALE, sampling_ratio=0, aligned=True)
        push = torch.randn(COUNT, CHANNELS, size, size, generator=torch.Generator().manual_seed(2))

        def ours(maps: torch.Tensor, size: int = size) -> torch.Tensor:
            return align_rois(maps, rois, size, SCALE).permute(0, 3, 1, 2)

        def theirs(maps: torch.Tensor, pool: RoIAlign = torchvisions) -> torch.Tensor:
            return pool(maps, rois)

        def gradient(
            pool: Callable[[torch.Tensor], torch.Tensor], maps: torch.Tensor, push: torch.Tensor = push
        ) -> torch.Tensor:
            leaf = maps.detach().requires_grad_()
            (found,) = torch.autograd.grad(pool(leaf), leaf, push)
            return found

        for what, compute in (("forward", lambda pool, maps: pool(maps)), ("forward and backward", gradient)):
            mine, other = compute(ours, last), compute(theirs, first)
            difference = float((mine - other).abs().max() / other.abs().max())
            seconds: dict[str, list[float]] = {"ours": [], "torchvision": []}
            for _ in range(repeats):
                for name, pool, maps in (("ours", ours, last), ("torchvision", theirs, first)):
                    start = time.process_time()
                    compute(pool, maps)
                    seconds[name].append(time.process_time() - start)
            ratio = median(seconds["torchvision"]) / median(seconds["ours"])
            print(f"{size} x {size} bins, {what}: {ratio:.1f} times less, largest relative difference {difference:.1e}")


if __name__ == "__main__":
    main()
