"""The losses of one batch and their gradients by mmdet's own training step, with whatever mmcv this interpreter has.

PYTHONPATH=.:tests python tests/training/batch_gradients.py KIND OUT.npz
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from tiny_detectors import tiny_detector

from kernel.models.detectors import Detector
from kernel.training.losses import weighted_loss
from kernel.training.samples import TrainingImage, collate, cut_sample, semantic_maps
from kernel.training.settings import TrainSettings
from kernel.training.step import set_proposal_counts, set_training_mode

SIZE = 96


def detector_of(kind: str) -> Detector:
    """A tiny detector that samples all proposals: of a few drawn, some would be others for a score off in its last
    digit."""
    detector = tiny_detector(kind)
    set_proposal_counts(detector, TrainSettings(rpn_nms_pre=200, rois_per_image=4096))
    set_training_mode(detector, is_norm_frozen=True)
    return detector


def fixed_batch() -> dict:
    """Two crops: one of ellipses of all three classes, small and large, some over the border, and one without cells.

    They hang on no drawing: another interpreter may have other versions of the libraries.
    """
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    cells = tuple(
        ((rows - y) / high) ** 2 + ((columns - x) / wide) ** 2 <= 1
        for y, x, high, wide in ((20, 20, 14, 6), (40, 70, 5, 18), (75, 30, 20, 20), (5, 60, 9, 7), (90, 88, 16, 12))
    )
    pixels = rng.integers(90, 130, (2, SIZE, SIZE, 3), dtype=np.uint8)
    pixels[0, np.any(cells, axis=0)] += 100
    images = (
        TrainingImage(pixels[0], cells, np.zeros((5, 2), np.int64), np.array([0, 1, 2, 0, 1]), "cort"),
        TrainingImage(pixels[1], (), np.zeros((0, 2), np.int64), np.zeros(0, np.int64), "cort"),
    )
    return collate([cut_sample(image, 0, 0, SIZE, (False, False)) for image in images])


def terms_and_gradients(detector: Detector, losses: dict) -> dict[str, np.ndarray]:
    """Each loss of `losses` by its name, and below "gradient.", that of their weighted sum by each parameter."""
    total, _ = weighted_loss(losses, epoch=3, epochs=4)
    detector.zero_grad()
    total.backward()
    found = {}
    for name, value in losses.items():
        levels = value if isinstance(value, list) else [value]
        found[name] = torch.stack([level.detach().mean() for level in levels])
    for name, parameter in detector.named_parameters():
        if parameter.grad is not None:
            found[f"gradient.{name}"] = parameter.grad
    return {name: value.numpy() for name, value in found.items()}


def mmdet_step(kind: str) -> dict[str, np.ndarray]:
    """`terms_and_gradients` by mmdet's `forward_train`, which knows nothing of ours; random numbers are of seed 1."""
    detector, batch, extra = detector_of(kind), fixed_batch(), {}
    if kind == "htc":
        extra["gt_semantic_seg"] = semantic_maps(batch, detector.roi_head.semantic_head.num_classes, 4)
    given = [batch[name] for name in ("images", "img_metas", "gt_bboxes", "gt_labels")]
    torch.manual_seed(1)
    losses = detector.forward_train(*given, gt_masks=batch["gt_masks"], **extra)
    return terms_and_gradients(detector, losses)


if __name__ == "__main__":
    kind, out = sys.argv[1:]
    import mmcv._ext

    np.savez(out, compiled=not str(mmcv._ext.__file__).endswith(".py"), **mmdet_step(kind))
