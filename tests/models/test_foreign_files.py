"""Other trainers' weight files: what they put around a detector is taken off, or named."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from odd_weights import ODD_TENSORS, State, load_demo, save_with_class

from kernel.__main__ import main
from kernel.errors import InputError
from kernel.models.checkpoints import (
    build_loaded,
    load_detector,
    read_checkpoint,
    read_claimed,
    recognise_checkpoint,
)
from kernel.models.configs import DetectorSpec
from kernel.models.configurations import configured_stem_stride
from kernel.models.detectors import build_detector, compute_features
from kernel.models.mmdet_imports import UNUSED_MODULES, UnusedModule, stand_ins
from kernel.models.pickles import CodeFreeReader

pytestmark = pytest.mark.usefixtures("wheels_site")

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "bundle" / "synthetic" / "weights"
CLAIM = ("maskrcnn", "resnet18_narrow")
CONFIG = "model = dict(rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', strides=[{}, {}, {}, {}, {}])))\n"


@pytest.fixture(scope="module")
def state() -> State:
    """The demo's Mask R-CNN. Not to be changed."""
    return load_demo(DEMO / "maskrcnn.safetensors")


def prefixed(state: State, prefix: str) -> State:
    return {prefix + key: value for key, value in state.items()}


def inside(state: State, part: str, wrapper: str) -> State:
    """As of a part that was wrapped: "backbone.conv1" becomes "backbone.module.conv1"."""
    return {key.replace(part, part + wrapper, 1) if key.startswith(part) else key: v for key, v in state.items()}


def flat_copies(state: State) -> State:
    return {"ema_" + key.replace(".", "_"): torch.zeros_like(value) for key, value in state.items()}


def zeros(state: State) -> State:
    return {key: torch.zeros_like(value) for key, value in state.items()}


@pytest.mark.parametrize(
    ("wrap", "told"),
    [
        (lambda s: prefixed(s, "module."), ""),
        (lambda s: prefixed(s, "_orig_mod.module."), ""),
        (lambda s: prefixed(s, "model."), ""),
        (lambda s: prefixed(s, "detector.net."), ""),
        (lambda s: inside(s, "backbone.", "_orig_mod."), ""),
        (lambda s: {"state_dict": prefixed(s, "model."), "pytorch-lightning_version": "2.1"}, ""),
        (lambda s: {"model": s, "optimizer": {"state": {"a": {"step": torch.ones(1)}}}, "epoch": 3}, ""),
        (lambda s: {"state": {"model": prefixed(s, "module.")}}, ""),
        (lambda s: {"state_dict": None, "model": s}, ""),
        (lambda s: {"state_dict": {}, "model": s}, ""),
        (lambda s: s | flat_copies(s), "copies 'ema_...' of 162"),
        (lambda s: prefixed(s, "model.") | prefixed(zeros(s), "ema_model.module."), "the copy 'ema_model.'"),
        (lambda s: {"state_dict": s, "ema_state_dict": prefixed(zeros(s), "module.") | {"steps": torch.tensor(3)}},
         "the copy 'ema_state_dict'"),
        (lambda s: {"model_ema": zeros(s), "model": s}, "the copy 'model_ema'"),
        (lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(5)}, ""),
        (lambda s: prefixed(s, "model.") | {"criterion.weight": torch.ones(3)}, "1 tensors that belong to no detector"),
    ],
)  # fmt: skip
def test_what_trainers_put_around_a_detector_is_taken_off(
    wrap: Callable[[State], Any], told: str, state: State, tmp_path: Path
) -> None:
    torch.save(wrap(dict(state)), tmp_path / "a.pth")
    found = read_checkpoint(tmp_path / "a.pth")
    assert found.state.keys() == state.keys()
    assert all(torch.equal(found.state[key], value) for key, value in state.items())
    assert (told in " ".join(found.told)) if told else not found.told
    assert load_detector(tmp_path / "a.pth", *CLAIM) is not None


def test_two_detectors_of_which_none_is_an_average_are_named(state: State, tmp_path: Path) -> None:
    torch.save(prefixed(state, "student.") | prefixed(state, "other."), tmp_path / "a.pth")
    with pytest.raises(InputError, match=r"holds 2 state dicts, 'student.' \(162 tensors\), 'other.'.*--take NAME"):
        read_checkpoint(tmp_path / "a.pth")
    assert main(["convert", str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), "--take", "other."]) == 0
    assert recognise_checkpoint(tmp_path / "b.safetensors").kind == "maskrcnn"


@pytest.mark.parametrize("odd", ODD_TENSORS)
def test_tensors_that_are_no_weights_are_refused_in_a_line(odd: str, state: State, tmp_path: Path) -> None:
    change, told = ODD_TENSORS[odd]
    torch.save(change(state), tmp_path / "a.pt")
    with pytest.raises(InputError, match=told) as caught:
        load_detector(tmp_path / "a.pt", *CLAIM)
    assert "a.pt" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=told):
        recognise_checkpoint(tmp_path / "a.pt")


def test_a_variance_below_zero_is_refused(state: State, tmp_path: Path) -> None:
    key = "backbone.bn1.running_var"
    torch.save({**state, key: -state[key]}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=f"below zero: {key}"):
        load_detector(tmp_path / "a.pt", *CLAIM)


@pytest.mark.parametrize("zipped", [True, False])
def test_convert_takes_the_tensors_out_of_a_pickle(
    zipped: bool, state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tmp_path / "a.pth", tmp_path / "made" / "a.safetensors"
    save_with_class({"meta": {"cfg": CONFIG.format(4, 8, 16, 32, 64)}, "state_dict": state}, source)
    if not zipped:
        content = CodeFreeReader().read(source)
        torch.save({**content, "message_hub": CodeFreeReader}, source, _use_new_zipfile_serialization=False)
    with pytest.raises(
        InputError, match=r"would run code when loaded: [\w.]+(HistoryBuffer|CodeFreeReader); it is ref"
    ):
        read_checkpoint(source)
    assert main(["convert", str(source), str(out)]) == 0
    told = capsys.readouterr().out
    assert "162 tensors" in told and "left behind: " in told and "kind maskrcnn, encoder resnet18_narrow" in told
    found = read_checkpoint(out)
    assert found.stem_stride == 2 and all(torch.equal(found.state[key], value) for key, value in state.items())
    before = out.read_bytes()
    assert main(["convert", str(source), str(out)]) == 2 and "is there already" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_convert_takes_the_tensors_out_of_a_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    torch.save({"model": module, "epoch": 3}, tmp_path / "a.pt")
    assert main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors")]) == 0
    made = safetensors.torch.load_file(tmp_path / "a.safetensors")
    assert made.keys() == module.state_dict().keys()
    assert all(torch.equal(made[key], value) for key, value in module.state_dict().items())
    assert "no member of an ensemble: " in capsys.readouterr().out


class RunsCode:
    """Writes a file where it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.mark), "w"))


def test_convert_runs_no_code(state: State, tmp_path: Path) -> None:
    torch.save({"state_dict": state, "hook": RunsCode(tmp_path / "mark")}, tmp_path / "a.pt")
    assert main(["convert", str(tmp_path / "a.pt"), str(tmp_path / "a.safetensors")]) == 0
    assert not (tmp_path / "mark").exists()


@pytest.mark.skipif(os.name != "posix", reason="of another shell")
def test_the_way_round_a_pickle_can_be_pasted_whatever_the_file_is_called(state: State, tmp_path: Path) -> None:
    name = "a $(touch mark); b.pth"
    save_with_class({"state_dict": state}, tmp_path / name)
    with pytest.raises(InputError) as caught:
        read_checkpoint(tmp_path / name)
    command = str(caught.value).split("`")[1]
    assert shlex.split(command)[-2:] == [name, "a $(touch mark); b.safetensors"] and f"'{name}'" in command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["gone.pth", "a.safetensors"], "no file"),
        (["a.pth", "b.pth"], "ending in .safetensors"),
        (["a.pth", "a.pth"], "is read, and would be lost"),
        (["a.pth", "b.safetensors"], "not a readable PyTorch file"),
    ],
)
def test_what_cannot_be_converted_is_told(
    arguments: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pth").write_bytes(b"not weights")
    assert main(["convert", *(str(tmp_path / name) for name in arguments)]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "b.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "stride"),
    [
        ({"meta": {"config": CONFIG.format(4, 8, 16, 32, 64)}}, 2),
        ({"meta": {"cfg": CONFIG.format(2, 4, 8, 16, 32)}}, 1),
        ({"cfg": {"model": {"roi": {"featmap_strides": [4, 8, 16, 32]}}}}, 2),
        ({"stem_stride": "2"}, 2),
        ({"hyper_parameters": {"stem_stride": 1, "strides": [4, 8, 16, 32]}}, 1),
        ({"meta": {"config": "strides=(1, 2, 2, 2)"}}, None),
        ({"config": CONFIG.format(4, 8, 16, 32, 64) + CONFIG.format(2, 4, 8, 16, 32)}, None),
        ({"meta": {"config": "(" * 100_000}}, None),
        ({"meta": {"config": "model = \\ no Python"}}, None),
        ({"meta": 3, "config": None}, None),
        ([], None),
    ],
)
def test_the_stride_of_the_stem_is_read_from_configurations(content: Any, stride: int | None) -> None:
    assert configured_stem_stride(content) == stride


@pytest.mark.parametrize("encoder", ["resnet18_narrow", "efficientnet_lite0"])
@pytest.mark.parametrize("kind", ["maskrcnn", "htc"])
def test_either_stride_of_the_stem_works(kind: str, encoder: str) -> None:
    usual, ours = (build_detector(DetectorSpec(kind, encoder, 3, 16, 16, 16, stem_stride=s)) for s in (2, 1))
    assert {k: v.shape for k, v in usual.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    with torch.inference_mode():
        levels = compute_features(usual, torch.zeros(1, 3, 64, 96)).levels
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert [stride for stride, _ in usual.rpn_head.prior_generator.strides] == [4, 8, 16, 32, 64]
    assert [stride for stride, _ in ours.rpn_head.prior_generator.strides] == [2, 4, 8, 16, 32]


def test_manifest_and_configuration_must_agree_on_the_stem(state: State, tmp_path: Path) -> None:
    torch.save({"meta": {"cfg": CONFIG.format(4, 8, 16, 32, 64)}, "state_dict": state}, tmp_path / "a.pth")
    for stated in (None, 2):
        loaded = build_loaded(*read_claimed(tmp_path / "a.pth", *CLAIM, stem_stride=stated), "a.pth")
        assert loaded.backbone.conv1.stride == (2, 2)
    with pytest.raises(InputError, match="stem of stride 2, by its configuration, the manifest says 1"):
        read_claimed(tmp_path / "a.pth", *CLAIM, stem_stride=1)


def test_stand_ins_are_gone_after_the_import() -> None:
    with stand_ins():
        made = [name for name in UNUSED_MODULES if isinstance(sys.modules[name], UnusedModule)]
        for name in made:
            with pytest.raises(NotImplementedError, match=name):
                sys.modules[name].anything()
    assert not any(isinstance(sys.modules.get(name), UnusedModule) for name in UNUSED_MODULES)


def test_importing_mmdet_leaves_nothing_in_the_users_cache(wheels_site: Path, tmp_path: Path) -> None:
    """yapf, which mmcv imports, keeps its grammar there: two workers that start at once may read it half written."""
    code = (
        "import sys; from kernel.models.mmdet_imports import import_mmdet; import_mmdet(); print('yapf' in sys.modules)"
    )
    paths = os.pathsep.join((str(ROOT), str(wheels_site)))
    environment = {"PYTHONPATH": paths, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n" and not [path for path in tmp_path.rglob("*") if path.is_file()]
