"""The kernel: from mounted images, wheels and weights to submission.csv, offline.

It runs on Kaggle as one inlined script. Environment variables replace Kaggle's defaults:

    KERNEL_INPUT_ROOT   where inputs are mounted (default /kaggle/input)
    KERNEL_WORKING      where results go (default /kaggle/working)
    KERNEL_DEVICE       cpu, cuda, cuda:1, or several with commas: cuda:0,cuda:1 (default: all GPUs, or the CPU)
    KERNEL_DTYPE        of the networks: float32, float16 or bfloat16 (default: the manifest's)

The images are shared over the devices, a process for each, and done as well as the time limit allows: see
`TimeBudget` and `quality_levels`. Where the script is no file that can be started again (pasted into a notebook's cell,
say), the first device does them all.

Started by torchrun (RANK, WORLD_SIZE), each process does its share of the images on one device. The first one writes
the results of all, the same bytes as a single process, and its exit code is that of the run.

Exit codes: 0 all images done; 1 a failure; 2 wrong input. Where single images failed (1) or could not be read (2),
their rows are empty and all others are there. In Kaggle's scoring run a complete submission always ends with 0, since
anything else would discard it.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kernel.ensemble.quality_levels import quality_levels
from kernel.errors import InputError, RunError
from kernel.files import whole_file
from kernel.images.listing import SAMPLE_NAME, absent_ids
from kernel.images.reading import list_images
from kernel.log import LOG, show_log
from kernel.manifest.reader import parse_manifest
from kernel.mounts import dataset_folders, find_competition, input_root
from kernel.postprocess.submission import SubmissionWriter
from kernel.postprocess.submitted import is_valid_submission
from kernel.runtime.budget import TimeBudget
from kernel.runtime.environment import chosen_devices, chosen_dtype, working_folder
from kernel.runtime.failures import FailedImage
from kernel.runtime.image_costs import image_size
from kernel.runtime.image_sizes import image_shapes
from kernel.runtime.image_worker import SERVE_VARIABLE, serve_device
from kernel.runtime.launch import started_workers, worker_setups
from kernel.runtime.limits import limit_threads
from kernel.runtime.remedies import with_remedy
from kernel.runtime.results import RunResults, segment_all
from kernel.runtime.shards import segment_in_processes, this_shard
from kernel.runtime.summary import machine_facts, summarise
from kernel.runtime.threads import has_call_threads
from kernel.runtime.wheels import installed_wheels

#: Set by Kaggle in the run whose submission is scored.
SCORING_RUN_VARIABLE = "KAGGLE_IS_COMPETITION_RERUN"


def main(manifest_json: str, wheels_lock_json: str) -> int:
    """Run the kernel; returns the exit code."""
    limit_threads()
    if SERVE_VARIABLE in os.environ:
        end_at_once(serve_device(manifest_json))
    show_log(sys.stdout)
    try:
        code = run_kernel(manifest_json, wheels_lock_json)
    except InputError as error:
        LOG.error("%s", with_remedy(error))
        code = 2
    except RunError as error:
        LOG.error("%s", with_remedy(error))
        code = 1
    if has_call_threads():
        end_at_once(code)
    return code


def end_at_once(code: int) -> NoReturn:
    """End the process without waiting for a thread that was given up, or for a GPU that is lost.

    Python's own end could wait for ever, or abort with another exit code when such a thread returns from torch.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_kernel(manifest_json: str, wheels_lock_json: str) -> int:
    """The kernel from top to bottom: read, install, load, share the images, write. Returns the exit code.

    Raises:
        InputError: the manifest, the environment or a mount is wrong.
        RunError: the wheels cannot be installed, or a worker cannot start.
    """
    start = time.monotonic()
    manifest = parse_manifest(manifest_json, "the embedded manifest")
    LOG.info("machine: %s", json.dumps(machine_facts()))
    shard, machine = this_shard(), chosen_devices()
    devices = shard.own_device(machine)
    dtype = chosen_dtype(manifest.dtype, devices)
    root, working = input_root(), working_folder()
    test = find_competition(root, manifest.kernel.competition)
    paths = list_images(test, twins=True)
    absent = absent_ids(test.parent / SAMPLE_NAME, [path.stem for path in paths])
    writer = SubmissionWriter([*(path.stem for path in paths), *absent])
    deadline = start + (manifest.time_limit_hours - manifest.time_margin_hours) * 3600
    hard_deadline = deadline + manifest.time_margin_hours * 1800  # halfway from there to the time limit

    def segment_share(share: Sequence[Path]) -> RunResults:
        LOG.info("%d images, %d members, on %s in %s", len(share), len(manifest.members), ", ".join(devices), dtype)
        folders = dataset_folders(root, manifest.wheels_dataset).all
        with installed_wheels(folders, wheels_lock_json, working) as packages:
            levels = quality_levels(manifest.members, manifest.ensemble)
            shapes = image_shapes(share)
            sizes = {image_id: image_size(shape) for image_id, shape in shapes.items()}
            budget = TimeBudget(levels, sizes, deadline, len(devices))
            setups = worker_setups(devices, dtype, packages, shapes.values(), shard.sharing(machine))
            with started_workers(manifest, levels, setups) as (workers, messages):
                return segment_all(workers, messages, budget.giants_last(share), budget, hard_deadline)

    if shard.count == 1:
        results = segment_share(paths)
    else:
        results = segment_in_processes(shard, working, paths, hard_deadline, segment_share)
    if results is None:  # the first process writes the results
        return 0
    for image_id, (rles, shape) in results.rows.items():
        writer.add(image_id, rles, shape)
    for image_id in absent:
        writer.add(image_id, [], (0, 0))
    writer.write(working / "submission.csv")
    summary = summarise(manifest, dtype, results, time.monotonic() - start)
    with whole_file(working / "summary.json") as temporary:
        temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8", newline="\n")
    log_end(summary, results, working / "submission.csv")
    is_valid = is_valid_submission(
        working / "submission.csv", {each: shape for each, (_, shape) in results.rows.items()}
    )
    return exit_code(results.failed, is_valid)


def log_end(summary: Mapping[str, Any], results: RunResults, submission: Path) -> None:
    """Log what was done, and why images have empty rows."""
    peak = summary["peak_memory_gb"]
    LOG.info(
        "%d cells in %d images, %d images failed, %.0f s, peak memory %s; wrote %s",
        summary["cells"], len(results.rows), len(results.failed), summary["seconds"],
        "not known" if peak is None else f"{peak:.2f} GB", submission,
    )  # fmt: skip
    for image_id, failure in results.failed.items():
        LOG.error("image %s has an empty row: %s", image_id, failure.reason)


def exit_code(failed: Mapping[str, FailedImage], is_valid: bool = True) -> int:
    """The exit code for the images that failed, and a submission that is valid or not."""
    if (failed or not is_valid) and os.environ.get(SCORING_RUN_VARIABLE):
        LOG.warning("ending with exit code 0 all the same: a scoring run that fails has no score")
        return 0
    if not is_valid or not all(failure.wrong_input for failure in failed.values()):
        return 1
    return 2 if failed else 0
