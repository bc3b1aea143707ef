"""The mask network: what it sees of a box, whatever the views, and how its file is recognised."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from kernel.ensemble.load import load_member
from kernel.ensemble.views import ALL_VIEWS, boxes_into_view, masks_out_of_view
from kernel.errors import InputError
from kernel.manifest.types import PLAIN_ENCODER, MemberEntry
from kernel.models.checkpoints import load_detector, read_checkpoint, recognise_checkpoint
from kernel.models.configs import DetectorSpec
from kernel.models.crop_unet import CROP_SIDE, MARGIN, MASK_SIDE, WINDOW_SIDE, CropUNet, windows
from kernel.models.detectors import build_detector, compute_features, mask_size, predict_masks
from kernel.models.foreign import describe
from kernel.settings import CELL_TYPES
from kernel.training.initialise import take_weights

SPEC = DetectorSpec("unet", PLAIN_ENCODER, mask_channels=8)


@pytest.fixture
def network() -> CropUNet:
    """Of drawn weights, with masks that differ visibly."""
    torch.manual_seed(0)
    network = CropUNet(8).eval()
    network.crop_unet.logits.weight.data *= 100
    return network


def written(network: CropUNet, path: Path, rename: str = "") -> Path:
    state = {rename + key: value.contiguous() for key, value in network.state_dict().items()}
    safetensors.torch.save_file(state, path)
    return path


def test_a_window_is_the_box_and_the_same_margin_on_all_sides() -> None:
    (window,) = windows(torch.tensor([[3.0, 10, 20, 38, 76]]))  # 28 x 56: a pixel and two pixels of the mask
    assert window.tolist() == [3, 10 - MARGIN, 20 - 2 * MARGIN, 38 + MARGIN, 76 + 2 * MARGIN]


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 70])
def test_masks_have_the_shape_of_mask_heads(network: CropUNet, views: int, count: int) -> None:
    images = torch.randn(views, 3, 64, 96)
    boxes = torch.rand(views, count, 4) * 20 + torch.tensor([0.0, 0, 25, 25])
    features = compute_features(network, images)
    with torch.inference_mode():
        masks = predict_masks("unet", network, features, boxes, torch.zeros(count, dtype=torch.long))
    assert masks.shape == (views, count, *mask_size(network))
    assert masks.dtype == torch.float32
    assert bool(((masks >= 0) & (masks <= 1)).all())


def test_chunks_and_other_boxes_change_no_mask(network: CropUNet) -> None:
    image = torch.randn(1, 1, 64, 96)
    boxes = torch.rand(1, 70, 4) * 20 + torch.tensor([0.0, 0, 25, 25])
    with torch.inference_mode():
        together = network.masks(image, boxes)
        alone = torch.cat([network.masks(image, boxes[:, k : k + 1]) for k in range(70)], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)
    assert float(together.std()) > 0.01


def test_each_view_is_asked_about_its_own_image(network: CropUNet) -> None:
    images = torch.randn(2, 1, 64, 96)
    boxes = torch.tensor([[[5.0, 5, 30, 40]], [[50.0, 20, 80, 50]]])
    with torch.inference_mode():
        both = network.masks(images, boxes)
        swapped = network.masks(images.flip(0), boxes.flip(0))
    torch.testing.assert_close(both.flip(0), swapped)
    assert not torch.allclose(both[0], both[1], atol=1e-3)


def test_a_network_that_knows_no_left_gives_the_same_masks_in_all_views(network: CropUNet) -> None:
    """With kernels that are their own mirror images, flips and half a pixel are all that views differ by."""
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3):
            weight = module.weight.data
            module.weight.data = (weight + weight.flip(2) + weight.flip(3) + weight.flip(2, 3)) / 4
    first = network.crop_unet.down[0][0].weight.data  # its inputs are 2 x 2 pixels each: equal, they have no order
    first.copy_(first.unflatten(1, (3, 4)).mean(dim=2, keepdim=True).expand(-1, -1, 4, -1, -1).flatten(1, 2))
    image = torch.randn(1, 1, 16, 24).repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :, :96, :128]
    shape = (image.shape[2], image.shape[3])
    boxes = torch.tensor([[20.0, 30, 60, 70], [50, 20, 90, 80]])
    found = []
    for view in ALL_VIEWS:
        moved = boxes_into_view(boxes, view, shape)
        moved = moved + 0.5 * torch.tensor([view.flip_x, view.flip_y] * 2)  # the shift of flips, taken back
        with torch.inference_mode():
            masks = network.masks(image.flip(view.flipped_dims), moved[None])[0]
        found.append(masks_out_of_view(masks, view))
    for masks in found[1:]:
        torch.testing.assert_close(masks, found[0], atol=1e-4, rtol=0)
    assert float(found[0].std()) > 0.01


def test_large_boxes_are_averaged_over_and_not_picked_from(network: CropUNet) -> None:
    """Pixels that alternate are one gray from afar: a crop of one in three of them would be striped."""
    seen: list[torch.Tensor] = []
    network.crop_unet.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    side = MASK_SIDE * 4 * CROP_SIDE // WINDOW_SIDE  # a window of four pixels for each of the crop's
    image = torch.zeros(1, 1, 600, 600)
    image[:, :, ::2] = 2.0
    with torch.inference_mode():
        network.masks(image, torch.tensor([[[150.0, 150, 150 + side, 150 + side]]]))
    assert seen[0].shape == (1, 3, CROP_SIDE, CROP_SIDE)
    torch.testing.assert_close(seen[0][0, 0], torch.ones(CROP_SIDE, CROP_SIDE), atol=0.01, rtol=0)


@pytest.mark.parametrize("wrapper", ["", "module.", "model."])
def test_a_file_is_recognised_and_loaded(network: CropUNet, tmp_path: Path, wrapper: str) -> None:
    path = written(network, tmp_path / "masks.safetensors", wrapper)
    assert recognise_checkpoint(path) == SPEC
    loaded = load_detector(path, "unet", PLAIN_ENCODER)
    assert read_checkpoint(path).state.keys() == loaded.state_dict().keys()
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("first", [torch.randn(7), torch.zeros(0, 12, 3, 3)])
def test_a_file_whose_channels_cannot_be_told_is_refused(
    network: CropUNet, tmp_path: Path, first: torch.Tensor
) -> None:
    state = network.state_dict() | {"crop_unet.down.0.0.weight": first}
    safetensors.torch.save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match=r"not one of our mask networks: crop_unet.down.0.0.weight has the shape"):
        recognise_checkpoint(tmp_path / "odd.safetensors")


def test_a_part_that_is_missing_is_named(network: CropUNet, tmp_path: Path) -> None:
    state = dict(network.state_dict())
    del state["crop_unet.logits.bias"]
    safetensors.torch.save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(InputError, match=r"missing: crop_unet\.logits\.bias"):
        load_detector(tmp_path / "part.safetensors", "unet", PLAIN_ENCODER)


def test_a_file_of_another_kind_is_refused(network: CropUNet, tmp_path: Path) -> None:
    path = written(network, tmp_path / "masks.safetensors")
    with pytest.raises(InputError, match=r"holds unet plain, the manifest says maskrcnn resnet50"):
        load_detector(path, "maskrcnn", "resnet50")


@pytest.mark.parametrize("stated", [True, False])
def test_a_file_is_told_by_what_it_is_for(network: CropUNet, tmp_path: Path, stated: bool) -> None:
    path = written(network, tmp_path / "masks.safetensors")
    assert describe(read_checkpoint(path), path) == "kind unet, encoder plain, 8 channels; it makes masks alone"
    entry = MemberEntry("masks", "unet", PLAIN_ENCODER, CELL_TYPES, stem_stride=1 if stated else None)
    detector, assumed = load_member(entry, path)
    assert isinstance(detector, CropUNet) and not assumed


def test_another_members_weights_are_told_where_none_fits(network: CropUNet, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"backbone.conv1.weight": torch.randn(4, 3, 7, 7)}, path)
    with pytest.raises(InputError, match=r"none of its 1 tensors fits"):
        take_weights(network, PLAIN_ENCODER, path, keep_classes=True)
    masks = written(network, tmp_path / "masks.safetensors")
    taken = take_weights(CropUNet(8), PLAIN_ENCODER, masks, keep_classes=False)
    assert len(taken.taken) == len(network.state_dict()) and taken.told == ("the file holds a unet plain",)


def test_building_needs_no_mmdet() -> None:
    assert isinstance(build_detector(SPEC), CropUNet)
