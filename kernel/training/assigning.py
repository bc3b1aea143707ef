"""Anchors assigned to many cells within bounded memory, to the same targets as mmdet's.

mmdet compares all anchors with all cells at once. 65,472 anchors of a crop of 512 and 2,500 cells make 655 MB a matrix,
of which a dozen are alive at a time. Here anchors are taken in blocks: once for the best cell of each anchor and the
best IoU of each cell, and once more for the anchors that have a cell's best IoU. On a GPU mmdet moreover waits for it
once per cell.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from kernel.models.detectors import Detector

#: Entries of a matrix of cells and anchors from which on blocks are taken: 32 MB of float32.
BLOCK_ENTRIES = 1 << 23


def block_length(cells: int, anchors: int) -> int:
    """How many anchors are compared with so many cells at a time; all, where the matrix is small."""
    return anchors if cells * anchors <= BLOCK_ENTRIES else max(BLOCK_ENTRIES // cells, 1)


def bound_assignment(detector: Detector) -> None:
    """Let the RPN's assigner and those of the box heads take anchors in blocks: of many cells, or on a GPU."""
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
    """As mmdet's `MaxIoUAssigner.assign`, which is `assign` of `assigner`; it is called where it is as quick."""
    from mmdet.core.bbox.assigners import AssignResult

    cells, anchors = len(gt_bboxes), len(bboxes)
    length = block_length(cells, anchors)
    is_quick = length >= anchors and (bboxes.device.type == "cpu" or cells * anchors == 0)
    if is_quick or gt_bboxes_ignore is not None or not assigner.gt_max_assign_all:
        return assign(bboxes, gt_bboxes, gt_bboxes_ignore, gt_labels)
    starts = range(0, anchors, length)
    best, which = bboxes.new_zeros(anchors), bboxes.new_zeros(anchors, dtype=torch.long)
    of_cell = bboxes.new_full((cells,), -1.0)
    for start in starts:
        overlaps = assigner.iou_calculator(gt_bboxes, bboxes[start : start + length])
        best[start : start + length], which[start : start + length] = overlaps.max(dim=0)
        of_cell = torch.maximum(of_cell, overlaps.max(dim=1).values)
    assigned = bboxes.new_full((anchors,), -1, dtype=torch.long)
    low, high = assigner.neg_iou_thr if isinstance(assigner.neg_iou_thr, tuple) else (0, assigner.neg_iou_thr)
    assigned[(best >= low) & (best < high)] = 0
    positive = best >= assigner.pos_iou_thr
    assigned[positive] = which[positive] + 1
    if assigner.match_low_quality:
        # Of several cells that have their best IoU at an anchor, the last one gets it.
        numbers = torch.arange(1, cells + 1, device=bboxes.device)[:, None]
        is_matched = (of_cell >= assigner.min_pos_iou)[:, None]
        for start in starts:
            overlaps = assigner.iou_calculator(gt_bboxes, bboxes[start : start + length])
            last = (((overlaps == of_cell[:, None]) & is_matched) * numbers).max(dim=0).values
            part = assigned[start : start + length]
            assigned[start : start + length] = torch.where(last > 0, last, part)
    labels = None
    if gt_labels is not None:
        labels = assigned.new_full((anchors,), -1)
        labels[assigned > 0] = gt_labels[assigned[assigned > 0] - 1]
    return AssignResult(cells, assigned, best, labels=labels)
