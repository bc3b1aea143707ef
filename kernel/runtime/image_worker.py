"""The images of one device: the ensemble at every quality level, in this process or in one of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.fallbacks import means_lost_device
from kernel.ensemble.leaving_out import levels_without, load_mounted_ensemble
from kernel.ensemble.quality_levels import QualityLevel, ensemble_at, quality_levels
from kernel.errors import InputError, RunError, as_failure
from kernel.images.reading import read_image
from kernel.log import LOG, show_log
from kernel.manifest.reader import parse_manifest
from kernel.manifest.types import Manifest
from kernel.runtime.ending import end_without_parent
from kernel.runtime.failures import FailedImage, attempt, attempt_prediction
from kernel.runtime.memory import apply_plan, free_memory, peak_host_memory, plan_memory
from kernel.runtime.threads import Finish, Finisher
from kernel.runtime.wheels import install_wheels
from kernel.segment import Segmentation, finish_prediction
from kernel.settings import Thresholds
from kernel.signals import HANG_UP

#: Set for a process that serves a device.
SERVE_VARIABLE = "KERNEL_SERVE"
#: Held while a message is written.
_WRITING = threading.Lock()


class ImageWorker:
    """Does image after image, each in two parts: the networks, and then the post-processing.

    On a GPU the parts of different images overlap: while the networks run on one image, the next is read, and the one
    before is finished. On the CPU they would only compete for its cores.

    Args:
        ensemble: in full quality, on its device.
        levels: the quality levels; requests name them by index.
    """

    def __init__(self, ensemble: Ensemble, levels: Sequence[QualityLevel]):
        self.levels = levels
        self._ensembles = [ensemble_at(ensemble, level) for level in levels]
        self._device = ensemble.device  # `ensemble` itself is moved while an image is done on the CPU
        self.overlaps = self._device.type != "cpu"
        self.has_lost_device = False
        self.is_stranded = False  # the networks had to stay on the CPU
        self._reader = ThreadPoolExecutor(1, "reads the next image")
        self._read_ahead: dict[Path, Future[np.ndarray]] = {}

    def begin(self, path: Path, quality_level: int, next_path: Path | None = None) -> Finish:
        """Run the networks on an image at a quality level; `next_path` is likely to be the next one, and is read ahead.

        Returns:
            What finishes the image, in any thread, and returns the answer, which can be written as JSON. It has
            "image" (the id) and "failure" (None, or the fields of a `FailedImage`), and where there is none "rles",
            "image_shape" [H, W], "summary" (for summary.json) and "peaks" (as `peak_memory`).
        """
        ensemble = self._ensembles[quality_level]
        read = self._read_ahead.pop(path, None)
        for useless in self._read_ahead.values():
            useless.cancel()
        self._read_ahead.clear()
        if self.overlaps and next_path is not None:
            self._read_ahead[next_path] = self._reader.submit(read_image, next_path)
        outcome = attempt_prediction(ensemble, path, read.result if read else None)
        if ensemble.device != self._device:
            self.is_stranded = True
            for each in self._ensembles:  # they have the same detectors
                each.run_as(ensemble)
        if isinstance(outcome, FailedImage):
            self.has_lost_device |= means_lost_device(outcome.reason)
            return lambda: {"image": path.stem, "failure": asdict(outcome)}
        _, prediction = outcome
        thresholds = ensemble.settings.thresholds
        return lambda: self._finish(path, quality_level, prediction, thresholds)

    def _finish(
        self, path: Path, quality_level: int, prediction: Prediction, thresholds: Mapping[str, Thresholds]
    ) -> dict[str, Any]:
        def answer() -> dict[str, Any]:
            result = finish_prediction(prediction, thresholds)
            return {
                "image": path.stem,
                "failure": None,
                "rles": result.masks.rles(),
                "image_shape": list(prediction.image_shape),
                "summary": describe_image(result) | {"quality": self.levels[quality_level].name},
                "peaks": peak_memory(self._device),
            }

        outcome = attempt(path.stem, answer)
        if isinstance(outcome, FailedImage):
            return {"image": path.stem, "failure": asdict(outcome)}
        return outcome


def describe_image(result: Segmentation) -> dict[str, Any]:
    """What summary.json says of one image."""
    prediction = result.prediction
    return {
        "cells": len(result.masks),
        "cell_type": result.masks.cell_type or prediction.cell_type,
        "run_as": prediction.cell_type,  # the type whose members were run
        "boxes": len(prediction.scores),
        "level_counts": list(prediction.level_counts),
        "members": list(prediction.members),
        "dtype": str(prediction.dtype).removeprefix("torch."),
        "seconds": {stage: round(seconds, 3) for stage, seconds in prediction.seconds.items()},
    }


def peak_memory(device: torch.device) -> tuple[float | None, float | None]:
    """The most memory that this process has taken so far, of the machine and of the GPU, in GB; None: not known."""
    gpu = round(torch.cuda.max_memory_allocated(device) / 2**30, 3) if device.type == "cuda" else None
    return peak_host_memory(), gpu


def start_worker(
    manifest: Manifest,
    levels: Sequence[QualityLevel],
    setup: Mapping[str, Any],
    on_left_out: Callable[[Mapping[str, str]], None],
) -> ImageWorker:
    """Load the ensemble and plan its memory. The vendored wheels must be installed.

    Args:
        manifest: names the members.
        levels: the quality levels at which images are done.
        setup: one of `worker_setups`.
        on_left_out: takes the members that could not be loaded, with the reason of each, if there are any.

    Raises:
        InputError: as `load_mounted_ensemble` does.
    """
    device = torch.device(setup["device"])
    ensemble, left_out = load_mounted_ensemble(manifest, device, getattr(torch, setup["dtype"]), setup["policy"])
    if left_out:
        on_left_out(left_out)
        levels = levels_without(manifest, left_out)
    height, width = setup["largest_shape"]
    apply_plan(ensemble, plan_memory(ensemble, (height, width), free_memory(device) // setup["sharing"]))
    return ImageWorker(ensemble, levels)


class MessageHandler(logging.Handler):
    """Sends the log as messages to the process that started this one."""

    def __init__(self, stream: TextIO):
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:  # never raises: see `write_message`
        write_message(self.stream, {"log": [record.levelno, self.format(record)]})


def write_message(stream: TextIO, message: Mapping[str, Any]) -> None:
    """Write a message as a line; any thread may. Where nobody reads it any more, this process ends."""
    with _WRITING:
        try:
            stream.write(json.dumps(message) + "\n")
            stream.flush()
        except BrokenPipeError:
            os._exit(1)


def serve_device(manifest_json: str) -> int:
    """Be the process of one device until its input ends: read requests, write messages; returns the exit code.

    The first line of the input is the setup, one of `worker_setups`. Each further one requests an image, by "path",
    "quality_level" and "next_path". Whatever libraries print goes to standard error.
    """
    end_without_parent()
    for number in (signal.SIGINT, *HANG_UP):
        signal.signal(number, signal.SIG_IGN)  # a terminal sends them to all; the process that started this one ends it
    output = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    show_log(sys.stderr)
    LOG.handlers = [MessageHandler(output)]
    try:
        setup = json.loads(sys.stdin.readline())
        if not Path(setup["packages"]).is_dir():
            raise RunError(f"{setup['packages']}, where the wheels were installed, is gone")
        install_wheels([], Path(setup["packages"]))
        torch.set_num_threads(max(1, torch.get_num_threads() // setup["processes"]))
        manifest = parse_manifest(manifest_json, "the embedded manifest")
        levels = quality_levels(manifest.members, manifest.ensemble)
        worker = start_worker(
            manifest, levels, setup, lambda members: write_message(output, {"left_out": dict(members)})
        )
    except InputError as error:
        write_message(output, {"wrong_input": str(error)})
        return 2
    except (RunError, ImportError, RuntimeError, MemoryError, OSError) as error:  # of files, of torch, of its packages
        name = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
        write_message(output, {"failure": f"{name}{error}"})
        return 1
    except Exception as error:  # noqa: BLE001 (what an old mmdet raises under a new numpy is not known beforehand)
        write_message(output, {"failure": str(as_failure(error))})
        return 1
    finisher = Finisher(lambda message: write_message(output, message), end_process, worker.overlaps)
    write_message(output, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        next_path = request["next_path"]
        finish = worker.begin(Path(request["path"]), request["quality_level"], next_path and Path(next_path))
        if worker.has_lost_device:  # nothing works in this process any more; its image is retried in the next one
            finisher.close()
            return 1
        if worker.is_stranded:  # this answer counts; the next process has the GPU again
            finisher.close()
            write_message(output, {"answer": finish()})
            return 1
        finisher.take(finish)
    finisher.close()
    return 0


def end_process(error: BaseException | None) -> None:
    """End this process from any thread; the one that started it retries its images."""
    try:
        LOG.critical("an image ends the process", exc_info=error)
    finally:  # the process that reads the log may have gone
        os._exit(1)
