"""What the kernel makes of its environment and manifest before it starts, and how its shares are joined."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import kernel.main
from kernel.errors import InputError
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import manifest_to_json
from kernel.runtime.environment import chosen_dtype
from kernel.runtime.results import RunResults
from kernel.runtime.shards import Shard, gather_shards, write_shard

DEMO = Path(__file__).resolve().parents[1] / "bundle" / "synthetic" / "manifest.json"


@pytest.mark.parametrize(
    ("given", "planned", "devices", "expected"),
    [
        (None, "float32", ["cuda:0"], "float32"),
        (None, "float16", ["cuda:0", "cuda:1"], "float16"),
        (None, "float16", ["cpu"], "float32"),  # a dry run of a kernel that is meant for GPUs
        (None, "bfloat16", ["cpu"], "bfloat16"),
        ("bfloat16", "float16", ["cpu"], "bfloat16"),
        ("float16", "float32", ["cpu"], "float32"),
    ],
)
def test_the_environment_comes_before_the_manifest(
    monkeypatch: pytest.MonkeyPatch, given: str | None, planned: str, devices: list[str], expected: str
) -> None:
    monkeypatch.delenv("KERNEL_DTYPE", raising=False)
    if given is not None:
        monkeypatch.setenv("KERNEL_DTYPE", given)
    assert chosen_dtype(planned, devices) == getattr(torch, expected)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_several_that_cannot_start_costs_only_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """torchrun ends the first process, which writes the submission, where another ends with any code but 0."""
    manifest = read_manifest(DEMO)
    test = tmp_path / "competitions" / manifest.kernel.competition / "test"
    test.mkdir(parents=True)
    for name in "abc":
        cv2.imwrite(str(test / f"{name}.png"), np.zeros((8, 8), np.uint8))
    given = {"KERNEL_INPUT_ROOT": tmp_path, "KERNEL_WORKING": tmp_path, "RANK": rank, "WORLD_SIZE": 2}
    for name, value in {**given, "KERNEL_DEVICE": "cpu"}.items():
        monkeypatch.setenv(name, str(value))
    launched = kernel.main.this_shard()

    # There is no dataset of wheels.
    if rank == 0:
        with pytest.raises(InputError, match="wheels"):
            kernel.main.run_kernel(manifest_to_json(manifest), '{"packages": []}')
    else:
        assert kernel.main.run_kernel(manifest_to_json(manifest), '{"packages": []}') == 0
        first = Shard(0, 2, 0, 2, launched.launch)
        write_shard(tmp_path, first, RunResults({"a": ([], (8, 8)), "c": ([], (8, 8))}, {}, {}, {}, []))
        whole = gather_shards(tmp_path, first, sorted(test.glob("*.png")), hard_deadline=1e18)
        assert whole.rows == {"a": ([], (8, 8)), "b": ([], (0, 0)), "c": ([], (8, 8))}
        assert list(whole.failed) == ["b"] and whole.failed["b"].reason.startswith("process 1: ")
    assert not list(tmp_path.glob("shard-*"))
