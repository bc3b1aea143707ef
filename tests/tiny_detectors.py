"""Detectors small enough for tests: every part of the real ones, 16 channels wide, with weights that need no file."""

from __future__ import annotations

import torch
from deterministic_weights import deterministic_array

from kernel.models.configs import DetectorSpec
from kernel.models.detectors import Detector, build_detector

#: Gains. Features stay near 1 (bn2 ends a block of this encoder); scores of different boxes differ visibly, and boxes
#: move a little.
TINY_SCALES = {
    "bn2": 0.2,
    "lateral": 0.3,
    "rpn_cls": 1.0,
    "rpn_reg": 0.1,
    "fc_cls": 1.0,
    "fc_reg": 0.2,
    "conv_logits": 1.5,
}
#: Mean logit of the anchors. With it most, but not all, score above the thresholds of proposals.
PROPOSAL_LOGIT = 3.0
#: Logit of the background, against about 0 of the other classes, so that boxes of all of them score well.
BACKGROUND_LOGIT = -2.0


def tiny_spec(kind: str, num_classes: int = 3) -> DetectorSpec:
    """`kind` with the synthetic members' encoder and 16 channels everywhere else."""
    return DetectorSpec(
        kind, "resnet18_narrow", num_classes=num_classes, neck_channels=16, fc_channels=16, mask_channels=16
    )


def tiny_detector(kind: str, seed: int = 0, num_classes: int = 3) -> Detector:
    """Build a detector of `tiny_spec` in eval mode. Its weights follow from `seed` alone, on any machine.

    Its biases make proposals and boxes appear in any image, noise as well as uniform gray. mmdet must be importable
    (fixture `wheels_site`).
    """
    detector = build_detector(tiny_spec(kind, num_classes))
    state = detector.state_dict()
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = torch.from_numpy(deterministic_array(f"{seed}.{key}", tuple(value.shape), TINY_SCALES))
        if key == "rpn_head.rpn_cls.bias":
            state[key] += PROPOSAL_LOGIT
        if key.endswith("fc_cls.bias"):
            state[key][-1] += BACKGROUND_LOGIT
    detector.load_state_dict(state)
    return detector
