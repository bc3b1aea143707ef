"""Our Mask R-CNN beside torchvision's and Cellpose 3: the same images, the same time, the same metric.

    pip install "cellpose==3.1.1.2"      # not among our requirements; for --tools cellpose alone
    PYTHONPATH=.:tests python tests/benchmarks/bench_other_tools.py PREPARED OUT [--fold 1] [--minutes 20]

PREPARED is a folder that `prepare` has written. Each tool learns from the images that are not of the fold, for the same
wall-clock minutes, and finds the cells of the fold's; nothing else should run. None has seen a cell before:

- ours: the recipe `lite0`, from ImageNet's EfficientNet-lite0; iterations are chosen by the time of a few steps.
- torchvision: its MaskRCNN with its own FPN of 256 channels, heads and anchors, over the same encoder and weights.
  Crops and images are enlarged twice, as its anchors are for larger things. Crops, AdamW, rates and schedule are our
  recipe's, for it comes without a training program.
- cellpose: `train_seg` by its own defaults from random weights; epochs are chosen by the time of a few. At test it is
  told the mean diameter of the training cells of the image's true type; ours and torchvision's are told no type.

It prints two scores of each: with one set of thresholds (confidence 0.5; Cellpose's defaults), and with the best of a
small grid for each cell type, chosen on the very images, which flatters all alike. A tool whose result is in OUT is not
trained again.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kernel.commands.train_members import RECIPE
from kernel.data.annotated import AnnotatedImage, list_around_fold
from kernel.data.mask_files.label_arrays import cells_of_labels
from kernel.manifest.presets import MANIFEST_NAME, members_folder
from kernel.masks.instances import CellMasks, Instances
from kernel.masks.labels import label_image
from kernel.scoring.metric import image_score, mean_scores
from kernel.settings import Thresholds
from kernel.training.recipe import read_recipe
from kernel.training.settings import TrainSettings
from kernel.vendored import use_vendored_packages

#: Steps by whose time the length of our training is chosen, after as many that are not counted.
TIMED_STEPS = 20
CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
FLOW_THRESHOLDS, CELLPROB_THRESHOLDS = (0.4, 0.8), (-2.0, 0.0, 1.0)
#: What torchvision's images are enlarged by.
ENLARGED = 2

#: Masks of an image by a tool's name of its thresholds.
Found = Mapping[str, CellMasks]


@dataclass(frozen=True)
class Task:
    """What each tool is given."""

    training: Sequence[AnnotatedImage]
    test: Sequence[AnnotatedImage]
    settings: TrainSettings
    seconds: float
    data: Path
    fold: int
    out: Path


def postprocessed(instances: Instances) -> Found:
    """The masks by every confidence; the rest is the same for ours and torchvision's."""
    from kernel.postprocess.clean import postprocess_instances

    thresholds = Thresholds(mask_threshold=0.5, min_size=0)
    return {
        f"confidence {confidence}": postprocess_instances(instances, replace(thresholds, confidence=confidence))
        for confidence in CONFIDENCES
    }


def learn_ours(task: Task) -> Callable[[AnnotatedImage], Found]:
    """Train by our command, and return what finds cells."""
    from kernel.__main__ import main as run_command
    from kernel.manifest.reader import read_manifest
    from kernel.scoring.predicting import EnsembleFiles
    from kernel.scoring.predictions import soft_prediction

    def train(name: str, iterations: int) -> Path:
        out = task.out / f"{name}.safetensors"
        words = [
            "train", "--recipe", RECIPE, "--kind", "maskrcnn", "--data", task.data, "--fold", task.fold,
            "--init", "imagenet", "--iterations", iterations, "--device", "cpu",
            "--out", out, "--replace",
        ]  # fmt: skip
        if run_command([str(word) for word in words]):
            raise SystemExit("our training failed")
        return out

    seconds = []
    for steps in (TIMED_STEPS, 2 * TIMED_STEPS):
        began = time.monotonic()
        train("ours-timed", steps)
        seconds.append(time.monotonic() - began)
    each = (seconds[1] - seconds[0]) / TIMED_STEPS
    weights = train("ours", max(round((task.seconds - (seconds[0] - TIMED_STEPS * each)) / each), 1))
    shipped = read_manifest(members_folder("shipped") / MANIFEST_NAME)
    (member,) = (replace(m, sha256=None) for m in shipped.members if m.kind == "maskrcnn")
    settings = replace(shipped.ensemble, use_tta=False, use_tta_masks=False)
    files = EnsembleFiles(replace(shipped, members=(member,), ensemble=settings), {member.name: weights}, "bfloat16")
    ensemble = files.load("cpu")
    return lambda image: postprocessed(soft_prediction(ensemble.predict(image.read())).instances)


def enlarged_network(settings: TrainSettings) -> Any:
    """torchvision's Mask R-CNN over EfficientNet-lite0 with ImageNet's weights."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.ops import FeaturePyramidNetwork
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    from kernel.models.configs import DetectorSpec
    from kernel.models.detectors import build_detector
    from kernel.settings import CELL_TYPES
    from kernel.training.initialise import packaged_encoder_weights, take_weights

    detector = build_detector(DetectorSpec("maskrcnn", "efficientnet_lite0", stem_stride=2))
    take_weights(detector, "efficientnet_lite0", packaged_encoder_weights(), keep_classes=False)

    class Backbone(nn.Module):
        """The encoder and torchvision's FPN."""

        out_channels = 256

        def __init__(self) -> None:
            super().__init__()
            self.encoder = detector.backbone
            self.fpn = FeaturePyramidNetwork(list(self.encoder.channels), self.out_channels, LastLevelMaxPool())

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            """Maps of strides 4, 8, 16, 32 and 64."""
            return self.fpn({str(level): maps for level, maps in enumerate(self.encoder(images))})

    return MaskRCNN(
        Backbone(), num_classes=1 + len(CELL_TYPES),
        min_size=ENLARGED * settings.crop_size, max_size=4096, image_mean=[0, 0, 0], image_std=[1, 1, 1],
        box_detections_per_img=1000, box_score_thresh=0.15, box_nms_thresh=0.6,
    )  # fmt: skip


def learn_torchvision(task: Task) -> Callable[[AnnotatedImage], Found]:
    """Train torchvision's network until the time is over, and return what finds cells."""
    from kernel.ensemble.views import ALL_VIEWS, view_images
    from kernel.training.augment import Augmentation
    from kernel.training.crops import CropDataset
    from kernel.training.optimisation import learning_rate_factor
    from kernel.training.samples import read_entries

    settings = task.settings
    torch.manual_seed(settings.seed)
    network = enlarged_network(settings)
    encoder = {id(p) for p in network.backbone.encoder.parameters()}
    groups = [
        {
            "params": [p for p in network.parameters() if (id(p) in encoder) == of_encoder and (p.ndim > 1) == decays],
            "lr": settings.learning_rate * (settings.encoder_rate if of_encoder else 1),
            "weight_decay": settings.weight_decay if decays else 0.0,
        }
        for of_encoder, decays in itertools.product((False, True), repeat=2)
    ]
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups)
    augmentation = Augmentation(settings.rotate, settings.zoom, settings.contrast)
    crops = CropDataset(
        read_entries(task.training), 10**9, settings.crop_size, settings.seed, augmentation=augmentation
    )
    network.train()
    began, step, scale = time.monotonic(), 0, 10_000
    while (share := (time.monotonic() - began) / task.seconds) < 1:
        factor = learning_rate_factor(round(share * scale), scale, settings.warmup_share)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate * factor
        samples = [crops[step * settings.batch_size + n] for n in range(settings.batch_size)]
        targets = [{"boxes": s.boxes_xyxy, "labels": s.labels + 1, "masks": torch.from_numpy(s.masks)} for s in samples]
        losses = network([s.image for s in samples], targets)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        step += 1
        if step % 10 == 0:
            told = ", ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"torchvision, step {step}, {share:.0%}: {told}", flush=True)
    print(f"torchvision took {step} steps", flush=True)
    network.eval()

    @torch.inference_mode()
    def find(image: AnnotatedImage) -> Found:
        pixels = image.read()
        height, width = pixels.shape[:2]
        network.transform.min_size = (ENLARGED * min(height, width),)
        (found,) = network([view_images(pixels, ALL_VIEWS[:1])[0][:, :height, :width]])
        return postprocessed(instances_of(found, (height, width)))

    return find


def instances_of(found: Mapping[str, torch.Tensor], image_shape: tuple[int, int]) -> Instances:
    """torchvision's detections, whose masks are full frames, as crops."""
    height, width = image_shape
    boxes = found["boxes"].numpy()
    low = np.floor(boxes[:, :2]).astype(int).clip(0) - 1
    high = np.ceil(boxes[:, 2:]).astype(int) + 1
    windows = np.concatenate([low.clip(0), np.minimum(high, (width, height))], axis=1).tolist()
    crops = [
        (mask[0, y0:y1, x0:x1].numpy() * 255).astype(np.uint8)
        for mask, (x0, y0, x1, y1) in zip(found["masks"], windows, strict=True)
    ]
    offsets = np.array([(y0, x0) for x0, y0, _, _ in windows], np.int64).reshape(-1, 2)
    labels = found["labels"].numpy() - 1
    return Instances(tuple(crops), offsets, boxes, found["scores"].numpy(), labels, image_shape)


def learn_cellpose(task: Task) -> Callable[[AnnotatedImage], Found]:
    """Train by Cellpose's own function for as many epochs as fit, and return what finds cells."""
    from cellpose import dynamics, models, train, utils

    images = [image.read()[..., 0] for image in task.training]
    labels = [label_image(image.masks(fill_holes=True)).astype(np.int32) for image in task.training]
    flows = dynamics.labels_to_flows(labels, device=torch.device("cpu"))
    diameters: dict[str, list[float]] = {}
    for image, cells in zip(task.training, labels, strict=True):
        diameters.setdefault(image.cell_type, []).append(utils.diameters(cells)[0])
    said = {cell_type: float(np.mean(values)) for cell_type, values in diameters.items()}
    print("Cellpose is told diameters", said, flush=True)

    def learn(epochs: int) -> Any:
        torch.manual_seed(task.settings.seed)
        model = models.CellposeModel(gpu=False, pretrained_model=False)
        train.train_seg(
            model.net, train_data=images, train_labels=flows, channels=[0, 0], n_epochs=epochs, save_path=task.out
        )
        return model

    seconds = []
    for epochs in (1, 3):
        began = time.monotonic()
        learn(epochs)
        seconds.append(time.monotonic() - began)
    each = (seconds[1] - seconds[0]) / 2
    epochs = max(round((task.seconds - (seconds[0] - each)) / each), 1)
    print(f"Cellpose takes {epochs} epochs", flush=True)
    model = learn(epochs)

    def find(image: AnnotatedImage) -> Found:
        pixels, found = image.read()[..., 0], {}
        for flow, probability in itertools.product(FLOW_THRESHOLDS, CELLPROB_THRESHOLDS):
            options = dict(diameter=said[image.cell_type], flow_threshold=flow, cellprob_threshold=probability)
            masks = model.eval(pixels, channels=[0, 0], **options)[0]
            found[f"flow {flow}, cellprob {probability}"] = masks_of_labels(np.asarray(masks))
        return found

    return find


def masks_of_labels(labels: np.ndarray) -> CellMasks:
    """The cells of a label image."""
    height, width = labels.shape
    cells = cells_of_labels(labels, (height, width)).cells if labels.any() else ()
    offsets = np.array([cell.offset_yx for cell in cells], np.int64).reshape(-1, 2)
    shapes = np.array([cell.crop.shape for cell in cells], np.int64).reshape(-1, 2)
    boxes = np.concatenate([offsets, offsets + shapes], axis=1)[:, [1, 0, 3, 2]]
    count = len(cells)
    return CellMasks(
        tuple(cell.crop for cell in cells), offsets, boxes, np.ones(count), np.zeros(count, np.int64), (height, width)
    )


#: The tools, and the thresholds that each comes with.
LEARN: Mapping[str, tuple[Callable[[Task], Callable[[AnnotatedImage], Found]], str]] = {
    "ours": (learn_ours, "confidence 0.5"),
    "torchvision": (learn_torchvision, "confidence 0.5"),
    "cellpose": (learn_cellpose, "flow 0.4, cellprob 0.0"),
}


def scores_by_threshold(tool: str, task: Task) -> dict[str, Any]:
    """Each test image's score by each of the tool's thresholds, with minutes of training and seconds of finding."""
    began = time.monotonic()
    find = LEARN[tool][0](task)
    minutes = (time.monotonic() - began) / 60
    scores: dict[str, Mapping[str, float]] = {}
    seconds = 0.0
    for image in task.test:
        started = time.monotonic()
        found = find(image)
        seconds += time.monotonic() - started
        truth = image.masks()
        scores[image.image_id] = {name: image_score(masks, truth) for name, masks in found.items()}
        print(tool, image.image_id, image.cell_type, {name: round(s, 3) for name, s in scores[image.image_id].items()})
    return {"minutes": minutes, "seconds": seconds / max(len(task.test), 1), "scores": scores}


def table_row(tool: str, result: Mapping[str, Any], test: Sequence[AnnotatedImage]) -> Iterator[str]:
    """The tool's cells of the table."""
    yield tool
    yield f"{result['minutes']:.0f}"
    scores, types = result["scores"], sorted({image.cell_type for image in test})
    by_type = {name: [image for image in test if image.cell_type == name] for name in types}

    def mean(images: Sequence[AnnotatedImage], name: str) -> float:
        return float(np.mean([scores[image.image_id][name] for image in images]))

    own = LEARN[tool][1]
    best = {
        cell_type: max(next(iter(scores.values())), key=lambda name: mean(by_type[cell_type], name))
        for cell_type in types
    }
    for chosen in (dict.fromkeys(types, own), best):
        found = mean_scores([(i.cell_type, scores[i.image_id][chosen[i.cell_type]]) for i in test])
        yield f"{found.overall:.3f} ({', '.join(f'{name} {found.per_type[name]:.3f}' for name in types)})"
    yield "; ".join(f"{cell_type}: {name}" for cell_type, name in best.items())


def main() -> None:
    """Train and score what is not in OUT yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fold", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--tools", nargs="+", choices=LEARN, default=list(LEARN))
    options = parser.parse_args()
    use_vendored_packages()
    options.out.mkdir(parents=True, exist_ok=True)
    training, test = list_around_fold(options.data, options.fold, options.data / "folds.csv")
    task = Task(
        training, test, read_recipe(RECIPE).training, options.minutes * 60, options.data, options.fold, options.out
    )
    print(f"{len(training)} images to learn from, {len(test)} to find cells in", flush=True)
    rows = []
    for tool in options.tools:
        stored = options.out / f"{tool}.json"
        if not stored.exists():
            result = scores_by_threshold(tool, task)
            stored.write_text(json.dumps(result, indent=1))
        rows.append(list(table_row(tool, json.loads(stored.read_text()), test)))
    print("| tool | minutes | own thresholds | the grid's best by type | which |\n|---|---|---|---|---|")
    for row in rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
