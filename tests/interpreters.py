"""The Python interpreters of this machine, to build with each of them.

    python tests/interpreters.py    # which there are, and which are missing

Standard library only.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
#: The next one too, where it is there: it shows early what will change.
SOUGHT = (*SUPPORTED, "3.15")


def find_interpreters() -> dict[str, Path]:
    """An interpreter of each version in SOUGHT that is on PATH or among pyenv's, by version."""
    found = {}
    for version in SOUGHT:
        path = next((path for path in candidates(version) if version_of(path) == version), None)
        if path is not None:
            found[version] = path
    return found


def candidates(version: str) -> Iterator[Path]:
    """Where an interpreter of a version may be, the likeliest first."""
    on_path = shutil.which(f"python{version}")
    if on_path is not None:
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python"))


def version_of(interpreter: Path) -> str:
    """An interpreter's version, as "3.12"; "" for one that does not start, as pyenv's shims on PATH may not."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([interpreter, "-I", "-c", code], capture_output=True, text=True, check=False)
    except OSError:  # no program at all
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


if __name__ == "__main__":
    here = find_interpreters()
    for version in SOUGHT:
        if version in here:
            sys.stdout.write(f"Python {version}: {here[version]}\n")
        elif version in SUPPORTED:
            sys.stdout.write(f"WARNING: no Python {version} here: nothing was built with it\n")
