"""mmdet and mmcv on this machine, for training, validation and prediction: the kernel's wheels, installed once.

They are never installed into the environment itself: the dry run must find them in its wheels, or not at all. `bundle`
builds the wheels. This package does not import `bundle`, so a process of its own runs it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from kernel.errors import InputError, RunError
from kernel.runtime.wheels import install_wheels

CHECKOUT = Path(__file__).resolve().parents[1]
LOCK_PATH = CHECKOUT / "bundle" / "wheels.lock.json"


def site_folder() -> Path:
    """Where the packages are installed: a folder for each state of the lock, so that none of an earlier one is used."""
    return CHECKOUT / "dist" / "site" / hashlib.sha256(LOCK_PATH.read_bytes()).hexdigest()[:16]


def use_vendored_packages() -> Path:
    """Make mmcv and mmdet importable: have the wheels built and installed, if that was not done yet.

    Returns:
        The folder that is now the first on sys.path.

    Raises:
        InputError: `python -m bundle.site` ends with 2, with its message; or as `install_wheels` does.
        RunError: `python -m bundle.site` ends with another code, with its message.
    """
    site = site_folder()
    if not site.is_dir():
        command = [sys.executable, "-m", "bundle.site"]
        done = subprocess.run(command, cwd=CHECKOUT, stderr=subprocess.PIPE, encoding="utf-8", check=False)
        if done.returncode:
            raise (InputError if done.returncode == 2 else RunError)(done.stderr.strip())
    install_wheels([], site)
    return site
