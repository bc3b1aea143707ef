"""Members stored with 8 bits a weight: what comes back, and files that are not what they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from bundle.member_table import parameter_count
from kernel.__main__ import main
from kernel.data.learned import MemberRecord, read_member_record
from kernel.data.pictures import Picture
from kernel.errors import InputError
from kernel.models.checkpoints import load_detector, read_state_dict, recognise_checkpoint
from kernel.models.configs import DetectorSpec
from kernel.models.detectors import build_detector, compute_features
from kernel.models.eight_bits import SCALE_SUFFIX, from_eight_bits, in_eight_bits
from kernel.training.state import save_weights

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")

SPEC = DetectorSpec("htc", "efficientnet_lite0", 3, 16, 16, 16)
RECORD = MemberRecord("0123456789abcdef", 3, 3, (Picture("a", "b" * 64, "c" * 64),))


@pytest.fixture(scope="module")
def member(wheels_site: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("eight") / "member.safetensors"
    save_weights(build_detector(SPEC).state_dict(), path, record=RECORD)
    return path


@pytest.fixture(scope="module")
def quarter(member: Path) -> Path:
    path = member.with_name("quarter.safetensors")
    assert main(["convert", str(member), str(path), "--int8"]) == 0
    return path


def nearest(weights: torch.Tensor) -> torch.Tensor:
    """What each weight should come back as, found number by number."""
    found = weights.clone()
    for channel, numbers in enumerate(weights.flatten(1).tolist()):
        scale = torch.tensor(max(map(abs, numbers)) / 127).item()  # as float32 has it
        grid = [step * scale for step in range(-127, 128)]
        closest = [min(grid, key=lambda point, number=number: abs(point - number)) for number in numbers]
        found[channel] = torch.tensor(closest).view_as(found[channel])
    return found


@pytest.mark.parametrize("shape", [(3, 5), (4, 2, 3, 3), (1, 1)])
def test_each_weight_becomes_the_nearest_of_255(shape: tuple[int, ...]) -> None:
    weights = torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))
    stored = in_eight_bits({"a": weights})
    assert stored["a"].dtype == torch.int8 and stored["a"].shape == shape
    assert stored[f"a{SCALE_SUFFIX}"].shape == (shape[0], *[1] * (len(shape) - 1))
    found = from_eight_bits(stored, "here")
    assert found.keys() == {"a"}
    torch.testing.assert_close(found["a"], nearest(weights), rtol=1e-6, atol=0)


def test_twice_stored_is_stored_once() -> None:
    stored = in_eight_bits({"a": torch.randn(6, 7, generator=torch.Generator().manual_seed(2))})
    again = in_eight_bits(from_eight_bits(stored, "here"))
    assert all(torch.equal(again[key], value) for key, value in stored.items())


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(torch.zeros(2, 3), id="zero"),
        pytest.param(torch.zeros(0, 3), id="no channels"),
        pytest.param(torch.zeros(2, 0), id="no numbers"),
        pytest.param(torch.tensor([[0.0, 0.0], [1.0, -1.0]]), id="a channel of zeros"),
        pytest.param(torch.full((1, 2), 1e-45), id="tiny"),
        pytest.param(torch.full((1, 2), -3e38), id="huge"),
        pytest.param(torch.tensor([[torch.inf, 1.0]]), id="infinite"),
        pytest.param(torch.tensor([[1e300, 1.0]], dtype=torch.float64), id="beyond float32"),
        pytest.param(torch.tensor([1.5, 2.5]), id="bias"),
        pytest.param(torch.tensor(7), id="count"),
        pytest.param(torch.tensor([[1, 2]]), id="whole"),
    ],
)
def test_what_8_bits_cannot_lessen_comes_back_as_it_is(values: torch.Tensor) -> None:
    found = from_eight_bits(in_eight_bits({"a": values}), "here")["a"]
    torch.testing.assert_close(found, values, rtol=1e-6, atol=2e-45)


def test_a_member_is_a_quarter_as_large_and_answers_nearly_the_same(member: Path, quarter: Path) -> None:
    assert quarter.stat().st_size < 0.3 * member.stat().st_size
    assert recognise_checkpoint(quarter) == recognise_checkpoint(member) == SPEC
    assert read_member_record(quarter) == RECORD
    assert parameter_count(quarter) == parameter_count(member)
    before, after = read_state_dict(member), read_state_dict(quarter)
    assert before.keys() == after.keys()
    for key, value in before.items():
        if value.is_floating_point() and value.ndim > 1:
            half_a_step = value.abs().amax(dim=tuple(range(1, value.ndim)), keepdim=True) / 254
            assert ((after[key] - value).abs() <= 1.001 * half_a_step).all()
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = (
            compute_features(load_detector(path, SPEC.kind, SPEC.encoder), image).levels for path in (quarter, member)
        )
    for ours, theirs in zip(found, expected, strict=True):
        assert 0 < (ours - theirs).norm() < 0.1 * theirs.norm()


def test_converting_keeps_8_bits_or_makes_float16_of_them(quarter: Path, tmp_path: Path) -> None:
    same, half = tmp_path / "same.safetensors", tmp_path / "half.safetensors"
    assert main(["convert", str(quarter), str(same)]) == 0
    assert same.read_bytes() == quarter.read_bytes()
    assert main(["convert", str(quarter), str(half), "--half"]) == 0
    stored, expected = safetensors.torch.load_file(half), read_state_dict(quarter)
    assert stored.keys() == expected.keys()
    assert {value.dtype for value in stored.values()} == {torch.float16, torch.int64}
    assert all(torch.equal(value, expected[key].to(value.dtype)) for key, value in stored.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"a": None}, "are scales without weights"),
        ({"a": torch.zeros(2, 3)}, "are scales without weights"),
        ({f"a{SCALE_SUFFIX}": torch.ones(3, 1)}, r"must be \(2, 1\) finite numbers"),
        ({f"a{SCALE_SUFFIX}": torch.ones(2)}, r"must be \(2, 1\) finite numbers"),
        ({f"a{SCALE_SUFFIX}": torch.ones(2, 1).half()}, r"must be \(2, 1\) finite numbers of float32"),
        ({f"a{SCALE_SUFFIX}": torch.full((2, 1), torch.nan)}, r"must be \(2, 1\) finite numbers"),
        ({f"a{SCALE_SUFFIX}": None}, "a is of int8; allowed are dense tensors of"),
    ],
)
def test_scales_that_do_not_fit_are_refused(
    change: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    stored = in_eight_bits({"a": torch.ones(2, 3), "b.weight": torch.ones(1)}) | change
    path = tmp_path / "odd.safetensors"
    safetensors.torch.save_file({key: value for key, value in stored.items() if value is not None}, path)
    with pytest.raises(InputError, match=message):
        read_state_dict(path)


def test_it_is_one_size_or_the_other(member: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.safetensors"
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(member), str(out), "--int8", "--half"])
    assert main(["convert", str(member), str(out), "--int8", "--fraction-bits", "4"]) == 2
    errors = capsys.readouterr().err
    assert "not allowed with argument" in errors and "float16 numbers: leave --int8 out, and give --half" in errors
    assert not out.exists()
