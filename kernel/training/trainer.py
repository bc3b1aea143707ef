"""The training loop: crops, mmdet's losses, AdamW, warm-up and linear decay."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from kernel.errors import InputError, RunError
from kernel.models.checkpoints import read_state_dict
from kernel.models.detectors import Detector, DetectorSpec, build_detector
from kernel.runtime.log import LOG
from kernel.training.losses import weighted_loss
from kernel.training.samples import CropDataset, TrainingImage, collate


@dataclass(frozen=True)
class TrainSettings:
    """How a member is trained. Defaults are the published finetuning's."""

    iterations: int = 4000
    batch_size: int = 4
    learning_rate: float = 2e-4
    weight_decay: float = 0.01  # not on biases and norms
    warmup_share: float = 0.05  # of the iterations, the learning rate rising linearly
    clip_norm: float = 10.0
    crop_size: int = 256
    rpn_nms_pre: int = 2000  # best positions per FPN level that become proposals
    rois_per_image: int = 512  # sampled for the box head, a quarter of them positive
    epochs: int = 40  # 10 x batch size; only the loss weights know epochs
    norm_eval: bool = False  # BatchNorm keeps its running statistics
    dtype: str = "float32"  # of encoder and neck: float32, bfloat16 or float16
    workers: int = 0
    seed: int = 0


def parameter_groups(detector: Detector, weight_decay: float) -> list[dict[str, object]]:
    """Parameters with decay, and biases and norms without."""
    with_decay, without = [], []
    for parameter in detector.parameters():
        if parameter.requires_grad:
            (without if parameter.ndim <= 1 else with_decay).append(parameter)
    return [
        {"params": with_decay, "weight_decay": weight_decay},
        {"params": without, "weight_decay": 0.0},
    ]


def learning_rate_factor(step: int, steps: int, warmup_share: float) -> float:
    """Linear rise over the first `warmup_share` of `steps`, then linear fall to zero."""
    warmup = max(round(steps * warmup_share), 1)
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(steps - warmup, 1))


def compute_losses(detector: Detector, batch: dict, dtype: torch.dtype) -> dict:
    """mmdet's losses of a batch; encoder and neck run in `dtype`, heads and losses in float32."""
    device = next(detector.parameters()).device
    images = batch["images"].to(device, memory_format=torch.channels_last)
    boxes = [b.to(device) for b in batch["gt_bboxes"]]
    labels = [b.to(device) for b in batch["gt_labels"]]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        levels = detector.extract_feat(images)
    levels = tuple(level.float() for level in levels)
    rpn_losses, proposals = detector.rpn_head.forward_train(
        levels, batch["img_metas"], boxes, proposal_cfg=detector.train_cfg.rpn_proposal
    )
    extra = {}
    if getattr(detector.roi_head, "with_semantic", False):
        extra["gt_semantic_seg"] = batch["gt_semantic_seg"].to(device)
    roi_losses = detector.roi_head.forward_train(
        levels, batch["img_metas"], proposals, boxes, labels, None, batch["gt_masks"], **extra
    )
    return {**rpn_losses, **roi_losses}


def set_proposal_counts(detector: Detector, settings: TrainSettings) -> None:
    """Set how many proposals the RPN makes, and how many RoIs each stage's sampler draws of them per image."""
    detector.train_cfg.rpn_proposal.nms_pre = settings.rpn_nms_pre
    samplers = detector.roi_head.bbox_sampler
    for sampler in samplers if isinstance(samplers, list) else [samplers]:
        sampler.num = settings.rois_per_image


def initialise(detector: Detector, init: Path | None) -> None:
    """Draw weights as mmdet does; then take every tensor of `init` whose key and shape fit, and say how many."""
    logging.getLogger("mmcv").setLevel(logging.WARNING)  # it lists every tensor
    detector.init_weights()
    if init is None:
        return
    own = detector.state_dict()
    given = read_state_dict(init)
    taken = {key: value for key, value in given.items() if key in own and own[key].shape == value.shape}
    if not taken:
        raise InputError(f"{init}: none of its {len(given)} tensors fits the detector to be trained")
    detector.load_state_dict(taken, strict=False)
    LOG.info("%s: %d of the detector's %d tensors taken", init, len(taken), len(own))


def save_weights(detector: Detector, path: Path, half: bool = False) -> None:
    """Write a detector's state dict as safetensors, atomically; floating-point tensors as float16 if `half`."""
    state = {
        key: (value.half() if half and value.is_floating_point() else value).detach().cpu().contiguous()
        for key, value in detector.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    safetensors.torch.save_file(state, temporary)
    temporary.replace(path)


def train_detector(
    spec: DetectorSpec,
    images: Sequence[TrainingImage],
    settings: TrainSettings,
    out: Path,
    init: Path | None = None,
    device: str = "cpu",
    half: bool = False,
) -> Detector:
    """Train a detector on annotated images and write its weights to `out` (safetensors).

    `init` names weights to start from. The settings and a JSON line per 20 iterations go beside the weights.

    Raises InputError for no images, RunError where the loss stops being finite.
    """
    if not any(len(image.crops) for image in images):
        raise InputError("no annotated cell in the training images")
    torch.manual_seed(settings.seed)
    detector = build_detector(spec)
    initialise(detector, init)
    set_proposal_counts(detector, settings)
    detector.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(parameter_groups(detector, settings.weight_decay), lr=settings.learning_rate)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, settings.iterations, settings.warmup_share)
    )
    dataset = CropDataset(
        images,
        settings.iterations * settings.batch_size,
        settings.crop_size,
        spec.num_classes,
        settings.seed,
    )
    loader = DataLoader(dataset, settings.batch_size, collate_fn=collate, num_workers=settings.workers)
    out.parent.mkdir(parents=True, exist_ok=True)
    log_path = out.with_suffix(".jsonl")
    log_path.write_text(json.dumps({"spec": asdict(spec), "settings": asdict(settings)}) + "\n")
    start = time.perf_counter()
    progress = tqdm(loader, total=settings.iterations, unit="it", mininterval=10)
    for step, batch in enumerate(progress):
        if settings.norm_eval:
            for module in detector.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        epoch = 1 + step * settings.epochs // settings.iterations
        loss, terms = weighted_loss(
            compute_losses(detector, batch, getattr(torch, settings.dtype)), epoch, settings.epochs
        )
        if not torch.isfinite(loss):
            raise RunError(f"the loss became {loss.item()} in iteration {step}: {terms}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), settings.clip_norm)
        optimizer.step()
        scheduler.step()
        if step % 20 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
            line = {"step": step, "loss": loss.item(), **terms, "seconds": time.perf_counter() - start}
            with log_path.open("a") as stream:
                stream.write(json.dumps(line) + "\n")
        if step and step % 500 == 0:
            save_weights(detector, out, half)
    detector.eval()
    save_weights(detector, out, half)
    return detector
