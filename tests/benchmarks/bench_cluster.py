"""Throughput of `predict --scheduler` with one worker and with two, each of one thread, on this machine.

    PYTHONPATH=.:tests .venv/bin/python tests/benchmarks/bench_cluster.py [--images 24]

Counted from the first image that is done, so that starting and loading do not count.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
from dask_cluster import ROOT, Cluster

from kernel.commands.common import find_ensemble
from kernel.commands.predict import load_scaled
from kernel.data.synthetic.generate import generate_image
from kernel.export.folder import ImageWork, Wanted
from kernel.export.inputs import InputImage
from kernel.manifest.reader import read_manifest
from kernel.runtime.cluster import map_on_cluster

DEMO = ROOT / "bundle" / "synthetic"
SHAPE = (192, 256)


def images_a_second(folder: Path, workers: int, count: int) -> float:
    """Images done in a second after each worker has done its first."""
    images = []
    for number in range(count + workers):
        path = folder / f"{number}.png"
        cv2.imwrite(str(path), generate_image("cort", number, SHAPE).image)
        images.append(InputImage(path, path.name, path.stem))
    files = find_ensemble(read_manifest(DEMO / "manifest.json"), DEMO / "weights")
    (folder / "out").mkdir()
    (folder / "cluster").mkdir()
    work = ImageWork(
        str(folder), partial(load_scaled, files, "cpu"), SHAPE, Wanted(("labels", "tables")), folder / "out"
    )
    with Cluster(folder / "cluster", workers) as cluster:
        times = [time.monotonic() for _ in map_on_cluster(cluster.address, work, images, folder / "out")]
    return count / (times[-1] - times[workers - 1])


def main() -> None:
    """Print the table."""
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=24)
    options = parser.parse_args()
    print("workers  images a second  of one worker's")
    first = 0.0
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            rate = images_a_second(Path(folder), workers, options.images)
        first = first or rate
        print(f"{workers:7}  {rate:15.3f}  {rate / first:15.2f}")


if __name__ == "__main__":
    main()
