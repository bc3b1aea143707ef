"""Folders that are there whole or not at all, also where the program is terminated."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys, time
from pathlib import Path
from kernel.folders import end_on_sigterm, scratch_folder
end_on_sigterm()
with scratch_folder(Path(sys.argv[1]), "result") as folder:
    (folder / "half").touch()
    print("begun", flush=True)
    time.sleep(60)
"""


def test_a_terminated_program_leaves_no_scratch_folder(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    assert [path.name.startswith(".result-") for path in tmp_path.iterdir()] == [True]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
