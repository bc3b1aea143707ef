"""What a job may take of its machine: the memory and the processors that its control groups and its affinity leave it.

A container or a batch job sees the whole machine's figures, and is killed or slowed down where it goes by them. Its
own limits are those of its control group and of all groups above that, in the older and the newer form (v1, v2).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import cv2
import torch

#: Where Linux mounts the control groups, and tells which ones a process is in.
CGROUP_ROOT = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")
#: Limits of memory, what is used of it, and the caches that are given up when memory is needed: in v2, then in v1.
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.high", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def limit_threads() -> None:
    """Let torch and OpenCV have no more threads than there are processors for this process, from now on.

    To be called once, when a program starts. More threads than a quota allows wait for each other.
    """
    count = usable_processors()
    if torch.get_num_threads() > count:
        torch.set_num_threads(count)
    if cv2.getNumThreads() > count:
        cv2.setNumThreads(count)


def usable_processors(cgroup: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> int:
    """How many processors this process may use at a time, 1 or more: by its affinity and the quotas of its groups."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in own_groups("cpu", cgroup, own):
        count = min(count, math.ceil(processor_quota(group)) if processor_quota(group) > 0 else count)
    return max(1, count)


def processor_quota(group: Path) -> float:
    """The processors that a control group may use, in parts of one too; 0 where it has no quota."""
    numbers = read_words(group / "cpu.max") or [
        *read_words(group / "cpu.cfs_quota_us"),
        *read_words(group / "cpu.cfs_period_us"),
    ]
    if len(numbers) != 2 or not all(map(str.isdecimal, numbers)) or int(numbers[1]) == 0:  # "max", or -1
        return 0.0
    return int(numbers[0]) / int(numbers[1])


def unused_memory(cgroup: Path = CGROUP_ROOT, own: Path = OWN_CGROUPS) -> int | None:
    """The bytes that the control groups of this process may still take; None where none has a limit.

    Args:
        cgroup: where the control groups are mounted.
        own: the file that tells which ones this process is in.
    """
    left: list[int] = []
    for group in own_groups("memory", cgroup, own):
        for limit_name, used_name, cache_name in MEMORY_FILES:
            limit, used = read_words(group / limit_name), read_words(group / used_name)
            if limit and used and limit[0].isdecimal() and used[0].isdecimal():
                left.append(int(limit[0]) - int(used[0]) + cached_bytes(group / "memory.stat", cache_name))
    return max(0, min(left)) if left else None


def cached_bytes(stat: Path, name: str) -> int:
    """The bytes of a control group's cached files: they count as used, but are given up when memory is needed."""
    words = read_words(stat)
    figures = dict(zip(words[::2], words[1::2], strict=False))
    return int(figures.get(name, "0")) if figures.get(name, "0").isdecimal() else 0


def own_groups(controller: str, cgroup: Path, own: Path) -> list[Path]:
    """The folders of the control groups of this process that may limit what a controller is for, and those above them.

    Args:
        controller: "memory" or "cpu".
        cgroup: where the control groups are mounted.
        own: the file that tells which ones this process is in: a line of number:controllers:path for each.
    """
    paths = {"": "", controller: ""}  # of v2, which has no controllers in its line, and of v1
    for line in read_lines(own):
        fields = line.split(":", 2)
        if len(fields) == 3:
            paths |= dict.fromkeys(fields[1].split(","), fields[2])
    places = ((cgroup, paths[""]), (cgroup / "unified", paths[""]), (cgroup / controller, paths[controller]))
    return [group for mount, path in places for group in groups_upwards(mount, path)]


def groups_upwards(mount: Path, path: str) -> list[Path]:
    """The folder of a group below the `mount` of its hierarchy, and those above it up to the mount.

    A container may see the path from the machine's root, while its mount begins with its own group, or further down.
    """
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    for start in range(len(parts) + 1):
        inner = parts[start:]
        if os.path.isdir(mount.joinpath(*inner)):  # noqa: PTH112 (Path's own raises where a folder is closed)
            return [mount.joinpath(*inner[:depth]) for depth in range(len(inner), -1, -1)]
    return []


def read_lines(path: Path) -> list[str]:
    """The lines of one of the system's files; none where it is not there, or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def read_words(path: Path) -> list[str]:
    """The words of one of the system's files; none where it is not there, or cannot be read."""
    return " ".join(read_lines(path)).split()
