"""Images that fail: each costs only itself, so that a night's work is never lost to one image."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch

from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.fallbacks import predict_image
from kernel.errors import InputError
from kernel.images.reading import read_image
from kernel.log import LOG, printable_name
from kernel.patience import may_pass

T = TypeVar("T")
#: Where this many images fail before any has a result, it is no accident.
FIRST_IMAGES = 3


@dataclass(frozen=True)
class FailedImage:
    """Why an image has no result."""

    reason: str
    wrong_input: bool  # the file is at fault, not the run
    error_type: str = ""  # of the exception, if there was one: two images with the same one fail for the same reason
    may_pass: bool = False  # the file could not be read just now, which may be otherwise later


def attempt_prediction(
    ensemble: Ensemble, path: Path, read: Callable[[], np.ndarray] | None = None
) -> tuple[np.ndarray, Prediction] | FailedImage:
    """Read an image and run the networks on it.

    Args:
        ensemble: the networks.
        path: of the image.
        read: returns the image, or raises InputError, where another thread has read it.

    Returns:
        The image (H, W, 3) uint8 BGR with its prediction, or why there is none.
    """

    def read_and_predict() -> tuple[np.ndarray, Prediction] | FailedImage:
        try:
            image = read_image(path) if read is None else read()
        except InputError as error:
            return FailedImage(str(error), wrong_input=True, may_pass=may_pass(error))
        return image, predict_image(ensemble, image)

    return attempt(path.stem, read_and_predict)


def attempt(
    image_id: str, action: Callable[[], T], ends_run: Callable[[Exception], bool] = lambda error: False
) -> T | FailedImage:
    """What an action on an image returns; or, whatever it raises, why the image has no result.

    All exceptions are caught on purpose, and logged with their traceback: what a library raises on a device that nobody
    tried is not known beforehand, and one image must not cost the others their results.

    Args:
        image_id: for the log.
        action: on the image.
        ends_run: of which exceptions every other image would die as well; they are raised.
    """
    try:
        return action()
    except Exception as error:
        if ends_run(error):
            raise
        LOG.exception("image %s", printable_name(image_id))
        name = type(error).__name__
        return FailedImage(f"{name}: {error}", wrong_input=False, error_type=name)


class FirstImages:
    """Logs once, as soon as it is known, that a run's first images all fail and are not at fault: so will the others.

    An image that is itself at fault says nothing about the run. One that has a result shows that the run works.

    Args:
        count: of the run's images. Where fewer than `FIRST_IMAGES` can show it, it is logged after the last one.
    """

    def __init__(self, count: int):
        self._left = count
        self._reasons: list[FailedImage] = []
        self._decided = False

    def succeeded(self) -> None:
        """Take note of an image that has a result."""
        self._decided = True

    def failed(self, failure: FailedImage) -> None:
        """Take note of one that has none."""
        self._left -= 1
        if not failure.wrong_input:
            self._reasons.append(failure)
        if self._decided or not self._reasons or (self._left and len(self._reasons) < FIRST_IMAGES):
            return
        self._decided = True
        distinct: dict[str, str] = {}
        for each in self._reasons:
            distinct.setdefault(each.error_type or each.reason, each.reason)
        LOG.critical(
            "NO RESULT FOR THE FIRST %d IMAGE(S), AND THE IMAGES ARE NOT AT FAULT%s: %s. What fails is this program, "
            "one of its libraries (%s) or the machine: see the log above. Most likely all others fail too.",
            len(self._reasons),
            ", ALL FOR THE SAME REASON" if len(distinct) == 1 < len(self._reasons) else "",
            "; ".join(distinct.values()),
            library_versions(),
        )


def library_versions() -> str:
    """The versions that most often differ from those that a program was made with."""
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return ", ".join(f"{name} {version}" for name, version in {**versions, "OpenCV": cv2.__version__}.items())
