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
from kernel.training.samples import Sample, collate, semantic_maps
from kernel.training.settings import TrainSettings
from kernel.training.trainer import set_proposal_counts, set_training_mode

SIZE = 96


def detector_of(kind: str) -> Detector:
    """A tiny detector that samples RoIs by chance, as in training, yet more than it has of either sort: which ones are
    drawn then hangs on no rounding."""
    detector = tiny_detector(kind)
    set_proposal_counts(detector, TrainSettings(rpn_nms_pre=200, rois_per_image=4096))
    set_training_mode(detector, is_norm_frozen=True)
    return detector


def fixed_batch() -> dict:
    """Two crops: one of ellipses of all three classes, small and large, some over the border, and one without cells."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    masks = []
    for y, x, high, wide in ((20, 20, 14, 6), (40, 70, 5, 18), (75, 30, 20, 20), (5, 60, 9, 7), (90, 88, 16, 12)):
        masks.append(((rows - y) / high) ** 2 + ((columns - x) / wide) ** 2 <= 1)
    ends = [(np.flatnonzero(m.any(axis=1)), np.flatnonzero(m.any(axis=0))) for m in masks]
    boxes = [[x[0], y[0], x[-1] + 1, y[-1] + 1] for y, x in ends]
    pixels = torch.from_numpy(rng.normal(0, 0.3, (2, 3, SIZE, SIZE)).astype(np.float32))
    pixels[0] += torch.from_numpy(np.any(masks, axis=0).astype(np.float32))
    cells = (
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor([0, 1, 2, 0, 1]),
        np.array(masks).astype(np.uint8),
    )
    none = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), np.zeros((0, SIZE, SIZE), np.uint8))
    return collate([Sample(image, *found, "") for image, found in zip(pixels, (cells, none), strict=True)])


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
        extra["gt_semantic_seg"] = semantic_maps(batch, detector.roi_head.semantic_head.num_classes)
    given = [batch[name] for name in ("images", "img_metas", "gt_bboxes", "gt_labels")]
    torch.manual_seed(1)
    losses = detector.forward_train(*given, gt_masks=batch["gt_masks"], **extra)
    return terms_and_gradients(detector, losses)


if __name__ == "__main__":
    kind, out = sys.argv[1:]
    import mmcv._ext

    np.savez(out, compiled=not str(mmcv._ext.__file__).endswith(".py"), **mmdet_step(kind))
