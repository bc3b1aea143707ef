"""What the kernel makes of its environment and manifest before it starts, and how its shares are joined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

import kernel.main
from kernel.errors import InputError
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import manifest_to_json
from kernel.postprocess.submitted import read_submission
from kernel.runtime.environment import chosen_dtype
from kernel.runtime.failures import FailedImage
from kernel.runtime.results import RunResults
from kernel.runtime.saved_run import SavedRun
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


def mount_images(folder: Path, monkeypatch: pytest.MonkeyPatch, names: str, rank: int) -> tuple[str, Path]:
    """Mount images for one of two processes that work in `folder`: the demo's manifest, and the images' folder."""
    manifest = read_manifest(DEMO)
    test = folder / "competitions" / manifest.kernel.competition / "test"
    test.mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(test / f"{name}.png"), np.zeros((8, 8), np.uint8))
    given = {"KERNEL_INPUT_ROOT": folder, "KERNEL_WORKING": folder, "RANK": rank, "WORLD_SIZE": 2}
    for name, value in {**given, "KERNEL_DEVICE": "cpu"}.items():
        monkeypatch.setenv(name, str(value))
    return manifest_to_json(manifest), test


@pytest.mark.parametrize("is_read_before", [False, True])
def test_what_a_process_that_does_not_end_has_done_is_in_the_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, is_read_before: bool
) -> None:
    """The other one has done b, and d hangs: its journal alone tells of b, whether that was read meanwhile or not."""
    manifest, test = mount_images(tmp_path, monkeypatch, "abcd", rank=0)
    run = kernel.main.KernelRun(manifest, "{}")
    run.hard_deadline = 0.0
    run.save_from_now_on()
    run.go_on()
    saved = run.saved
    assert saved is not None
    head = kernel.main.journal_head(run.manifest, str(run.dtype), run.embedded)
    other = SavedRun(tmp_path, run.paths, run.paths[1::2], rank=1)
    other.go_on(head)

    def answer(image_id: str) -> dict[str, Any]:
        summary = {"cells": 1, "cell_type": "cort", "quality": "full", "dtype": "float32", "seconds": {}}
        return {
            "image": image_id, "rles": ["1 2"], "image_shape": [8, 8], "summary": summary, "peaks": [1.0, None]
        }  # fmt: skip

    def segment_share() -> None:
        other.succeed(test / "b.png", answer("b"), "cpu")
        if is_read_before:
            saved.add_others()
        for name in "ac":
            saved.succeed(test / f"{name}.png", answer(name), "cpu")

    monkeypatch.setattr(run, "segment_share", segment_share)
    assert run.segment_in_processes()
    assert run.conclude(patience=0.0) == 1
    run.close()
    other.close()
    assert read_submission(saved.submission) == {"a": ["1 2"], "b": ["1 2"], "c": ["1 2"], "d": []}
    assert saved.results.failed == {"d": FailedImage("its process did not end in time", wrong_input=False)}
    assert set(saved.results.summaries) == set("abc") and "is not valid" not in caplog.text


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_of_several_that_cannot_start_costs_only_its_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """torchrun ends the first process, which writes the submission, where another ends with any code but 0."""
    manifest, test = mount_images(tmp_path, monkeypatch, "abc", rank)
    launched = kernel.main.this_shard()

    # There is no dataset of wheels.
    if rank == 0:
        with pytest.raises(InputError, match="wheels"):
            kernel.main.run_kernel(manifest, '{"packages": []}')
    else:
        assert kernel.main.run_kernel(manifest, '{"packages": []}') == 0
        first = Shard(0, 2, 0, 2, launched.launch)
        write_shard(tmp_path, first, RunResults({"a": ([], (8, 8)), "c": ([], (8, 8))}, {}, {}, {}, []))
        whole = gather_shards(tmp_path, first, sorted(test.glob("*.png")), hard_deadline=1e18)
        assert whole.rows == {"a": ([], (8, 8)), "b": ([], (0, 0)), "c": ([], (8, 8))}
        assert list(whole.failed) == ["b"] and whole.failed["b"].reason.startswith("process 1: ")
    assert not list(tmp_path.glob("shard-*"))
