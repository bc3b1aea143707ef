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

From the first second on, the working folder holds a submission.csv that is valid, with all that is done so far, and a
journal: started again, the same script goes on from there (`SavedRun`). SIGTERM, SIGINT and SIGHUP end the run with
what there is, with exit code 143, 130 or 129.

    KERNEL_MEMBERS      strict: a member that cannot be loaded ends the run; best_effort: it is left out (default:
                        best_effort in the scoring run, else strict)
    KERNEL_PATIENCE     seconds for which a mount that is away is waited for (default: 15)
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from kernel.ensemble.leaving_out import BEST_EFFORT, MEMBER_POLICIES, STRICT
from kernel.ensemble.quality_levels import quality_levels
from kernel.errors import InputError, RunError
from kernel.files import whole_file
from kernel.images.reading import list_images, read_image_shape
from kernel.log import LOG, guard_output, show_log
from kernel.manifest.reader import parse_manifest
from kernel.manifest.types import WEIGHT_SUFFIXES, Manifest
from kernel.mounts import find_competition, find_dataset, input_root, walk_paths
from kernel.patience import may_pass, patiently
from kernel.runtime.budget import TimeBudget
from kernel.runtime.ending import end_children, ending_by_signal
from kernel.runtime.environment import chosen_devices, chosen_dtype, startable_script, working_folder
from kernel.runtime.failures import FailedImage, attempt
from kernel.runtime.image_worker import SERVE_VARIABLE, serve_device
from kernel.runtime.journal import JOURNAL_FORMAT, sample_digest
from kernel.runtime.launch import started_workers, worker_setups
from kernel.runtime.results import RunResults
from kernel.runtime.saved_run import SavedRun
from kernel.runtime.scratch import remove_scratch, scratch_home
from kernel.runtime.segmenting import segment_all
from kernel.runtime.shards import segment_in_processes, this_shard
from kernel.runtime.summary import summarise
from kernel.runtime.threads import has_call_threads
from kernel.runtime.wheels import installed_wheels

#: Set by Kaggle in the run whose submission is scored.
SCORING_RUN_VARIABLE = "KAGGLE_IS_COMPETITION_RERUN"
#: What becomes of members that cannot be loaded: one of `MEMBER_POLICIES`.
MEMBERS_VARIABLE = "KERNEL_MEMBERS"


def main(manifest_json: str, wheels_lock_json: str) -> int:
    """Run the kernel; returns the exit code."""
    guard_output()
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
        RunError: the wheels cannot be installed, no worker can start, or submission.csv cannot be written.
    """
    start = time.monotonic()
    manifest = parse_manifest(manifest_json, "the embedded manifest")
    shard, machine = this_shard(), chosen_devices()
    devices = shard.own_device(machine)
    dtype = chosen_dtype(manifest.dtype, devices)
    policy = chosen_policy()
    working = working_folder()
    competition = manifest.kernel.competition
    paths = patiently(
        lambda: list_images(find_competition(input_root(), competition)),
        lambda error: may_pass(error) or is_away(lambda: find_competition(input_root(), competition)),
    )
    head = journal_head(manifest, str(dtype), [manifest_json, wheels_lock_json])
    saved = SavedRun(working, paths, shard.share(paths), head, shard.rank)
    deadline = start + (manifest.time_limit_hours - manifest.time_margin_hours) * 3600
    hard_deadline = deadline + manifest.time_margin_hours * 1800  # halfway from there to the time limit
    scratches: list[Path] = []

    def segment_share() -> None:
        todo = saved.todo
        LOG.info("%d images, %d members, on %s in %s", len(todo), len(manifest.members), ", ".join(devices), dtype)
        if not todo:
            return
        with contextlib.ExitStack() as stack:
            scratches.append(stack.enter_context(scratch_home(working)))
            packages = patiently(
                lambda: stack.enter_context(
                    installed_wheels(find_dataset(input_root(), manifest.wheels_dataset), wheels_lock_json)
                ),
                lambda error: may_pass(error) or is_away(lambda: find_dataset(input_root(), manifest.wheels_dataset)),
            )
            levels = quality_levels(manifest.members, manifest.ensemble)
            shapes = {path.stem: shape_of(path) for path in todo}
            sizes = {image_id: float(height * width) for image_id, (height, width) in shapes.items()}
            budget = TimeBudget(levels, sizes, deadline, len(devices))
            setups = worker_setups(devices, dtype, packages, shapes.values(), shard.sharing(machine), policy)
            with started_workers(manifest, levels, setups) as (workers, messages):
                segment_all(workers, messages, todo, budget, hard_deadline, saved)
                saved.write()  # before anything is put away

    def conclude(results: RunResults) -> int:
        saved.write()
        results = results.in_order(paths)
        summary = summarise(manifest, dtype, results, time.monotonic() - start)
        write_summary(working / "summary.json", summary)
        log_end(summary, results, working / "submission.csv")
        if not results.failed:
            saved.forget()
        return exit_code(results.failed)

    def end_by_signal(name: str) -> None:
        end_children()
        LOG.error("%s: ending with what there is; started again, the same script goes on from there", name)
        if shard.rank == 0 and saved.take_for_good():
            saved.add_others()
            saved.results.fail_rest(paths, f"{name} came first")
            conclude(saved.results)
        for scratch in scratches:
            remove_scratch(scratch)

    with ending_by_signal(end_by_signal):
        try:
            if shard.count == 1:
                segment_share()
                results: RunResults | None = saved.results
            else:
                results = segment_in_processes(shard, working, paths, hard_deadline, saved.results, segment_share)
                if results is None:  # the first process writes the results
                    return 0
                saved.take_over(results)
            return conclude(results)
        except Exception as error:
            failure = error if isinstance(error, InputError | RunError) else unforeseen(error)
            saved.add_others()
            saved.results.fail_rest(paths, f"the run ended before: {failure}")
            code = conclude(saved.results)
            if os.environ.get(SCORING_RUN_VARIABLE) and saved.results.summaries:
                LOG.error("%s", failure)
                return code
            raise failure from error
        finally:
            saved.close()


def chosen_policy() -> str:
    """What becomes of members that cannot be loaded, by KERNEL_MEMBERS; else by whether the run is scored.

    Raises:
        InputError: it is none of `MEMBER_POLICIES`.
    """
    policy = os.environ.get(MEMBERS_VARIABLE) or (BEST_EFFORT if os.environ.get(SCORING_RUN_VARIABLE) else STRICT)
    if policy not in MEMBER_POLICIES:
        raise InputError(f"{MEMBERS_VARIABLE} is {policy!r}; allowed are {', '.join(MEMBER_POLICIES)}")
    return policy


def journal_head(manifest: Manifest, dtype: str, embedded: Sequence[str]) -> dict[str, Any]:
    """What the results are made of: this script, what it was built with, the members' weights, the arithmetic."""
    script = startable_script()
    made_of = [script.read_text(encoding="utf-8") if script else "", *embedded]
    try:
        folders = [find_dataset(input_root(), dataset) for dataset in manifest.all_weight_datasets]
        files = [path for folder in folders for path in walk_paths(folder) if path.suffix in WEIGHT_SUFFIXES]
        weights = sorted(str(sample_digest(path)) for path in files)
    except (InputError, OSError):  # not mounted just now: not known
        weights = None
    return {
        "journal": JOURNAL_FORMAT,
        "script": hashlib.sha256("\0".join(made_of).encode("utf-8", "surrogatepass")).hexdigest(),
        "weights": None if weights is None else hashlib.sha256(" ".join(weights).encode("ascii")).hexdigest(),
        "dtype": dtype,
    }


def unforeseen(error: Exception) -> RunError:
    """An exception that nobody expected as one line for people: what it is, and where it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {frames[-1].name}, line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
    return RunError(f"{type(error).__name__}{place}: {error}: this is a fault of the program; what was done is kept")


def is_away(find: Callable[[], Path]) -> bool:
    """Whether a mounted folder is not there just now, or empty, as it is while nothing is mounted on it."""
    try:
        return not any(find().iterdir())
    except (InputError, OSError):
        return True


def shape_of(path: Path) -> tuple[int, int]:
    """The (H, W) of an image; (1, 1) if it cannot be read: it takes no time, and the worker says why."""
    shape = attempt(path.stem, lambda: read_image_shape(path))
    return (1, 1) if shape is None or isinstance(shape, FailedImage) else shape


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write summary.json; where that cannot be, the log says so, for the submission does not need it."""
    try:
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8", newline="\n")
    except OSError as error:
        LOG.error("cannot write %s (%s): the submission is there all the same", path, error.strerror)


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
    for member, reason in results.left_out.items():
        LOG.critical("member %s was left out, of all images or of some: %s", member, reason)


def exit_code(failed: Mapping[str, FailedImage]) -> int:
    """The exit code for the images that failed."""
    if failed and os.environ.get(SCORING_RUN_VARIABLE):
        LOG.warning("ending with exit code 0 all the same: a scoring run that fails has no score")
        return 0
    if not all(failure.wrong_input for failure in failed.values()):
        return 1
    return 2 if failed else 0
