"""The built script on many small images of which one in ten is at fault."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

import build_kernel
from bundle.site import WHEELS, install_site
from kernel.data.synthetic.generate import generate_image
from kernel.postprocess.submitted import read_submission

DEMO = Path(__file__).resolve().parents[1] / "bundle" / "synthetic"
SHAPE = (96, 128)  # of every image
FAULT_EVERY = 10
SECONDS_BETWEEN = 0.5  # looks at the memory
#: The first part of a run does not count: allocators fill up in it.
WARMING_UP = 0.3
GROWTH_ALLOWED = 0.03


def empty(path: Path, _: bytes) -> None:
    path.write_bytes(b"")


def short_head(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[:19])


def cut(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[: len(whole) // 2])


def lying_head(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[:16] + (60000).to_bytes(4, "big") * 2 + whole[24:])


def text(path: Path, _: bytes) -> None:
    path.write_text("not an image", encoding="utf-8", newline="\n")


def speck(path: Path, _: bytes) -> None:
    path.write_bytes(cv2.imencode(".png", np.full((1, 1), 9, np.uint8))[1].tobytes())


def other_bytes(path: Path, whole: bytes) -> None:
    path.write_bytes(whole[:60] + bytes(255 - byte for byte in whole[60:]))


def dangling(path: Path, _: bytes) -> None:
    path.symlink_to(path.with_name("nothing"))


#: By name, what spoils an image that is there as PNG.
FAULTS: dict[str, Callable[[Path, bytes], None]] = {
    fault.__name__: fault for fault in (empty, short_head, cut, lying_head, text, speck, other_bytes, dangling)
}
#: Of these no row is asked for: there is no file.
NO_FILE = {"dangling"}


@dataclass(frozen=True)
class Soak:
    """How it went."""

    images: int
    faults: int
    rows_missing: int
    good_without_cells: int  # whole images whose row is empty
    exit_code: int
    growth: float  # of the memory over the run, in parts of itself

    @property
    def lost(self) -> int:
        """Images without what they should have, and one for a wrong end or growing memory."""
        return (
            self.rows_missing
            + self.good_without_cells
            + (self.exit_code not in (0, 1, 2))
            + (self.growth > GROWTH_ALLOWED)
        )

    @property
    def survived(self) -> int:
        return self.faults if not self.lost else 0

    def describe(self) -> str:
        """One line."""
        return (
            f"soak: {self.images} images, {self.faults} of them at fault; {self.rows_missing} rows missing, "
            f"{self.good_without_cells} whole images without cells, exit code {self.exit_code}, memory grew by "
            f"{self.growth:.1%}"
        )


def soak(folder: Path, count: int) -> Soak:
    """Build the script with one of the synthetic members, and let it do `count` images in `folder`."""
    install_site()
    manifest = one_member_manifest(folder)
    out = folder / "dist"
    shutil.copytree(WHEELS, out / "wheels")
    if build_kernel.main(["--manifest", str(manifest), "--out", str(out)]):
        raise RuntimeError("the script was not built")
    inputs, working = folder / "input", folder / "working"
    working.mkdir()
    test = inputs / "competitions" / "sartorius-cell-instance-segmentation" / "test"
    faults = make_images(test, count)
    shutil.copytree(out / "wheels", inputs / "mmdet-pure-python-wheels")
    shutil.copytree(DEMO / "weights", inputs / "in-network-ensemble-demo-weights")
    code, memory = run_watched(out / "kernel" / "kernel.py", inputs, working)
    rows = read_submission(working / "submission.csv")
    asked_for = {f"{number:05}" for number in range(count)} - {name for name, kind in faults.items() if kind in NO_FILE}
    good = asked_for - set(faults)
    return Soak(
        images=count,
        faults=len(faults),
        rows_missing=len(asked_for - set(rows)),
        good_without_cells=sum(not rows.get(name) for name in good),
        exit_code=code,
        growth=growth(memory),
    )


def one_member_manifest(folder: Path) -> Path:
    """The synthetic members' manifest with its quickest member alone."""
    folder.mkdir()
    manifest = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))
    del manifest["$schema"]
    manifest["members"] = manifest["members"][:1]
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest), encoding="utf-8", newline="\n")
    return path


def make_images(folder: Path, count: int) -> dict[str, str]:
    """Write `count` images as PNG, every tenth spoiled; returns how, by its name."""
    folder.mkdir(parents=True)
    encoded = [
        cv2.imencode(".png", generate_image("cort", seed, SHAPE).image)[1].tobytes() for seed in range(FAULT_EVERY)
    ]
    kinds, faults = list(FAULTS), {}
    for number in range(count):
        path, whole = folder / f"{number:05}.png", encoded[number % len(encoded)]
        if number % FAULT_EVERY:
            path.write_bytes(whole)
        else:
            kind = faults[path.stem] = kinds[number // FAULT_EVERY % len(kinds)]
            FAULTS[kind](path, whole)
    return faults


def run_watched(script: Path, inputs: Path, working: Path) -> tuple[int, list[int]]:
    """Run the script on one thread; returns its exit code, and the memory of its processes in the course of it."""
    variables = {"KERNEL_INPUT_ROOT": str(inputs), "KERNEL_WORKING": str(working), "KERNEL_DEVICE": "cpu"}
    with (working / "log.txt").open("wb") as log:
        run = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            env={**os.environ, **variables, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        memory = []
        while run.poll() is None:
            memory.append(family_memory(run.pid))
            time.sleep(SECONDS_BETWEEN)
    return run.returncode, memory


def family_memory(pid: int) -> int:
    """Bytes of a process and its descendants in memory, as /proc tells them."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(family_memory(int(child)) for child in children)


def growth(memory: list[int]) -> float:
    """From the part after the start to the last of a run, in parts of the former; each by its median."""
    watched = memory[int(len(memory) * WARMING_UP) : -2]  # at the end workers have left
    third = max(len(watched) // 3, 1)
    if len(watched) < 3:
        return 0.0
    return statistics.median(watched[-third:]) / statistics.median(watched[:third]) - 1
