"""Fallbacks for one image: float32 where numbers overflow, and less and less memory where it does not suffice."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.networks import NotFiniteError, Tiling
from kernel.ensemble.tiles import LEAST_TILE_SIDE, predict_whole_or_tiled
from kernel.gpus import own_dtype
from kernel.log import LOG
from kernel.text import first_line

Found = TypeVar("Found")
#: Parts of the messages of plain RuntimeErrors that mean missing memory: of the CPU's allocator; of a GPU's libraries,
#: which ask the driver and not torch's allocator; of cuDNN, which finds no algorithm without room for its workspace; of
#: torch, where NVML does not tell what an out-of-memory error is to say (pytorch/pytorch issues 112377 and 121899).
OUT_OF_MEMORY_SIGNS = (
    "DefaultCPUAllocator",
    "out of memory",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "unable to find an engine",
    "NVML_SUCCESS ==",
)
#: What the messages of errors contain after which the whole process can no longer use its GPU. Of cuDNN's, not those
#: that tell of a convolution it does not know, which is so in any process.
LOST_DEVICE_SIGNS = (
    "CUDA error",
    "device-side assert",
    "CUBLAS_STATUS",
    *(f"CUDNN_STATUS_{state}" for state in ("NOT_INITIALIZED", "INTERNAL_ERROR", "MAPPING_ERROR", "EXECUTION_FAILED")),
)


@dataclass(frozen=True)
class MemoryFallback:
    """One way to run an ensemble on an image, with less memory than the one before."""

    description: str
    one_view: bool  # views go through a network one by one, not in the batches of the memory plan
    feature_share: float  # of the plan's budget for features that are kept between the stages
    on_cpu: bool = False
    in_tiles: bool = False  # of the least side: in larger ones the image may be whole, as it was before


#: Tried in this order until an image fits. Up to the last the result stays the same, up to rounding, and only the time
#: grows; for tiles see `kernel.ensemble.tiles`.
MEMORY_FALLBACKS = (
    MemoryFallback("as planned", one_view=False, feature_share=1.0),
    MemoryFallback("view by view, half of the features kept", one_view=True, feature_share=0.5),
    MemoryFallback("view by view, all features computed anew", one_view=True, feature_share=0.0),
    MemoryFallback("on the CPU", one_view=True, feature_share=0.0, on_cpu=True),
    MemoryFallback("in smaller tiles", one_view=True, feature_share=0.0, on_cpu=True, in_tiles=True),
)


def predict_image(ensemble: Ensemble, image_bgr: np.ndarray) -> Prediction:
    """Find the cells of an image (H, W, 3) uint8 BGR, in tiles where it is too large; errors as `with_fallbacks`."""
    can_be_tiled = ensemble.tiling is not None and max(image_bgr.shape[:2]) > LEAST_TILE_SIDE
    return with_fallbacks(ensemble, lambda: predict_whole_or_tiled(ensemble, image_bgr), can_be_tiled)


def with_fallbacks(ensemble: Ensemble, compute: Callable[[], Found], can_be_tiled: bool = False) -> Found:
    """What `compute` finds in one image by the ensemble; in float32, where numbers overflow in the ensemble's dtype.

    Args:
        ensemble: is run in another way for each further attempt, and afterwards as before; where it cannot go back
            to its GPU, it stays on the CPU.
        compute: begins anew with each call, by how the ensemble is run then.
        can_be_tiled: whether it takes the image in tiles, by the ensemble's tiling.

    Raises:
        NotFiniteError: they overflow in float32 as well.
        torch.OutOfMemoryError, RuntimeError, MemoryError: as `within_memory` does.
    """
    try:
        return within_memory(ensemble, compute, can_be_tiled)
    except NotFiniteError as error:
        if ensemble.dtype == torch.float32:
            raise
        LOG.warning("%s: trying again in float32", error)
    dtype, ensemble.dtype = ensemble.dtype, torch.float32
    try:
        return within_memory(ensemble, compute, can_be_tiled)
    finally:
        ensemble.dtype = own_dtype(ensemble.device, dtype)


def within_memory(ensemble: Ensemble, compute: Callable[[], Found], can_be_tiled: bool) -> Found:
    """`with_fallbacks` for memory alone: where it is missing, again with each of `MEMORY_FALLBACKS`.

    Raises:
        torch.OutOfMemoryError, RuntimeError, MemoryError: even the last fallback needs too much memory.
    """
    fallbacks = [
        each
        for each in MEMORY_FALLBACKS
        if (can_be_tiled if each.in_tiles else not each.on_cpu or ensemble.device.type != "cpu")
    ]
    for fallback, following in itertools.pairwise(fallbacks):
        try:
            with run_by(ensemble, fallback):
                return compute()
        except (RuntimeError, MemoryError) as error:
            if not means_out_of_memory(error):
                raise
        # Only here, outside the handler, are the failed attempt's tensors free.
        if ensemble.device.type == "cuda":
            torch.cuda.empty_cache()
        LOG.warning("out of memory on %s: trying again %s", ensemble.device, following.description)
    with run_by(ensemble, fallbacks[-1]):
        return compute()


def means_lost_device(reason: str) -> bool:
    """Whether this is why a process can no longer use its GPU at all; a lack of memory is no such reason."""
    return any(sign in reason for sign in LOST_DEVICE_SIGNS) and not any(sign in reason for sign in OUT_OF_MEMORY_SIGNS)


def means_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was missing."""
    is_typed = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return is_typed or any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)


@contextlib.contextmanager
def run_by(ensemble: Ensemble, fallback: MemoryFallback) -> Iterator[None]:
    """Run the ensemble as a fallback says inside the context, and as before after it.

    An ensemble that cannot go back from the CPU stays there, and is run as the fallback says: what was found counts.
    """
    device, before = ensemble.device, manner_of(ensemble)
    try:
        if fallback.one_view:
            ensemble.views_per_batch = 1
        ensemble.feature_budget_bytes = round(ensemble.feature_budget_bytes * fallback.feature_share)
        if fallback.on_cpu and ensemble.tiling is not None and ensemble.tiling.on_cpu is not None:
            ensemble.tiling = ensemble.tiling.on_cpu
        if fallback.in_tiles:
            ensemble.tiling = Tiling(0, LEAST_TILE_SIDE, 0)
        if fallback.on_cpu:
            ensemble.dtype = own_dtype(torch.device("cpu"), ensemble.dtype)
            ensemble.move_to("cpu")
        yield
    finally:
        on_cpu = manner_of(ensemble)
        set_manner(ensemble, before)
        if fallback.on_cpu and device.type != "cpu":
            try:
                ensemble.move_to(device)
            except RuntimeError as error:  # of a GPU whose memory somebody else has by now, for one
                set_manner(ensemble, on_cpu)
                ensemble.move_to("cpu")
                LOG.error("the networks stay on the CPU: they cannot go back to %s (%s)", device, first_line(error))


#: Views per batch, bytes of kept features, dtype, tiling: how an ensemble is run, apart from the device.
Manner = tuple[int, int, torch.dtype, Tiling | None]


def manner_of(ensemble: Ensemble) -> Manner:
    """How an ensemble is run."""
    return ensemble.views_per_batch, ensemble.feature_budget_bytes, ensemble.dtype, ensemble.tiling


def set_manner(ensemble: Ensemble, manner: Manner) -> None:
    """Run an ensemble in this manner from now on."""
    ensemble.views_per_batch, ensemble.feature_budget_bytes, ensemble.dtype, ensemble.tiling = manner
