"""How good a detector is while it is trained: the kernel's own inference by it alone, scored by the metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from kernel.data.annotated import AnnotatedImage, check_readable
from kernel.ensemble.ensemble import Ensemble, Member
from kernel.errors import InputError
from kernel.models.detectors import Detector
from kernel.settings import CELL_TYPES, CLS_USE, EnsembleSettings, Thresholds
from kernel.validation.validate import ImageResult, refuse_other_types, validate_ensemble

#: For members that are few or not yet sure of themselves: the published thresholds of a single model, but for lower
#: scores. Masks have a say in these, which on 34 real images out of fold is worth 0.003 to 0.009 per cell type; the
#: confidences are those that these images want. Larger boxes for the masks help shsy5y, with its long thin runners, in
#: three of five images (0.154 to 0.163 in the mean), and change the mean of the other types by no more than 0.001. All
#: of this is of members finetuned for 300 iterations and less; longer ones were not asked on all 34.
EVALUATION_SETTINGS = EnsembleSettings(
    mask_score_power=2.0,
    thresholds={
        "shsy5y": Thresholds(
            rpn_nms_pre=3000, rpn_iou_threshold=0.75, rpn_score_threshold=0.5,
            rcnn_iou_threshold=0.75, rcnn_score_threshold=0.15, mask_box_scale=1.1, confidence=0.2,
        ),
        "astro": Thresholds(
            rpn_nms_pre=2000, rpn_iou_threshold=0.75, rpn_score_threshold=0.5,
            rcnn_iou_threshold=0.9, rcnn_score_threshold=0.1, mask_nms_threshold=0.1, confidence=0.25, corrupt=True,
        ),
        "cort": Thresholds(
            rpn_nms_pre=1000, rpn_iou_threshold=0.6, rpn_score_threshold=0.5,
            rcnn_iou_threshold=0.6, rcnn_score_threshold=0.3, mask_nms_threshold=0.05, confidence=0.55,
        ),
    },
)  # fmt: skip


def check_class_count(num_classes: int) -> None:
    """Raise InputError for a detector that lacks outputs for the competition's cell types, as no ensemble may."""
    needed = EVALUATION_SETTINGS.num_classes
    if num_classes < needed:
        raise InputError(
            f"num_classes is {num_classes}, and {', '.join(CELL_TYPES)} are to be found: set it to {needed} or more in "
            "the recipe's [detector]"
        )


def check_evaluation(num_classes: int, images: Sequence[AnnotatedImage]) -> None:
    """Raise InputError for what `evaluate_detector` cannot score: better now than after the first hours."""
    check_class_count(num_classes)
    refuse_other_types(EVALUATION_SETTINGS.thresholds, images, "validate on images of these, or set evaluate_every 0")
    check_readable(images)


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
