"""Runs of the kernel on Kaggle: waited for, their ends explained, their results checked."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundle.client import KaggleClient, Submission
from kernel.errors import InputError, RunError
from kernel.runtime.remedies import REMEDY_MARK, remedy_for

#: States of a run that is over.
DONE_STATES = ("complete", "error", "cancel_acknowledged", "new_script")
#: How much of a failed run's log is looked at, and shown.
LAST_LINES = 15
#: What a summary says of the machine, and what to call it.
MACHINE_KEYS = {"docker_image": "image", "python": "Python", "torch": "torch", "cuda": "CUDA", "gpus": "GPUs"}


def wait_for_run(
    client: KaggleClient, kernel: str, version: int, patience: float, poll: float, progress: Callable[[str], None]
) -> tuple[str, str]:
    """Wait until a version's run is over; returns its state and Kaggle's message.

    Raises:
        RunError: it is not over within `patience` seconds.
    """
    begin = time.monotonic()
    while True:
        state, message = client.run_state(kernel, version)
        waited = time.monotonic() - begin
        if state in DONE_STATES:
            return state, message
        if waited >= patience:
            raise RunError(f"version {version} of {kernel} is still {state} after {waited:.0f} s: ask again later")
        progress(
            f"{kernel} version {version}: {state}, {waited / 60:.1f} min{last_line(client, kernel, version, state)}"
        )
        time.sleep(poll)


def last_line(client: KaggleClient, kernel: str, version: int, state: str) -> str:
    """The last line of a running version's log, for a progress line; empty where Kaggle does not show it yet."""
    if state != "running":
        return ""
    try:
        lines = client.log_lines(kernel, version)
    except RunError:
        return ""  # a log that cannot be shown ends no waiting
    return f": {lines[-1][-100:].strip()}" if lines else ""


def explain_failure(message: str, log: Sequence[str]) -> str:
    """The one thing to do about a failed run: what the kernel itself says last, or what the signs say."""
    own = [line.partition(REMEDY_MARK)[2] for line in log if line.startswith(REMEDY_MARK)]
    if own:
        return own[-1]
    known = (remedy_for(text) for text in (message, *reversed(log[-LAST_LINES:])))
    return next((remedy for remedy in known if remedy), "read the log's end above; if it shows no cause, push again")


def wait_for_submission(
    client: KaggleClient, ref: int, patience: float, poll: float, progress: Callable[[str], None]
) -> Submission:
    """Wait until a submission is scored or refused.

    Raises:
        RunError: neither within `patience` seconds.
    """
    begin = time.monotonic()
    while True:
        submission = client.submission(ref)
        waited = time.monotonic() - begin
        if submission.state != "pending":
            return submission
        if waited >= patience:
            raise RunError(
                f"submission {ref} is still not scored after {waited:.0f} s: ask again by `python build_kernel.py "
                f"submit --ref {ref} --wait`"
            )
        progress(f"submission {ref}: {submission.state}, {waited / 60:.1f} min")
        time.sleep(poll)


# Results


def read_run_summary(path: Path) -> dict[str, Any]:
    """A run's summary.json.

    Raises:
        RunError: there is none, or it is not JSON.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"the run left no {path.name}: see its log by `python build_kernel.py logs`") from error
    except ValueError as error:
        raise RunError(f"the run's {path.name} is damaged ({error}): fetch it again") from error
    if not isinstance(summary, dict):
        raise RunError(f"the run's {path.name} holds no object: fetch it again")
    return summary


def check_submission(path: Path, summary: Mapping[str, Any], images: Path | None) -> tuple[int, int]:
    """Check a run's submission.csv; returns how many images and cells it has.

    With a folder of the images, all of it is checked; without, its form, and that it has the summary's images.

    Raises:
        RunError: Kaggle would refuse it, or score it as nothing.
        InputError: the folder of images is wrong.
    """
    from kernel.images.reading import list_images, read_image_shape
    from kernel.postprocess.submitted import read_submission, validate_submission

    if not path.is_file():
        raise RunError("the run left no submission.csv: see its log by `python build_kernel.py logs`")
    shapes = {} if images is None else {image.stem: read_image_shape(image) for image in list_images(images)}
    try:
        found = read_submission(path) if images is None else validate_submission(path, shapes)
    except InputError as error:
        raise RunError(f"the run's submission is not valid: {error}") from error
    expected = {*summary.get("images", {}), *summary.get("failed", {})}
    # Ids of sample_submission.csv without a file have an empty row, and no place in the summary.
    missing = expected - set(found)
    others = {image_id for image_id, texts in found.items() if texts and image_id not in expected}
    if expected and (missing or others):
        odd = sorted(missing | others)[:5]
        raise RunError(f"the run's submission and its summary differ on the images {', '.join(odd)}: do not submit it")
    return len(found), sum(len(texts) for texts in found.values())


def summary_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """A run's summary as rows of a table: what, and its value."""
    images, failed = summary.get("images", {}), summary.get("failed", {})
    rows = [
        ["members", str(len(summary.get("members", [])))],
        ["images", f"{len(images) + len(failed)}, {len(failed)} of them failed"],
        ["cells", str(summary.get("cells", "-"))],
        ["seconds", str(summary.get("seconds", "-"))],
        ["peak memory, GB", f"{summary.get('peak_memory_gb')}, on the GPU {summary.get('peak_gpu_memory_gb')}"],
        ["dtype", str(summary.get("dtype", "-"))],
    ]
    for key, name in (("images_by_type", "images by type"), ("images_by_quality", "images by quality")):
        counts = summary.get(key) or {}
        rows.append([name, ", ".join(f"{what} {count}" for what, count in counts.items()) or "-"])
    rows += [[name, shown(summary.get(key))] for key, name in MACHINE_KEYS.items()]
    rows += [[f"failed: {image_id}", str(reason)] for image_id, reason in list(failed.items())[:10]]
    return rows


def shown(value: Any) -> str:
    """A value of the machine's for people."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value)


def machine_changes(summary: Mapping[str, Any], before: Mapping[str, Any], where: str) -> list[str]:
    """How a run's machine differs from one that was tried, a line for each thing that both tell."""
    return [
        f"{name} is {shown(summary[key])}, {where} it was {shown(before[key])}"
        for key, name in MACHINE_KEYS.items()
        if summary.get(key) is not None and before.get(key) is not None and summary[key] != before[key]
    ]
