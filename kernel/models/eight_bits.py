"""Weights of 8 bits each: whole numbers from -127 to 127, times a scale for each row."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from kernel.errors import InputError
from kernel.models.wrappers import StateDict

#: What a key ends in that has the scales of the tensor before it.
SCALE_SUFFIX = ".int8_scale"
#: The largest of the whole numbers. -128 has no opposite, and is not used.
INT8_LARGEST = 127


def in_eight_bits(state: Mapping[str, torch.Tensor]) -> StateDict:
    """A state dict whose weights are int8, each beside its scales; what it is worth, `from_eight_bits` gives back.

    Weights are what is of floating-point numbers and has two dimensions or more. A row is what lies at one index of
    the first one: an output channel of most layers, an input channel of transposed convolutions. The scales are float32
    of as many dimensions, (rows, 1, ...). No number is off by more than half a scale, a 254th of its row's largest.
    Biases and norms, which are few and count much, stay as they are. So do weights that are not all finite as float32,
    and empty ones.
    """
    stored: StateDict = {}
    for key, value in state.items():
        if not (value.is_floating_point() and value.ndim > 1 and value.numel() and value.float().isfinite().all()):
            stored[key] = value
            continue
        weights = value.double()  # in which no row's largest, and no quotient, underflows
        scales = (weights.abs().amax(dim=tuple(range(1, value.ndim)), keepdim=True) / INT8_LARGEST).float()
        steps = scales.double()
        # A row of zeros has the scale 0, and so has one of which float32 holds no 127th.
        stored[key] = (
            torch.where(steps > 0, weights / steps, 0).round().clamp(-INT8_LARGEST, INT8_LARGEST).to(torch.int8)
        )
        stored[key + SCALE_SUFFIX] = scales
    return stored


def from_eight_bits(stored: Mapping[str, torch.Tensor], source: str) -> StateDict:
    """The state dict that `in_eight_bits` stored, its weights as float32; any other stays as it is.

    Args:
        stored: what the file holds.
        source: what messages call it.

    Raises:
        InputError: scales do not fit their weights, or have none.
    """
    state = {key: value for key, value in stored.items() if not key.endswith(SCALE_SUFFIX)}
    for scale_key in stored.keys() - state.keys():
        key, scales = scale_key.removesuffix(SCALE_SUFFIX), stored[scale_key]
        weights = state.get(key)
        if weights is None or weights.dtype != torch.int8:
            raise InputError(f"{source}: {scale_key} are scales without weights of 8 bits; fetch the file again")
        expected = (*weights.shape[:1], *(1 for _ in weights.shape[1:]))
        if scales.dtype != torch.float32 or tuple(scales.shape) != expected or not scales.isfinite().all():
            raise InputError(
                f"{source}: {scale_key} must be {expected} finite numbers of float32; `python -m kernel convert FILE "
                "OUT --int8` writes such a file anew"
            )
        state[key] = weights * scales
    return state
