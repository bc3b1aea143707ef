"""Runs of the kernel on Kaggle: waited for, their ends explained, their results checked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bundle.client import KaggleClient, Submission
from bundle.client_errors import NotThereError, one_line
from bundle.waiting import LONGEST_UNSEEN, Waiting
from kernel.errors import InputError, RunError
from kernel.files import file_sha256, written_file
from kernel.folders import is_of_the_system
from kernel.runtime.remedies import REMEDY_MARK, remedy_for
from kernel.text import parse_json

#: States of a run that is over.
DONE_STATES = ("complete", "error", "cancel_acknowledged", "new_script")
#: Of a run that was pushed from here a short while ago.
NOT_SHOWN = "not shown yet"
#: In a folder of results: what `fetch` has found of them.
VERDICT_NAME = "verdict.json"
#: Beside the folders of results: which versions were submitted.
SUBMISSIONS_NAME = "submissions.json"
#: What some of a summary's values are.
SUMMARY_FORMS = {
    "members": list, "images": dict, "failed": dict, "images_by_type": dict, "images_by_quality": dict,
    "spelled_ids": dict, "absent_ids": list,
}  # fmt: skip
#: How much of a failed run's log is looked at, and shown.
LAST_LINES = 15
#: What a summary says of the machine, and what to call it.
MACHINE_KEYS = {"docker_image": "image", "python": "Python", "torch": "torch", "cuda": "CUDA", "gpus": "GPUs"}


def run_state(client: KaggleClient, kernel: str, version: int, pushed: bool) -> tuple[str, str]:
    """The state of a version's run, and Kaggle's message; NOT_SHOWN where it was `pushed` from here and is not shown.

    Raises:
        NotThereError: Kaggle shows no such version, which was not pushed.
        RunError: Kaggle refuses the question, or fails.
    """
    try:
        return client.run_state(kernel, version)
    except NotThereError:
        if not pushed:
            raise
        return NOT_SHOWN, ""


def wait_for_run(client: KaggleClient, kernel: str, version: int, pushed: bool, waiting: Waiting) -> tuple[str, str]:
    """Wait until a version's run is over; returns its state and Kaggle's message.

    Args:
        client: asks Kaggle.
        kernel: owner/slug.
        version: its number.
        pushed: it was pushed from here, and may not be shown for a while.
        waiting: how to wait.

    Raises:
        NotThereError: Kaggle shows no such version, which was not pushed.
        RunError: as `Waiting.until`.
    """
    unseen = 0

    def ask() -> tuple[str, str]:
        nonlocal unseen
        answer = run_state(client, kernel, version, pushed)
        unseen += answer[0] == NOT_SHOWN
        if unseen == LONGEST_UNSEEN:
            raise RunError(f"version {version} of {kernel} was pushed, and Kaggle does not show it: {waiting.again}")
        return answer

    return waiting.until(
        f"{kernel} version {version}",
        ask,
        lambda answer: None if answer[0] in DONE_STATES else answer[0],
        lambda answer: last_line(client, kernel, version, answer[0]),
    )


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


def wait_for_submission(client: KaggleClient, ref: int, new: bool, waiting: Waiting) -> Submission:
    """Wait until a submission is scored or refused.

    Args:
        client: asks Kaggle.
        ref: the submission's number.
        new: it was just made, and may not be shown for a while.
        waiting: how to wait.

    Raises:
        InputError: Kaggle shows no such submission, which is not new.
        RunError: as `Waiting.until`.
    """
    unseen = 0

    def state_of(submission: Submission) -> str | None:
        nonlocal unseen
        if submission.state != "absent":
            return "pending" if submission.state == "pending" else None
        unseen += 1
        if not new:
            raise absent(submission)
        if unseen == LONGEST_UNSEEN:
            raise RunError(f"submission {ref} was made, and Kaggle does not show it: {waiting.again}")
        return "not shown yet"

    return waiting.until(
        f"submission {ref}",
        lambda: client.submission(ref),
        state_of,
        late="{what} is still not scored after {waited:.0f} s ({now})",
    )


def absent(submission: Submission) -> InputError:
    """The error for a submission that Kaggle does not show."""
    return InputError(
        f"Kaggle shows you no submission {submission.ref}: your own are listed, with their numbers, by `kaggle "
        "competitions submissions COMPETITION`"
    )


# Results


@dataclass(frozen=True)
class Verdict:
    """What `fetch` has found of a version's results."""

    kernel: str
    version: int
    problem: str | None  # why they are not to be submitted
    files: Mapping[str, str] = field(default_factory=dict)  # as they came, by `result_sums`; empty in earlier verdicts
    checked: bool = True  # False: they were put there, and not looked at to the end
    sha256: str | None = None  # of the version's script, as it was pushed; None: not from here, or in earlier verdicts


def write_verdict(verdict: Verdict, folder: Path) -> None:
    """Note a verdict beside the results that it is of."""
    with written_file(folder / VERDICT_NAME) as temporary:
        temporary.write_text(json.dumps(asdict(verdict), indent=2) + "\n", encoding="utf-8", newline="\n")


def read_verdict(folder: Path) -> Verdict | None:
    """The verdict in a folder of results; None where there is none, or it is damaged."""
    try:
        verdict = Verdict(**parse_json((folder / VERDICT_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return verdict if isinstance(verdict.kernel, str) and isinstance(verdict.files, dict) else None


def result_sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder of results, by its path in there; empty for links, which no results hold.

    The verdict is left out, and what a system puts into any folder.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))}
    return {
        name: file_sha256(path) if path.is_file() and not path.is_symlink() else ""
        for name, path in paths.items()
        if name != VERDICT_NAME and not is_of_the_system(path.name) and (path.is_symlink() or not path.is_dir())
    }


def refuse_to_lose_own(folder: Path, known: Sequence[Mapping[str, str]]) -> None:
    """Refuse to replace a folder of results in which somebody has put files, or changed some.

    Args:
        folder: what is to be replaced; it may be missing.
        known: the sums of files that are no loss: those that came from Kaggle, by `result_sums`.

    Raises:
        InputError: it holds others.
    """
    lost = [name for name, total in result_sums(folder).items() if total not in [sums.get(name) for sums in known]]
    if lost:
        raise InputError(
            f"{folder} would be replaced as a whole, and holds what did not come from Kaggle as it is there now "
            f"({', '.join(lost[:5])}): move that to another folder, and run the same again"
        )


@dataclass(frozen=True)
class Submitted:
    """A version that was sent to the competition."""

    kernel: str
    version: int
    ref: int | None  # the submission's number; None: it is not known whether it arrived


def read_submitted(folder: Path) -> list[Submitted]:
    """What was submitted from here, by the record in the folder that holds the folders of results.

    Raises:
        RunError: the record is damaged.
    """
    path = folder / SUBMISSIONS_NAME
    if not path.is_file():
        return []
    try:
        return [Submitted(**entry) for entry in parse_json(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise RunError(
            f"{path}, which says what was submitted, cannot be read ({error}): look by `kaggle competitions "
            "submissions`, then delete it"
        ) from error


def write_submitted(submitted: Sequence[Submitted], folder: Path) -> None:
    """Write the record that `read_submitted` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with written_file(folder / SUBMISSIONS_NAME) as temporary:
        text = json.dumps([asdict(entry) for entry in submitted], indent=2)
        temporary.write_text(text + "\n", encoding="utf-8", newline="\n")


def read_run_summary(path: Path) -> dict[str, Any]:
    """A run's summary.json.

    Raises:
        RunError: there is none, or it is none of ours.
    """
    try:
        summary = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"the run left no {path.name}: see its log by `python build_kernel.py logs`") from error
    except ValueError as error:
        raise RunError(f"the run's {path.name} is damaged ({error}): fetch it again") from error
    if not isinstance(summary, dict):
        raise RunError(f"the run's {path.name} holds no object: fetch it again")
    for key, form in SUMMARY_FORMS.items():
        if not isinstance(summary.get(key, form()), form):
            raise RunError(
                f"the run's {path.name} is none of ours ({key} is {one_line(repr(summary[key]), 60)}): see its log by "
                "`python build_kernel.py logs`, and push again"
            )
    return summary


def check_submission(path: Path, summary: Mapping[str, Any], images: Path | None) -> tuple[int, int]:
    """Check a run's submission.csv; returns how many images and cells it has.

    With a folder of the images, all of it is checked; without, its form, and that it has the summary's images.

    Raises:
        RunError: Kaggle would refuse it, or score it as nothing.
        InputError: the folder of images is wrong.
    """
    from kernel.images.listing import AskedIds
    from kernel.images.reading import list_images, read_image_shape
    from kernel.postprocess.submitted import read_submission, validate_submission

    if not path.is_file():
        raise RunError("the run left no submission.csv: see its log by `python build_kernel.py logs`")
    asked = AskedIds(tuple(summary.get("absent_ids", [])), summary.get("spelled_ids", {}))
    shapes = {} if images is None else {image.stem: read_image_shape(image) for image in list_images(images)}
    try:
        found = read_submission(path) if images is None else validate_submission(path, asked.shapes(shapes))
    except InputError as error:
        raise RunError(f"the run's submission is not valid: {error}") from error
    done = dict.fromkeys([*summary.get("images", {}), *summary.get("failed", {})])
    expected = set(asked.shapes(done)) if done else set[str]()
    # Ids of sample_submission.csv without a file have an empty row, and no place in earlier scripts' summaries.
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
        ["cells", shown(summary.get("cells"))],
        ["seconds", shown(summary.get("seconds"))],
        [
            "peak memory, GB",
            f"{shown(summary.get('peak_memory_gb'))}, on the GPU {shown(summary.get('peak_gpu_memory_gb'))}",
        ],
        ["dtype", shown(summary.get("dtype"))],
    ]
    for key, name in (("images_by_type", "images by type"), ("images_by_quality", "images by quality")):
        counts = summary.get(key, {})
        rows.append([name, ", ".join(f"{what} {count}" for what, count in counts.items()) or "-"])
    rows += [[name, shown(summary.get(key))] for key, name in MACHINE_KEYS.items()]
    rows += [[f"failed: {image_id}", shown(reason)] for image_id, reason in list(failed.items())[:10]]
    return rows


def shown(value: Any) -> str:
    """A value of the machine's for people."""
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else one_line(str(value))


def machine_changes(summary: Mapping[str, Any], before: Mapping[str, Any], where: str) -> list[str]:
    """How a run's machine differs from one that was tried, a line for each thing that both tell."""
    return [
        f"{name} is {shown(summary[key])}, {where} it was {shown(before[key])}"
        for key, name in MACHINE_KEYS.items()
        if summary.get(key) is not None and before.get(key) is not None and summary[key] != before[key]
    ]
