"""What the environment variables of the kernel choose: folders, devices, dtype; and whether the run is scored."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from kernel.errors import InputError
from kernel.gpus import gpu_count, usable_gpus
from kernel.log import LOG
from kernel.runtime.remedies import with_remedy
from kernel.settings import NETWORK_DTYPES

#: Set by Kaggle in the run whose submission is scored.
SCORING_RUN_VARIABLE = "KAGGLE_IS_COMPETITION_RERUN"
#: Set by Kaggle in each of its runs.
KAGGLE_VARIABLE = "KAGGLE_KERNEL_RUN_TYPE"
#: The line near the end of a script that can be started again as a process.
STARTABLE_ENDING = 'if __name__ == "__main__":'


def startable_script() -> Path | None:
    """The file that this code was read from, if running it runs the kernel; else None."""
    script = Path(startable_script.__code__.co_filename)
    if script.is_file() and STARTABLE_ENDING in script.read_text(encoding="utf-8")[-500:]:
        return script.resolve()
    return None


def is_scoring_run() -> bool:
    """Whether Kaggle scores what this run writes."""
    return bool(os.environ.get(SCORING_RUN_VARIABLE))


def working_folder() -> Path:
    """The folder of the results.

    Raises:
        InputError: there is none.
    """
    working = Path(os.environ.get("KERNEL_WORKING", "/kaggle/working"))
    if not working.is_dir():
        raise InputError(f"no folder {working}: run this on Kaggle, or set KERNEL_WORKING to an existing folder")
    if Path(tempfile.gettempdir()) == working:  # the script begins with that
        LOG.warning("no folder for temporary files can be written: they go to %s", working)
    return working


def chosen_devices() -> list[str]:
    """The devices of KERNEL_DEVICE, one or several with commas between; else those of `default_devices`.

    Raises:
        InputError: a device is not there; or as `default_devices`.
    """
    given = os.environ.get("KERNEL_DEVICE")
    names = named_devices(given) if given else default_devices()
    if len(names) > 1 and startable_script() is None:
        LOG.warning(
            "this script is no file that could be started again: of %s only the first is used", ", ".join(names)
        )
        return names[:1]
    return names


def named_devices(given: str) -> list[str]:
    """The devices that KERNEL_DEVICE names.

    Raises:
        InputError: one is not there.
    """
    names = [name.strip() for name in given.split(",")]
    count = gpu_count()
    for name in names:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise InputError(f"KERNEL_DEVICE is {given!r}; allowed are cpu, cuda and cuda:N, with commas") from error
        if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
            raise InputError(f"KERNEL_DEVICE is {given!r}; this machine has the CPU and {count} GPU(s)")
    return names


def default_devices() -> list[str]:
    """All GPUs that torch can compute on; else the CPU, with a warning where there are GPUs.

    Raises:
        InputError: none of its GPUs can be used on Kaggle, in a run that is not scored: another accelerator can be
            chosen before there is one that is.
    """
    usable = [f"cuda:{index}" for index in usable_gpus()]
    if usable or not torch.cuda.device_count():
        return usable or ["cpu"]
    error = InputError("torch can compute on no GPU of this machine, for the reasons above")
    if os.environ.get(KAGGLE_VARIABLE) and not is_scoring_run():
        raise error
    LOG.critical("ALL IS COMPUTED ON THE CPU, which takes many times as long: %s", with_remedy(error))
    return ["cpu"]


def chosen_dtype(planned: str, devices: Sequence[str]) -> torch.dtype:
    """The dtype that networks compute in: KERNEL_DTYPE, else the manifest's, which is `planned`.

    A planned float16 becomes float32 where a device is the CPU: it is a type for GPUs.

    Raises:
        InputError: KERNEL_DTYPE is none of `NETWORK_DTYPES`.
    """
    name = os.environ.get("KERNEL_DTYPE")
    if name is None:
        on_cpu = any(torch.device(device).type == "cpu" for device in devices)
        name = "float32" if planned == "float16" and on_cpu else planned
    if name not in NETWORK_DTYPES:
        raise InputError(f"KERNEL_DTYPE is {name!r}; allowed are {', '.join(NETWORK_DTYPES)}")
    return getattr(torch, name)
