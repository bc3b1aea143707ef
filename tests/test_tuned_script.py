"""The score that tuning promises is the built script's: from stored predictions to a submission, to the last digit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import build_kernel
from kernel.__main__ import main
from kernel.data.annotated import list_annotated
from kernel.data.annotations import ImageAnnotations
from kernel.data.synthetic.generate import write_dataset
from kernel.manifest.reader import read_manifest
from kernel.postprocess.submitted import read_submission
from kernel.scoring.metric import image_score
from kernel.scoring.predictions import read_predictions
from kernel.scoring.scores import score_image
from kernel.settings import CELL_TYPES

DEMO = Path(__file__).resolve().parents[1] / "bundle" / "synthetic"
#: None of it as in the synthetic members' manifest.
GRID = """
mask_threshold = [0.37, 0.52]
mask_nms_threshold = [0.12, 0.33]
min_size = [7, 55]
confidence = [0.1, 0.26, 0.51, 0.76]
"""

pytestmark = pytest.mark.xdist_group("script")


def test_the_tuned_score_is_that_of_the_scripts_submission(wheels_dir: Path, tmp_path: Path) -> None:
    data, stored, manifest = tmp_path / "data", tmp_path / "stored", tmp_path / "manifest.json"
    write_dataset(data, dict.fromkeys(CELL_TYPES, 2), seed=11, shape=(160, 208))
    content = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))
    for thresholds in content["ensemble"]["thresholds"].values():
        thresholds["confidence"] = 1.0  # no cell is as sure as that: anything is a gain
    manifest.write_text(json.dumps(content), encoding="utf-8")
    ensemble = ["--manifest", str(manifest), "--weights-dir", str(DEMO / "weights"), "--device", "cpu"]
    assert main(["validate", *ensemble, "--data", str(data), "--predictions", str(stored)]) == 0

    before = read_manifest(manifest).ensemble.thresholds
    (tmp_path / "grid.toml").write_text(GRID, encoding="utf-8")
    # Two images cannot show a gain beyond noise at the usual level.
    plan = ["--grid", str(tmp_path / "grid.toml"), "--level", "0.6", "--out", str(tmp_path / "tuning"), "--write"]
    given = ["--manifest", str(manifest), "--data", str(data), "--predictions", str(stored)]
    assert main(["tune", *given, *plan]) == 0
    after = read_manifest(manifest).ensemble.thresholds
    assert all(after[cell_type] != before[cell_type] for cell_type in CELL_TYPES)
    tuned = json.loads((tmp_path / "tuning" / "tuning.json").read_text(encoding="utf-8"))["types"]

    shutil.copytree(wheels_dir, tmp_path / "dist" / "wheels")
    built = ["--out", str(tmp_path / "dist"), "--dry-run", "--images", str(data / "train")]
    assert build_kernel.main([*ensemble, *built]) == 0
    submitted = read_submission(tmp_path / "dist" / "dry-run" / "submission.csv")

    promised = {image["id"]: image["after"] for cell_type in CELL_TYPES for image in tuned[cell_type]["images"]}
    scores, of_stored = {}, {}
    for entry, prediction in read_predictions(stored, list_annotated(data)):
        rles = tuple(submitted[entry.image_id])
        found = ImageAnnotations(entry.image_id, entry.cell_type, entry.annotations.image_shape, rles).masks()
        scores[entry.image_id] = image_score(found, entry.masks())
        of_stored[entry.image_id] = score_image(entry, prediction, after).score
    assert scores == of_stored == promised
    assert len(scores) == 6 and sum(scores.values()) > 0
