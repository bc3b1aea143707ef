"""What the environment variables of the kernel choose: folders, devices, dtype."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from kernel.errors import InputError
from kernel.gpus import own_dtype
from kernel.log import LOG
from kernel.settings import NETWORK_DTYPES

#: The line near the end of a script that can be started again as a process.
STARTABLE_ENDING = 'if __name__ == "__main__":'


def startable_script() -> Path | None:
    """The file that this code was read from, if running it runs the kernel; else None."""
    script = Path(startable_script.__code__.co_filename)
    if script.is_file() and STARTABLE_ENDING in script.read_text(encoding="utf-8")[-500:]:
        return script.resolve()
    return None


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
    """The devices of KERNEL_DEVICE, one or several with commas between; else all GPUs; else the CPU.

    Raises:
        InputError: a device is not there.
    """
    count = torch.cuda.device_count()
    given = os.environ.get("KERNEL_DEVICE") or ",".join(f"cuda:{index}" for index in range(count)) or "cpu"
    names = [name.strip() for name in given.split(",")]
    for name in names:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise InputError(f"KERNEL_DEVICE is {given!r}; allowed are cpu, cuda and cuda:N, with commas") from error
        if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
            raise InputError(f"KERNEL_DEVICE is {given!r}; this machine has the CPU and {count} GPU(s)")
    if len(names) > 1 and startable_script() is None:
        LOG.warning("this script is no file that could be started again: of %s only the first is used", given)
        return names[:1]
    return names


def chosen_dtype(planned: str, devices: Sequence[str]) -> torch.dtype:
    """The dtype that networks compute in: KERNEL_DTYPE, else the manifest's, which is `planned`.

    A float16 becomes float32 where a device is the CPU, as `own_dtype` has it: all devices are to compute alike.

    Raises:
        InputError: KERNEL_DTYPE is none of `NETWORK_DTYPES`.
    """
    name = os.environ.get("KERNEL_DTYPE", planned)
    if name not in NETWORK_DTYPES:
        raise InputError(f"KERNEL_DTYPE is {name!r}; allowed are {', '.join(NETWORK_DTYPES)}")
    dtype = getattr(torch, name)
    on_cpu = any(torch.device(device).type == "cpu" for device in devices)
    return own_dtype(torch.device("cpu"), dtype) if on_cpu else dtype
