"""Proposals against a slow, obvious oracle; the cell type rule; and that members are averaged before the sigmoid."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_detectors import tiny_detector

from kernel.ensemble.proposals import (
    RpnMaps,
    cell_type_of_counts,
    compute_rpn_maps,
    count_confident_positions,
    merge_rpn_maps,
    select_proposals,
)
from kernel.settings import CELL_TYPES, COMPETITION_SHAPE, CellTypeRule, Thresholds

STRIDES = (2, 4, 8, 16, 32)
RATIOS = (0.5, 1.0, 2.0)
#: Unpadded; the maps are those of the padded 32 x 64, so that some anchors lie outside the image.
IMAGE_SHAPE = (30, 45)
#: A rule by which any map is of the type.
ALWAYS = {
    "astro": CellTypeRule(score=0, astro_above=0),
    "cort": CellTypeRule(score=1, astro_above=0),
    "shsy5y": CellTypeRule(score=1, astro_above=0, cort_below_total=0),
}


@pytest.fixture(scope="module")
def rpn_head(wheels_site: Path) -> Any:
    return tiny_detector("maskrcnn").rpn_head


def random_maps(seed: int, spread: float = 0.4) -> RpnMaps:
    """Maps of five levels whose scores all differ: no order is left to chance."""
    rng = np.random.default_rng(seed)
    sizes = [(32 // stride, 64 // stride) for stride in STRIDES]
    logits = rng.permutation(np.linspace(-4, 4, sum(3 * h * w for h, w in sizes)))
    parts = np.split(logits, np.cumsum([3 * h * w for h, w in sizes])[:-1])
    return RpnMaps(
        tuple(torch.from_numpy(part.reshape(3, *size)).float() for part, size in zip(parts, sizes, strict=True)),
        tuple(torch.from_numpy(rng.normal(0, spread, (12, *size))).float() for size in sizes),
    )


def uniform_maps(logit: float) -> RpnMaps:
    """Maps of the same score and no deltas everywhere."""
    maps = random_maps(0)
    return RpnMaps(tuple(torch.full_like(s, logit) for s in maps.scores), tuple(d * 0 for d in maps.deltas))


def slow_iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (areas - width * height)


def slow_level(scores: np.ndarray, deltas: np.ndarray, stride: int, limits: Thresholds) -> tuple[list, int]:
    """The level's (score, box) after top-k, clipping, dropping of empty boxes and NMS; and how many were empty."""
    candidates = []
    anchors, height, width = scores.shape
    for y in range(height):
        for x in range(width):
            for anchor in range(anchors):
                anchor_height = 8 * stride * math.sqrt(RATIOS[anchor])
                anchor_width = 8 * stride / math.sqrt(RATIOS[anchor])
                dx, dy, dw, dh = deltas[4 * anchor : 4 * anchor + 4, y, x].tolist()
                centre_x, centre_y = x * stride + dx * anchor_width, y * stride + dy * anchor_height
                box_width, box_height = anchor_width * math.exp(dw), anchor_height * math.exp(dh)
                box = [
                    min(max(centre_x - box_width / 2, 0), IMAGE_SHAPE[1]),
                    min(max(centre_y - box_height / 2, 0), IMAGE_SHAPE[0]),
                    min(max(centre_x + box_width / 2, 0), IMAGE_SHAPE[1]),
                    min(max(centre_y + box_height / 2, 0), IMAGE_SHAPE[0]),
                ]
                candidates.append((1 / (1 + math.exp(-scores[anchor, y, x])), box))
    candidates.sort(key=lambda candidate: -candidate[0])
    best = candidates[: limits.rpn_nms_pre]
    sized = [(score, box) for score, box in best if box[2] > box[0] and box[3] > box[1]]
    kept: list[tuple[float, list[float]]] = []
    for score, box in sized:
        if all(slow_iou(box, better) <= limits.rpn_iou_threshold for _, better in kept):
            kept.append((score, box))
    return kept, len(best) - len(sized)


def slow_proposals(maps: RpnMaps, limits: Thresholds) -> tuple[np.ndarray, int]:
    """Proposals (N, 5) x1 y1 x2 y2 score, in the order of the reference's text; and how many boxes were empty."""
    kept, empty = [], 0
    for scores, deltas, stride in zip(maps.scores, maps.deltas, STRIDES, strict=True):
        level, dropped = slow_level(scores.double().numpy(), deltas.double().numpy(), stride, limits)
        kept += level
        empty += dropped
    kept = sorted((each for each in kept if each[0] > limits.rpn_score_threshold), key=lambda each: -each[0])
    rows = [[*box, score] for score, box in kept[: limits.rpn_max_per_img]]
    return np.array(rows, dtype=np.float64).reshape(-1, 5), empty


# --- selection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "limits",
    [
        Thresholds(rpn_nms_pre=5000, rpn_iou_threshold=0.7, rpn_score_threshold=0.9),
        Thresholds(rpn_nms_pre=60, rpn_iou_threshold=0.5, rpn_score_threshold=0.5),
        Thresholds(rpn_nms_pre=60, rpn_iou_threshold=0.3, rpn_score_threshold=0.0, rpn_max_per_img=25),
        Thresholds(rpn_nms_pre=100, rpn_iou_threshold=1.0, rpn_score_threshold=0.8),
        Thresholds(rpn_nms_pre=1, rpn_iou_threshold=0.7, rpn_score_threshold=0.0, rpn_max_per_img=3),
        Thresholds(rpn_nms_pre=200, rpn_iou_threshold=0.0, rpn_score_threshold=0.1, rpn_max_per_img=10_000),
    ],
    ids=["published", "few per level", "few per image", "no NMS", "one per level", "no overlaps"],
)
def test_proposals_equal_the_oracle(rpn_head: Any, limits: Thresholds, seed: int) -> None:
    maps = random_maps(seed)
    found = select_proposals(maps, rpn_head, IMAGE_SHAPE, ALWAYS["cort"], {"cort": limits})
    expected, empty = slow_proposals(maps, limits)
    assert empty > 0 or limits.rpn_nms_pre == 1  # the padding's anchors were among the best
    assert len(expected) > 0
    np.testing.assert_allclose(found.scores, expected[:, 4], atol=1e-6)
    np.testing.assert_allclose(found.boxes_xyxy, expected[:, :4], atol=1e-3)


@pytest.mark.parametrize(("shape", "times"), [(COMPETITION_SHAPE, 1), ((1040, 1408), 4), ((64, 96), 1)])
def test_limits_grow_with_the_image(rpn_head: Any, shape: tuple[int, int], times: int) -> None:
    rng = np.random.default_rng(0)
    sizes = [(-(-shape[0] // stride), -(-shape[1] // stride)) for stride in STRIDES]
    maps = RpnMaps(
        tuple(torch.from_numpy(rng.normal(0, 1, (3, *size))).float() for size in sizes),
        tuple(torch.zeros(12, *size) for size in sizes),
    )
    for most, expected in ((None, len(STRIDES) * 6 * times), (13, 13 * times)):
        limits = Thresholds(rpn_nms_pre=6, rpn_iou_threshold=1, rpn_score_threshold=0, rpn_max_per_img=most)
        found = select_proposals(maps, rpn_head, shape, CellTypeRule(), dict.fromkeys(CELL_TYPES, limits))
        assert len(found.boxes_xyxy) == expected


def test_levels_do_not_suppress_one_another(rpn_head: Any) -> None:
    """Anchor 1 (square) of every level, made the same box: one stays per level."""
    maps = uniform_maps(-9.0)
    for level, (scores, deltas, stride) in enumerate(zip(maps.scores, maps.deltas, STRIDES, strict=True)):
        scores[1, :, 0] = 3 - level / 10
        for y in range(scores.shape[1]):
            centre_x, centre_y = 20.0, 12.0
            deltas[4:, y, 0][:4] = torch.tensor(
                [centre_x / (8 * stride), (centre_y - y * stride) / (8 * stride), *[math.log(16 / (8 * stride))] * 2]
            )
    found = select_proposals(maps, rpn_head, IMAGE_SHAPE, ALWAYS["cort"], {"cort": Thresholds()})
    np.testing.assert_allclose(found.boxes_xyxy, [[12, 4, 28, 20]] * 5, atol=1e-4)
    np.testing.assert_allclose(found.scores, 1 / (1 + np.exp(-(3 - np.arange(5) / 10))), atol=1e-6)


def test_no_confident_position_gives_no_proposals(rpn_head: Any) -> None:
    found = select_proposals(uniform_maps(-9.0), rpn_head, IMAGE_SHAPE, CellTypeRule(), {"cort": Thresholds()})
    assert found.boxes_xyxy.shape == (0, 4)
    assert found.scores.shape == (0,)
    assert found.cell_type == "cort"
    assert found.level_counts == (0, 0, 0, 0, 0)


def test_a_score_at_the_threshold_is_not_kept(rpn_head: Any) -> None:
    maps = uniform_maps(0.0)  # sigmoid: exactly 0.5
    for threshold, some in ((0.5, False), (0.49, True)):
        limits = Thresholds(rpn_score_threshold=threshold)
        found = select_proposals(maps, rpn_head, IMAGE_SHAPE, ALWAYS["cort"], {"cort": limits})
        assert (len(found.scores) > 0) is some


@pytest.mark.parametrize("cell_type", CELL_TYPES)
def test_the_counts_pick_the_thresholds(rpn_head: Any, cell_type: str) -> None:
    thresholds = {each: Thresholds(rpn_max_per_img=place + 3) for place, each in enumerate(CELL_TYPES)}
    found = select_proposals(random_maps(0), rpn_head, IMAGE_SHAPE, ALWAYS[cell_type], thresholds)
    assert found.cell_type == cell_type
    assert len(found.scores) == CELL_TYPES.index(cell_type) + 3


# --- averaging ---------------------------------------------------------------------------------------------------


def test_members_are_averaged_before_the_sigmoid(rpn_head: Any) -> None:
    merged = merge_rpn_maps([(1, uniform_maps(-4.0)), (1, uniform_maps(6.0)), (1, uniform_maps(4.0))])
    assert all(torch.allclose(level, torch.tensor(2.0)) for level in merged.scores)
    limits = Thresholds(rpn_score_threshold=0.5)
    found = select_proposals(merged, rpn_head, IMAGE_SHAPE, ALWAYS["cort"], {"cort": limits})
    np.testing.assert_allclose(found.scores, 1 / (1 + math.exp(-2)), atol=1e-6)  # and not 0.666, the mean of sigmoids


def test_deltas_are_averaged_as_well() -> None:
    first, second = random_maps(0), random_maps(1)
    merged = merge_rpn_maps(iter([(1, first), (1, second)]))
    for level in range(5):
        torch.testing.assert_close(merged.scores[level], (first.scores[level] + second.scores[level]) / 2)
        torch.testing.assert_close(merged.deltas[level], (first.deltas[level] + second.deltas[level]) / 2)


def test_one_member_is_its_own_mean() -> None:
    maps = random_maps(0)
    merged = merge_rpn_maps([(0.1, maps)])
    assert all(torch.equal(one, other) for one, other in zip(merged.scores, maps.scores, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(merged.deltas, maps.deltas, strict=True))


@torch.inference_mode()
def test_maps_are_the_heads_raw_output(rpn_head: Any) -> None:
    detector = tiny_detector("htc")
    generator = torch.Generator().manual_seed(0)
    levels = [torch.randn(1, 16, 32 // stride, 64 // stride, generator=generator) for stride in STRIDES]
    maps = compute_rpn_maps(detector, levels)
    assert [tuple(s.shape) for s in maps.scores] == [(3, 32 // stride, 64 // stride) for stride in STRIDES]
    assert [tuple(d.shape) for d in maps.deltas] == [(12, 32 // stride, 64 // stride) for stride in STRIDES]
    hidden = torch.relu(detector.rpn_head.rpn_conv(levels[2]))
    torch.testing.assert_close(maps.scores[2], detector.rpn_head.rpn_cls(hidden)[0])
    torch.testing.assert_close(maps.deltas[2], detector.rpn_head.rpn_reg(hidden)[0])


# --- cell type ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ((0, 0, 0, 0, 0), "cort"),
        ((0, 0, 0, 11, 0), "astro"),  # more than 10 on the last two levels
        ((0, 0, 0, 5, 6), "astro"),
        ((0, 0, 0, 10, 0), "cort"),
        ((0, 0, 0, 5, 5), "cort"),
        ((0, 0, 11, 0, 0), "cort"),  # the third level from the end does not count
        ((9000, 9000, 0, 6, 5), "astro"),  # astro goes first
        ((4499, 0, 0, 0, 0), "cort"),
        ((4500, 0, 0, 0, 0), "shsy5y"),
        ((4489, 0, 0, 5, 5), "cort"),  # all levels count in the total
        ((4490, 0, 0, 5, 5), "shsy5y"),
        ((0, 749, 0, 0, 0), "cort"),
        ((0, 750, 0, 0, 0), "shsy5y"),
        ((3750, 749, 0, 0, 0), "cort"),
        ((3751, 749, 0, 0, 0), "shsy5y"),
        ((8000, 2000, 100, 10, 0), "shsy5y"),
    ],
)
def test_the_cell_type_follows_from_the_counts(counts: tuple[int, ...], expected: str) -> None:
    assert cell_type_of_counts(counts, CellTypeRule(), COMPETITION_SHAPE) == expected
    assert cell_type_of_counts(counts, CellTypeRule(), (1, 1)) == expected
    four_times = tuple(4 * count for count in counts)
    assert cell_type_of_counts(four_times, CellTypeRule(), (1040, 1408)) == expected


def test_the_rule_can_be_changed() -> None:
    counts = (5, 3, 0, 2, 0)
    assert cell_type_of_counts(counts, CellTypeRule(astro_above=1), IMAGE_SHAPE) == "astro"
    assert cell_type_of_counts(counts, CellTypeRule(cort_below_total=10), IMAGE_SHAPE) == "shsy5y"
    assert cell_type_of_counts(counts, CellTypeRule(cort_below_second=3), IMAGE_SHAPE) == "shsy5y"


def test_a_position_counts_once_by_its_best_anchor() -> None:
    logit = math.log(0.7 / 0.3)  # sigmoid 0.7
    level = torch.full((3, 2, 4), -5.0)
    level[0, 0, 0] = level[1, 0, 0] = logit + 0.1  # two anchors of one position
    level[2, 1, 3] = logit + 0.1
    level[1, 1, 1] = logit - 0.1
    levels = level, level * 0 - 9, torch.full((3, 1, 1), 9.0)
    assert count_confident_positions(levels, 0.7) == (2, 0, 1)
    half = [torch.zeros(3, 2, 2)]
    assert count_confident_positions(half, 0.5) == (0,)  # strictly above
    assert count_confident_positions(half, 0.49) == (4,)
