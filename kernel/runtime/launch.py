"""The workers of a run: what each needs to know, and their start and end."""

from __future__ import annotations

import contextlib
import os
import queue
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kernel.ensemble.leaving_out import STRICT
from kernel.ensemble.quality_levels import QualityLevel
from kernel.manifest.types import Manifest
from kernel.runtime.device_workers import DeviceWorker, LocalWorker, ProcessWorker, WorkerQueue
from kernel.runtime.environment import startable_script
from kernel.runtime.image_worker import SERVE_VARIABLE, start_worker


def worker_setups(
    devices: Sequence[str],
    dtype: torch.dtype,
    packages: Path,
    shapes: Iterable[tuple[int, int]],
    processes_per_device: int = 1,
    policy: str = STRICT,
) -> dict[str, dict[str, Any]]:
    """What the worker of each device must know to start, by the worker's name, as it can be written as JSON.

    Args:
        devices: as "cpu" or "cuda:0"; one named twice gets two workers.
        dtype: the networks compute in it.
        packages: the folder of the installed wheels.
        shapes: (H, W) of the images.
        processes_per_device: how many processes of torchrun, this one included, have each of the devices.
        policy: of `MEMBER_POLICIES`.
    """
    largest = max(shapes, key=lambda shape: shape[0] * shape[1], default=(1, 1))
    return {
        device if devices.count(device) == 1 else f"{device}#{number}": {
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
            "largest_shape": largest,
            "sharing": devices.count(device) * processes_per_device,
            "processes": len(devices),
            "packages": str(packages),
            "policy": policy,
        }
        for number, device in enumerate(devices, start=1)
    }


@contextlib.contextmanager
def started_workers(
    manifest: Manifest,
    levels: Sequence[QualityLevel],
    setups: Mapping[str, Mapping[str, Any]],
    cpu_apart: bool = False,
) -> Iterator[tuple[list[DeviceWorker], WorkerQueue]]:
    """A worker for each of the `setups` of `worker_setups`, and the queue of their messages; they end with the block.

    A single device that is the CPU is served in this process, or with `cpu_apart` in one of its own, so that an image
    that kills it costs no other. A GPU gets one even where it is the only device: after some errors only a new process
    can use the GPU. Both if the script can be started again.
    """
    messages: WorkerQueue = queue.SimpleQueue()
    (name, setup), *others = setups.items()
    script = startable_script()
    if not others and (script is None or (setup["device"] == "cpu" and not cpu_apart)):
        left_out: dict[str, str] = {}
        device = start_worker(manifest, levels, setup, left_out.update)
        worker = LocalWorker(name, device.begin, messages, device.overlaps)
        if left_out:
            messages.put((worker, {"left_out": left_out}))
        yield [worker], messages
        worker.close()
        return
    command = [sys.executable, *(["-I"] if sys.flags.isolated else []), str(script)]
    environment = {**os.environ, SERVE_VARIABLE: "1"}
    workers: list[DeviceWorker] = []
    finished = False
    try:
        for name, setup in setups.items():
            workers.append(ProcessWorker(name, command, environment, setup, messages))
        yield workers, messages
        finished = True
    finally:
        for worker in workers:
            worker.close(at_once=not finished)
