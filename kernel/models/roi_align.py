"""RoIAlign of a detector's extractors; on the CPU by `embedding_bag`, several times faster than torchvision's kernel.

A bin's value is a weighted sum of feature vectors: of the four neighbours of each of its sampling points. In a
channels-last map a position's channels are adjacent in memory, and `embedding_bag` adds them by vector instructions.
torchvision's kernel copies every map to channels-first order at each call, and then works number by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

#: Sampling points handled at a time; their positions and weights take about 200 bytes each.
POINTS_AT_ONCE = 1 << 20


def pool_rois(extractor: Any, levels: Sequence[torch.Tensor], rois: torch.Tensor) -> torch.Tensor:
    """RoI features as mmdet's `SingleRoIExtractor` gives them, up to rounding.

    Args:
        extractor: with average pooling, adaptive sampling and no rescaling of RoIs.
        levels: its FPN maps (V, C, h, w), float32; channels-last ones are fastest.
        rois: (M, 5) the map's index in the batch, then x1, y1, x2, y2 in pixels of the image.

    Returns:
        (M, C, size, size).
    """
    if rois.device.type != "cpu":
        return type(extractor).forward(extractor, levels, rois)
    layer = extractor.roi_layers[0]
    size = layer.output_size[0]
    pooled = rois.new_zeros((len(rois), size, size, extractor.out_channels))
    of_level = extractor.map_roi_levels(rois, len(levels))
    for level, (fmap, layer) in enumerate(zip(levels, extractor.roi_layers, strict=True)):
        here = torch.nonzero(of_level == level)[:, 0]
        if len(here):
            pooled[here] = align_rois(fmap, rois[here], size, layer.spatial_scale)
    return pooled.permute(0, 3, 1, 2)


def quicken_extractors(detector: Any) -> None:
    """Let the detector's extractors pool by `pool_rois` wherever mmdet calls them, as it does in training.

    Forward and backward together take a fifth of the time of torchvision's kernels, whose backward one uses a single
    thread (tests/benchmarks/bench_training.py).
    """
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    for module in detector.roi_head.modules():
        if isinstance(module, SingleRoIExtractor):
            module.forward = partial(pool_rois, module)


def align_rois(fmap: torch.Tensor, rois: torch.Tensor, size: int, scale: float) -> torch.Tensor:
    """RoIAlign with half-pixel offsets and adaptive sampling: per axis, a bin has as many sampling points as feature
    pixels, rounded up.

    Args:
        fmap: (V, C, h, w) features.
        rois: (M, 5), see `pool_rois`.
        size: bins per axis.
        scale: feature pixels per image pixel.

    Returns:
        (M, size, size, C). A RoI without width or height has no sampling points, and is all zeros.
    """
    table = fmap.permute(0, 2, 3, 1).reshape(-1, fmap.shape[1])
    corners = rois[:, 1:] * scale - 0.5
    bins = (corners[:, 2:] - corners[:, :2]) / size  # (M, 2) feature pixels per bin, x and y
    points = bins.ceil().clamp(min=0).long()  # (M, 2) per bin
    # Large RoIs have thousands of sampling points: as many RoIs at a time as fit, one at least.
    piece_of = (points.prod(dim=1).cumsum(0) * size * size) // POINTS_AT_ONCE
    pieces = piece_of.unique_consecutive(return_counts=True)[1].tolist()
    split = zip(*(torch.split(each, pieces) for each in (rois[:, 0].long(), corners[:, :2], bins, points)), strict=True)
    return torch.cat([look_up(table, fmap.shape, size, *piece) for piece in split])


def look_up(
    table: torch.Tensor,
    map_shape: torch.Size,
    size: int,
    index: torch.Tensor,
    start: torch.Tensor,
    bins: torch.Tensor,
    points: torch.Tensor,
) -> torch.Tensor:
    """The bins of some RoIs as weighted sums over rows of a table.

    Args:
        table: (V * h * w, C) feature vectors.
        map_shape: (V, C, h, w).
        size: bins per axis.
        index: (M,) each RoI's map in the batch.
        start: (M, 2) x1, y1 in feature pixels.
        bins: (M, 2) width and height of a bin in feature pixels.
        points: (M, 2) sampling points per bin, along x and y.

    Returns:
        (M, size, size, C).
    """
    _, _, height, width = map_shape
    per_bin = points.prod(dim=1)
    bag_roi = torch.arange(len(index)).repeat_interleave(size * size)
    bag_starts = F.pad(per_bin[bag_roi].cumsum(0), (1, 0))
    bag = torch.arange(len(bag_roi)).repeat_interleave(per_bin[bag_roi])  # each point's bin
    roi = bag_roi[bag]
    number = torch.arange(len(bag)) - bag_starts[bag]  # of the point in its bin, row by row
    x_points, y_points = points[roi].unbind(1)
    row = (bag // size % size) + (number // x_points + 0.5) / y_points  # in bins
    column = (bag % size) + (number % x_points + 0.5) / x_points
    x = start[roi, 0] + column * bins[roi, 0]
    y = start[roi, 1] + row * bins[roi, 1]
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    left, right, x_share = neighbours(x, width)
    top, bottom, y_share = neighbours(y, height)
    above, below = ((index[roi] * height + line) * width for line in (top, bottom))
    rows = torch.stack([above + left, above + right, below + left, below + right], dim=1)
    shares = torch.stack(
        [(1 - y_share) * (1 - x_share), (1 - y_share) * x_share, y_share * (1 - x_share), y_share * x_share], dim=1
    )
    weights = shares * (inside / per_bin[roi])[:, None]
    sums = F.embedding_bag(
        rows.flatten(), table, bag_starts[:-1] * 4, mode="sum", per_sample_weights=weights.flatten().to(table.dtype)
    )
    return sums.view(len(index), size, size, -1)


def neighbours(place: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two grid positions around each place along an axis of `size` positions, and the weight of the second."""
    place = place.clamp(0, size - 1)
    first = place.long()
    return first, (first + 1).clamp(max=size - 1), place - first
