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
from typing import Any, TypeGuard

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


def configured_pixels(content: Any) -> frozenset[PixelRule]:
    """All rules by which pixels were given, by the same as `configured_stem_stride`; empty: it says none."""
    rules = (pixel_rule(values) for values in configured_groups(content))
    return frozenset(rule for rule in rules if rule is not None)


def pixel_rule(values: Mapping[str, Any]) -> PixelRule | None:
    """The rule that these values of one container are, with mmdet's own order of channels where they name none: that of
    `Normalize` is red, green, blue, that of mmdet 3's preprocessors blue, green, red."""
    mean, std = values.get("mean"), values.get("std")
    if not (is_colour(mean) and is_colour(std) and all(std)):
        return None
    kind, to_rgb = values.get("type"), values.get("to_rgb", values.get("bgr_to_rgb"))  # the latter is mmdet 3's
    if to_rgb is None:
        to_rgb = not (isinstance(kind, str) and kind.endswith("DataPreprocessor"))
    return PixelRule(tuple(map(float, mean)), tuple(map(float, std)), bool(to_rgb))


def configured_boxes(content: Any) -> dict[str, frozenset[tuple[float, ...]]]:
    """What the numbers of anchors and boxes mean, by the same as `configured_stem_stride`: all lists of numbers that it
    has under each of `BOX_RULE_NAMES`. Deviations of 1, mmdet's own, are left out."""
    found: dict[str, set[tuple[float, ...]]] = {name: set() for name in BOX_RULE_NAMES}
    for name, value in configured_values(content):
        if name in found and isinstance(value, list | tuple) and all(type(number) in (int, float) for number in value):
            found[name].add(tuple(map(float, value)))
    return {name: frozenset(values - {(1.0,) * 4}) for name, values in found.items()}


def is_colour(value: Any) -> TypeGuard[Sequence[float]]:
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
    return [pair for group in configured_groups(content) for pair in group.items()]


def configured_groups(content: Any) -> list[dict[str, Any]]:
    """The same, those of one container together."""
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


def named_values(value: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The names with their values of each of nested containers, and of those in texts that are Python or JSON."""
    if depth > CONFIGURATION_DEPTH:
        return
    if isinstance(value, Mapping):
        # safetensors' metadata holds texts alone
        yield {
            str(key): int(inner) if isinstance(inner, str) and inner.isdecimal() and len(inner) == 1 else inner
            for key, inner in value.items()
        }
        for inner in value.values():
            yield from named_values(inner, depth + 1)
    elif isinstance(value, str):
        yield from values_of_text(value)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from named_values(inner, depth + 1)


def values_of_text(text: str) -> Iterator[dict[str, Any]]:
    """The same of a text that is Python, such as a configuration file; nothing is run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes in texts that are no Python
            nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    known: dict[str, Any] = {"true": True, "false": False}  # JSON's; then the file's own, as nodes come from outside in
    for node in nodes:
        match node:
            case ast.Call(keywords=keywords):
                yield {keyword.arg: plain_value(keyword.value, known) for keyword in keywords if keyword.arg}
            case ast.Dict(keys=keys, values=values):
                yield {
                    key.value: plain_value(value, known)
                    for key, value in zip(keys, values, strict=True)
                    if isinstance(key, ast.Constant) and isinstance(key.value, str)
                }
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                known[name] = plain_value(value, known)
                yield {name: known[name]}


def plain_value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """A number, a text, a list of these, or what is `known` under a name; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [plain_value(item, known) for item in node.elts]
    return known.get(node.id) if isinstance(node, ast.Name) else None
