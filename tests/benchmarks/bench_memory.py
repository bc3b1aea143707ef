"""Memory of the built script over many images: flat, or growing with what it has done?

    PYTHONPATH=.:tests python tests/benchmarks/bench_memory.py [images] [folder]

It builds the demo's kernel with one view, runs it offline over synthetic images of the competition's size, and adds up
once a second what the script's processes hold (RSS). Printed are the peaks of the run's quarters and the growth from
the second to the last; more than a tenth, with some hundred images, fails. All goes to memory.csv and memory.png.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2

from kernel.data.synthetic.generate import generate_image
from kernel.settings import CELL_TYPES

ROOT = Path(__file__).resolve().parents[2]
#: Different images of each type; the run sees each several times, under other names.
DIFFERENT = 4
#: From the second quarter to the last; the first one still imports, loads and meets its largest image.
ALLOWED_GROWTH = 0.10
#: With fewer images a quarter may hold none of the largest.
ENOUGH_IMAGES = 100


def write_images(folder: Path, count: int) -> None:
    """`count` images in the order in which types take turns."""
    made = [generate_image(kind, seed).image for seed in range(DIFFERENT) for kind in CELL_TYPES]
    for number in range(count):
        assert cv2.imwrite(str(folder / f"{number:05d}.png"), made[number % len(made)])


def write_manifest(path: Path) -> None:
    """The demo's members, one view each."""
    manifest = json.loads((ROOT / "bundle/synthetic/manifest.json").read_text())
    manifest.pop("$schema", None)
    manifest["ensemble"] |= {"use_tta": False, "use_tta_masks": False}
    path.write_text(json.dumps(manifest))


def resident_bytes(root: int) -> int:
    """What the process `root` and all below it hold in memory; shared pages count for each."""
    parents, resident = {}, {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        number = int(status.parent.name)
        parents[number] = int(fields["PPid"])
        resident[number] = 1024 * int(fields.get("VmRSS", "0 kB").split()[0])
    below = {root}
    while more := {number for number, parent in parents.items() if parent in below} - below:
        below |= more
    return sum(resident.get(number, 0) for number in below)


def watch(process: subprocess.Popen[bytes]) -> list[tuple[float, int]]:
    """(seconds, bytes) once a second until the process ends."""
    started, samples = time.monotonic(), []
    while process.poll() is None:
        samples.append((time.monotonic() - started, resident_bytes(process.pid)))
        time.sleep(1)
    return samples


def draw(samples: list[tuple[float, int]], folder: Path) -> None:
    """memory.csv and memory.png in `folder`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "memory.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["seconds", "bytes"])
        writer.writerows(samples)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([seconds for seconds, _ in samples], [count / 1e9 for _, count in samples])
    axes.set(title="the built script over its images", xlabel="seconds", ylabel="resident memory, GB", ylim=(0, None))
    figure.savefig(folder / "memory.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=int, nargs="?", default=12)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist/benchmarks/memory")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        images, manifest = Path(temporary, "images"), Path(temporary, "manifest.json")
        images.mkdir()
        write_images(images, options.images)
        write_manifest(manifest)
        command = [
            sys.executable, ROOT / "build_kernel.py", "--manifest", manifest, "--out", Path(temporary, "dist"),
            "--weights-dir", ROOT / "bundle/synthetic/weights", "--dry-run", "--images", images,
        ]  # fmt: skip
        with Path(temporary, "log").open("w+b") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            samples = watch(process)
            if process.returncode:
                log.seek(0)
                sys.exit(log.read().decode()[-4000:])
    draw(samples, options.folder)
    quarter = len(samples) / 4
    peaks = [max(count for _, count in samples[round(n * quarter) : round((n + 1) * quarter)]) for n in range(4)]
    print(f"{options.images} images in {samples[-1][0]:.0f} s; peak of each quarter:", end=" ")
    print(", ".join(f"{peak / 1e9:.2f} GB" for peak in peaks))
    growth = peaks[3] / peaks[1] - 1
    print(f"growth from the second quarter to the last: {growth:+.1%}")
    print(f"curve: {options.folder / 'memory.csv'}, {options.folder / 'memory.png'}")
    if options.images >= ENOUGH_IMAGES:
        assert growth <= ALLOWED_GROWTH, "memory grows with the images done"


if __name__ == "__main__":
    main()
