"""The vendored packages on this machine, for training, validation and tests: what the kernel gets, installed once.

They are never installed into the environment itself: the dry run must find them in its wheels, or not at all.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from bundle.folders import remove_folder, replace_folder, scratch_folder
from bundle.vendor import LOCK_PATH, build_wheels, load_lock
from kernel.errors import InputError
from kernel.runtime.wheels import install_wheels, verify_wheels

DIST = Path(__file__).resolve().parent.parent / "dist"


def site_folder(lock_path: Path = LOCK_PATH) -> Path:
    """Where the packages are installed: one folder per state of the lock, so that no earlier one's is used."""
    return DIST / "site" / hashlib.sha256(lock_path.read_bytes()).hexdigest()[:16]


def use_vendored_packages(wheels: Path = DIST / "wheels") -> Path:
    """Make mmcv and mmdet importable: build the wheels and install them where that was not done yet.

    Returns the folder that is now in front on sys.path. Raises FetchError without cache and network, and
    InputError as `install_wheels` does.
    """
    site = site_folder()
    if not site.is_dir():
        lock = load_lock()
        try:
            paths = verify_wheels(wheels, lock)
        except InputError:
            paths = build_wheels(wheels)
        if site.parent.is_dir():  # what earlier locks left
            remove_folder(site.parent)
        with scratch_folder(site.parent, site.name) as scratch:
            install_wheels(paths, scratch / "new")
            sys.path.remove(str((scratch / "new").resolve()))
            replace_folder(scratch / "new", site)
    install_wheels([], site)
    return site
