"""What a failed run names as the one thing to do, and what it says of the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from kernel.errors import InputError
from kernel.mounts import find_competition, find_weights
from kernel.runtime.remedies import REMEDY_MARK, remedy_for, with_remedy
from kernel.runtime.summary import MachineFacts


def failure_of(root: Path, what: str) -> str:
    """The message of a mount that is missing or wrong."""
    with pytest.raises(InputError) as caught:
        if what == "competition":
            find_competition(root, "cells")
        else:
            find_weights(root, ["ada/weights"], "a.pt", "0" * 64)
    return str(caught.value)


@pytest.mark.parametrize(
    ("what", "told"),
    [("competition", "accept the competition's rules"),
     ("weights", "sends the dataset that is missing"), ("altered", "does not hold what the manifest names")],
)  # fmt: skip
def test_what_is_missing(tmp_path: Path, what: str, told: str) -> None:
    if what == "altered":
        (tmp_path / "datasets" / "ada" / "weights").mkdir(parents=True)
        (tmp_path / "datasets" / "ada" / "weights" / "a.pt").write_bytes(b"others")
    assert told in str(remedy_for(failure_of(tmp_path, what)))


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("cuda:0: CUDA error: no kernel image is available", "which asks for the GPUs"),
        ("KERNEL_DEVICE is 'cuda:1'; this machine has the CPU and 1 GPU(s)", "which asks for the GPUs"),
        ("cuda:0: its process cannot be started: Resource temporarily unavailable", None),
        ("cuda:1: OSError: [Errno 5] Input/output error", None),
        ("the vendored wheels can be installed nowhere:\n  No space left on device: '/tmp'", "free space"),
        ("cuda:0: AttributeError: module 'numpy' has no attribute 'bool'", "pin the image"),
        ("cuda:0: ImportError: cannot import name 'x' from 'mmcv' (/tmp/kernel-wheels-xy/mmcv/x.py)", "pin the image"),
        ("cuda:0: RuntimeError: operator torchvision::nms does not exist", "pin the image"),
        ("cuda:0: TypeError in f, line 3 of g.py: unexpected keyword", "pin the image"),
        ("cuda:0: OSError: [Errno 5] Input/output error: '/tmp/kernel-wheels-xy/mmdet/x.py'", None),
        ("cuda:0: CUDA error: of the driver (/tmp/kernel-wheels-xy/mmcv/x.py)", "which asks for the GPUs"),
        ("the wheels in /in are not those of the lock:\n  a.whl: missing\nbuild them again", "the dataset of wheels"),
        ("a.whl: expected sha256 00, found 11", "the dataset of wheels"),
        (
            "the vendored wheels can be installed nowhere:\n  a.whl could not be unpacked into /tmp/x: no zip file",
            "the dataset of wheels",
        ),
    ],
)
def test_a_devices_name_is_no_reason(message: str, told: str | None) -> None:
    found = remedy_for(message)
    assert found is None if told is None else told in str(found)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("Your notebook tried to allocate more memory than is available. It has restarted.", "with fewer members"),
        ("Output file size exceeded the limit", "free space"),
        ("Notebook Exceeded Time Limit", "lower `time_limit_hours`"),
        ("Notebook Timeout", "lower `time_limit_hours`"),
    ],
)
def test_what_kaggle_says(message: str, told: str) -> None:
    assert told in str(remedy_for(message))


def test_there_is_always_a_last_line() -> None:
    lines = with_remedy(InputError("something never seen:\n  - in two lines")).splitlines()
    assert lines[:2] == ["something never seen:", "  - in two lines"]
    assert lines[2].startswith(REMEDY_MARK) and len(lines) == 3
    assert remedy_for("") is None


def test_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("KAGGLE_DOCKER_IMAGE", raising=False)
    facts = MachineFacts().told(30)
    assert facts["docker_image"] is None and facts["gpus"] == [] and facts["torch"] == torch.__version__
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!{sys.executable}\nprint('Tesla T4\\nTesla T4')\n", encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("KAGGLE_DOCKER_IMAGE", "kaggle/python:v3")
    assert MachineFacts().told(30) == facts | {"docker_image": "kaggle/python:v3", "gpus": ["Tesla T4", "Tesla T4"]}
    tool.write_text(f"#!{sys.executable}\nraise SystemExit('no driver')\n", encoding="utf-8")
    assert MachineFacts().told(30)["gpus"] == []
    tool.write_bytes(os.urandom(16))
    assert MachineFacts().told(30)["gpus"] == []
