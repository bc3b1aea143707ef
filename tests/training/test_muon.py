"""Muon: matrices learn by orthogonal changes, all else as by AdamW."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from disc_images import disc_image
from tiny_detectors import tiny_detector, tiny_spec

from kernel.errors import RunError
from kernel.manifest.types import KIND_NAMES, PLAIN_ENCODER
from kernel.models.checkpoints import read_state_dict
from kernel.models.configs import DetectorSpec
from kernel.models.crop_unet import CropUNet
from kernel.models.detectors import build_detector
from kernel.training.muon import LAST_LAYERS, Muon, is_matrix, orthogonal
from kernel.training.optimisation import parameter_groups
from kernel.training.record import RunRecord
from kernel.training.run import TrainingRun
from kernel.training.settings import TrainSettings
from kernel.training.trainer import train_detector

TINY = TrainSettings(
    iterations=4, batch_size=2, crop_size=64, rpn_nms_pre=50, rois_per_image=16, optimizer="muon", learning_rate=1e-3
)
SHAPES = [(8, 8), (5, 40), (40, 5), (1, 7), (7, 1), (96, 864), (300, 12)]


def by_the_source(matrix: torch.Tensor) -> torch.Tensor:
    """The iteration as it is published, on the matrix itself."""
    found = matrix / matrix.norm()
    for _ in range(5):
        square = found @ found.T
        found = 3.4445 * found + (-4.7750 * square + 2.0315 * square @ square) @ found
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_the_change_is_orthogonal_and_the_source_s(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    found = orthogonal(matrix)
    singular = torch.linalg.svdvals(found)
    assert singular.min() > 0.5 and singular.max() < 1.4
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ found @ right.T
    torch.testing.assert_close(inside, torch.diag(inside.diagonal()), rtol=0, atol=2e-3)  # the same vectors
    torch.testing.assert_close(found, by_the_source(matrix), rtol=0, atol=2e-3)
    torch.testing.assert_close(orthogonal(1e-3 * matrix), found, rtol=0, atol=2e-3)  # the gradient's size counts not


def test_a_gradient_of_zeros_changes_nothing() -> None:
    assert not orthogonal(torch.zeros(3, 5)).any()


def test_parts_far_below_the_largest_stay_finite() -> None:
    """As of layers of which most channels see nothing yet."""
    matrix = torch.diag(torch.logspace(0, -12, 24))
    found = orthogonal(matrix)
    assert found.isfinite().all() and torch.linalg.svdvals(found).max() < 1.4


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has none to compare with")
@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5)])
def test_steps_are_those_of_torch(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(5)
    first = torch.randn(shape, generator=generator)
    ours, theirs = (first.clone().requires_grad_() for _ in range(2))
    settings = {"lr": 0.02, "weight_decay": 0.3}
    optimizers = (
        Muon([{"params": [ours], "muon": True, **settings}]),
        torch.optim.Muon([theirs], adjust_lr_fn="match_rms_adamw", **settings),
    )
    for _ in range(12):
        gradient = torch.randn(shape, generator=generator)
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - first).norm()
    assert moved > 0.1 and (ours - theirs).norm() < 0.03 * moved  # theirs computes in bfloat16


def test_a_convolution_is_the_matrix_of_its_lines_in_any_layout() -> None:
    generator = torch.Generator().manual_seed(7)
    first, gradient = (torch.randn((6, 4, 3, 3), generator=generator) for _ in range(2))
    plain = first.clone().requires_grad_()
    last = first.clone().to(memory_format=torch.channels_last).requires_grad_()
    flat = first.flatten(1).clone().requires_grad_()
    for parameter in (plain, last, flat):
        optimizer = Muon([{"params": [parameter], "muon": True}], lr=0.1)
        for _ in range(2):
            parameter.grad = gradient.reshape(parameter.shape).clone()
            optimizer.step()
    torch.testing.assert_close(last, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(flat.reshape(first.shape), plain, rtol=0, atol=1e-5)


@pytest.mark.usefixtures("wheels_site")
@pytest.mark.parametrize("kind", [*KIND_NAMES, "unet"])
def test_what_is_no_matrix_learns_as_by_adamw(kind: str) -> None:
    torch.manual_seed(0)
    unet = DetectorSpec("unet", PLAIN_ENCODER, mask_channels=8)
    detectors = [build_detector(unet) if kind == "unet" else tiny_detector(kind) for _ in range(2)]
    detectors[1].load_state_dict(detectors[0].state_dict())
    settings = replace(TINY, encoder_rate=0.5, weight_decay=0.02)
    optimizers = [
        Muon(parameter_groups(detectors[0], settings)),
        torch.optim.AdamW(parameter_groups(detectors[1], replace(settings, optimizer="adamw"))),
    ]
    for detector, optimizer in zip(detectors, optimizers, strict=True):
        generator = torch.Generator().manual_seed(1)
        for _ in range(2):
            for parameter in detector.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
    adamw = dict(detectors[1].named_parameters())
    ours = {name for name, parameter in adamw.items() if is_matrix(name, parameter)}
    for name, parameter in detectors[0].named_parameters():
        assert torch.equal(parameter, adamw[name]) == (name not in ours), name
    others = {name for name, parameter in adamw.items() if parameter.ndim > 1} - ours
    assert others and all(set(name.split(".")) & set(LAST_LAYERS) or adamw[name].shape[1] == 1 for name in others)
    assert isinstance(detectors[0], CropUNet) or any(name.startswith("backbone.") for name in ours)


@pytest.mark.usefixtures("wheels_site")
def test_the_encoder_learns_at_its_share_and_norms_do_not_decay() -> None:
    detector = tiny_detector("maskrcnn")
    groups = parameter_groups(detector, replace(TINY, encoder_rate=0.25, weight_decay=0.02))
    told = {id(parameter): group for group in groups for parameter in group["params"]}
    assert len(told) == len(list(detector.parameters()))
    for name, parameter in detector.named_parameters():
        group = told[id(parameter)]
        assert group["lr"] == (0.25e-3 if name.startswith("backbone.") else 1e-3), name
        assert group["weight_decay"] == (0.02 if parameter.ndim > 1 else 0), name
        assert group.get("muon", False) == is_matrix(name, parameter), name


def test_it_learns_where_directions_differ_a_thousandfold() -> None:
    """A linear map of inputs most of which are small: AdamW follows the large ones for long."""

    def loss_after(optimizer_of: type[torch.optim.Optimizer]) -> float:
        generator = torch.Generator().manual_seed(2)
        turn = torch.linalg.qr(torch.randn((16, 16), generator=generator))[0]
        inputs = torch.randn((256, 16), generator=generator) * torch.logspace(0, -3, 16) @ turn
        wanted = torch.randn((16, 16), generator=generator)
        weights = torch.zeros((16, 16), requires_grad=True)
        optimizer = optimizer_of([{"params": [weights], "muon": True}], lr=0.05)
        for _ in range(200):
            error = (inputs @ (weights - wanted)).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        return float((weights - wanted).square().mean())

    assert loss_after(Muon) < 0.8 * loss_after(torch.optim.AdamW)


@pytest.mark.usefixtures("wheels_site", "one_thread")
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [disc_image(0, 96, 6, "shsy5y", 0), disc_image(1, 96, 5, "astro", 1)]
    whole, parted = (
        TrainingRun(tiny_spec("maskrcnn"), TINY, images, tmp_path / f"{name}.safetensors") for name in "wp"
    )
    train_detector(whole)
    noted = RunRecord.add_step

    def stop_after_two(record: RunRecord, step: int, *given: object) -> None:
        noted(record, step, *given)  # type: ignore[arg-type]
        if step == 2:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(RunRecord, "add_step", stop_after_two)
    with pytest.raises(RunError, match="stopped after step 2 of 4"):
        train_detector(parted)
    monkeypatch.setattr(RunRecord, "add_step", noted)
    train_detector(replace(parted, resume=True))
    expected, found = (read_state_dict(run.out) for run in (whole, parted))
    assert all(torch.equal(found[name], value) for name, value in expected.items())
