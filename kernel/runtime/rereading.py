"""Images that cannot be read just now: they are tried again after all others, as a mount may be away for a while."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from kernel.log import LOG, printable_name
from kernel.patience import patience_pauses
from kernel.runtime.failures import FailedImage


class NamedImage(Protocol):
    """An image by its path, or what else knows it by a name."""

    @property
    def name(self) -> str: ...

    def __hash__(self) -> int: ...


Image = TypeVar("Image", bound=NamedImage)


@dataclass
class Rereading(Generic[Image]):
    """Which images are to be read again, and when.

    Each is tried once more after all others; where the system is the cause, again and again after longer and longer
    pauses.
    """

    unread: dict[Image, FailedImage] = field(default_factory=dict)  # to be tried again
    tries: Counter[Image] = field(default_factory=Counter)  # how often each was tried again
    pauses: tuple[float, ...] = field(default_factory=lambda: (0.0, *patience_pauses(4)))  # before each, in seconds

    def takes(self, image: Image, failure: FailedImage) -> bool:
        """Whether an image that failed is to be tried again; the log tells the first time."""
        if not failure.wrong_input or self.tries[image] >= (len(self.pauses) if failure.may_pass else 1):
            return False
        if not self.tries[image]:
            LOG.warning("image %s is tried again after all others: %s", printable_name(image.name), failure.reason)
        self.unread[image] = failure
        return True

    def pause(self) -> float:
        """How many seconds to wait before the next attempt; there must be unread images."""
        return self.pauses[min(self.tries[image] for image in self.unread)]

    def release(self) -> list[Image]:
        """The unread images, which are tried again now."""
        images = list(self.unread)
        self.tries.update(images)
        self.unread.clear()
        return images
