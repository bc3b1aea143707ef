"""Waiting for something at Kaggle: through failures that pass, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bundle.client_errors import KaggleError, NotThereError, PassingError
from kernel.errors import RunError

T = TypeVar("T")
#: So many failures in a row, each of several tries, end a wait.
LONGEST_OUTAGE = 10
#: So often Kaggle may not show what was just sent, or may have been, before that counts as not arrived.
LONGEST_UNSEEN = 10


@dataclass(frozen=True)
class Waiting:
    """How to wait.

    Args:
        patience: seconds.
        poll: seconds between two questions.
        progress: shows a line.
        again: what to do where the waiting ends too early.
    """

    patience: float
    poll: float
    progress: Callable[[str], None]
    again: str

    def until(
        self,
        what: str,
        ask: Callable[[], T],
        state: Callable[[T], str | None],
        detail: Callable[[T], str] = lambda answer: "",
        late: str = "{what} is still {now} after {waited:.0f} s",
    ) -> T:
        """Ask until it is over; returns the last answer.

        Args:
            what: is waited for.
            ask: asks Kaggle.
            state: an answer's, in words; None: it is over.
            detail: what else of an answer to show.
            late: what to say where patience is at its end.

        Raises:
            RunError: Kaggle refuses the question, keeps failing, or patience is at its end.
        """
        begin, failures = time.monotonic(), 0
        while True:
            more = ""
            try:
                found = ask()
                failures = 0
                now = state(found)
                if now is None:
                    return found
                more = detail(found)
            except PassingError as error:
                failures += 1
                now = error.what
                if failures == LONGEST_OUTAGE:
                    raise RunError(f"{now}, {failures} times in a row: {self.again}") from error
            except NotThereError:
                raise
            except KaggleError as error:
                raise RunError(f"{error}; then {self.again}") from error
            waited = time.monotonic() - begin
            if waited >= self.patience:
                raise RunError(f"{late.format(what=what, now=now, waited=waited)}: {self.again}")
            self.progress(f"{what}: {now}, {waited / 60:.1f} min{more}")
            time.sleep(min(self.poll, self.patience - waited))
