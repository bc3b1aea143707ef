"""Detectors: the published checkpoints' keys and shapes, the reference's figures, and mmdet's own heads as oracle."""

from __future__ import annotations

import gzip
import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_detectors import tiny_detector, tiny_spec
from torch import nn

from kernel.models import detectors
from kernel.models.configs import DetectorSpec
from kernel.models.detectors import (
    DETECTOR_KINDS,
    Detector,
    ViewFeatures,
    build_detector,
    compute_features,
    mask_size,
    own_class,
    stack_views,
)
from kernel.models.rois import boxes_to_rois, chunked_rois

pytestmark = pytest.mark.usefixtures("wheels_site")

SHAPES_FILE = Path(__file__).parents[1] / "goldens" / "state_dict_shapes.json.gz"
SHAPES: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(SHAPES_FILE.read_bytes()))
KINDS = ("maskrcnn", "cascade", "htc")
IMAGE_SHAPE = (60, 90)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse every connection. The list holds the attempts, for a library may swallow the refusal."""
    attempts: list[str] = []

    def refuse(*args: Any, **kwargs: Any) -> None:
        attempts.append(str(args))
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


def build_on_meta(kind: str, encoder: str) -> Detector:
    """The real architecture, in no memory."""
    with torch.device("meta"):
        return build_detector(DetectorSpec(kind, encoder))


# --- architecture ------------------------------------------------------------------------------------------------


def test_there_are_twenty_published_combinations() -> None:
    assert len(SHAPES) == 20
    assert {name.split("_")[0] for name in SHAPES} == set(KINDS)


@pytest.mark.parametrize("name", SHAPES)
def test_keys_and_shapes_are_those_of_the_published_checkpoints(name: str, no_network: list[str]) -> None:
    detector = build_on_meta(*name.split("_", 1))
    found = {key: list(value.shape) for key, value in detector.state_dict().items()}
    assert found == SHAPES[name]
    assert not no_network
    assert not detector.training


@pytest.mark.parametrize("name", SHAPES)
def test_five_levels_of_half_the_usual_strides(name: str) -> None:
    detector = build_on_meta(*name.split("_", 1))
    first = next(module for module in detector.backbone.modules() if isinstance(module, nn.Conv2d))
    assert first.stride == (1, 1)
    levels = detector.extract_feat(torch.zeros(1, 3, 64, 96, device="meta"))
    assert [tuple(level.shape) for level in levels] == [(1, 256, 64 // s, 96 // s) for s in (2, 4, 8, 16, 32)]


@pytest.mark.parametrize("encoder", ["resnet18_narrow", "efficientnet_lite0"])
@pytest.mark.parametrize("kind", KINDS)
def test_small_encoders_give_five_levels(kind: str, encoder: str, no_network: list[str]) -> None:
    torch.manual_seed(0)
    detector = build_detector(DetectorSpec(kind, encoder, 3, neck_channels=8, fc_channels=8, mask_channels=8))
    assert not no_network
    with torch.inference_mode():
        features = compute_features(detector, torch.randn(2, 3, 64, 96))
    assert [tuple(level.shape) for level in features.levels] == [(2, 8, 64 // s, 96 // s) for s in (2, 4, 8, 16, 32)]
    assert all(level.isfinite().all() for level in features.levels)
    if kind == "htc":
        assert features.semantic is not None
        assert tuple(features.semantic.shape) == (2, 8, 16, 24)
    else:
        assert features.semantic is None


@pytest.mark.parametrize("kind", KINDS)
def test_anchors_are_of_scale_8_and_three_ratios(kind: str) -> None:
    detector = tiny_detector(kind)
    generator = detector.rpn_head.prior_generator
    assert [tuple(stride) for stride in generator.strides] == [(s, s) for s in (2, 4, 8, 16, 32)]
    for anchors, stride in zip(generator.base_anchors, (2, 4, 8, 16, 32), strict=True):
        widths, heights = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
        torch.testing.assert_close(heights / widths, torch.tensor([0.5, 1.0, 2.0]))
        torch.testing.assert_close((widths * heights).sqrt(), torch.full((3,), 8.0 * stride))
        torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])  # around the position


@pytest.mark.parametrize("kind", KINDS)
def test_heads_have_the_figures_of_the_reference(kind: str) -> None:
    detector = build_on_meta(kind, "resnet50")
    roi_head, rpn_head = detector.roi_head, detector.rpn_head
    staged = kind != "maskrcnn"
    box_heads = list(roi_head.bbox_head) if staged else [roi_head.bbox_head]
    box_extractors = list(roi_head.bbox_roi_extractor) if staged else [roi_head.bbox_roi_extractor]
    mask_extractor = roi_head.mask_roi_extractor[0] if staged else roi_head.mask_roi_extractor
    stds = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)]
    assert [tuple(head.bbox_coder.stds) for head in box_heads] == stds[: len(box_heads)]
    assert tuple(rpn_head.bbox_coder.stds) == (1.0, 1.0, 1.0, 1.0)
    assert len(box_heads) == (3 if staged else 1)
    assert all(head.reg_class_agnostic is staged for head in box_heads)
    assert {type(head.loss_bbox).__name__ for head in box_heads} == {"SmoothL1Loss" if staged else "L1Loss"}
    assert type(rpn_head.loss_bbox).__name__ == ("SmoothL1Loss" if staged else "L1Loss")
    for extractor, size in [(each, 7) for each in box_extractors] + [(mask_extractor, 14)]:
        assert list(extractor.featmap_strides) == [2, 4, 8, 16]
        assert [layer.output_size for layer in extractor.roi_layers] == [(size, size)] * 4
        assert [layer.sampling_ratio for layer in extractor.roi_layers] == [0] * 4
        assert [layer.spatial_scale for layer in extractor.roi_layers] == [1 / 2, 1 / 4, 1 / 8, 1 / 16]
    assert mask_size(detector) == (28, 28)
    if staged:
        assert list(roi_head.stage_loss_weights) == [1, 0.5, 0.25]
        assert all(head.loss_bbox.beta == 1.0 for head in box_heads)
        assert rpn_head.loss_bbox.beta == pytest.approx(1 / 9)


def test_htc_is_interleaved_with_mask_flow_and_semantics() -> None:
    roi_head = build_on_meta("htc", "resnet50").roi_head
    assert roi_head.interleaved
    assert roi_head.mask_info_flow
    assert [head.with_conv_res for head in roi_head.mask_head] == [False, True, True]
    semantic = roi_head.semantic_head
    assert (semantic.num_ins, semantic.fusion_level, semantic.num_convs, semantic.num_classes) == (5, 1, 4, 8)
    assert (semantic.criterion.loss_weight, semantic.criterion.ignore_index) == (0.2, 255)
    extractor = roi_head.semantic_roi_extractor
    assert list(extractor.featmap_strides) == [4]
    assert extractor.roi_layers[0].output_size == (14, 14)


@pytest.mark.parametrize(
    ("kind", "ious"), [("maskrcnn", [0.5]), ("cascade", [0.5, 0.6, 0.7]), ("htc", [0.5, 0.6, 0.7])]
)
def test_assigners_and_samplers_have_the_figures_of_the_reference(kind: str, ious: list[float]) -> None:
    detector = build_on_meta(kind, "resnet50")
    roi_head, rpn = detector.roi_head, detector.rpn_head
    assigners = roi_head.bbox_assigner if kind != "maskrcnn" else [roi_head.bbox_assigner]
    samplers = roi_head.bbox_sampler if kind != "maskrcnn" else [roi_head.bbox_sampler]
    assert [each.pos_iou_thr for each in assigners] == ious
    assert [each.neg_iou_thr for each in assigners] == ious
    assert {(each.num, each.pos_fraction, each.add_gt_as_proposals) for each in samplers} == {(512, 0.25, True)}
    assert (rpn.assigner.pos_iou_thr, rpn.assigner.neg_iou_thr, rpn.assigner.min_pos_iou) == (0.7, 0.3, 0.3)
    assert (rpn.sampler.num, rpn.sampler.pos_fraction) == (256, 0.5)
    proposals = detector.train_cfg.rpn_proposal
    assert (proposals.nms_pre, proposals.nms.iou_threshold) == (2000, 0.7)
    assert proposals.max_per_img == (1000 if kind == "maskrcnn" else 2000)


@pytest.mark.parametrize("num_classes", [3, 8])
def test_the_tiny_detector_is_what_its_spec_says(num_classes: int) -> None:
    detector = tiny_detector("cascade", num_classes=num_classes)
    shapes = {key: tuple(value.shape) for key, value in detector.state_dict().items()}
    assert tiny_spec("cascade", num_classes) == DetectorSpec("cascade", "resnet18_narrow", num_classes, 16, 16, 16)
    assert shapes["roi_head.bbox_head.2.fc_cls.weight"] == (num_classes + 1, 16)
    assert shapes["roi_head.mask_head.2.conv_logits.weight"] == (num_classes, 16, 1, 1)
    same, other = tiny_detector("cascade", 0, num_classes), tiny_detector("cascade", 1, num_classes)
    assert torch.equal(detector.rpn_head.rpn_cls.weight, same.rpn_head.rpn_cls.weight)
    assert not torch.equal(detector.rpn_head.rpn_cls.weight, other.rpn_head.rpn_cls.weight)


# --- what a detector says of given boxes -------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def given_boxes(request: pytest.FixtureRequest, wheels_site: Path) -> tuple[str, Detector, ViewFeatures, torch.Tensor]:
    """A kind, its detector, features of two views and boxes (2, 23, 4) in them, one of them empty."""
    kind: str = request.param
    detector = tiny_detector(kind)
    generator = torch.Generator().manual_seed(5)
    with torch.inference_mode():
        features = compute_features(detector, torch.randn(2, 3, 64, 96, generator=generator))
    corners = torch.rand((2, 23, 2), generator=generator) * torch.tensor([80.0, 50.0])
    sizes = torch.rand((2, 23, 2), generator=generator) ** 2 * torch.tensor([60.0, 60.0])
    sizes[:, 4] = 0
    limit = torch.tensor([90.0, 60.0])
    boxes = torch.cat([corners, (corners + sizes).minimum(limit)], dim=2)
    return kind, detector, features, boxes


def mmdet_boxes(
    kind: str, detector: Detector, features: ViewFeatures, boxes_xyxy: torch.Tensor, num_classes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The boxes and scores of one view's boxes (N, 4), by mmdet's roi heads, one stage after the other."""
    rois, roi_head = F.pad(boxes_xyxy, (1, 0)), detector.roi_head
    if kind == "maskrcnn":
        result = roi_head._bbox_forward(features.levels, rois)
        decoded, scores = roi_head.bbox_head.get_bboxes(
            rois, result["cls_score"], result["bbox_pred"], IMAGE_SHAPE, None, rescale=False, cfg=None
        )
        scores = scores[:, :num_classes]
        best = scores.argmax(dim=1)
        return torch.stack([row.view(-1, 4)[label] for row, label in zip(decoded, best, strict=True)]), scores
    logits = []
    for stage in range(3):
        semantic = {"semantic_feat": features.semantic} if kind == "htc" else {}
        result = roi_head._bbox_forward(stage, features.levels, rois, **semantic)
        labels = result["cls_score"][:, :-1].argmax(dim=1)
        rois = roi_head.bbox_head[stage].regress_by_class(
            rois, labels, result["bbox_pred"], {"img_shape": (*IMAGE_SHAPE, 3)}
        )
        logits.append(result["cls_score"])
    return rois[:, 1:], torch.stack(logits).mean(dim=0).softmax(dim=1)[:, :num_classes]


def one_view(features: ViewFeatures, view: int) -> ViewFeatures:
    """The features of one view of a batch, as a batch of one."""
    cut = slice(view, view + 1)
    semantic = None if features.semantic is None else features.semantic[cut]
    return ViewFeatures(tuple(level[cut] for level in features.levels), semantic)


@torch.inference_mode()
@pytest.mark.parametrize("num_classes", [1, 2, 3])
def test_boxes_are_what_mmdets_heads_say_of_each_view(given_boxes, num_classes: int) -> None:
    kind, detector, features, boxes = given_boxes
    found, scores = DETECTOR_KINDS[kind].predict_boxes(detector, features, boxes, IMAGE_SHAPE, num_classes)
    assert found.shape == (2, 23, 4)
    assert scores.shape == (2, 23, num_classes)
    for view in range(2):
        expected = mmdet_boxes(kind, detector, one_view(features, view), boxes[view], num_classes)
        torch.testing.assert_close(found[view], expected[0], atol=1e-3, rtol=0)
        torch.testing.assert_close(scores[view], expected[1], atol=1e-5, rtol=0)
    assert (found - boxes).abs().amax() > 0.1  # they do move ...
    assert found.amin() >= 0  # ... within the image
    assert (found.amax(dim=(0, 1)) <= torch.tensor([90.0, 60.0, 90.0, 60.0])).all()


@torch.inference_mode()
def test_scores_of_fewer_classes_are_the_first_of_more(given_boxes) -> None:
    kind, detector, features, boxes = given_boxes
    _, three = DETECTOR_KINDS[kind].predict_boxes(detector, features, boxes, IMAGE_SHAPE, 3)
    _, two = DETECTOR_KINDS[kind].predict_boxes(detector, features, boxes, IMAGE_SHAPE, 2)
    torch.testing.assert_close(two, three[..., :2])  # not renormalised
    assert (three.sum(dim=-1) < 1).all()  # the background's part is missing


@torch.inference_mode()
def test_masks_are_the_mean_of_what_mmdets_heads_say_of_each_view(given_boxes) -> None:
    kind, detector, features, boxes = given_boxes
    labels = torch.arange(23) % 3
    found = DETECTOR_KINDS[kind].predict_masks(detector, features, boxes, labels)
    assert found.shape == (2, 23, 28, 28)
    stages = 1 if kind == "maskrcnn" else 3
    for view in range(2):
        outputs = detector.roi_head.forward_dummy(one_view(features, view).levels, boxes[view])
        expected = torch.stack(
            [
                torch.stack([logits[label] for logits, label in zip(stage, labels, strict=True)]).sigmoid()
                for stage in outputs[-stages:]
            ]
        ).mean(dim=0)
        torch.testing.assert_close(found[view], expected, atol=1e-5, rtol=0)
    assert found.std() > 0.01


@torch.inference_mode()
@pytest.mark.parametrize("chunk", [1, 7, 23, 46])
def test_chunks_change_nothing(given_boxes, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, detector, features, boxes = given_boxes
    labels = torch.arange(23) % 3
    functions = DETECTOR_KINDS[kind]
    whole = functions.predict_boxes(detector, features, boxes, IMAGE_SHAPE, 3)
    whole_masks = functions.predict_masks(detector, features, boxes, labels)
    monkeypatch.setattr(detectors, "BOX_HEAD_CHUNK", chunk)
    monkeypatch.setattr(detectors, "MASK_HEAD_CHUNK", chunk)
    pieces = functions.predict_boxes(detector, features, boxes, IMAGE_SHAPE, 3)
    torch.testing.assert_close(pieces[0], whole[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(pieces[1], whole[1], atol=1e-5, rtol=0)
    pieces_masks = functions.predict_masks(detector, features, boxes, labels)
    torch.testing.assert_close(pieces_masks, whole_masks, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_no_boxes_give_empty_answers_of_the_right_shapes(given_boxes) -> None:
    kind, detector, features, _ = given_boxes
    none = torch.zeros(2, 0, 4)
    boxes, scores = DETECTOR_KINDS[kind].predict_boxes(detector, features, none, IMAGE_SHAPE, 3)
    masks = DETECTOR_KINDS[kind].predict_masks(detector, features, none, torch.zeros(0, dtype=torch.int64))
    assert boxes.shape == (2, 0, 4)
    assert scores.shape == (2, 0, 3)
    assert masks.shape == (2, 0, 28, 28)


# --- small steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        (torch.zeros(2, 0, 4), torch.zeros(0, 5)),
        (torch.tensor([[[1.0, 2, 3, 4]]]), torch.tensor([[0.0, 1, 2, 3, 4]])),
        (
            torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8]], [[9, 9, 9, 9], [8, 8, 8, 8]]]),
            torch.tensor([[0.0, 1, 2, 3, 4], [0, 5, 6, 7, 8], [1, 9, 9, 9, 9], [1, 8, 8, 8, 8]]),
        ),
    ],
)
def test_rois_carry_the_index_of_their_view(boxes: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(boxes_to_rois(boxes), expected)


@pytest.mark.parametrize(("count", "sizes"), [(0, []), (1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])])
def test_rois_are_split_into_chunks(count: int, sizes: list[int]) -> None:
    rois = torch.arange(count * 5.0).view(count, 5)
    chunks = chunked_rois(rois, 3)
    assert [len(chunk) for chunk in chunks] == sizes
    assert torch.equal(torch.cat([rois[:0], *chunks]), rois)


def test_each_row_gives_its_own_class() -> None:
    values = torch.arange(12).view(3, 2, 2)  # three rows of two classes
    assert own_class(values, torch.tensor([1, 0, 1])).tolist() == [[2, 3], [4, 5], [10, 11]]
    assert own_class(values[:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 2)


def test_pieces_of_rows_are_joined_to_views() -> None:
    boxes = torch.zeros(2, 3, 4)
    rows = torch.arange(6.0)[:, None]
    joined = stack_views([rows[:4], rows[4:]], boxes, 1)
    assert joined[:, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert stack_views([], boxes[:, :0], 7).shape == (2, 0, 7)
