"""Compare an ensemble with figures measured on the original; see tests/test_goldens.py."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from deterministic_weights import deterministic_array
from oracles import full_frames
from torchvision.ops import box_iou

from kernel.ensemble.boxes import Detections, select_boxes
from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.members import Member
from kernel.ensemble.views import ALL_VIEWS
from kernel.masks.instances import paste_instances
from kernel.models.configs import DetectorSpec
from kernel.models.detectors import build_detector
from kernel.models.fusion import fuse_batch_norms
from kernel.settings import CELL_TYPES, CLS_USE, EnsembleSettings, Thresholds

#: What a golden's arrays are with no row in them, however they were saved; N counts boxes or proposals.
ROW_SHAPES = {
    "proposals": (5,),
    "cls_proposals": (5,),
    "merged_boxes_scores": (7,),
    "boxes": (6,),
    "mask_probs": (28, 28),
}
TYPE_THRESHOLDS = (
    "rpn_nms_pre",
    "rpn_iou_threshold",
    "rpn_score_threshold",
    "rpn_max_per_img",
    "rcnn_iou_threshold",
    "rcnn_score_threshold",
)


def deterministic_detector(kind: str, encoder: str, scales: dict[str, float]) -> torch.nn.Module:
    """A detector whose every tensor is drawn from its own name."""
    detector = build_detector(DetectorSpec(kind, encoder))
    state = {
        key: torch.from_numpy(deterministic_array(key, tuple(value.shape), scales))
        if value.is_floating_point()
        else value
        for key, value in detector.state_dict().items()
    }
    detector.load_state_dict(state)
    return detector


def read_arrays(npz_path: Path) -> dict[str, np.ndarray]:
    """The arrays of an ensemble golden."""
    with np.load(npz_path) as arrays:
        found = {key: arrays[key] for key in arrays.files}
    for key, shape in ROW_SHAPES.items():
        if key in found and found[key].size == 0:
            found[key] = found[key].reshape(0, *shape)
    return found


def ensemble_of_golden(golden: dict, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Ensemble:
    """The ensemble that a golden's JSON describes."""
    lists = golden["ensemble"]
    thresholds = {
        cell_type: Thresholds(**{name: lists[name][index] for name in TYPE_THRESHOLDS if lists.get(name)})
        for index, cell_type in enumerate(CELL_TYPES)
    }
    settings = EnsembleSettings(
        use_tta=lists["use_tta"],
        use_tta_masks=lists["use_tta_masks"],
        bbox_nms=lists["bbox_nms"],
        num_classes=lists["num_classes"],
        thresholds=thresholds,
    )
    members = []
    for index, name in enumerate(golden["members"]):
        kind, encoder = name.split(":")
        uses = frozenset(use for use in (*CELL_TYPES, CLS_USE) if index in golden["usage"].get(use, ()))
        detector = deterministic_detector(kind, encoder, golden["scales"])
        fuse_batch_norms(detector)  # as the kernel does when it loads a member
        members.append(Member(f"{index}:{name}", kind, detector, uses))
    return Ensemble(members, settings, device=device, dtype=dtype)


def assert_same_boxes(found: np.ndarray, expected: np.ndarray, what: str, labelled: bool = False) -> None:
    """Rows x1 y1 x2 y2 score [label] as sets: at least 99 % of each side has its match in the other."""
    assert abs(len(found) - len(expected)) <= 0.01 * len(expected), (what, len(found), len(expected))
    if len(expected) == 0:
        return
    iou = box_iou(torch.from_numpy(found[:, :4]).double(), torch.from_numpy(expected[:, :4]).double()).numpy()
    matches = (iou > 0.99) & (np.abs(found[:, None, 4] - expected[None, :, 4]) <= 1e-4)
    if labelled:
        matches &= found[:, None, 5] == expected[None, :, 5]
    assert matches.any(axis=0).mean() >= 0.99, (what, "expected but not found", matches.any(axis=0).mean())
    assert matches.any(axis=1).mean() >= 0.99, (what, "found but not expected", matches.any(axis=1).mean())


def feature_row(fmap: np.ndarray) -> np.ndarray:
    """(18,) float64: mean, deviation of the population and 16 values of a feature map (C, H, W)."""
    channels, height, width = fmap.shape
    rng = np.random.RandomState(7)
    places = rng.randint(0, channels, 16), rng.randint(0, height, 16), rng.randint(0, width, 16)
    values = fmap.astype(np.float64)
    return np.concatenate([[values.mean(), values.std()], values[places]])


def assert_features(ensemble: Ensemble, image: np.ndarray, expected: np.ndarray, wanted: set[int]) -> None:
    """Mean, deviation and 16 values of each member's, view's and level's feature map."""
    features = ensemble.image_features(image)
    checked = 0
    for row in expected:
        member_index, view_index, level = (int(v) for v in row[:3])
        if member_index not in wanted:
            continue
        view = ALL_VIEWS[view_index]
        fmap = features.get(ensemble.members[member_index], (view,)).levels[level][0].cpu()
        where = str((member_index, view.name, level))
        np.testing.assert_allclose(feature_row(fmap.numpy()), row[3:], atol=1e-4, rtol=0, err_msg=where)
        checked += 1
    assert checked > 0


def to_rows(boxes: torch.Tensor, *columns: torch.Tensor) -> np.ndarray:
    """Boxes and columns side by side as float64 numpy rows."""
    return torch.cat([boxes, *(c[:, None] for c in columns)], dim=1).cpu().double().numpy()


@torch.inference_mode()
def check_ensemble_golden(npz_path: Path, json_path: Path, device: str = "cpu") -> None:
    """Assert everything that goldens/README.md lists for an ensemble golden."""
    golden = json.loads(json_path.read_text())
    expected = read_arrays(npz_path)
    ensemble = ensemble_of_golden(golden, device)
    image = expected["image"]
    features = ensemble.image_features(image)

    if "cls_proposals" in expected:
        first = ensemble.propose(features, ensemble.members_for(CLS_USE))
        assert CELL_TYPES.index(first.cell_type) == int(expected["cls_cell_type_by_proposals"])
        assert_same_boxes(to_rows(first.boxes_xyxy, first.scores), expected["cls_proposals"], "cls_proposals")

    cell_type = ensemble.decide_cell_type(features) if ensemble.needs_first_pass else None
    members = ensemble.members_for(cell_type) if cell_type else ensemble.members
    proposals = ensemble.propose(features, members)
    assert CELL_TYPES.index(proposals.cell_type) == int(expected["cell_type_by_proposals"])
    assert_same_boxes(to_rows(proposals.boxes_xyxy, proposals.scores), expected["proposals"], "proposals")
    cell_type = cell_type or proposals.cell_type

    used = {ensemble.members.index(member) for member in members}
    if ensemble.needs_first_pass:
        used |= {ensemble.members.index(member) for member in ensemble.members_for(CLS_USE)}
    assert_features(ensemble, image, expected["feat_stats"], used)

    given = torch.from_numpy(expected["proposals"][:, :4]).float().to(device)
    merged = ensemble.box(features, members, given)
    rows = torch.cat([merged.boxes_xyxy, merged.scores], dim=1).cpu().numpy()
    np.testing.assert_allclose(rows[:, 4:], expected["merged_boxes_scores"][:, 4:], atol=1e-4, rtol=0)
    np.testing.assert_allclose(rows[:, :4], expected["merged_boxes_scores"][:, :4], atol=0.01, rtol=0)

    boxes = select_boxes(merged, ensemble.settings.thresholds[cell_type], ensemble.settings.bbox_nms)
    assert_same_boxes(to_rows(boxes.boxes_xyxy, boxes.scores, boxes.labels), expected["boxes"], "boxes", labelled=True)

    final = torch.from_numpy(expected["boxes"]).float().to(device)
    detections = Detections(final[:, :4].contiguous(), final[:, 4], final[:, 5].long())
    probs = ensemble.mask(features, members, detections).cpu().numpy()
    np.testing.assert_allclose(probs, expected["mask_probs"].astype(np.float32), atol=1e-3, rtol=0)

    height, width = image.shape[:2]
    pasted = paste_instances(
        probs, expected["boxes"][:, :4], expected["boxes"][:, 4], expected["boxes"][:, 5], (height, width)
    )
    frames = expected["masks"].reshape(len(final), height, width)
    differing = np.count_nonzero(np.abs(full_frames(pasted).astype(int) - frames.astype(int)) > 2)
    assert differing <= 0.001 * frames.size, differing / frames.size
