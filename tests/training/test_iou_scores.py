"""Box heads that learn the IoU of their boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from disc_images import disc_image
from tiny_detectors import tiny_detector, tiny_spec
from torch import nn
from torchvision.ops import box_iou
from training.batch_gradients import detector_of, fixed_batch, terms_and_gradients

import kernel.training.iou_scores
from kernel.manifest.types import KIND_NAMES, PLAIN_ENCODER
from kernel.models.configs import DetectorSpec
from kernel.training.crops import CropDataset
from kernel.training.iou_scores import learn_iou_scores
from kernel.training.run import TrainingRun
from kernel.training.samples import TrainingImage, collate
from kernel.training.settings import TrainSettings
from kernel.training.step import compute_losses
from kernel.training.trainer import Trainer, train_detector

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")

TINY = TrainSettings(iterations=2, batch_size=2, crop_size=64, rpn_nms_pre=50, rois_per_image=16, iou_scores=True)


def heads_of(detector: Any) -> list[Any]:
    heads = detector.roi_head.bbox_head
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def step_of(kind: str, learns_ious: bool) -> dict[str, np.ndarray]:
    detector = detector_of(kind)
    if learns_ious:
        learn_iou_scores(detector)
    torch.manual_seed(1)
    return terms_and_gradients(detector, compute_losses(detector, fixed_batch(), torch.float32))


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_where_all_boxes_fit_the_step_is_mmdets(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = step_of(kind, learns_ious=False)
    ious = step_of(kind, learns_ious=True)
    monkeypatch.setattr(
        kernel.training.iou_scores, "refined_ious", lambda head, pred, rois, *_: rois.new_ones(len(rois))
    )
    found = step_of(kind, learns_ious=True)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=0, atol=5e-5 * np.abs(value).max(), err_msg=name)
    changed = {name for name in ious if name.endswith("loss_cls") and not np.isclose(ious[name], expected[name])}
    assert len(changed) == len(heads_of(detector_of(kind)))
    # Boxes learn as ever: the IoU is a target alone.
    for name in (name for name in ious if name.endswith(("loss_bbox", "fc_reg.weight"))):
        np.testing.assert_allclose(ious[name], expected[name], rtol=0, atol=5e-5 * np.abs(expected[name]).max())


@pytest.mark.parametrize("kind", ["maskrcnn", "cascade"])  # boxes of each class, and of none
def test_the_loss_is_that_of_a_loop(kind: str) -> None:
    detector = tiny_detector(kind)
    learn_iou_scores(detector)
    torch.manual_seed(2)
    classes, count = 3, 12
    cells = torch.rand(count, 4) * 20 + torch.tensor([0.0, 0, 40, 40])
    rois = torch.cat([torch.zeros(count, 1), cells + torch.randn(count, 4) * torch.arange(count)[:, None]], dim=1)
    labels = torch.tensor([0, 1, 2, 3] * 3)
    weights = torch.tensor([1.0] * 10 + [0.0] * 2)
    for head in heads_of(detector):
        logits = torch.randn(count, classes + 1, requires_grad=True)
        deltas = torch.randn(count, 4 * (classes if kind == "maskrcnn" else 1), requires_grad=True)
        targets = head.bbox_coder.encode(rois[:, 1:], cells)
        targets[labels == classes] = 0  # as mmdet has it
        found = head.loss(logits, deltas, rois, labels, weights, targets, torch.ones(count, 4))
        expected, ious = [], []
        for row in range(10):
            chances = logits[row].softmax(0)
            label = int(labels[row])
            if label == classes:
                expected.append(-chances[classes].log())
                continue
            own = deltas[row, 4 * label : 4 * label + 4] if kind == "maskrcnn" else deltas[row]
            box = head.bbox_coder.decode(rois[row : row + 1, 1:], own[None])
            ious.append(float(box_iou(box, cells[row : row + 1])))
            expected.append(-ious[-1] * chances[label].log() - (1 - ious[-1]) * chances[classes].log())
        torch.testing.assert_close(found["loss_cls"], torch.stack(expected).mean())
        assert 0.1 < min(ious) < max(ious) - 0.2
        found["loss_cls"].backward()
        assert deltas.grad is None and bool((logits.grad[:10] != 0).any(dim=1).all()) and not logits.grad[10:].any()


def test_scores_come_to_be_the_ious() -> None:
    """Of boxes that fit well and badly, and of none, by what the head is shown of them."""
    torch.manual_seed(0)
    learn_iou_scores(detector := tiny_detector("maskrcnn"))
    (head,) = heads_of(detector)
    shift = torch.tensor([0.0, 2.0, 5.0, 0.0]).repeat(8)
    cells = torch.tensor([10.0, 10, 30, 30]).repeat(32, 1)
    rois = torch.cat([torch.zeros(32, 1), cells + shift[:, None] * torch.tensor([1.0, 0, 1, 0])], dim=1)
    labels = torch.tensor([1, 1, 1, 3]).repeat(8)
    targets = head.bbox_coder.encode(rois[:, 1:], cells)
    logits = torch.zeros(4, 4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(200):
        losses = head.loss(
            logits.repeat(8, 1), torch.zeros(32, 12), rois, labels, torch.ones(32), targets, torch.ones(32, 4)
        )
        optimizer.zero_grad()
        losses["loss_cls"].backward()
        optimizer.step()
    scores = logits.detach().softmax(dim=1)
    expected = torch.tensor([1.0, 18 / 22, 15 / 25, 0.0])
    torch.testing.assert_close(scores[:, 1], expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("kind", [*KIND_NAMES, "unet"])
def test_a_run_learns_so_where_its_settings_say_it(kind: str, tmp_path: Path) -> None:
    images = [disc_image(0, 96, 6, "shsy5y", 0), disc_image(1, 96, 5, "astro", 1)]
    spec = DetectorSpec("unet", PLAIN_ENCODER, mask_channels=8) if kind == "unet" else tiny_spec(kind)
    run = TrainingRun(spec, TINY, images, tmp_path / "with.safetensors")
    assert train_detector(run) is not None
    if kind == "unet":
        return
    plain = TrainingRun(spec, replace(TINY, iou_scores=False), images, tmp_path / "without.safetensors")
    of_runs = [Trainer(each).learner.detector for each in (run, plain)]
    learn = [all("loss" in vars(head) for head in heads_of(detector)) for detector in of_runs]
    assert learn == [True, False]


def test_images_without_a_cell_teach_that_there_is_none() -> None:
    detector = tiny_detector("maskrcnn").train()
    learn_iou_scores(detector)
    empty = TrainingImage(
        np.full((64, 64, 3), 99, np.uint8), (), np.zeros((0, 2), np.int64), np.zeros(0, np.int64), "cort"
    )
    losses = compute_losses(detector, collate([CropDataset([empty], 1, 64, seed=0)[0]]), torch.float32)
    assert torch.isfinite(losses["loss_cls"]) and losses["loss_cls"] > 0
