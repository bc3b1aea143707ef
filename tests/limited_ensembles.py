"""Ensembles that an image is too much for, until it is done in float32 and view by view."""

from __future__ import annotations

import pytest
import torch

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.members import Member
from kernel.ensemble.networks import NotFiniteError
from kernel.models.detectors import ViewFeatures


def limit_ensembles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let features overflow in any dtype but float32, and lack memory in batches of several views."""
    compute = Ensemble.compute_features

    def fail(ensemble: Ensemble, member: Member, views: torch.Tensor) -> ViewFeatures:
        if ensemble.dtype != torch.float32:
            raise NotFiniteError("not all numbers are finite")
        if ensemble.views_per_batch > 1:
            raise torch.OutOfMemoryError("full")
        return compute(ensemble, member, views)

    monkeypatch.setattr(Ensemble, "compute_features", fail)
