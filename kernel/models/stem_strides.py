"""The stride of a detector's first convolution, as the configuration that its trainer saved has it.

Weights of either stride have the same keys and shapes, so nothing else in a file tells them apart.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

#: Where trainers put their configuration: mmdet 2, mmengine, Lightning, safetensors written by us.
CONFIGURATION_NAMES = ("meta", "config", "cfg", "hyper_parameters", "stem_stride")
#: Names under which a configuration lists the strides of a detector's levels.
LEVEL_STRIDE_NAMES = ("strides", "featmap_strides")
#: The stride of the stem by that of the first level.
STEM_STRIDE_OF_FIRST_LEVEL = {2: 1, 4: 2}
#: How deep a configuration is read.
CONFIGURATION_DEPTH = 30


def configured_stem_stride(content: Any) -> int | None:
    """The stride by what a weight file holds beside its tensors; None: it says nothing, or several things.

    `stem_stride` counts where it is given; else the first of the strides of the anchors and of the RoI extractors,
    which is 4 for a stem of stride 2, and 2 for one of stride 1.
    """
    if not isinstance(content, Mapping):
        return None
    pairs = list(named_values({name: content[name] for name in CONFIGURATION_NAMES if name in content}))
    stated = {value for name, value in pairs if name == "stem_stride" and value in (1, 2)}
    if not stated:
        stated = {
            STEM_STRIDE_OF_FIRST_LEVEL[value[0]]
            for name, value in pairs
            if name in LEVEL_STRIDE_NAMES and is_level_strides(value) and value[0] in STEM_STRIDE_OF_FIRST_LEVEL
        }
    return stated.pop() if len(stated) == 1 else None


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
