"""Nothing that one system alone has is used without a way round it, and files are the same bytes on all of them.

There is neither Windows nor macOS here. So the sources are read for what those lack, and programs run with it hidden.
"""

from __future__ import annotations

import ast
import errno
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import windows_locks

from bundle.dry_run import stage_file
from bundle.fetch import FetchError, fetch
from kernel import locks
from kernel.data import prepare
from kernel.errors import InputError, RunError
from kernel.files import whole_file
from kernel.folders import make_read_only, remove_folder
from kernel.images.writing import write_image_file
from kernel.runtime import memory
from kernel.runtime.journal import Journal
from kernel.runtime.wheels import LockedWheel
from kernel.training.processes import ProcessGroup

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [ROOT / "build_kernel.py", *sorted((ROOT / "kernel").rglob("*.py")), *sorted((ROOT / "bundle").rglob("*.py"))]
#: What Windows has not, some of it macOS neither: modules, and names in modules.
POSIX_MODULES = {
    "crypt", "curses", "fcntl", "grp", "nis", "ossaudiodev", "posix", "pty", "pwd", "readline", "resource", "spwd",
    "syslog", "termios", "tty",
}  # fmt: skip
POSIX_NAMES = {
    *(f"os.{name}" for name in (
        "fork", "forkpty", "getuid", "geteuid", "getgid", "getegid", "getpgid", "getpgrp", "setsid", "setpgid",
        "killpg", "nice", "sysconf", "confstr", "chown", "chroot", "mkfifo", "mknod", "sched_getaffinity",
        "sched_setaffinity", "pread", "pwrite", "posix_fadvise", "posix_spawn", "sendfile", "statvfs", "uname",
        "getloadavg", "wait", "wait3", "wait4", "memfd_create",
    )),
    *(f"signal.{name}" for name in (
        "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM", "SIGPIPE", "SIGSTOP", "SIGCONT",
        "SIG_BLOCK", "alarm", "setitimer", "pause", "sigwait", "sigwaitinfo", "sigtimedwait", "pthread_sigmask",
        "pthread_kill", "siginterrupt",
    )),
    "time.tzset", "time.clock_gettime", "socket.AF_UNIX",
}  # fmt: skip
#: Those of them that Python's own library needs on this system.
NEEDED_HERE = {"os.sendfile", "os.posix_spawn", "os.uname", "time.clock_gettime", "socket.AF_UNIX"}
#: Where such a name stands with a way round it.
GUARDED = {
    ("kernel/runtime/ending.py", "signal.SIGKILL"),  # of processes that are found in /proc
    ("kernel/runtime/limits.py", "os.sched_getaffinity"),
    ("kernel/runtime/memory.py", "os.sysconf"),
    ("kernel/training/signals.py", "signal.sigwaitinfo"),
    ("kernel/training/signals.py", "signal.pthread_sigmask"),
    ("kernel/training/signals.py", "signal.SIG_BLOCK"),
}


def complaints(source: str, name: str) -> Iterator[str]:
    """What of a source would fail on another system, or write other bytes there."""
    tree = ast.parse(source)
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else []
            modules += [str(statement.module)] if isinstance(statement, ast.ImportFrom) else []
            yield from (f"import of {module} at the top" for module in modules if module in POSIX_MODULES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            said = f"{node.value.id}.{node.attr}"
            if said in POSIX_NAMES and (name, said) not in GUARDED:
                yield said
        if isinstance(node, ast.ImportFrom):
            yield from {f"{node.module}.{alias.name}" for alias in node.names} & POSIX_NAMES
        if isinstance(node, ast.Call):
            yield from (f"{said} in line {node.lineno}" for said in call_complaints(node))


def call_complaints(call: ast.Call) -> Iterator[str]:
    """What is missing in a call that opens a text file or a process."""
    called = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = call.func.value.id if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) else ""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    texts = [node.value for node in [*call.args, *keywords.values()] if isinstance(node, ast.Constant)]
    if called in ("read_text", "write_text", "open", "fdopen", "TextIOWrapper", "NamedTemporaryFile"):
        ours = isinstance(call.func, ast.Name) and call.args and called == "read_text"  # a function of that name
        binary = any(isinstance(text, str) and "b" in text and len(text) <= 3 for text in texts)
        opens_bytes = called == "open" and owner in ("os", "zipfile", "archive")  # an archive's entries are bytes
        if binary or ours or owner in ("tarfile", "webbrowser") or opens_bytes:
            return
        if "encoding" not in keywords:
            yield f"{called} without an encoding"
        writes = called == "write_text" or any(text in ("w", "a", "x", "w+", "r+", "a+") for text in texts)
        if writes and "newline" not in keywords:
            yield f"{called} without newline"
    if called in ("run", "Popen", "check_output") and owner == "subprocess":
        text = keywords.keys() & {"text", "universal_newlines"}
        if text and not keywords.keys() & {"encoding", "errors"}:
            yield f"subprocess.{called} of text without encoding or errors"
        words = keywords.keys() & {"preexec_fn", "start_new_session", "process_group", "pass_fds"}
        yield from (f"subprocess.{called} with {word}" for word in words)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_sources_are_portable(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    assert list(complaints(path.read_text(encoding="utf-8"), name)) == []


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("import resource", "import of resource at the top"),
        ("from fcntl import flock", "import of fcntl at the top"),
        ("import os\ndef f():\n    return os.getuid()", "os.getuid"),
        ("from signal import SIGKILL", "signal.SIGKILL"),
        ("path.read_text()", "read_text without an encoding in line 1"),
        ("path.write_text('', encoding='utf-8')", "write_text without newline in line 1"),
        ("open(path, 'a', encoding='utf-8')", "open without newline in line 1"),
        ("path.open('w')", "open without an encoding in line 1"),
        ("subprocess.run(c, text=True)", "subprocess.run of text without encoding or errors in line 1"),
        ("subprocess.Popen(c, preexec_fn=f)", "subprocess.Popen with preexec_fn in line 1"),
    ],
)
def test_what_is_not_portable_is_found(source: str, told: str) -> None:
    assert told in list(complaints(source, "a.py"))


def test_what_is_portable_passes() -> None:
    source = """
        with path.open("rb") as stream, tarfile.open(source) as archive, path.open(encoding="utf-8") as text:
            archive.open(entry)
            path.write_text("", encoding="utf-8", newline="\\n")
        def peak():
            import resource
    """
    assert list(complaints(textwrap.dedent(source), "a.py")) == []


def test_names_of_files_differ_by_more_than_case_and_can_be_had_everywhere() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    names = listed.stdout.splitlines()
    assert len({name.lower() for name in names}) == len(names) > 0
    reserved = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}
    for name in names:
        parts = name.split("/")
        assert not set('<>:"\\|?*') & set(name), name
        assert all(part.split(".")[0].lower() not in reserved and part[-1] not in ". " for part in parts), name


#: Takes away, once the libraries are loaded, what Windows has not.
HIDE = f"""
import concurrent.futures, logging, multiprocessing, os, queue, shutil, signal, subprocess, sys, tempfile, threading
import cv2, matplotlib.figure, numpy, scipy.ndimage, timm, torch, torchvision, tqdm
from kernel.vendored import use_vendored_packages
use_vendored_packages()
import mmdet.models
for name in {sorted(POSIX_MODULES)}:
    sys.modules[name] = None
sys.path.append("tests")
import windows_locks
sys.modules["msvcrt"] = windows_locks  # which it has
for name in {sorted(POSIX_NAMES - NEEDED_HERE)}:
    module, attribute = name.split(".")
    if hasattr(__import__(module), attribute):
        delattr(__import__(module), attribute)
"""


def run_hidden(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program where nothing is that Windows has not."""
    command = [sys.executable, "-c", HIDE + textwrap.dedent(program), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)


def test_every_module_can_be_imported_without_what_windows_lacks(wheels_site: Path) -> None:
    done = run_hidden(
        """
        import importlib, pathlib
        paths = sorted([*pathlib.Path("kernel").rglob("*.py"), *pathlib.Path("bundle").rglob("*.py")])
        names = [".".join(path.with_suffix("").parts) for path in paths if not path.name.startswith("__")]
        names.remove("bundle.fcn_mask_head")  # it has its place in mmdet
        names.remove("kernel.napari_widget")  # it is napari that imports it
        for name in names:
            importlib.import_module(name)
        print(len(names))
        """
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 50


def test_building_and_predicting_without_what_windows_lacks(tmp_path: Path, wheels_site: Path) -> None:
    done = run_hidden(
        """
        import pathlib
        import build_kernel
        from kernel.__main__ import main
        from kernel.runtime.memory import peak_host_memory
        demo, out = "bundle/synthetic", sys.argv[1]
        assert build_kernel.main(["--manifest", f"{demo}/manifest.json", "--out", f"{out}/dist"]) == 0
        assert main(["synthesize", f"{out}/cells", "--images", "1", "--seed", "3"]) == 0
        pathlib.Path(out, "images").mkdir()
        picture = next(pathlib.Path(out, "cells", "train").glob("*.png"))
        cv2.imwrite(f"{out}/images/zellen-\\u7d30\\u80de.png", cv2.imread(str(picture))[:96, :128])
        words = ["--manifest", f"{demo}/manifest.json", "--weights-dir", f"{demo}/weights", "--device", "cpu"]
        assert main(["predict", f"{out}/images", *words, "--out", f"{out}/masks"]) == 0
        assert peak_host_memory() is None
        """,
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "masks" / "labels" / "zellen-\u7d30\u80de.tif").stat().st_size > 0
    table = (tmp_path / "masks" / "cells.csv").read_bytes()
    assert table.startswith(b"image,") and b"\r" not in table


def test_crops_are_made_by_processes_that_are_spawned(tmp_path: Path, wheels_site: Path) -> None:
    """Windows cannot fork, and macOS does not: what makes crops must go through pickle, and make the same."""
    script = tmp_path / "train.py"
    script.write_text(TRAIN, encoding="utf-8")
    command = [sys.executable, str(script), str(ROOT), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    here, spawned = ((tmp_path / f"{workers}.safetensors").read_bytes() for workers in (0, 1))
    assert here == spawned


TRAIN = """
import multiprocessing
import sys

root, out = sys.argv[1:]
sys.path[:0] = [root, root + "/tests"]

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from kernel.__main__ import main

    assert main(["synthesize", out + "/cells", "--images", "1", "--seed", "1"]) == 0
    recipe = ["--recipe", root + "/bundle/synthetic/recipe.toml", "--iterations", "1", "--batch-size", "1"]
    for workers in ("0", "1"):
        words = [*recipe, "--device", "cpu", "--workers", workers, "--out", f"{out}/{workers}.safetensors"]
        assert main(["train", "--data", out + "/cells", *words]) == 0
"""


# Locks


def test_windows_locks_out_a_second_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a file stands when it is locked depends on what is in it; the byte that is locked does not."""
    monkeypatch.setitem(sys.modules, "msvcrt", windows_locks)
    for _ in range(2):
        with locks.sole_writer(tmp_path / "out"):
            with (
                pytest.raises(InputError, match=rf"another run \(its process is {os.getpid()}\)"),
                locks.sole_writer(tmp_path / "out"),
            ):
                pass
            assert (tmp_path / ".out.lock").read_bytes() == str(os.getpid()).encode()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_refuses_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As Lustre often is mounted. A journal goes on without a lock there, too."""
    fcntl = pytest.importorskip("fcntl")

    def lacking(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", lacking)
    with locks.sole_writer(tmp_path / "out"):
        assert (tmp_path / ".out.lock").read_bytes() == str(os.getpid()).encode()
        Journal(tmp_path / "journal.log", {"journal": 1}).close()
    assert [path.name for path in tmp_path.iterdir()] == ["journal.log"]


# Memory


def test_peak_memory_in_the_systems_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")

    class Usage:
        ru_maxrss = 3 << 20

    monkeypatch.setattr(resource, "getrusage", lambda who: Usage)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    assert memory.peak_host_memory() == 3.0
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.peak_host_memory() == 0.003


def test_free_memory_where_the_system_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sysconf", raising=False)
    assert memory.host_memory(tmp_path / "meminfo", tmp_path / "cgroup") == memory.UNKNOWN_FREE_BYTES


# Processes


@pytest.mark.parametrize(
    ("missing", "device", "told"),
    [
        ("is_nccl_available", "cuda", "this torch has no NCCL.*train with one process"),
        ("is_available", "cpu", "this torch has no torch.distributed.*train with one process"),
    ],
)
def test_several_processes_where_torch_cannot(
    missing: str, device: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, missing, lambda: False)
    with pytest.raises(InputError, match=told):
        ProcessGroup(device)


def test_no_more_processes_than_windows_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool refuses more than 61 there, and the default is as many as there are cores."""
    started = []

    def in_no_process(function: object, items: list[int], starts: list[object], advice: str) -> list[int]:
        started.append(len(starts))
        return items

    monkeypatch.setattr(prepare, "map_in_processes", in_no_process)
    numbers = list(range(5000))
    assert list(prepare.prepare_images(numbers, 200)) == numbers  # type: ignore[arg-type]
    assert started == [61]


# Files and folders


def test_what_is_synced_may_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to sync a file that is open for reading only."""
    fcntl = pytest.importorskip("fcntl")
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE))
    with whole_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"x" * 10)
    assert synced == [os.O_RDWR]
    assert (tmp_path / "a").read_bytes() == b"x" * 10


def test_read_only_files_are_made_deletable_but_no_link_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, others = tmp_path / "mounts", tmp_path / "weights"
    folder.mkdir()
    (folder / "a").write_bytes(b"a")
    others.write_bytes(b"w")
    others.chmod(0o444)
    (folder / "link").hardlink_to(others)
    make_read_only(folder)
    deletable = {}

    def note(path: Path) -> None:
        deletable.update({entry.name: bool(entry.stat().st_mode & 0o200) for entry in Path(path).iterdir()})

    monkeypatch.setattr("kernel.folders.shutil.rmtree", note)
    remove_folder(folder)
    assert deletable == {"a": True, "link": False}
    assert others.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize(("system", "links"), [("posix", 2), ("nt", 1)])
def test_large_files_are_not_linked_on_windows(
    system: str, links: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "weights"
    source.write_bytes(b"many")
    monkeypatch.setattr("bundle.dry_run.LINK_ABOVE_BYTES", 3)

    class System:
        name = system

    monkeypatch.setattr("bundle.dry_run.os", System)
    stage_file(source, tmp_path / "mounts" / "weights")
    assert source.stat().st_nlink == links
    assert (tmp_path / "mounts" / "weights").read_bytes() == b"many"


def test_an_image_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*none.*\(No such file or directory\)"):
        write_image_file(tmp_path / "none" / "a.png", np.zeros((2, 2), np.uint8))


# A bare Python


def test_without_pip_what_to_do_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    bare = next(path for path in (tmp_path / "env/bin/python", tmp_path / "env/Scripts/python.exe") if path.exists())
    monkeypatch.setattr("bundle.fetch.sys.executable", str(bare))
    wheel = LockedWheel("addict", "2.4.0", "addict-2.4.0-py3-none-any.whl", "0" * 64, "addict.whl", "0" * 64)
    with pytest.raises(FetchError, match=r"no pip to fetch it: run `.*python\S* -m ensurepip`"):
        fetch(wheel, tmp_path / "cache")


def test_letters_that_an_encoding_lacks_do_not_end_a_program(tmp_path: Path) -> None:
    (tmp_path / "\u7d30\u80de").mkdir()
    (tmp_path / "\u7d30\u80de" / "main.py").touch()
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    command = [sys.executable, "build_kernel.py", "--out", str(tmp_path / "\u7d30\u80de" / "dist")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="cp1252", check=False)
    assert done.returncode == 0, done.stderr
    assert "kernel: " in done.stdout and "\\u7d30\\u80de" in done.stdout
