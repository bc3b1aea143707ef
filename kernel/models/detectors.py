"""Detectors: Mask R-CNN, Cascade Mask R-CNN and HTC as mmdet defines them, and their answers to given boxes.

Each of these detector kinds is three functions. They never make proposals or select boxes: the ensemble does, by what
all members answer to the *same* boxes.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kernel.models.configs import (
    DetectorSpec,
    cascade_roi_head,
    htc_roi_head,
    maskrcnn_roi_head,
    neck_config,
    rpn_head_config,
    train_config,
)
from kernel.models.crop_unet import MASK_SIDE, CropUNet
from kernel.models.encoders import build_encoder
from kernel.models.mmdet_imports import import_mmdet
from kernel.models.roi_align import pool_rois
from kernel.models.rois import boxes_to_rois, chunked_rois

#: A detector of mmdet, an `nn.Module` with parts (`backbone`, `neck`, `rpn_head`, `roi_head`) that it has no type for;
#: or a `CropUNet`, which makes masks alone.
Detector = Any

#: RoIs that go through a mask head at a time; its upsampled maps take 0.8 MB per RoI at 256 channels.
MASK_HEAD_CHUNK = 256
#: RoIs that go through a box head at a time; their 7 x 7 features take 50 KB per RoI at 256 channels.
BOX_HEAD_CHUNK = 2048


@dataclass(frozen=True)
class ViewFeatures:
    """A detector's features of a batch of V views of one image; a mask network's are its one map of gray levels."""

    levels: tuple[torch.Tensor, ...]  # five FPN maps (V, C, h, w), strides 2, 4, 8, 16, 32, or twice these
    semantic: (
        torch.Tensor | None
    )  # HTC's semantic features (V, C, h, w) of the second level; None for other detector kinds

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them."""
        return self.levels if self.semantic is None else (*self.levels, self.semantic)


@dataclass(frozen=True)
class DetectorKind:
    """The three functions in which detector kinds differ."""

    roi_head: Callable[[DetectorSpec], dict[str, Any]]
    predict_boxes: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    predict_masks: Callable[..., torch.Tensor]


def build_detector(spec: DetectorSpec) -> Detector:
    """Build the detector of `spec` in eval mode, with random weights; nothing is downloaded.

    Its state dict has the keys of mmdet's own detector of that kind. mmdet must be importable.
    """
    if spec.kind == "unet":
        return CropUNet(spec.mask_channels).eval()
    import_mmdet()
    from mmcv import ConfigDict
    from mmdet.models import build_detector as build_mmdet_detector

    encoder, channels = build_encoder(spec.encoder, spec.stem_stride)
    # Nothing of ours needs to be registered by name: mmcv takes a function for a type as well.
    config = ConfigDict(
        type={"maskrcnn": "MaskRCNN", "cascade": "CascadeRCNN", "htc": "HybridTaskCascade"}[spec.kind],
        backbone=dict(type=lambda: encoder),
        neck=neck_config(spec, channels),
        rpn_head=rpn_head_config(spec),
        roi_head=DETECTOR_KINDS[spec.kind].roi_head(spec),
        train_cfg=train_config(spec),
        test_cfg=dict(
            rpn=dict(nms_pre=1000, max_per_img=1000, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
            rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=1000, mask_thr_binary=0.5),
        ),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each loss recommends an option that we leave as it was trained with
        return build_mmdet_detector(config).eval()


def compute_features(detector: Detector, images: torch.Tensor) -> ViewFeatures:
    """Run encoder, neck and, for HTC, the semantic head on normalised images (V, 3, H, W), sides multiples of 32."""
    if isinstance(detector, CropUNet):
        return ViewFeatures((detector.features(images),), None)
    levels = tuple(detector.extract_feat(images))
    semantic = None
    if getattr(detector.roi_head, "with_semantic", False):
        _, semantic = detector.roi_head.semantic_head(levels)
    return ViewFeatures(levels, semantic)


def box_features(detector: Detector, features: ViewFeatures, rois: torch.Tensor) -> torch.Tensor:
    """RoI features (M, C, 7, 7) for the box heads. Cascades hold one extractor per cascade stage, all alike."""
    extractor = detector.roi_head.bbox_roi_extractor
    extractor = extractor[0] if isinstance(extractor, nn.ModuleList) else extractor
    pooled = pool_rois(extractor, features.levels[: extractor.num_inputs], rois)
    if features.semantic is not None:
        semantic = pool_rois(detector.roi_head.semantic_roi_extractor, [features.semantic], rois)
        pooled = pooled + F.adaptive_avg_pool2d(semantic, pooled.shape[-1])
    return pooled


def mask_features(detector: Detector, features: ViewFeatures, rois: torch.Tensor) -> torch.Tensor:
    """RoI features (M, C, 14, 14) for the mask heads."""
    extractor = detector.roi_head.mask_roi_extractor
    extractor = extractor[-1] if isinstance(extractor, nn.ModuleList) else extractor
    pooled = pool_rois(extractor, features.levels[: extractor.num_inputs], rois)
    if features.semantic is not None:
        pooled = pooled + pool_rois(detector.roi_head.semantic_roi_extractor, [features.semantic], rois)
    return pooled


def own_class(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Of values (M, C, ...) take each row's own class: (M, ...). `labels` (M,) int64."""
    return values[torch.arange(len(values), device=values.device), labels]


def maskrcnn_boxes(
    detector: Detector,
    features: ViewFeatures,
    boxes_xyxy: torch.Tensor,
    image_shape: tuple[int, int],
    num_classes: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Classify and regress boxes. Every class regresses its own box: that of the view's best class is taken.

    Args:
        detector: a Mask R-CNN.
        features: of V views.
        boxes_xyxy: (V, N, 4) pixels, in each view's own coordinates.
        image_shape: (H, W), unpadded.
        num_classes: the first so many classes count.

    Returns:
        Boxes (V, N, 4), clipped to the image, and probabilities (V, N, num_classes), not renormalised.
    """
    head = detector.roi_head.bbox_head
    boxes, scores = [], []
    for rois in chunked_rois(boxes_to_rois(boxes_xyxy), BOX_HEAD_CHUNK):
        logits, deltas = head(box_features(detector, features, rois))
        probabilities = F.softmax(logits.float(), dim=-1)[:, :num_classes]
        deltas = deltas.float().view(len(rois), -1, 4)
        best = own_class(deltas, probabilities.argmax(dim=1))
        boxes.append(head.bbox_coder.decode(rois[:, 1:], best, max_shape=image_shape))
        scores.append(probabilities)
    return stack_views(boxes, boxes_xyxy, 4), stack_views(scores, boxes_xyxy, num_classes)


def cascade_boxes(
    detector: Detector,
    features: ViewFeatures,
    boxes_xyxy: torch.Tensor,
    image_shape: tuple[int, int],
    num_classes: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `maskrcnn_boxes`, in three cascade stages that each refine the boxes; logits are averaged over them.

    Regression is class-agnostic: the best class does not change the boxes.
    """
    heads = detector.roi_head.bbox_head
    boxes, scores = [], []
    for rois in chunked_rois(boxes_to_rois(boxes_xyxy), BOX_HEAD_CHUNK):
        logits_sum = torch.zeros((), device=rois.device)
        for head in heads:
            logits, deltas = head(box_features(detector, features, rois))
            logits_sum = logits_sum + logits.float()
            refined = head.bbox_coder.decode(rois[:, 1:], deltas.float(), max_shape=image_shape)
            rois = torch.cat([rois[:, :1], refined], dim=1)
        boxes.append(rois[:, 1:])
        scores.append(F.softmax(logits_sum / len(heads), dim=-1)[:, :num_classes])
    return stack_views(boxes, boxes_xyxy, 4), stack_views(scores, boxes_xyxy, num_classes)


def stack_views(pieces: list[torch.Tensor], boxes_xyxy: torch.Tensor, width: int) -> torch.Tensor:
    """Join pieces of rows to (V, N, width), for boxes (V, N, 4); no pieces give (V, 0, width)."""
    if not pieces:
        return boxes_xyxy.new_zeros((len(boxes_xyxy), 0, width))
    return torch.cat(pieces).view(len(boxes_xyxy), -1, width)


def mask_probabilities(
    mask_logits: Callable[[Detector, torch.Tensor], list[torch.Tensor]],
    detector: Detector,
    features: ViewFeatures,
    boxes_xyxy: torch.Tensor,
    labels: torch.Tensor,
) -> torch.Tensor:
    """Mask probabilities of boxes, each of its own class; averaged over cascade stages.

    Args:
        mask_logits: maps RoI features (M, C, 14, 14) to logits (M, classes, 28, 28), one tensor per cascade stage.
        detector, features: of V views.
        boxes_xyxy: (V, N, 4) pixels, in each view's own coordinates.
        labels: (N,) int64.

    Returns:
        (V, N, 28, 28), in the view.
    """
    views, count = boxes_xyxy.shape[:2]
    probabilities = []
    all_labels = labels.repeat(views)
    label_chunks = torch.split(all_labels, MASK_HEAD_CHUNK)
    for rois, own in zip(chunked_rois(boxes_to_rois(boxes_xyxy), MASK_HEAD_CHUNK), label_chunks, strict=False):
        logits = mask_logits(detector, mask_features(detector, features, rois))
        probabilities.append(sum(own_class(each, own).float().sigmoid() for each in logits) / len(logits))
    if not probabilities:
        return boxes_xyxy.new_zeros((views, 0, *mask_size(detector)))
    return torch.cat(probabilities).unflatten(0, (views, count))


def mask_size(detector: Detector) -> tuple[int, int]:
    """Height and width of the detector's mask probabilities."""
    if isinstance(detector, CropUNet):
        return MASK_SIDE, MASK_SIDE
    heads = detector.roi_head.mask_head
    head: Any = heads[0] if isinstance(heads, nn.ModuleList) else heads
    pooled, scale = head.roi_feat_size, head.scale_factor
    return pooled[0] * scale, pooled[1] * scale


def maskrcnn_mask_logits(detector: Detector, pooled: torch.Tensor) -> list[torch.Tensor]:
    """Mask R-CNN's one mask head."""
    return [detector.roi_head.mask_head(pooled)]


def cascade_mask_logits(detector: Detector, pooled: torch.Tensor) -> list[torch.Tensor]:
    """A cascade's mask heads, all on the same features."""
    return [head(pooled) for head in detector.roi_head.mask_head]


def htc_mask_logits(detector: Detector, pooled: torch.Tensor) -> list[torch.Tensor]:
    """HTC's mask heads: each one takes the last one's features as well."""
    logits, flow = [], None
    for head in detector.roi_head.mask_head:
        stage_logits, flow = head(pooled, flow)
        logits.append(stage_logits)
    return logits


DETECTOR_KINDS: Mapping[str, DetectorKind] = {
    "maskrcnn": DetectorKind(maskrcnn_roi_head, maskrcnn_boxes, partial(mask_probabilities, maskrcnn_mask_logits)),
    "cascade": DetectorKind(cascade_roi_head, cascade_boxes, partial(mask_probabilities, cascade_mask_logits)),
    "htc": DetectorKind(htc_roi_head, cascade_boxes, partial(mask_probabilities, htc_mask_logits)),
}


def predict_masks(
    kind: str, detector: Detector, features: ViewFeatures, boxes_xyxy: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Mask probabilities (V, N, 28, 28) by a detector of any kind, arguments as of `mask_probabilities`.

    A mask network's are the same whatever the labels.
    """
    if isinstance(detector, CropUNet):
        return detector.masks(features.levels[0], boxes_xyxy)
    return DETECTOR_KINDS[kind].predict_masks(detector, features, boxes_xyxy, labels)
