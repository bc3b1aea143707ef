"""Anchors assigned to cells by few comparisons and within bounded memory, to the same targets as mmdet's.

mmdet compares all anchors with all cells at once. 65,472 anchors of a crop of 512 and 2,500 cells make 655 MB a matrix,
of which a dozen are alive at a time. And nearly all of it is 0: in a crop of 256 a cell meets some hundred of as many
anchors. So anchors are taken in blocks, which are neighbours as the RPN lists them, and a block is compared with the
cells that reach into it: once for the best cell of each anchor and the best IoU of each cell, and once more for the
anchors that have a cell's best IoU. On a GPU mmdet moreover waits for it once per cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from kernel.models.detectors import Detector

#: Entries of a matrix of cells and anchors from which on it is not kept: 32 MB of float32.
BLOCK_ENTRIES = 1 << 23
#: The most anchors of a block where cells are looked for that reach into it.
NEIGHBOURS = 1 << 12

#: The place of a block's first anchor, the cells that it is compared with, and the IoU of each with each, (K, A).
Block = tuple[int, torch.Tensor, torch.Tensor]


def block_length(cells: int, anchors: int, most: int | None = None) -> int:
    """How many anchors are compared with so many cells at a time; all, where the matrix is small, but `most`."""
    length = anchors if cells * anchors <= BLOCK_ENTRIES else max(BLOCK_ENTRIES // cells, 1)
    return length if most is None else min(length, most)


def bound_assignment(detector: Detector) -> None:
    """Let the RPN's assigner and those of the box heads take anchors in blocks."""
    assigners = [detector.rpn_head.assigner]
    of_boxes = detector.roi_head.bbox_assigner
    assigners += of_boxes if isinstance(of_boxes, list) else [of_boxes]
    for assigner in assigners:
        assigner.assign = partial(assign_in_blocks, assigner, assigner.assign)


def assign_in_blocks(
    assigner: Any,
    assign: Any,
    bboxes: torch.Tensor,
    gt_bboxes: torch.Tensor,
    gt_bboxes_ignore: torch.Tensor | None = None,
    gt_labels: torch.Tensor | None = None,
) -> Any:
    """As mmdet's `MaxIoUAssigner.assign`, which is `assign` of `assigner`; it is called for what blocks do not know."""
    from mmdet.core.bbox.assigners import AssignResult

    cells, anchors = len(gt_bboxes), len(bboxes)
    is_known = gt_bboxes_ignore is None and assigner.gt_max_assign_all and assigner.min_pos_iou > 0
    if not is_known or cells * anchors == 0:
        return assign(bboxes, gt_bboxes, gt_bboxes_ignore, gt_labels)
    blocks = partial(compare_blocks, assigner.iou_calculator, bboxes, gt_bboxes)
    kept = list(blocks()) if cells * anchors <= BLOCK_ENTRIES else None
    best, which = bboxes.new_zeros(anchors), bboxes.new_zeros(anchors, dtype=torch.long)
    of_cell = bboxes.new_zeros(cells)
    for start, near, overlaps in kept or blocks():
        place = slice(start, start + overlaps.shape[1])
        best[place], nearest = overlaps.max(dim=0)
        which[place] = near[nearest]
        of_cell[near] = torch.maximum(of_cell[near], overlaps.max(dim=1).values)
    assigned = bboxes.new_full((anchors,), -1, dtype=torch.long)
    low, high = assigner.neg_iou_thr if isinstance(assigner.neg_iou_thr, tuple) else (0, assigner.neg_iou_thr)
    assigned[(best >= low) & (best < high)] = 0
    positive = best >= assigner.pos_iou_thr
    assigned[positive] = which[positive] + 1
    if assigner.match_low_quality:
        # Of several cells that have their best IoU at an anchor, the last one gets it.
        wanted = of_cell.masked_fill(of_cell < assigner.min_pos_iou, torch.inf)
        for start, near, overlaps in kept or blocks():
            place = slice(start, start + overlaps.shape[1])
            last = ((overlaps == wanted[near, None]) * (near[:, None] + 1)).max(dim=0).values
            assigned[place] = torch.where(last > 0, last, assigned[place])
    labels = None
    if gt_labels is not None:
        labels = assigned.new_full((anchors,), -1)
        labels[assigned > 0] = gt_labels[assigned[assigned > 0] - 1]
    return AssignResult(cells, assigned, best, labels=labels)


def compare_blocks(iou_calculator: Any, bboxes: torch.Tensor, gt_bboxes: torch.Tensor) -> Iterator[Block]:
    """The blocks of anchors, each with the cells that may meet it; those that no cell reaches are left out.

    A GPU would be waited for to say which cells these are, and compares all with all.
    """
    cells, anchors, on_cpu = len(gt_bboxes), len(bboxes), bboxes.device.type == "cpu"
    every = torch.arange(cells, device=bboxes.device)
    length = block_length(cells, anchors, NEIGHBOURS if on_cpu else None)
    for start in range(0, anchors, length):
        block, near = bboxes[start : start + length], every
        if on_cpu:
            reaches = (gt_bboxes[:, :2] < block[:, 2:4].amax(dim=0)) & (gt_bboxes[:, 2:] > block[:, :2].amin(dim=0))
            near = every[reaches.all(dim=1)]
        if len(near):
            yield start, near, iou_calculator(gt_bboxes[near], block)
