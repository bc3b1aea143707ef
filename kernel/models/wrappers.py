"""The detector's state dict in what trainers save: wrappers, prefixes and averaged copies taken off, or named."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from kernel.errors import InputError

#: What parallel and compiled modules put into the keys below them.
WRAPPER_NAMES = re.compile(r"(^|\.)(?:(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.)+")
#: The parts of a detector, after what else a key may begin with.
DETECTOR_PARTS = re.compile(r"((?:[^.]+\.)*?)(?:backbone|neck|rpn_head|roi_head|crop_unet)\.")
#: Names of copies whose weights are a mean over steps.
AVERAGED_COPY = re.compile(r"(?:^|[._/])(?:ema|swa|teacher|averaged?|shadow)(?:$|[._/])", re.IGNORECASE)
#: What averaging wrappers count in.
WRAPPER_COUNTERS = ("n_averaged", "steps")
#: How deep in a file state dicts are looked for.
SEARCH_DEPTH = 3

StateDict = dict[str, torch.Tensor]


def find_state(content: Any, source: str, take: str | None = None) -> tuple[StateDict, list[str]]:
    """The state dict in what a weight file holds.

    It may lie under a name ("state_dict", "model", ...), and its keys may begin with those of wrappers ("module.",
    "_orig_mod.", "model.", any that stands before all parts of the detector).

    Args:
        content: what the file holds.
        source: what messages call it.
        take: the name of the copy to take where a file holds several; None: the one that is no average.

    Returns:
        The state dict, and a line for each thing that was passed over.

    Raises:
        InputError: there is none, or several could be meant.
    """
    copies: dict[str, StateDict] = {}
    told: list[str] = []
    for place, state in nested_states(content):
        found, outside = detector_copies(state, source)
        copies |= {f"{place}/{prefix}" if place and prefix else place or prefix: copy for prefix, copy in found.items()}
        if outside:
            told.append(f"{len(outside)} tensors that belong to no detector are not used, {outside[0]} for example")
    with_detector = {name: copy for name, copy in copies.items() if any(map(DETECTOR_PARTS.match, copy))}
    copies = with_detector or copies
    if not copies:
        inner = content.get("state_dict", content) if isinstance(content, Mapping) else content
        if not isinstance(inner, Mapping) or not inner:
            raise InputError(f"{source}: holds {type(inner).__name__}, not a state dict of named tensors")
        wrong = [key for key, value in inner.items() if not (isinstance(key, str) and isinstance(value, torch.Tensor))]
        raise InputError(f"{source}: {wrong[0]!r} is no named tensor; allowed is a plain state dict")
    chosen = choose_copy(copies, source, take)
    state = copies.pop(chosen)
    told += [f"the copy {name!r} of {len(copy)} tensors is not used" for name, copy in copies.items()]
    flat_copies = {"ema_" + key.replace(".", "_") for key in state} & set(state)
    if flat_copies and all(map(DETECTOR_PARTS.match, state.keys() - flat_copies - set(WRAPPER_COUNTERS))):
        told.append(f"the copies 'ema_...' of {len(flat_copies)} tensors are not used")
        state = {key: value for key, value in state.items() if key not in flat_copies}
    return state, told


def nested_states(content: Any) -> Iterator[tuple[str, StateDict]]:
    """The dictionaries of named tensors in `content`, itself first, by where they are: "" or "ema.model"."""
    waiting: list[tuple[str, Mapping[Any, Any]]] = [("", content)] if isinstance(content, Mapping) else []
    while waiting:
        place, mapping = waiting.pop(0)
        named = all(isinstance(key, str) for key in mapping)
        if mapping and named and all(isinstance(value, torch.Tensor) for value in mapping.values()):
            yield place, dict(mapping)
        elif named and place.count(".") < SEARCH_DEPTH - 1:
            waiting.extend(
                (f"{place}.{key}" if place else key, value)
                for key, value in mapping.items()
                if isinstance(value, Mapping) and not key.startswith(("optim", "scheduler"))
            )


def detector_copies(state: StateDict, source: str) -> tuple[dict[str, StateDict], list[str]]:
    """The detectors in one state dict, by what stands before their parts; the whole of it under "" if it has none.

    Returns:
        The detectors, and the keys that belong to none of them.

    Raises:
        InputError: two keys differ by wrappers' names alone.
    """
    bare = {WRAPPER_NAMES.sub(r"\1", key): value for key, value in state.items()}
    if len(bare) < len(state):
        raise InputError(
            f"{source}: holds tensors of one name both with and without 'module.' (or another wrapper's name); save "
            "one of each name"
        )
    if len(bare) > 1:
        bare = {key: value for key, value in bare.items() if key not in WRAPPER_COUNTERS or value.ndim}
    matches = {key: match[1] for key in bare if (match := DETECTOR_PARTS.match(key))}
    prefixes = [
        prefix
        for prefix in dict.fromkeys(matches.values())
        if (
            any(key.startswith(f"{prefix}backbone.") for key in bare)
            and any(key.startswith((f"{prefix}rpn_head.", f"{prefix}roi_head.")) for key in bare)
        )
        or any(key.startswith(f"{prefix}crop_unet.") for key in bare)
    ]
    if not prefixes:
        while all(key.startswith("model.") for key in bare):
            bare = {key.removeprefix("model."): value for key, value in bare.items()}
        return {"": bare}, []
    copies: dict[str, StateDict] = {}
    for prefix in prefixes:
        others = tuple(other for other in prefixes if len(other) > len(prefix))
        copies[prefix] = {
            key.removeprefix(prefix): value
            for key, value in bare.items()
            if key.startswith(prefix) and not (others and key.startswith(others))
        }
    return copies, [key for key in bare if not key.startswith(tuple(prefixes))]


def choose_copy(copies: Mapping[str, StateDict], source: str, take: str | None) -> str:
    """The name of the copy to take: the one asked for, the only one, or the only one that is no average.

    Raises:
        InputError: none of them, or several.
    """
    listed = ", ".join(f"{name or '(top)'!r} ({len(copy)} tensors)" for name, copy in copies.items())
    if take is not None:
        name = "" if take == "(top)" else take
        if name not in copies:
            raise InputError(f"{source}: holds no copy {take!r}; there are {listed}")
        return name
    plain = [name for name in copies if not AVERAGED_COPY.search(name)] or list(copies)
    if len(plain) > 1:
        plain = [name for name in plain if name.split("/")[0] == "state_dict"] or plain
    if len(plain) > 1:
        raise InputError(
            f"{source}: holds {len(copies)} state dicts, {listed}: say which by "
            "`python -m kernel convert FILE OUT --take NAME`"
        )
    return plain[0]
