"""One image among many: it is tried with less and less memory, and where it fails it costs only itself.

What kernel and commands share, so that a night's work is never lost to one image.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from kernel.data.images import read_image
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.errors import InputError
from kernel.runtime.log import LOG
from kernel.segment import Segmentation, finish_prediction

#: What an image that is too much for us, or for a library below, may raise. It must not cost the others their results.
IMAGE_ERRORS = (RuntimeError, ValueError, IndexError, ArithmeticError, MemoryError, cv2.error, InputError)


@dataclass(frozen=True)
class FailedImage:
    """Why an image has no result."""

    reason: str
    wrong_input: bool  # the file is at fault, not the run


@dataclass(frozen=True)
class MemoryRung:
    """One way to run an image, with less memory than the one before."""

    told: str
    one_view: bool  # views go through a network one by one, not in the batches of the plan
    feature_share: float  # of the plan's budget for features that stay between the stages
    on_cpu: bool = False


#: Tried from the top until an image fits. The result stays the same, up to rounding; only the time grows.
MEMORY_LADDER = (
    MemoryRung("as planned", one_view=False, feature_share=1.0),
    MemoryRung("view by view, half of the features kept", one_view=True, feature_share=0.5),
    MemoryRung("view by view, all features computed anew", one_view=True, feature_share=0.0),
    MemoryRung("on the CPU", one_view=True, feature_share=0.0, on_cpu=True),
)


def attempt_image(ensemble: Ensemble, path: Path) -> tuple[np.ndarray, Segmentation] | FailedImage:
    """Read and segment an image; returns it (H, W, 3) uint8 BGR with its result, or says why there is none."""
    outcome = attempt_prediction(ensemble, path)
    if isinstance(outcome, FailedImage):
        return outcome
    image, prediction = outcome
    try:
        return image, finish_prediction(prediction, ensemble.settings.thresholds)
    except IMAGE_ERRORS as error:
        return failed_image(path.stem, error)


def attempt_prediction(
    ensemble: Ensemble, path: Path, read: Callable[[], np.ndarray] | None = None
) -> tuple[np.ndarray, Prediction] | FailedImage:
    """As `attempt_image`, as far as the networks go. `read` gives the pixels where another thread has read them."""
    try:
        image = read_image(path) if read is None else read()
    except InputError as error:
        return FailedImage(str(error), wrong_input=True)
    try:
        return image, predict_within_memory(ensemble, image)
    except IMAGE_ERRORS as error:
        return failed_image(path.stem, error)


def failed_image(image_id: str, error: BaseException) -> FailedImage:
    """Log an error that is being handled with its traceback, and make it the reason why the image has no result."""
    LOG.error("image %s", image_id, exc_info=True)
    return FailedImage(f"{type(error).__name__}: {error}", wrong_input=False)


def predict_within_memory(ensemble: Ensemble, image_bgr: np.ndarray) -> Prediction:
    """Find the cells of an image; out of memory, once more on each rung of `MEMORY_LADDER`.

    Raises torch.OutOfMemoryError (on a GPU) or what the CPU's allocator raises where even the last rung is too much.
    """
    rungs = [rung for rung in MEMORY_LADDER if not rung.on_cpu or ensemble.device.type != "cpu"]
    for rung, below in itertools.pairwise(rungs):
        try:
            with running_on(ensemble, rung):
                return ensemble.predict(image_bgr)
        except (RuntimeError, MemoryError) as error:
            if not means_out_of_memory(error):
                raise
        # Only here, outside the handler, are the failed attempt's tensors free.
        if ensemble.device.type == "cuda":
            torch.cuda.empty_cache()
        LOG.warning("out of memory on %s: trying again %s", ensemble.device, below.told)
    with running_on(ensemble, rungs[-1]):
        return ensemble.predict(image_bgr)


def means_out_of_memory(error: BaseException) -> bool:
    """Whether memory was missing: on a GPU that has a type of its own, on the CPU only a text."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)


@contextlib.contextmanager
def running_on(ensemble: Ensemble, rung: MemoryRung) -> Iterator[None]:
    """Run the ensemble as the rung says, and afterwards as before."""
    before = ensemble.views_per_batch, ensemble.feature_budget_bytes, ensemble.device, ensemble.dtype
    try:
        if rung.one_view:
            ensemble.views_per_batch = 1
        ensemble.feature_budget_bytes = round(ensemble.feature_budget_bytes * rung.feature_share)
        if rung.on_cpu:
            # float16 is a GPU's type; exact arithmetic is as fast there.
            ensemble.dtype = torch.float32 if ensemble.dtype == torch.float16 else ensemble.dtype
            ensemble.move_to("cpu")
        yield
    finally:
        ensemble.views_per_batch, ensemble.feature_budget_bytes, device, ensemble.dtype = before
        if ensemble.device != device:
            ensemble.move_to(device)
