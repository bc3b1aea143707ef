"""Which crops each process trains on in each step: micro-batches, numbered over steps, accumulation and processes."""

from __future__ import annotations

from collections.abc import Iterator

from torch.utils.data import DataLoader

from kernel.training.augment import Augmentation
from kernel.training.crops import CropDataset
from kernel.training.extra import ExtraSchedule
from kernel.training.processes import ProcessGroup
from kernel.training.run import TrainingRun
from kernel.training.samples import collate
from kernel.training.signals import outlive_signals


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

    def loader(self, first_step: int) -> DataLoader:
        """Makes the micro-batches from `first_step` on; the same ones whatever the number of workers."""
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
            collate_fn=collate,
            num_workers=settings.workers,
            worker_init_fn=outlive_signals,
            pin_memory=self.group.device.type == "cuda",
        )
