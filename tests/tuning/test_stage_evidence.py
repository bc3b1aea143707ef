"""What a tuning of the stages leaves: every score it was chosen by, by image and by point."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from kernel.settings import Thresholds
from kernel.tuning.evidence import write_evidence
from kernel.tuning.plan import TuningPlan
from kernel.tuning.stage_evidence import STAGE_EVIDENCE_NAMES, stage_evidence
from kernel.tuning.stage_scores import StagePoint, StageScores
from kernel.tuning.stage_tuning import tune_stages

THRESHOLDS = {name: Thresholds(rpn_nms_pre=5) for name in ("astro", "cort")}
POINTS = [
    StagePoint(True),
    StagePoint(False),
    StagePoint(True, {"rpn_nms_pre": 3}),
    StagePoint(True, {"rpn_nms_pre": 3}, ("one", "two")),
]


def test_the_files_hold_what_was_tried_chosen_and_scored(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = {name: 0.4 + rng.normal(0, 0.01, (8, len(POINTS))) for name in THRESHOLDS}
    scores["astro"][:, 3] += 0.3
    scored = {name: StageScores(tuple(f"{name}{index}" for index in range(8)), rows) for name, rows in scores.items()}
    plan = TuningPlan(seed=3)
    tuning = tune_stages(POINTS, scored, THRESHOLDS, plan)
    write_evidence(tmp_path, stage_evidence(tuning, plan), "a diff\n")
    assert {path.name for path in tmp_path.iterdir()} == set(STAGE_EVIDENCE_NAMES)
    assert (tmp_path / "manifest.diff").read_text() == "a diff\n"
    told = json.loads((tmp_path / "stages.json").read_text())
    assert (told["seed"], told["level"], told["folds_given"]) == (3, plan.significance, False)
    assert told["use_tta_masks"]["old"] is told["use_tta_masks"]["new"] is True
    assert told["points"][3] == {"use_tta_masks": True, "thresholds": {"rpn_nms_pre": 3}, "members": ["one", "two"]}
    astro, cort = told["types"]["astro"], told["types"]["cort"]
    assert astro["old"]["rpn_nms_pre"] == 5 and astro["new"]["rpn_nms_pre"] == 3 and astro["members"] == ["one", "two"]
    assert astro["gain_beyond_noise"] and not cort["gain_beyond_noise"]
    assert (astro["units"], told["use_tta_masks"]["units"]) == (8, 16)
    assert cort["old"] == cort["new"] and cort["members"] is None
    assert [image["id"] for image in astro["images"]] == [f"astro{index}" for index in range(8)]
    assert [image["before"] for image in astro["images"]] == scores["astro"][:, 0].tolist()
    assert [image["after"] for image in astro["images"]] == scores["astro"][:, 3].tolist()
    assert [image["folds"] for image in cort["images"]] == tuning.folds.T[8:].tolist()
    assert astro["assessment"]["gain"]["mean"] == tuning.types["astro"].assessment.gain.mean > 0.1
    assert told["overall"]["images"] == 16
    with np.load(tmp_path / "stages.npz") as arrays:
        np.testing.assert_array_equal(arrays["astro_scores"], scores["astro"])
    rows = list(csv.DictReader((tmp_path / "points.csv").open()))
    assert list(rows[0]) == ["use_tta_masks", "rpn_nms_pre", "members", "astro", "cort"]
    assert [row["rpn_nms_pre"] for row in rows] == ["", "", "3", "3"]
    assert [row["use_tta_masks"] for row in rows] == ["true", "false", "true", "true"]
    assert rows[3]["members"] == "one two"
    assert float(rows[2]["cort"]) == pytest.approx(scores["cort"][:, 2].mean(), abs=1e-6)


def test_no_images_leave_files_too(tmp_path: Path) -> None:
    scored = {name: StageScores((), np.zeros((0, len(POINTS)))) for name in THRESHOLDS}
    plan = TuningPlan(folds={})
    tuning = tune_stages(POINTS, scored, THRESHOLDS, plan)
    write_evidence(tmp_path, stage_evidence(tuning, plan), "")
    told = json.loads((tmp_path / "stages.json").read_text())
    assert told["types"]["cort"]["images"] == [] and told["overall"]["images"] == 0
    assert next(csv.DictReader((tmp_path / "points.csv").open()))["cort"] == ""
