"""The score that tuning promises is the built script's: from stored predictions to a submission, to the last digit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import build_kernel
from kernel.__main__ import main
from kernel.data.annotated import list_annotated
from kernel.data.annotations import ImageAnnotations
from kernel.data.synthetic import write_dataset
from kernel.manifest import read_manifest
from kernel.postprocess.submission import read_submission
from kernel.settings import CELL_TYPES
from kernel.validation.manifest_edit import write_thresholds
from kernel.validation.metric import image_score
from kernel.validation.predictions import read_predictions, settings_fingerprint
from kernel.validation.search import TuningPlan
from kernel.validation.tuning import ThresholdGrid
from kernel.validation.validate import score_image, tune_predictions

DEMO = Path(__file__).resolve().parents[1] / "bundle" / "demo"
#: None of it as in the demo's manifest.
GRID = ThresholdGrid((0.37, 0.52), (0.12, 0.33), (7, 55), (0.1, 0.26, 0.51, 0.76))

pytestmark = pytest.mark.xdist_group("script")


def test_the_tuned_score_is_that_of_the_scripts_submission(wheels_dir: Path, tmp_path: Path) -> None:
    data, stored, manifest = tmp_path / "data", tmp_path / "stored", tmp_path / "manifest.json"
    write_dataset(data, dict.fromkeys(CELL_TYPES, 2), seed=11, shape=(160, 208))
    shutil.copy(DEMO / "manifest.json", manifest)
    ensemble = ["--manifest", str(manifest), "--weights-dir", str(DEMO / "weights"), "--device", "cpu"]
    assert main(["validate", *ensemble, "--data", str(data), "--predictions", str(stored)]) == 0

    images = list_annotated(data)
    before = read_manifest(manifest)
    predictions = list(read_predictions(stored, images, settings_fingerprint(before)))
    # So few images prove no gain: any is taken for one.
    tuned = tune_predictions(predictions, before.ensemble.thresholds, TuningPlan(grid=GRID, level=0.999))
    assert any(tuning.has_gain for tuning in tuned.values())
    write_thresholds(manifest, before.ensemble.thresholds, {kind: tuning.new for kind, tuning in tuned.items()})

    shutil.copytree(wheels_dir, tmp_path / "dist" / "wheels")
    built = ["--out", str(tmp_path / "dist"), "--dry-run", "--images", str(data / "train")]
    assert build_kernel.main([*ensemble, *built]) == 0
    submitted = read_submission(tmp_path / "dist" / "dry-run" / "submission.csv")

    after = read_manifest(manifest).ensemble.thresholds
    for cell_type in CELL_TYPES:
        scores, of_stored = [], []
        for entry, prediction in predictions:
            if entry.cell_type == cell_type:
                rles = tuple(submitted[entry.image_id])
                found = ImageAnnotations(entry.image_id, cell_type, entry.annotations.image_shape, rles).masks()
                scores.append(image_score(found, entry.masks()))
                of_stored.append(score_image(entry, prediction, after).score)
        assert scores == of_stored == tuned[cell_type].after.tolist()
        assert len(scores) == 2 and sum(scores) > 0
