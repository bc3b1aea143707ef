"""Goldens of our own, to try the goldens' test on: written as those of the original are, by inference in plain steps.

Encoders with their normalisation layers apart, one view at a time, mmdet's own RoI extractors, all classes' masks
before each box's own is taken, full frames; NMS, thresholds and sorting by the reference's text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden_ensemble import deterministic_detector
from slow_inference import paste_full, slow_boxes, slow_features, slow_masks
from torchvision.ops import nms

from kernel.ensemble.members import Member
from kernel.ensemble.proposals import cell_type_of_counts
from kernel.ensemble.views import ALL_VIEWS, IDENTITY, View, view_images
from kernel.models.detectors import ViewFeatures
from kernel.settings import CELL_TYPES, CLS_USE, CellTypeRule, EnsembleSettings

#: Gains by which features stay near 1 and scores differ visibly; "bn2" ends a block of the small ResNets.
SCALES = {"bn2": 0.2, "lateral": 0.1, "rpn_cls": 0.4, "rpn_reg": 0.06, "fc_cls": 0.4, "fc_reg": 0.1, "conv_logits": 0.8}
#: One value for all cell types; `rcnn_score_threshold` None: one that parts the merged boxes into halves.
DEFAULTS: Mapping[str, Any] = {
    "use_tta": True,
    "use_tta_masks": True,
    "bbox_nms": True,
    "rpn_nms_pre": 200,
    "rpn_iou_threshold": 0.7,
    "rpn_score_threshold": 0.3,
    "rpn_max_per_img": 60,
    "rcnn_iou_threshold": 0.6,
    "rcnn_score_threshold": None,
}

Features = dict[tuple[str, View], ViewFeatures]


@torch.inference_mode()
def write_golden(
    folder: Path, members: Sequence[str], usage: Mapping[str, Sequence[int]], shape: tuple[int, int], **options: Any
) -> tuple[Path, Path]:
    """Write golden.npz and golden.json for an image of noise of `shape` (H, W); `options` change DEFAULTS."""
    chosen = {**DEFAULTS, **options}
    settings = EnsembleSettings(use_tta=chosen["use_tta"], use_tta_masks=chosen["use_tta_masks"])
    uses = [frozenset(use for use in (*CELL_TYPES, CLS_USE) if index in usage[use]) for index in range(len(members))]
    built = []
    for name, use_for in zip(members, uses, strict=True):
        kind, encoder = name.split(":")
        detector = deterministic_detector(kind, encoder, SCALES).eval()
        built.append(Member(f"{len(built)}:{name}", kind, detector, use_for))
    image = np.random.default_rng(0).integers(0, 256, (*shape, 1)).astype(np.uint8).repeat(3, axis=2)
    features = {
        (member.name, view): slow_features(member.detector, view_images(image, (view,)))
        for member in built
        for view in ALL_VIEWS
    }

    arrays: dict[str, Any] = {"image": image, "feat_stats": feature_rows(built, features)}
    used, cell_type = built, None
    if len({use_for - {CLS_USE} for use_for in uses}) > 1:
        first = [member for member in built if CLS_USE in member.use_for]
        rows, counted = propose(first, features, shape, chosen)
        arrays |= {"cls_proposals": rows, "cls_cell_type_by_proposals": CELL_TYPES.index(counted)}
        merged = merge(first, features, rows, shape, settings)
        if chosen["rcnn_score_threshold"] is None:
            chosen["rcnn_score_threshold"] = threshold_between(merged)
        labels = select(merged, chosen)[:, 5].astype(int)
        cell_type = CELL_TYPES[np.bincount(labels).argmax()] if len(labels) else counted
        used = [member for member in built if cell_type in member.use_for]
    rows, counted = propose(used, features, shape, chosen)
    arrays |= {"proposals": rows, "cell_type_by_proposals": CELL_TYPES.index(counted)}
    merged = arrays["merged_boxes_scores"] = merge(used, features, rows, shape, settings)
    if chosen["rcnn_score_threshold"] is None:
        chosen["rcnn_score_threshold"] = threshold_between(merged)
    boxes = arrays["boxes"] = select(merged, chosen)

    given = torch.from_numpy(boxes[:, :4]).float()
    views = ALL_VIEWS if settings.use_tta_masks else (IDENTITY,)
    probs = torch.zeros(0, 28, 28)
    if len(boxes):
        answers = [
            slow_masks(member, features[member.name, view], view, given, shape) for member in used for view in views
        ]
        probs = torch.stack(answers).mean(dim=0)[torch.arange(len(boxes)), torch.from_numpy(boxes[:, 5]).long()]
    arrays |= {"mask_probs": probs.numpy().astype(np.float16), "masks": paste_full(probs, given, shape)}

    switches = ("use_tta", "use_tta_masks", "bbox_nms")
    lists = {name: value if name in switches else [value] * len(CELL_TYPES) for name, value in chosen.items()}
    golden = {"members": list(members), "usage": usage, "scales": SCALES, "ensemble": {**lists, "num_classes": 3}}
    npz_path, json_path = folder / "golden.npz", folder / "golden.json"
    np.savez(npz_path, **arrays)
    json_path.write_text(json.dumps(golden))
    return npz_path, json_path


def feature_rows(members: Sequence[Member], features: Features) -> np.ndarray:
    """(members x 4 views x 5 levels, 21): see the goldens' README."""
    rows = []
    for (index, member), (place, view) in product(enumerate(members), enumerate(ALL_VIEWS)):
        for level, fmap in enumerate(features[member.name, view].levels):
            values = fmap[0].double().numpy()
            rng = np.random.RandomState(7)
            points = list(zip(*[rng.randint(0, size, 16) for size in values.shape], strict=True))
            deviation = np.sqrt(((values - values.mean()) ** 2).sum() / values.size)
            rows.append([index, place, level, values.mean(), deviation, *(values[point] for point in points)])
    return np.array(rows)


def propose(
    members: Sequence[Member], features: Features, shape: tuple[int, int], limits: Mapping[str, Any]
) -> tuple[np.ndarray, str]:
    """Proposals (N, 5), best first, and the cell type that the merged maps count."""
    head: Any = members[0].detector.rpn_head
    maps = [member.detector.rpn_head(features[member.name, IDENTITY].levels) for member in members]
    merged = [
        [torch.stack(level).mean(dim=0)[0] for level in zip(*kind, strict=True)] for kind in zip(*maps, strict=True)
    ]
    rule, counts, found = CellTypeRule(), [], []
    for level, (logits, deltas) in enumerate(zip(*merged, strict=True)):
        counts.append(int((logits.sigmoid() > rule.score).any(dim=0).sum()))
        anchors = head.prior_generator.grid_priors([m.shape[-2:] for m in merged[0]], device="cpu")[level]
        scores = logits.permute(1, 2, 0).flatten().sigmoid()
        order = scores.argsort(descending=True)[: limits["rpn_nms_pre"]]
        boxes = head.bbox_coder.decode(anchors, deltas.permute(1, 2, 0).reshape(-1, 4), max_shape=shape)
        rows = torch.cat([boxes, scores[:, None]], dim=1)[order]
        rows = rows[(rows[:, 2] > rows[:, 0]) & (rows[:, 3] > rows[:, 1])]
        found.append(rows[nms(rows[:, :4], rows[:, 4], limits["rpn_iou_threshold"])])
    rows = torch.cat(found)
    rows = rows[rows[:, 4] > limits["rpn_score_threshold"]]
    rows = rows[rows[:, 4].argsort(descending=True)][: limits["rpn_max_per_img"]]
    return rows.numpy(), cell_type_of_counts(counts, rule, shape)


def merge(
    members: Sequence[Member],
    features: Features,
    proposals: np.ndarray,
    shape: tuple[int, int],
    settings: EnsembleSettings,
) -> np.ndarray:
    """Merged boxes and scores (N, 7) of proposals (N, 5)."""
    if len(proposals) == 0:
        return np.zeros((0, 7), np.float32)
    given = torch.from_numpy(proposals[:, :4])
    views = ALL_VIEWS if settings.use_tta else (IDENTITY,)
    answers = [
        torch.cat(slow_boxes(member, features[member.name, view], view, given, shape, settings), dim=1)
        for member in members
        for view in views
    ]
    return torch.stack(answers).mean(dim=0).numpy()


def threshold_between(merged: np.ndarray) -> float:
    """A score in the widest gap among the middle ones, so that rounding does not move a box over it."""
    scores = np.sort(merged[:, 4:].max(axis=1))
    middle = scores[len(scores) // 4 : -len(scores) // 4]
    gap = int(np.diff(middle).argmax())
    return float(middle[gap : gap + 2].mean())


def select(merged: np.ndarray, limits: Mapping[str, Any]) -> np.ndarray:
    """Final boxes (M, 6) of merged ones (N, 7)."""
    scores, labels = merged[:, 4:].max(axis=1, initial=0), merged[:, 4:].argmax(axis=1)
    rows = np.column_stack([merged[:, :4], scores, labels])
    if limits["bbox_nms"]:
        kept = nms(torch.from_numpy(rows[:, :4]), torch.from_numpy(rows[:, 4]), limits["rcnn_iou_threshold"])
        rows = rows[kept.numpy()]
    rows = rows[rows[:, 4] > limits["rcnn_score_threshold"]]
    return rows[np.argsort(-rows[:, 4], kind="stable")].astype(np.float32)
