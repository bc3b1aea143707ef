"""Networks of timm as encoders: their feature maps, pixels and names; as members, from training to the built script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import pytest
import safetensors.torch
import timm
import torch
from built_script import DEMO
from torch import nn

import build_kernel
from kernel.__main__ import main
from kernel.data.learned import METADATA_KEY, MemberRecord, read_member_record
from kernel.data.synthetic.generate import generate_image, write_dataset
from kernel.ensemble.load import load_ensemble
from kernel.errors import InputError
from kernel.images.reading import read_image
from kernel.local_weights import resolve_weights
from kernel.manifest.reader import parse_manifest, read_manifest
from kernel.models.checkpoints import load_detector, read_checkpoint, read_state_dict, recognise_checkpoint
from kernel.models.configs import DetectorSpec
from kernel.models.detectors import Detector, build_detector, compute_features
from kernel.models.encoders import build_encoder, smallest_stem_stride
from kernel.models.fusion import fuse_batch_norms
from kernel.models.timm_encoders import TimmFeatures, pixel_change, timm_plan
from kernel.postprocess.submitted import read_submission
from kernel.segment import segment_image
from kernel.settings import PIXEL_MEAN, PIXEL_STD
from kernel.training.initialise import draw_weights, take_weights
from kernel.training.recipe import recipe_of_tables
from kernel.training.state import save_weights

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")

SMALL = "timm:mobilenetv3_small_050"
#: By family: the channels, and the smallest stride that the stem allows. Swin's and MambaOut's maps are channels last.
FAMILIES = {
    "resnet18": ((64, 128, 256, 512), 1),
    "convnext_atto": ((40, 80, 160, 320), 1),
    "mobilenetv3_small_050": ((8, 16, 24, 288), 1),
    "regnety_002": ((24, 56, 152, 368), 1),
    "efficientnet_b0": ((24, 40, 112, 320), 1),
    "swin_tiny_patch4_window7_224": ((96, 192, 384, 768), 1),
    "mambaout_femto": ((48, 96, 192, 288), 1),
    "poolformer_s12": ((64, 128, 320, 512), 1),
    "fastvit_t8": ((48, 96, 192, 384), 2),
}


def spec_of(encoder: str, kind: str = "maskrcnn") -> DetectorSpec:
    return DetectorSpec(kind, encoder, 3, 16, 16, 16, stem_stride=smallest_stem_stride(encoder))


def new_detector(encoder: str, kind: str = "maskrcnn", seed: int = 0) -> Detector:
    """A detector at the start of its training."""
    torch.manual_seed(seed)
    detector = build_detector(spec_of(encoder, kind))
    draw_weights(detector)
    return detector


def record_of(encoder: str) -> MemberRecord:
    return MemberRecord("0" * 16, 1, 1, (), encoder, smallest_stem_stride(encoder))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_network_gives_four_maps_of_doubling_strides(name: str) -> None:
    channels, smallest = FAMILIES[name]
    assert smallest_stem_stride(f"timm:{name}") == smallest
    torch.manual_seed(0)
    for stem_stride in range(smallest, 3):
        encoder, told = build_encoder(f"timm:{name}", stem_stride)
        with torch.inference_mode():
            maps = encoder.eval()(torch.randn(2, 3, 96, 160))
        assert told == channels
        assert [tuple(fmap.shape) for fmap in maps] == [
            (2, depth, 96 // (stem_stride * stride), 160 // (stem_stride * stride))
            for depth, stride in zip(channels, (2, 4, 8, 16), strict=True)
        ]
        assert all(fmap.isfinite().all() and fmap.std() > 0 for fmap in maps)


def test_the_stem_sees_the_same_pixels_at_either_stride() -> None:
    """Without its stride a first convolution has the same answers in between others: its kernel stays where it was."""
    torch.manual_seed(0)
    dense, usual = (build_encoder("timm:resnet18", stride)[0] for stride in (1, 2))
    usual.load_state_dict(dense.state_dict())
    image = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(dense.timm.conv1(image)[..., ::2, ::2], usual.timm.conv1(image), rtol=1e-4, atol=1e-5)
    patches = build_encoder("timm:convnext_atto", 1)[0].timm.stem_0
    assert (patches.kernel_size, patches.stride, patches.padding) == ((4, 4), (2, 2), (1, 1))


def test_what_is_measured_does_not_change_the_weights_drawn() -> None:
    timm_plan.cache_clear()
    torch.manual_seed(3)
    first = build_encoder(SMALL)[0].state_dict()  # with the measurement
    torch.manual_seed(3)
    second = build_encoder(SMALL)[0].state_dict()  # without
    assert all(torch.equal(first[key], value) for key, value in second.items())


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "tf_mobilenetv3_small_minimal_100", "resnet50_clip"])
def test_pixels_are_those_that_the_network_was_trained_on(name: str) -> None:
    told = timm.get_pretrained_cfg(name)
    assert told is not None
    scale, shift = pixel_change(name)
    pixels = torch.randint(0, 256, (3, 8, 8)).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    theirs = (pixels / 255 - torch.tensor(told.mean)[:, None, None]) / torch.tensor(told.std)[:, None, None]
    found = (pixels - mean) / std * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-5)
    is_same = bool((scale == 1).all() and (shift == 0).all())
    assert is_same == (name == "mobilenetv3_small_050")


@pytest.mark.parametrize(
    ("encoder", "told"),
    [
        ("timm:resent18", "no network of this name; near are resnet18"),
        ("timm:convnext_tinny", "convnext_tiny"),
        ("timm:qqqqqqqq", "list_models"),
        ("timm:convnext_tiny.nosuch", "no weights 'nosuch' of convnext_tiny; known are .*fb_in1k"),
        ("timm:vit_tiny_patch16_224", "strides 16, 16, 16.*near in name, with such maps: .*swin_tiny_patch4_window7"),
        ("timm:visformer_tiny", "features_only not implemented.*near in name, with such maps: convnext_tiny"),
        ("timm:maxvit_tiny_tf_224", "images of any size.*near in name"),
        ("timm:", "is not one of resnet50"),
        ("timm:../../etc/passwd", "is not one of resnet50"),
        ("timm:hf-hub:someone/something", "is not one of resnet50"),
        ("timm:ResNet18", "is not one of resnet50"),
        ("convnext_tiny", "is not one of resnet50.*, timm:NAME"),
    ],
)
def test_a_network_that_cannot_serve_is_refused(encoder: str, told: str) -> None:
    table = {"detector": {"kind": "maskrcnn", "encoder": encoder}}
    with pytest.raises(InputError, match=told):
        recipe_of_tables(table, "a recipe", {})


def test_a_stem_that_keeps_its_stride_is_told_and_recorded(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    table: dict[str, Any] = {"detector": {"kind": "maskrcnn", "encoder": "timm:fastvit_t8"}}
    with caplog.at_level("INFO", "kernel"):
        recipe = recipe_of_tables(table, "a recipe", {})
    assert "timm:fastvit_t8: its stem keeps its stride: stem_stride is 2" in caplog.text
    assert recipe.detector.stem_stride == 2 and recipe.detector.strides == (4, 8, 16, 32)
    with pytest.raises(InputError, match=r"stem_stride is 1: with the encoder timm:fastvit_t8 .* with 2"):
        recipe_of_tables({"detector": table["detector"] | {"stem_stride": 1}}, "a recipe", {})
    with pytest.raises(InputError, match=r"stem_stride is 2: with the encoder timm:resnet18 .* with 1"):
        recipe_of_tables({"detector": {"kind": "htc", "encoder": "timm:resnet18", "stem_stride": 2}}, "a recipe", {})
    with pytest.raises(InputError, match="the stride of its stem cannot be removed"):
        build_encoder("timm:fastvit_t8", 1)

    path = tmp_path / "member.safetensors"
    save_weights(new_detector("timm:fastvit_t8").state_dict(), path, record=record_of("timm:fastvit_t8"))
    assert read_checkpoint(path).stem_stride == 2
    loaded = load_detector(path, "maskrcnn", "timm:fastvit_t8")
    assert loaded.rpn_head.prior_generator.strides[0] == (4, 4)


@pytest.mark.parametrize(
    ("encoder", "kind"), [(SMALL, "cascade"), ("timm:convnext_atto", "maskrcnn"), ("timm:regnety_002", "htc")]
)
def test_a_member_is_recognised_by_its_record(encoder: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "member.safetensors"
    detector = new_detector(encoder, kind)
    save_weights(detector.state_dict(), path, half=True, record=record_of(encoder))
    spec = recognise_checkpoint(path)
    assert (spec.kind, spec.encoder, spec.num_classes, spec.neck_channels) == (kind, encoder, 3, 16)
    loaded = load_detector(path, kind, encoder)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        before = compute_features(loaded, images).levels
        encoders_own = sum(isinstance(part, nn.BatchNorm2d) for part in loaded.backbone.modules())
        fuse_batch_norms(loaded)
        after = compute_features(loaded, images).levels
    assert sum(isinstance(part, nn.BatchNorm2d) for part in loaded.backbone.modules()) == encoders_own
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    with pytest.raises(InputError, match=f"holds {kind} {encoder}, the manifest says {kind} timm:resnet18"):
        load_detector(path, kind, "timm:resnet18")


def test_without_the_record_a_member_is_refused_until_its_name_is_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare, noted = tmp_path / "bare.safetensors", tmp_path / "noted.safetensors"
    safetensors.torch.save_file(new_detector(SMALL).state_dict(), bare)
    with pytest.raises(InputError, match=r"a network of timm, and nothing in the file names it.*--encoder timm:NAME"):
        load_detector(bare, "maskrcnn", SMALL)
    assert main(["convert", str(bare), str(noted), "--encoder", SMALL, "--half"]) == 0
    assert f"kind maskrcnn, encoder {SMALL}, 3 classes" in capsys.readouterr().out
    assert recognise_checkpoint(noted).encoder == SMALL
    load_detector(noted, "maskrcnn", SMALL)
    with pytest.raises(InputError, match="does not fit the detector"):
        wrong = tmp_path / "wrong.safetensors"
        assert main(["convert", str(bare), str(wrong), "--encoder", "timm:mobilenetv3_small_075"]) == 0
        load_detector(wrong, "maskrcnn", "timm:mobilenetv3_small_075")
    for words, told in (
        (["--encoder", "resnet50"], "it notes a network of timm"),
        (["--encoder", "timm:resnet18"], "tells another encoder than timm:resnet18"),
    ):
        source = bare if words[1] == "resnet50" else tmp_path / "own.safetensors"
        save_weights(new_detector(SMALL).state_dict(), tmp_path / "own.safetensors", record=record_of(SMALL))
        assert main(["convert", str(source), str(tmp_path / "never.safetensors"), *words]) == 2
        assert told in capsys.readouterr().err


def test_a_whole_network_of_timm_starts_the_encoder(tmp_path: Path) -> None:
    for name in ("mobilenetv3_small_050", "convnext_atto"):
        torch.manual_seed(1)
        whole = timm.create_model(name)
        torch.save(whole.state_dict(), tmp_path / "whole.pth")
        detector = new_detector(f"timm:{name}")
        taken = take_weights(detector, f"timm:{name}", tmp_path / "whole.pth", keep_classes=False)
        own = [key for key in detector.state_dict() if key.startswith("backbone.timm.")]
        lacking = {key for key in own if key not in taken.taken}
        assert len(own) > 100 and lacking == set() and taken.other_shape == ()
        given = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
        for key, value in detector.backbone.timm.state_dict().items():
            assert torch.equal(value, given[key.replace(".", "_")])


def test_training_writes_a_member_that_manifest_and_built_script_take(wheels_dir: Path, tmp_path: Path) -> None:
    """A training step by the command line; then the script's answers are the package's."""
    write_dataset(tmp_path / "cells", {"cort": 2, "astro": 1}, seed=1, shape=(96, 128))
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'[detector]\nkind = "maskrcnn"\nencoder = "{SMALL}"\nnum_classes = 3\nneck_channels = 16\nfc_channels = 16\n'
        "mask_channels = 16\n[training]\niterations = 2\nbatch_size = 1\ncrop_size = 64\nrpn_nms_pre = 50\n"
        "rois_per_image = 8\n",
        encoding="utf-8",
    )
    weights = tmp_path / "weights"
    member = weights / "member.safetensors"
    words = ["train", "--data", str(tmp_path / "cells"), "--recipe", str(recipe), "--out", str(member)]
    assert main([*words, "--device", "cpu"]) == 0
    record = read_member_record(member)
    assert record is not None and (record.encoder, record.stem_stride) == (SMALL, 1)
    assert main([*words, "--device", "cpu", "--resume"]) == 0  # finished: read again

    # Boxes in any image, as a short training gives none.
    state = read_state_dict(member)
    state["rpn_head.rpn_cls.bias"] += 3
    state["roi_head.bbox_head.fc_cls.bias"][-1] -= 3
    state["roi_head.mask_head.conv_logits.bias"] += 1
    save_weights(state, member, record=record)
    data = json.loads((DEMO / "manifest.json").read_text(encoding="utf-8"))
    entry = {"name": "member", "kind": "maskrcnn", "encoder": SMALL, "use_for": ["shsy5y", "astro", "cort"]}
    data["members"] = [entry]  # its file is found by its content
    for limits in data["ensemble"]["thresholds"].values():
        limits |= {"rcnn_score_threshold": 0.01, "confidence": 0.01, "rpn_score_threshold": 0.1, "min_size": 0}
        limits |= {"rpn_nms_pre": 40, "rpn_max_per_img": 40}
    manifest_path = tmp_path / "manifest.json"
    manifest_path.write_text(json.dumps(data), encoding="utf-8")
    parse_manifest(json.dumps(data), "m")
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), generate_image("cort", 1, (64, 96)).image)

    out = tmp_path / "dist"
    shutil.copytree(wheels_dir, out / "wheels")
    arguments = ["--manifest", str(manifest_path), "--out", str(out), "--weights-dir", str(weights), "--device", "cpu"]
    assert build_kernel.main([*arguments, "--dry-run", "--images", str(images)]) == 0
    submitted = read_submission(out / "dry-run" / "submission.csv")
    manifest, found = resolve_weights(read_manifest(manifest_path), weights)
    assert manifest.members[0].file == "member.safetensors"
    ensemble = load_ensemble(manifest, {each.member.name: each.path for each in found}, "cpu")
    assert segment_image(ensemble, read_image(images / "a.png")).masks.rles() == submitted["a"] != []


def test_the_key_of_the_record_is_one_alone() -> None:
    assert list(record_of(SMALL).metadata()) == [METADATA_KEY]
    assert isinstance(build_encoder(SMALL)[0], TimmFeatures)
