"""Detectors: Mask R-CNN, Cascade Mask R-CNN and HTC as mmdet defines them, and what each kind does with given boxes.

A kind is a plain dict entry of three functions. They never make proposals or select boxes: the ensemble does,
on what all members say of the *same* boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from kernel.models.encoders import ENCODER_STRIDES, build_encoder
from kernel.models.roi_align import pool_rois

#: A detector of mmdet: an `nn.Module` whose parts (`rpn_head`, `roi_head`) no type of its own tells.
Detector = Any

#: RoIs that go through a mask head at a time: its upsampled maps take 0.8 MB each at 256 channels.
MASK_HEAD_CHUNK = 256
#: Groups of a neck's GroupNorm; its channels are a multiple of them.
NECK_NORM_GROUPS = 32
#: RoIs that go through a box head at a time: their 7 x 7 features take 50 KB each at 256 channels.
BOX_HEAD_CHUNK = 2048


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector is. The published members differ in kind and encoder only; the demo's are narrower."""

    kind: str  # a key of `DETECTOR_KINDS`
    encoder: str
    num_classes: int = 8  # foreground classes; 8: LIVECell's
    neck_channels: int = 256
    fc_channels: int = 1024
    mask_channels: int = 256
    neck_norm: bool = False  # GroupNorm in the neck: for small batches and encoders without detection weights


@dataclass(frozen=True)
class ViewFeatures:
    """What a detector computed of a batch of V views of one image."""

    levels: tuple[torch.Tensor, ...]  # five FPN maps (V, C, h, w), strides 2, 4, 8, 16, 32
    semantic: torch.Tensor | None  # HTC's semantic features (V, C, h, w), stride 4; None for other kinds

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All of them."""
        return self.levels if self.semantic is None else (*self.levels, self.semantic)


@dataclass(frozen=True)
class DetectorKind:
    """The three functions in which kinds of detectors differ."""

    roi_head: Callable[[DetectorSpec], dict[str, Any]]
    predict_boxes: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    predict_masks: Callable[..., torch.Tensor]


def build_detector(spec: DetectorSpec) -> Detector:
    """Build the detector of `spec` in eval mode, with random weights and without network.

    Its state dict has the keys of mmdet's own detector of that kind. mmdet must be importable.
    """
    from mmcv import ConfigDict
    from mmdet.models import build_detector as build_mmdet_detector

    encoder, channels = build_encoder(spec.encoder)
    # Beyond mmdet's own modules nothing is registered by name: mmcv takes a function for a type as well.
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
    return build_mmdet_detector(config).eval()


# --- configurations, in mmdet's terms ------------------------------------------------------------------------


def neck_config(spec: DetectorSpec, encoder_channels: tuple[int, ...]) -> dict[str, Any]:
    """The FPN: four levels of the encoder's maps, and a fifth at half the resolution of the last."""
    norm = dict(norm_cfg=dict(type="GN", num_groups=NECK_NORM_GROUPS)) if spec.neck_norm else {}
    return dict(type="FPN", in_channels=list(encoder_channels), out_channels=spec.neck_channels, num_outs=5, **norm)


def rpn_head_config(spec: DetectorSpec) -> dict[str, Any]:
    """The RPN: anchors of scale 8 and three ratios on five levels, half the usual strides."""
    smooth = dict(type="SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0)
    return dict(
        type="RPNHead",
        in_channels=spec.neck_channels,
        feat_channels=spec.neck_channels,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0, 2.0], strides=[*ENCODER_STRIDES, 32]
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0) if spec.kind == "maskrcnn" else smooth,
    )


def roi_extractor_config(spec: DetectorSpec, output_size: int, strides: tuple[int, ...]) -> dict[str, Any]:
    """RoIAlign with adaptive sampling, each RoI on the level that fits its size."""
    return dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=output_size, sampling_ratio=0),
        out_channels=spec.neck_channels,
        featmap_strides=list(strides),
    )


def box_head_config(
    spec: DetectorSpec, stds: tuple[float, ...], class_agnostic: bool, loss: dict[str, Any]
) -> dict[str, Any]:
    """Two shared fully connected layers, then classes and deltas."""
    return dict(
        type="Shared2FCBBoxHead",
        in_channels=spec.neck_channels,
        fc_out_channels=spec.fc_channels,
        roi_feat_size=7,
        num_classes=spec.num_classes,
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=list(stds)),
        reg_class_agnostic=class_agnostic,
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        loss_bbox=loss,
    )


def mask_head_config(spec: DetectorSpec, head: str = "FCNMaskHead", **options: Any) -> dict[str, Any]:
    """Four convolutions and a deconvolution: 28 x 28 logits per class."""
    return dict(
        type=head,
        num_convs=4,
        in_channels=spec.neck_channels,
        conv_out_channels=spec.mask_channels,
        num_classes=spec.num_classes,
        loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        **options,
    )


def maskrcnn_roi_head(spec: DetectorSpec) -> dict[str, Any]:
    """One stage; each class regresses its own box."""
    return dict(
        type="StandardRoIHead",
        bbox_roi_extractor=roi_extractor_config(spec, 7, ENCODER_STRIDES),
        bbox_head=box_head_config(spec, (0.1, 0.1, 0.2, 0.2), False, dict(type="L1Loss", loss_weight=1.0)),
        mask_roi_extractor=roi_extractor_config(spec, 14, ENCODER_STRIDES),
        mask_head=mask_head_config(spec),
    )


#: Delta standard deviations and assigner IoUs of the three stages of a cascade.
CASCADE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
CASCADE_IOUS = (0.5, 0.6, 0.7)
CASCADE_LOSS_WEIGHTS = (1, 0.5, 0.25)


def cascade_roi_head(spec: DetectorSpec) -> dict[str, Any]:
    """Three stages, each refining the boxes of the one before; a mask head per stage."""
    smooth = dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0)
    return dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=list(CASCADE_LOSS_WEIGHTS),
        bbox_roi_extractor=roi_extractor_config(spec, 7, ENCODER_STRIDES),
        bbox_head=[box_head_config(spec, stds, True, dict(smooth)) for stds in CASCADE_STDS],
        mask_roi_extractor=roi_extractor_config(spec, 14, ENCODER_STRIDES),
        mask_head=[mask_head_config(spec) for _ in CASCADE_STDS],
    )


def htc_roi_head(spec: DetectorSpec) -> dict[str, Any]:
    """A cascade whose mask heads feed one another and whose RoI features are joined by semantic ones."""
    return dict(
        cascade_roi_head(spec),
        type="HybridTaskCascadeRoIHead",
        interleaved=True,
        mask_info_flow=True,
        mask_head=[
            mask_head_config(spec, "HTCMaskHead", with_conv_res=stage > 0) for stage in range(len(CASCADE_STDS))
        ],
        semantic_roi_extractor=roi_extractor_config(spec, 14, ENCODER_STRIDES[1:2]),
        semantic_head=dict(
            type="FusedSemanticHead",
            num_ins=5,
            fusion_level=1,
            num_convs=4,
            in_channels=spec.neck_channels,
            conv_out_channels=spec.neck_channels,
            num_classes=spec.num_classes,
            loss_seg=dict(type="CrossEntropyLoss", ignore_index=255, loss_weight=0.2),
        ),
    )


def train_config(spec: DetectorSpec) -> dict[str, Any]:
    """Assigners and samplers of training."""

    def stage(iou: float) -> dict[str, Any]:
        return dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=iou,
                neg_iou_thr=iou,
                min_pos_iou=iou,
                match_low_quality=spec.kind == "maskrcnn",
                ignore_iof_thr=-1,
            ),
            sampler=dict(type="RandomSampler", num=512, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True),
            mask_size=28,
            pos_weight=-1,
            debug=False,
        )

    return dict(
        rpn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
                ignore_iof_thr=-1,
            ),
            sampler=dict(type="RandomSampler", num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False),
            allowed_border=-1 if spec.kind == "maskrcnn" else 0,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(
            nms_pre=2000,
            max_per_img=1000 if spec.kind == "maskrcnn" else 2000,
            nms=dict(type="nms", iou_threshold=0.7),
            min_bbox_size=0,
        ),
        rcnn=stage(0.5) if spec.kind == "maskrcnn" else [stage(iou) for iou in CASCADE_IOUS],
    )


# --- what a detector says of given boxes -----------------------------------------------------------------------


def compute_features(detector: Detector, images: torch.Tensor) -> ViewFeatures:
    """Run encoder, neck and, for HTC, the semantic head on normalised images (V, 3, H, W), sides multiples of 32."""
    levels = tuple(detector.extract_feat(images))
    semantic = None
    if getattr(detector.roi_head, "with_semantic", False):
        _, semantic = detector.roi_head.semantic_head(levels)
    return ViewFeatures(levels, semantic)


def boxes_to_rois(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """Flatten boxes (V, N, 4) of V views to RoIs (V * N, 5), the view's index first."""
    views, count, _ = boxes_xyxy.shape
    index = torch.arange(views, device=boxes_xyxy.device, dtype=boxes_xyxy.dtype)
    return torch.cat([index.repeat_interleave(count)[:, None], boxes_xyxy.reshape(-1, 4)], dim=1)


def chunked_rois(rois: torch.Tensor, size: int) -> tuple[torch.Tensor, ...]:
    """Split RoIs (M, 5) into pieces of at most `size`; no pieces for none."""
    return torch.split(rois, size) if len(rois) else ()


def box_features(detector: Detector, features: ViewFeatures, rois: torch.Tensor) -> torch.Tensor:
    """RoI features (M, C, 7, 7) for the box head; the cascades hold one extractor per stage, all alike."""
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
    """Classify and regress boxes (V, N, 4), in each view's own coordinates.

    Returns boxes (V, N, 4), clipped to `image_shape` (H, W), and probabilities (V, N, num_classes) of the first
    `num_classes` classes, not renormalised. Every class regresses its own box: the view's best class of those
    `num_classes` gives it.
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
    """As `maskrcnn_boxes`, in three stages that each refine the boxes; the logits are averaged over stages.

    Regression is class-agnostic, so which class is the best one does not change the boxes.
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


def maskrcnn_masks(
    detector: Detector, features: ViewFeatures, boxes_xyxy: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Mask probabilities (V, N, 28, 28) of boxes (V, N, 4), each of its own class `labels` (N,), in the view."""
    return mask_probabilities(detector, features, boxes_xyxy, labels, single_mask_stage)


def cascade_masks(
    detector: Detector, features: ViewFeatures, boxes_xyxy: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """As `maskrcnn_masks`: the mean over the stages' probabilities."""
    return mask_probabilities(detector, features, boxes_xyxy, labels, independent_mask_stages)


def htc_masks(
    detector: Detector, features: ViewFeatures, boxes_xyxy: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """As `cascade_masks`; each stage's features flow into the next one's."""
    return mask_probabilities(detector, features, boxes_xyxy, labels, chained_mask_stages)


def mask_probabilities(
    detector: Detector,
    features: ViewFeatures,
    boxes_xyxy: torch.Tensor,
    labels: torch.Tensor,
    stages: Callable[[Detector, torch.Tensor], list[torch.Tensor]],
) -> torch.Tensor:
    """Run `stages`, mapping RoI features to a list of logits (M, C, 28, 28), over all boxes, a chunk at a time."""
    views, count = boxes_xyxy.shape[:2]
    probabilities = []
    all_labels = labels.repeat(views)
    label_chunks = torch.split(all_labels, MASK_HEAD_CHUNK)
    for rois, own in zip(chunked_rois(boxes_to_rois(boxes_xyxy), MASK_HEAD_CHUNK), label_chunks, strict=False):
        logits = stages(detector, mask_features(detector, features, rois))
        probabilities.append(sum(own_class(each, own).float().sigmoid() for each in logits) / len(logits))
    if not probabilities:
        return boxes_xyxy.new_zeros((views, 0, *mask_size(detector)))
    return torch.cat(probabilities).unflatten(0, (views, count))


def mask_size(detector: Detector) -> tuple[int, int]:
    """Height and width of the detector's mask probabilities."""
    heads = detector.roi_head.mask_head
    head: Any = heads[0] if isinstance(heads, nn.ModuleList) else heads
    pooled, scale = head.roi_feat_size, head.scale_factor
    return pooled[0] * scale, pooled[1] * scale


def single_mask_stage(detector: Detector, pooled: torch.Tensor) -> list[torch.Tensor]:
    """Mask R-CNN's one mask head."""
    return [detector.roi_head.mask_head(pooled)]


def independent_mask_stages(detector: Detector, pooled: torch.Tensor) -> list[torch.Tensor]:
    """A cascade's mask heads, all on the same features."""
    return [head(pooled) for head in detector.roi_head.mask_head]


def chained_mask_stages(detector: Detector, pooled: torch.Tensor) -> list[torch.Tensor]:
    """HTC's mask heads: each one takes the last one's features as well."""
    logits, flow = [], None
    for head in detector.roi_head.mask_head:
        stage_logits, flow = head(pooled, flow)
        logits.append(stage_logits)
    return logits


DETECTOR_KINDS: Mapping[str, DetectorKind] = {
    "maskrcnn": DetectorKind(maskrcnn_roi_head, maskrcnn_boxes, maskrcnn_masks),
    "cascade": DetectorKind(cascade_roi_head, cascade_boxes, cascade_masks),
    "htc": DetectorKind(htc_roi_head, cascade_boxes, htc_masks),
}
