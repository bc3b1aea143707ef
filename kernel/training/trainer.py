"""The training loop: crops, mmdet's losses, AdamW, warm-up and linear decay; stopped and resumed at any step."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from kernel.data.annotated import AnnotatedImage
from kernel.errors import InputError, RunError
from kernel.models.detectors import Detector, DetectorSpec, build_detector
from kernel.models.roi_align import quicken_extractors
from kernel.runtime.log import LOG
from kernel.runtime.wheels import file_sha256
from kernel.training.augment import Augmentation
from kernel.training.crops import CropDataset
from kernel.training.evaluation import check_evaluation, evaluate_detector
from kernel.training.extra import ExtraSchedule
from kernel.training.initialise import draw_weights, take_weights
from kernel.training.losses import weighted_loss
from kernel.training.optimisation import WeightsMean, learning_rate_factor, parameter_groups
from kernel.training.precision import heads_in, keep_depthwise_wide
from kernel.training.processes import ProcessGroup
from kernel.training.record import RunRecord
from kernel.training.samples import TrainingImage, check_classes, collate, images_digest, semantic_maps
from kernel.training.settings import TrainSettings
from kernel.training.state import RunState, fingerprint_of, read_state, save_state, write_weights, writing

#: Settings that may change when a run is resumed: they do not change what is computed.
FREE_SETTINGS = ("workers", "checkpoint_every", "evaluate_every")
#: Settings that mean nothing, and may change, in a run without extra images.
EXTRA_SETTINGS = ("extra_images", "extra_share", "extra_until")


@dataclass(frozen=True)
class TrainingRun:
    """What to train, on what, and where it goes."""

    spec: DetectorSpec
    settings: TrainSettings
    images: Sequence[TrainingImage]
    out: Path  # weights (.safetensors); log, state and pictures lie beside it
    init: Path | None = None  # weights to start from
    keep_classes: bool = False  # of `init`, also the layers that tell classes apart
    device: str = "cpu"
    half: bool = False  # write weights as float16
    validation: Sequence[AnnotatedImage] = ()  # evaluated on every `evaluate_every` steps
    resume: bool = False  # go on from the state beside `out`, if there is one
    extra: Sequence[TrainingImage] = ()  # mixed in on a falling schedule, labelled as `images` are

    @property
    def state_path(self) -> Path:
        return self.out.with_suffix(".state")

    @property
    def best_path(self) -> Path:
        return self.out.with_name(f"{self.out.stem}.best{self.out.suffix}")

    @property
    def has_evaluations(self) -> bool:
        return bool(self.settings.evaluate_every and self.validation)

    @cached_property
    def fingerprint(self) -> str:
        """What a state must have been made with to go on from it; computed once, of gigabytes of pixels."""
        ignored = {*FREE_SETTINGS, *(() if self.extra else EXTRA_SETTINGS)}
        settings = {key: value for key, value in asdict(self.settings).items() if key not in ignored}
        init = None if self.init is None else file_sha256(self.init)
        described = json.dumps([asdict(self.spec), settings, init, self.keep_classes])
        return fingerprint_of(described, images_digest(self.images), images_digest(self.extra))

    def check(self) -> None:
        """Raise InputError for what cannot be trained."""
        self.settings.check("the recipe")
        if self.out.suffix != ".safetensors":
            raise InputError(f"--out {self.out}: weights are written as .safetensors, name a file that ends so")
        if self.out.is_dir():
            raise InputError(f"--out {self.out} is a folder: name a file in it")
        if self.init is not None and not self.init.is_file():
            raise InputError(f"--init {self.init}: no such file")
        if self.state_path.exists() and not self.resume:
            raise InputError(
                f"{self.state_path} is the state of an earlier run: add --resume to go on with it, delete it to start "
                "anew, or name another --out"
            )
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"--out {self.out}: cannot write there ({error.strerror}), name another place") from error
        if not any(len(image.crops) for image in self.images):
            raise InputError("no annotated cell in the training images")
        if self.extra and not self.settings.extra_share:
            raise InputError("there are extra images, and extra_share is 0: none would ever be drawn")
        check_classes([*self.images, *self.extra], self.spec.num_classes)
        if self.has_evaluations:
            check_evaluation(self.spec.num_classes, self.validation)


class Trainer:
    """One run: all that changes from step to step. Its parts are saved and restored together."""

    def __init__(self, run: TrainingRun):
        run.check()
        self.run, self.settings = run, run.settings
        self.group = ProcessGroup(run.device)
        self.device = self.group.device
        torch.manual_seed(self.settings.seed)
        self.detector: Detector = build_detector(run.spec)
        draw_weights(self.detector)
        if run.init is not None:
            taken = take_weights(self.detector, run.init, run.keep_classes)
            LOG.info("%s", taken.describe(str(run.init)))
        set_proposal_counts(self.detector, self.settings)
        quicken_extractors(self.detector)
        if self.device.type == "cpu":
            keep_depthwise_wide(self.detector)
        self.detector.to(self.device, memory_format=torch.channels_last)
        self.group.share_weights(self.detector)
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.detector, self.settings.weight_decay), lr=self.settings.learning_rate
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda step: learning_rate_factor(step, self.settings.iterations, self.settings.warmup_share),
        )
        self.dtype, self.heads_dtype = (
            getattr(torch, name) for name in (self.settings.dtype, self.settings.heads_dtype)
        )
        scaled = torch.float16 in (self.dtype, self.heads_dtype)
        self.scaler = torch.amp.grad_scaler.GradScaler(self.device.type, enabled=scaled)
        self.mean = WeightsMean(self.detector, self.settings.ema_decay) if self.settings.ema_decay else None
        self.step = 0
        self.best_score = -1.0

    @property
    def parts(self) -> dict[str, Any]:
        """What is saved, by name."""
        parts = {
            "detector": self.detector,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
        }
        return parts | ({"mean": self.mean} if self.mean else {})

    @property
    def is_finished(self) -> bool:
        return self.step == self.settings.iterations

    @property
    def is_evaluated(self) -> bool:
        """Whether this step ends with an evaluation: each `evaluate_every`, and the last."""
        return self.run.has_evaluations and (self.is_finished or self.step % self.settings.evaluate_every == 0)

    @property
    def is_saved(self) -> bool:
        """Whether this step ends with a state on disk: each `checkpoint_every`, and the last."""
        every = self.settings.checkpoint_every
        return self.is_finished or bool(every and self.step % every == 0)

    def save(self) -> None:
        """Write the weights, and the state to resume from."""
        self.group.share_buffers(self.detector)
        if not self.group.is_first:
            return
        write_weights(self.written_weights(), self.run.out, self.run.half)
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        save_state(RunState(self.step, self.run.fingerprint, parts, self.best_score), self.run.state_path)

    def restore(self) -> None:
        """Go on from the state beside the weights, if there is one.

        Raises InputError where it is another run's, or where the processes would go on after different steps.
        """
        path = self.run.state_path
        if path.is_file():
            state = read_state(path, self.run.fingerprint)
            for name, part in self.parts.items():
                part.load_state_dict(state.parts[name])
            self.step, self.best_score = state.step, state.best_score
            LOG.info("resumed after step %d of %d", self.step, self.settings.iterations)
        steps = self.group.all_of(self.step)
        if len(set(steps)) > 1:  # only the first process writes it, and machines need not share a disk
            raise InputError(
                f"the processes would go on after the steps {', '.join(map(str, steps))}: copy {path.name}, as the "
                f"first process wrote it, to {path} on every machine"
            )

    def written_weights(self) -> dict[str, torch.Tensor]:
        """The weights that the run is for: the running mean, where one is kept, with the detector's buffers."""
        return self.detector.state_dict() | (self.mean.mean if self.mean else {})

    def micro_batches(self) -> Iterator[list[int]]:
        """The samples of this process's micro-batches, step after step, from where the run stands."""
        size = self.settings.micro_batch_size
        for step in range(self.step, self.settings.iterations):
            for micro in range(self.settings.accumulation):
                first = self.micro_batch_number(step, micro) * size
                yield list(range(first, first + size))

    def micro_batch_number(self, step: int, micro: int) -> int:
        """A micro-batch's number over all steps, processes and accumulations."""
        return (step * self.settings.accumulation + micro) * self.group.size + self.group.rank

    def loader(self) -> DataLoader:
        """Makes the crops of `micro_batches`; the same ones whatever the number of workers."""
        length = self.settings.iterations * self.settings.batch_size * self.group.size
        dataset = CropDataset(
            self.run.images,
            length,
            self.settings.crop_size,
            self.settings.seed,
            self.settings.flip_paste,
            self.run.extra,
            ExtraSchedule(self.settings.extra_share, self.settings.extra_until).chance,
            Augmentation(self.settings.rotate, self.settings.zoom, self.settings.contrast),
        )
        return DataLoader(
            dataset,
            batch_sampler=list(self.micro_batches()),
            collate_fn=collate,
            num_workers=self.settings.workers,
            worker_init_fn=outlive_signals,
            pin_memory=self.device.type == "cuda",
        )

    def take_step(self, batches: Iterator[dict[str, Any]]) -> tuple[float, dict[str, float]]:
        """One optimizer step. Returns the loss and its terms, means over this process's micro-batches.

        Raises RunError, naming the batch, where the loss is no number.
        """
        settings = self.settings
        epoch = 1 + self.step * settings.epochs // settings.iterations
        total, sums = 0.0, dict[str, float]()
        for micro in range(settings.accumulation):
            # mmdet's samplers draw from torch: by its number each micro-batch draws the same in any run.
            torch.manual_seed(settings.seed * 1_000_003 + self.micro_batch_number(self.step, micro))
            batch = next(batches)
            losses = compute_losses(self.detector, batch, self.dtype, self.heads_dtype)
            loss, terms = weighted_loss(losses, epoch, settings.epochs)
            if self.group.any_says(not bool(torch.isfinite(loss))):
                raise RunError(
                    f"the loss is no number in step {self.step}; in this process it is {loss.item()}, of the terms "
                    f"{terms}, on the crops {', '.join(batch['names'])}. Lower learning_rate, or look at these images"
                )
            self.scaler.scale(loss / settings.accumulation).backward()
            total += loss.item() / settings.accumulation
            for term, value in terms.items():
                sums[term] = sums.get(term, 0.0) + value / settings.accumulation
        self.group.average_gradients(self.detector.parameters())
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.detector.parameters(), settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.mean:
            self.mean.update(self.detector)
        return total, sums

    def evaluate(self, record: RunRecord | None) -> None:
        """Score the weights so far on the validation images; keep them apart when they are the best so far."""
        self.group.share_buffers(self.detector)
        if record is None:
            return
        pictures = self.run.out.with_suffix("") / f"step_{self.step}"
        with self.mean_weights(), writing(pictures):
            results = evaluate_detector(self.detector, self.run.spec.kind, self.run.validation, self.device, pictures)
        score = record.add_evaluation(self.step, results)
        if score > self.best_score:
            self.best_score = score
            write_weights(self.written_weights(), self.run.best_path, self.run.half)

    @contextmanager
    def mean_weights(self) -> Iterator[None]:
        """Put the running mean, where there is one, into the detector for a while."""
        if self.mean is None:
            yield
            return
        own = {key: value.clone() for key, value in self.detector.state_dict().items()}
        self.detector.load_state_dict(self.written_weights())
        try:
            yield
        finally:
            self.detector.load_state_dict(own)


def train_detector(run: TrainingRun) -> Detector:
    """Train, and write the weights to `run.out`; beside them the settings, a log, a picture of the loss, and the state.

    On SIGINT or SIGTERM the state is saved and the run ends with a RunError that says how to go on.

    Raises InputError for images or settings that cannot be trained, RunError where the loss stops being a number or
    the disk is full.
    """
    trainer = Trainer(run)
    settings = run.settings
    try:
        if run.resume:
            trainer.restore()
        record = RunRecord(run, trainer.step) if trainer.group.is_first else None
        batches = iter(trainer.loader())
        started, first_step = time.perf_counter(), trainer.step
        steps = range(trainer.step, settings.iterations)
        progress = tqdm(
            steps, initial=trainer.step, total=settings.iterations, unit="step", mininterval=10,
            disable=not trainer.group.is_first,
        )  # fmt: skip
        with stop_signals() as stopped:
            for _ in progress:
                set_training_mode(trainer.detector, settings.is_norm_frozen)
                loss, terms = trainer.take_step(batches)
                seconds = time.perf_counter() - started
                crops = (trainer.step - first_step) * settings.batch_size * trainer.group.size
                if record:
                    record.add_step(trainer.step, loss, terms, trainer.optimizer.param_groups[0]["lr"], crops / seconds)
                progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if trainer.is_evaluated:
                    trainer.evaluate(record)
                stop = trainer.group.any_says(bool(stopped))
                if stop or trainer.is_saved:
                    trainer.save()
                if stop and not trainer.is_finished:
                    again = "the same command" if run.resume else "the same command with --resume"
                    raise RunError(
                        f"stopped after step {trainer.step} of {settings.iterations}; {again} goes on from there"
                    )
        if first_step == settings.iterations:
            LOG.info("the run was complete already")
            trainer.save()  # its weights may have been moved away
        if record:
            record.close()
        if trainer.mean:
            trainer.detector.load_state_dict(trainer.written_weights())
        return trainer.detector.eval()
    finally:
        trainer.group.close()


def compute_losses(
    detector: Detector, batch: dict, dtype: torch.dtype, heads_dtype: torch.dtype = torch.float32
) -> dict:
    """mmdet's losses of a batch; encoder and neck run in `dtype`, the heads in `heads_dtype`, losses in float32."""
    device = next(detector.parameters()).device
    images = batch["images"].to(device, memory_format=torch.channels_last, non_blocking=True)
    boxes = [b.to(device) for b in batch["gt_bboxes"]]
    labels = [b.to(device) for b in batch["gt_labels"]]
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        levels = detector.extract_feat(images)
    levels = tuple(level.float() for level in levels)
    extra = {}
    if getattr(detector.roi_head, "with_semantic", False):
        extra["gt_semantic_seg"] = semantic_maps(batch, detector.roi_head.semantic_head.num_classes).to(device)
    with heads_in(detector, heads_dtype):
        rpn_losses, proposals = detector.rpn_head.forward_train(
            levels, batch["img_metas"], boxes, proposal_cfg=detector.train_cfg.rpn_proposal
        )
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


def set_training_mode(detector: Detector, is_norm_frozen: bool) -> None:
    """Training mode, with `is_norm_frozen` but for BatchNorm, which then keeps its running statistics."""
    detector.train()
    if is_norm_frozen:
        for module in detector.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def outlive_signals(worker: int) -> None:
    """Let a process that makes crops outlive what stops the run, whose last step needs its crops.

    A terminal sends Ctrl-C to it too, a scheduler SIGTERM. By SIGTERM its parent ends it as well, and may.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none: nothing tells there who sent a signal
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_when_told, args=(os.getppid(),), daemon=True).start()


def end_when_told(parent: int) -> None:
    """End this process at the first SIGTERM, which must be blocked, that the process `parent` sends it."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of the first one; a second SIGINT interrupts as usual."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logging.getLogger("kernel").warning("stopping after this step; a second Ctrl-C stops at once, unsaved")

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
