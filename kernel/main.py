"""The kernel: from mounted images, wheels and weights to submission.csv, offline.

It runs on Kaggle as one inlined script. The environment may say otherwise than Kaggle's defaults:

    KERNEL_INPUT_ROOT   where inputs are mounted (default /kaggle/input)
    KERNEL_WORKING      where results go (default /kaggle/working)
    KERNEL_DEVICE       cpu, cuda, cuda:1, or several with commas: cuda:0,cuda:1 (default: all GPUs, or the CPU)
    KERNEL_DTYPE        of the networks: float32, float16 or bfloat16 (default: the manifest's)

The images are shared over the devices, a process for each, and done as well as the time limit allows: see
`TimeBudget` and `LOWERINGS`. Where the script is no file that can be started again (pasted into a notebook's cell,
say), the first device does them all.

Started by torchrun (RANK, WORLD_SIZE) each process does its share of the images, on one device, and the first writes
the results of all, to the same bytes as a process that is alone; how it ended is the first one's exit code.

Exit codes: 0 all images done; 1 a failure; 2 wrong input. Where single images failed or could not be read, their rows
are empty, all others are there, and the code says which of the two it was. In Kaggle's scoring run a complete
submission always ends with 0, since anything else would discard it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from tqdm import tqdm

from kernel.attempt import FailedImage, FirstImages, attempt
from kernel.data.images import list_images, read_image_shape
from kernel.ensemble.quality import quality_levels
from kernel.errors import InputError, RunError
from kernel.inputs import find_competition, find_dataset, input_root
from kernel.manifest import Manifest, parse_manifest
from kernel.postprocess.submission import SubmissionWriter
from kernel.runtime.budget import TimeBudget
from kernel.runtime.devices import (
    DeviceWorker,
    LocalWorker,
    ProcessWorker,
    WorkerQueue,
    has_running_lanes,
    share_images,
)
from kernel.runtime.files import whole_file
from kernel.runtime.log import LOG, show_log
from kernel.runtime.memory import peak_host_memory
from kernel.runtime.shards import (
    RowKeeper,
    ShardResult,
    begin_shard,
    failed_share,
    gather_shards,
    this_shard,
    write_shard,
)
from kernel.runtime.wheels import install_wheels, parse_locked_wheels, verify_wheels
from kernel.settings import NETWORK_DTYPES
from kernel.worker import SERVE_VARIABLE, serve_device, start_worker

#: Set by Kaggle in the run whose submission is scored.
SCORING_RUN_VARIABLE = "KAGGLE_IS_COMPETITION_RERUN"
#: How a script ends that can be started again as a process of its own.
STARTABLE_ENDING = 'if __name__ == "__main__":'


def main(manifest_json: str, wheels_lock_json: str) -> int:
    """Run the kernel; returns the exit code."""
    if SERVE_VARIABLE in os.environ:
        end_at_once(serve_device(manifest_json))
    show_log(sys.stdout)
    try:
        code = run_kernel(manifest_json, wheels_lock_json)
    except InputError as error:
        LOG.error("%s", error)
        code = 2
    except RunError as error:
        LOG.error("%s", error)
        code = 1
    if has_running_lanes():
        end_at_once(code)
    return code


def end_at_once(code: int) -> NoReturn:
    """End the process without waiting for threads, of which one may have been given up, or for a GPU that is lost.

    Python's own end would wait for ever, or abort with a code of its own where the thread came back from torch by then.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_kernel(manifest_json: str, wheels_lock_json: str) -> int:
    """The kernel from top to bottom."""
    start = time.monotonic()
    manifest = parse_manifest(manifest_json, "the embedded manifest")
    shard, machine = this_shard(), chosen_devices()
    devices = shard.own_device(machine)
    dtype = chosen_dtype(manifest.dtype, devices)
    root, working = input_root(), working_folder()
    begin_shard(working, shard)

    all_paths = list_images(find_competition(root, manifest.kernel.competition))
    image_paths = shard.share(all_paths)
    writer = SubmissionWriter(path.stem for path in all_paths)
    rows = writer if shard.count == 1 else RowKeeper(path.stem for path in image_paths)
    LOG.info("%d images, %d members, on %s in %s", len(image_paths), len(manifest.members), ", ".join(devices), dtype)

    try:
        lock = parse_locked_wheels(json.loads(wheels_lock_json), "the embedded wheels lock")
        wheels = verify_wheels(find_dataset(root, manifest.wheels_dataset), lock)
        with tempfile.TemporaryDirectory(prefix="kernel-wheels-") as packages:
            install_wheels(wheels, Path(packages))
            shapes = {path.stem: shape_of(path) for path in image_paths}
            budget = TimeBudget(
                quality_levels(manifest.members, manifest.ensemble),
                {image_id: float(height * width) for image_id, (height, width) in shapes.items()},
                start + (manifest.time_limit_hours - manifest.time_margin_hours) * 3600,
                len(devices),
            )
            last_call = budget.deadline + manifest.time_margin_hours * 1800
            tasks = worker_tasks(devices, dtype, packages, list(shapes.values()))
            for task in tasks.values():
                task["sharing"] *= shard.sharing(machine)
            with started_workers(manifest, tasks) as (workers, said):
                done, failed, peaks = segment_all(workers, said, image_paths, rows, budget, last_call)
    except (InputError, RunError) as error:
        if shard.rank == 0:
            raise
        # Told by the first process, whose submission has the others' images: any other code would end that one.
        LOG.error("%s", error)
        write_shard(working, shard, failed_share(image_paths, f"process {shard.rank}: {error}"))
        return 0

    forecasts = budget.forecasts
    if isinstance(rows, RowKeeper):
        write_shard(working, shard, ShardResult(rows.given, done, failed, peaks, forecasts))
        if shard.rank > 0:
            return 0  # what is wrong is told by the first process: any other code would have torchrun end that one
        whole = gather_shards(working, shard, all_paths, last_call)
        done, failed, peaks, forecasts = whole.done, whole.failed, whole.peaks, whole.forecasts
        for image_id, (rles, shape) in whole.rows.items():
            writer.add(image_id, rles, shape)
    writer.write(working / "submission.csv")
    seconds = time.monotonic() - start
    summary = summarise(manifest, dtype, done, failed, seconds) | {
        "devices": peaks,
        "peak_memory_gb": largest_known([peak_host_memory(), *(host for host, _ in peaks.values())]),
        "peak_gpu_memory_gb": largest_known(gpu for _, gpu in peaks.values()),
        "time_forecasts": forecasts,
    }
    with whole_file(working / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8", newline="\n")
    peak = summary["peak_memory_gb"]
    LOG.info(
        "%d cells in %d images, %d images failed, %.0f s, peak memory %s; wrote %s",
        summary["cells"], len(all_paths), len(failed), seconds, "not known" if peak is None else f"{peak:.2f} GB",
        working / "submission.csv",
    )  # fmt: skip
    for image_id, failure in failed.items():
        LOG.error("image %s has an empty row: %s", image_id, failure.reason)
    if failed and os.environ.get(SCORING_RUN_VARIABLE):
        LOG.warning("ending with exit code 0 all the same: a scoring run that fails has no score")
        return 0
    if not all(failure.wrong_input for failure in failed.values()):
        return 1
    return 2 if failed else 0


def worker_tasks(
    devices: Sequence[str], dtype: torch.dtype, packages: str, shapes: Sequence[tuple[int, int]]
) -> dict[str, dict[str, Any]]:
    """By a name of its own, what the worker of each device must know to start. `shapes` (H, W) are the images'."""
    largest = max(shapes, key=lambda shape: shape[0] * shape[1], default=(1, 1))
    return {
        device if devices.count(device) == 1 else f"{device}#{number}": {
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
            "largest_shape": largest,
            "sharing": devices.count(device),
            "processes": len(devices),
            "packages": packages,
        }
        for number, device in enumerate(devices, start=1)
    }


@contextlib.contextmanager
def started_workers(
    manifest: Manifest, tasks: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[list[DeviceWorker], WorkerQueue]]:
    """A worker for each device; they end with the block.

    A CPU that is alone is served in this process. A GPU is not, alone or not, wherever that can be helped: some of its
    errors leave a process without it, and only a new process has it back.
    """
    said: WorkerQueue = queue.SimpleQueue()
    (name, task), *others = tasks.items()
    script = startable_script()
    if not others and (script is None or task["device"] == "cpu"):
        device = start_worker(manifest, task)
        worker = LocalWorker(name, device.begin, said, device.overlaps)
        yield [worker], said
        worker.close()
        return
    command = [sys.executable, *(["-I"] if sys.flags.isolated else []), str(script)]
    environment = {**os.environ, SERVE_VARIABLE: "1"}
    workers: list[DeviceWorker] = []
    finished = False
    try:
        for name, task in tasks.items():
            workers.append(ProcessWorker(name, command, environment, task, said))
        yield workers, said
        finished = True
    finally:
        for worker in workers:
            worker.close(at_once=not finished)


def startable_script() -> Path | None:
    """The file that this code was read from, where running it runs the kernel."""
    script = Path(main.__code__.co_filename)
    if script.is_file() and STARTABLE_ENDING in script.read_text(encoding="utf-8")[-500:]:
        return script.resolve()
    return None


def shape_of(path: Path) -> tuple[int, int]:
    """The (H, W) of an image; (1, 1) of one that cannot be read, which takes no time and has its reason told later."""
    shape = attempt(path.stem, lambda: read_image_shape(path))
    return (1, 1) if shape is None or isinstance(shape, FailedImage) else shape


def segment_all(
    workers: Sequence[DeviceWorker],
    said: WorkerQueue,
    image_paths: Sequence[Path],
    writer: SubmissionWriter,
    budget: TimeBudget,
    last_call: float,
) -> tuple[dict[str, dict[str, Any]], dict[str, FailedImage], dict[str, tuple[float | None, float | None]]]:
    """Have all images segmented, keeping only rows of text.

    Returns what the summary says of each image done, why each failed one failed, and each device's peak memory.
    Failed images get their empty row; where the first ones all fail, and not through their own fault, the log says so.
    """
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, FailedImage] = {}
    peaks: dict[str, tuple[float | None, float | None]] = {}
    first = FirstImages(len(image_paths))

    def take(worker: DeviceWorker, answer: Mapping[str, Any]) -> None:
        image_id, (height, width) = answer["image"], answer["image_shape"]
        try:
            writer.add(image_id, answer["rles"], (height, width))
        except InputError as error:
            fail(image_id, FailedImage(str(error), wrong_input=False, kind=type(error).__name__))
            return
        first.succeeded()
        done[image_id] = {**answer["told"], "device": worker.name}
        host, gpu = answer["peaks"]
        peaks[worker.name] = host, gpu
        LOG.info("image %s: %s", image_id, json.dumps(done[image_id]))
        progress.update()

    def fail(image_id: str, failure: FailedImage) -> None:
        failed[image_id] = failure
        first.failed(failure)
        writer.add(image_id, [], (0, 0))
        progress.update()

    with tqdm(total=len(image_paths), unit="image", mininterval=10) as progress:
        share_images(
            workers, said, image_paths, budget, take, lambda path, failure: fail(path.stem, failure), last_call
        )
    order = [path.stem for path in image_paths]
    return (
        {image_id: done[image_id] for image_id in order if image_id in done},
        {image_id: failed[image_id] for image_id in order if image_id in failed},
        peaks,
    )


def summarise(
    manifest: Manifest,
    dtype: torch.dtype,
    done: Mapping[str, Mapping[str, Any]],
    failed: Mapping[str, FailedImage],
    seconds: float,
) -> dict[str, Any]:
    """The run in figures: summary.json."""
    stages: dict[str, float] = {}
    for image in done.values():
        for stage, spent in image["seconds"].items():
            stages[stage] = round(stages.get(stage, 0) + spent, 3)
    types = [image["cell_type"] for image in done.values()]
    qualities = [image["quality"] for image in done.values()]
    return {
        "kernel": manifest.kernel.id,
        "members": [member.name for member in manifest.members],
        "dtype": str(dtype).removeprefix("torch."),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "stage_seconds": stages,
        "cells": sum(image["cells"] for image in done.values()),
        "images_by_quality": {name: qualities.count(name) for name in dict.fromkeys(qualities)},
        "images_by_type": {cell_type: types.count(cell_type) for cell_type in sorted(set(types))},
        "images": dict(done),
        "failed": {image_id: failure.reason for image_id, failure in failed.items()},
        "wrong_images": [image_id for image_id, failure in failed.items() if failure.wrong_input],
    }


def largest_known(figures: Iterable[float | None]) -> float | None:
    """The largest of the figures that are known; None: none is."""
    return max((figure for figure in figures if figure is not None), default=None)


def working_folder() -> Path:
    """Where results go."""
    working = Path(os.environ.get("KERNEL_WORKING", "/kaggle/working"))
    if not working.is_dir():
        raise InputError(f"no folder {working}: run this on Kaggle, or set KERNEL_WORKING to an existing folder")
    return working


def chosen_devices() -> list[str]:
    """KERNEL_DEVICE, one or several with commas between; or all GPUs; or the CPU.

    Raises InputError for a device that is not there.
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
            raise InputError(f"KERNEL_DEVICE is {given!r}, and this machine has the CPU and {count} GPU(s)")
    if len(names) > 1 and startable_script() is None:
        LOG.warning("this script is no file that could be started again: of %s only the first is used", given)
        return names[:1]
    return names


def chosen_dtype(planned: str, devices: Sequence[str]) -> torch.dtype:
    """KERNEL_DTYPE, or the one that the manifest has `planned`; float16 only for GPUs, whose type it is."""
    name = os.environ.get("KERNEL_DTYPE")
    if name is None:
        on_cpu = any(torch.device(device).type == "cpu" for device in devices)
        name = "float32" if planned == "float16" and on_cpu else planned
    if name not in NETWORK_DTYPES:
        raise InputError(f"KERNEL_DTYPE is {name!r}; allowed are {', '.join(NETWORK_DTYPES)}")
    return getattr(torch, name)
