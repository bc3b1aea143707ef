"""mmdet and mmcv on this machine, for training, validation and prediction: the kernel's wheels, installed once.

In a checkout they are below its `dist`, where the build and the dry run find the wheels too; an installed package has
them in the user's cache folder.

They are never installed into the environment itself: the dry run must find them in its wheels, or not at all. `bundle`
builds the wheels. This package does not import `bundle`, so a process of its own runs it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from kernel.errors import InputError, RunError
from kernel.folders import user_cache
from kernel.runtime.wheels import install_wheels

#: What holds the project: a checkout, or the folder of installed packages.
ROOT = Path(__file__).resolve().parents[1]
IS_CHECKOUT = (ROOT / "build_kernel.py").is_file()
LOCK_PATH = (ROOT if IS_CHECKOUT else Path(__file__).resolve().parent) / "bundle" / "wheels.lock.json"
#: Their building and installing take a minute or two, most of it pip's.
SITE_SECONDS = 3600


def dist_folder() -> Path:
    """What is built here lies below it."""
    return ROOT / "dist" if IS_CHECKOUT else user_cache()


def site_folder() -> Path:
    """Where the packages are installed: a folder for each state of the lock, so that none of an earlier one is used."""
    return dist_folder() / "site" / hashlib.sha256(LOCK_PATH.read_bytes()).hexdigest()[:16]


def use_vendored_packages() -> Path:
    """Make mmcv and mmdet importable: have the wheels built and installed, if that was not done yet.

    Returns:
        The folder that is now the first on sys.path.

    Raises:
        InputError: `python -m bundle.site` ends with 2, with its message; or as `install_wheels` does.
        RunError: `python -m bundle.site` ends with another code, with its message, or not within an hour.
    """
    site = site_folder()
    if not site.is_dir():
        command = [sys.executable, "-m", "bundle.site"]
        try:
            done = subprocess.run(
                command, cwd=ROOT, stderr=subprocess.PIPE, encoding="utf-8", check=False, timeout=SITE_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise RunError(
                f"mmdet and mmcv are not installed after {SITE_SECONDS:g} s: look whether the network or the disk is "
                f"stuck; by hand: `{' '.join(command)}` in {ROOT}"
            ) from error
        if done.returncode:
            raise (InputError if done.returncode == 2 else RunError)(done.stderr.strip())
    install_wheels([], site)
    return site
