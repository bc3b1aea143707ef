"""Validation on an ensemble that says what it is told to: scores worked out by hand, also where nothing is found."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from tiny_detectors import tiny_detector

from kernel.data.annotated import AnnotatedImage
from kernel.data.annotations import ImageAnnotations
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.members import Member
from kernel.images.reading import read_image
from kernel.masks.rle import encode_rle
from kernel.scoring.scores import (
    ImageResult,
    describe_folds,
    describe_scores,
    draw_scored,
    results_to_csv,
    scores_of,
    validate_ensemble,
)
from kernel.settings import CELL_TYPES, CLS_USE, EnsembleSettings, Thresholds
from kernel.tuning.plan import TuningPlan
from kernel.tuning.threshold_grid import ThresholdGrid
from kernel.tuning.threshold_tuning import tune_ensemble

SHAPE = (60, 80)
#: x1, y1, x2, y2 of cells that do not touch; up to 28 pixels wide a pasted mask of ones is exactly its box.
FIRST, SECOND, THIRD = (4, 5, 24, 25), (30, 5, 50, 25), (30, 32, 50, 52)

Box = tuple[int, int, int, int]
Found = list[tuple[Box, float, str]]  # box, score and cell type


@dataclass
class FakeEnsemble:
    """Knows an image by its gray level, and what to find in it."""

    found: dict[int, Found]
    counted: str = "shsy5y"
    hollow: bool = False  # whether masks have a hole in the middle
    settings: EnsembleSettings = field(default_factory=EnsembleSettings)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    views_per_batch: int = 1
    feature_budget_bytes: int = 0
    tiling: None = None

    def predict(self, image_bgr: np.ndarray) -> Prediction:
        cells = self.found[int(image_bgr[0, 0, 0])]
        mask_probs = torch.ones(len(cells), 28, 28)
        if self.hollow:
            mask_probs[:, 8:20, 8:20] = 0
        return Prediction(
            image_shape=image_bgr.shape[:2],
            cell_type=self.counted,
            level_counts=(5, 4, 3, 2, 1),
            boxes_xyxy=torch.tensor([box for box, _, _ in cells], dtype=torch.float32).reshape(-1, 4),
            scores=torch.tensor([score for _, score, _ in cells], dtype=torch.float32),
            labels=torch.tensor([CELL_TYPES.index(kind) for _, _, kind in cells], dtype=torch.int64),
            mask_probs=mask_probs,
            members=("fake",),
            seconds={"features": 1.5, "boxes": 0.5},
            dtype=torch.float32,
        )


def annotated(
    folder: Path, gray: int, cell_type: str, boxes: list[tuple[int, int, int, int]], sample_id: str = ""
) -> AnnotatedImage:
    """An image of one gray level in a file, with rectangles annotated."""
    path = folder / f"image{gray}.png"
    assert cv2.imwrite(str(path), np.full(SHAPE, gray, np.uint8))
    rles = tuple(encode_rle(np.ones((y2 - y1, x2 - x1), bool), (y1, x1), SHAPE) for x1, y1, x2, y2 in boxes)
    return AnnotatedImage(path, ImageAnnotations(path.stem, cell_type, SHAPE, rles, sample_id))


def result(
    image_id: str = "a", cell_type: str = "astro", found_type: str | None = "astro", score: float = 0.5
) -> ImageResult:
    return ImageResult(
        image_id=image_id,
        cell_type=cell_type,
        found_type=found_type,
        counted_type="cort",
        cells=7,
        found_cells=5 if found_type else 0,
        score=score,
        seconds=2.0,
        level_counts=(10, 20, 30),
    )


def test_images_are_scored_by_the_masks_of_the_submission(tmp_path: Path) -> None:
    images = [
        annotated(tmp_path, 10, "shsy5y", [FIRST, SECOND], "shsy5y_A1-1_Vessel-1_Ph_1"),
        annotated(tmp_path, 20, "cort", [FIRST]),
        annotated(tmp_path, 30, "astro", [FIRST]),
        annotated(tmp_path, 40, "astro", []),
    ]
    ensemble = FakeEnsemble(
        {
            10: [(FIRST, 0.9, "shsy5y"), (SECOND, 0.8, "shsy5y"), (THIRD, 0.7, "shsy5y"), (THIRD, 0.1, "shsy5y")],
            20: [(FIRST, 0.9, "astro"), (SECOND, 0.8, "astro"), (THIRD, 0.3, "cort")],
            30: [],
            40: [],
        }
    )
    results = validate_ensemble(ensemble, images)
    assert [r.image_id for r in results] == ["image10", "image20", "image30", "image40"]
    assert [(r.cell_type, r.found_type) for r in results] == [
        ("shsy5y", "shsy5y"),
        ("cort", "astro"),  # and astro's thresholds leave out the third
        ("astro", None),
        ("astro", None),
    ]
    assert [(r.cells, r.found_cells) for r in results] == [(2, 3), (1, 2), (1, 0), (0, 0)]
    assert [r.group for r in results] == ["Vessel-1_A1", None, None, None]
    assert [r.score for r in results] == pytest.approx([2 / 3, 1 / 2, 0, 1])
    assert {(r.counted_type, r.seconds, r.level_counts) for r in results} == {("shsy5y", 2.0, (5, 4, 3, 2, 1))}


def test_pictures_are_drawn_where_nothing_is_found_as_well(tmp_path: Path) -> None:
    images = [annotated(tmp_path, 10, "shsy5y", [FIRST]), annotated(tmp_path, 20, "cort", [FIRST])]
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    validate_ensemble(
        FakeEnsemble({10: [(FIRST, 0.9, "shsy5y")], 20: []}), images, partial(draw_scored, folder=pictures)
    )
    assert sorted(path.name for path in pictures.iterdir()) == ["cort_image20.png", "shsy5y_image10.png"]
    coloured, gray = (read_image(path).astype(int) for path in sorted(pictures.iterdir(), reverse=True))
    assert np.ptp(coloured, axis=2).max() > 100
    assert np.ptp(gray, axis=2).max() == 0


def test_no_images(tmp_path: Path) -> None:
    ensemble = FakeEnsemble({})
    assert validate_ensemble(ensemble, []) == []
    assert tune_ensemble(ensemble, []) == {}
    assert list(tmp_path.iterdir()) == []
    assert results_to_csv([]).splitlines() == [
        "id,cell_type,found_type,counted_type,cells,found_cells,score,seconds,level_counts,fold,seen_by"
    ]
    assert describe_scores("ensemble", []).startswith("ensemble: nan on 0 images ()")


def test_scores_are_described_in_one_line() -> None:
    results = [
        result(score=0.25),
        result("b", score=0.75, found_type=None),
        result("c", "shsy5y", "shsy5y", 1.0),
        result("d", "cort", "astro", 0.0),
    ]
    assert describe_scores("htc", results) == (
        "htc: 0.5000 on 4 images (astro 0.5000, cort 0.0000, shsy5y 1.0000); cell type right on 2; 2.0 s per image"
    )
    stored = [*results[:3], replace(results[3], is_stored=True)]
    assert describe_scores("htc", stored).endswith("; 2.0 s per image, as stored for 1 of 4")
    scores = scores_of(results)
    assert (scores.overall, scores.images) == (0.5, 4)
    assert scores.per_type == {"astro": 0.5, "shsy5y": 1.0, "cort": 0.0}


def test_no_name_of_an_image_is_a_formula_of_a_spreadsheet() -> None:
    (row,) = csv.DictReader(io.StringIO(results_to_csv([result("=cmd|' /C calc'!A0")])))
    assert row["id"] == "'=cmd|' /C calc'!A0"


def test_results_become_a_row_each() -> None:
    results = [result(score=1 / 3), replace(result("b", found_type=None), fold=0)]
    rows = list(csv.DictReader(io.StringIO(results_to_csv(results))))
    assert rows[0] == {
        "id": "a",
        "cell_type": "astro",
        "found_type": "astro",
        "counted_type": "cort",
        "cells": "7",
        "found_cells": "5",
        "score": "0.333333",
        "seconds": "2.00",
        "level_counts": "10 20 30",
        "fold": "",
        "seen_by": "",
    }
    assert (rows[1]["id"], rows[1]["found_type"], rows[1]["found_cells"], rows[1]["fold"]) == ("b", "", "0", "0")


def test_folds_are_described_by_themselves() -> None:
    results = [replace(result(score=score), fold=fold) for score, fold in ((0.25, 10), (0.5, 2), (0.75, 10))]
    assert [line[: line.index(" (")] for line in describe_folds(results)] == [
        "fold 2: 0.5000 on 1 images",
        "fold 10: 0.5000 on 2 images",
    ]
    assert describe_folds([result()]) == describe_folds([]) == []


GRID = ThresholdGrid(mask_thresholds=(0.5,), nms_thresholds=(0.1,), min_sizes=(0,), confidences=(0.2, 0.4, 0.95))


PLAN = TuningPlan(grid=GRID)


def repeated(folder: Path, count: int, kind: str, truth: list[Box], found: Found) -> tuple[list[AnnotatedImage], dict]:
    """As many images of one content: a gain is believed only where enough images show it."""
    images = [annotated(folder, 10 + index, kind, truth) for index in range(count)]
    return images, dict.fromkeys(range(10, 10 + count), found)


def test_tuning_finds_the_confidence_that_drops_the_wrong_cell(tmp_path: Path) -> None:
    images, found = repeated(tmp_path, 8, "shsy5y", [FIRST], [(FIRST, 0.9, "shsy5y"), (THIRD, 0.35, "shsy5y")])
    images.append(annotated(tmp_path, 30, "shsy5y", [SECOND]))
    ensemble = FakeEnsemble({**found, 30: [(SECOND, 0.45, "shsy5y")]})
    ((cell_type, tuning),) = tune_ensemble(ensemble, images, PLAN).items()
    assert (cell_type, tuning.cell_type, tuning.image_ids) == (
        "shsy5y",
        "shsy5y",
        tuple(image.image_id for image in images),
    )
    assert tuning.before.tolist() == [1 / 2] * 8 + [1] and tuning.after.tolist() == [1] * 9
    base = ensemble.settings.thresholds["shsy5y"]
    assert tuning.old == base and tuning.has_gain
    assert tuning.new == replace(base, confidence=0.4)
    # With any of them left out the same is chosen, so that the images left out gain as much.
    assert tuning.validation.scores.tolist() == pytest.approx([1] * 9)
    assert tuning.assessment.gain.mean == pytest.approx(4 / 9)
    # The scores promised are those that the submission gets, and what made no difference stayed.
    settings = EnsembleSettings(thresholds={**ensemble.settings.thresholds, "shsy5y": tuning.new})
    again = validate_ensemble(replace(ensemble, settings=settings), images)
    assert [r.score for r in again] == tuning.after.tolist()


def test_tuning_with_the_default_grid_goes_the_same_way(tmp_path: Path) -> None:
    images, found = repeated(tmp_path, 6, "cort", [FIRST], [(FIRST, 0.75, "cort"), (THIRD, 0.72, "cort")])
    ensemble = FakeEnsemble(found)
    tuning = tune_ensemble(ensemble, images)["cort"]
    assert tuning.before.tolist() == [1 / 2] * 6 and tuning.after.tolist() == [1] * 6
    # All else stays as it was.
    assert tuning.new == replace(ensemble.settings.thresholds["cort"], confidence=0.75, min_size=70)
    # Without a fifth of the six, there are too few to tell.
    assert tuning.assessment.gain.mean == 0


def test_so_few_images_change_nothing(tmp_path: Path) -> None:
    images, found = repeated(tmp_path, 4, "cort", [FIRST], [(FIRST, 0.75, "cort"), (THIRD, 0.72, "cort")])
    tuning = tune_ensemble(FakeEnsemble(found), images)["cort"]
    assert not tuning.has_gain and tuning.new == tuning.old and tuning.after.tolist() == tuning.before.tolist()


def test_each_type_is_tuned_on_its_own_images_and_types_without_one_are_left_out(tmp_path: Path) -> None:
    astro, cort = tmp_path / "astro", tmp_path / "cort"
    astro.mkdir()
    cort.mkdir()
    images, found = repeated(astro, 6, "astro", [FIRST], [(FIRST, 0.9, "astro"), (THIRD, 0.38, "astro")])
    others = [annotated(cort, 50 + index, "cort", [SECOND]) for index in range(6)]
    thresholds = {
        "shsy5y": Thresholds(),
        "astro": Thresholds(rpn_nms_pre=7),
        "cort": Thresholds(rpn_nms_pre=9, confidence=0.5),
    }
    ensemble = FakeEnsemble(
        found | {gray: [(SECOND, 0.38, "cort")] for gray in range(50, 56)},
        settings=EnsembleSettings(thresholds=thresholds),
    )
    grids = {"cort": replace(GRID, confidences=(0.1, 0.2, 0.35, 0.6))}
    tuned = tune_ensemble(ensemble, [*images, *others], replace(PLAN, grid_of_type=grids))
    assert {kind: (found.new.rpn_nms_pre, found.new.confidence) for kind, found in tuned.items()} == {
        "astro": (7, 0.4),
        "cort": (9, 0.2),  # of those that find it, the nearest that has such neighbours
    }


@pytest.mark.parametrize(("cell_type", "expected"), [("astro", 1.0), ("shsy5y", 0.7)])
def test_masks_are_corrupted_where_the_submission_does(tmp_path: Path, cell_type: str, expected: float) -> None:
    # The holes of astro's masks are filled. With a hole of 8 x 8 in 20 x 20 pixels the IoU is 0.84, above seven of ten.
    ensemble = FakeEnsemble({10: [(FIRST, 0.9, cell_type)]}, hollow=True)
    images = [annotated(tmp_path, 10, cell_type, [FIRST])]
    tuning = tune_ensemble(ensemble, images, PLAN)[cell_type]
    assert tuning.before.tolist() == pytest.approx([expected])
    assert tuning.found.candidates.scores.max() == pytest.approx(expected)


def test_an_image_where_nothing_is_found_counts_with_nothing(tmp_path: Path) -> None:
    images, found = repeated(tmp_path, 7, "shsy5y", [FIRST], [(FIRST, 0.9, "shsy5y"), (THIRD, 0.35, "shsy5y")])
    images.append(annotated(tmp_path, 20, "shsy5y", [SECOND]))
    tuning = tune_ensemble(FakeEnsemble({**found, 20: []}), images, PLAN)["shsy5y"]
    assert (tuning.assessment.before, tuning.assessment.after) == pytest.approx((3.5 / 8, 7 / 8))
    assert tuning.new.confidence == 0.4


def test_an_image_counts_for_the_type_whose_thresholds_it_meets(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Found as shsy5y, an image of cort is finished by shsy5y's thresholds, in `validate` and in the submission."""
    images, found = repeated(tmp_path, 7, "shsy5y", [FIRST], [(FIRST, 0.9, "shsy5y"), (THIRD, 0.35, "shsy5y")])
    images.append(annotated(tmp_path, 20, "cort", [FIRST]))
    thresholds = {**EnsembleSettings().thresholds, "cort": Thresholds(confidence=0.99)}
    ensemble = FakeEnsemble({**found, 20: [(FIRST, 0.9, "shsy5y")]}, settings=EnsembleSettings(thresholds=thresholds))
    ((cell_type, tuning),) = tune_ensemble(ensemble, images, PLAN).items()
    assert cell_type == "shsy5y" and len(tuning.image_ids) == 8
    assert tuning.before.tolist() == [each.score for each in validate_ensemble(ensemble, images)]
    assert "1 image(s) count for the type that the members find: image20, cort found as shsy5y" in caplog.text


def test_nothing_found_at_all_can_be_tuned_on(tmp_path: Path) -> None:
    ensemble = FakeEnsemble({10: []})
    tuning = tune_ensemble(ensemble, [annotated(tmp_path, 10, "cort", [FIRST])], PLAN)["cort"]
    assert tuning.before.tolist() == tuning.after.tolist() == tuning.validation.scores.tolist() == [0]
    assert tuning.new == ensemble.settings.thresholds["cort"]


def test_a_lone_member_is_used_for_everything(wheels_site: Path) -> None:
    members = [
        Member("one", "maskrcnn", tiny_detector("maskrcnn"), frozenset({"shsy5y", CLS_USE})),
        Member("two", "cascade", tiny_detector("cascade"), frozenset({"astro", "cort"})),
    ]
    settings = EnsembleSettings(use_tta=False, use_tta_masks=False)
    ensemble = Ensemble(members, settings, dtype=torch.bfloat16, views_per_batch=3)
    assert ensemble.needs_first_pass
    alone = ensemble.alone("two")
    assert [(member.name, member.kind) for member in alone.members] == [("two", "cascade")]
    assert alone.members[0].detector is members[1].detector
    assert alone.members[0].use_for == {*CELL_TYPES, CLS_USE}
    assert not alone.needs_first_pass
    assert alone.settings is settings
    assert (alone.device, alone.dtype, alone.views_per_batch) == (torch.device("cpu"), torch.bfloat16, 3)
    assert ensemble.members[1].use_for == {"astro", "cort"}
    found = alone.predict(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    assert found.members == ("two",)
