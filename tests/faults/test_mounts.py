"""Faults of the built script: mounts, wheels, pip and temporary folders that are not as they should be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from built_script import DEMO, WEIGHTS_FOLDER, WHEELS_FOLDER, BuiltRun, build_demo, write_cells

import build_kernel
from kernel.postprocess.submitted import read_submission

pytestmark = [pytest.mark.torture, pytest.mark.xdist_group("mounts")]
SLUG = "sartorius-cell-instance-segmentation"


def works(command: Sequence[str]) -> bool:
    """Whether a command of util-linux is there, and lets us."""
    return shutil.which(command[0]) is not None and subprocess.run(command, capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not works(["unshare", "-m", "true"]), reason="nothing can be mounted here")
needs_users = pytest.mark.skipif(not works(["unshare", "-Ur", "true"]), reason="user namespaces cannot be made here")


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_demo(tmp_path_factory.mktemp("dist"))


@pytest.fixture
def run(script: Path, wheels_dir: Path, tmp_path: Path) -> BuiltRun:
    """One small image, and all that is needed, in the flat form of the mounts."""
    made = BuiltRun(script, tmp_path / "run", wheels_dir)
    write_cells(made.images, 1)
    return made


def ends(run: BuiltRun, launcher: Sequence[str] = (), prefix: Sequence[str] = (), **variables: str) -> tuple[int, str]:
    """Run the script by other words before Python's or before its own; the exit code, and what it wrote."""
    done = subprocess.run(
        [*prefix, *run.start_command(launcher)],
        env=run.environment(variables),
        cwd=run.home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout


def check_whole(run: BuiltRun, code: int, log: str) -> None:
    """The image has its cells, nobody read a traceback, and nothing is left behind."""
    assert code == 0 and "Traceback" not in log, log
    assert all(read_submission(run.submission).values())
    assert list(run.temporary.iterdir()) == []
    assert not list(run.working.glob("kernel-*"))


# --- mounts ---------------------------------------------------------------------------------------------------------


def two_owners_manifest(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The demo's manifest with weights of alice and bob, each in a dataset called cell-weights."""
    manifest = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))
    del manifest["$schema"]
    manifest["weight_datasets"] = []
    for member in manifest["members"]:
        member["dataset"] = ("bob" if member["name"] == "htc" else "alice") + "/cell-weights"
        change(member)
    path.write_text(json.dumps(manifest), encoding="utf-8", newline="\n")
    return path


@pytest.mark.parametrize("form", ["cell-weights d/bob/cell-weights", "datasets/{}/cell-weights", "mnt/{}/cell-weights"])
def test_two_owners_with_one_slug(run: BuiltRun, tmp_path: Path, form: str) -> None:
    manifest = two_owners_manifest(tmp_path / "manifest.json", lambda member: None)
    run.script = build_demo(tmp_path / "dist", manifest)
    alice, bob = (form.format("alice"), form.format("bob")) if "{}" in form else form.split()
    for place, names in ((alice, ("maskrcnn", "cascade")), (bob, ("htc",))):
        (run.inputs / place).mkdir(parents=True)
        for name in names:
            (run.weights / f"{name}.safetensors").rename(run.inputs / place / f"{name}.safetensors")
    check_whole(run, *run.run())


def test_two_files_of_one_name_and_no_sum(run: BuiltRun, tmp_path: Path) -> None:
    """One line that names both; with the flat and the owner's form there is no doubt."""

    def without_sum(member: dict[str, Any]) -> None:
        del member["sha256"]
        member["file"] = "best.safetensors" if member["name"] == "htc" else f"{member['name']}.safetensors"

    manifest = two_owners_manifest(tmp_path / "manifest.json", without_sum)
    # A build that has the weights at hand fills in their sums.
    assert build_kernel.main(["--manifest", str(manifest), "--out", str(tmp_path / "dist")]) == 0
    run.script = tmp_path / "dist" / "kernel" / "kernel.py"
    for place, name in (("alice", "maskrcnn"), ("alice", "cascade"), ("one/bob", "htc"), ("two/bob", "htc")):
        target = run.inputs / place / "cell-weights" / ("best" if name == "htc" else name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(run.weights / f"{name}.safetensors", target.with_suffix(".safetensors"))
    code, log = run.run()
    assert code == 2 and "Traceback" not in log
    assert "2 files best.safetensors" in log
    assert "one/bob/cell-weights/best.safetensors, two/bob/cell-weights/best.safetensors" in log


@needs_users
def test_a_neighbour_that_may_not_be_read(run: BuiltRun) -> None:
    """A search is needed, since nothing is in a known place; another user's folders are in its way."""
    (run.inputs / "mnt").mkdir()
    (run.inputs / "competitions").rename(run.inputs / "mnt" / "sources")
    (run.inputs / WEIGHTS_FOLDER).rename(run.inputs / "mnt" / WEIGHTS_FOLDER)
    closed = run.inputs / "aside"
    closed.mkdir()
    prefix = ["unshare", "-Ur"]
    if os.geteuid() == 0:
        os.chown(closed, 12345, 12345)
    closed.chmod(0o700 if os.geteuid() == 0 else 0)
    try:
        code, log = ends(run, prefix=prefix)
    finally:
        closed.chmod(0o755)
    check_whole(run, code, log)
    assert f"{closed} is passed over: it cannot be read (Permission denied)" in log


# --- wheels and pip -------------------------------------------------------------------------------------------------


def test_wheels_one_folder_down_and_renamed(run: BuiltRun, wheels_dir: Path) -> None:
    mount = run.inputs / WHEELS_FOLDER
    mount.unlink()
    (mount / "wheels" / "deep").mkdir(parents=True)
    for path in wheels_dir.glob("*.whl"):
        new = path.name.replace("+", "_") + (".zip" if path.name.startswith("mmdet") else "")
        shutil.copyfile(path, mount / "wheels" / ("deep" if path.name.startswith("y") else "") / new)
    check_whole(run, *run.run())


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("raise ImportError('a part of pip is missing')", "exit code 1): ImportError: a part of pip is missing; the"),
        ("import os; os._exit(77)", "exit code 77): it said nothing; the wheels are unpacked instead"),
        ("import sys; sys.exit('No space left on device')", "exit code 1): No space left on device; the wheels are"),
    ],
)
def test_a_pip_that_does_not_work(run: BuiltRun, tmp_path: Path, code: str, told: str) -> None:
    pip = tmp_path / "packages" / "pip"
    pip.mkdir(parents=True)
    for name, text in (("__init__", ""), ("__main__", code)):
        (pip / f"{name}.py").write_text(text, encoding="utf-8", newline="\n")
    ended, log = ends(run, PYTHONPATH=str(pip.parent))
    check_whole(run, ended, log)
    assert told in log


def test_a_wheel_that_is_not_the_locks(run: BuiltRun, wheels_dir: Path) -> None:
    """Whatever works around a fault, a wrong sum is refused."""
    mount = run.inputs / WHEELS_FOLDER
    mount.unlink()
    shutil.copytree(wheels_dir, mount)
    (wheel,) = mount.glob("yapf*.whl")
    wheel.chmod(0o644)
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    code, log = run.run()
    assert code == 2 and f"{wheel.name}: expected sha256" in log and "Traceback" not in log


# --- temporary folders ------------------------------------------------------------------------------------------


@needs_mounts
def test_no_room_in_the_temporary_folder(run: BuiltRun) -> None:
    run.temporary.rmdir()
    run.temporary.mkdir()
    mounting = 'mount --make-rprivate / && mount -t tmpfs -o size=3m tmpfs "$TMPDIR" && exec "$@"'
    code, log = ends(run, prefix=["unshare", "-m", "sh", "-c", mounting, "sh"])
    check_whole(run, code, log)
    assert "there is no place for temporary files: " in log and "the working folder is tried" in log


@needs_mounts
def test_no_temporary_folder(run: BuiltRun) -> None:
    """Only the working folder can be written; the current folder neither, which Python would fall back to."""
    mounting = (
        "mount --make-rprivate /\n"
        "for folder in /tmp /var/tmp; do mount --bind $folder $folder && mount -o remount,ro,bind $folder; done\n"
        'mount -t tmpfs tmpfs "$KERNEL_WORKING"\n'
        'cd /tmp && unset TMPDIR TEMP TMP && "$@"; code=$?\n'
        'cat "$KERNEL_WORKING/submission.csv"; ls -A "$KERNEL_WORKING" | grep kernel-; exit $code'
    )
    if not run.home.is_relative_to("/tmp") and os.access("/usr/tmp", os.W_OK):
        pytest.skip("there are other folders for temporary files here")
    code, log = ends(run, prefix=["unshare", "-m", "sh", "-c", mounting, "sh"])
    assert code == 0 and "Traceback" not in log and re.search(r"^image0000,\d", log, re.MULTILINE), log
    assert f"no folder for temporary files can be written: they go to {run.working}" in log
    assert "\nkernel-" not in log
