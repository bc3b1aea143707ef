"""The state of a run on disk: all that it needs to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from kernel.data.learned import MemberRecord
from kernel.errors import InputError, RunError
from kernel.files import written_file
from kernel.models.saving import as_os_errors, stored_tensors


@dataclass(frozen=True)
class RunState:
    """A run after `step` steps.

    Random numbers are not in it: each micro-batch draws its own from the seed and its number.
    """

    step: int
    fingerprint: str  # of settings, detector, first weights and data: a state goes on only with its own
    parts: Mapping[str, Any]  # state dicts by name: detector, optimizer, scheduler, scaler, mean
    best_score: float  # of the evaluations so far; -1: none
    is_evaluated: bool = True  # false: an evaluation is due after this step, and was not finished
    processes: int | None = None  # that train together: with another number the crops are others. None: not told


def fingerprint_of(*described: str) -> str:
    """A short hash of texts that describe a run."""
    return hashlib.sha256("\0".join(described).encode()).hexdigest()[:16]


def save_state(state: RunState, path: Path) -> None:
    """Write a state whole or not at all.

    Raises:
        RunError: it cannot be written; what was there stays.
    """
    content = {
        "step": state.step,
        "fingerprint": state.fingerprint,
        "parts": dict(state.parts),
        "best_score": state.best_score,
        "is_evaluated": state.is_evaluated,
        "processes": state.processes,
    }
    with written_file(path, RunError) as temporary, as_os_errors():
        torch.save(content, temporary)


def read_state(
    path: Path, fingerprint: str, differences: Callable[[str], Sequence[str] | None] = lambda _: None
) -> RunState:
    """Read a state of the run with this fingerprint.

    Args:
        path: the file.
        fingerprint: the run's.
        differences: tells where the run of another fingerprint differs, as far as is known; None: nothing is.

    Raises:
        InputError: it is another run's, or the file is damaged.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True) if zipfile.is_zipfile(path) else {}
        state = RunState(**content)
    except (RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is no state of a run ({error}): delete it to start anew") from error
    if state.fingerprint != fingerprint:
        differ = differences(state.fingerprint)
        if differ:
            told = f"another run ({'; '.join(differ)})"
        else:
            known = "the same settings, but" if differ is not None else "other settings, another detector,"
            told = (
                f"a run with {known} other weights to start from, or other images (the size of their pixels counts, "
                "which it did not in earlier versions)"
            )
        raise InputError(
            f"{path} belongs to {told}: resume with the same ones, or start anew with another --out (or delete the "
            "file)"
        )
    return state


def save_weights(
    tensors: Mapping[str, torch.Tensor], path: Path, half: bool = False, record: MemberRecord | None = None
) -> None:
    """Write what `stored_tensors` keeps of a state dict as safetensors, whole or not at all.

    The file's metadata has its history, `record`.

    Raises:
        RunError: the file cannot be written; what was there stays.
    """
    with written_file(path, RunError) as temporary, as_os_errors():
        safetensors.torch.save_file(
            stored_tensors(tensors, half), temporary, None if record is None else record.metadata()
        )
