"""Members that strangers have trained: on other pixels, by other anchors, of other classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_detectors import tiny_detector, tiny_spec

from kernel.__main__ import main
from kernel.ensemble.load import check_members, load_member
from kernel.errors import InputError
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import MemberEntry
from kernel.models.configurations import PixelRule, configured_pixels
from kernel.models.detectors import Detector, build_detector
from kernel.settings import CELL_TYPES, CLS_USE, PIXEL_MEAN, PIXEL_STD

pytestmark = pytest.mark.usefixtures("wheels_site")

SYNTHETIC = Path(__file__).resolve().parents[2] / "bundle" / "synthetic" / "manifest.json"
RPN = (
    "model = dict(rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', scales={scales}, ratios={ratios}, "
    "strides=[2, 4, 8, 16, 32]), bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[1.0, 1.0, 1.0, 1.0])))\n"
)
OURS = RPN.format(scales=[8], ratios=[0.5, 1.0, 2.0])
HEAD = "head{} = dict(bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds={}))\n"
MASKRCNN_HEAD = HEAD.format("", [0.1, 0.1, 0.2, 0.2])
CASCADE_HEADS = MASKRCNN_HEAD + HEAD.format(1, [0.05, 0.05, 0.1, 0.1]) + HEAD.format(2, [0.033, 0.033, 0.067, 0.067])
#: Of pictures that are shown enlarged in training, under the anchors' name.
SIZES = "train = dict(type='RandomChoiceResize', scales=[(1333, 640), (1333, 800)])\nother = dict(scales=[400, 600])\n"
MEAN, STD = [128.0, 120.0, 110.0], [11.58, 12.0, 13.0]
PIXELS = f"img_norm_cfg = dict(mean={MEAN}, std={STD}, to_rgb={{}})\n"


def save(detector: Detector, path: Path, config: str) -> Path:
    """As mmdet saves it."""
    torch.save({"meta": {"config": config}, "state_dict": detector.state_dict()}, path)
    return path


def convert(path: Path, times: int) -> Path:
    """The file as `convert` hands it on, so many times in a row."""
    for number in range(times):
        out = path.with_name(f"{number}.safetensors")
        assert main(["convert", str(path), str(out)]) == 0
        path = out
    return path


def entry(kind: str, path: Path) -> MemberEntry:
    return MemberEntry("theirs", kind, tiny_spec(kind).encoder, (*CELL_TYPES, CLS_USE), file=path.name)


@pytest.mark.parametrize("to_rgb", [True, False])
def test_a_member_of_other_pixels_is_the_network_that_it_was_where_it_was_trained(tmp_path: Path, to_rgb: bool) -> None:
    """The same network is written down for pixels of another mean and deviation, in either order of the channels."""
    ours, theirs = tiny_detector("maskrcnn"), tiny_detector("maskrcnn")
    order = slice(None) if to_rgb else slice(None, None, -1)
    mean, std = (torch.tensor(values[order]) for values in ([128.0, 120.0, 110.0], [11.58, 12.0, 13.0]))
    with torch.no_grad():
        weight, norm = theirs.backbone.conv1.weight, theirs.backbone.bn1
        norm.running_mean -= (weight.sum(dim=(2, 3)) * (mean - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)).sum(
            1
        )
        weight *= (std / torch.tensor(PIXEL_STD))[:, None, None]
        weight.copy_(weight.flip(1).clone() if not to_rgb else weight.clone())
    path = save(theirs, tmp_path / "a.pth", OURS + MASKRCNN_HEAD + PIXELS.format(to_rgb))
    loaded, _ = load_member(entry("maskrcnn", path), path)
    for key, value in ours.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, msg=lambda told, key=key: f"{key}: {told}")
    assert not torch.allclose(weight, ours.backbone.conv1.weight)


@pytest.mark.parametrize(
    ("configuration", "rules"),
    [
        ({"config": PIXELS.format(True).replace(", to_rgb=True", "")}, {True}),
        ({"cfg": {"type": "Normalize", "mean": MEAN, "std": STD}}, {True}),
        ({"cfg": "pre = dict(type='mmdet.DetDataPreprocessor', mean=[128, 120, 110], std=[11.58, 12, 13])"}, {False}),
        ({"cfg": {"data_preprocessor": {"type": "DetDataPreprocessor", "mean": MEAN, "std": STD}}}, {False}),
        ({"cfg": f"x = dict(type='DetDataPreprocessor', mean={MEAN}, std={STD}, bgr_to_rgb=True)"}, {True}),
        ({"cfg": f"m = {MEAN}\ns = {STD}\nimg_norm_cfg = dict(mean=m, std=s, to_rgb=False)"}, {False}),
        ({"cfg": f'{{"mean": {MEAN}, "std": {STD}, "to_rgb": false}}'}, {False}),
        ({"cfg": PIXELS.format(True) + PIXELS.format(False)}, {True, False}),
        ({"cfg": f"expand = dict(mean={MEAN}, to_rgb=False)\ninit = dict(type='Normal', mean=0, std=0.01)"}, set()),
    ],
)
def test_all_rules_of_pixels_are_found(configuration: dict[str, object], rules: set[bool]) -> None:
    """Each with the order of channels that its format means where it names none."""
    expected = {PixelRule(tuple(MEAN), tuple(STD), to_rgb) for to_rgb in rules}
    assert configured_pixels({"meta": configuration}) == expected


@pytest.mark.parametrize("times_converted", [0, 2])
def test_several_rules_of_pixels_are_told(tmp_path: Path, times_converted: int) -> None:
    """As where a base configuration has left its own under another name."""
    base = f"img_norm_cfg = dict(mean={list(PIXEL_MEAN)}, std={list(PIXEL_STD)}, to_rgb=True)\n"
    config = OURS + MASKRCNN_HEAD + base + PIXELS.format(True).replace("img_norm_cfg", "mine")
    path = convert(save(tiny_detector("maskrcnn"), tmp_path / "a.pth", config), times_converted)
    manifest = replace(read_manifest(SYNTHETIC), members=(entry("maskrcnn", path),))
    (told,) = check_members(manifest, {"theirs": path})
    assert "name several rules of pixels" in told and "configurations of theirs" in told


def test_other_pixels_are_refused_where_nothing_makes_up_for_them(tmp_path: Path) -> None:
    spec = replace(tiny_spec("maskrcnn"), encoder="efficientnet_lite0")
    path = save(build_detector(spec), tmp_path / "a.pth", PIXELS.format(True))
    theirs = replace(entry("maskrcnn", path), encoder="efficientnet_lite0")
    with pytest.raises(InputError, match=r"trained on pixels by dict\(mean=\[128.0, .* only a ResNet's first layer"):
        load_member(theirs, path)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("maskrcnn", ""),
        ("maskrcnn", OURS + MASKRCNN_HEAD),
        ("maskrcnn", OURS),
        ("maskrcnn", OURS + MASKRCNN_HEAD + SIZES),
        ("cascade", OURS + CASCADE_HEADS),
        ("htc", OURS + CASCADE_HEADS + SIZES),
        ("maskrcnn", SIZES.splitlines()[0]),
    ],
)
@pytest.mark.parametrize("times_converted", [0, 1])
def test_boxes_as_ours_are_taken(tmp_path: Path, kind: str, config: str, times_converted: int) -> None:
    path = convert(save(tiny_detector(kind), tmp_path / "a.pth", config), times_converted)
    load_member(entry(kind, path), path)


@pytest.mark.parametrize(
    ("kind", "config", "told"),
    [
        ("maskrcnn", RPN.format(scales=[2], ratios=[0.5, 1.0, 2.0]), "has scales [2], a maskrcnn here [8]"),
        ("htc", RPN.format(scales=[8], ratios=[0.25, 1, 4]), "has ratios [0.25, 1, 4], a htc here [0.5, 1, 2]"),
        ("maskrcnn", OURS + HEAD.format("", [0.05, 0.05, 0.1, 0.1]), "target_stds [0.05, 0.05, 0.1, 0.1], a maskrcnn"),
        ("cascade", OURS + MASKRCNN_HEAD, "target_stds [0.1, 0.1, 0.2, 0.2], a cascade here [0.033, 0.033"),
    ],
)
@pytest.mark.parametrize("times_converted", [0, 1, 2])
def test_boxes_that_mean_others_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, config: str, told: str, times_converted: int
) -> None:
    path = convert(save(tiny_detector(kind), tmp_path / "a.pth", config), times_converted)
    printed = capsys.readouterr().out
    assert (printed.count("no member of an ensemble: "), printed.count(told)) == (times_converted, times_converted)
    with pytest.raises(InputError) as caught:
        load_member(entry(kind, path), path)
    assert told in str(caught.value) and "train it on" in str(caught.value)


@pytest.mark.parametrize(
    ("encoder", "config", "times_converted", "is_refused"),
    [
        ("resnet50", "style = 'caffe'\n" + PIXELS.format(False), 0, True),
        ("resnext50", "model = dict(backbone=dict(type='ResNeXt', style='caffe'))\n", 2, True),
        ("resnext50", "backbone = dict(style='pytorch')\n" + PIXELS.format(False), 0, False),
        # Without bottlenecks it is the same network.
        ("resnet18_narrow", "backbone = dict(style='caffe')\n", 1, False),
        ("efficientnet_lite0", "backbone = dict(style='caffe')\n", 0, False),
    ],
)
def test_a_resnet_with_its_strides_elsewhere_is_refused(
    tmp_path: Path, encoder: str, config: str, times_converted: int, is_refused: bool
) -> None:
    theirs = build_detector(replace(tiny_spec("maskrcnn"), encoder=encoder))
    path = convert(save(theirs, tmp_path / "a.pth", config), times_converted)
    claimed = replace(entry("maskrcnn", path), encoder=encoder)
    if not is_refused:
        load_member(claimed, path)
        return
    with pytest.raises(InputError, match=r"strides in the 1 x 1 convolutions \(style 'caffe'\).*train it on"):
        load_member(claimed, path)


@pytest.mark.parametrize(("classes", "is_told"), [(3, False), (8, False), (80, True)])
def test_classes_that_are_no_cell_types_are_told(tmp_path: Path, classes: int, is_told: bool) -> None:
    path = save(tiny_detector("maskrcnn", num_classes=classes), tmp_path / "a.pth", OURS)
    manifest = replace(read_manifest(SYNTHETIC), members=(entry("maskrcnn", path),))
    told = " ".join(check_members(manifest, {"theirs": path}))
    assert ("theirs knows 80 classes" in told and "are taken as shsy5y, astro, cort" in told) == is_told
