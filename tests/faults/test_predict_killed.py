"""`predict` over many images in sub-folders, killed at random moments and started again."""

from __future__ import annotations

import csv
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from built_script import DEMO

from kernel.commands.written import WRITTEN_NAME
from kernel.runtime.journal import read_journal

ROOT = Path(__file__).resolve().parents[2]
PLATES, WELLS, KILLS = 5, 40, 5

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's"),
]


def start(home: Path, out: str) -> subprocess.Popen[str]:
    """Begin, or go on."""
    exports = "labels,geojson,rois,tables,coco,submission"
    words = [str(home / "plates"), "--recursive", "--out", str(home / out), "--export", exports, "--device", "cpu"]
    words += ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights")]
    command = [sys.executable, str(ROOT / "tests" / "quick_predict.py"), str(home / f"{out}.done"), "predict", *words]
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )


def content(folder: Path) -> dict[str, bytes]:
    """Every file, but for the seconds that images took, and the note of the files' times."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files.pop(WRITTEN_NAME)
    rows = list(csv.DictReader(files.pop("images.csv").decode("utf-8").splitlines()))
    files["images.csv"] = repr([{**row, "seconds": float(row["seconds"]) >= 0} for row in rows]).encode()
    return files


def test_nothing_is_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    """Equal names lie in each sub-folder, and no two images are the same."""
    seed = int(os.environ.get("TORTURE_SEED", "0"))
    rng, moments = np.random.default_rng(seed), random.Random(seed)
    for number in range(PLATES * WELLS):
        path = tmp_path / "plates" / f"plate{number // WELLS}" / f"well{number % WELLS:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = np.full((40, 48), 120, np.uint8)
        for y, x in rng.integers(2, 36, (3, 2)):
            image[y : y + 3, x : x + 3] = 255
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    journal, out = tmp_path / ".out.unfinished" / "journal.log", tmp_path / "out"
    for goal in sorted(moments.sample(range(5, PLATES * WELLS - 10), KILLS)):
        process = start(tmp_path, "out")
        try:
            while not journal.is_file() or journal.read_bytes().count(b"\n") < goal:
                assert process.poll() is None, process.communicate()[0]
                time.sleep(0.02)
            time.sleep(moments.random() / 10)
        finally:
            process.kill()
            process.communicate()
        assert not out.exists()
    finished = [record["image"] for record in read_journal(journal).records]
    assert len(finished) == len(set(finished))  # none was done twice
    last = start(tmp_path, "out")
    told = last.communicate()[0]
    assert last.returncode == 0 and f"{len(finished)} of 200 images are finished already" in told, told
    assert sum(": 0 cells" in line or " cells of shsy5y" in line for line in told.splitlines()) == 200 - len(finished)
    segmented = len((tmp_path / "out.done").read_text(encoding="utf-8").splitlines())
    assert 200 <= segmented <= 200 + KILLS  # each kill may cost the image that was being done
    assert not (tmp_path / ".out.unfinished").exists()

    whole = start(tmp_path, "whole")
    assert whole.wait() == 0, whole.communicate()[0]
    assert content(out) == content(tmp_path / "whole")
    with (out / "images.csv").open(encoding="utf-8", newline="") as stream:
        names = [row["image"] for row in csv.DictReader(stream)]
    assert names == [f"plate{plate}/well{well:02}" for plate in range(PLATES) for well in range(WELLS)]
    for folder, ending in (("labels", ".tif"), ("outlines", ".geojson"), ("rois", ".zip")):
        assert all((out / folder / f"{name}{ending}").is_file() for name in names)
