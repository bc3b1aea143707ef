"""What does the images of one device: the ensemble at every level of quality, in this process or one of its own."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from kernel.attempt import FailedImage, attempt, attempt_prediction, means_lost_device
from kernel.data.images import read_image
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.quality import QualityLevel, ensemble_at, quality_levels
from kernel.errors import InputError, RunError
from kernel.inputs import input_root
from kernel.manifest import Manifest, parse_manifest
from kernel.runtime.devices import Finisher
from kernel.runtime.log import LOG, show_log
from kernel.runtime.memory import apply_plan, free_memory, peak_host_memory, plan_memory
from kernel.runtime.wheels import install_wheels
from kernel.segment import Segmentation, finish_prediction, load_ensemble, mounted_weights
from kernel.settings import Thresholds

#: Set for a process that serves a device.
SERVE_VARIABLE = "KERNEL_SERVE"
#: Held while a message is written.
_SAYING = threading.Lock()


class ImageWorker:
    """Does image after image, each in two parts: what the networks do, and what is left then.

    On a GPU the parts of different images overlap: the next image is read, and the masks of the last one are made,
    while the networks are at this one. On the CPU they would only take its cores from each other.

    Parameters:
        ensemble: in full quality, on its device.
        levels: the levels of quality that are asked for by their index.
    """

    def __init__(self, ensemble: Ensemble, levels: Sequence[QualityLevel]):
        self.levels = levels
        self._ensembles = [ensemble_at(ensemble, level) for level in levels]
        self._device = ensemble.device  # an image without room there has the ensemble moved away for a while
        self.overlaps = self._device.type != "cpu"
        self.has_lost_device = False
        self._reader = ThreadPoolExecutor(1, "reads the next image")
        self._ahead: dict[Path, Future[np.ndarray]] = {}

    def begin(self, path: Path, level: int, then: Path | None = None) -> Callable[[], dict[str, Any]]:
        """Have the networks do an image at a level; `then` is likely to be the next one.

        What comes back does the rest, in any thread, and returns text and figures as JSON takes them: either "failure"
        says why there are no rows, or "rles", "image_shape" and "told" (for the summary) are there.
        """
        ensemble = self._ensembles[level]
        read = self._ahead.pop(path, None)
        for useless in self._ahead.values():
            useless.cancel()
        self._ahead = {then: self._reader.submit(read_image, then)} if self.overlaps and then is not None else {}
        outcome = attempt_prediction(ensemble, path, read.result if read else None)
        if isinstance(outcome, FailedImage):
            self.has_lost_device |= means_lost_device(outcome.reason)
            return lambda: {"image": path.stem, "failure": asdict(outcome)}
        _, prediction = outcome
        thresholds = ensemble.settings.thresholds
        return lambda: self._finish(path, level, prediction, thresholds)

    def _finish(
        self, path: Path, level: int, prediction: Prediction, thresholds: Mapping[str, Thresholds]
    ) -> dict[str, Any]:
        def answer() -> dict[str, Any]:
            result = finish_prediction(prediction, thresholds)
            return {
                "image": path.stem,
                "failure": None,
                "rles": result.masks.rles(),
                "image_shape": list(prediction.image_shape),
                "told": describe_image(result) | {"quality": self.levels[level].name},
                "peaks": peak_memory(self._device),
            }

        outcome = attempt(path.stem, answer)
        if isinstance(outcome, FailedImage):
            return {"image": path.stem, "failure": asdict(outcome)}
        return outcome


def describe_image(result: Segmentation) -> dict[str, Any]:
    """What the summary says of one image."""
    prediction = result.prediction
    return {
        "cells": len(result.masks),
        "cell_type": result.masks.cell_type or prediction.cell_type,
        "run_as": prediction.cell_type,  # the type whose members were run
        "boxes": len(prediction.scores),
        "level_counts": list(prediction.level_counts),
        "members": list(prediction.members),
        "seconds": {stage: round(seconds, 3) for stage, seconds in prediction.seconds.items()},
    }


def peak_memory(device: torch.device) -> tuple[float | None, float | None]:
    """The most that this process has taken so far, of the machine's memory and of the GPU's, in GB; None: not known."""
    gpu = round(torch.cuda.max_memory_allocated(device) / 2**30, 3) if device.type == "cuda" else None
    return peak_host_memory(), gpu


def start_worker(manifest: Manifest, task: Mapping[str, Any]) -> ImageWorker:
    """Load the ensemble and plan its memory. The vendored wheels must be installed.

    `task` says on which "device" and in which "dtype", the "largest_shape" (H, W) of the images, and how many processes
    are "sharing" the device. Raises InputError as `load_ensemble` and `mounted_weights` do.
    """
    device = torch.device(task["device"])
    weights = mounted_weights(manifest, input_root())
    ensemble = load_ensemble(manifest, weights, device, getattr(torch, task["dtype"]))
    height, width = task["largest_shape"]
    apply_plan(ensemble, plan_memory(ensemble, (height, width), free_memory(device) // task["sharing"]))
    return ImageWorker(ensemble, quality_levels(manifest.members, manifest.ensemble))


class SayingHandler(logging.Handler):
    """Passes the log on to the process that started this one."""

    def __init__(self, stream: TextIO):
        super().__init__()
        self.stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        say(self.stream, {"log": [record.levelno, self.format(record)]})


def say(stream: TextIO, message: Mapping[str, Any]) -> None:
    """Write one message; any thread may."""
    with _SAYING:
        stream.write(json.dumps(message) + "\n")
        stream.flush()


def serve_device(manifest_json: str) -> int:
    """Be the process of one device: read tasks from standard input, answer on standard output. Returns the exit code.

    The first line is the task of `start_worker`, with the folder of installed "packages"; each further one has an
    image's "path" and "level", and which one is likely "then". Ends with the input. Whatever libraries print goes to
    standard error.
    """
    said = os.fdopen(os.dup(sys.__stdout__.fileno()), "w", encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    os.dup2(2, 1)
    show_log(sys.stderr)
    LOG.handlers = [SayingHandler(said)]
    try:
        task = json.loads(sys.stdin.readline())
        install_wheels([], Path(task["packages"]))
        torch.set_num_threads(max(1, torch.get_num_threads() // task["processes"]))
        worker = start_worker(parse_manifest(manifest_json, "the embedded manifest"), task)
    except InputError as error:
        say(said, {"wrong_input": str(error)})
        return 2
    except RunError as error:
        say(said, {"failure": str(error)})
        return 1
    finisher = Finisher(lambda message: say(said, message), end_process, worker.overlaps)
    say(said, {"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        finish = worker.begin(Path(task["path"]), task["level"], Path(task["then"]) if task["then"] else None)
        if worker.has_lost_device:  # nothing works here any more; the image is done elsewhere
            finisher.close()
            return 1
        finisher.take(finish)
    finisher.close()
    return 0


def end_process(error: BaseException | None) -> None:
    """End this process from whatever thread; the one that started it has its images done elsewhere."""
    try:
        LOG.critical("an image ends the process", exc_info=error)
    finally:  # the one to tell may have gone
        os._exit(1)
