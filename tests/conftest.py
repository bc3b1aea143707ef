"""The vendored wheels for every test: built once into dist/wheels, installed once, importable as `mmcv` and `mmdet`.

This is how the kernel gets them too, so the tests run on what Kaggle would run on.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from synthetic_members import make_synthetic_members

from bundle.fetch import FetchError
from bundle.lock import load_lock
from bundle.site import WHEELS, install_site
from kernel.log import LOG
from kernel.runtime.wheels import verify_wheels
from kernel.vendored import site_folder, use_vendored_packages

# No example has a time limit: how long one takes says more about the machine's load than about the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Why there are no wheels in this session; empty when there are.
NO_WHEELS = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    # A shell has background jobs ignore SIGINT, nohup SIGHUP, and so would the programs that tests start and stop.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.environ.setdefault("KERNEL_PATIENCE", "0")  # most tests of what is missing need not wait for it
    # xdist's workers start after the controller has made, built and installed.
    is_worker = hasattr(config, "workerinput")
    if not is_worker:
        make_synthetic_members()
    reason = ""
    if is_worker and not site_folder().is_dir():
        reason = "the wheels could not be built; see the session's own message"
    else:
        try:
            install_site()
            use_vendored_packages()
        except FetchError as error:
            reason = f"the wheels are not in the cache, and pip could not fetch them: {error}"
    config.stash[NO_WHEELS] = reason


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """Each test finds the project's logger as it is without a command line, which takes it over.

    A fixture of a whole module may have run a command before the module's first test; so it is set, not remembered.
    """
    LOG.handlers, LOG.propagate = [], True
    LOG.setLevel(logging.NOTSET)
    yield
    LOG.handlers, LOG.propagate = [], True
    LOG.setLevel(logging.NOTSET)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Tiny detectors are quicker on one thread, and on a busy machine by far; worker processes take their number from
    here."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def wheels_site(request: pytest.FixtureRequest) -> Path:
    """A folder with the wheels installed, which is on sys.path in this session; for PYTHONPATH of other processes.

    Skips without network and cache.
    """
    if request.config.stash[NO_WHEELS]:
        pytest.skip(request.config.stash[NO_WHEELS])
    return site_folder()


@pytest.fixture(scope="session")
def wheels_dir(wheels_site: Path) -> Path:
    """dist/wheels, verified."""
    verify_wheels(WHEELS, load_lock())
    return WHEELS
