"""Proposals by averaged RPN maps, and the cell type by the same maps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torchvision.ops import batched_nms

from kernel.models.detectors import Detector
from kernel.settings import COMPETITION_SHAPE, CellTypeRule, Thresholds


@dataclass(frozen=True)
class RpnMaps:
    """RPN maps of one view, before the sigmoid: a member's, or the mean of several."""

    scores: tuple[torch.Tensor, ...]  # per FPN level (A, h, w) logits of A anchors
    deltas: tuple[torch.Tensor, ...]  # per FPN level (4 A, h, w)


@dataclass(frozen=True)
class Proposals:
    """Class-agnostic boxes that all members are asked about."""

    boxes_xyxy: torch.Tensor  # (N, 4) float32 pixels of the identity view, best score first
    scores: torch.Tensor  # (N,) float32 in 0..1
    cell_type: str  # by the counts
    level_counts: tuple[int, ...]  # confident positions per FPN level


def compute_rpn_maps(detector: Detector, levels: Sequence[torch.Tensor]) -> RpnMaps:
    """Run a detector's RPN on its feature maps (1, C, h, w) of the identity view."""
    scores, deltas = detector.rpn_head(levels)
    return RpnMaps(tuple(s[0].float() for s in scores), tuple(d[0].float() for d in deltas))


def merge_rpn_maps(maps: Iterable[tuple[float, RpnMaps]]) -> RpnMaps:
    """Average score and delta maps over members, each given with its weight; logits, not probabilities."""
    maps = list(maps)
    total = sum(weight for weight, _ in maps)
    # Shares of the plain mean: of equal weights each is 1, and changes no bit of it.
    shares = [weight * len(maps) / total for weight, _ in maps]

    def mean(levels: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack([level * share for level, share in zip(levels, shares, strict=True)]).mean(dim=0)

    return RpnMaps(
        tuple(mean(levels) for levels in zip(*(m.scores for _, m in maps), strict=True)),
        tuple(mean(levels) for levels in zip(*(m.deltas for _, m in maps), strict=True)),
    )


def count_confident_positions(levels: Iterable[torch.Tensor], score: float) -> tuple[int, ...]:
    """Per FPN level, given its logits (A, h, w), how many positions have an anchor that scores above `score`."""
    return tuple(int((level.sigmoid().amax(dim=0) > score).sum()) for level in levels)


def competition_images(image_shape: tuple[int, int]) -> float:
    """How many of the competition's images have as many pixels as one of (H, W); 1 for a smaller one.

    Limits that are numbers are this many times as large, so that a large image keeps its cells.
    """
    return max(1.0, math.prod(image_shape) / math.prod(COMPETITION_SHAPE))


def cell_type_of_counts(level_counts: Sequence[int], rule: CellTypeRule, image_shape: tuple[int, int]) -> str:
    """The cell type by the number of confident positions per FPN level: big cells are astro, few are cort.

    Args:
        level_counts: of an image (H, W) of `image_shape`.
        rule: for images of the competition's size; its numbers grow with larger ones.
    """
    times = competition_images(image_shape)
    if sum(level_counts[-2:]) > rule.astro_above * times:
        return "astro"
    if sum(level_counts) < rule.cort_below_total * times and level_counts[1] < rule.cort_below_second * times:
        return "cort"
    return "shsy5y"


def select_proposals(
    maps: RpnMaps,
    rpn_head: Any,
    image_shape: tuple[int, int],
    rule: CellTypeRule,
    thresholds: dict[str, Thresholds],
    rpn_type: str | None = None,
) -> Proposals:
    """Decode RPN maps and keep the best boxes, by the thresholds of a cell type.

    NMS does not compare boxes of different FPN levels. Empty boxes are dropped. Limits on the number of boxes grow with
    images that are larger than the competition's.

    Args:
        maps: averaged over members.
        rpn_head: mmdet's, for its anchors and box coder.
        image_shape: (H, W), unpadded; boxes are clipped to it.
        rule: how the cell type follows from the counts.
        thresholds: by cell type.
        rpn_type: whose thresholds; None: those of the type that the maps show.
    """
    counts = count_confident_positions(maps.scores, rule.score)
    cell_type = cell_type_of_counts(counts, rule, image_shape)
    limits = thresholds[rpn_type or cell_type]
    times = competition_images(image_shape)
    most_per_level = round(limits.rpn_nms_pre * times)
    most = None if limits.rpn_max_per_img is None else round(limits.rpn_max_per_img * times)
    device = maps.scores[0].device
    anchors = rpn_head.prior_generator.grid_priors([s.shape[-2:] for s in maps.scores], device=device)
    boxes, scores, levels = [], [], []
    for level, (score_map, delta_map) in enumerate(zip(maps.scores, maps.deltas, strict=True)):
        level_scores = score_map.permute(1, 2, 0).reshape(-1).sigmoid()
        level_deltas = delta_map.permute(1, 2, 0).reshape(-1, 4)
        best, order = level_scores.topk(min(most_per_level, len(level_scores)))
        boxes.append(rpn_head.bbox_coder.decode(anchors[level][order], level_deltas[order], max_shape=image_shape))
        scores.append(best)
        levels.append(torch.full_like(order, level))
    all_boxes, all_scores, all_levels = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
    # A box at or below the score threshold suppresses none above it, so it can be dropped before NMS.
    sized = (all_boxes[:, 2] > all_boxes[:, 0]) & (all_boxes[:, 3] > all_boxes[:, 1])
    candidates = torch.nonzero(sized & (all_scores > limits.rpn_score_threshold))[:, 0]
    all_boxes, all_scores, all_levels = all_boxes[candidates], all_scores[candidates], all_levels[candidates]
    kept = batched_nms(all_boxes, all_scores, all_levels, limits.rpn_iou_threshold)
    kept = kept[:most]
    return Proposals(all_boxes[kept], all_scores[kept], cell_type, counts)
