"""Weights that were trained by other rules than ours: changed to ours where that is exact, else refused."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from kernel.errors import InputError
from kernel.models.configs import DetectorSpec, rpn_head_config
from kernel.models.configurations import BOX_RULE_NAMES, OUR_PIXELS, PixelRule, configured_boxes
from kernel.models.detectors import DETECTOR_KINDS
from kernel.settings import PIXEL_MEAN, PIXEL_STD

#: The first layer of a ResNet.
STEM_KEYS = {"backbone.conv1.weight", "backbone.bn1.running_mean"}
#: A layer of a ResNet with bottlenecks, one of 50 layers or more.
BOTTLENECK_KEY = "backbone.layer1.0.conv3.weight"
#: What is told of a ResNet of which `is_caffe` is true.
CAFFE_TOLD = "its ResNet has its strides in the 1 x 1 convolutions (style 'caffe'), ours has them in the 3 x 3"


def for_our_pixels(state: Mapping[str, torch.Tensor], theirs: PixelRule) -> dict[str, torch.Tensor]:
    """A ResNet's weights with the first layer changed such that its outputs on our pixels are those on theirs.

    Our pixel times our deviation plus our mean is the image's; that less their mean, over their deviation, is theirs.
    The state dict must have STEM_KEYS.
    """
    order = slice(None) if theirs.to_rgb else slice(None, None, -1)
    mean, std = (torch.tensor(values[order]) for values in (theirs.mean, theirs.std))
    ours_mean, ours_std = torch.tensor(PIXEL_MEAN), torch.tensor(PIXEL_STD)
    weight, norm_mean = (state[key].float() for key in ("backbone.conv1.weight", "backbone.bn1.running_mean"))
    weight = weight if theirs.to_rgb else weight.flip(1)
    constant = (weight.sum(dim=(2, 3)) * (ours_mean - mean) / std).sum(dim=1)
    return {
        **state,
        "backbone.conv1.weight": weight * (ours_std / std)[:, None, None],
        "backbone.bn1.running_mean": norm_mean - constant,
    }


def tell_change(theirs: PixelRule) -> str:
    """That `for_our_pixels` was needed, for a person."""
    return f"its first layer is changed from its pixels, {theirs}, to ours"


def tell_several(rules: Collection[PixelRule]) -> str:
    """That a configuration names several rules of pixels, for a person."""
    listed_rules = " and ".join(sorted(map(str, rules)))
    return (
        f"its configuration names {len(rules)} rules of pixels, {listed_rules}: by which it was trained is not known, "
        f"and it is given them as ours are, {OUR_PIXELS}"
    )


def is_caffe(keys: Collection[str], style: str | None) -> bool:
    """Whether a ResNet is another network than ours with the same weights.

    Args:
        keys: of its tensors. Without bottlenecks a ResNet is the same in either style.
        style: `configured_style` of its file.
    """
    return style == "caffe" and BOTTLENECK_KEY in keys


def refuse_caffe(keys: Collection[str], style: str | None, source: str) -> None:
    """Raise InputError where `is_caffe`; `source` names the file."""
    if is_caffe(keys, style):
        raise InputError(
            f"{source}: by its configuration {CAFFE_TOLD}: it would answer otherwise than it has learned; take a file "
            "of style 'pytorch', or train it on with `python -m kernel train --init`"
        )


def refuse_other_boxes(boxes: Mapping[str, frozenset[tuple[float, ...]]], spec: DetectorSpec, source: str) -> None:
    """Refuse a detector whose numbers mean other boxes: no weight shows by which anchors and deviations it was trained.

    Args:
        boxes: `configured_boxes` of its file.
        spec: the detector.
        source: the file, for the message.

    Raises:
        InputError: its configuration names other anchors or deviations than ours, and not ours as well.
    """
    ours = configured_boxes({"cfg": [rpn_head_config(spec), DETECTOR_KINDS[spec.kind].roi_head(spec)]})
    for name in BOX_RULE_NAMES:
        if boxes[name] and not boxes[name] >= ours[name]:
            theirs, here = listed(boxes[name]), listed(ours[name])
            raise InputError(
                f"{source}: its configuration has {name} {theirs}, a {spec.kind} here {here}: "
                "its boxes would be others than it has learned; train it on with `python -m kernel train --init`"
            )


def listed(values: frozenset[tuple[float, ...]]) -> str:
    """Lists of numbers, for a person."""
    return ", ".join(
        str([int(number) if number == int(number) else number for number in each]) for each in sorted(values)
    )
