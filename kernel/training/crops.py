"""The random crops of a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from kernel.training.augment import Augmentation
from kernel.training.samples import Sample, TrainingImage, cut_sample, flip_paste, large_cells

#: How often a crop is drawn anywhere, until it has a cell; then as often around one, as few would be met by chance in
#: a large image. A turned crop may miss that one too.
CROP_TRIES = 20
NO_AUGMENTATION = Augmentation()


class CropDataset(Dataset[Sample]):
    """Random crops: sample `index` is a function of the seed and the index alone, whatever worker makes it.

    Each block of as many samples as there are cell types has one of each, in an order of its own: else batches, and
    processes, would meet the same few types again and again. Each image of a type is equally likely.

    Args:
        images: of the competition's types; those without cells teach what is none.
        length: number of samples.
        crop_size: side in pixels.
        seed: of all random numbers.
        paste_chance: of `flip_paste`, for cort images alone: their cells are sparse.
        extra: images that a crop is cut from in place of `images`, each equally likely.
        extra_chance: how likely that is, by the share of samples that lie before, 0 to 1; None: never.
        augmentation: of all crops.
    """

    def __init__(
        self,
        images: Sequence[TrainingImage],
        length: int,
        crop_size: int,
        seed: int,
        paste_chance: float = 0.0,
        extra: Sequence[TrainingImage] = (),
        extra_chance: Callable[[float], float] | None = None,
        augmentation: Augmentation = NO_AUGMENTATION,
    ):
        self.by_type: dict[str, list[TrainingImage]] = {}
        for image in images:
            self.by_type.setdefault(image.cell_type, []).append(image)
        self.length = length
        self.crop_size = crop_size
        self.seed = seed
        self.paste_chance = paste_chance
        self.extra = extra
        self.extra_chance = extra_chance
        self.augmentation = augmentation

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng((self.seed, index))
        images = self.extra if self.is_extra(index) else self.by_type[self.cell_type(index)]
        image = images[rng.integers(len(images))]
        height, width = image.image_bgr.shape[:2]
        may_paste = self.paste_chance > 0 and image.cell_type == "cort"
        cut = flip_paste if may_paste and rng.random() < self.paste_chance else cut_sample
        sample = None
        for number in range(2 * CROP_TRIES):
            turn = self.augmentation.draw_turn(rng)
            side = turn.side(self.crop_size)
            if number < CROP_TRIES:
                top, left = (self.augmentation.draw_start(rng, length, side) for length in (height, width))
            elif len(cells := large_cells(image)):
                top, left = draw_around(image, rng.choice(cells), side, rng)
            else:
                break
            flips = (bool(rng.integers(2)), bool(rng.integers(2)))
            sample = cut(image, top, left, side, flips)
            sample = self.augmentation.apply(sample, turn, rng, self.crop_size)
            if len(sample.labels) or not image.crops:
                break
        assert sample is not None
        return sample

    def cell_type(self, index: int) -> str:
        """The cell type that is sample `index`'s turn."""
        block, place = divmod(index, len(self.by_type))
        order = np.random.default_rng((self.seed, block, 2)).permutation(len(self.by_type))
        return sorted(self.by_type)[order[place]]

    def is_extra(self, index: int) -> bool:
        """Whether sample `index` is cut from an extra image.

        This is drawn from random numbers of its own, so that the other samples are those of a run without extra images.
        """
        if not self.extra or self.extra_chance is None:
            return False
        return np.random.default_rng((self.seed, index, 1)).random() < self.extra_chance(index / self.length)


def draw_around(image: TrainingImage, cell: int, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """Top and left of a square of `side` inside the image that holds a cell, or as much of it as there is room for."""
    starts = []
    for axis, length in enumerate(image.crops[cell].shape):
        first, last = image.offsets_yx[cell, axis], max(image.image_bgr.shape[axis] - side, 0)
        low, high = np.clip(sorted((first + length - side, first)), 0, last)
        starts.append(int(rng.integers(low, high + 1)))
    return starts[0], starts[1]
