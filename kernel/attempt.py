"""One image among many: it is tried with less and less memory, and where it fails it costs only itself.

What kernel and commands share, so that a night's work is never lost to one image.
"""

from __future__ import annotations

import contextlib
import itertools
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch

from kernel.data.images import read_image
from kernel.ensemble.ensemble import Ensemble, NotFiniteError, Prediction
from kernel.errors import InputError
from kernel.runtime.log import LOG
from kernel.segment import Segmentation, finish_prediction

T = TypeVar("T")
#: So many images that fail before any has a result are no chance.
FIRST_IMAGES = 3
#: What errors without a type of their own say where memory was missing: the CPU's allocator; a GPU's libraries, which
#: ask the driver past torch's allocator; cuDNN, which finds no algorithm where there is no room for its workspace.
OUT_OF_MEMORY_SIGNS = ("DefaultCPUAllocator", "out of memory", "ALLOC_FAILED", "unable to find an engine")
#: What an error says that leaves the whole process without its GPU, not only one image.
LOST_DEVICE_SIGNS = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "CUDNN_STATUS_EXECUTION_FAILED")


@dataclass(frozen=True)
class FailedImage:
    """Why an image has no result."""

    reason: str
    wrong_input: bool  # the file is at fault, not the run
    kind: str = ""  # the type of what was raised, if anything was: what makes two reasons the same


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
    return attempt(path.stem, lambda: (image, finish_prediction(prediction, ensemble.settings.thresholds)))


def attempt_prediction(
    ensemble: Ensemble, path: Path, read: Callable[[], np.ndarray] | None = None
) -> tuple[np.ndarray, Prediction] | FailedImage:
    """As `attempt_image`, as far as the networks go. `read` gives the pixels where another thread has read them."""

    def read_and_predict() -> tuple[np.ndarray, Prediction] | FailedImage:
        try:
            image = read_image(path) if read is None else read()
        except InputError as error:
            return FailedImage(str(error), wrong_input=True)
        return image, predict_image(ensemble, image)

    return attempt(path.stem, read_and_predict)


def attempt(image_id: str, action: Callable[[], T]) -> T | FailedImage:
    """What an action on an image gives; or, whatever it raises, why the image has no result. The log tells where.

    It is this broad on purpose: what a library raises on a device that nobody tried is not known beforehand, and one
    image must not cost the others their results.
    """
    try:
        return action()
    except Exception as error:  # noqa: BLE001
        LOG.exception("image %s", image_id)
        kind = type(error).__name__
        return FailedImage(f"{kind}: {error}", wrong_input=False, kind=kind)


class FirstImages:
    """Tells once, and at once, where a run's first images all fail and are not at fault: the others will fail too.

    An image that is itself at fault says nothing about the run. One that has a result says that the run works.

    Parameters:
        count: the run's images. Where fewer than `FIRST_IMAGES` could tell, it is told when the last one has ended.
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
        by_kind: dict[str, str] = {}
        for each in self._reasons:
            by_kind.setdefault(each.kind or each.reason, each.reason)
        LOG.critical(
            "NO RESULT FOR THE FIRST %d IMAGE(S), AND THE IMAGES ARE NOT AT FAULT%s: %s. What fails is this program, "
            "one of its libraries (%s) or the machine: see the log above. Most likely all others fail too.",
            len(self._reasons),
            ", ALL FOR THE SAME REASON" if len(by_kind) == 1 < len(self._reasons) else "",
            "; ".join(by_kind.values()),
            library_versions(),
        )


def library_versions() -> str:
    """What most often is another one than a program was made with."""
    versions = {"Python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}
    return ", ".join(f"{name} {version}" for name, version in {**versions, "OpenCV": cv2.__version__}.items())


def predict_image(ensemble: Ensemble, image_bgr: np.ndarray) -> Prediction:
    """Find the cells of an image; once more in float32 where the range of the ensemble's dtype is too small for it.

    Raises NotFiniteError where float32's is, and what `predict_within_memory` does.
    """
    try:
        return predict_within_memory(ensemble, image_bgr)
    except NotFiniteError as error:
        if ensemble.dtype == torch.float32:
            raise
        LOG.warning("%s: trying again in float32", error)
    dtype, ensemble.dtype = ensemble.dtype, torch.float32
    try:
        return predict_within_memory(ensemble, image_bgr)
    finally:
        ensemble.dtype = dtype


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
    """Whether memory was missing."""
    is_typed = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_typed or any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)


def means_lost_device(reason: str) -> bool:
    """Whether an image failed because its process can no longer use its GPU: missing memory is no such reason."""
    return any(sign in reason for sign in LOST_DEVICE_SIGNS) and not any(sign in reason for sign in OUT_OF_MEMORY_SIGNS)


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
