"""The built script for tests that inject faults into it: built once a module, run as often as a test wants."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from built_script import BuiltRun, build_demo, write_cells
from faults.counting import tell_counts


def pytest_sessionfinish() -> None:
    """Tell what the fuzzes have tried: `make torture` goes on in the same process."""
    tell_counts()


@pytest.fixture(scope="session")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script of the demo's members."""
    return build_demo(tmp_path_factory.mktemp("dist"))


@pytest.fixture()
def make_run(script: Path, wheels_dir: Path, tmp_path: Path) -> Callable[[str, int], BuiltRun]:
    """A function that makes a run of so many images in a folder of the given name."""

    def make(name: str, images: int) -> BuiltRun:
        run = BuiltRun(script, tmp_path / name, wheels_dir)
        write_cells(run.images, images)
        return run

    return make
