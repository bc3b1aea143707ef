"""Inference in the order that one would write first, as oracle and as yardstick for the ensemble.

One view at a time through one member at a time, float32 and channels first; all members on each image, whatever its
cell type; features leave the device after each use and come back for the next (on the CPU: they are copied); the mask
heads' probabilities of all classes are averaged before each box's own is taken; masks are pasted and cleaned in full
frames. RoIs go through mmdet's own extractors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from oracles import full_postprocess
from torch import nn

from kernel.ensemble.boxes import Detections, MergedBoxes, select_boxes
from kernel.ensemble.members import Member
from kernel.ensemble.proposals import RpnMaps, select_proposals
from kernel.ensemble.views import ALL_VIEWS, IDENTITY, View, boxes_into_view, flip_boxes, masks_out_of_view, view_images
from kernel.models.detectors import Detector, ViewFeatures
from kernel.settings import CELL_TYPES, CLS_USE, EnsembleSettings

#: What charges a block to a stage by its name.
Stage = Callable[[str], AbstractContextManager[None]]


@dataclass(frozen=True)
class SlowPrediction:
    """What `slow_inference` finds, on the CPU."""

    cell_type: str
    boxes: Detections  # N cells, best first
    mask_probs: torch.Tensor  # (N, 28, 28)
    masks: np.ndarray  # (M, H, W) bool, the finished ones


@torch.inference_mode()
def slow_inference(
    members: Sequence[Member], settings: EnsembleSettings, image: np.ndarray, device: str, stage: Stage
) -> SlowPrediction:
    """Find the cells of an image (H, W, 3) uint8 BGR; members weigh the same."""
    shape = (image.shape[0], image.shape[1])
    with stage("features"):
        features = {
            (member.name, view): moved(slow_features(member.detector, view_images(image, (view,), device)), "cpu")
            for member in members
            for view in ALL_VIEWS
            if view == IDENTITY or settings.use_tta or settings.use_tta_masks
        }

    def propose(used: Sequence[Member]):
        with stage("proposals"):
            maps = [member.detector.rpn_head(moved(features[member.name, IDENTITY], device).levels) for member in used]
            levels = range(len(maps[0][0]))
            merged = RpnMaps(
                *(tuple(torch.stack([m[kind][i][0] for m in maps]).mean(dim=0) for i in levels) for kind in (0, 1))
            )
            head = used[0].detector.rpn_head
            return select_proposals(merged, head, shape, settings.cell_type_rule, settings.thresholds)

    def box(used: Sequence[Member], proposals: torch.Tensor, cell_type: str) -> Detections:
        views = ALL_VIEWS if settings.use_tta else (IDENTITY,)
        with stage("boxes"):
            answers = [
                slow_boxes(member, moved(features[member.name, view], device), view, proposals, shape, settings)
                for member in used
                for view in views
            ]
            merged = MergedBoxes(*(torch.stack(parts).mean(dim=0) for parts in zip(*answers, strict=True)))
            return select_boxes(merged, settings.thresholds[cell_type], settings.bbox_nms)

    cell_type, used = None, members
    if any(cell_type not in member.use_for for cell_type in CELL_TYPES for member in members):
        first = [member for member in members if CLS_USE in member.use_for]
        proposals = propose(first)
        labels = box(first, proposals.boxes_xyxy, proposals.cell_type).labels
        cell_type = CELL_TYPES[int(labels.bincount().argmax())] if len(labels) else proposals.cell_type
        used = [member for member in members if cell_type in member.use_for]
    proposals = propose(used)
    cell_type = cell_type or proposals.cell_type
    boxes = box(used, proposals.boxes_xyxy, cell_type)
    with stage("masks"):
        views = ALL_VIEWS if settings.use_tta_masks else (IDENTITY,)
        all_classes = [
            slow_masks(member, moved(features[member.name, view], device), view, boxes.boxes_xyxy, shape)
            for member in used
            for view in views
        ]
        probs = torch.stack(all_classes).mean(dim=0)[torch.arange(len(boxes.labels)), boxes.labels]
    with stage("post-processing"):
        frames = paste_full(probs.cpu(), boxes.boxes_xyxy.cpu(), shape)
        masks, _ = full_postprocess(frames, boxes.scores.cpu().numpy(), settings.thresholds[cell_type])
    on_cpu = Detections(boxes.boxes_xyxy.cpu(), boxes.scores.cpu(), boxes.labels.cpu())
    return SlowPrediction(cell_type, on_cpu, probs.cpu(), masks)


def slow_features(detector: Detector, images: torch.Tensor) -> ViewFeatures:
    """All features of one view."""
    levels = tuple(detector.extract_feat(images))
    semantic = detector.roi_head.semantic_head(levels)[1] if hasattr(detector.roi_head, "semantic_head") else None
    return ViewFeatures(levels, semantic)


def moved(features: ViewFeatures, device: str) -> ViewFeatures:
    """A copy on another device, or on the same."""
    copies = [
        None if each is None else each.to(device, copy=True, memory_format=torch.contiguous_format)
        for each in (*features.levels, features.semantic)
    ]
    return ViewFeatures(tuple(each for each in copies[:-1] if each is not None), copies[-1])


def roi_features(detector: Detector, features: ViewFeatures, boxes: torch.Tensor, which: str) -> torch.Tensor:
    """RoI features of boxes (N, 4) in a view, for the `which` heads, "bbox" or "mask"; HTC's semantic ones added."""
    extractor = getattr(detector.roi_head, f"{which}_roi_extractor")
    extractor = extractor[0] if isinstance(extractor, nn.ModuleList) else extractor
    rois = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], dim=1)
    pooled = extractor(features.levels[: extractor.num_inputs], rois)
    if features.semantic is None:
        return pooled
    semantic = detector.roi_head.semantic_roi_extractor([features.semantic], rois)
    return pooled + F.adaptive_avg_pool2d(semantic, pooled.shape[-2:])


def slow_boxes(
    member: Member,
    features: ViewFeatures,
    view: View,
    proposals: torch.Tensor,
    shape: tuple[int, int],
    settings: EnsembleSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes (N, 4) of the image and scores (N, classes) that one view of one member gives."""
    boxes = boxes_into_view(proposals, view, shape)
    heads: Any = member.detector.roi_head.bbox_head
    heads = heads if isinstance(heads, nn.ModuleList) else [heads]
    stage_logits = []
    for head in heads:
        logits, deltas = head(roi_features(member.detector, features, boxes, "bbox"))
        stage_logits.append(logits)
        if member.kind == "maskrcnn":
            best = logits[:, : settings.num_classes].argmax(dim=1)
            deltas = torch.stack([row[4 * label : 4 * label + 4] for row, label in zip(deltas, best, strict=True)])
        boxes = head.bbox_coder.decode(boxes, deltas, max_shape=shape)
    scores = torch.stack(stage_logits).mean(dim=0).softmax(dim=1)[:, : settings.num_classes]
    return flip_boxes(boxes, view, shape), scores


def slow_masks(
    member: Member, features: ViewFeatures, view: View, boxes: torch.Tensor, shape: tuple[int, int]
) -> torch.Tensor:
    """Mask probabilities (N, classes, 28, 28) that one view of one member gives boxes (N, 4) of the image."""
    pooled = roi_features(member.detector, features, boxes_into_view(boxes, view, shape), "mask")
    heads = member.detector.roi_head.mask_head
    heads = heads if isinstance(heads, nn.ModuleList) else [heads]
    stages, flow = [], None
    for head in heads:
        if member.kind == "htc":
            logits, flow = head(pooled, flow)
        else:
            logits = head(pooled)
        stages.append(logits.sigmoid())
    return masks_out_of_view(torch.stack(stages).mean(dim=0), view)


def paste_full(probs: torch.Tensor, boxes: torch.Tensor, shape: tuple[int, int]) -> np.ndarray:
    """(N, H, W) uint8 of probability x 255: each mask sampled at all pixels of the image."""
    height, width = shape
    frames = np.zeros((len(probs), height, width), np.uint8)
    for frame, prob, (x1, y1, x2, y2) in zip(frames, probs, boxes.tolist(), strict=True):
        x = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
        y = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)[None]
        frame[:] = (F.grid_sample(prob[None, None], grid, align_corners=False)[0, 0] * 255).to(torch.uint8).numpy()
    return frames
