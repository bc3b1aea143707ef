"""The vendored packages are installed once, also where several processes ask for them first."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

import bundle.site
from kernel.errors import InputError


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where something was installed; wheels are there, and installing takes a moment."""
    done: list[Path] = []

    def install(wheels: Sequence[Path], target: Path) -> None:
        target.mkdir()
        done.append(target)
        sys.path.insert(0, str(target.resolve()))
        (target / "mmdet").mkdir()
        time.sleep(0.5)
        (target / "mmcv").mkdir()

    monkeypatch.setattr(bundle.site, "site_folder", lambda: tmp_path / "site" / "new-lock")
    monkeypatch.setattr(bundle.site, "verify_wheels", lambda folder, lock: [])
    monkeypatch.setattr(bundle.site, "install_wheels", install)
    return done


def test_who_comes_second_waits_and_finds_it_whole(tmp_path: Path, installed: list[Path]) -> None:
    found: list[list[str]] = []

    def ask() -> None:
        bundle.site.install_site()
        found.append(sorted(path.name for path in (tmp_path / "site" / "new-lock").iterdir()))

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    for asker in askers:
        asker.join()
    assert len(installed) == 1 and found == [["mmcv", "mmdet"]] * 3
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["new-lock"]


def test_what_an_earlier_version_imports_from_stays(tmp_path: Path, installed: list[Path]) -> None:
    older = tmp_path / "site" / "older-lock" / "mmdet"
    older.mkdir(parents=True)
    bundle.site.install_site()
    assert older.is_dir() and len(installed) == 1


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("no such lock"), 2), (OSError(28, "No space left on device"), 1)]
)
def test_what_goes_wrong_is_a_message(
    installed: list[Path],
    error: Exception,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(wheels: Sequence[Path], target: Path) -> None:
        raise error

    monkeypatch.setattr(bundle.site, "install_wheels", fail)
    assert bundle.site.main() == code
    assert str(error) in capsys.readouterr().err
