"""A run's folder for temporary files, and what killed runs have left of theirs."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from kernel.files import lock_descriptor
from kernel.runtime import scratch
from kernel.runtime.scratch import NEW_SECONDS, SCRATCH_PREFIX, locked_folder, remove_abandoned, scratch_home


@pytest.fixture
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def abandoned(parent: Path, age: float = 60.0, files: int = 1) -> Path:
    """What a run that was killed `age` seconds ago has left."""
    folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=parent))
    for number in range(files):
        (folder / f"{number}.tmp").write_bytes(b"half")
    os.utime(folder, (time.time() - age,) * 2)
    return folder


def test_temporary_files_go_to_one_folder_which_the_end_deletes(parent: Path) -> None:
    with scratch_home(parent) as folder:
        assert folder.parent == parent and folder.name.startswith(SCRATCH_PREFIX)
        assert Path(tempfile.mkdtemp()).parent == folder and os.environ["TMPDIR"] == str(folder)
    assert not any(parent.iterdir()) and tempfile.gettempdir() == str(parent)


def test_what_a_killed_run_has_left_is_deleted_at_the_start(parent: Path) -> None:
    left, other = abandoned(parent), parent / "somebody's"
    other.mkdir()
    with scratch_home(parent) as folder:
        assert sorted(parent.iterdir()) == sorted([folder, other])
    assert not left.exists()


def test_what_a_killed_runs_pip_still_writes_is_deleted_at_the_end(
    parent: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """pip outlives the script that started it, and makes its folder again."""
    left = abandoned(parent)
    with caplog.at_level(logging.INFO), scratch_home(parent):
        assert not left.exists()
        (left / "packages").mkdir(parents=True)
    assert not any(parent.iterdir())
    assert caplog.text.count(f"deleted {left}") == 2


def test_a_folder_that_cannot_be_deleted_yet_is_not_said_to_be(
    parent: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip may put a file into a folder while it is deleted."""
    left, rmtree = abandoned(parent), shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", lambda folder, ignore_errors: None)
    with caplog.at_level(logging.INFO), scratch_home(parent):
        assert left.exists() and "deleted" not in caplog.text
        monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert not any(parent.iterdir()) and f"deleted {left}" in caplog.text


def test_folders_of_living_runs_are_left(parent: Path) -> None:
    """Those that are locked, and one that its process has just made and not yet locked."""
    living, starting = abandoned(parent), abandoned(parent, age=0.0, files=0)
    lock = locked_folder(living)
    assert lock is not None
    with scratch_home(parent):
        pass
    assert living.exists() and starting.exists()
    os.close(lock)
    os.utime(starting, (time.time() - NEW_SECONDS - 1,) * 2)
    with scratch_home(parent):
        assert not living.exists() and not starting.exists()


def test_a_new_folder_is_locked_though_another_process_looks_at_it(
    parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a look takes the lock for a moment. Without it the folder would be deleted by the next one who looks."""
    looks: list[int] = []

    def busy_first(descriptor: int) -> bool:
        looks.append(descriptor)
        if len(looks) == 1:
            raise BlockingIOError
        return lock_descriptor(descriptor)

    monkeypatch.setattr(scratch, "lock_descriptor", busy_first)
    with scratch_home(parent) as folder:
        (folder / "packages").mkdir()
        os.utime(folder, (time.time() - 60,) * 2)
        remove_abandoned(parent)
        assert folder.exists()
    assert not any(parent.iterdir())


def test_a_folder_that_another_process_keeps_is_not_waited_for_without_end(parent: Path) -> None:
    folder = abandoned(parent)
    lock = locked_folder(folder)
    assert lock is not None and locked_folder(folder) is None and locked_folder(folder, 0.02) is None
    os.close(lock)
