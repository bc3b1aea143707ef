"""The vendored packages, installed where `kernel.vendored` looks for them.

python -m bundle.site
"""

from __future__ import annotations

import sys

from bundle.lock import load_lock
from bundle.vendor import build_wheels
from kernel.errors import InputError, RunError
from kernel.folders import remove_folder, replace_folder, scratch_folder
from kernel.runtime.wheels import install_wheels, verify_wheels
from kernel.vendored import dist_folder, site_folder

WHEELS = dist_folder() / "wheels"


def install_site() -> None:
    """Build the wheels and install them, where that was not done yet.

    Raises:
        FetchError: without cache and network.
        InputError: as `build_wheels` and `install_wheels` do.
    """
    site = site_folder()
    if site.is_dir():
        return
    try:
        paths = verify_wheels(WHEELS, load_lock())
    except InputError:
        paths = build_wheels(WHEELS)
    if site.parent.is_dir():  # what earlier locks left
        remove_folder(site.parent)
    with scratch_folder(site.parent, site.name) as scratch:
        install_wheels(paths, scratch / "new")
        sys.path.remove(str((scratch / "new").resolve()))
        replace_folder(scratch / "new", site)


def main() -> int:
    """Install; returns the exit code."""
    try:
        install_site()
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except RunError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
