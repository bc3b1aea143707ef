"""The memory and the time that one large image takes, from its file to its run lengths, on the CPU.

    python tests/benchmarks/bench_large_image.py --side 10000
    python tests/benchmarks/bench_large_image.py --side 10000 --members maskrcnn --computed-tiles 4

The image is a mosaic of synthetic ones, the members are the demo's. With --computed-tiles, encoders and necks are run
for so many tiles alone, and all later ones get the features of the last such tile: memory and the number of cells stay
as they are, and the hours of the encoders are saved. Prints the peak of the resident memory, in GB.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kernel.data.synthetic.generate import generate_image
from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.load import load_ensemble
from kernel.ensemble.members import Member
from kernel.images.reading import read_image, read_image_shape
from kernel.local_weights import resolve_weights
from kernel.log import show_log
from kernel.manifest.reader import read_manifest
from kernel.models.detectors import ViewFeatures
from kernel.postprocess.submission import check_image_rles
from kernel.runtime.memory import apply_plan, free_memory, plan_memory
from kernel.segment import segment_image
from kernel.vendored import use_vendored_packages

DEMO = Path(__file__).resolve().parents[2] / "bundle" / "synthetic"


def peak_gb() -> float:
    """The most resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def mosaic(side: int) -> np.ndarray:
    """(side, side) uint8: four synthetic images, repeated."""
    parts = [generate_image("shsy5y", seed, (520, 704)).image for seed in range(4)]
    block = np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])])
    return np.tile(block, (-(-side // block.shape[0]), -(-side // block.shape[1])))[:side, :side]


def reuse_features(computed_tiles: int) -> None:
    """Let all encoders run for so many tiles alone; tiles of another size are computed too."""
    compute = Ensemble.compute_features
    runs: dict[tuple[str, tuple[int, ...]], int] = {}
    last: dict[tuple[str, tuple[int, ...]], ViewFeatures] = {}

    def limited(self: Ensemble, member: Member, images: torch.Tensor) -> ViewFeatures:
        key = member.name, tuple(images.shape)
        runs[key] = runs.get(key, 0) + 1
        if runs[key] <= computed_tiles:
            last[key] = compute(self, member, images)
        return last[key]

    Ensemble.compute_features = limited  # type: ignore[method-assign]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=3000)
    parser.add_argument("--members", nargs="+", default=["maskrcnn", "cascade", "htc"])
    parser.add_argument("--no-tta", action="store_true")
    parser.add_argument("--computed-tiles", type=int)
    options = parser.parse_args()
    show_log(sys.stderr)
    use_vendored_packages()
    manifest = read_manifest(DEMO / "manifest.json")
    manifest = replace(manifest, members=tuple(each for each in manifest.members if each.name in options.members))
    manifest, found = resolve_weights(manifest, DEMO / "weights")
    ensemble = load_ensemble(manifest, {weights.member.name: weights.path for weights in found}, "cpu")
    if options.no_tta:
        ensemble.settings = replace(ensemble.settings, use_tta=False, use_tta_masks=False)
    if options.computed_tiles:
        reuse_features(options.computed_tiles)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.png"
        cv2.imwrite(str(path), mosaic(options.side))
        apply_plan(ensemble, plan_memory(ensemble, read_image_shape(path) or (1, 1), free_memory(ensemble.device)))
        print(f"loaded: peak {peak_gb():.2f} GB", flush=True)
        image = read_image(path)
    print(f"read: peak {peak_gb():.2f} GB", flush=True)
    start = time.perf_counter()
    result = segment_image(ensemble, image)
    rles = result.masks.rles()
    seconds = time.perf_counter() - start
    check_image_rles("large", rles, image.shape[:2])
    stages = {stage: round(spent) for stage, spent in result.prediction.seconds.items()}
    print(
        f"{options.side} x {options.side}: {len(result.prediction.scores)} boxes, {len(rles)} cells, {seconds:.0f} s "
        f"({stages}), peak {peak_gb():.2f} GB"
    )


if __name__ == "__main__":
    main()
