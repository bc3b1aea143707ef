"""The kernel: from mounted images, wheels and weights to submission.csv, offline.

It runs on Kaggle as one inlined script. The environment may say otherwise than Kaggle's defaults:

    KERNEL_INPUT_ROOT   where inputs are mounted (default /kaggle/input)
    KERNEL_WORKING      where results go (default /kaggle/working)
    KERNEL_DEVICE       cpu, cuda, cuda:1 ... (default: cuda where there is one)
    KERNEL_DTYPE        of the encoders: float32 (default), float16 or bfloat16

Exit codes: 0 all images done; 1 a failure; 2 wrong input. Where single images failed or could not be read, their rows
are empty, all others are there, and the code says which of the two it was. In Kaggle's scoring run a complete
submission always ends with 0, since anything else would discard it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kernel.attempt import IMAGE_ERRORS, FailedImage, attempt_image, failed_image
from kernel.data.images import largest_image_shape, list_images
from kernel.ensemble.ensemble import Ensemble
from kernel.errors import InputError, RunError
from kernel.inputs import find_competition, find_dataset, input_root
from kernel.manifest import Manifest, parse_manifest
from kernel.postprocess.submission import SubmissionWriter
from kernel.runtime.files import whole_file
from kernel.runtime.log import LOG, show_log
from kernel.runtime.memory import apply_plan, free_memory, plan_memory
from kernel.runtime.wheels import install_wheels, parse_locked_wheels, verify_wheels
from kernel.segment import Segmentation, load_ensemble, mounted_weights

#: Set by Kaggle in the run whose submission is scored.
SCORING_RUN_VARIABLE = "KAGGLE_IS_COMPETITION_RERUN"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def main(manifest_json: str, wheels_lock_json: str) -> int:
    """Run the kernel; returns the exit code."""
    show_log(sys.stdout)
    try:
        return run_kernel(manifest_json, wheels_lock_json)
    except InputError as error:
        LOG.error("%s", error)
        return 2
    except RunError as error:
        LOG.error("%s", error)
        return 1


def run_kernel(manifest_json: str, wheels_lock_json: str) -> int:
    """The kernel from top to bottom."""
    start = time.monotonic()
    manifest = parse_manifest(manifest_json, "the embedded manifest")
    device, dtype = chosen_device(), chosen_dtype()
    root, working = input_root(), working_folder()

    image_paths = list_images(find_competition(root, manifest.kernel.competition))
    writer = SubmissionWriter(path.stem for path in image_paths)
    LOG.info("%d images, %d members, on %s in %s", len(image_paths), len(manifest.members), device, dtype)

    lock = parse_locked_wheels(json.loads(wheels_lock_json), "the embedded wheels lock")
    wheels = verify_wheels(find_dataset(root, manifest.wheels_dataset), lock)
    with tempfile.TemporaryDirectory(prefix="kernel-wheels-") as packages:
        install_wheels(wheels, Path(packages))
        ensemble = load_ensemble(manifest, mounted_weights(manifest, root), device, dtype)
        apply_plan(ensemble, plan_memory(ensemble, largest_image_shape(image_paths), free_memory(device)))

        deadline = start + (manifest.time_limit_hours - manifest.time_margin_hours) * 3600
        done, failed = segment_all(ensemble, image_paths, writer, deadline)

    writer.write(working / "submission.csv")
    seconds = time.monotonic() - start
    summary = summarise(manifest, device, dtype, done, failed, seconds)
    with whole_file(working / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    LOG.info(
        "%d cells in %d images, %d images failed, %.0f s, peak memory %.2f GB; wrote %s",
        summary["cells"], len(image_paths), len(failed), seconds, summary["peak_memory_gb"],
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


def segment_all(
    ensemble: Ensemble, image_paths: list[Path], writer: SubmissionWriter, deadline: float
) -> tuple[dict[str, dict[str, Any]], dict[str, FailedImage]]:
    """Segment image after image, keeping only rows of text.

    Returns what the summary says of each image done, and why each failed one failed: it cannot be read, a library
    below gave up on it, or its turn came after `deadline` (of `time.monotonic`). Failed images get their empty row.
    """
    done: dict[str, dict[str, Any]] = {}
    failed: dict[str, FailedImage] = {}
    for path in tqdm(image_paths, unit="image", mininterval=10):
        image_id = path.stem
        if time.monotonic() > deadline:
            outcome = FailedImage("the time limit came first", wrong_input=False)
        else:
            outcome = segment_into(writer, ensemble, path)
        if isinstance(outcome, FailedImage):
            failed[image_id] = outcome
            writer.add(image_id, [], (0, 0))
        else:
            done[image_id] = describe_image(outcome)
            LOG.info("image %s: %s", image_id, json.dumps(done[image_id]))
    return done, failed


def segment_into(writer: SubmissionWriter, ensemble: Ensemble, path: Path) -> Segmentation | FailedImage:
    """Segment an image and add its rows; or say why not, having added none."""
    outcome = attempt_image(ensemble, path)
    if isinstance(outcome, FailedImage):
        return outcome
    _, result = outcome
    try:
        writer.add(path.stem, result.masks.rles(), result.prediction.image_shape)
    except IMAGE_ERRORS as error:
        return failed_image(path.stem, error)
    return result


def describe_image(result: Segmentation) -> dict[str, Any]:
    """What the summary says of one image."""
    prediction = result.prediction
    return {
        "cells": len(result.masks),
        "cell_type": result.masks.cell_type or prediction.cell_type,
        "boxes": len(prediction.scores),
        "level_counts": list(prediction.level_counts),
        "members": list(prediction.members),
        "seconds": {stage: round(seconds, 3) for stage, seconds in prediction.seconds.items()},
    }


def summarise(
    manifest: Manifest,
    device: torch.device,
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
    return {
        "kernel": manifest.kernel.id,
        "members": [member.name for member in manifest.members],
        "device": str(device),
        "dtype": str(dtype).removeprefix("torch."),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "stage_seconds": stages,
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
        "peak_gpu_memory_gb": round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
        if device.type == "cuda"
        else None,
        "cells": sum(image["cells"] for image in done.values()),
        "images_by_type": {cell_type: types.count(cell_type) for cell_type in sorted(set(types))},
        "images": dict(done),
        "failed": {image_id: failure.reason for image_id, failure in failed.items()},
    }


def working_folder() -> Path:
    """Where results go."""
    working = Path(os.environ.get("KERNEL_WORKING", "/kaggle/working"))
    if not working.is_dir():
        raise InputError(f"no folder {working}: run this on Kaggle, or set KERNEL_WORKING to an existing folder")
    return working


def chosen_device() -> torch.device:
    """KERNEL_DEVICE, or the first GPU, or the CPU. Raises InputError for a device that is not there."""
    name = os.environ.get("KERNEL_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"KERNEL_DEVICE is {name!r}; allowed are cpu, cuda and cuda:N") from error
    count = torch.cuda.device_count()
    if device.type not in ("cpu", "cuda") or (device.type == "cuda" and (device.index or 0) >= count):
        raise InputError(f"KERNEL_DEVICE is {name!r}, and this machine has the CPU and {count} GPU(s)")
    return device


def chosen_dtype() -> torch.dtype:
    """KERNEL_DTYPE, or float32."""
    name = os.environ.get("KERNEL_DTYPE", "float32")
    if name not in DTYPES:
        raise InputError(f"KERNEL_DTYPE is {name!r}; allowed are {', '.join(DTYPES)}")
    return DTYPES[name]
