"""The mask head of the repacked mmdet: mmdet's own behaviour, and masks as one tensor on the device."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]
N_CLASSES = 3
SHAPE = (40, 56, 3)
MODULE = "mmdet.models.roi_heads.mask_heads"


@pytest.fixture(scope="module")
def heads(wheels_site):
    """Our head and mmdet's own, with the same weights."""
    import mmdet.models.roi_heads.mask_heads.fcn_mask_head as ours
    import mmdet.models.roi_heads.mask_heads.mmdet_fcn_mask_head as theirs

    torch.manual_seed(0)
    settings = {"num_convs": 1, "in_channels": 4, "conv_out_channels": 4, "num_classes": N_CLASSES}
    head, original = ours.FCNMaskHead(**settings), theirs.FCNMaskHead(**settings)
    original.load_state_dict(head.state_dict())  # strict: same keys and shapes
    return head.eval(), original.eval()


@pytest.fixture
def detections():
    """Logits (N, C, 28, 28), boxes with scores (N, 5), labels (N,); boxes reach beyond the image on each side."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, N_CLASSES, 28, 28, generator=generator) * 3
    boxes = torch.tensor(
        [
            [3.2, 4.1, 20.7, 30.3],
            [-5.0, -3.5, 12.0, 9.0],
            [40.0, 25.0, 70.0, 60.0],
            [10.0, 10.0, 11.0, 10.5],
            [0, 0, 56, 40],
        ]
    )
    boxes = torch.cat([boxes, torch.linspace(0.9, 0.5, 5)[:, None]], dim=1)
    return logits, boxes, torch.tensor([2, 0, 2, 1, 0])


def config(threshold: float) -> SimpleNamespace:
    return SimpleNamespace(mask_thr_binary=threshold)


def test_it_is_the_registered_head_and_the_base_of_htc(heads):
    from mmdet.models.builder import HEADS, build_head
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead, HTCMaskHead

    assert HEADS.get("FCNMaskHead") is FCNMaskHead is type(heads[0])
    assert FCNMaskHead.__module__ == f"{MODULE}.fcn_mask_head"
    assert issubclass(FCNMaskHead, type(heads[1]))
    assert issubclass(HTCMaskHead, FCNMaskHead)
    htc = build_head({"type": "HTCMaskHead", "with_conv_res": True, "num_convs": 1, "in_channels": 4, "num_classes": 3})
    assert htc.get_seg_masks.__func__ is FCNMaskHead.get_seg_masks
    import mmdet.models.detectors.panoptic_two_stage_segmentor  # noqa: F401 - imports a helper from the head's file


def test_forward_and_loss_are_those_of_mmdet(heads):
    head, original = heads
    features = torch.randn(2, 4, 14, 14)
    logits = head(features)
    assert torch.equal(logits, original(features))
    targets, labels = torch.ones_like(logits[:, 0]), torch.tensor([0, 2])
    assert torch.equal(
        head.loss(logits, targets, labels)["loss_mask"], original.loss(logits, targets, labels)["loss_mask"]
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threshold", [0.5, -1.0])
@pytest.mark.parametrize("rescale", [True, False])
def test_masks_are_those_of_mmdet(heads, detections, device, threshold, rescale):
    logits, boxes, labels = (t.to(device) for t in detections)
    head, original = heads
    scale = np.array([1.25, 1.5, 1.25, 1.5], dtype=np.float32)
    args = (logits, boxes, labels, config(threshold), SHAPE, scale, rescale)
    expected = original.get_seg_masks(*args)
    per_class = head.get_seg_masks(*args)
    assert [len(masks) for masks in per_class] == [2, 1, 2]
    for ours, theirs in zip(per_class, expected, strict=True):
        np.testing.assert_array_equal(np.array(ours), np.array(theirs))

    masks = head.get_seg_masks(*args, return_per_class=False)
    height, width = (40, 56) if rescale else (60, 70)
    assert masks.shape == (5, height, width)
    assert masks.dtype == (torch.bool if threshold >= 0 else torch.uint8)
    assert masks.device == logits.device
    for c in range(N_CLASSES):
        np.testing.assert_array_equal(masks[labels == c].cpu().numpy(), np.array(expected[c]))


def test_probabilities_as_an_array_are_not_activated_again(heads, detections):
    logits, boxes, labels = detections
    options = (boxes, labels, config(-1.0), SHAPE, 1.0, True)
    head = heads[0]
    from_logits = head.get_seg_masks(logits, *options, return_per_class=False)
    from_array = head.get_seg_masks(logits.sigmoid().numpy(), *options, return_per_class=False)
    assert torch.equal(from_logits, from_array)


def test_uint8_is_truncated_and_one_half_is_inside(heads):
    boxes, labels = torch.tensor([[0.0, 0, 8, 8]]), torch.tensor([0])
    logits = torch.zeros(1, N_CLASSES, 28, 28)
    options = ((8, 8), torch.ones(4), True, False)
    masks = heads[0].get_seg_masks(logits, boxes, labels, config(-1.0), *options)
    assert masks[0, 4, 4] == 127  # 127.5
    assert heads[0].get_seg_masks(logits, boxes, labels, config(0.5), *options)[0, 4, 4]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("threshold", "dtype"), [(0.5, torch.bool), (-1.0, torch.uint8)])
def test_no_detections(heads, device, threshold, dtype):
    args = (
        torch.zeros(0, N_CLASSES, 28, 28, device=device),
        torch.zeros(0, 5, device=device),
        torch.zeros(0, dtype=torch.int64, device=device),
        config(threshold),
        SHAPE,
        torch.ones(4),
        True,
    )
    assert heads[0].get_seg_masks(*args) == [[], [], []]
    masks = heads[0].get_seg_masks(*args, return_per_class=False)
    assert masks.shape == (0, 40, 56)
    assert masks.dtype == dtype
    assert masks.device.type == device


@pytest.mark.parametrize("device", DEVICES)
def test_boxes_without_pixels_draw_nothing(heads, device):
    boxes = torch.tensor([[80.0, 5, 90, 9], [5, -9, 9, -2], [7, 7, 7, 12], [7, 7, 12, 7], [2, 2, 9, 9]], device=device)
    logits = torch.full((5, N_CLASSES, 28, 28), 5.0, device=device)
    labels = torch.zeros(5, dtype=torch.int64, device=device)
    masks = heads[0].get_seg_masks(logits, boxes, labels, config(0.5), SHAPE, torch.ones(4), True, False)
    assert masks.sum(dim=(1, 2)).tolist() == [0, 0, 0, 0, 49]


def test_class_agnostic_masks(wheels_site, detections):
    from mmdet.models.roi_heads.mask_heads import FCNMaskHead

    logits, boxes, labels = detections
    head = FCNMaskHead(num_convs=0, in_channels=4, num_classes=N_CLASSES, class_agnostic=True)
    args = (logits[:, :1], boxes, labels, config(0.5), SHAPE, torch.ones(4), True)
    expected = head.get_seg_masks(*args)
    masks = head.get_seg_masks(*args, return_per_class=False)
    np.testing.assert_array_equal(masks[labels == 0].numpy(), np.array(expected[0]))


def test_chunks_by_memory_give_the_same(heads, detections, monkeypatch):
    """Several boxes at once, as on other devices than the CPU."""
    import mmdet.models.roi_heads.mask_heads.fcn_mask_head as module

    logits, boxes, labels = detections
    options = (boxes, labels, config(0.5), SHAPE, torch.ones(4), True, False)
    expected = heads[0].get_seg_masks(logits, *options)
    sizes = []
    paste, boxes_at_once = module._do_paste_mask, module._boxes_at_once

    def counting_paste(masks, *args, **kwargs):
        sizes.append(len(masks))
        return paste(masks, *args, **kwargs)

    monkeypatch.setattr(module, "_do_paste_mask", counting_paste)
    monkeypatch.setattr(module, "_boxes_at_once", lambda _, *shape: boxes_at_once(torch.device("cuda"), *shape))
    monkeypatch.setattr(module, "GPU_MEM_LIMIT", 2 * 40 * 56 * 12)  # room for two images of this size
    assert torch.equal(heads[0].get_seg_masks(logits, *options), expected)
    assert sizes == [2, 2, 1]
    monkeypatch.setattr(module, "GPU_MEM_LIMIT", 1)  # too little for one: one at a time all the same
    assert torch.equal(heads[0].get_seg_masks(logits, *options), expected)
    assert sizes == [2, 2, 1, 1, 1, 1, 1, 1]
