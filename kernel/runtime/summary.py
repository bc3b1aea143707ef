"""The run in figures: summary.json."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from kernel.images.listing import AskedIds
from kernel.log import LOG
from kernel.manifest.types import Manifest
from kernel.runtime.memory import peak_host_memory
from kernel.runtime.results import RunResults


def summarise(
    manifest: Manifest, results: RunResults, seconds: float, machine: Mapping[str, Any], asked: AskedIds
) -> dict[str, Any]:
    """The object that summary.json holds.

    Args:
        manifest: the run's.
        results: of its images, by their own ids.
        seconds: the duration of the whole run.
        machine: its `MachineFacts`.
        asked: how the ids in submission.csv differ from the images' own.
    """
    images, failed = results.summaries, results.failed
    stages: dict[str, float] = {}
    for image in images.values():
        for stage, spent in image["seconds"].items():
            stages[stage] = round(stages.get(stage, 0) + spent, 3)
    types = [image["cell_type"] for image in images.values()]
    qualities = [image["quality"] for image in images.values()]
    return {
        "kernel": manifest.kernel.id,
        "members": [member.name for member in manifest.members if member.name not in results.left_out],
        "members_left_out": results.left_out,
        # What was computed in, which a device without the planned dtype, or an image's overflow, makes another.
        "dtype": ", ".join(dict.fromkeys(image["dtype"] for image in images.values())) or None,
        **machine,
        "seconds": round(seconds, 1),
        "stage_seconds": stages,
        "cells": sum(image["cells"] for image in images.values()),
        "images_by_quality": {name: qualities.count(name) for name in dict.fromkeys(qualities)},
        "images_by_type": {cell_type: types.count(cell_type) for cell_type in sorted(set(types))},
        "images": dict(images),
        "failed": {image_id: failure.reason for image_id, failure in failed.items()},
        "wrong_images": [image_id for image_id, failure in failed.items() if failure.wrong_input],
        "spelled_ids": dict(asked.spelled),
        "absent_ids": list(asked.absent),
        "devices": results.peaks,
        "peak_memory_gb": largest_known([peak_host_memory(), *(host for host, _ in results.peaks.values())]),
        "peak_gpu_memory_gb": largest_known(gpu for _, gpu in results.peaks.values()),
        "time_forecasts": results.forecasts,
    }


def largest_known(figures: Iterable[float | None]) -> float | None:
    """The largest of the figures that are known; None where none is."""
    return max((figure for figure in figures if figure is not None), default=None)


class MachineFacts:
    """What the run stands on: Kaggle's image (None elsewhere), Python, torch, its CUDA (None: none), the GPUs' names.

    The names are asked of the driver, since torch would take memory of each GPU to say them. It may take its time, or
    never answer: a thread waits for it, and logs what there is.
    """

    def __init__(self) -> None:
        self._gpus: list[str] | None = None  # not known yet
        self._thread = threading.Thread(target=self._ask, name="asks for the GPUs", daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        self._gpus = gpu_names()
        LOG.info("machine: %s", json.dumps(self.told()))

    def told(self, seconds: float = 0.0) -> dict[str, Any]:
        """The facts, for summary.json; `gpus` is None where the driver has not answered after so many more seconds."""
        if threading.current_thread() is not self._thread:
            self._thread.join(seconds)
        return {
            "docker_image": os.environ.get("KAGGLE_DOCKER_IMAGE"),
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "gpus": self._gpus,
        }


def gpu_names() -> list[str]:
    """The names of the GPUs; empty where the driver's tool is missing or fails."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
