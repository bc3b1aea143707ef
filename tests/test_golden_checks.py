"""The goldens' test itself: it takes goldens of any options, and refuses those that differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_ensemble import check_ensemble_golden
from golden_oracle import write_golden

from kernel.settings import CELL_TYPES

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")

Pair = tuple[Path, Path]


def used_by_all(count: int) -> dict[str, list[int]]:
    return {use: list(range(count)) for use in (*CELL_TYPES, "cls")}


@pytest.fixture(scope="module")
def without_nms(wheels_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One member, an image of odd sides, no NMS of boxes."""
    return write_golden(
        tmp_path_factory.mktemp("golden"), ["maskrcnn:resnet18_narrow"], used_by_all(1), (61, 87), bbox_nms=False
    )


def test_boxes_without_nms(without_nms: Pair) -> None:
    with np.load(without_nms[0]) as arrays:
        assert 10 < len(arrays["boxes"]) < len(arrays["proposals"]) == 60
    check_ensemble_golden(*without_nms)


@pytest.mark.parametrize(
    ("members", "shape", "options"),
    [
        (["maskrcnn:efficientnet_lite0"], (33, 64), {"use_tta": False, "use_tta_masks": False}),
        (["htc:resnet18_narrow", "maskrcnn:efficientnet_lite0"], (50, 41), {"use_tta_masks": False}),
        (["maskrcnn:resnet18_narrow"], (32, 32), {"rpn_max_per_img": None, "rpn_nms_pre": 20}),
        (["maskrcnn:resnet18_narrow"], (40, 70), {"rcnn_score_threshold": 1.0}),
        (["maskrcnn:resnet18_narrow"], (40, 70), {"rpn_score_threshold": 1.0, "rcnn_score_threshold": 0.1}),
    ],
    ids=["identity alone", "masks of the identity alone", "any number of proposals", "no boxes", "no proposals"],
)
def test_options(members: list[str], shape: tuple[int, int], options: dict[str, Any], tmp_path: Path) -> None:
    pair = write_golden(tmp_path, members, used_by_all(len(members)), shape, **options)
    check_ensemble_golden(*pair)
    changed(pair, drop_shapes_of_nothing)
    check_ensemble_golden(*pair)


def test_members_that_differ_by_type(tmp_path: Path) -> None:
    members = ["maskrcnn:resnet18_narrow", "maskrcnn:efficientnet_lite0"]
    usage = {"shsy5y": [1], "astro": [1], "cort": [0, 1], "cls": [0]}
    pair = write_golden(tmp_path, members, usage, (45, 75))
    with np.load(pair[0]) as arrays:
        assert len(arrays["cls_proposals"]) > 0
    check_ensemble_golden(*pair)


# --- what must be refused ----------------------------------------------------------------------------------------


def changed(pair: Pair, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Write the golden's arrays anew after `change`."""
    with np.load(pair[0]) as arrays:
        found = {key: arrays[key].copy() for key in arrays.files}
    change(found)
    np.savez(pair[0], **found)


def drop_shapes_of_nothing(arrays: dict[str, np.ndarray]) -> None:
    """As `np.array([])` is written."""
    for key, value in arrays.items():
        if value.size == 0:
            arrays[key] = np.zeros(0)


def sample_deviation(arrays: dict[str, np.ndarray]) -> None:
    """Divided by n - 1: on the last level, of 256 x 2 x 3 values, it is larger by 1 in 3000."""
    arrays["feat_stats"][:, 4] *= np.where(arrays["feat_stats"][:, 2] == 4, np.sqrt(1536 / 1535), 1)


def another_score(arrays: dict[str, np.ndarray]) -> None:
    arrays["boxes"][0, 4] += 2e-4


def another_label(arrays: dict[str, np.ndarray]) -> None:
    arrays["boxes"][0, 5] = (arrays["boxes"][0, 5] + 1) % 3


def all_boxes(arrays: dict[str, np.ndarray]) -> None:
    """As if the score threshold were for NMS alone."""
    merged = arrays["merged_boxes_scores"]
    rows = np.column_stack([merged[:, :4], merged[:, 4:].max(axis=1), merged[:, 4:].argmax(axis=1)])
    arrays["boxes"] = rows.astype(np.float32)


def other_proposals(arrays: dict[str, np.ndarray]) -> None:
    arrays["proposals"][:3, 4] -= 2e-4


def other_merged_boxes(arrays: dict[str, np.ndarray]) -> None:
    arrays["merged_boxes_scores"][5, 1] += 0.02


def other_probabilities(arrays: dict[str, np.ndarray]) -> None:
    arrays["mask_probs"][0, 3, 3] += 0.01


def other_masks(arrays: dict[str, np.ndarray]) -> None:
    arrays["masks"] = np.roll(arrays["masks"], 3, axis=2)


@pytest.fixture
def copied(without_nms: Pair, tmp_path: Path) -> Iterator[Pair]:
    for path in without_nms:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    yield tmp_path / without_nms[0].name, tmp_path / without_nms[1].name


@pytest.mark.parametrize(
    "change",
    [
        sample_deviation, another_score, another_label, all_boxes, other_proposals, other_merged_boxes,
        other_probabilities, other_masks,
    ],
)  # fmt: skip
def test_goldens_that_differ_are_refused(copied: Pair, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    changed(copied, change)
    with pytest.raises(AssertionError):
        check_ensemble_golden(*copied)
