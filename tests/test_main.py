"""What the kernel makes of its environment and manifest before it starts, and what it asks of a GPU."""

from __future__ import annotations

import pytest
import torch

from kernel.errors import InputError
from kernel.main import chosen_dtype
from kernel.segment import prepare_gpu


@pytest.mark.parametrize(
    ("given", "planned", "devices", "expected"),
    [
        (None, "float32", ["cuda:0"], "float32"),
        (None, "float16", ["cuda:0", "cuda:1"], "float16"),
        (None, "float16", ["cpu"], "float32"),  # a dry run of a kernel that is meant for GPUs
        (None, "bfloat16", ["cpu"], "bfloat16"),
        ("bfloat16", "float16", ["cpu"], "bfloat16"),
        ("float16", "float32", ["cpu"], "float16"),
    ],
)
def test_the_environment_comes_before_the_manifest(
    monkeypatch: pytest.MonkeyPatch, given: str | None, planned: str, devices: list[str], expected: str
) -> None:
    monkeypatch.delenv("KERNEL_DTYPE", raising=False)
    if given is not None:
        monkeypatch.setenv("KERNEL_DTYPE", given)
    assert chosen_dtype(planned, devices) == getattr(torch, expected)


@pytest.mark.parametrize(("capability", "refused"), [((7, 5), True), ((8, 0), False), ((9, 0), False)])
def test_bfloat16_is_refused_where_it_would_be_emulated(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], refused: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    prepare_gpu(torch.device("cuda:1"), torch.float16)
    assert not torch.backends.cudnn.allow_tf32, "float32 would be another on newer GPUs"
    if refused:
        with pytest.raises(InputError, match="cuda:1, Tesla T4, has no bfloat16: give float16 or float32"):
            prepare_gpu(torch.device("cuda:1"), torch.bfloat16)
    else:
        prepare_gpu(torch.device("cuda:1"), torch.bfloat16)
