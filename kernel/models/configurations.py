"""What the configuration in a weight file tells, and its weights do not: the stem's stride, an encoder's name or style,
pixels, anchors.

Weights of either stride have the same keys and shapes, and many networks of timm have keys that are alike.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from kernel.manifest.types import METADATA_KEY, TIMM_PREFIX
from kernel.settings import PIXEL_MEAN, PIXEL_STD

#: Where trainers put their configuration: mmdet 2, mmengine, Lightning, safetensors written by us.
CONFIGURATION_NAMES = (
    "meta", "config", "cfg", "hyper_parameters", "stem_stride", "encoder", "style", "img_norm_cfg", METADATA_KEY
)  # fmt: skip
#: Names under which a configuration lists the strides of a detector's levels.
LEVEL_STRIDE_NAMES = ("strides", "featmap_strides")
#: Names under which it lists what anchors and deltas of boxes mean.
BOX_RULE_NAMES = ("scales", "ratios", "target_stds")
#: Where mmdet's ResNets have the strides of their bottlenecks: in the 3 x 3 convolution, or in the first 1 x 1.
STYLE_NAMES = ("pytorch", "caffe")
#: The stride of the stem by that of the first level.
STEM_STRIDE_OF_FIRST_LEVEL = {2: 1, 4: 2}
#: How deep a configuration is read.
CONFIGURATION_DEPTH = 30


@dataclass(frozen=True)
class PixelRule:
    """How a network was given its pixels, in the terms of mmdet's `img_norm_cfg`."""

    mean: tuple[float, ...]  # taken off each channel, on the 0 to 255 scale
    std: tuple[float, ...]  # by which each is then divided
    to_rgb: bool  # whether the channels are red, green, blue; False: blue, green, red

    def __str__(self) -> str:
        return f"dict(mean={list(self.mean)}, std={list(self.std)}, to_rgb={self.to_rgb})"


#: How ours are.
OUR_PIXELS = PixelRule(PIXEL_MEAN, PIXEL_STD, True)


def configured_pixels(content: Any) -> PixelRule | None:
    """How pixels were given, by the same as `configured_stem_stride`; None: it says nothing, or several things."""
    found: dict[str, set[Any]] = {"mean": set(), "std": set(), "to_rgb": set()}
    for name, value in configured_values(content):
        name = {"bgr_to_rgb": "to_rgb"}.get(name, name)  # mmdet 3
        if name == "to_rgb" and isinstance(value, bool):
            found[name].add(value)
        elif name in ("mean", "std") and is_colour(value):
            found[name].add(tuple(map(float, value)))
    if any(len(values) != 1 for values in found.values()):
        return None
    (mean,), (std,), (to_rgb,) = found.values()
    return PixelRule(mean, std, to_rgb) if all(std) else None


def configured_boxes(content: Any) -> dict[str, frozenset[tuple[float, ...]]]:
    """What the numbers of anchors and boxes mean, by the same as `configured_stem_stride`: all lists of numbers that it
    has under each of `BOX_RULE_NAMES`. Deviations of 1, mmdet's own, are left out."""
    found: dict[str, set[tuple[float, ...]]] = {name: set() for name in BOX_RULE_NAMES}
    for name, value in configured_values(content):
        if name in found and isinstance(value, list | tuple) and all(type(number) in (int, float) for number in value):
            found[name].add(tuple(map(float, value)))
    return {name: frozenset(values - {(1.0,) * 4}) for name, values in found.items()}


def is_colour(value: Any) -> bool:
    """Whether a value is a number for each of three channels."""
    is_three = isinstance(value, list | tuple) and len(value) == 3
    return is_three and all(isinstance(number, int | float) for number in value)


def configured_stem_stride(content: Any) -> int | None:
    """The stride by what a weight file holds beside its tensors; None: it says nothing, or several things.

    `stem_stride` counts where it is given; else the first of the strides of the anchors and of the RoI extractors,
    which is 4 for a stem of stride 2, and 2 for one of stride 1.
    """
    pairs = configured_values(content)
    stated = {value for name, value in pairs if name == "stem_stride" and value in (1, 2)}
    if not stated:
        stated = {
            STEM_STRIDE_OF_FIRST_LEVEL[value[0]]
            for name, value in pairs
            if name in LEVEL_STRIDE_NAMES and is_level_strides(value) and value[0] in STEM_STRIDE_OF_FIRST_LEVEL
        }
    return stated.pop() if len(stated) == 1 else None


def configured_encoder(content: Any) -> str | None:
    """The encoder of timm that a weight file names beside its tensors, as "timm:convnext_tiny"; None: it names none."""
    named = {
        value
        for name, value in configured_values(content)
        if name == "encoder" and isinstance(value, str) and value.startswith(TIMM_PREFIX)
    }
    return named.pop() if len(named) == 1 else None


def configured_style(content: Any) -> str | None:
    """Which of `STYLE_NAMES` a ResNet has, by the same as `configured_stem_stride`; None: it says nothing, or both."""
    named = {value for name, value in configured_values(content) if name == "style" and value in STYLE_NAMES}
    return named.pop() if len(named) == 1 else None


def configured_values(content: Any) -> list[tuple[str, Any]]:
    """All names with their values in the configuration that a weight file holds."""
    if not isinstance(content, Mapping):
        return []
    return list(named_values({name: content[name] for name in CONFIGURATION_NAMES if name in content}))


def is_level_strides(value: Any) -> bool:
    """Whether a value is a stride for each of four levels or more, each twice the one before."""
    return (
        isinstance(value, Sequence)
        and len(value) >= 4
        and all(type(stride) is int for stride in value)
        and all(after == 2 * before for before, after in pairwise(value))
    )


def named_values(value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """All names with their values in nested containers, and in texts that are Python or JSON."""
    if depth > CONFIGURATION_DEPTH:
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, str) and inner.isdecimal() and len(inner) == 1:
                inner = int(inner)  # safetensors' metadata holds texts alone
            yield str(key), inner
            yield from named_values(inner, depth + 1)
    elif isinstance(value, str):
        yield from values_of_text(value)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from named_values(inner, depth + 1)


def values_of_text(text: str) -> Iterator[tuple[str, Any]]:
    """All names with their plain values in a text that is Python, such as a configuration file; nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in texts that are no Python
            nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in nodes:
        match node:
            case ast.keyword(arg=str(name), value=value):
                yield name, plain_value(value)
            case ast.Dict(keys=keys, values=values):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        yield key.value, plain_value(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                yield name, plain_value(value)


def plain_value(node: ast.expr) -> Any:
    """A number, or a list of numbers; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [plain_value(item) for item in node.elts]
    return None
