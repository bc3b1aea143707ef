"""The training loop: mmdet's losses of crops, warm-up and linear decay of the rate; stopped and resumed at any step."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from tqdm import tqdm

from kernel.ensemble.fallbacks import means_out_of_memory
from kernel.errors import InputError, RunError
from kernel.files import writing
from kernel.locks import sole_writer
from kernel.log import LOG
from kernel.models.checkpoints import load_detector, recognise_checkpoint
from kernel.models.detectors import Detector
from kernel.training.batches import MicroBatches
from kernel.training.evaluation import evaluate_detector
from kernel.training.learner import Learner
from kernel.training.processes import ProcessGroup, is_first_process
from kernel.training.record import RunRecord
from kernel.training.run import TrainingRun
from kernel.training.signals import Stopped, Stops, stop_signals
from kernel.training.state import RunState, read_state, save_state, save_weights
from kernel.training.step import set_training_mode

#: A loss from which no training comes back: sound ones begin below 20.
ABSURD_LOSS = 1e4


class Trainer:
    """One run, from where it stands: its steps, evaluations and states."""

    def __init__(self, run: TrainingRun):
        self.run, self.settings = run, run.settings
        self.group = ProcessGroup(run.device)
        self.learner = Learner(run, self.group)
        self.micro_batches = MicroBatches(run, self.group)
        self.step = 0
        self.best_score = -1.0
        self.is_evaluated = True  # false: an evaluation is due after this step

    @property
    def is_finished(self) -> bool:
        return self.step == self.settings.iterations

    @property
    def has_evaluation(self) -> bool:
        """Whether this step ends with an evaluation: each `evaluate_every`, and the last."""
        return self.run.has_evaluations and (self.is_finished or self.step % self.settings.evaluate_every == 0)

    @property
    def is_saved(self) -> bool:
        """Whether this step ends with a state on disk: each `checkpoint_every`, and the last."""
        every = self.settings.checkpoint_every
        return self.is_finished or bool(every and self.step % every == 0)

    def save(self) -> None:
        """Write the weights, and the state to resume from.

        Raises:
            RunError: they cannot be written.
        """
        self.group.share_buffers(self.learner.detector)
        self.write()

    def write(self) -> None:
        """`save` where the processes' buffers are shared already.

        Raises:
            RunError: as `save`.
        """
        if self.group.is_first:
            save_weights(self.learner.weights(), self.run.out, self.run.half, self.run.record(self.step))
            if self.run.replace and self.best_score < 0:  # what is there is the earlier run's
                self.run.remove_evaluations()
            parts = self.learner.state_dicts()
            state = RunState(
                self.step, self.run.fingerprint, parts, self.best_score, self.is_evaluated, self.group.size
            )
            save_state(state, self.run.state_path)

    def restore(self) -> None:
        """Go on from the state beside the weights, if there is one.

        Raises:
            InputError: it is another run's, or one of another number of processes; or the processes would go on after
                different steps.
        """
        path = self.run.state_path
        if path.is_file():
            state = read_state(path, self.run.fingerprint, self.run.differences)
            if state.processes not in (None, self.group.size) and state.step < self.settings.iterations:
                raise InputError(
                    f"{path} is of a run of {state.processes} process(es), and this is one of {self.group.size}: each "
                    "trains on batches of its own, so that another number would go on with other crops. Resume with as "
                    "many (torchrun --nproc-per-node), or start anew with another --out (or delete the file)"
                )
            self.learner.load_state_dicts(state.parts)
            self.step, self.best_score = state.step, state.best_score
            self.is_evaluated = state.is_evaluated or not self.run.has_evaluations
            LOG.info("resumed after step %d of %d", self.step, self.settings.iterations)
        steps = self.group.all_of(self.step)
        if len(set(steps)) > 1:  # only the first process writes it, and machines need not share a disk
            raise InputError(
                f"the processes would go on after the steps {', '.join(map(str, steps))}: copy {path.name}, as the "
                f"first process wrote it, to {path} on every machine"
            )

    def take_step(self, batches: Iterator[dict[str, Any]], stops: Stops) -> tuple[float, dict[str, float]]:
        """One optimizer step on the next micro-batches.

        A signal while the first of them is waited for is heard at once, where this process is alone.

        Returns:
            The loss, and its terms before weighting; means over this process's micro-batches.

        Raises:
            RunError: the loss is no number, or absurd; names the crops.
            Stopped: by a signal, before anything has changed.
        """
        settings = self.settings
        epoch = 1 + self.step * settings.epochs // settings.iterations
        total, sums, crops = 0.0, dict[str, float](), list[str]()
        set_training_mode(self.learner.detector, settings.is_norm_frozen)
        for micro in range(settings.accumulation):
            # mmdet's samplers draw from torch: by its number each micro-batch draws the same in any run.
            torch.manual_seed(settings.seed * 1_000_003 + self.micro_batches.number(self.step, micro))
            with stops.waiting() if micro == 0 and self.group.size == 1 else nullcontext():
                batch = next(batches)
            crops += [
                f"{name} ({len(labels)} cells)" for name, labels in zip(batch["names"], batch["gt_labels"], strict=True)
            ]
            with self.enough_memory_for(crops):
                loss, terms = self.learner.losses(batch, epoch)
                if self.group.any_of(not loss.item() < ABSURD_LOSS):
                    what = "absurd" if math.isfinite(loss.item()) else "no number"
                    raise RunError(
                        f"the loss is {what} in step {self.step}; in this process it is {loss.item()}, of the terms "
                        f"{terms}, on the crops {', '.join(batch['names'])}: lower learning_rate, or look at these "
                        "images"
                    )
                self.learner.backward(loss)
            total += loss.item() / settings.accumulation
            for term, value in terms.items():
                sums[term] = sums.get(term, 0.0) + value / settings.accumulation
        with self.enough_memory_for(crops):  # in the first step the optimizer's moments are made
            self.learner.update()
        self.step += 1
        return total, sums

    @contextmanager
    def enough_memory_for(self, crops: Sequence[str]) -> Iterator[None]:
        """Where memory is missing within the block, name the crops and what can be done.

        Raises:
            RunError: it is.
        """
        try:
            yield
        except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
            if not means_out_of_memory(error):
                raise
            raise RunError(
                f"too little memory in step {self.step} for the crops {', '.join(crops)}: lower crop_size or "
                "batch_size, or raise accumulation"
            ) from error

    def evaluate(self, record: RunRecord | None, stops: Stops) -> None:
        """Score the weights so far on the validation images; save them as the best where they are.

        The state is saved before, for it takes long; stopped between two images, the evaluation is still due.
        """
        self.is_evaluated = False
        self.save()
        detector = self.learner.detector
        if record is None:
            self.is_evaluated = True  # the first process's state is the one that counts
            return
        pictures = self.run.evaluations / f"step_{self.step}"
        with self.learner.averaged(), writing(pictures, RunError):
            results = evaluate_detector(
                detector, self.run.spec.kind, self.run.validation, self.group.device, pictures, lambda: bool(stops)
            )
        detector.to(memory_format=torch.channels_last)  # as it is trained; float32 on a GPU is evaluated without
        if results is None:
            return
        self.is_evaluated = True
        score = record.add_evaluation(self.step, results)
        if score > self.best_score:
            self.best_score = score
            save_weights(self.learner.weights(), self.run.best_path, self.run.half, self.run.record(self.step))
        self.write()

    def train(self, record: RunRecord | None) -> None:
        """Take the steps that are left, with the evaluations and states that fall due; `record` is the first process's.

        Raises:
            RunError: the loss is no number, the disk is full, or a signal stopped the run; its state is then saved.
        """
        started, first_step = time.perf_counter(), self.step
        progress = tqdm(
            range(first_step, self.settings.iterations), initial=first_step, total=self.settings.iterations,
            unit="step", mininterval=10, disable=not self.group.is_first,
        )  # fmt: skip
        with stop_signals() as stops:
            if not self.is_evaluated:  # the run was stopped in this evaluation
                self.evaluate(record, stops)
                self.stop_if_asked(stops)
            batches = self.micro_batches.batches(first_step)
            for _ in progress:
                try:
                    loss, terms = self.take_step(batches, stops)
                except Stopped:
                    self.stop_if_asked(stops)
                    raise
                if record:
                    crops = (self.step - first_step) * self.settings.batch_size * self.group.size
                    speed = crops / (time.perf_counter() - started)
                    record.add_step(self.step, loss, terms, self.learner.learning_rate, speed)
                progress.set_postfix(loss=f"{loss:.3f}", refresh=False)
                if self.has_evaluation:
                    self.evaluate(record, stops)
                elif self.is_saved:
                    self.save()
                self.stop_if_asked(stops)

    def stop_if_asked(self, stops: Stops) -> None:
        """End the run after this step, its state saved, if a signal came to any process and something is left to do.

        Raises:
            RunError: says how to go on.
        """
        is_left = self.group.any_of(not (self.is_finished and self.is_evaluated))
        if self.group.any_of(bool(stops)) and is_left:
            self.save()
            self.group.any_of(False)  # one that ended before the first has written would have torchrun end that too
            again = "the same command" if self.run.resume else "the same command with --resume"
            raise RunError(f"stopped after step {self.step} of {self.settings.iterations}; {again} goes on from there")


def train_detector(run: TrainingRun) -> Detector:
    """Train, and write the weights to `run.out`; beside them the settings, a log, a picture of the loss, and the state.

    On SIGINT or SIGTERM the state is saved, and the message of the error says how to go on.

    Returns:
        The trained detector, in eval mode.

    Raises:
        InputError: images or settings that cannot be trained with.
        RunError: the loss is no number, the disk is full, or a signal stopped the run.
    """
    run.check()
    with sole_writer(run.out) if is_first_process() else nullcontext():
        return train_alone(run)


def train_alone(run: TrainingRun) -> Detector:
    """`train_detector` of a run that was checked and that nobody else writes."""
    if run.is_complete and not run.state_path.exists() and not run.replace:
        LOG.info("%s is this run's finished member already", run.out)
        record = recognise_checkpoint(run.out)
        return load_detector(run.out, record.kind, record.encoder)
    run.refuse_to_overwrite()  # once more, with nobody else at it
    if is_first_process():
        run.remove_unfinished()
        if run.replace:
            run.state_path.unlink(missing_ok=True)
    trainer = Trainer(run)
    if run.resume:
        trainer.restore()
    record = RunRecord(run, trainer.step, trainer.is_evaluated) if trainer.group.is_first else None
    if trainer.is_finished:
        LOG.info("the run was complete already")
        trainer.save()  # its weights may have been moved away
    trainer.train(record)
    if record:
        record.close()
    trainer.group.close()  # not after a failure: the others may never come to it
    return trainer.learner.finished()
