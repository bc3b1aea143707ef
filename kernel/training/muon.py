"""Muon: matrices are changed by their gradients' momentum made orthogonal, all else by AdamW.

Muon, K. Jordan and others, https://kellerjordan.github.io/posts/muon/; the scale of its changes, by which AdamW's
learning rate and decay serve, is of J. Liu and others, Muon is Scalable for LLM Training, arXiv 2502.16982. A matrix's
change is alike in all directions, where AdamW's mostly follows a few.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

#: How much of the momentum is kept from step to step.
MOMENTUM = 0.95
#: Of the quintic in X that brings all singular values near 1 within STEPS, from the source.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
#: The root mean square of a change over the learning rate, as AdamW's mostly have it, from the source of the scale.
ROOT_MEAN_SQUARE = 0.2
#: The last layers of heads, by their names: their lines stand for classes and sides, each for itself.
LAST_LAYERS = ("fc_cls", "fc_reg", "rpn_cls", "rpn_reg", "conv_logits", "logits")


def is_matrix(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter maps several channels to several, and is no last layer's: Muon is for these."""
    is_depthwise = parameter.ndim > 2 and parameter.shape[1] == 1
    return parameter.ndim > 1 and not is_depthwise and not set(name.split(".")) & set(LAST_LAYERS)


class Muon(torch.optim.AdamW):
    """AdamW, but for groups with `"muon": True`, whose parameters are (M, N, ...) and count as matrices (M, N...)."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change all parameters that have gradients; the matrices' gradients are None afterwards."""
        for group in self.param_groups:
            for parameter in group["params"] if group.get("muon") else ():
                if parameter.grad is not None:
                    self._change(parameter, parameter.grad, group["lr"], group["weight_decay"])
                    parameter.grad = None  # AdamW passes it over
        return super().step(closure)

    def _change(self, matrix: torch.Tensor, gradient: torch.Tensor, rate: float, decay: float) -> None:
        """One step of a matrix. What it keeps has the names of AdamW's states, by which they are restored."""
        state = self.state[matrix]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(matrix)
        state["step"] += 1
        momentum = state["exp_avg"].lerp_(gradient, 1 - MOMENTUM)
        change = orthogonal(gradient.lerp(momentum, MOMENTUM).flatten(1))
        scale = ROOT_MEAN_SQUARE * max(change.shape) ** 0.5
        matrix.mul_(1 - rate * decay).sub_(change.reshape(matrix.shape), alpha=rate * scale)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """U V' of a matrix U S V' (M, N), nearly: with numbers from 0.5 to 1.4 for S, smaller ones where S was tiny.

    It is Newton and Schulz's iteration X <- p(X X') X. As each p is a polynomial in the first X X', all are multiplied
    in its (M, M), and with X in the end alone: half the time for matrices of this project, and the same but rounding.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonal(matrix.T).T
    linear, cubic, quintic = COEFFICIENTS
    matrix = matrix / matrix.norm().clamp(min=1e-7)
    gram = matrix @ matrix.T
    product = one = torch.eye(len(gram), device=gram.device, dtype=gram.dtype)
    for _ in range(STEPS):
        factor = linear * one + cubic * gram + quintic * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor
    return product @ matrix
