"""Errors that may pass by themselves, as those of a mount that is away for a moment: what fails is tried again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from kernel.errors import InputError
from kernel.log import LOG

R = TypeVar("R")

#: How many seconds in all a mount that is away is waited for at the start; four times as many at the end of a run.
PATIENCE_VARIABLE = "KERNEL_PATIENCE"
DEFAULT_PATIENCE = 15.0


def patience_pauses(times: float = 1.0) -> tuple[float, ...]:
    """The pauses before each further attempt, in seconds: each twice the one before, in all `times` the patience.

    Raises:
        InputError: KERNEL_PATIENCE is no such number.
    """
    given = os.environ.get(PATIENCE_VARIABLE)
    try:
        left = DEFAULT_PATIENCE if given is None else float(given)
    except ValueError:
        left = -1.0
    if not 0 <= left <= 36000:
        raise InputError(f"{PATIENCE_VARIABLE} is {given!r}; allowed are seconds from 0 to 36000")
    left *= times
    pauses: list[float] = []
    pause = 1.0
    while left > 0:
        pauses.append(min(pause, left))
        left -= pauses[-1]
        pause *= 2
    return tuple(pauses)


def may_pass(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is the system's: that a file is gone or cannot be read just now."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return True
        error = error.__cause__
    return False


def patiently(action: Callable[[], R], is_worth_it: Callable[[Exception], bool] = may_pass) -> R:
    """What `action` returns; where it raises InputError or OSError, it is tried again, after longer and longer pauses.

    Args:
        action: something that may fail through no fault of what is given.
        is_worth_it: whether an error may pass; another is raised at once.

    Raises:
        InputError, OSError: the last attempt's.
    """
    for pause in patience_pauses():
        try:
            return action()
        except (InputError, OSError) as error:
            if not is_worth_it(error):
                raise
            LOG.warning("%s; trying again in %g s", str(error).splitlines()[0] if str(error) else error, pause)
        time.sleep(pause)
    return action()
