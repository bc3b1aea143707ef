"""GPUs that torch cannot compute on, or not in bfloat16: said, and done otherwise where that is possible."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path

import pytest
import torch

import kernel.commands.predict
from bundle.dry_run import usable_device
from kernel.__main__ import main
from kernel.commands.common import check_device, check_devices
from kernel.commands.scoring import list_jobs
from kernel.ensemble.load import load_ensemble, prepare_gpu
from kernel.errors import InputError
from kernel.gpus import lacks_kernels, own_dtype
from kernel.manifest.presets import choose_preset, shipped_members
from kernel.runtime.remedies import remedy_for
from kernel.training.processes import ProcessGroup

#: What torch 2.10 is built for with CUDA 12.8, and what names of other builds look like.
CU128 = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
P100, V100, T4, L4, H200, BLACKWELL = (6, 0), (7, 0), (7, 5), (8, 9), (9, 0), (12, 0)


class Machine:
    """GPUs of the given capabilities, for `torch.cuda` to tell of."""

    def __init__(self, patch: pytest.MonkeyPatch, *capabilities: tuple[int, int], built_for: list[str] = CU128):
        def number(device: object) -> int:
            return torch.device(device).index or 0  # type: ignore[arg-type]

        patch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        patch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        patch.setattr(torch.cuda, "get_arch_list", lambda: built_for)
        patch.setattr(torch.cuda, "get_device_capability", lambda device=None: capabilities[number(device)])
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: f"GPU {number(device)}")


@pytest.mark.parametrize(
    ("capability", "built_for", "fits"),
    [
        (P100, CU128, False),
        (V100, CU128, True),
        (V100, ["sm_75", "sm_80"], False),  # of the same major version, and older
        (T4, CU128, True),
        (L4, CU128, True),  # by sm_86's
        (H200, ["sm_75", "sm_90a"], True),
        (BLACKWELL, ["sm_80", "sm_90"], False),
        (BLACKWELL, ["sm_80", "compute_90"], True),  # the driver translates it
        (P100, ["sm_75", "compute_75"], False),
        (P100, ["gfx90a", "gfx942"], True),  # AMD's: nothing is known of them
        (P100, [], True),
    ],
)
def test_what_torch_is_built_for(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built_for: list[str], fits: bool
) -> None:
    Machine(monkeypatch, capability, built_for=built_for)
    assert (lacks_kernels(torch.device("cuda")) is None) == fits


def test_a_gpu_without_kernels_is_passed_over_where_none_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Machine(monkeypatch, P100)
    with caplog.at_level(logging.WARNING):
        assert check_device(None) == "cpu"
    assert "cuda:0, GPU 0, is of compute capability 6.0" in caplog.text and "it is not used" in caplog.text
    Machine(monkeypatch, P100, T4, H200)
    assert check_device(None) == "cuda:1"
    assert check_devices(None, every_gpu=True) == ["cuda:1", "cuda:2"]
    Machine(monkeypatch, T4)
    assert (check_device(None), check_devices(None, every_gpu=True)) == ("cuda", ["cuda"])
    Machine(monkeypatch)
    assert (check_device(None), check_devices(None, every_gpu=True)) == ("cpu", ["cpu"])


@pytest.mark.parametrize(
    ("capabilities", "used"),
    [((T4, T4), None), ((P100, T4, L4), "cuda:1,cuda:2"), ((T4,), None), ((P100,), "cpu"), ((), None)],
)
def test_a_dry_run_uses_the_gpus_that_torch_can_compute_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capabilities: tuple, used: str | None
) -> None:
    """None: the script chooses, which takes all that there are."""
    monkeypatch.delenv("KERNEL_DEVICE", raising=False)
    Machine(monkeypatch, *capabilities)
    assert usable_device() == used
    assert ("GPU 0, is of compute capability 6.0" in caplog.text) == (P100 in capabilities)
    monkeypatch.setenv("KERNEL_DEVICE", "cuda")
    assert usable_device() is None


def test_a_gpu_whose_driver_is_too_old_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("KERNEL_DEVICE", raising=False)
    Machine(monkeypatch, T4, built_for=[])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert (usable_device(), check_device(None)) == ("cpu", "cpu")
    assert "does not reach the 1 GPU(s) of this machine: their driver is too old" in caplog.text


def test_a_gpu_that_fails_costs_no_other(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("KERNEL_DEVICE", raising=False)
    Machine(monkeypatch, T4, T4)

    def capability(device: torch.device) -> tuple[int, int]:
        if device.index == 0:
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered\nCUDA kernel errors might ...")
        return T4

    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    assert (usable_device(), check_device(None)) == ("cuda:1", "cuda:1")
    assert "cuda:0: CUDA error: uncorrectable ECC error encountered: it is not used" in caplog.text


def test_a_gpu_without_kernels_is_refused_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, P100)
    with pytest.raises(InputError, match=r"has no kernels for it, only sm_70, .* or compute on the CPU"):
        check_device("cuda")
    with pytest.raises(InputError, match="has no kernels for it") as caught:
        prepare_gpu(torch.device("cuda:0"), torch.float32)
    assert "GPU T4 x2" in str(remedy_for(str(caught.value)))


def test_why_a_device_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    Machine(monkeypatch, T4)

    def fail(*size: int, device: object) -> None:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might ...")

    monkeypatch.setattr(torch, "zeros", fail)
    with pytest.raises(InputError, match=r"1 GPU\(s\) .*: CUDA error: all CUDA-capable devices are busy"):
        check_device("cuda")


@pytest.mark.parametrize(
    ("capability", "own"), [(P100, "float16"), (T4, "float16"), (L4, "bfloat16"), (H200, "bfloat16")]
)
def test_bfloat16_that_would_be_emulated_becomes_float16(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capability: tuple[int, int], own: str
) -> None:
    Machine(monkeypatch, capability, built_for=[])
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    device = torch.device("cuda:0")
    assert prepare_gpu(device, torch.bfloat16) == getattr(torch, own)
    assert not torch.backends.cudnn.allow_tf32, "float32 would be another on newer GPUs"
    assert ("cuda:0, GPU 0, has no bfloat16" in caplog.text) == (own == "float16")
    assert own_dtype(device, torch.float32) == torch.float32
    assert own_dtype(torch.device("cpu"), torch.bfloat16) == torch.bfloat16
    assert own_dtype(torch.device("cpu"), torch.float16) == torch.float32, "of which CPUs have no arithmetic"


@pytest.mark.parametrize(
    ("capabilities", "recorded"), [((T4, T4), "float16"), ((L4,), "bfloat16"), ((T4, L4), "bfloat16"), ((), "bfloat16")]
)
def test_what_is_stored_tells_the_dtype_that_is_computed_in(
    wheels_site: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    capabilities: tuple,
    recorded: str,
) -> None:
    """GPUs that differ each have their own; what is asked for then names both."""
    Machine(monkeypatch, *capabilities)
    given = {"manifest": None, "weights_dir": None, "members": "shipped", "preset": "fast", "dtype": None}
    devices = check_devices(None, every_gpu=True)
    (job,) = list_jobs(Namespace(**given, out_of_fold=False), ["image"], devices=devices)  # type: ignore[list-item]
    assert job.files.dtype == recorded

    def tell(out: Path, made_of: list[str], images: list, **named: bool) -> None:
        raise InputError(made_of[1])

    monkeypatch.setattr(kernel.commands.predict, "resumed_folder", tell)
    image = Path(__file__).resolve().parents[1] / "bundle" / "members" / "images" / "t98g_set1.png"
    words = ["--members", "shipped", "--preset", "fast", "--quiet", "--out", str(tmp_path / "out")]
    assert main(["predict", str(image), *words]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {recorded}"


def test_the_default_preset_runs_on_a_gpu_without_bfloat16(monkeypatch: pytest.MonkeyPatch, wheels_site: Path) -> None:
    Machine(monkeypatch, T4)
    shipped = shipped_members()
    preset = choose_preset(shipped, "fast")
    assert preset.manifest.dtype == "bfloat16"
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *given, **named: self)  # there is no GPU to move it to
    paths = {member.name: shipped.weights / str(member.file) for member in preset.manifest.members}
    ensemble = load_ensemble(preset.manifest, paths, "cuda", torch.bfloat16)
    assert ensemble.dtype == torch.float16


@pytest.mark.parametrize("name", ["meta", "mps", "xpu:0"])
def test_other_devices_of_torch_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"^device {name}: this machine has cpu and \d GPU\(s\) .* these alone"):
        check_device(name)


def test_one_of_several_processes_touches_its_own_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that made a tensor on the first one would hold hundreds of megabytes of it."""
    Machine(monkeypatch, T4, T4, T4, P100)
    touched: list[object] = []
    monkeypatch.setattr(torch, "zeros", lambda *size, device: touched.append(device))
    monkeypatch.setattr(torch.cuda, "set_device", touched.append)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **given: touched.append(backend))
    for name, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert check_device("cuda") == "cuda" and not touched
    with pytest.raises(InputError, match=r"^device cuda:1: .* gives each process one of its own, by --device cuda"):
        check_device("cuda:1")
    assert ProcessGroup("cuda").device == torch.device("cuda:2")
    assert touched == [torch.device("cuda:2"), "nccl"]
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(InputError, match=r"cuda:3, GPU 3, .* has no kernels for it"):
        ProcessGroup("cuda")
    assert len(touched) == 2
