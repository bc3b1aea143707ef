"""Members as they are stored: without what no detector runs, and as float16; what they tell of themselves is kept."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from kernel.__main__ import main
from kernel.data.learned import MemberRecord, read_member_record
from kernel.data.pictures import Picture
from kernel.models.checkpoints import NEVER_RUN_PREFIXES, load_detector, read_state_dict, recognise_checkpoint
from kernel.models.configs import DetectorSpec
from kernel.models.detectors import Detector, build_detector, compute_features
from kernel.models.saving import rounded_half, stored_tensors
from kernel.training.state import save_weights

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")

SPEC = DetectorSpec("cascade", "efficientnet_lite0", 3, 16, 16, 16)
RECORD = MemberRecord("0123456789abcdef", 3, 3, (Picture("a", "b" * 64, "c" * 64),))


@pytest.fixture(scope="module")
def detector(wheels_site: Path) -> Detector:
    torch.manual_seed(0)
    return build_detector(SPEC)


@pytest.fixture
def whole(detector: Detector, tmp_path: Path) -> Path:
    """A member's file as they were before: timm's classifier in it."""
    path = tmp_path / "whole.safetensors"
    safetensors.torch.save_file(detector.state_dict(), path, RECORD.metadata())
    return path


def levels_of(path: Path) -> list[torch.Tensor]:
    """The features of noise, by a member's file."""
    loaded = load_detector(path, SPEC.kind, SPEC.encoder)
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        return list(compute_features(loaded, torch.randn(1, 3, 64, 96, generator=generator)).levels)


def never_run(path: Path) -> list[str]:
    return [key for key in read_state_dict(path) if key.startswith(NEVER_RUN_PREFIXES)]


def test_a_member_is_written_without_the_classifier_and_answers_the_same(
    detector: Detector, whole: Path, tmp_path: Path
) -> None:
    save_weights(detector.state_dict(), tmp_path / "member.safetensors", record=RECORD)
    written = read_state_dict(tmp_path / "member.safetensors")
    assert len(never_run(whole)) == 8 and never_run(tmp_path / "member.safetensors") == []
    assert written.keys() == read_state_dict(whole).keys() - set(never_run(whole))
    assert recognise_checkpoint(tmp_path / "member.safetensors") == recognise_checkpoint(whole) == SPEC
    for found, expected in zip(levels_of(tmp_path / "member.safetensors"), levels_of(whole), strict=True):
        assert torch.equal(found, expected)


def test_convert_leaves_the_classifier_out_and_keeps_the_record(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.safetensors"
    assert main(["convert", str(whole), str(out)]) == 0
    assert "8 tensors that no detector runs are left out" in capsys.readouterr().out
    assert never_run(out) == [] and read_member_record(out) == RECORD
    for found, expected in zip(levels_of(out), levels_of(whole), strict=True):
        assert torch.equal(found, expected)


def test_convert_writes_a_copy_of_half_the_size(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plain = tmp_path / "half.safetensors", tmp_path / "plain.safetensors"
    assert main(["convert", str(whole), str(plain)]) == 0
    assert main(["convert", str(whole), str(out), "--half"]) == 0
    assert "stay float32" not in capsys.readouterr().out
    assert out.stat().st_size < 0.6 * plain.stat().st_size
    state, expected = read_state_dict(out), read_state_dict(plain)
    assert {value.dtype for value in state.values()} == {torch.float16, torch.int64}
    assert all(torch.equal(state[key], value.to(state[key].dtype)) for key, value in expected.items())
    assert read_member_record(out) == RECORD
    with safe_open(out, "pt") as file, safe_open(whole, "pt") as first:
        assert file.metadata() == first.metadata()
    again = tmp_path / "again.safetensors"
    assert main(["convert", str(whole), str(again), "--half"]) == 0
    assert again.read_bytes() == out.read_bytes()
    recognised = recognise_checkpoint(out)
    assert recognised == SPEC and len(levels_of(out)) == 5


def test_numbers_beyond_float16_stay_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"a.weight": torch.tensor([1.0, -2.0]), "a.running_var": torch.tensor([70000.0, 1.0])}
    stored = stored_tensors(state, half=True)
    assert stored["a.weight"].dtype == torch.float16 and stored["a.running_var"].tolist() == [70000.0, 1.0]
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    assert main(["convert", str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors"), "--half"]) == 0
    assert "1 tensors stay float32, whose numbers are beyond float16: a.running_var" in capsys.readouterr().out


def test_what_is_not_finite_is_stored_as_it_is() -> None:
    stored = stored_tensors({"a": torch.tensor([float("inf"), float("nan"), 1.0])}, half=True)
    assert stored["a"].dtype == torch.float16 and stored["a"][0] == float("inf") and stored["a"][1].isnan()
    assert stored_tensors({}, half=True) == {}


@pytest.mark.parametrize("bits", [1, 4, 9])
def test_rounded_weights_are_the_nearest_of_so_many_bits(bits: int) -> None:
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16)  # each float16 there is
    finite = every[every.isfinite()]
    rounded = rounded_half(finite, bits)
    fraction, exponent = torch.frexp(finite.double())
    unit = 2.0 ** (exponent.clamp(min=-13) - 1 - bits)  # below 2 ** -14 a float16 has the steps of that exponent
    away = torch.sign(finite.double()) * torch.floor(finite.double().abs() / unit + 0.5) * unit
    expected = torch.where(away.abs() < 2.0**16, away, finite.double())
    assert fraction.abs().max() < 1 and torch.equal(rounded.double(), expected)
    beyond = torch.tensor([float("inf"), float("-inf"), float("nan"), 65504.0], dtype=torch.float16)
    assert torch.equal(rounded_half(beyond, bits).nan_to_num(7), beyond.nan_to_num(7))


def test_convert_rounds_weights_which_compress_to_less(whole: Path, tmp_path: Path) -> None:
    plain, out = tmp_path / "plain.safetensors", tmp_path / "rounded.safetensors"
    assert main(["convert", str(whole), str(plain), "--half"]) == 0
    assert main(["convert", str(whole), str(out), "--half", "--fraction-bits", "4"]) == 0
    before, after = read_state_dict(plain), read_state_dict(out)
    assert before.keys() == after.keys() and recognise_checkpoint(out) == SPEC
    for key, value in before.items():
        if value.ndim > 1 and value.dtype == torch.float16:
            assert torch.equal(after[key], rounded_half(value, 4)) and not torch.equal(after[key], value)
            torch.testing.assert_close(after[key], value, rtol=2**-5, atol=2**-19)
        else:
            assert torch.equal(after[key], value)
    assert out.stat().st_size == plain.stat().st_size
    assert len(zlib.compress(out.read_bytes())) < 0.75 * len(zlib.compress(plain.read_bytes()))


def test_bits_of_a_fraction_are_those_of_float16(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(whole), str(tmp_path / "a.safetensors"), "--fraction-bits", "4"]) == 2
    assert "--fraction-bits is of float16 numbers: give --half as well" in capsys.readouterr().err
    assert not (tmp_path / "a.safetensors").exists()
