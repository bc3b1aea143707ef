"""Our training step against mmdet's own: the same losses and gradients, over repacked operators and compiled ones."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled_mmcv import compiled_mmcv_python
from training.batch_gradients import detector_of, fixed_batch, mmdet_step, terms_and_gradients

from kernel.manifest.types import KIND_NAMES
from kernel.models.roi_align import quicken_extractors
from kernel.training.step import compute_losses

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")


def our_step(kind: str) -> dict[str, np.ndarray]:
    detector = detector_of(kind)
    quicken_extractors(detector)
    torch.manual_seed(1)
    return terms_and_gradients(detector, compute_losses(detector, fixed_batch(), torch.float32))


def assert_same_step(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert sum("loss" in name for name in found) > 4 and sum(name.startswith("gradient.") for name in found) > 50
    for name, value in expected.items():
        # A gradient adds up some thousand terms of either sign, in another order.
        share = 5e-5 if name.startswith("gradient.") else 1e-5
        np.testing.assert_allclose(found[name], value, rtol=0, atol=share * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_step_is_that_of_mmdet(kind: str) -> None:
    assert_same_step(our_step(kind), mmdet_step(kind))


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_step_is_that_of_a_compiled_mmcv(kind: str, tmp_path: Path) -> None:
    script = ROOT / "tests" / "training" / "batch_gradients.py"
    subprocess.run(
        [compiled_mmcv_python(), str(script), kind, str(tmp_path / "out.npz")],
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        check=True,
        capture_output=True,
    )
    with np.load(tmp_path / "out.npz") as stored:
        expected = dict(stored)
    assert expected.pop("compiled")
    assert_same_step(our_step(kind), expected)
