"""What does the images of one device: the ensemble at every level of quality, in this process or one of its own."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from kernel.attempt import IMAGE_ERRORS, FailedImage, attempt_image, failed_image
from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.quality import QualityLevel, ensemble_at, quality_levels
from kernel.errors import InputError, RunError
from kernel.inputs import input_root
from kernel.manifest import Manifest, parse_manifest
from kernel.runtime.log import LOG, show_log
from kernel.runtime.memory import apply_plan, free_memory, plan_memory
from kernel.runtime.wheels import install_wheels
from kernel.segment import Segmentation, load_ensemble, mounted_weights

#: Set for a process that serves a device.
SERVE_VARIABLE = "KERNEL_SERVE"
#: What an error says that leaves the whole process without its GPU, not only one image.
LOST_DEVICE_SIGNS = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS_EXECUTION_FAILED")


class ImageWorker:
    """Answers image after image.

    Parameters:
        ensemble: in full quality, on its device.
        levels: the levels of quality that are asked for by their index.
    """

    def __init__(self, ensemble: Ensemble, levels: Sequence[QualityLevel]):
        self.ensemble = ensemble
        self.levels = levels

    def answer(self, path: Path, level: int) -> dict[str, Any]:
        """Do an image at a level; what comes back is text and figures, as JSON takes them.

        Either "failure" says why there are no rows, or "rles", "image_shape" and "told" (for the summary) are there.
        """
        ensemble = ensemble_at(self.ensemble, self.levels[level])
        outcome = attempt_image(ensemble, path)
        if not isinstance(outcome, FailedImage):
            _, result = outcome
            try:
                rles = result.masks.rles()
            except IMAGE_ERRORS as error:
                outcome = failed_image(path.stem, error)
            else:
                told = describe_image(result) | {"quality": self.levels[level].name}
                return {
                    "image": path.stem,
                    "failure": None,
                    "rles": rles,
                    "image_shape": list(result.prediction.image_shape),
                    "told": told,
                    "peaks": peak_memory(ensemble.device),
                }
        return {"image": path.stem, "failure": asdict(outcome)}


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


def peak_memory(device: torch.device) -> tuple[float, float | None]:
    """The most that this process has taken so far, of the machine's memory and of the GPU's, in GB."""
    host = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
    return host, round(torch.cuda.max_memory_allocated(device) / 2**30, 3) if device.type == "cuda" else None


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
    """Write one message."""
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def serve_device(manifest_json: str) -> int:
    """Be the process of one device: read tasks from standard input, answer on standard output. Returns the exit code.

    The first line is the task of `start_worker`, with the folder of installed "packages"; each further one has an
    image's "path" and "level". Ends with the input. Whatever libraries print goes to standard error.
    """
    said = os.fdopen(os.dup(sys.__stdout__.fileno()), "w", encoding="utf-8")  # type: ignore[union-attr]
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
    say(said, {"ready": True})
    for line in sys.stdin:
        task = json.loads(line)
        answer = worker.answer(Path(task["path"]), task["level"])
        if answer["failure"] and any(sign in answer["failure"]["reason"] for sign in LOST_DEVICE_SIGNS):
            return 1  # nothing works here any more; the image is done elsewhere
        say(said, {"answer": answer})
    return 0
