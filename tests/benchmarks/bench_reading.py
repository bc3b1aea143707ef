"""Memory and time of reading one large image in the ways that it may be stored.

    PYTHONPATH=.:tests python tests/benchmarks/bench_reading.py [side]

Each file is read in a process of its own, after a small one, so that what libraries take is not counted. What is
printed is how far its memory (the high-water mark of RSS) rises above that; more than three times the stored pixels
fails. Linux only: it says the mark of a process, and takes it back.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile

ROOT = Path(__file__).resolve().parents[2]
ALLOWED_FACTOR = 3
#: What allocators and libraries take besides, whatever the image.
BESIDES = 24 << 20

READ = """
import sys
from pathlib import Path
from kernel.images.reading import read_image

def high_water_mark():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

small, path = map(Path, sys.argv[1:])
read_image(small)
Path("/proc/self/clear_refs").write_text("5")
before = high_water_mark()
read_image(path)
print(high_water_mark() - before)
"""


def measured(path: Path) -> int:
    """The bytes by which the memory of a process rises while it reads an image."""
    with tempfile.TemporaryDirectory() as temporary:
        small = Path(temporary, "small.tif")
        tifffile.imwrite(small, np.zeros((40, 50), np.uint16), compression="zlib")
        command = [sys.executable, "-c", READ, small, path]
        return int(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def write_files(folder: Path, side: int) -> dict[Path, int]:
    """The same picture, stored in many ways; with the bytes of its pixels."""
    pixels = np.random.default_rng(0).normal(2000, 150, (side, side, 3)).astype(np.uint16)
    deflate: dict[str, Any] = {"compression": "zlib", "compressionargs": {"level": 1}}
    ways: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "plain": (pixels, {}),
        "planes": (np.ascontiguousarray(np.moveaxis(pixels, 2, 0)), {"planarconfig": "separate"}),
        "other byte order": (pixels, {"byteorder": ">"}),
        "one strip": (pixels, {**deflate, "rowsperstrip": side}),
        "tiles": (pixels, {**deflate, "tile": (256, 256), "predictor": True}),
        "LZW": (pixels, {"compression": "lzw"}),
        "8 bits": ((pixels >> 4).astype(np.uint8), {}),
        "gray": (pixels[..., 0].copy(), {"photometric": "minisblack"}),
        "white is zero": (pixels[..., 0].copy(), {"photometric": "miniswhite"}),
        "float": (pixels[..., 0].astype(np.float32), {"photometric": "minisblack"}),
    }
    files = {}
    for name, (stored, options) in ways.items():
        path = folder / f"{name}.tif"
        tifffile.imwrite(path, stored, **{"photometric": "rgb", **options})
        files[path] = stored.nbytes
    for name, stored in {"16 bits.png": pixels, "8 bits.png": (pixels >> 4).astype(np.uint8)}.items():
        cv2.imwrite(str(folder / name), stored, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        files[folder / name] = stored.nbytes
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", type=int, nargs="?", default=3000)
    options = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        for path, stored in write_files(Path(temporary), options.side).items():
            start = time.perf_counter()
            taken = measured(path)
            seconds = time.perf_counter() - start
            worst = max(worst, (taken - BESIDES) / stored)
            print(f"{path.name:24s} {stored >> 20:5d} MB stored, {taken >> 20:5d} MB taken, {seconds:5.1f} s")
    assert worst <= ALLOWED_FACTOR, f"{worst:.1f} times the stored pixels"


if __name__ == "__main__":
    main()
