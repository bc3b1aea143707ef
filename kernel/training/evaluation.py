"""Evaluation during training: the kernel's own inference with the one detector, scored by the metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from kernel.data.annotated import AnnotatedImage, check_readable
from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.members import Member
from kernel.errors import InputError
from kernel.models.detectors import Detector
from kernel.runtime.memory import free_memory, plan_tiling
from kernel.scoring.scores import ImageResult, draw_scored, refuse_other_types, validate_ensemble
from kernel.settings import CELL_TYPES, EVERY_USE, EnsembleSettings, Thresholds

#: For few members, or ones that are not trained for long: the published thresholds of a single model, with lower ones
#: for scores. Scores include the masks' (`mask_score_power`), which gains 0.003 to 0.009 per cell type on 34 real
#: images out of fold; the confidences are the best on these images. Larger boxes for the masks help shsy5y, with its
#: long thin neurites, in three of five images (from 0.154 to 0.163 in the mean), and change the mean of the other types
#: by no more than 0.001. All of this was measured with members finetuned for 300 iterations and less, and with astro
#: masks deformed as the competition's annotations are (`corrupt`); nobody else's are.
EVALUATION_SETTINGS = EnsembleSettings(
    mask_score_power=2.0,
    thresholds={
        "shsy5y": Thresholds(
            rpn_nms_pre=3000, rpn_iou_threshold=0.75, rpn_score_threshold=0.5,
            rcnn_iou_threshold=0.75, rcnn_score_threshold=0.15, mask_box_scale=1.1, confidence=0.2,
        ),
        "astro": Thresholds(
            rpn_nms_pre=2000, rpn_iou_threshold=0.75, rpn_score_threshold=0.5,
            rcnn_iou_threshold=0.9, rcnn_score_threshold=0.1, mask_nms_threshold=0.1, confidence=0.25,
        ),
        "cort": Thresholds(
            rpn_nms_pre=1000, rpn_iou_threshold=0.6, rpn_score_threshold=0.5,
            rcnn_iou_threshold=0.6, rcnn_score_threshold=0.3, mask_nms_threshold=0.05, confidence=0.55,
        ),
    },
)  # fmt: skip


def lacks_classes(num_classes: int) -> str | None:
    """Why no ensemble can use a detector of so few classes, and what to do; None where one can."""
    needed = EVALUATION_SETTINGS.num_classes
    if num_classes >= needed:
        return None
    return (
        f"num_classes is {num_classes}, and {', '.join(CELL_TYPES)} are to be found: set it to {needed} or more in the "
        "recipe's [detector]"
    )


def check_class_count(num_classes: int) -> None:
    """Refuse a detector without outputs for all of the competition's cell types: no ensemble could use it.

    Raises:
        InputError: says how many classes are needed.
    """
    flaw = lacks_classes(num_classes)
    if flaw is not None:
        raise InputError(flaw)


def check_evaluation(num_classes: int, images: Sequence[AnnotatedImage]) -> None:
    """Refuse what `evaluate_detector` cannot score, before hours are spent on training.

    Raises:
        InputError: too few classes, cell types without thresholds, or images that cannot be read.
    """
    check_class_count(num_classes)
    refuse_other_types(EVALUATION_SETTINGS.thresholds, images, "validate on images of these, or set evaluate_every 0")
    check_readable(images)


def evaluate_detector(
    detector: Detector,
    kind: str,
    images: Sequence[AnnotatedImage],
    device: torch.device,
    pictures: Path | None = None,
    is_stopped: Callable[[], bool] = lambda: False,
) -> list[ImageResult] | None:
    """Segment `images` by the detector alone, without other views, and score them; outlines go to `pictures`.

    The detector is in eval mode afterwards. None where `is_stopped`, which is asked before each image, says so.
    """
    settings = replace(EVALUATION_SETTINGS, use_tta=False, use_tta_masks=False)
    member = Member("in training", kind, detector, frozenset(EVERY_USE))
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
    draw = None if pictures is None else partial(draw_scored, folder=pictures)
    ensemble = Ensemble([member], settings, device)
    ensemble.tiling = plan_tiling(ensemble, free_memory(device))
    with exact_float32():
        return validate_ensemble(ensemble, images, draw, is_stopped)


@contextmanager
def exact_float32() -> Iterator[None]:
    """In the block, GPUs compute float32 exactly, as `prepare_gpu` lets the kernel do; training may use TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
