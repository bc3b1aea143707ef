"""Weights as a member's file holds them: the tensors that its detector runs, whole or as float16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from kernel.models.checkpoints import NEVER_RUN_PREFIXES, StateDict


def stored_tensors(tensors: Mapping[str, torch.Tensor], half: bool = False) -> StateDict:
    """The tensors of a state dict as they are stored: on the CPU, without those of timm's classifier.

    Args:
        tensors: a detector's, by its keys.
        half: floating-point ones as float16, but those with a number beyond its range, which stay as they are.
    """
    return {
        # A copy, since safetensors refuses tensors that share memory.
        key: (value.half() if half and fits_half(value) else value).detach().cpu().contiguous().clone()
        for key, value in tensors.items()
        if not key.startswith(NEVER_RUN_PREFIXES)
    }


def fits_half(tensor: torch.Tensor) -> bool:
    """Whether a tensor is of floating-point numbers that float16 can hold; what is not finite anyway counts as such."""
    return tensor.is_floating_point() and bool((tensor.half().isfinite() | ~tensor.isfinite()).all())


@contextmanager
def as_os_errors() -> Iterator[None]:
    """Raise as OSError what torch and safetensors raise in the block where writing fails, as on a full disk."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        raise OSError(str(error)) from error
