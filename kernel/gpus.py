"""What a GPU can compute, by its generation and by what torch was built for."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch

from kernel.errors import InputError
from kernel.log import LOG
from kernel.text import first_line

#: The first compute capability with bfloat16 of its own; before it torch emulates it, slowly.
BFLOAT16_SINCE = (8, 0)


def lacks_kernels(device: torch.device) -> str | None:
    """Why this build of torch cannot compute on a GPU; None where it can.

    A build has machine code for some generations, `sm_75` say, which later ones of the same major version run, and may
    have intermediate code, `compute_90`, which the driver translates for any later one.
    """
    built_for = torch.cuda.get_arch_list()
    known = [re.match(r"(sm|compute)_(\d+)(\d)", name) for name in built_for]
    builds = [(match[1], (int(match[2]), int(match[3]))) for match in known if match]
    if not builds:  # AMD's have other names
        return None
    major, minor = torch.cuda.get_device_capability(device)
    if any(built <= (major, minor) and (kind == "compute" or built[0] == major) for kind, built in builds):
        return None
    return (
        f"{device}, {torch.cuda.get_device_name(device)}, is of compute capability {major}.{minor}, and torch "
        f"{torch.__version__} has no kernels for it, only {', '.join(built_for)}"
    )


def gpu_count() -> int:
    """How many GPUs torch reaches. Warns where it reaches none of those that there are."""
    count = torch.cuda.device_count()  # as the driver says
    if count and not torch.cuda.is_available():
        LOG.warning(
            "torch %s, built for CUDA %s, does not reach the %d GPU(s) of this machine: their driver is too old for it "
            "or fails",
            torch.__version__, torch.version.cuda, count,
        )  # fmt: skip
        return 0
    return count


def usable_gpus() -> Iterator[int]:
    """The indices of the GPUs that this torch can compute on, one after another. Warns of others."""
    for index in range(gpu_count()):
        try:
            reason = lacks_kernels(torch.device("cuda", index))
        except RuntimeError as error:  # it fails, or another process has it for itself
            reason = f"cuda:{index}: {first_line(error)}"
        if reason is None:
            yield index
        else:
            LOG.warning("%s: it is not used", reason)


def require_kernels(device: torch.device) -> None:
    """Refuse a GPU that this build of torch cannot compute on.

    Raises:
        InputError: it cannot.
    """
    reason = lacks_kernels(device)
    if reason is not None:
        raise InputError(f"{reason}: install a torch that has them, or compute on the CPU")


def own_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """The dtype that networks compute in where `dtype` is asked for.

    A GPU that has no bfloat16 gets float16, which is as fast there, and finer. What overflows in it is computed again
    in float32, or its loss is scaled. A CPU gets float32 in the place of float16, of which it has no arithmetic.
    """
    if dtype == torch.float16 and device.type == "cpu":
        return torch.float32
    if dtype != torch.bfloat16 or device.type != "cuda" or torch.cuda.get_device_capability(device) >= BFLOAT16_SINCE:
        return dtype
    LOG.warning("%s, %s, has no bfloat16: float16 is used", device, torch.cuda.get_device_name(device))
    return torch.float16
