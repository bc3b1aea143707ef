"""A run on disk: all that it needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from kernel.errors import InputError, RunError
from kernel.runtime.files import whole_file


@dataclass(frozen=True)
class RunState:
    """A run after `step` steps.

    Random numbers are not in it: each micro-batch draws its own from the seed and its number.
    """

    step: int
    fingerprint: str  # of settings, detector, first weights and data: a state goes on only with its own
    parts: Mapping[str, Any]  # state dicts by name: detector, optimizer, scheduler, scaler, mean
    best_score: float  # of the evaluations so far; -1: none


def fingerprint_of(*described: str) -> str:
    """A short hash of texts that describe a run."""
    return hashlib.sha256("\0".join(described).encode()).hexdigest()[:16]


def save_state(state: RunState, path: Path) -> None:
    """Write a state whole or not at all. Raises RunError where it cannot be written; what was there stays."""
    content = {
        "step": state.step,
        "fingerprint": state.fingerprint,
        "parts": dict(state.parts),
        "best_score": state.best_score,
    }
    write_whole(path, lambda temporary: torch.save(content, temporary))


def read_state(path: Path, fingerprint: str) -> RunState:
    """Read a state of the run with this fingerprint. Raises InputError for another run's, or a damaged file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True) if zipfile.is_zipfile(path) else {}
        state = RunState(**content)
    except (RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is no state of a run ({error}): delete it to start anew") from error
    if state.fingerprint != fingerprint:
        raise InputError(
            f"{path} belongs to a run with other settings, another detector, other weights to start from or other "
            "images: resume with the same ones, or start anew with another --out (or delete the file)"
        )
    return state


def save_weights(detector: nn.Module, path: Path, half: bool = False) -> None:
    """Write a detector's state dict as safetensors, whole or not at all; floating-point tensors as float16 if `half`.

    Raises RunError where it cannot be written; what was there stays.
    """
    write_weights(detector.state_dict(), path, half)


def write_weights(tensors: Mapping[str, torch.Tensor], path: Path, half: bool = False) -> None:
    """As `save_weights`, from the tensors of a state dict."""
    state = {
        # A copy, since safetensors refuses tensors that share memory.
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous().clone()
        for key, value in tensors.items()
    }
    write_whole(path, lambda temporary: safetensors.torch.save_file(state, temporary))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise RunError in the place of an OSError of what is written to `path`: a full disk, most likely."""
    try:
        yield
    except OSError as error:
        told = f"cannot write {path} ({error}): free some space; a resumed run goes on from its last state"
        raise RunError(told) from error


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make the file beside `path`, then put it in its place.

    Raises RunError where the disk is full or the folder cannot be written; what was there stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as temporary:
            write(temporary)
    except (OSError, SafetensorError, RuntimeError) as error:  # the last is torch.save's, of a full disk
        raise RunError(f"cannot write {path} ({error}): what was there before is still there") from error
