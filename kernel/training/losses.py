"""One loss of mmdet's many: each term weighted by its group and the epoch."""

from __future__ import annotations

from collections.abc import Mapping

import torch

#: Which group each of mmdet's losses belongs to; a cascade's come with a prefix "s0." to "s2.".
LOSS_GROUPS = {
    "loss_rpn_cls": "rpn",
    "loss_rpn_bbox": "rpn",
    "loss_cls": "cls",
    "loss_bbox": "bbox",
    "loss_mask": "mask",
    "loss_semantic_seg": "semantic",
}
#: What mmdet reports beside losses.
REPORTED_ONLY = ("acc",)


def loss_weight(group: str, epoch: int, epochs: int) -> float:
    """The weight of a group of losses in epoch 1 <= `epoch` <= `epochs`.

    Masks matter more and more: with E = epochs + 1, classification falls by (E + 2 - e) / (E + 1), boxes and
    proposals by (E + 1 - floor(e / 2)) / (E + 1); masks and HTC's semantic loss keep 1.
    """
    scale = epochs + 1
    if group == "cls":
        return (scale + 2 - epoch) / (scale + 1)
    if group in ("bbox", "rpn"):
        return (scale + 1 - epoch // 2) / (scale + 1)
    return 1.0


def weighted_loss(
    losses: Mapping[str, torch.Tensor | list[torch.Tensor]], epoch: int, epochs: int
) -> tuple[torch.Tensor, dict[str, float]]:
    """The weighted sum of mmdet's losses, divided by the sum of the weights of the terms present.

    A cascade's stages add up to one term.

    Returns:
        The loss, and each term's value before weighting.

    Raises:
        KeyError: a loss without a group: silently dropping one would train another model.
    """
    terms: dict[str, torch.Tensor] = {}
    for name, value in losses.items():
        term = name.split(".", 1)[1] if "." in name else name
        if term in REPORTED_ONLY:
            continue
        if term not in LOSS_GROUPS:
            raise KeyError(f"unknown loss {name!r}; known are {', '.join(LOSS_GROUPS)}: give it a group first")
        # The RPN's come as a list, one per FPN level.
        summed = torch.stack([v.float().mean() for v in value]).sum() if isinstance(value, list) else value.mean()
        terms[term] = terms.get(term, torch.zeros((), device=summed.device)) + summed
    weights = {term: loss_weight(LOSS_GROUPS[term], epoch, epochs) for term in terms}
    total = torch.stack([weights[term] * value for term, value in terms.items()]).sum() / sum(weights.values())
    return total, {term: float(value.detach()) for term, value in terms.items()}
