"""A job's own limits: its control groups', nested, in both forms, and its affinity."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch

from kernel.runtime import limits
from kernel.runtime.limits import limit_threads, unused_memory, usable_processors

ROOT = Path(__file__).resolve().parents[2]
V1_UNLIMITED = "9223372036854771712"


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="ascii")
    return path


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def own(tmp_path: Path, text: str) -> Path:
    return put(tmp_path / "own", text)


# --- memory -------------------------------------------------------------------------------------------------------


def put_v2(group: Path, limit: str, used: int, cached: int = 0, high: str = "max") -> None:
    for name, value in (("max", limit), ("high", high), ("current", used), ("stat", f"anon 7\ninactive_file {cached}")):
        put(group / f"memory.{name}", str(value))


def put_v1(group: Path, limit: str, used: int, cached: int = 0) -> None:
    put(group / "memory.limit_in_bytes", limit)
    put(group / "memory.usage_in_bytes", str(used))
    put(group / "memory.stat", f"inactive_file 1\ntotal_inactive_file {cached}")


def test_the_processes_own_group_counts_and_not_the_machines(tmp_path: Path, cgroup: Path) -> None:
    put_v2(cgroup / "system.slice" / "job_1", "9000", 5000, 500)
    put_v2(cgroup / "system.slice" / "job_2", "10", 10)  # a neighbour's
    assert unused_memory(cgroup, own(tmp_path, "0::/system.slice/job_1")) == 4500
    assert unused_memory(cgroup, own(tmp_path, "0::/system.slice/job_2")) == 0
    assert unused_memory(cgroup, own(tmp_path, "0::/")) is None


@pytest.mark.parametrize("tightest", ["", "slurm", "slurm/job", "slurm/job/step"])
def test_of_nested_groups_the_tightest_counts(tmp_path: Path, cgroup: Path, tightest: str) -> None:
    for group in ("", "slurm", "slurm/job", "slurm/job/step"):
        put_v2(cgroup / group, "3000" if group == tightest else "max", 1000)
    assert unused_memory(cgroup, own(tmp_path, "0::/slurm/job/step")) == 2000


def test_a_limit_that_slows_down_counts_as_one_that_kills(tmp_path: Path, cgroup: Path) -> None:
    put_v2(cgroup / "job", "9000", 1000, high="4000")
    assert unused_memory(cgroup, own(tmp_path, "0::/job")) == 3000


@pytest.mark.parametrize("tightest", ["", "docker", "docker/4f"])
def test_the_older_form_is_nested_too(tmp_path: Path, cgroup: Path, tightest: str) -> None:
    for group in ("", "docker", "docker/4f"):
        put_v1(cgroup / "memory" / group, "5000" if group == tightest else V1_UNLIMITED, 3000, 500)
    told = own(tmp_path, "9:name=systemd:/docker/4f\n4:memory:/docker/4f\n1:cpu,cpuacct:/other\n0::/")
    assert unused_memory(cgroup, told) == 2500


def test_both_forms_at_once(tmp_path: Path, cgroup: Path) -> None:
    put_v1(cgroup / "memory" / "a", "5000", 1000)
    put_v2(cgroup / "unified" / "b", "3000", 1000)
    assert unused_memory(cgroup, own(tmp_path, "4:memory:/a\n0::/b")) == 2000
    assert unused_memory(cgroup, own(tmp_path, "4:memory:/a\n0::/")) == 4000


@pytest.mark.parametrize("path", ["/docker/4f/inner", "/kubepods/pod1/4f/inner", "/../../inner", "/inner"])
def test_a_container_sees_its_group_from_outside_or_from_inside(tmp_path: Path, cgroup: Path, path: str) -> None:
    put_v2(cgroup / "inner", "3000", 1000)
    assert unused_memory(cgroup, own(tmp_path, f"0::{path}")) == 2000


def test_a_container_whose_path_is_not_there_has_its_mounts_limit(tmp_path: Path, cgroup: Path) -> None:
    put_v2(cgroup, "3000", 1000)
    assert unused_memory(cgroup, own(tmp_path, "0::/kubepods/pod1/4f")) == 2000
    assert unused_memory(cgroup, tmp_path / "none") == 2000


@pytest.mark.parametrize("damage", ["", "many", "-1", "\u00b2"])
def test_figures_that_are_none_do_not_count(tmp_path: Path, cgroup: Path, damage: str) -> None:
    put_v2(cgroup, "3000", 1000)
    (cgroup / "memory.max").write_text(damage, encoding="utf-8")
    assert unused_memory(cgroup, own(tmp_path, "nonsense\n0::/")) is None
    put_v2(cgroup, "3000", 1000)
    (cgroup / "memory.stat").write_text(f"inactive_file {damage}", encoding="utf-8")
    assert unused_memory(cgroup, own(tmp_path, "0::/")) == 2000


# --- processors ---------------------------------------------------------------------------------------------------


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 8)],
)
def test_a_quota_of_processors(tmp_path: Path, cgroup: Path, quota: str, count: int) -> None:
    told = own(tmp_path, "0::/job/step")
    put(cgroup / "job" / "cpu.max", quota)
    put(cgroup / "job" / "step" / "cpu.max", "max 100000")
    assert usable_processors(cgroup, told) == count


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(("quota", "count"), [("-1", 8), ("300000", 3), ("250000", 3), ("5000", 1)])
def test_a_quota_of_the_older_form(tmp_path: Path, cgroup: Path, quota: str, count: int) -> None:
    put(cgroup / "cpu" / "job" / "cpu.cfs_quota_us", quota)
    put(cgroup / "cpu" / "job" / "cpu.cfs_period_us", "100000")
    assert usable_processors(cgroup, own(tmp_path, "2:cpu,cpuacct:/job/step\n0::/")) == 8
    (cgroup / "cpu" / "job" / "step").mkdir()
    assert usable_processors(cgroup, own(tmp_path, "2:cpu,cpuacct:/job/step\n0::/")) == count


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_affinity_decides_the_threads_of_every_program(tmp_path: Path) -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import torch; torch.set_num_threads(5)\n"
        "from kernel.runtime.limits import limit_threads; limit_threads(); print(torch.get_num_threads())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_threads_are_lowered_and_never_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        for usable, given, expected in ((3, 5, 3), (3, 2, 2), (1, 2, 1)):
            monkeypatch.setattr(limits, "usable_processors", lambda usable=usable: usable)
            torch.set_num_threads(given)
            cv2.setNumThreads(given)
            limit_threads()
            assert torch.get_num_threads() == cv2.getNumThreads() == expected
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


@pytest.mark.parametrize(
    ("program", "place"), [("kernel.main", "kernel.main"), ("kernel.__main__", "kernel.runtime.limits")]
)
def test_every_program_begins_with_that(program: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Limited(Exception):
        pass

    def limit() -> None:
        raise Limited

    monkeypatch.setattr(f"{place}.limit_threads", limit)
    main = __import__(program, fromlist=["main"]).main
    with pytest.raises(Limited):
        main("{}", "{}") if program == "kernel.main" else main(["synthesize", "x", "--images", "1"])


# --- a real group -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_group(controller: str) -> Iterator[Path]:
    """A control group of this machine below the one that this process is in."""
    group = limits.own_groups(controller, limits.CGROUP_ROOT, limits.OWN_CGROUPS)[2:3]
    if not group or not os.access(group[0], os.W_OK):
        pytest.skip("control groups cannot be made here")
    folder = group[0] / f"test-{os.getpid()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        folder.rmdir()


def in_group(folder: Path, code: str) -> str:
    """What code prints in a process of a control group."""
    command = ["sh", "-c", f'echo $$ >"{folder}/cgroup.procs" && exec "$@"', "sh", sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def test_a_real_limit_of_memory_is_seen() -> None:
    with new_group("memory") as folder:
        if not (folder / "memory.limit_in_bytes").is_file():
            pytest.skip("memory is not limited here in the older form")
        (folder / "memory.limit_in_bytes").write_text(str(900 << 20), encoding="ascii")
        free = "torch, kernel.runtime.memory; print(kernel.runtime.memory.free_memory(torch.device('cpu')))"
        printed = in_group(folder, f"import {free}")
        assert 0 < int(printed) < 900 << 20


def test_a_real_quota_is_seen() -> None:
    with new_group("cpu") as folder:
        if not (folder / "cpu.cfs_quota_us").is_file():
            pytest.skip("processors are not limited here in the older form")
        (folder / "cpu.cfs_quota_us").write_text("90000", encoding="ascii")
        assert in_group(folder, "from kernel.runtime.limits import usable_processors as u; print(u())") == "1"
