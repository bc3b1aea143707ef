"""The optimizer's parts: what decays, the learning rate's schedule, the moving average of the weights."""

from __future__ import annotations

import torch

from kernel.models.detectors import Detector


def parameter_groups(detector: Detector, weight_decay: float) -> list[dict[str, object]]:
    """Parameters with decay, and biases and norms without."""
    with_decay, without = [], []
    for parameter in detector.parameters():
        if parameter.requires_grad:
            (without if parameter.ndim <= 1 else with_decay).append(parameter)
    return [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]


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
