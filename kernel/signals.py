"""Which signals a program should hear."""

from __future__ import annotations

import signal

#: What a terminal sends that goes away; Windows has none.
HANG_UP = tuple(number for number in signal.Signals if number.name == "SIGHUP")


def heard_hang_up() -> tuple[signal.Signals, ...]:
    """HANG_UP, but where this process is to ignore it, by nohup."""
    return tuple(number for number in HANG_UP if signal.getsignal(number) is not signal.SIG_IGN)
