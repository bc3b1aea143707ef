"""What a tuning says and leaves in its folder."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from oracles import random_instances

from kernel.errors import InputError
from kernel.images.reading import read_image
from kernel.postprocess.clean import binarise
from kernel.settings import Thresholds
from kernel.tuning.descriptions import describe_tuning
from kernel.tuning.evidence import write_evidence
from kernel.tuning.plan import TuningPlan
from kernel.tuning.threshold_evidence import EVIDENCE_NAMES, read_surfaces, threshold_evidence
from kernel.tuning.threshold_grid import TUNED_FIELDS, ThresholdGrid
from kernel.tuning.threshold_search import TuningImage
from kernel.tuning.threshold_tuning import TypeTuning, tune_cell_type

GRID = ThresholdGrid((0.3, 0.5), (0.1,), (0, 20), (0.0, 0.3, 1.0))
PLAN = TuningPlan(grid=GRID, seed=5)
#: No mask is as sure as that: nothing is found, and every point of the grid is better.
OLD = Thresholds(mask_threshold=0.5, min_size=20, confidence=1.0)


def tuning_of(cell_type: str, count: int) -> TypeTuning:
    images = []
    for seed in range(count):
        instances = random_instances(np.random.default_rng(seed), 12, (40, 52))
        images.append(TuningImage(f"{cell_type}{seed}", instances, binarise(instances, 0.4)))
    return tune_cell_type(cell_type, images, OLD, PLAN)


@pytest.fixture(scope="module")
def tunings() -> list[TypeTuning]:
    return [tuning_of("astro", 7), tuning_of("cort", 1)]


def test_it_is_said_what_was_chosen_and_what_that_is_worth(tunings: list[TypeTuning]) -> None:
    lines = describe_tuning(tunings, PLAN).splitlines()
    found = tunings[0].assessment
    unseen, gain = found.expected, found.gain
    assert lines[0] == f"astro: 0.0000 before, {found.after:.4f} after, on the 7 images tuned on"
    assert lines[1] == (
        f"  expected on unseen images: {unseen.mean:.4f} [{unseen.low:.4f}, {unseen.high:.4f}], "
        f"gain {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    )
    assert lines[2].startswith("  95 % intervals, 5 folds drawn 10 times; ")
    assert lines[2].endswith(" of 12 points beat the old settings beyond noise, p = 0.008")
    assert lines[3].startswith("  mask_threshold 0.") and lines[3].endswith(f"confidence {tunings[0].new.confidence}")
    assert lines[4:6] == [
        "cort: 0.0000 before, 0.0000 after, on the 1 image tuned on",
        "  expected on unseen images: 0.0000 (no interval from one image or well), "
        "gain +0.0000 (no interval from one image or well)",
    ]
    assert "no gain: so few images cannot tell one from noise" in lines[6]
    assert lines[8].startswith("all: 0.0000 before") and "8 images" in lines[8] and len(lines) == 10
    stays = replace(tunings[0].found, choice=replace(tunings[0].found.choice, point=None, p_value=0.3))
    assert "no gain: none of 12 points beats the old settings beyond noise, p = 0.300; they stay" in describe_tuning(
        [replace(tunings[0], found=stays)], PLAN
    )
    assert describe_tuning([], PLAN) == ""


def test_the_folder_holds_all_the_evidence(tunings: list[TypeTuning], tmp_path: Path) -> None:
    write_evidence(tmp_path, threshold_evidence(tunings, PLAN), "--- a\n")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == set(EVIDENCE_NAMES) - {"surface_shsy5y.csv", "surface_shsy5y.png"}
    assert (tmp_path / "manifest.diff").read_text() == "--- a\n"
    tuning = tunings[0]
    data = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))
    assert (data["seed"], data["search"], data["trials"], data["level"]) == (5, "grid", None, 0.05)
    assert data["overall"]["images"] == 8 and data["types"]["cort"]["assessment"]["gain"]["low"] is None
    kept = data["types"]["astro"]
    assert kept["new"] == {name: getattr(tuning.new, name) for name in TUNED_FIELDS}
    assert kept["grid"]["confidence"] == [0.0, 0.3, 1.0] and kept["gain_beyond_noise"] is True
    assert kept["units"] == 7
    assert [image["after"] for image in kept["images"]] == tuning.after.tolist()
    assert [image["unseen"] for image in kept["images"]] == tuning.validation.scores.tolist()
    assert np.mean([image["unseen"] for image in kept["images"]]) == pytest.approx(
        kept["assessment"]["expected"]["mean"]
    )
    assert len(kept["chosen_without_each_fold"]) == len(kept["images"][0]["folds"]) == 10

    with np.load(tmp_path / "tuning.npz") as arrays:
        np.testing.assert_array_equal(arrays["astro_scores"], tuning.found.candidates.scores)
        assert arrays["astro_values"].shape == (12, 4) and arrays["astro_folds"].shape == (10, 7)
        assert arrays["cort_current"].tolist() == [0]
    rows = list(csv.DictReader((tmp_path / "surface_astro.csv").open(encoding="utf-8")))
    assert len(rows) == 12
    best = max(rows, key=lambda row: float(row["score"]))
    assert float(best["score"]) == pytest.approx(tuning.found.candidates.scores.mean(axis=0).max(), abs=1e-6)
    assert min(float(row["p_value"]) for row in rows) == pytest.approx(tuning.found.choice.p_value, abs=1e-4)
    assert read_image(tmp_path / "surface_astro.png").std() > 5


def test_nothing_tuned_leaves_a_folder_as_well(tmp_path: Path) -> None:
    write_evidence(tmp_path, threshold_evidence([tuning_of("cort", 0)], PLAN), "")
    data = json.loads((tmp_path / "tuning.json").read_text(encoding="utf-8"))
    assert data["overall"]["before"] is None and data["types"]["cort"]["images"] == []
    (surface,) = read_surfaces(tmp_path)
    assert surface.cell_type == "cort" and surface.best is None


def test_surfaces_are_read_again(tunings: list[TypeTuning], tmp_path: Path) -> None:
    write_evidence(tmp_path, threshold_evidence(tunings, PLAN), "")
    surfaces = read_surfaces(tmp_path)
    for surface, tuning in zip(surfaces, tunings, strict=True):
        assert (surface.cell_type, surface.grid) == (tuning.cell_type, tuning.grid)
        np.testing.assert_array_equal(surface.scores.ravel(), tuning.found.candidates.scores.mean(axis=0))
        assert surface.best is not None
        best = tuning.grid.thresholds_at(int(surface.scores.argmax()), OLD)
        assert [surface.values[axis][place] for axis, place in enumerate(surface.best)] == [
            getattr(best, name) for name in TUNED_FIELDS
        ]


def test_what_makes_no_surface_is_told(tunings: list[TypeTuning], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder that `tune --out` has written"):
        read_surfaces(tmp_path)
    write_evidence(tmp_path, threshold_evidence(tunings, replace(PLAN, search="optuna")), "")
    with pytest.raises(
        InputError, match="is of a search by optuna, and only a grid's scores make a surface: tune with --search grid"
    ):
        read_surfaces(tmp_path)
    write_evidence(tmp_path, threshold_evidence(tunings, PLAN), "")
    (tmp_path / "tuning.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="is no folder that `tune --out` has written"):
        read_surfaces(tmp_path)
