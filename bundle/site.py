"""The vendored packages, installed where `kernel.vendored` looks for them.

python -m bundle.site
"""

from __future__ import annotations

import sys

from bundle.lock import load_lock
from bundle.vendor import build_wheels
from kernel.errors import InputError, RunError
from kernel.files import writing
from kernel.folders import replace_folder, scratch_folder
from kernel.locks import sole_writer
from kernel.runtime.wheels import install_wheels, verify_wheels
from kernel.vendored import dist_folder, site_folder

WHEELS = dist_folder() / "wheels"


def install_site() -> None:
    """Build the wheels and install them, where that was not done yet; wait while another process does it.

    Raises:
        FetchError: without cache and network.
        InputError: as `build_wheels` and `install_wheels` do.
    """
    site = site_folder()
    if site.is_dir():
        return
    with writing(site.parent):
        site.parent.mkdir(parents=True, exist_ok=True)
    with sole_writer(site, wait=True):  # first runs that start together need it all at once
        if site.is_dir():
            return
        try:
            paths = verify_wheels(WHEELS, load_lock())
        except InputError:
            paths = build_wheels(WHEELS)
        # What other locks left stays: a version that runs just now may import from it.
        with scratch_folder(site.parent, site.name) as scratch:
            install_wheels(paths, scratch / "new")
            sys.path.remove(str((scratch / "new").resolve()))
            if not site.is_dir():  # of another process, where the file system has no locks
                replace_folder(scratch / "new", site)


def main() -> int:
    """Install; returns the exit code. Of a failure the bare message is said, which `kernel.vendored` raises again."""
    try:
        install_site()
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except RunError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:  # of a disk that is full, say
        sys.stderr.write(f"mmdet and mmcv cannot be installed in {dist_folder()} ({error}): mend that, and try again\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
