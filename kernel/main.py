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
the results of all, on CPUs the same bytes as a single process, and its exit code is that of the run.

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
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from kernel.ensemble.leaving_out import BEST_EFFORT, MEMBER_POLICIES, STRICT
from kernel.ensemble.quality_levels import quality_levels
from kernel.errors import InputError, RunError, as_failure
from kernel.files import whole_file
from kernel.images.listing import SAMPLE_NAME, AskedIds, asked_ids
from kernel.images.reading import list_images
from kernel.log import LOG, guard_output, printable_name, show_log
from kernel.manifest.reader import parse_manifest
from kernel.manifest.types import WEIGHT_SUFFIXES, Manifest
from kernel.mounts import dataset_folders, find_competition, input_root, walk_paths
from kernel.patience import may_pass, patiently
from kernel.postprocess.submitted import is_valid_submission
from kernel.runtime.budget import TimeBudget
from kernel.runtime.ending import end_at_once, end_children, ending_by_signal, ending_late
from kernel.runtime.environment import chosen_devices, chosen_dtype, startable_script, working_folder
from kernel.runtime.failures import FailedImage
from kernel.runtime.image_costs import image_size
from kernel.runtime.image_sizes import image_shapes
from kernel.runtime.image_worker import SERVE_VARIABLE, serve_device
from kernel.runtime.journal import JOURNAL_FORMAT, sample_digest
from kernel.runtime.launch import started_workers, worker_setups
from kernel.runtime.limits import limit_threads
from kernel.runtime.remedies import with_remedy
from kernel.runtime.results import RunResults
from kernel.runtime.saved_run import SavedRun
from kernel.runtime.scratch import remove_scratch, scratch_home
from kernel.runtime.segmenting import segment_all
from kernel.runtime.shards import segment_in_processes, this_shard
from kernel.runtime.summary import MachineFacts, summarise
from kernel.runtime.threads import has_call_threads
from kernel.runtime.wheels import installed_wheels

#: Set by Kaggle in the run whose submission is scored.
SCORING_RUN_VARIABLE = "KAGGLE_IS_COMPETITION_RERUN"
#: What becomes of members that cannot be loaded: one of `MEMBER_POLICIES`.
MEMBERS_VARIABLE = "KERNEL_MEMBERS"
#: So long after the hard deadline a scoring run may still write what is done, before it is ended from outside.
LATE_SECONDS = 120.0
#: How long the end of a run waits for the names of the GPUs, where their driver has not told them by then.
FACTS_SECONDS = 5.0


def main(manifest_json: str, wheels_lock_json: str) -> int:
    """Run the kernel; returns the exit code."""
    guard_output()
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


def run_kernel(manifest_json: str, wheels_lock_json: str) -> int:
    """The kernel from top to bottom: read, install, load, share the images, write. Returns the exit code.

    Raises:
        InputError: the manifest, the environment or a mount is wrong.
        RunError: the wheels cannot be installed, no worker can start, or submission.csv cannot be written.
    """
    run = KernelRun(manifest_json, wheels_lock_json)
    with ending_by_signal(run.end_by_signal), run.ending_in_time():
        run.save_from_now_on()
        run.go_on()
        try:
            try:
                if run.shard.count == 1:
                    run.segment_share()
                elif not run.segment_in_processes():
                    return 0  # the first process writes the results
            except Exception as error:  # noqa: BLE001 (whatever it is, what was done before must not be lost)
                return run.conclude_after(as_failure(error))
            return run.conclude()
        except (InputError, RunError):
            raise
        except Exception as error:
            raise as_failure(error) from error
        finally:
            run.close()


class KernelRun:
    """One run: what it was asked, where it runs, and what is done so far.

    Raises:
        InputError: the manifest or the environment is wrong.
    """

    def __init__(self, manifest_json: str, wheels_lock_json: str):
        self.start = time.monotonic()
        self.manifest = parse_manifest(manifest_json, "the embedded manifest")
        self.embedded = (manifest_json, wheels_lock_json)
        self.shard, self.policy, self.working = this_shard(), chosen_policy(), working_folder()
        self.machine: list[str] = []  # its devices
        self.devices: list[str] = []  # those of them that this process uses
        self.dtype = torch.float32
        self.facts: MachineFacts | None = None
        self.deadline = self.start + (self.manifest.time_limit_hours - self.manifest.time_margin_hours) * 3600
        # Halfway from there to the time limit.
        self.hard_deadline = self.deadline + self.manifest.time_margin_hours * 1800
        self.paths: list[Path] = []
        self.asked = AskedIds()  # by sample_submission.csv
        self.saved: SavedRun | None = None
        self.scratch: Path | None = None

    def save_from_now_on(self) -> None:
        """Find the images; from here on the working folder holds a submission, whatever drivers and mounts do next.

        Raises:
            InputError: the images are not mounted, or the folder cannot be written.
        """

        def find() -> list[Path]:
            return [find_competition(input_root(), self.manifest.kernel.competition)]

        def look() -> None:
            (test,) = find()
            self.paths = list_images(test, twins=True)
            self.asked = asked_ids(test.parent / SAMPLE_NAME, [path.stem for path in self.paths])

        try:
            patiently(look, lambda error: may_pass(error) or is_away(find))
        except OSError as error:
            raise InputError(f"cannot read the mounted images: {error}") from error
        self.saved = SavedRun(self.working, self.paths, self.shard.share(self.paths), self.shard.rank, self.asked)

    def go_on(self) -> None:
        """Choose the devices, and take over what an earlier start has done; from here on there is a journal.

        Raises:
            InputError: a device is not there, the folder cannot be written, or another process does.
        """
        assert self.saved is not None
        self.machine = chosen_devices()
        self.devices = self.shard.own_device(self.machine)
        self.dtype = chosen_dtype(self.manifest.dtype, self.devices)
        self.saved.go_on(journal_head(self.manifest, str(self.dtype), self.embedded))
        self.facts = MachineFacts()

    def segment_share(self) -> None:
        """Do this process's images, as far as they are not done yet.

        In a scoring run, what GPUs leave without a result is then done on the CPU: all of it where none can be used.

        Raises:
            InputError, RunError: the wheels or the members are not there or wrong, or no worker can start.
        """
        assert self.saved is not None
        share, todo = self.shard.share(self.paths), self.saved.todo
        names = ", ".join(self.devices)
        LOG.info("%d images, %d members, on %s in %s", len(todo), len(self.manifest.members), names, self.dtype)
        if not todo:
            return
        with contextlib.ExitStack() as stack:
            self.scratch = stack.enter_context(scratch_home(self.working))
            packages = self.install(stack)
            levels = quality_levels(self.manifest.members, self.manifest.ensemble)
            shapes = image_shapes(share)
            saved = self.saved

            def segment_on(devices: Sequence[str], paths: Sequence[Path], shared: int) -> None:
                dtype = chosen_dtype(self.manifest.dtype, devices)
                sizes = {path.stem: image_size(shapes[path.stem]) for path in paths}
                budget = TimeBudget(levels, sizes, self.deadline, len(devices))
                # The memory plan is that of all images, however few are left.
                setups = worker_setups(devices, dtype, packages, shapes.values(), shared, self.policy)
                with started_workers(self.manifest, levels, setups, is_scoring_run()) as (workers, messages):
                    ordered = budget.giants_last(paths)
                    segment_all(workers, messages, ordered, budget, self.hard_deadline, saved, self.manifest)
                    saved.write()  # before anything is put away

            has_cpu_left = is_scoring_run() and "cpu" not in self.devices
            try:
                segment_on(self.devices, todo, self.shard.sharing(self.machine))
            except (InputError, RunError) as error:
                if not has_cpu_left:
                    raise
                LOG.critical("NO GPU CAN BE USED (%s)", error)
            if has_cpu_left and saved.unserved and time.monotonic() < self.deadline:
                LOG.critical("%d IMAGES HAVE NO RESULT BY A GPU: GOING ON ON THE CPU", len(saved.unserved))
                segment_on(["cpu"], saved.unserved, self.shard.local_count)

    def install(self, stack: contextlib.ExitStack) -> Path:
        """Install the wheels until `stack` is closed; returns their folder.

        Raises:
            InputError, RunError: as `installed_wheels`, or they are not mounted.
        """

        def find() -> Sequence[Path]:
            return dataset_folders(input_root(), self.manifest.wheels_dataset).all

        return patiently(
            lambda: stack.enter_context(installed_wheels(find(), self.embedded[1], self.working)),
            lambda error: may_pass(error) or is_away(find),
        )

    def segment_in_processes(self) -> bool:
        """Do this process's share, and in the first one wait for the others'; whether this is the first one.

        Raises:
            InputError, RunError: as `segment_share`, in the first process.
        """
        assert self.saved is not None
        results = segment_in_processes(
            self.shard, self.working, self.paths, self.hard_deadline, self.saved.results, self.segment_share,
            self.saved.save_now_and_then,
        )  # fmt: skip
        if results is not None:
            self.saved.replace_results(results)
            self.saved.fail_rest("its process did not end in time")
        return results is not None

    def conclude(self, patience: float = FACTS_SECONDS) -> int:
        """Write submission.csv and summary.json of what is done; returns the exit code.

        Args:
            patience: how many seconds the driver may still take to name the GPUs.

        Raises:
            RunError: submission.csv cannot be written; in a scoring run, only where there is no earlier one.
        """
        assert self.saved is not None and self.facts is not None
        failure: RunError | None = None
        try:
            self.saved.write()
        except RunError as error:
            failure = error
        results = self.saved.results.in_order(self.paths)
        facts = self.facts.told(patience)
        summary = summarise(self.manifest, results, time.monotonic() - self.start, facts, self.asked)
        write_summary(self.working / "summary.json", summary)
        log_end(summary, results, self.working / "submission.csv")
        if not results.failed and failure is None:
            self.saved.forget()
        shapes = self.asked.shapes({image_id: shape for image_id, (_, shape) in results.rows.items()})
        is_valid = is_valid_submission(self.working / "submission.csv", shapes)
        if failure is not None and not (is_valid and is_scoring_run()):
            raise failure
        if failure is not None:
            LOG.critical("%s: the submission lacks cells", failure)
        return exit_code(results.failed, is_valid)

    def conclude_after(self, failure: InputError | RunError) -> int:
        """Write what is done before something ended the run; returns the exit code where that is not an error.

        Raises:
            InputError, RunError: `failure`, but where every image has a result, or a scoring run has one at all.
        """
        assert self.saved is not None
        self.saved.fail_rest(f"the run ended before: {failure}")
        code = self.conclude()
        results = self.saved.results
        if results.failed and not (is_scoring_run() and results.summaries):
            raise failure
        LOG.error("%s", with_remedy(failure))
        return code

    def close(self) -> None:
        """Let other runs have the working folder."""
        if self.saved is not None:
            self.saved.close()

    @contextlib.contextmanager
    def ending_in_time(self) -> Iterator[None]:
        """In the block, let a scoring run end before the time limit, with what there is, even where it hangs."""

        def end() -> int:
            self.end_by_signal("the time limit")
            return exit_code(self.saved.results.failed if self.saved else {}, is_valid=False)

        if is_scoring_run():
            with ending_late(end, self.hard_deadline + LATE_SECONDS - time.monotonic()):
                yield
        else:
            yield

    def end_by_signal(self, name: str) -> None:
        """Write what is done, and leave nothing behind; the process ends afterwards."""
        LOG.error("%s: ending with what there is; started again, the same script goes on from there", name)
        end_children()
        if self.saved is not None and self.facts is not None and self.shard.rank == 0 and self.saved.take_for_good():
            self.saved.fail_rest(f"{name} came first")
            self.conclude(patience=0.0)
        end_children()  # one that died may have been started again
        if self.scratch is not None:
            remove_scratch(self.scratch)


def is_scoring_run() -> bool:
    """Whether Kaggle scores what this run writes."""
    return bool(os.environ.get(SCORING_RUN_VARIABLE))


def chosen_policy() -> str:
    """What becomes of members that cannot be loaded, by KERNEL_MEMBERS; else by whether the run is scored.

    Raises:
        InputError: it is none of `MEMBER_POLICIES`.
    """
    policy = os.environ.get(MEMBERS_VARIABLE) or (BEST_EFFORT if is_scoring_run() else STRICT)
    if policy not in MEMBER_POLICIES:
        raise InputError(f"{MEMBERS_VARIABLE} is {policy!r}; allowed are {', '.join(MEMBER_POLICIES)}")
    return policy


def journal_head(manifest: Manifest, dtype: str, embedded: Sequence[str]) -> dict[str, Any]:
    """What the results are made of: this script, what it was built with, the members' weights, the arithmetic."""
    script = startable_script()
    made_of = [script.read_text(encoding="utf-8") if script else "", *embedded]
    try:
        datasets = manifest.all_weight_datasets
        folders = [folder for dataset in datasets for folder in dataset_folders(input_root(), dataset).all]
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


def is_away(find: Callable[[], Sequence[Path]]) -> bool:
    """Whether mounted folders are not there just now, or empty, as they are while nothing is mounted on them."""
    try:
        return not any(path for folder in find() for path in folder.iterdir())
    except (InputError, OSError):
        return True


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
        LOG.error("image %s has an empty row: %s", printable_name(image_id), failure.reason)
    for member, reason in results.left_out.items():
        LOG.critical("member %s was left out, of all images or of some: %s", member, reason)


def exit_code(failed: Mapping[str, FailedImage], is_valid: bool = True) -> int:
    """The exit code for the images that failed, and a submission that is valid or not."""
    if (failed or not is_valid) and is_scoring_run():
        LOG.warning("ending with exit code 0 all the same: a scoring run that fails has no score")
        return 0
    if not is_valid or not all(failure.wrong_input for failure in failed.values()):
        return 1
    return 2 if failed else 0
