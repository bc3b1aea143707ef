"""From an image to its cells: what the kernel, `predict` and `validate` all do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.fallbacks import predict_image
from kernel.masks.instances import CellMasks, Instances, paste_instances
from kernel.postprocess.clean import postprocess_instances
from kernel.settings import Thresholds


@dataclass(frozen=True)
class Segmentation:
    """One image's result: the masks of the submission, and the prediction that they were made from."""

    prediction: Prediction
    masks: CellMasks


def segment_image(ensemble: Ensemble, image_bgr: np.ndarray) -> Segmentation:
    """Find the cells of an image.

    The networks come first (`predict_image`, with its fallbacks), then the post-processing (`finish_prediction`). The
    kernel calls the two separately, so that on a GPU those of different images overlap.

    Args:
        ensemble: the networks and their settings.
        image_bgr: (H, W, 3) uint8 of any size; in tiles where it is too large for the memory.

    Raises:
        NotFiniteError, torch.OutOfMemoryError: as `predict_image` does.
    """
    return finish_prediction(predict_image(ensemble, image_bgr), ensemble.settings.thresholds)


def finish_prediction(prediction: Prediction, thresholds: Mapping[str, Thresholds]) -> Segmentation:
    """Post-process a prediction, on the CPU, by the thresholds of each cell type."""
    return Segmentation(prediction, postprocess_instances(instances_of_prediction(prediction), thresholds))


def instances_of_prediction(prediction: Prediction) -> Instances:
    """The predicted soft masks pasted into the image, each as a crop."""
    return paste_instances(
        prediction.mask_probs.numpy(),
        prediction.boxes_xyxy.numpy(),
        prediction.scores.numpy(),
        prediction.labels.numpy(),
        prediction.image_shape,
    )
