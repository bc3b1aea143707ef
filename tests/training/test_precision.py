"""Quicker training: what heads in a short dtype compute in it, and that quick extractors change no result."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_detectors import tiny_detector, tiny_spec
from torch import nn
from training.batch_gradients import detector_of, fixed_batch

from kernel.manifest.types import KIND_NAMES
from kernel.models.detectors import Detector, build_detector
from kernel.models.roi_align import quicken_extractors
from kernel.training.crops import CropDataset
from kernel.training.learner import quicken
from kernel.training.losses import weighted_loss
from kernel.training.precision import (
    QuickGroupNorm,
    add_upsampling_biases_apart,
    head_modules,
    heads_in,
    keep_depthwise_wide,
    quick_group_norm,
)
from kernel.training.run import TrainingRun
from kernel.training.samples import TrainingImage, collate
from kernel.training.settings import TrainSettings
from kernel.training.step import compute_losses, set_proposal_counts, some_positives, train_masks_of_some
from kernel.training.trainer import train_detector

pytestmark = pytest.mark.usefixtures("wheels_site")

TINY = TrainSettings(iterations=2, batch_size=2, crop_size=64, rpn_nms_pre=50, rois_per_image=16)


def cell_image() -> TrainingImage:
    """Squares on noise."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(90, 130, (80, 80, 3), dtype=np.uint8)
    offsets = np.array([[5, 8], [40, 12], [20, 44], [50, 50]])
    for y, x in offsets:
        pixels[y : y + 16, x : x + 20] = 230
    return TrainingImage(pixels, (np.ones((16, 20), bool),) * 4, offsets, np.full(4, 2), "cort")


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_layers_of_the_heads_and_no_others_compute_in_the_dtype(kind: str) -> None:
    detector = tiny_detector(kind).train()
    set_proposal_counts(detector, TINY)
    dtypes: dict[str, set[torch.dtype]] = {}
    given_to_losses: dict[str, set[torch.dtype]] = {}
    for name, module in detector.named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            found = dtypes.setdefault(name, set())
            module.register_forward_hook(lambda _, __, out, found=found: found.add(out.dtype))
    for number, head in enumerate(head_modules(detector)):
        for name, module in head.named_children():
            if name.startswith("loss"):
                found = given_to_losses.setdefault(f"{number}.{name}", set())
                module.register_forward_pre_hook(lambda _, given, found=found: found.add(given[0].dtype))
    dataset = CropDataset([cell_image()], 2, 64, seed=0)
    compute_losses(detector, collate([dataset[0], dataset[1]]), torch.float32, torch.bfloat16)
    assert {name for name, found in dtypes.items() if found == {torch.bfloat16}} == {
        name for name in dtypes if name.startswith(("rpn_head.", "roi_head."))
    }
    assert {name for name, found in dtypes.items() if found == {torch.float32}} == {
        name for name in dtypes if name.startswith(("backbone.", "neck."))
    }
    assert len(given_to_losses) == (5 if kind == "maskrcnn" else 11)
    assert all(found == {torch.float32} for found in given_to_losses.values())


def loss_terms_gradients(
    detector: Detector, heads_dtype: torch.dtype = torch.float32
) -> tuple[float, dict[str, float], dict[str, torch.Tensor]]:
    """Of one and the same batch and random numbers; the gradients by parameter."""
    detector.zero_grad()
    torch.manual_seed(1)
    losses = compute_losses(detector, fixed_batch(), torch.float32, heads_dtype)
    loss, terms = weighted_loss(losses, 1, 1)
    loss.backward()
    gradients = {name: value.grad for name, value in detector.named_parameters() if value.grad is not None}
    return float(loss), terms, gradients


def joined(gradients: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.flatten() for value in gradients.values()])


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_losses_and_gradients_are_nearly_those_of_float32(kind: str) -> None:
    detector = detector_of(kind)
    exact, short, again = (
        loss_terms_gradients(detector, dtype) for dtype in (torch.float32, torch.bfloat16, torch.float32)
    )
    assert short[0] == pytest.approx(exact[0], rel=0.05) and short[0] != exact[0]
    for term in ("loss_rpn_cls", "loss_rpn_bbox"):  # of the same anchors; the proposals are not quite the same
        assert short[1][term] == pytest.approx(exact[1][term], rel=0.02, abs=1e-3)
    assert torch.cosine_similarity(joined(short[2]), joined(exact[2]), dim=0) > 0.9
    # And nothing of it stays.
    assert again[0] == exact[0] and torch.equal(joined(again[2]), joined(exact[2]))


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_quick_extractors_give_the_losses_and_gradients_of_mmdets(kind: str) -> None:
    detector = detector_of(kind)
    _, terms, gradients = loss_terms_gradients(detector)
    quicken_extractors(detector)
    _, quick_terms, quick_gradients = loss_terms_gradients(detector)
    assert quick_terms == pytest.approx(terms, rel=1e-3)
    assert quick_gradients.keys() == gradients.keys()
    one, other = joined(gradients), joined(quick_gradients)
    assert torch.linalg.vector_norm(one - other) < 1e-3 * torch.linalg.vector_norm(one)


def test_the_heads_are_as_before_even_after_a_failure() -> None:
    detector = tiny_detector("htc")
    with pytest.raises(RuntimeError, match="on the way"), heads_in(detector, torch.bfloat16):
        assert all("forward" in vars(head) for head in head_modules(detector))
        raise RuntimeError("on the way")
    assert len(head_modules(detector)) == 8
    assert not any("forward" in vars(head) for head in head_modules(detector))


def test_a_run_with_heads_in_bfloat16_keeps_float32_weights(tmp_path: Path) -> None:
    settings = replace(TINY, dtype="bfloat16", heads_dtype="bfloat16")
    out = tmp_path / "member.safetensors"
    detector = train_detector(TrainingRun(tiny_spec("htc"), settings, [cell_image()], out))
    assert {parameter.dtype for parameter in detector.parameters()} == {torch.float32}
    assert not any("forward" in vars(head) for head in head_modules(detector))


def test_large_and_strided_depthwise_convolutions_compute_in_float32() -> None:
    torch.manual_seed(0)
    convolutions = {
        "large": nn.Conv2d(8, 8, 5, padding=2, groups=8),
        "strided": nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8),
        "small": nn.Conv2d(8, 8, 3, padding=1, groups=8),
        "full": nn.Conv2d(8, 8, 5, padding=2),
    }
    given = torch.randn(2, 8, 16, 16, dtype=torch.bfloat16)
    exact = {name: module(given.float()) for name, module in convolutions.items()}
    keep_depthwise_wide(SimpleNamespace(backbone=nn.ModuleDict(convolutions)))
    for name, module in convolutions.items():
        with torch.autocast("cpu", torch.bfloat16):
            found = module(given)
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, exact[name].bfloat16()) == (name in ("large", "strided")), name
    assert convolutions["large"](given.float()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cells", [0, 3])
def test_a_bias_that_is_added_apart_changes_neither_outputs_nor_gradients(dtype: torch.dtype, cells: int) -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ConvTranspose2d(4, 6, 2, stride=2))
    head.to(memory_format=torch.channels_last)
    given = torch.randn(cells, 4, 7, 7).to(memory_format=torch.channels_last)
    outputs, gradients = [], []
    for _ in range(2):
        head.zero_grad()
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs.append(head(given))
        (outputs[-1].float() ** 2).sum().backward()
        gradients.append([parameter.grad for parameter in head.parameters()])
        add_upsampling_biases_apart(head)
    assert outputs[0].dtype == outputs[1].dtype == dtype and outputs[1].shape == (cells, 6, 14, 14)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(outputs[1], outputs[0], rtol=tolerance, atol=tolerance)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance * float(one.abs().max()))


@pytest.mark.parametrize("kind", KIND_NAMES)
@pytest.mark.parametrize("count", [0, 2])
def test_mask_heads_are_given_no_more_than_the_settings_say(kind: str, count: int) -> None:
    detector = tiny_detector(kind).train()
    set_proposal_counts(detector, replace(TINY, rois_per_image=64, mask_rois_per_image=count))
    heads = detector.roi_head.mask_head
    given: list[int] = []
    for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
        head.register_forward_pre_hook(lambda _, features: given.append(len(features[0])))
    dataset = CropDataset([cell_image()], 2, 64, seed=0)
    torch.manual_seed(0)
    losses = compute_losses(detector, collate([dataset[0], dataset[1]]), torch.float32)
    loss, _ = weighted_loss(losses, 1, 1)
    loss.backward()
    assert all(number == 4 for number in given) if count else min(given) > 4
    assert all(parameter.grad is not None for parameter in detector.roi_head.parameters())


def test_where_all_are_given_to_the_mask_head_nothing_changes() -> None:
    detector = detector_of("maskrcnn")
    _, terms, gradients = loss_terms_gradients(detector)
    roi_head = detector.roi_head
    roi_head._mask_forward_train = partial(train_masks_of_some, roi_head._mask_forward_train, 999)
    _, same_terms, same_gradients = loss_terms_gradients(detector)
    assert same_terms == pytest.approx(terms, rel=1e-4)
    torch.testing.assert_close(joined(same_gradients), joined(gradients), rtol=1e-3, atol=1e-4)


def test_images_without_a_cell_give_mask_heads_nothing() -> None:
    detector = tiny_detector("cascade").train()
    set_proposal_counts(detector, replace(TINY, mask_rois_per_image=2))
    empty = TrainingImage(
        np.full((64, 64, 3), 99, np.uint8), (), np.zeros((0, 2), np.int64), np.zeros(0, np.int64), "cort"
    )
    losses = compute_losses(detector, collate([CropDataset([empty], 1, 64, seed=0)[0]]), torch.float32)
    loss, _ = weighted_loss(losses, 1, 1)
    assert torch.isfinite(loss)


def test_a_trained_mask_head_has_its_bias_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = tiny_detector("maskrcnn")
    quicken(detector, torch.device("cpu"))
    given: list[object] = []
    plain = torch.nn.functional.conv_transpose2d
    monkeypatch.setattr("torch.nn.functional.conv_transpose2d", lambda *args: given.append(args[2]) or plain(*args))
    detector.roi_head.mask_head(torch.randn(2, detector.roi_head.mask_head.in_channels, 14, 14))
    assert given == [None]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_group_norms_have_the_gradients_of_pytorchs(dtype: torch.dtype, layout: torch.memory_format) -> None:
    torch.manual_seed(3)
    norm = nn.GroupNorm(4, 12)
    nn.init.normal_(norm.weight)
    maps = (torch.randn(3, 12, 5, 7) * 3 + 2).to(dtype).to(memory_format=layout)
    of_output = torch.randn(3, 12, 5, 7).to(dtype)
    outputs, gradients = [], []
    for normed in (norm, partial(quick_group_norm, norm)):
        norm.zero_grad()
        given = maps.clone().requires_grad_()
        outputs.append(normed(given))
        outputs[-1].backward(of_output)
        gradients.append([given.grad, norm.weight.grad, norm.bias.grad])
    assert torch.equal(*outputs)
    for quick, plain in zip(gradients[1], gradients[0], strict=True):
        assert quick.dtype == plain.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 0.02
        torch.testing.assert_close(quick, plain, rtol=tolerance, atol=tolerance * float(plain.abs().max()))


def test_quick_group_norms_gradient_is_that_of_small_differences() -> None:
    torch.manual_seed(4)
    given = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 6, 3, 4), (6,), (6,))]
    assert torch.autograd.gradcheck(lambda *tensors: QuickGroupNorm.apply(*tensors, 3, 1e-5), given, atol=1e-4)


def test_a_trained_neck_norms_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    detector = build_detector(replace(tiny_spec("maskrcnn"), neck_norm=True, neck_channels=32))
    norms = sum(isinstance(module, nn.GroupNorm) for module in detector.neck.modules())
    quicken(detector, torch.device("cpu"))
    used: list[object] = []
    plain = QuickGroupNorm.apply
    monkeypatch.setattr(QuickGroupNorm, "apply", lambda *given: used.append(given[3]) or plain(*given))
    detector.extract_feat(torch.randn(1, 3, 64, 64))
    assert len(used) == norms > 0


def test_mask_heads_see_each_cell_before_they_see_one_twice() -> None:
    cells = torch.tensor([4, 4, 4, 4, 4, 4, 1, 0, 0, 4])
    result = SimpleNamespace(
        pos_assigned_gt_inds=cells, pos_bboxes=torch.arange(40.0).view(10, 4), pos_gt_labels=cells * 10
    )
    for seed in range(5):
        torch.manual_seed(seed)
        three, five = some_positives(result, 3), some_positives(result, 5)
        assert sorted(three.pos_assigned_gt_inds.tolist()) == [0, 1, 4]
        assert sorted(five.pos_assigned_gt_inds.tolist()) == [0, 0, 1, 4, 4]
        rows = (five.pos_bboxes[:, 0] / 4).long()
        assert torch.equal(cells[rows], five.pos_assigned_gt_inds) and torch.equal(five.pos_gt_labels, cells[rows] * 10)
        assert len(set(rows.tolist())) == 5
    assert len(some_positives(result, 99).pos_bboxes) == 10
    none = SimpleNamespace(**{name: tensor[:0] for name, tensor in vars(result).items()})
    assert len(some_positives(none, 3).pos_bboxes) == 0
