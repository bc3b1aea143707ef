"""Assignment in blocks gives mmdet's targets, and its memory is bounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from fake_cuda import fake_cuda
from tiny_detectors import tiny_spec

import kernel.training.assigning
from kernel.models.detectors import Detector, build_detector
from kernel.training.assigning import BLOCK_ENTRIES, NEIGHBOURS, block_length, bound_assignment

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")


def boxes(count: int, seed: int) -> torch.Tensor:
    """Boxes on a coarse grid, so that many IoU are equal."""
    corners = torch.randint(0, 12, (count, 2), generator=torch.Generator().manual_seed(seed)) * 4
    sides = torch.randint(1, 4, (count, 2), generator=torch.Generator().manual_seed(seed + 1)) * 4
    return torch.cat([corners, corners + sides], dim=1).float()


def assigners(detector: Detector) -> list[Any]:
    of_boxes = detector.roi_head.bbox_assigner
    return [detector.rpn_head.assigner, *(of_boxes if isinstance(of_boxes, list) else [of_boxes])]


@pytest.mark.parametrize("kind", ["maskrcnn", "cascade"])
@pytest.mark.parametrize("cells", [1, 7, 60])
@pytest.mark.parametrize(("entries", "neighbours"), [(1, 100), (97, 100), (BLOCK_ENTRIES, 1), (BLOCK_ENTRIES, 23)])
@pytest.mark.parametrize(("in_order", "scored"), [(True, False), (False, True)])
def test_the_targets_are_mmdets(
    kind: str, cells: int, entries: int, neighbours: int, in_order: bool, scored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, bounded = build_detector(tiny_spec(kind)), build_detector(tiny_spec(kind))
    bound_assignment(bounded)
    monkeypatch.setattr(kernel.training.assigning, "BLOCK_ENTRIES", entries)
    monkeypatch.setattr(kernel.training.assigning, "NEIGHBOURS", neighbours)
    anchors, truth = boxes(500, 0), boxes(cells, 5)
    if in_order:  # as the RPN lists them, so that most cells reach into few blocks
        anchors = anchors[(anchors[:, 1] * 100 + anchors[:, 0]).argsort()]
    if scored:  # as proposals are
        anchors = torch.cat([anchors, torch.linspace(0, 1, len(anchors))[:, None]], dim=1)
    labels = torch.arange(cells) % 3
    for one, other in zip(assigners(plain), assigners(bounded), strict=True):
        for given in (None, labels):
            expected, found = (each.assign(anchors, truth, None, given) for each in (one, other))
            assert torch.equal(found.gt_inds, expected.gt_inds) and (cells == 1 or (found.gt_inds > 0).any())
            assert torch.equal(found.max_overlaps, expected.max_overlaps)
            assert given is None or torch.equal(found.labels, expected.labels)


def test_cells_are_compared_with_what_is_near() -> None:
    detector = build_detector(tiny_spec("maskrcnn"))
    bound_assignment(detector)
    assigner = detector.rpn_head.assigner
    compare = assigner.iou_calculator
    compared: list[tuple[int, int]] = []

    def counted(cells: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
        compared.append((len(cells), len(anchors)))
        return compare(cells, anchors)

    assigner.iou_calculator = counted
    here, there, nowhere = boxes(NEIGHBOURS, 0), boxes(NEIGHBOURS, 0) + 1000, boxes(NEIGHBOURS, 0) + 2000
    assigner.assign(torch.cat([here, nowhere, there]), torch.cat([boxes(30, 5), boxes(10, 7) + 1000]))
    assert compared == [(30, NEIGHBOURS), (10, NEIGHBOURS)]


@pytest.mark.parametrize("cells", [0, 1, 60])
def test_a_gpu_is_not_waited_for_cell_by_cell(cells: int) -> None:
    detector = build_detector(tiny_spec("cascade"))
    expected = [each.assign(boxes(500, 0), boxes(cells, 5)) for each in assigners(detector)]
    bound_assignment(detector)
    with fake_cuda() as cuda:
        anchors, truth = boxes(500, 0).to("cuda"), boxes(cells, 5).to("cuda")
        for assigner, known in zip(assigners(detector), expected, strict=True):
            cuda.bytes_to_host.clear()
            found = assigner.assign(anchors, truth)
            assert not cuda.bytes_to_host
            assert torch.equal(found.gt_inds.cpu(), known.gt_inds)
            assert torch.equal(found.max_overlaps.cpu(), known.max_overlaps)


@pytest.mark.parametrize(("cells", "anchors"), [(0, 1000), (1, 65472), (100, 65472), (2500, 65472), (10**8, 100)])
def test_the_plan_stays_within_a_block(cells: int, anchors: int) -> None:
    length = block_length(cells, anchors)
    assert 1 <= length <= anchors
    assert length == 1 or length * cells <= BLOCK_ENTRIES
    assert (length == anchors) == (cells * anchors <= BLOCK_ENTRIES)
    assert block_length(cells, anchors, NEIGHBOURS) == min(length, NEIGHBOURS)
