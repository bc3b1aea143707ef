"""Weights as a member's file holds them: the tensors that its detector runs, whole, as float16 or in 8 bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from safetensors import SafetensorError

from kernel.models.checkpoints import NEVER_RUN_PREFIXES, StateDict
from kernel.models.eight_bits import SCALE_SUFFIX, in_eight_bits

#: How many bits a float16 has for its fraction.
HALF_FRACTION_BITS = 10


def stored_tensors(
    tensors: Mapping[str, torch.Tensor], half: bool = False, fraction_bits: int | None = None, int8: bool = False
) -> StateDict:
    """The tensors of a state dict as they are stored: on the CPU, without those of timm's classifier.

    Args:
        tensors: a detector's, by its keys.
        half: floating-point ones as float16, but those with a number beyond its range, which stay as they are.
        fraction_bits: of float16, how many bits of the fraction are kept (1 to 9) in what has two dimensions or more;
            weights of few compress well. Biases and norms, which are few and count much, stay as they are.
        int8: weights as `in_eight_bits` stores them; `half` is then of all others but their scales.
    """
    run = {key: value for key, value in tensors.items() if not key.startswith(NEVER_RUN_PREFIXES)}
    if int8:
        run = in_eight_bits(run)
    if half:
        run = {
            key: value.half() if fits_half(value) and not key.endswith(SCALE_SUFFIX) else value
            for key, value in run.items()
        }
    # Copies, since safetensors refuses tensors that share memory.
    stored = {key: value.detach().cpu().contiguous().clone() for key, value in run.items()}
    if fraction_bits is not None:
        stored = {
            key: rounded_half(value, fraction_bits) if value.dtype == torch.float16 and value.ndim > 1 else value
            for key, value in stored.items()
        }
    return stored


def rounded_half(tensor: torch.Tensor, bits: int) -> torch.Tensor:
    """A float16 tensor, each number rounded to the nearest with `bits` (1 to 9) bits of fraction, the larger of two.

    Numbers that would become infinite so, and those that are not finite, stay.
    """
    dropped = HALF_FRACTION_BITS - bits
    # A float16 is a sign and a magnitude, so a carry out of the fraction goes into the exponent as it must.
    raised = tensor.view(torch.int16) + (1 << (dropped - 1))
    rounded = (raised & ~((1 << dropped) - 1)).view(torch.float16)
    return torch.where(rounded.isfinite() & tensor.isfinite(), rounded, tensor)


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
