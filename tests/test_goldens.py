"""Figures measured on the original implementation, for whatever files lie in GOLDENS_DIR (default tests/goldens).

Every NAME.npz with a NAME.json is one: with a key `soft` it is of the post-processing, without of an ensemble.
Members, thresholds, scales and image all come from the pair.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_ensemble import check_ensemble_golden
from golden_postprocess import check_postprocess_golden

GOLDENS_DIR = Path(os.environ.get("GOLDENS_DIR") or Path(__file__).parent / "goldens")


def pairs(postprocess: bool) -> list[tuple[Path, Path]]:
    """The (npz, json) pairs of one sort, by name."""
    found = []
    for npz_path in sorted(GOLDENS_DIR.glob("*.npz")):
        json_path = npz_path.with_suffix(".json")
        if not json_path.is_file():
            continue
        with np.load(npz_path) as arrays:
            if ("soft" in arrays.files) == postprocess:
                found.append((npz_path, json_path))
    return found


def name_of(pair: tuple[Path, Path]) -> str:
    return pair[0].stem


def test_there_are_goldens() -> None:
    assert pairs(postprocess=True) or pairs(postprocess=False), f"no NAME.npz with NAME.json in {GOLDENS_DIR}"


@pytest.mark.parametrize("pair", pairs(postprocess=True), ids=name_of)
def test_postprocess_golden(pair: tuple[Path, Path]) -> None:
    check_postprocess_golden(*pair)


@pytest.mark.parametrize("pair", pairs(postprocess=False), ids=name_of)
def test_ensemble_golden(pair: tuple[Path, Path], wheels_site: Path) -> None:
    check_ensemble_golden(*pair, device="cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@pytest.mark.parametrize("pair", pairs(postprocess=False), ids=name_of)
def test_ensemble_golden_on_a_gpu(pair: tuple[Path, Path], wheels_site: Path) -> None:
    # TF32 would round the features to 10 bits, and the goldens are float32.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    check_ensemble_golden(*pair, device="cuda")
