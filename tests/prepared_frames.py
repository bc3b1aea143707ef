"""What a preparation has written, as full frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils

from kernel.data.prepare_report import PrepareReport


def frames_of(out: Path) -> dict[str, list[np.ndarray]]:
    """Every mask of annotations.json by pycocotools alone, (H, W) bool, by the image's name."""
    data = json.loads((out / "annotations.json").read_text())
    names = {image["id"]: Path(image["file_name"]).stem for image in data["images"]}
    frames: dict[str, list[np.ndarray]] = {name: [] for name in names.values()}
    for annotation in data["annotations"]:
        mask = mask_utils.decode(annotation["segmentation"]).astype(bool)
        assert mask.sum() == annotation["area"] > 0
        assert annotation["bbox"] == mask_utils.toBbox(annotation["segmentation"]).tolist()
        frames[names[annotation["image_id"]]].append(mask)
    return frames


def assert_same_frames(found: dict[str, list[np.ndarray]], expected: dict[str, list[np.ndarray]]) -> None:
    assert found.keys() == expected.keys()
    for name, frames in expected.items():
        np.testing.assert_array_equal(np.stack(found[name]), np.stack(frames))


def assert_every_row_is_told(report: PrepareReport) -> None:
    left_out = len(report.dropped_cells) + len(report.empty_masks) + sum(image.rows for image in report.dropped_images)
    assert report.rows_read == report.cells + left_out
