"""The optimizer's parts: what decays, the learning rate's schedule, the moving average of the weights."""

from __future__ import annotations

from typing import Any

import torch

from kernel.models.detectors import Detector
from kernel.training.muon import Muon, is_matrix
from kernel.training.settings import TrainSettings


def build_optimizer(detector: Detector, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer of the settings' name, of all that is trained."""
    return (Muon if settings.optimizer == "muon" else torch.optim.AdamW)(parameter_groups(detector, settings))


def parameter_groups(detector: Detector, settings: TrainSettings) -> list[dict[str, Any]]:
    """All that is trained: neck and heads first, at the learning rate; then the encoder, at its share of that.

    Each of both is split into parameters that decay, and biases and norms, which do not; by Muon the former into
    matrices, which are its own, and others.
    """
    groups = []
    for of_encoder, rate in ((False, settings.learning_rate), (True, settings.learning_rate * settings.encoder_rate)):
        decaying, matrices, others = [], [], []
        for name, parameter in detector.named_parameters():
            if parameter.requires_grad and name.startswith("backbone.") == of_encoder:
                is_own = settings.optimizer == "muon" and is_matrix(name, parameter)
                (matrices if is_own else decaying if parameter.ndim > 1 else others).append(parameter)
        groups += [
            {"params": decaying, "lr": rate, "weight_decay": settings.weight_decay},
            {"params": others, "lr": rate, "weight_decay": 0.0},
        ]
        if settings.optimizer == "muon":
            groups.append({"params": matrices, "lr": rate, "weight_decay": settings.weight_decay, "muon": True})
    return groups


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Linear rise over the first `warmup_share` of `steps`, then linear fall to zero."""
    warmup = max(round(steps * warmup_share), 1)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(steps - warmup, 1))


class WeightsEma:
    """An exponential moving average of a detector's parameters, written in their place; buffers stay the detector's.

    The decay rises to `decay`, as the average would otherwise remember the random start: after n steps it is at most
    (1 + n) / (10 + n).
    """

    def __init__(self, detector: Detector, decay: float):
        self.decay = decay
        self.steps = 0
        self.mean = {key: value.detach().clone() for key, value in detector.named_parameters()}

    @torch.no_grad()
    def update(self, detector: Detector) -> None:
        """Add the weights after a step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for key, value in detector.named_parameters():
            self.mean[key].lerp_(value, 1 - decay)

    def state_dict(self) -> dict[str, object]:
        """What a run needs to go on."""
        return {"mean": self.mean, "steps": self.steps}

    def load_state_dict(self, state: dict) -> None:
        """Go on from `state_dict`."""
        self.steps = state["steps"]
        for key, value in state["mean"].items():
            self.mean[key].copy_(value)
