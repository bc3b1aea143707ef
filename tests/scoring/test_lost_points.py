from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import full_frames, full_iou, full_score, random_instances

from kernel.postprocess.clean import binarise
from kernel.scoring.lost_points import FOUND_ABOVE, mended_scores, pair_cells
from kernel.scoring.metric import score_from_iou

SHAPE = (24, 30)


@pytest.mark.parametrize(
    ("iou", "expected"),
    [
        (np.zeros((0, 0)), (1, 1, 1)),
        (np.zeros((2, 0)), (0, 1, 0)),  # nothing but false alarms
        (np.zeros((0, 2)), (0, 0, 1)),
        ([[1.0]], (1, 1, 1)),
        ([[0.31]], (1, 0, 0)),  # found, with a poor mask
        ([[0.3]], (0, 0, 0.5)),  # a false alarm beside a miss
        ([[1.0], [0.0]], (0.5, 1, 0.5)),
        ([[1.0, 0.0]], (0.5, 0.5, 1)),
        ([[0.4], [0.4]], (0.5, 0, 0)),  # of equal IoU the first is its cell, the second a false alarm
    ],
)
def test_small_cases(iou: object, expected: tuple[float, float, float]) -> None:
    assert astuple(mended_scores(np.asarray(iou, dtype=np.float64))) == expected


def test_a_better_pair_goes_before_an_earlier_one() -> None:
    assert pair_cells(np.array([[0.5, 0.6], [0.0, 0.9]])).tolist() == [[1, 1], [0, 0]]
    assert pair_cells(np.array([[0.5, 0.6], [0.0, FOUND_ABOVE]])).tolist() == [[0, 1]]


@given(st.integers(0, 2**32 - 1))
def test_equals_the_masks_mended_one_by_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    instances = random_instances(rng, 8, SHAPE)
    found = full_frames(binarise(instances, 0.3).select(np.flatnonzero(rng.random(8) < 0.8))).astype(bool)
    truth = full_frames(binarise(instances, 0.5).select(np.flatnonzero(rng.random(8) < 0.8))).astype(bool)
    for index in range(1, len(truth)):  # annotated cells apart from each other
        truth[index] &= ~truth[:index].any(axis=0)
    truth = truth[truth.any(axis=(1, 2))]
    found = found[found.any(axis=(1, 2))]
    iou = full_iou(found, truth)
    pairs = pair_cells(iou).tolist()
    partner = dict(pairs)
    exact = np.array([truth[partner[i]] if i in partner else mask for i, mask in enumerate(found)]).reshape(-1, *SHAPE)
    missed = [index for index in range(len(truth)) if index not in partner.values()]
    mended = mended_scores(iou)
    if len(found) or len(truth):
        assert mended.no_false_alarms == pytest.approx(score_from_iou(iou[sorted(partner)]), abs=1e-12)
        assert mended.nothing_missed == pytest.approx(
            full_score(np.concatenate([found, truth[missed]]), truth), abs=1e-12
        )
        # A false alarm on a cell that is found would hit that one a second time: with exact masks it has no room.
        alarms = [index for index in range(len(found)) if index not in partner]
        again = bool((iou[np.ix_(alarms, list(partner.values()))] > 0.5).any())
        assert mended.exact_masks >= full_score(exact, truth) - 1e-12
        assert again or mended.exact_masks == pytest.approx(full_score(exact, truth), abs=1e-12)
    assert min(astuple(mended)) >= score_from_iou(iou) - 1e-12
