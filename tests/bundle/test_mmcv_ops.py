"""mmcv's operators over torchvision, through mmcv's own functions, against values by hand and slow oracles.

Where there is a compiled mmcv-full (compiled_mmcv.py), both are compared.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from compiled_mmcv import compiled_mmcv_python

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
]
HALF_TYPES = [torch.float16, torch.bfloat16]


@pytest.fixture(scope="module")
def ops(wheels_site):
    import mmcv.ops

    return mmcv.ops


@pytest.fixture(scope="module")
def ext(wheels_site):
    import mmcv._ext

    return mmcv._ext


# NMS


def nms_oracle(boxes: np.ndarray, scores: np.ndarray, threshold: float, offset: int = 0) -> list[int]:
    """Greedy: the best box left is kept and removes what overlaps it too much; ties go to the earlier box."""
    threshold = np.float32(threshold)
    left = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept = []
    while left:
        best = left.pop(0)
        kept.append(best)
        left = [i for i in left if not box_iou(boxes[best], boxes[i], offset) > threshold]
    return kept


def box_iou(a: np.ndarray, b: np.ndarray, offset: int) -> np.float32:
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0)
    area_a, area_b = ((x[2] - x[0] + offset) * (x[3] - x[1] + offset) for x in (a, b))
    return np.float32(width * height / (area_a + area_b - width * height))


def random_boxes(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes with whole corners and scores of few values: equal scores and equal IoUs are frequent."""
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 24, (n, 2))
    boxes = np.concatenate([corners, corners + rng.integers(1, 12, (n, 2))], axis=1).astype(np.float32)
    scores = (rng.integers(1, 9, n) / 8).astype(np.float32)
    return torch.from_numpy(boxes), torch.from_numpy(scores)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.6, 0.7])
def test_nms_is_greedy_with_ties(ops, device, offset, threshold):
    for seed in range(5):
        boxes, scores = random_boxes(60, seed)
        dets, kept = ops.nms(boxes.to(device), scores.to(device), threshold, offset)
        assert kept.tolist() == nms_oracle(boxes.numpy(), scores.numpy(), threshold, offset)
        assert torch.equal(dets.cpu(), torch.cat([boxes, scores[:, None]], dim=1)[kept.cpu()])


@pytest.mark.parametrize("device", DEVICES)
def test_nms_keeps_a_box_whose_iou_is_the_threshold(ops, device):
    # 3 x 1 inside 5 x 1: an IoU of 0.6, which as float32 is above 0.6 as float64.
    boxes = torch.tensor([[0.0, 0, 5, 1], [0, 0, 3, 1]], device=device)
    scores = torch.tensor([0.9, 0.8], device=device)
    assert ops.nms(boxes, scores, 0.6)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.59)[1].tolist() == [0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_nms_of_half_types(ext, device, dtype):
    boxes, scores = random_boxes(60, 1)  # whole numbers below 64 and eighths are exact in both
    kept = ext.nms(boxes.to(device, dtype), scores.to(device, dtype), iou_threshold=0.5, offset=0)
    assert kept.tolist() == nms_oracle(boxes.numpy(), scores.numpy(), 0.5)


@pytest.mark.parametrize("device", DEVICES)
def test_nms_of_nothing(ops, device):
    dets, kept = ops.nms(torch.zeros(0, 4, device=device), torch.zeros(0, device=device), 0.5)
    assert dets.shape == (0, 5)
    assert kept.shape == (0,) and kept.dtype == torch.int64 and kept.device.type == device


def test_nms_refuses_other_offsets(ext):
    with pytest.raises(ValueError, match="offset must be 0 or 1"):
        ext.nms(torch.zeros(1, 4), torch.zeros(1), 0.5, offset=2)


def test_batched_nms_keeps_groups_apart(ops):
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [1, 0, 10, 10]])
    scores = torch.tensor([0.7, 0.8, 0.9])
    config = {"type": "nms", "iou_threshold": 0.5}
    _, kept = ops.batched_nms(boxes, scores, torch.tensor([0, 1, 0]), config)
    assert kept.tolist() == [2, 1]


# RoIAlign


def roi_align_oracle(features, rois, size, scale, ratio, aligned):
    """RoIAlign in float64, point by point."""
    n_channels = features.shape[1]
    out = np.zeros((len(rois), n_channels, *size))
    for n, (image, *corners) in enumerate(np.asarray(rois, np.float64)):
        x1, y1, x2, y2 = (c * scale - (0.5 if aligned else 0.0) for c in corners)
        width, height = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
        bin_h, bin_w = height / size[0], width / size[1]
        points_y = ratio or math.ceil(height / size[0])
        points_x = ratio or math.ceil(width / size[1])
        for i in range(size[0]):
            for j in range(size[1]):
                values = [
                    bilinear(
                        features[int(image)],
                        y1 + (i + (iy + 0.5) / points_y) * bin_h,
                        x1 + (j + (ix + 0.5) / points_x) * bin_w,
                    )
                    for iy in range(points_y)
                    for ix in range(points_x)
                ]
                out[n, :, i, j] = sum(values) / max(len(values), 1) if values else 0.0
    return out


def bilinear(channels: np.ndarray, y: float, x: float) -> np.ndarray:
    """Between pixels; half a pixel (and a half) around the map repeats the border, farther out is 0."""
    height, width = channels.shape[1:]
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(len(channels))
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    dy, dx = y - y0, x - x0
    top = channels[:, y0, x0] * (1 - dx) + channels[:, y0, x1] * dx
    bottom = channels[:, y1, x0] * (1 - dx) + channels[:, y1, x1] * dx
    return top * (1 - dy) + bottom * dy


def small_case(dtype=torch.float32, device="cpu"):
    torch.manual_seed(0)
    features = torch.randn(2, 3, 9, 7, device=device).to(dtype)
    rois = torch.tensor(
        [
            [0, 2.0, 3.0, 11.0, 15.0],
            [1, 0.0, 0.0, 14.0, 18.0],
            [1, 5.3, 2.1, 6.0, 2.6],
            [0, -6.0, -4.0, 4.0, 9.0],  # out at the top left
            [0, 10.0, 12.0, 30.0, 40.0],  # out at the bottom right
        ],
        device=device,
    )
    return features, rois


@pytest.mark.parametrize("device", DEVICES)
def test_roi_align_half_pixel_values_by_hand(ops, device):
    """The map, a pixel's value standing at its centre, and the RoI from (1, 1) to (3, 3), a bin per quarter:

           x 0   1   2   3   4
        y 0  +---+---+---+---+
             | 0 | 1 | 2 | 3 |
          1  +---#===#===#---+
             | 4 # 5 | 6 # 7 |     the bins are the pixels 5, 6, 9, 10, and the one sampling
          2  +---#---+---#---+     point of each is the pixel's centre
             | 8 # 9 |10 #11 |
          3  +---#===#===#---+
             |12 |13 |14 |15 |
          4  +---+---+---+---+

    Without `aligned`, pixel (0, 0) stands at 0, 0, not at 0.5, 0.5: the points (1.5, 1.5) ... lie between pixels,
    in the middle of 5, 6, 9, 10 first: all values are higher by half a pixel right (0.5) and down (2).
    """
    features = torch.arange(16.0, device=device).reshape(1, 1, 4, 4)
    roi = torch.tensor([[0, 1.0, 1.0, 3.0, 3.0]], device=device)
    aligned = ops.roi_align(features, roi, (2, 2), 1.0, 1, "avg", True)
    assert aligned.tolist() == [[[[5.0, 6.0], [9.0, 10.0]]]]
    legacy = ops.roi_align(features, roi, (2, 2), 1.0, 1, "avg", False)
    assert legacy.tolist() == [[[[7.5, 8.5], [11.5, 12.5]]]]
    # At half the resolution the same pixels are the RoI from 2 to 6 of the image.
    assert torch.equal(ops.roi_align(features, roi * 2, (2, 2), 0.5, 1, "avg", True), aligned)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_roi_align_is_the_oracle(ops, device, aligned, ratio):
    features, rois = small_case(device=device)
    found = ops.roi_align(features, rois, (3, 2), 0.5, ratio, "avg", aligned)
    expected = roi_align_oracle(features.double().cpu().numpy(), rois.cpu().numpy(), (3, 2), 0.5, ratio, aligned)
    np.testing.assert_allclose(found.cpu().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_roi_align_of_half_types_is_computed_in_float32(ops, device, dtype):
    features, rois = small_case(dtype, device)
    rois[:, 1:] += 300  # where float16 has steps of a quarter
    features = torch.nn.functional.pad(features, (150, 0, 150, 0))
    found = ops.roi_align(features.requires_grad_(), rois, (3, 2), 0.5, 0, "avg", True)
    exact = features.detach().float().requires_grad_()
    expected = ops.roi_align(exact, rois, (3, 2), 0.5, 0, "avg", True)
    assert found.dtype == dtype
    assert torch.equal(found, expected.to(dtype))
    found.float().sum().backward()
    expected.sum().backward()
    assert torch.equal(features.grad, exact.grad.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_gradient(ops, device, aligned):
    features, rois = small_case(torch.float64, device)
    features = features[:, :2].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, rois.double(), (2, 2), 0.5, 0, "avg", aligned), features, nondet_tol=1e-9
    )


@pytest.mark.parametrize("device", DEVICES)
def test_roi_align_takes_a_gradient_that_is_not_contiguous(ops, device):
    features, rois = small_case(device=device)
    gradients = []
    for contiguous in (True, False):
        leaf = features.clone().requires_grad_()
        pooled = ops.roi_align(leaf, rois, (2, 2), 0.5, 0, "avg", True)
        weights = (
            torch.arange(pooled.numel(), device=device, dtype=torch.float32)
            .view(pooled.shape[::-1])
            .permute(3, 2, 1, 0)
        )
        pooled.backward(weights.contiguous() if contiguous else weights)
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("device", DEVICES)
def test_roi_align_of_nothing(ops, device):
    features = torch.ones(1, 3, 4, 4, device=device, requires_grad=True)
    pooled = ops.roi_align(features, torch.zeros(0, 5, device=device), (7, 7), 0.5, 0, "avg", True)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_roi_align_by_maximum_is_refused_by_name(ops):
    with pytest.raises(NotImplementedError, match=r"roi_align_forward.*pool_mode"):
        ops.roi_align(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 0, 0, 2, 2]]), (1, 1), 1.0, 0, "max", True)


# Focal loss


def focal_oracle(logits, targets, gamma, alpha, weight=None):
    out = np.zeros_like(logits, dtype=np.float64)
    for n, target in enumerate(targets):
        for c, logit in enumerate(logits[n].astype(np.float64)):
            p = 1 / (1 + math.exp(-logit))
            out[n, c] = (
                -alpha * (1 - p) ** gamma * math.log(p) if c == target else -(1 - alpha) * p**gamma * math.log(1 - p)
            )
            if weight is not None and target < len(weight):
                out[n, c] *= weight[target]
    return out


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weight", [None, [0.5, 2.0, 1.5, 1.0]])
def test_focal_loss_is_the_oracle(ops, device, weight):
    torch.manual_seed(0)
    logits = torch.randn(6, 4, device=device) * 3
    targets = torch.tensor([0, 1, 2, 3, 4, 4], device=device)  # 4: background
    tensor = None if weight is None else torch.tensor(weight, device=device)
    found = ops.sigmoid_focal_loss(logits, targets, 2.0, 0.25, tensor, "none")
    expected = focal_oracle(logits.cpu().numpy(), targets.tolist(), 2.0, 0.25, weight)
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=1e-4, atol=1e-6)
    mean = ops.sigmoid_focal_loss(logits, targets, 2.0, 0.25, tensor, "mean")
    assert mean.item() == pytest.approx(expected.sum() / 6, rel=1e-4)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_focal_loss_gradient(ops, device, gamma):
    torch.manual_seed(0)
    logits = torch.randn(5, 3, device=device, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, 3], device=device)
    assert torch.autograd.gradcheck(lambda x: ops.sigmoid_focal_loss(x, targets, gamma, 0.25, None, "mean"), logits)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", HALF_TYPES)
def test_focal_loss_of_half_types(ops, device, dtype):
    logits = torch.linspace(-4, 4, 12, device=device).view(4, 3).to(dtype)
    targets = torch.tensor([0, 1, 2, 3], device=device)
    found = ops.sigmoid_focal_loss(logits, targets, 2.0, 0.25, None, "none")
    assert found.dtype == dtype
    assert torch.equal(found, ops.sigmoid_focal_loss(logits.float(), targets, 2.0, 0.25, None, "none").to(dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_focal_loss_of_nothing(ops, device):
    logits = torch.zeros(0, 3, device=device, requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.zeros(0, dtype=torch.int64, device=device), 2.0, 0.25, None, "sum")
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, 3)


# The rest


def test_another_operator_raises_with_its_name(ops, ext):
    with pytest.raises(NotImplementedError, match="operator softnms is not in this wheel"):
        ops.soft_nms(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([0.5]))
    with pytest.raises(NotImplementedError, match="carafe_forward"):
        ext.carafe_forward()


def test_special_names_are_no_operators(ext):
    with pytest.raises(AttributeError, match="__path__"):
        _ = ext.__path__


def test_environment_report(ops):
    assert "torchvision" in ops.get_compiler_version()
    assert isinstance(ops.get_compiling_cuda_version(), str)


PARITY_SCRIPT = """
import sys, numpy as np, torch, mmcv.ops, mmcv._ext
data = np.load(sys.argv[1])
features, rois, boxes, scores = (torch.from_numpy(data[k]) for k in ("features", "rois", "boxes", "scores"))
features.requires_grad_()
out = {}
for aligned in (0, 1):
    pooled = mmcv.ops.roi_align(features, rois, (3, 2), 0.5, 0, "avg", bool(aligned))
    (grad,) = torch.autograd.grad((pooled ** 2).sum(), features)
    out[f"pooled{aligned}"], out[f"grad{aligned}"] = pooled.detach().numpy(), grad.numpy()
for offset in (0, 1):
    out[f"kept{offset}"] = np.sort(mmcv.ops.nms(boxes, scores, 0.6, offset)[1].numpy())
np.savez(sys.argv[2], compiled=not str(mmcv._ext.__file__).endswith(".py"), **out)
"""


def test_same_as_a_compiled_mmcv(wheels_site, tmp_path: Path):
    python = compiled_mmcv_python()
    features, rois = small_case()
    boxes, _ = random_boxes(60, 3)
    scores = torch.linspace(1, 0.1, 60)  # no ties: the compiled sort is not stable
    np.savez(tmp_path / "in.npz", features=features, rois=rois, boxes=boxes, scores=scores)
    results = []
    for name, executable, path in (("ours", None, str(wheels_site)), ("compiled", python, "")):
        target = tmp_path / f"{name}.npz"
        subprocess.run(
            [executable or sys.executable, "-c", PARITY_SCRIPT, str(tmp_path / "in.npz"), str(target)],
            env={**os.environ, "PYTHONPATH": path},
            check=True,
            capture_output=True,
        )
        results.append(np.load(target))
    ours, compiled = results
    assert compiled["compiled"] and not ours["compiled"]
    for key in ours.files:
        if key != "compiled":
            np.testing.assert_allclose(ours[key], compiled[key], atol=1e-5, err_msg=key)
