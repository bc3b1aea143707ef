"""What `tune --stages` reads of the command line, and what its choice of members means."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from kernel.__main__ import main
from kernel.commands.tune_stages import parse_grid, uses_of_points
from kernel.errors import InputError
from kernel.tuning.stage_scores import MASK_VIEWS, STAGE_THRESHOLDS, StagePoint

NAMES = (*STAGE_THRESHOLDS, MASK_VIEWS)


def test_the_grid() -> None:
    assert parse_grid(["rpn_nms_pre=100,2000,100", "use_tta_masks=true,false", "rcnn_iou_threshold=0.5"], NAMES) == {
        "rpn_nms_pre": (100, 2000),
        "use_tta_masks": (True, False),
        "rcnn_iou_threshold": (0.5,),
    }


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("rpn_iou_treshold=0.5", "unknown name 'rpn_iou_treshold'; did you mean 'rpn_iou_threshold'?"),
        ("confidence=0.5", "unknown name 'confidence'; known are rpn_nms_pre, "),
        ("rpn_iou_threshold=0.5,1.5", "found '1.5', expected a number from 0 to 1"),
        ("rpn_iou_threshold=", "found '', expected a number"),
        ("rpn_iou_threshold", "found '', expected a number"),
        ("rpn_nms_pre=10.5", "found '10.5', expected an integer"),
        ("use_tta_masks=1", "found '1', expected true or false"),
    ],
)
def test_a_wrong_grid_is_told(word: str, told: str) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        parse_grid([word], NAMES)
    with pytest.raises(InputError, match="rpn_nms_pre is given twice"):
        parse_grid(["rpn_nms_pre=1", "rpn_nms_pre=2"], NAMES)


def test_a_grid_without_stages_is_told(capsys: pytest.CaptureFixture[str], wheels_site: Any) -> None:
    words = ["tune", "--manifest", "m", "--weights-dir", "w", "--data", "d"]
    assert main([*words, "--stage-grid", "rpn_nms_pre=1"]) == 2
    assert "--stage-grid belongs to --stages" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--grid", "grid.toml"], "--grid is for the post-processing's thresholds, not for --stages: use --stage-grid"),
        (["--search", "optuna"], "--search is for the post-processing's thresholds"),
        (["--level", "2"], "--level 2.0: it must be from 0.001"),
    ],
)
def test_what_is_not_for_stages_is_told(
    words: list[str], told: str, capsys: pytest.CaptureFixture[str], wheels_site: Any
) -> None:
    assert main(["tune", "--manifest", "m", "--weights-dir", "w", "--data", "d", "--stages", *words]) == 2
    assert told in capsys.readouterr().err


def test_chosen_members_become_uses() -> None:
    members = [
        SimpleNamespace(name="one", use_for=frozenset({"shsy5y", "astro", "cls"})),
        SimpleNamespace(name="two", use_for=frozenset({"astro", "cort"})),
    ]
    ensemble: Any = SimpleNamespace(members=members)
    assert uses_of_points(ensemble, {"astro": StagePoint(True), "cort": StagePoint(False)}) == {}
    chosen = {"astro": StagePoint(True, members=("one",)), "cort": StagePoint(True)}
    assert uses_of_points(ensemble, chosen) == {"one": ["shsy5y", "astro", "cls"], "two": ["cort"]}
    chosen["cort"] = StagePoint(True, members=("one",))
    assert uses_of_points(ensemble, chosen) == {"one": ["shsy5y", "astro", "cort", "cls"], "two": []}
