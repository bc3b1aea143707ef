"""Folders that are there whole or not at all, also where the program is terminated."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.errors import InputError
from kernel.folders import replace_folder, user_cache

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = """
import sys, time
from pathlib import Path
from kernel.folders import end_on_sigterm, scratch_folder
end_on_sigterm()
with scratch_folder(Path(sys.argv[1]), "result") as folder:
    (folder / "half").touch()
    print("begun", flush=True)
    time.sleep(60)
"""

WRITER = """
import sys
from pathlib import Path
from kernel.commands.common import whole_folder
from kernel.files import written_file
from kernel.manifest.edit import replaced_manifest
target = Path(sys.argv[1])
with written_file(target / "file") as file:
    file.write_text("a")
with replaced_manifest(target / "manifest.json", "{}"):
    pass
with whole_folder(target / "result") as folder:
    (folder / "inner").touch()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [("022", 0o644, 0o755), ("077", 0o600, 0o700)])
def test_who_may_read_a_result_is_what_the_umask_says(
    tmp_path: Path, umask: str, file_mode: int, folder_mode: int
) -> None:
    for _ in range(2):  # a new one, and one in its place
        subprocess.run([sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, umask=int(umask, 8), check=True)
        modes = {
            path.relative_to(tmp_path).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")
        }
        assert modes == {
            "file": file_mode, "manifest.json": file_mode, "result": folder_mode, "result/inner": file_mode,
        }  # fmt: skip


def hold(monkeypatch: pytest.MonkeyPatch, held: Path, reason: str) -> None:
    """Let a path not be moved, as Windows moves no folder of which a program holds a file."""
    rename = Path.rename

    def refuse(path: Path, to: Path) -> Path:
        if path == held:
            raise PermissionError(13, reason)
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refuse)


def test_a_folder_with_an_open_file_is_told_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, target = tmp_path / "new", tmp_path / "target"
    new.mkdir()
    target.mkdir()
    (target / "submission.csv").touch()
    hold(monkeypatch, target, "The process cannot access the file because it is being used by another process")
    with pytest.raises(InputError, match=r"target cannot be replaced .*used by another process.*close the programs"):
        replace_folder(new, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "target"]
    assert (target / "submission.csv").exists()


def test_a_folder_stays_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, target = tmp_path / "new", tmp_path / "result"
    for folder in (new, target):
        folder.mkdir()
        (folder / f"of {folder.name}").touch()
    hold(monkeypatch, new, "a scanner has a file of it open")
    with pytest.raises(PermissionError, match="scanner"):
        replace_folder(new, target)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "new", "new/of new", "result", "result/of result",
    ]  # fmt: skip
    monkeypatch.undo()
    replace_folder(new, target)
    assert [path.name for path in target.iterdir()] == ["of new"] and list(tmp_path.iterdir()) == [target]


def test_a_signal_just_after_the_move_is_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, target = tmp_path / "new", tmp_path / "result"
    for folder in (new, target):
        folder.mkdir()
        (folder / f"of {folder.name}").touch()
    rename = Path.rename

    def interrupted(path: Path, to: Path) -> Path:
        moved = rename(path, to)
        if path == new:
            raise KeyboardInterrupt
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_folder(new, target)
    assert [path.name for path in target.iterdir()] == ["of new"]


def test_who_has_no_home_is_told_where_a_cache_may_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(InputError, match="XDG_CACHE_HOME"):
        user_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache().parent == tmp_path


def test_a_terminated_program_leaves_no_scratch_folder(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    assert [path.name.startswith(".result-") for path in tmp_path.iterdir()] == [True]
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
