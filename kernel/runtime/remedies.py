"""What a failed run names at its end: the one thing to do, where the user can do it."""

from __future__ import annotations

import re

#: What begins the line that names it.
REMEDY_MARK = "to do: "
PUSH_COMMAND = "`python build_kernel.py push`"
#: What messages contain, and the one thing to do; the first that fits counts. Case matters only where it says so: the
#: name of a device, as in "cuda:0: ", stands before what its worker cannot start with, whatever that is.
REMEDIES = (
    (
        r"competition \S+ is not mounted",
        "accept the competition's rules on its page, then push again by " + PUSH_COMMAND,
    ),
    (r"is not mounted under", f"push by {PUSH_COMMAND}, which sends the dataset that is missing and attaches it"),
    (
        r"no file .* in .*: correct the member|was altered|no weight file",
        f"build with --weights-dir and push by {PUSH_COMMAND}: the dataset does not hold what the manifest names",
    ),
    (
        r"no space left|disk quota|output.{0,20} size exceeded",
        "free space in the working folder: see what else is written there",
    ),
    # Before what may stand in a path: the packages of a run lie in a folder called after the wheels.
    (
        r"No module named|ImportError|AttributeError|TypeError|operator \S+ does not exist",
        "pin the image that was tried, by `kernel.docker_image` in the manifest: Kaggle's has changed",
    ),
    (
        r"wheels .* are not those of the lock|no folder of wheels|wheels can be installed nowhere"
        r"|\.whl(: missing|: expected sha256| could not be unpacked)",
        f"push again by {PUSH_COMMAND}: the dataset of wheels is not the one of this build",
    ),
    (
        r"out of memory|memory limit|more memory than is available|SIGKILL",
        "push with the accelerator that the manifest names, or with fewer members",
    ),
    (r"exceeded.{0,40}(time|limit)|timed? ?out", "lower `time_limit_hours` in the manifest, or push without --timeout"),
    (
        r"has no kernels for it",
        f"choose the accelerator GPU T4 x2 in the notebook's settings, or push by {PUSH_COMMAND}, which asks for it",
    ),
    (r"(?-i:CUDA|KERNEL_DEVICE)", f"push again by {PUSH_COMMAND}, which asks for the GPUs that the manifest names"),
    (r"cancel", "push again: the run was cancelled"),
)


def remedy_for(message: str) -> str | None:
    """The one thing to do about a failure with this message; None where none is known."""
    for pattern, remedy in REMEDIES:
        if re.search(pattern, message, re.IGNORECASE):
            return remedy
    return None


def with_remedy(error: Exception) -> str:
    """An error's message, and on a line of its own the one thing to do about it."""
    remedy = remedy_for(str(error)) or "do what the line above says, build and push again by " + PUSH_COMMAND
    return f"{error}\n{REMEDY_MARK}{remedy}"
