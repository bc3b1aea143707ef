"""What the steps of a run change: the detector, its optimizer, and the moving average of its weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kernel.gpus import own_dtype
from kernel.log import LOG
from kernel.manifest.types import MASK_KINDS
from kernel.models.crop_unet import CropUNet
from kernel.models.detectors import Detector, build_detector
from kernel.models.roi_align import quicken_extractors
from kernel.training.assigning import bound_assignment
from kernel.training.initialise import IMAGENET, IMAGENET_ENCODER, draw_weights, take_weights
from kernel.training.iou_scores import learn_iou_scores
from kernel.training.losses import weighted_loss
from kernel.training.optimisation import WeightsEma, build_optimizer, learning_rate_factor
from kernel.training.precision import add_upsampling_biases_apart, keep_depthwise_wide, norm_groups_quickly
from kernel.training.processes import ProcessGroup
from kernel.training.run import TrainingRun
from kernel.training.step import compute_losses, set_proposal_counts


class Learner:
    """A detector in training, the same in all processes of `group`. Its parts are saved and restored together."""

    def __init__(self, run: TrainingRun, group: ProcessGroup):
        settings = self.settings = run.settings
        self.group = group
        self.detector = first_detector(run, group)
        self.optimizer = build_optimizer(self.detector, settings)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: learning_rate_factor(step, settings.iterations, settings.warmup_share)
        )
        self.dtype, self.heads_dtype = (
            own_dtype(group.device, getattr(torch, name)) for name in (settings.dtype, settings.heads_dtype)
        )
        scaled = torch.float16 in (self.dtype, self.heads_dtype)
        self.scaler = torch.amp.grad_scaler.GradScaler(group.device.type, enabled=scaled)
        self.ema = WeightsEma(self.detector, settings.ema_decay) if settings.ema_decay else None

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    @property
    def parts(self) -> dict[str, Any]:
        """What is saved, by its name in the file."""
        parts = {
            "detector": self.detector,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }
        return parts | ({"mean": self.ema} if self.ema else {})

    def state_dicts(self) -> dict[str, Any]:
        """Of each part, what it needs to go on."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dicts(self, states: Mapping[str, Any]) -> None:
        """Go on from `state_dicts`."""
        for name, part in self.parts.items():
            if states[name] or name != "scaler":  # where the run began, on a GPU with bfloat16, it may have had none
                part.load_state_dict(states[name])

    def losses(self, batch: dict[str, Any], epoch: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The weighted loss of a micro-batch, and each of its terms before weighting."""
        losses = compute_losses(self.detector, batch, self.dtype, self.heads_dtype)
        return weighted_loss(losses, epoch, self.settings.epochs)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one micro-batch's loss, which counts as its share of the step's."""
        self.scaler.scale(loss / self.settings.accumulation).backward()

    def update(self) -> None:
        """Change the weights by the gradients of all processes."""
        self.group.average_gradients(self.detector.parameters())
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.detector.parameters(), self.settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema:
            self.ema.update(self.detector)

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights that the run is for: the moving average, where one is kept, with the detector's buffers."""
        return self.detector.state_dict() | (self.ema.mean if self.ema else {})

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The detector has `weights` within the block, its own afterwards."""
        if self.ema is None:
            yield
            return
        own = {key: value.clone() for key, value in self.detector.state_dict().items()}
        self.detector.load_state_dict(self.weights())
        try:
            yield
        finally:
            self.detector.load_state_dict(own)

    def finished(self) -> Detector:
        """The detector with the weights that the run is for, in eval mode."""
        if self.ema:
            self.detector.load_state_dict(self.weights())
        return self.detector.eval()


def first_detector(run: TrainingRun, group: ProcessGroup) -> Detector:
    """The detector before the first step, the first process's in all, on this process's device.

    Raises:
        InputError: nothing of `run.init` fits.
    """
    torch.manual_seed(run.settings.seed)
    detector = build_detector(run.spec)
    draw_weights(detector)
    taken = None
    if run.init is not None:
        taken = take_weights(detector, run.spec.encoder, run.init, run.keep_classes)
        LOG.info("%s", taken.describe(str(run.init)))
    if run.spec.kind not in MASK_KINDS and group.is_first and not (taken and taken.has_encoder):
        LOG.warning(
            "all weights of the encoder are drawn, which then learns far more slowly and finds less: --init takes "
            "ImageNet's (--init %s: those of %s), or those of a detector over this encoder",
            IMAGENET, IMAGENET_ENCODER,
        )  # fmt: skip
    set_proposal_counts(detector, run.settings)
    if run.settings.iou_scores and run.spec.kind not in MASK_KINDS:
        learn_iou_scores(detector)
    quicken(detector, group.device)
    detector.to(group.device, memory_format=torch.channels_last)
    group.share_weights(detector)
    return detector


def quicken(detector: Detector, device: torch.device) -> None:
    """Let the parts of mmdet's detectors that are slow in training, or take much memory, compute the same by our code.

    A mask network has none of them.
    """
    if isinstance(detector, CropUNet):
        return
    bound_assignment(detector)
    quicken_extractors(detector)
    if device.type == "cpu":
        keep_depthwise_wide(detector)
        add_upsampling_biases_apart(detector)
        norm_groups_quickly(detector)
