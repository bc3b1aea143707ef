"""What five corrected images are worth: the shipped members trained on with them, and scored on all others.

    PYTHONPATH=.:tests python tests/benchmarks/bench_retrain.py DIR OUT [--zoom 0.5] [--kinds maskrcnn]

DIR has `images` and `masks` (label images), as usiigaci_t98g. Images that the members have learned from are left out.
Of the others the true masks of CORRECTED, spread over the set, stand for corrected ones. The commands `prepare
--annotated` and `train-members --from` do the work; one that was stopped goes on. It prints a table: the competition's
score (mean over the images), and precision, recall and F1 of all cells at IoU 0.5.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from kernel.__main__ import main as run_command
from kernel.commands.common import find_ensemble
from kernel.data.annotated import list_annotated
from kernel.images.reading import list_images
from kernel.manifest.presets import MANIFEST_NAME, WEIGHTS_NAME, members_folder
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import Manifest
from kernel.vendored import use_vendored_packages

#: How many images are corrected.
CORRECTED = 5
#: From this IoU on a cell is found.
FOUND_IOU = 0.5


def run(*words: object) -> None:
    """A command of ours, which must succeed."""
    code = run_command([str(word) for word in words])
    if code:
        raise SystemExit(code)


def part_images(source: Path, out: Path, seen: Collection[str]) -> None:
    """Copy the images and masks into `corrected` and `others`, but for those that members have seen."""
    unseen = [path for path in list_images(source / "images") if path.stem not in seen]
    images = sorted(unseen, key=lambda path: (len(path.stem), path.stem))
    chosen = {images[number * len(images) // CORRECTED] for number in range(CORRECTED)}
    for path in images:
        folder = out / ("corrected" if path in chosen else "others")
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / kind / path.name, folder / kind / path.name)


def score(name: str, manifest: Manifest, weights: Path, data: Path, stored: Path) -> list[str]:
    """A row of the table."""
    from kernel.scoring.lost_points import pair_cells
    from kernel.scoring.metric import iou_matrix
    from kernel.scoring.predicting import PredictionJob
    from kernel.scoring.scores import ScoredImage, scores_of, validate_jobs

    files = find_ensemble(manifest, weights)
    hits = found = annotated = 0

    def watch(scored: ScoredImage) -> None:
        nonlocal hits, found, annotated
        iou = iou_matrix(scored.masks, scored.truth)
        pairs = pair_cells(iou)
        hits += int((iou[pairs[:, 0], pairs[:, 1]] > FOUND_IOU).sum())
        found, annotated = found + len(scored.masks), annotated + len(scored.truth)

    results = validate_jobs([PredictionJob(entry, files) for entry in list_annotated(data)], ["cpu"], stored, watch)
    precision, recall = hits / max(found, 1), hits / max(annotated, 1)
    f1 = 2 * hits / max(found + annotated, 1)
    told = [scores_of(results).overall, precision, recall, f1]
    return [name, str(len(results)), *(f"{value:.4f}" for value in told), f"{found} of {annotated}"]


def main() -> None:
    """Run all steps and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--from", dest="start", default="shipped")
    parser.add_argument("--kinds", nargs="+")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--zoom", type=float, help="at which members are shown the images")
    parser.add_argument("--cell-type", default="astro", help="what the images count as (default: %(default)s)")
    parser.add_argument("--no-tta", action="store_true", help="one view of each image instead of four")
    options = parser.parse_args()
    use_vendored_packages()
    from kernel.scoring.predicting import PredictionJob
    from kernel.scoring.seen import find_seen

    def prepare(folder: Path, name: str) -> Path:
        out = options.out / f"{name}-prepared"
        words = ["--cell-type", options.cell_type, "--out", out, "--workers", 1]
        run("prepare", "--annotated", folder, *words, *(["--zoom", options.zoom] if options.zoom else []))
        return out

    def chosen(manifest: Manifest) -> Manifest:
        members = tuple(member for member in manifest.members if not options.kinds or member.kind in options.kinds)
        settings = replace(manifest.ensemble, use_tta=not options.no_tta, use_tta_masks=not options.no_tta)
        return replace(manifest, members=members, ensemble=settings)

    start = members_folder(options.start)
    before = chosen(read_manifest(start / MANIFEST_NAME))
    files = find_ensemble(before, start / WEIGHTS_NAME)
    everything = [PredictionJob(entry, files) for entry in list_annotated(prepare(options.source, "all"))]
    seen = find_seen(everything).by_image
    print(f"{len(seen)} of {len(everything)} images were learned from, and are left out", flush=True)
    part_images(options.source, options.out, seen)
    data, others = (prepare(options.out / name, name) for name in ("corrected", "others"))
    rows = [score("before", before, start / WEIGHTS_NAME, others, options.out / "stored-before")]
    print(" | ".join(rows[0]), flush=True)
    began = time.monotonic()
    more = ["--kinds", *options.kinds] if options.kinds else []
    more += ["--iterations", options.iterations] if options.iterations else []
    mine = options.out / "members"
    run("train-members", "--from", options.start, "--data", data, "--out", mine, "--device", "cpu", *more)
    minutes = (time.monotonic() - began) / 60
    after = chosen(read_manifest(mine / MANIFEST_NAME))
    rows.append(score("after", after, mine / WEIGHTS_NAME, others, options.out / "stored-after"))
    print("| members | images | score | precision | recall | F1 | cells found |\n|---|---|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print(f"trained on {CORRECTED} images in {minutes:.0f} minutes")


if __name__ == "__main__":
    main()
