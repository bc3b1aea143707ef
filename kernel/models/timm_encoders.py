"""Any network of timm as an encoder, by its name: feature maps of strides 4, 8, 16 and 32, or half of these.

What a network is like is measured on small images, not looked up: timm's own figures are wrong for some of them in
some versions, and not all networks take images of any size.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import timm
import torch
from torch import nn

from kernel.errors import InputError
from kernel.manifest.types import TIMM_PREFIX
from kernel.settings import PIXEL_MEAN, PIXEL_STD
from kernel.text import first_names

#: The usual strides of the four feature maps, and sides of images on which these are measured.
TIMM_STRIDES = (4, 8, 16, 32)
PROBED_SIDES = ((64, 96), (96, 32))
#: What networks raise that timm cannot take features of, or that do not take images of these sides.
UNFIT_ERRORS = (
    RuntimeError, AssertionError, ValueError, TypeError, AttributeError, KeyError, IndexError, NotImplementedError
)  # fmt: skip
#: Options of networks that otherwise take images of one size alone; others do not know them.
ANY_SIZE_OPTIONS: tuple[Mapping[str, Any], ...] = ({}, {"strict_img_size": False}, {"dynamic_img_size": True})
#: Families of timm that have such feature maps, by the modules that hold them: names to offer for one that has not.
PYRAMID_FAMILIES = (
    "resnet", "convnext", "swin_transformer", "mobilenetv3", "efficientnet", "regnet", "pvt_v2", "tiny_vit"
)  # fmt: skip


@dataclass(frozen=True)
class TimmPlan:
    """How a network of timm serves as an encoder."""

    name: str  # timm's
    levels: tuple[int, ...]  # which of its feature maps have the strides `TIMM_STRIDES`
    channels: tuple[int, ...]  # of these
    is_channels_last: bool  # whether it returns maps (B, h, w, C)
    options: Mapping[str, Any] = field(default_factory=dict)  # that it is built with
    stem_stride: int = 2  # the smallest that its stem allows: 1, or 2


class UnfitError(ValueError):
    """A network's feature maps are not those of an encoder."""


class TimmFeatures(nn.Module):
    """A network of timm that returns four feature maps.

    Its pixels are brought from the project's normalisation, ImageNet's, to the one that the network was trained with;
    both constants are in the state dict, since timm's versions may differ in them.
    """

    def __init__(self, plan: TimmPlan, stem_stride: int):
        super().__init__()
        self.timm: Any = create_features(plan)
        self.is_channels_last = plan.is_channels_last
        if stem_stride < plan.stem_stride or (stem_stride == 1 and not halve_stem(self.timm)):
            raise InputError(f"{TIMM_PREFIX}{plan.name}: the stride of its stem cannot be removed: stem_stride is 2")
        scale, shift = pixel_change(plan.name)
        self.register_buffer("input_scale", scale)
        self.register_buffer("input_shift", shift)
        self.input_scale: torch.Tensor
        self.input_shift: torch.Tensor

    def init_weights(self) -> None:
        """mmdet calls this on every part; timm has drawn its weights already."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map normalised images (B, 3, H, W) to four feature maps (B, C, h, w)."""
        maps = self.timm(x * self.input_scale[:, None, None] + self.input_shift[:, None, None])
        return tuple(fmap.permute(0, 3, 1, 2) if self.is_channels_last else fmap for fmap in maps)


def create_features(plan: TimmPlan) -> Any:
    """Build a plan's network with random weights, as timm draws them; nothing is downloaded."""
    return timm.create_model(plan.name, pretrained=False, features_only=True, out_indices=plan.levels, **plan.options)


def pixel_change(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Factor and summand, (3,) each, that bring our normalised pixels to those that timm's `name` expects."""
    told = timm.get_pretrained_cfg(name)
    if told is None:  # a network that nobody has published weights of
        return torch.ones(3), torch.zeros(3)
    mean, std = (255 * torch.tensor(values, dtype=torch.float64) for values in (told.mean, told.std))
    ours_mean, ours_std = (torch.tensor(values, dtype=torch.float64) for values in (PIXEL_MEAN, PIXEL_STD))
    scale, shift = ours_std / std, (ours_mean - mean) / std
    shift[shift.abs() < 1e-6] = 0  # ImageNet's own constants: rounding alone
    return scale.float(), shift.float()


def halve_stem(network: nn.Module) -> bool:
    """Halve the stride of the network's first strided convolution; whether it has one of stride 2 or 4.

    Its kernel stays centred on the positions that it is applied to, which are twice as many.
    """
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d) and max(conv.stride) > 1:
            if conv.stride not in ((2, 2), (4, 4)):
                return False
            stride = conv.stride[0] // 2
            conv.stride = (stride, stride)
            if conv.padding != (0, 0) or conv.kernel_size[0] % 2 == 0:  # else timm pads by the image's size
                conv.padding = tuple((side - stride + 1) // 2 for side in conv.kernel_size)
            return True
    return False


@functools.cache
def timm_plan(name: str) -> TimmPlan:
    """How timm's network `name` serves as an encoder.

    Raises:
        InputError: timm has no network of this name, or it has not the four feature maps; names that have are listed.
    """
    refuse_unknown_network(name)
    with torch.random.fork_rng(devices=[]):  # it draws weights, and whether it does depends on the cache
        errors: list[Exception] = []
        for options in ANY_SIZE_OPTIONS:
            try:
                return plan_network(name, options)
            except UNFIT_ERRORS as error:
                errors.append(error)
    telling = next((error for error in errors if isinstance(error, UnfitError)), errors[0])
    reason = str(telling).strip().partition("\n")[0].rstrip(".") or type(telling).__name__
    near = ", ".join(near_names(name))
    raise InputError(
        f"encoder {TIMM_PREFIX}{name}: timm {timm.__version__} gives no feature maps of strides 4, 8, 16 and 32 of "
        f"images of any size ({reason}); near in name, with such maps: {near}"
    )


def plan_network(name: str, options: Mapping[str, Any]) -> TimmPlan:
    """Measure a network's feature maps.

    Raises:
        UNFIT_ERRORS: it has not the four, or does not take images of any size.
    """
    network: Any = timm.create_model(name, pretrained=False, features_only=True, **options).eval()
    channels = [int(count) for count in network.feature_info.channels()]
    indices = [int(index) for index in network.feature_info.out_indices]
    strides, is_channels_last = measured_strides(network, channels)
    last_of_stride = {stride: place for place, stride in enumerate(strides)}
    if not last_of_stride.keys() >= set(TIMM_STRIDES):
        raise UnfitError(f"its maps have the strides {', '.join(map(str, strides))}")
    places = [last_of_stride[stride] for stride in TIMM_STRIDES]
    plan = TimmPlan(
        name, tuple(indices[place] for place in places), tuple(channels[place] for place in places), is_channels_last,
        options,
    )  # fmt: skip
    network = create_features(plan).eval()
    measured_strides(network, plan.channels)
    if halve_stem(network):
        try:
            if measured_strides(network, plan.channels)[0] == [stride // 2 for stride in TIMM_STRIDES]:
                return replace(plan, stem_stride=1)
        except UNFIT_ERRORS:  # as of several convolutions side by side
            return plan
    return plan


@torch.no_grad()
def measured_strides(network: nn.Module, channels: Sequence[int]) -> tuple[list[int], bool]:
    """The strides of a network's feature maps, and whether their channels come last.

    Raises:
        UNFIT_ERRORS: it does not take the images, or the maps are not as many times as small in both directions.
    """
    found: set[tuple[tuple[int, ...], bool]] = set()
    for height, width in PROBED_SIDES:
        maps = network(torch.zeros(1, 3, height, width))
        shapes = [tuple(fmap.shape[1:]) for fmap in maps]
        is_last = all(shape[-1] == count for shape, count in zip(shapes, channels, strict=True))
        sizes = [shape[:-1] if is_last else shape[1:] for shape in shapes]
        strides = tuple(height // size[0] for size in sizes)
        if any(size != (height // stride, width // stride) for size, stride in zip(sizes, strides, strict=True)):
            raise UnfitError(f"of an image of {height} x {width} its maps are {', '.join(map(str, sizes))}")
        found.add((strides, is_last))
    if len(found) > 1:
        raise UnfitError("its maps have other strides for images of other sides")
    ((strides, is_last),) = found
    return list(strides), is_last


def refuse_unknown_network(name: str) -> None:
    """Raise InputError for a name that timm does not know, with or without the tag of weights; names the nearest."""
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=5, cutoff=0.4)
        raise InputError(
            f"encoder {TIMM_PREFIX}{name}: timm {timm.__version__} has no network of this name; "
            + (f"near are {', '.join(near)}" if near else "timm.list_models() names all")
        )
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")] if tag else []
    if tag and tag not in tags:
        raise InputError(
            f"encoder {TIMM_PREFIX}{name}: timm {timm.__version__} knows no weights {tag!r} of {base}; "
            f"known are {first_names(tags) or 'none: leave out what follows the dot'}"
        )


def near_names(name: str) -> list[str]:
    """Names of networks that have the four feature maps, the nearest first."""
    known = [model for family in PYRAMID_FAMILIES for model in timm.list_models(module=family)]
    base = name.partition(".")[0]
    known = [model for model in dict.fromkeys(known) if model != base and not model.startswith("test_")]
    return difflib.get_close_matches(base, known, n=5, cutoff=0)
