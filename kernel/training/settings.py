"""How a member is trained: one frozen dataclass, whose fields are the keys of a recipe's table `[training]`."""

from __future__ import annotations

import math
from dataclasses import dataclass

from kernel.errors import InputError
from kernel.settings import NETWORK_DTYPES

OPTIMIZERS = ("adamw", "muon")


@dataclass(frozen=True)
class TrainSettings:
    """Defaults are the published finetuning's."""

    iterations: int = 4000  # optimizer steps
    batch_size: int = 4  # crops per step and process, all micro-batches together
    accumulation: int = 1  # micro-batches per step: large recipes on small memory
    optimizer: str = "adamw"  # or "muon", which learns from fewer steps (kernel.training.muon)
    learning_rate: float = 2e-4
    encoder_rate: float = 1.0  # the encoder's learning rate over that of neck and heads, which start from nothing
    weight_decay: float = 0.01  # not on biases and norms
    warmup_share: float = 0.05  # of the iterations, the learning rate rising linearly
    clip_norm: float = 10.0
    crop_size: int = 256
    flip_paste: float = 0.0  # chance that a cort crop is averaged with its mirror image, cells of both kept
    rotate: bool = False  # half of the crops lie at any angle in their images, the others at right angles
    zoom: float = 1.0  # in half of the crops cells appear from 1 / zoom to zoom times their size
    contrast: float = 1.0  # gray levels spread from 1 / contrast to contrast times about their mean
    extra_images: int = 800  # with train --extra: at most so many images
    extra_share: float = 0.5  # ... the chance that a crop is one of them at the start of the run
    extra_until: float = 0.8  # ... which falls linearly to zero at this part of the run
    rpn_nms_pre: int = 2000  # best positions per FPN level that become proposals
    rois_per_image: int = 512  # sampled for the box head, a quarter of them positive
    mask_rois_per_image: int = 0  # of the positive ones, drawn for the mask heads; 0: all, as published
    iou_scores: bool = False  # box heads score how well a box fits; else, as published, whether it meets a cell
    epochs: int = 40  # 10 x batch size; only the loss weights know epochs
    norm_eval: bool = False  # BatchNorm keeps its running statistics
    norm_eval_below: int = 0  # ... and where fewer crops than this go through the detector at a time
    dtype: str = "float32"  # of encoder and neck; float16 scales the loss
    heads_dtype: str = "float32"  # of the heads' layers; their boxes, targets and losses are float32 always
    ema_decay: float = 0.0  # the weights written are a moving average with this decay; 0: the weights themselves
    checkpoint_every: int = 500  # steps between states from which the run can be resumed
    evaluate_every: int = 0  # steps between evaluations on the validation images; 0: none
    workers: int = 0  # processes that make crops
    seed: int = 0

    @property
    def micro_batch_size(self) -> int:
        """Crops that go through the detector at a time."""
        return self.batch_size // self.accumulation

    @property
    def is_norm_frozen(self) -> bool:
        """Whether BatchNorm keeps its running statistics."""
        return self.norm_eval or self.micro_batch_size < self.norm_eval_below

    def check(self, source: str) -> None:
        """Refuse values that cannot be trained with; `source` names the settings in the message.

        Raises:
            InputError: lists all of them.
        """
        problems = []
        for name in (
            "iterations",
            "batch_size",
            "accumulation",
            "crop_size",
            "extra_images",
            "rpn_nms_pre",
            "rois_per_image",
            "epochs",
        ):
            if getattr(self, name) < 1:
                problems.append(f"{name} is {getattr(self, name)}, it must be at least 1")
        if self.batch_size % max(self.accumulation, 1):
            problems.append(
                f"batch_size {self.batch_size} cannot be split into {self.accumulation} equal micro-batches "
                "(accumulation)"
            )
        if self.crop_size % 32:
            problems.append(f"crop_size is {self.crop_size}, it must be a multiple of 32, the coarsest stride")
        for name in ("dtype", "heads_dtype"):
            if getattr(self, name) not in NETWORK_DTYPES:
                problems.append(f"{name} {getattr(self, name)!r} is not one of {', '.join(NETWORK_DTYPES)}")
        if self.optimizer not in OPTIMIZERS:
            problems.append(f"optimizer {self.optimizer!r} is not one of {', '.join(OPTIMIZERS)}")
        for name in ("warmup_share", "flip_paste", "encoder_rate", "extra_share", "extra_until", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"{name} is {getattr(self, name)}, it must be from 0 to 1")
        if self.extra_until == 0:
            problems.append("extra_until is 0: to train without extra images, leave out --extra")
        if self.ema_decay == 1:
            problems.append("ema_decay is 1: the moving average would never move")
        for name, highest in (("zoom", 4), ("contrast", 16)):
            if not 1 <= getattr(self, name) <= highest:
                problems.append(
                    f"{name} is {getattr(self, name)}, it must be from 1, which changes nothing, to {highest}"
                )
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < math.inf:
                problems.append(f"{name} is {getattr(self, name)}, it must be above 0 and finite")
        for name in (
            "mask_rois_per_image",
            "norm_eval_below",
            "checkpoint_every",
            "evaluate_every",
            "workers",
            "seed",
            "weight_decay",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                problems.append(f"{name} is {getattr(self, name)}, it must be finite and not negative")
        if problems:
            raise InputError(f"{source}: " + "; ".join(problems))
