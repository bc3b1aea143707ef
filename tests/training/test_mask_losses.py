"""The mask network in training: what it is shown of cells, that it learns them, what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from disc_images import disc_image
from torchvision.ops import box_iou

import kernel.training.mask_losses
from kernel.errors import InputError
from kernel.manifest.types import PLAIN_ENCODER
from kernel.models.checkpoints import load_detector, recognise_checkpoint
from kernel.models.configs import DetectorSpec
from kernel.models.crop_unet import MARGIN, MASK_SIDE, CropUNet
from kernel.models.detectors import build_detector
from kernel.training.crops import CropDataset
from kernel.training.mask_losses import MOST_SCALE, dice_loss, mask_network_losses, moved_boxes, window_targets
from kernel.training.recipe import read_recipe
from kernel.training.run import TrainingRun
from kernel.training.samples import TrainingImage, collate
from kernel.training.settings import TrainSettings
from kernel.training.step import set_proposal_counts
from kernel.training.trainer import Trainer, train_detector

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")

TINY = TrainSettings(iterations=3, batch_size=2, crop_size=64, rois_per_image=16)
SPEC = DetectorSpec("unet", PLAIN_ENCODER, mask_channels=8)
RECIPE = Path(__file__).resolve().parents[2] / "kernel" / "training" / "recipes" / "masks.toml"


@pytest.fixture(scope="module")
def images() -> list[TrainingImage]:
    return [disc_image(0, 96, 6, "shsy5y", 0), disc_image(1, 96, 5, "astro", 1), disc_image(2, 80, 4)]


def batch_of(images: list[TrainingImage], count: int = 2) -> dict:
    dataset = CropDataset(images, count, 64, seed=0)
    return collate([dataset[index] for index in range(count)])


def test_the_target_of_a_box_is_its_cell_in_the_mask_and_nothing_in_the_margin() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, 10:38, 8:36] = 1  # 28 x 28 pixels
    (target,) = window_targets(mask, torch.tensor([[8.0, 10, 36, 38]]))
    inner = slice(MARGIN, MARGIN + MASK_SIDE)
    assert target[0, inner, inner].min() > 0.999
    assert float(target.sum()) == pytest.approx(MASK_SIDE**2, rel=1e-4)


def test_a_cell_keeps_its_area_in_a_larger_box() -> None:
    mask = torch.zeros(1, 64, 64)
    mask[:, 20:34, 20:34] = 1
    (target,) = window_targets(mask, torch.tensor([[13.0, 13, 41, 41]]))
    assert float(target.sum()) == pytest.approx(14**2, rel=1e-3)


def test_boxes_are_moved_as_far_as_detectors_err(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    boxes = torch.tensor([[100.0, 100, 130, 120]]).repeat(2000, 1)
    grown = moved_boxes(boxes)
    sizes, moved = boxes[:, 2:] - boxes[:, :2], grown[:, 2:] - grown[:, :2]
    assert bool((moved > 0.5 * sizes - 1e-3).all()) and bool((moved < 1.5 * MOST_SCALE * sizes + 1e-3).all())
    monkeypatch.setattr(kernel.training.mask_losses, "MOST_SCALE", 1.0)
    overlaps = torch.diag(box_iou(boxes, moved_boxes(boxes)))
    assert float(overlaps.mean()) == pytest.approx(0.74, abs=0.02)


def test_dice_is_0_for_the_target_itself_and_1_far_from_it() -> None:
    target = torch.zeros(2, 1, 40, 40)
    target[:, :, 5:30, 5:30] = 1
    assert float(dice_loss(target, target)) == 0
    assert float(dice_loss(1 - target, target)) > 0.99


def test_crops_without_cells_have_a_loss_without_a_gradient() -> None:
    empty = TrainingImage(
        np.full((96, 96, 3), 128, np.uint8), (), np.zeros((0, 2), np.int64), np.zeros(0, np.int64), "cort"
    )
    network = CropUNet(8).train()
    losses = mask_network_losses(network, batch_of([empty]), torch.float32)
    losses["loss_mask"].backward()
    assert float(losses["loss_mask"]) == 0
    assert all(float(each.grad.abs().sum()) == 0 for each in network.parameters() if each.grad is not None)


@pytest.mark.parametrize("most", [1, 3])
def test_no_more_cells_are_shown_than_are_positive_at_most(images: list[TrainingImage], most: int) -> None:
    shown: list[int] = []
    network = CropUNet(8).train()
    network.crop_unet.register_forward_pre_hook(lambda _, given: shown.append(len(given[0])))
    set_proposal_counts(network, replace(TINY, rois_per_image=4 * most))
    batch = batch_of(images)
    mask_network_losses(network, batch, torch.float32)
    assert shown == [sum(min(len(labels), most) for labels in batch["gt_labels"])]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_learns_the_discs(images: list[TrainingImage], tmp_path: Path, dtype: str) -> None:
    settings = replace(TINY, iterations=60, batch_size=4, rois_per_image=32, learning_rate=5e-3, dtype=dtype)
    network = train_detector(TrainingRun(SPEC, settings, images, tmp_path / "masks.safetensors"))
    assert isinstance(network, CropUNet)
    image = images[0]
    batch = batch_of([image], 1)
    boxes = batch["gt_bboxes"][0]
    with torch.inference_mode():
        found = network.masks(network.features(batch["images"]), boxes[None])[0]
    truth = window_targets(torch.from_numpy(batch["gt_masks"][0].masks).float(), boxes)
    inner = slice(MARGIN, MARGIN + MASK_SIDE)
    inside, expected = found > 0.5, truth[:, 0, inner, inner] > 0.5
    overlaps = (inside & expected).sum(dim=(1, 2)) / (inside | expected).sum(dim=(1, 2))
    assert float(overlaps.mean()) > 0.8
    assert recognise_checkpoint(tmp_path / "masks.safetensors") == SPEC
    loaded = load_detector(tmp_path / "masks.safetensors", "unet", PLAIN_ENCODER)
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_resumed_it_ends_with_the_same_weights(images: list[TrainingImage], tmp_path: Path) -> None:
    settings = replace(TINY, iterations=4, checkpoint_every=2)
    whole = train_detector(TrainingRun(SPEC, settings, images, tmp_path / "whole.safetensors"))

    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kernel.training.trainer.Trainer.write", stopping_after(2, stop))
        with pytest.raises(Stop):
            train_detector(TrainingRun(SPEC, settings, images, tmp_path / "part.safetensors"))
    again = train_detector(TrainingRun(SPEC, settings, images, tmp_path / "part.safetensors", resume=True))
    for key, value in whole.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)


def stopping_after(step: int, stop: Callable[[], None]) -> Callable[[Trainer], None]:
    """`Trainer.write`, which stops the run once the state of `step` is written."""
    write = Trainer.write

    def write_and_stop(self: Trainer) -> None:
        write(self)
        if self.step == step:
            stop()

    return write_and_stop


def test_it_cannot_be_scored_by_itself(images: list[TrainingImage], tmp_path: Path) -> None:
    run = TrainingRun(
        SPEC, replace(TINY, evaluate_every=1), images, tmp_path / "masks.safetensors", validation=[object()]
    )  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"a unet finds no cells.*set evaluate_every 0"):
        run.check()


def test_the_recipe_is_of_a_mask_network_that_can_be_built() -> None:
    recipe = read_recipe(RECIPE)
    assert (recipe.detector.kind, recipe.detector.encoder) == ("unet", PLAIN_ENCODER)
    assert isinstance(build_detector(recipe.detector), CropUNet)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"kind": "htc"}, "a htc cannot have the encoder plain: plain is that of a unet"),
        ({"encoder": "resnet50"}, "a unet cannot have the encoder resnet50"),
    ],
)
def test_its_encoder_is_its_own(overrides: dict[str, str], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_recipe(RECIPE, overrides)
