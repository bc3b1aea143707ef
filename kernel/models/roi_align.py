"""RoIAlign of a detector's extractors; on the CPU by `embedding_bag`, which is faster than torchvision's kernel.

A bin's value is a weighted sum of feature vectors: of the four neighbours of each of its sampling points. Points share
neighbours, and weights are products of one along x and one along y: so each grid position is added once. In a
channels-last map a position's channels are adjacent in memory, and `embedding_bag` adds them by vector instructions.
torchvision's kernel copies every map to channels-first order at each call, and then works number by number.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

#: Grid positions handled at a time; their numbers and weights take about 100 bytes each.
POSITIONS_AT_ONCE = 1 << 21


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
    if len(levels) == 1 and len(rois):  # nothing to put together
        return align_rois(levels[0], rois, size, layer.spatial_scale).permute(0, 3, 1, 2)
    pooled = rois.new_zeros((len(rois), size, size, extractor.out_channels))
    of_level = extractor.map_roi_levels(rois, len(levels))
    for level, (fmap, layer) in enumerate(zip(levels, extractor.roi_layers, strict=True)):
        here = torch.nonzero(of_level == level)[:, 0]
        if len(here):
            pooled[here] = align_rois(fmap, rois[here], size, layer.spatial_scale)
    return pooled.permute(0, 3, 1, 2)


def quicken_extractors(detector: Any) -> None:
    """Let the detector's extractors pool by `pool_rois` wherever mmdet calls them, as it does in training.

    Forward and backward together take a fifth to a seventh of the time of torchvision's kernels, whose backward one
    uses a single thread (tests/benchmarks/bench_roi_align.py).
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
    # Large RoIs have thousands of grid positions: as many RoIs at a time as fit, one at least. The weights along both
    # axes are kept for as many positions as the longest bin has.
    positions = ((points + 1).prod(dim=1) * size * size).clamp(min=2 * size * (int(points.max()) + 1))
    piece_of = positions.cumsum(0) // POSITIONS_AT_ONCE
    pieces = piece_of.unique_consecutive(return_counts=True)[1].tolist()
    split = zip(*(torch.split(each, pieces) for each in (rois[:, 0].long(), corners[:, :2], bins, points)), strict=True)
    parts = [look_up(table, fmap.shape, size, *piece) for piece in split]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


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
    first_x, count_x, x_weights = axis_weights(start[:, 0], bins[:, 0], points[:, 0], size, width)
    first_y, count_y, y_weights = axis_weights(start[:, 1], bins[:, 1], points[:, 1], size, height)
    # A bin's positions are lines of the map: first what all positions of a line have in common.
    lines = count_y[:, :, None].expand(-1, -1, size).flatten()  # (M * size * size,) lines of each bin
    bag, line = groups(lines)
    roi, y_bin = bag // (size * size), bag // size
    x_bin = roi * size + bag % size
    row = (index[roi] * height + first_y.flatten()[y_bin] + line) * width + first_x.flatten()[x_bin]
    line_weight = y_weights.flatten()[y_bin * y_weights.shape[2] + line]
    counts = count_x.flatten()[x_bin]
    # Then the positions, one after the other.
    line_of, number = groups(counts)
    rows = row.index_select(0, line_of) + number
    place = (x_bin * x_weights.shape[2]).index_select(0, line_of) + number
    weights = x_weights.flatten().index_select(0, place) * line_weight.index_select(0, line_of)
    bag_starts = F.pad(counts.cumsum(0), (1, 0))[starts_of(lines)]
    sums: Any = WeightedSums.apply(table, rows, bag_starts, weights.to(table.dtype))
    return sums.view(len(index), size, size, -1)


def starts_of(counts: torch.Tensor) -> torch.Tensor:
    """(G,) where each of G groups begins that lie one after the other, given how many members each has."""
    return counts.cumsum(0) - counts


def groups(counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The members of groups one after the other, given how many each has: (N,) their groups, and 0, 1, ... in each."""
    group = torch.arange(len(counts)).repeat_interleave(counts)
    return group, torch.arange(len(group)) - starts_of(counts).index_select(0, group)


class WeightedSums(torch.autograd.Function):
    """Sums of rows of a table in bags, by `embedding_bag`; its gradient is such a sum, too, of the bags of each row.

    The gradient that torch has for `embedding_bag` adds row by row through a call of BLAS each, and takes 1.7 times as
    long on one thread.
    """

    @staticmethod
    def forward(
        ctx: Any, table: torch.Tensor, rows: torch.Tensor, bag_starts: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """(B, C) of `table` (R, C): N `rows` with `weights`, and where of the N each of the B bags starts."""
        ctx.save_for_backward(rows, bag_starts, weights)
        ctx.length = len(table)
        return F.embedding_bag(rows, table, bag_starts, mode="sum", per_sample_weights=weights)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        """(R, C) of the gradient of the sums (B, C)."""
        rows, bag_starts, weights = ctx.saved_tensors
        bag, _ = groups(bag_starts.diff(append=bag_starts.new_tensor([len(rows)])))
        order = rows.int().argsort(stable=True)
        starts = starts_of(rows.bincount(minlength=ctx.length))
        gradient = F.embedding_bag(
            bag[order], gradients[0].contiguous(), starts, mode="sum", per_sample_weights=weights[order]
        )
        return gradient, None, None, None


def axis_weights(
    start: torch.Tensor, bins: torch.Tensor, points: torch.Tensor, size: int, length: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What each grid position along one axis counts in each bin, which is a mean over its sampling points.

    Args:
        start: (M,) where each RoI begins, in feature pixels.
        bins: (M,) the length of a bin in feature pixels.
        points: (M,) sampling points per bin, at most P; they are at most one feature pixel apart.
        size: bins per axis.
        length: positions of the axis.

    Returns:
        (M, size) the first position of each bin and how many count; (M, size, P + 1) the weights of the first and
        of those after it.
    """
    number = torch.arange(max(int(points.max()), 1))
    is_point = (number < points[:, None])[:, None, :]
    inner = (number + 0.5) / points.clamp(min=1)[:, None]  # (M, P) in bins
    place = start[:, None, None] + (torch.arange(size)[:, None] + inner[:, None, :]) * bins[:, None, None]
    share = torch.where(is_point & (place >= -1) & (place <= length), 1 / points.clamp(min=1)[:, None, None], 0.0)
    first, second, of_second = neighbours(place, length)
    # What is no point may lie anywhere.
    to_first, to_second = ((each - first[:, :, :1]).clamp(0, len(number)) for each in (first, second))
    weights = place.new_zeros((*place.shape[:2], len(number) + 1))
    weights.scatter_add_(2, to_first, share * (1 - of_second)).scatter_add_(2, to_second, share * of_second)
    counts = torch.where(is_point, to_second + 1, 0).amax(dim=2)
    return first[:, :, 0], counts, weights


def neighbours(place: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The two grid positions around each place along an axis of `size` positions, and the weight of the second."""
    place = place.clamp(0, size - 1)
    first = place.long()
    return first, (first + 1).clamp(max=size - 1), place - first
