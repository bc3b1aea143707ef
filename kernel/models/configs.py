"""Detectors in mmdet's terms: the configurations of Mask R-CNN, Cascade Mask R-CNN and HTC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from kernel.models.encoders import ENCODER_STRIDES

#: Groups of a neck's GroupNorm; its channels are a multiple of them.
NECK_NORM_GROUPS = 32


@dataclass(frozen=True)
class DetectorSpec:
    """What a detector is. The published members differ only in detector kind and encoder; those here are narrower."""

    kind: str  # the detector kind, a key of `DETECTOR_KINDS`
    encoder: str
    num_classes: int = 8  # foreground classes; 8: LIVECell's
    neck_channels: int = 256
    fc_channels: int = 1024
    mask_channels: int = 256
    neck_norm: bool = False  # GroupNorm in the neck, for training in small batches
    stem_stride: int = 1  # of the first convolution: 1, or 2 as in mmdet's own detectors

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the encoder's four feature maps."""
        return tuple(self.stem_stride * stride for stride in ENCODER_STRIDES)


def neck_config(spec: DetectorSpec, encoder_channels: tuple[int, ...]) -> dict[str, Any]:
    """The FPN: four levels, one for each of the encoder's maps, and a fifth at half the resolution of the last."""
    norm = dict(norm_cfg=dict(type="GN", num_groups=NECK_NORM_GROUPS)) if spec.neck_norm else {}
    return dict(type="FPN", in_channels=list(encoder_channels), out_channels=spec.neck_channels, num_outs=5, **norm)


def rpn_head_config(spec: DetectorSpec) -> dict[str, Any]:
    """The RPN: anchors of scale 8 and three ratios on five levels; half the usual strides with a stem of stride 1."""
    smooth = dict(type="SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0)
    return dict(
        type="RPNHead",
        in_channels=spec.neck_channels,
        feat_channels=spec.neck_channels,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[8], ratios=[0.5, 1.0, 2.0], strides=[*spec.strides, 2 * spec.strides[-1]]
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0) if spec.kind == "maskrcnn" else smooth,
    )


def roi_extractor_config(spec: DetectorSpec, output_size: int, strides: tuple[int, ...]) -> dict[str, Any]:
    """RoIAlign with adaptive sampling, each RoI on the FPN level that fits its size."""
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
    """One cascade stage; each class regresses its own box."""
    return dict(
        type="StandardRoIHead",
        bbox_roi_extractor=roi_extractor_config(spec, 7, spec.strides),
        bbox_head=box_head_config(spec, (0.1, 0.1, 0.2, 0.2), False, dict(type="L1Loss", loss_weight=1.0)),
        mask_roi_extractor=roi_extractor_config(spec, 14, spec.strides),
        mask_head=mask_head_config(spec),
    )


#: Delta standard deviations, assigner IoUs and loss weights of the three cascade stages.
CASCADE_STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))
CASCADE_IOUS = (0.5, 0.6, 0.7)
CASCADE_LOSS_WEIGHTS = (1, 0.5, 0.25)


def cascade_roi_head(spec: DetectorSpec) -> dict[str, Any]:
    """Three cascade stages, each refining the boxes of the one before; a mask head per stage."""
    smooth = dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0)
    return dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=list(CASCADE_LOSS_WEIGHTS),
        bbox_roi_extractor=roi_extractor_config(spec, 7, spec.strides),
        bbox_head=[box_head_config(spec, stds, True, dict(smooth)) for stds in CASCADE_STDS],
        mask_roi_extractor=roi_extractor_config(spec, 14, spec.strides),
        mask_head=[mask_head_config(spec) for _ in CASCADE_STDS],
    )


def htc_roi_head(spec: DetectorSpec) -> dict[str, Any]:
    """A cascade whose mask heads take the last one's features, and whose RoI features have semantic ones added."""
    return dict(
        cascade_roi_head(spec),
        type="HybridTaskCascadeRoIHead",
        interleaved=True,
        mask_info_flow=True,
        mask_head=[
            mask_head_config(spec, "HTCMaskHead", with_conv_res=stage > 0) for stage in range(len(CASCADE_STDS))
        ],
        semantic_roi_extractor=roi_extractor_config(spec, 14, spec.strides[1:2]),
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
