"""Members of an ensemble: loaded detectors, what they are used for, how they are weighed, whether they fit together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kernel.errors import InputError
from kernel.models.crop_unet import CropUNet
from kernel.models.detectors import Detector, mask_size
from kernel.settings import EQUAL_WEIGHTS, EnsembleSettings, StageWeights, needed_stages


@dataclass(frozen=True)
class Member:
    """A loaded detector and what it is used for."""

    name: str
    kind: str  # the detector's, a key of DETECTOR_KINDS
    detector: Detector
    use_for: frozenset[str]  # of CELL_TYPES and "cls"
    weights: StageWeights = EQUAL_WEIGHTS  # in the averages with other members


def weigh(members: Sequence[Member], stage: str) -> list[tuple[float, Member]]:
    """The members whose weight at an averaging stage is not 0, each with that weight. The largest weight is 1.

    Equal weights are thus exactly 1. By them `merge_rpn_maps` is the plain mean to the last bit, `weighted_mean` to
    rounding: it scales each answer by its share, and adds.
    """
    weights = [float(getattr(member.weights, stage)) for member in members]
    return [(weight / max(weights), member) for weight, member in zip(weights, members, strict=True) if weight > 0]


def proposing(members: Sequence[Member]) -> Detector:
    """The detector whose anchors the members' proposals have; all that make some have the same."""
    return weigh(members, "proposals")[0][1].detector


def weighted_mean(tensors: Iterable[tuple[float, torch.Tensor]]) -> torch.Tensor:
    """The mean of tensors of one shape, each given with its weight."""
    tensors = list(tensors)
    total = sum(weight for weight, _ in tensors)
    return torch.stack([tensor * (weight / total) for weight, tensor in tensors]).sum(dim=0)


def check_members_agree(members: Sequence[Member], settings: EnsembleSettings) -> None:
    """Refuse members that cannot be averaged.

    Raises:
        InputError: anchors, classes or mask sizes differ, two members share a name, a cell type has no member, or an
            averaging stage has none with a weight.
    """
    check_uses(members)
    names = [member.name for member in members]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two members are called {twice!r}: give each its own name")
    check_signatures({member.name: averaging_signature(member.detector) for member in members}, settings)


def check_signatures(signatures: Mapping[str, Mapping[str, Any]], settings: EnsembleSettings) -> None:
    """Refuse members that cannot be averaged, by their names and `averaging_signature`s.

    Raises:
        InputError: anchors, classes or mask sizes differ, or a member knows too few classes.
    """
    # A mask network's has a part of what the others have.
    first, ours = max(signatures.items(), key=lambda signature: len(signature[1]))
    for name, theirs in signatures.items():
        for what, expected in ours.items():
            if theirs.get(what, expected) != expected:
                raise InputError(
                    f"members {first} and {name} cannot be averaged: their {what} differ "
                    f"({expected} and {theirs[what]}); take one of them out of the manifest"
                )
        if theirs.get("number of classes", settings.num_classes) < settings.num_classes:
            raise InputError(
                f"member {name} knows {theirs['number of classes']} classes, "
                f"the ensemble needs {settings.num_classes}: take it out of the manifest"
            )


def check_uses(members: Sequence[Member]) -> None:
    """Raise InputError where a cell type has no member, or an averaging stage none with a weight."""
    for use, stages in needed_stages(member.use_for for member in members).items():
        users = [member for member in members if use in member.use_for]
        if not users:
            raise InputError(f"no member is used for {use!r}: add it to some member's `use_for` in the manifest")
        idle = next((stage for stage in stages if not weigh(users, stage)), None)
        if idle is not None:
            raise InputError(
                f"all members used for {use!r} have the weight 0 for {idle}: give at least one of them more in the "
                "manifest"
            )


def averaging_signature(detector: Detector) -> dict[str, Any]:
    """What members must have in common to be averaged; a mask network, where they are averaged with it."""
    if isinstance(detector, CropUNet):
        return {"mask size": mask_size(detector)}
    generator = detector.rpn_head.prior_generator
    heads = detector.roi_head.bbox_head
    box_head = heads[0] if isinstance(heads, nn.ModuleList) else heads
    return {
        "strides": [tuple(stride) for stride in generator.strides],
        "anchors": [anchors.tolist() for anchors in generator.base_anchors],
        "number of classes": box_head.num_classes,
        "mask size": mask_size(detector),
    }
