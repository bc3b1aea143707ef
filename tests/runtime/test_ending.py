"""The end of a process by a signal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, signal, sys, threading
from kernel.errors import RunError
from kernel.log import show_log
from kernel.runtime.ending import ending_by_signal

def last_work(name):
    raise {raised}

show_log(sys.stdout)
with ending_by_signal(last_work):
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait()
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
@pytest.mark.parametrize(
    ("raised", "told"),
    [
        ("RunError('cannot write a.csv')", "ERROR cannot write a.csv\n"),
        ("KeyError('cpu')", "ERROR KeyError in last_work, line 8 of <string>: 'cpu': this is a fault of the program"),
    ],
)
def test_what_fails_after_a_signal_is_told(raised: str, told: str) -> None:
    program = PROGRAM.format(raised=raised)
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    assert ended.returncode == 143 and told in ended.stdout, ended.stdout + ended.stderr
