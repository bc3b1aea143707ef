"""How good a detector is while it is trained: the kernel's own inference by it alone, scored by the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kernel.data.annotated import AnnotatedImage
from kernel.ensemble.ensemble import Ensemble, Member
from kernel.models.detectors import Detector
from kernel.settings import CELL_TYPES, CLS_USE, EnsembleSettings, Thresholds
from kernel.validation.validate import ImageResult, validate_ensemble

#: For members that are few or not yet sure of themselves: the published thresholds of a single model, but for lower
#: scores. Masks have a say in these, which on 34 real images out of fold is worth 0.003 to 0.009 per cell type; the
#: confidences are those that 18 images out of fold want.
EVALUATION_SETTINGS = EnsembleSettings(
    mask_score_power=2.0,
    thresholds={
        "shsy5y": Thresholds(
            rpn_nms_pre=3000, rpn_iou_threshold=0.75, rpn_score_threshold=0.5,
            rcnn_iou_threshold=0.75, rcnn_score_threshold=0.15, confidence=0.2,
        ),
        "astro": Thresholds(
            rpn_nms_pre=2000, rpn_iou_threshold=0.75, rpn_score_threshold=0.5,
            rcnn_iou_threshold=0.9, rcnn_score_threshold=0.1, mask_nms_threshold=0.1, confidence=0.25, corrupt=True,
        ),
        "cort": Thresholds(
            rpn_nms_pre=1000, rpn_iou_threshold=0.6, rpn_score_threshold=0.5,
            rcnn_iou_threshold=0.6, rcnn_score_threshold=0.3, mask_nms_threshold=0.05, confidence=0.5,
        ),
    },
)  # fmt: skip


def evaluate_detector(
    detector: Detector,
    kind: str,
    images: Sequence[AnnotatedImage],
    device: torch.device,
    pictures: Path | None = None,
) -> list[ImageResult]:
    """Segment `images` by the detector alone, identity view only, and score them; outlines go to `pictures`.

    The detector is in eval mode afterwards.
    """
    settings = replace(EVALUATION_SETTINGS, use_tta=False, use_tta_masks=False)
    member = Member("in training", kind, detector, frozenset((*CELL_TYPES, CLS_USE)))
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    return validate_ensemble(Ensemble([member], settings, device), images, pictures)
