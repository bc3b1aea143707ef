"""At which scale a training shows its images, and which one its weights tell of."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from kernel.images.zoom import COMPETITION_PIXEL_UM, is_same_scale
from kernel.log import LOG
from kernel.scale import told_pixel_um
from kernel.training.samples import TrainingImage


@dataclass(frozen=True)
class TrainingScale:
    """The sides of pixels that a training meets, in micrometres."""

    shown_um: tuple[float, ...]  # of its images, ascending; of those where it is known
    init: Path | None  # the weights to start from ...
    init_um: float | None  # ... what they tell of theirs; None: nothing ...
    known_um: float | None  # ... and what they know: a member's also where it tells nothing; None: not known

    @classmethod
    def of(cls, images: Iterable[TrainingImage], init: Path | None, is_member: bool) -> TrainingScale:
        """The scale of these images, for a training that starts from `init`, which may be a member that is trained on.

        Raises:
            InputError: as `told_pixel_um`.
        """
        shown_um = {image.pixel_um for image in images if image.pixel_um is not None}
        init_um = None if init is None else told_pixel_um(init)
        return cls(tuple(sorted(shown_um)), init, init_um, init_um or (COMPETITION_PIXEL_UM if is_member else None))

    @property
    def weights_um(self) -> float | None:
        """What the new weights tell: the size of the images' pixels, where it is known and one; else `init`'s."""
        if not self.shown_um:
            return self.init_um
        first, last = self.shown_um[0], self.shown_um[-1]
        is_as_before = self.known_um is not None and is_same_scale(first, self.known_um)
        return first if is_same_scale(first, last) and not is_as_before else self.init_um

    def tell(self) -> None:
        """Say where images are shown at several scales, or at another one than `init` knows; and which one is taken
        for that of images that do not tell it."""
        if not self.shown_um:
            if self.init_um is not None:
                LOG.info(
                    "images do not tell the size of their pixels, which is taken as %s has it: %.4g um",
                    self.init, self.init_um,
                )  # fmt: skip
            return
        known = self.known_um or self.shown_um[0]
        if not all(is_same_scale(pixel_um, known) for pixel_um in self.shown_um):
            sizes = ", ".join(f"{pixel_um:.4g}" for pixel_um in self.shown_um)
            begun = "" if self.known_um is None else f", and {self.init} knows those of {known:.4g} um"
            LOG.warning(
                "images are shown with pixels of %s um%s; for the new weights, predict will show those of %.4g um "
                "(`prepare --member-pixel-size` shows images as members know them)",
                sizes, begun, self.weights_um or COMPETITION_PIXEL_UM,
            )  # fmt: skip
