"""Which crops each process trains on in each step: micro-batches, numbered over steps, accumulation and processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from kernel.errors import RunError
from kernel.log import LOG
from kernel.training.augment import Augmentation
from kernel.training.crops import CropDataset
from kernel.training.extra import ExtraSchedule
from kernel.training.processes import ProcessGroup
from kernel.training.run import TrainingRun
from kernel.training.samples import Sample, collate, packed, unpacked
from kernel.training.signals import outlive_signals

#: Seconds to wait for a micro-batch: crops take a second or two each, also on a machine that is busy.
LONGEST_WAIT = 300


class MicroBatches:
    """The micro-batches of this process. What each holds follows from its number alone, whoever computes it."""

    def __init__(self, run: TrainingRun, group: ProcessGroup):
        self.run, self.settings, self.group = run, run.settings, group

    def number(self, step: int, micro: int) -> int:
        """The number of a step's micro-batch `micro`, 0 <= `micro` < accumulation."""
        return (step * self.settings.accumulation + micro) * self.group.size + self.group.rank

    def samples(self, first_step: int) -> Iterator[list[int]]:
        """The indices of each micro-batch's crops in the data set, from `first_step` to the end of the run."""
        size = self.settings.micro_batch_size
        for step in range(first_step, self.settings.iterations):
            for micro in range(self.settings.accumulation):
                first = self.number(step, micro) * size
                yield list(range(first, first + size))

    def loader(self, first_step: int, workers: int) -> DataLoader:
        """Makes the micro-batches from `first_step` on, packed; the same ones whatever the number of workers."""
        settings = self.settings
        dataset = CropDataset(
            self.run.images,
            settings.iterations * settings.batch_size * self.group.size,
            settings.crop_size,
            settings.seed,
            settings.flip_paste,
            self.run.extra,
            ExtraSchedule(settings.extra_share, settings.extra_until).chance,
            Augmentation(settings.rotate, settings.zoom, settings.contrast),
        )
        return DataLoader(
            dataset,
            batch_sampler=list(self.samples(first_step)),
            collate_fn=collate_packed,
            num_workers=workers,
            worker_init_fn=outlive_signals,
            timeout=LONGEST_WAIT if workers else 0,
        )

    def batches(self, first_step: int) -> Iterator[dict[str, Any]]:
        """The micro-batches from `first_step` on, as `collate` gives them; what it draws of torch it draws at once.

        Raises:
            RunError: when its turn comes: a process that makes crops died, or gives none any more.
        """
        workers = self.settings.workers
        try:
            made = iter(self.loader(first_step, workers))
        except OSError as error:  # semaphores lie in /dev/shm
            if not workers:
                raise
            LOG.warning(
                "no processes to make crops can be started (%s): this one makes them, to the same weights", error
            )
            workers, made = 0, iter(self.loader(first_step, 0))
        return received(made, workers)


def received(made: Iterator[dict[str, Any]], workers: int) -> Iterator[dict[str, Any]]:
    """The batches of a loader with so many workers, unpacked.

    Raises:
        RunError: a worker failed.
    """
    while True:
        try:
            batch = next(made)
        except StopIteration:
            return
        except RuntimeError as error:
            if not workers:
                raise
            reason = str(error).strip().splitlines()[-1]
            raise RunError(
                f"the processes that make crops failed ({reason}), of too little memory most likely: run the same "
                "again with fewer --workers, or --workers 0"
            ) from error
        yield unpacked(batch)


def collate_packed(samples: Sequence[Sample]) -> dict[str, Any]:
    """A batch as it goes from process to process."""
    return packed(collate(samples))
