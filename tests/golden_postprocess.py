"""What a post-processing golden asserts (see the goldens' README); `test_goldens.py` calls it for each file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from coco_metric import as_coco, image_score_coco, masks_from_coco
from oracles import crop_instances

from kernel.postprocess.clean import most_frequent_cell_type, postprocess_instances
from kernel.scoring.metric import image_score
from kernel.settings import CELL_TYPES, DEFAULT_THRESHOLDS
from kernel.tuning.grid_scores import score_grid
from kernel.tuning.threshold_grid import ThresholdGrid


def check_postprocess_golden(npz_path: Path, json_path: Path) -> None:
    """Final masks, sizes, boxes, run lengths, score: exact; the tuning's grid: to 1e-9.

    Raises:
        AssertionError: something differs.
    """
    with np.load(npz_path) as arrays:
        golden = {key: arrays[key] for key in arrays.files}
    expected = json.loads(Path(json_path).read_text())
    boxes, final_boxes = golden["boxes"], golden["final_boxes"].reshape(-1, 6)  # none may have been saved as (0,)
    instances = crop_instances(golden["soft"], boxes[:, :4], boxes[:, 4], boxes[:, 5])

    given = expected["thresholds"]
    thresholds = {
        cell_type: replace(
            DEFAULT_THRESHOLDS[cell_type],
            mask_threshold=given["mask"][label],
            mask_nms_threshold=given["nms"][label],
            confidence=given["conf"][label],
            min_size=given["min_size"][label] if "min_size" in given else 0,
        )
        for label, cell_type in enumerate(CELL_TYPES)
    }
    found = postprocess_instances(instances, thresholds)
    assert found.cell_type == CELL_TYPES[expected["cell_type"]] == most_frequent_cell_type(boxes[:, 5])
    assert found.rles() == expected["rles"]
    np.testing.assert_array_equal(found.sizes, golden["final_sizes"])
    np.testing.assert_array_equal(found.boxes_xyxy, final_boxes[:, :4])
    np.testing.assert_array_equal(found.scores, final_boxes[:, 4])
    np.testing.assert_array_equal(found.labels, final_boxes[:, 5])

    truth = masks_from_coco(expected["truth"], found.image_shape)
    # Exact but for the last bit of a mean of ten quotients.
    assert abs(image_score(found, truth) - expected["score"]) < 1e-14
    assert abs(image_score_coco(as_coco(found), expected["truth"]) - expected["score"]) < 1e-14

    axes = expected["grid"]
    grid = ThresholdGrid(
        tuple(axes["thresholds_mask"]),
        tuple(axes["thresholds_nms"]),
        tuple(axes["min_sizes"]),
        tuple(axes["thresholds_conf"]),
    )
    scores = score_grid(instances, truth, grid, corrupt=thresholds[found.cell_type].corrupt, order="original")
    np.testing.assert_allclose(scores[:, :, :, None], golden["tweak"], rtol=0, atol=1e-9)
