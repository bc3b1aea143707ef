"""Several processes that train one detector: started by `torchrun`, on one machine or many, on CPUs or GPUs.

A step of N processes is the step of one process that accumulates N micro-batches: micro-batches are numbered over
processes and accumulation, each one's crops and random numbers follow from its number, and gradients are averaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from kernel.errors import InputError, RunError
from kernel.gpus import gpu_count, require_kernels
from kernel.text import first_line

#: The others wait while the first process evaluates and saves; torch's 10 (NCCL) or 30 minutes would end the run there.
LONGEST_WAIT = timedelta(hours=12)


def is_first_process() -> bool:
    """Whether this process writes files and messages; true for one that is alone."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def with_the_others() -> Iterator[None]:
    """What the processes do together: where another one does not take part, that is told.

    Raises:
        RunError: another process has ended or was stopped, or the network between them is gone.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # also NCCL's and gloo's own
        raise RunError(
            f"another process of this training has ended, was stopped, or cannot be reached ({first_line(error)}): "
            "look for its message, and start all again with --resume"
        ) from error


class ProcessGroup:
    """This process among those that train together; alone, where `torchrun` did not start it.

    Raises:
        InputError: torch cannot connect the processes, or a process has no GPU of its own that it can compute on.
    """

    def __init__(self, device: str):
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device(device)
        if self.size == 1:
            return
        if not dist.is_available():
            raise InputError("this torch has no torch.distributed: train with one process, without torchrun")
        if self.device.type == "cuda":
            local, count = int(os.environ["LOCAL_RANK"]), gpu_count()
            if local >= count:
                raise InputError(
                    f"process {local} of this machine has no GPU of its own: there are {count}; start torchrun with as "
                    "many processes per machine as it has GPUs"
                )
            if not dist.is_nccl_available():  # Linux alone has it
                raise InputError(
                    "this torch has no NCCL, by which several processes train on GPUs: train with one process, without "
                    "torchrun, or on Linux"
                )
            self.device = torch.device("cuda", local)
            require_kernels(self.device)
            torch.cuda.set_device(self.device)
        dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo", timeout=LONGEST_WAIT)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes; a parameter without one counts as zero."""
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        # One message for all: a detector has hundreds of small tensors.
        flat = torch.cat(
            [
                (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).flatten()
                for parameter in trained
            ]
        )
        with with_the_others():
            dist.all_reduce(flat)
        flat /= self.size
        start = 0
        for parameter in trained:
            mean = flat[start : start + parameter.numel()].view_as(parameter)
            start += parameter.numel()
            # One that no process uses stays without gradient, or weight decay would shrink it.
            if parameter.grad is not None or bool(mean.any()):
                parameter.grad = mean.clone()

    def share_weights(self, detector: nn.Module) -> None:
        """Give all processes the first one's weights."""
        if self.size > 1:
            for value in detector.state_dict().values():
                with with_the_others():
                    dist.broadcast(value, 0)

    def share_buffers(self, detector: nn.Module) -> None:
        """Give all processes the BatchNorm statistics of all their crops, of which each has those of its own.

        A variance of all counts the means' spread as well, so squares are averaged in its place.
        """
        if self.size == 1:
            return
        norms: list[Any] = [
            module for module in detector.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
        ]
        for norm in norms:
            norm.running_var += norm.running_mean.square()
        for value in detector.buffers():
            if value.is_floating_point():
                with with_the_others():
                    dist.all_reduce(value)
                value /= self.size
        for norm in norms:
            norm.running_var -= norm.running_mean.square()

    def any_of(self, flag: bool) -> bool:
        """Whether `flag` is true in any process: all must stop in the same step."""
        if self.size == 1:
            return flag
        highest = torch.tensor(int(flag), device=self.device)
        with with_the_others():
            dist.all_reduce(highest, dist.ReduceOp.MAX)
        return bool(highest)

    def all_of(self, number: int) -> list[int]:
        """Every process's `number`, by rank."""
        numbers = [number] * self.size
        if self.size > 1:
            with with_the_others():
                dist.all_gather_object(numbers, number)
        return numbers

    def close(self) -> None:
        """Leave the group, together with all others: NCCL waits for them."""
        if self.size > 1:
            dist.destroy_process_group()
