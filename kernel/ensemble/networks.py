"""How the members' networks are run: on which device, in which arithmetic, how many views at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from kernel.ensemble.members import Member
from kernel.ensemble.views import ALL_VIEWS, IDENTITY, View
from kernel.models.detectors import ViewFeatures, compute_features


class NotFiniteError(RuntimeError):
    """A network's numbers overflow: they leave the dtype's range, or its weights are broken."""


@dataclass(frozen=True)
class Tiling:
    """Which images are predicted in tiles, and how."""

    whole_pixels: int  # padded images of more are
    side: int  # of a tile, at most
    feature_bytes: int  # of one tile's features that are kept between the stages, at most
    on_cpu: Tiling | None = None  # of a GPU: for an image that the CPU takes over, with the memory that the host has


class NetworkRunner:
    """Runs the networks of members that share a device.

    Args:
        members: their detectors are moved to the device.
        device: where they run.
        dtype: what the networks compute in, from encoder to heads. float32 is exact; float16 (CUDA only) and bfloat16
            run under autocast. RoIAlign, softmax, sigmoid, decoded boxes and all averages stay float32.
        views_per_batch: how many views go through a network at once; 1 needs the least memory.
        feature_budget_bytes: of features kept between the stages of one image; others are computed anew.
        tiling: for images too large for the memory; None: all are predicted whole.
    """

    def __init__(
        self,
        members: Sequence[Member],
        device: torch.device | str,
        dtype: torch.dtype,
        views_per_batch: int,
        feature_budget_bytes: int,
        tiling: Tiling | None,
    ):
        self.members = tuple(members)
        self.dtype = dtype
        self.views_per_batch = views_per_batch
        self.feature_budget_bytes = feature_budget_bytes
        self.tiling = tiling
        self.move_to(device)

    def move_to(self, device: torch.device | str) -> None:
        """Move all members to a device, and run there from now on."""
        there = torch.device(device)
        for member in self.members:
            member.detector.to(there, memory_format=memory_format_of(there, self.dtype)).eval()
        self.device = there

    def run_as(self, other: NetworkRunner) -> None:
        """Run as `other` is run just now, whose members' detectors these are: they are where it has moved them."""
        self.device, self.dtype, self.tiling = other.device, other.dtype, other.tiling
        self.views_per_batch, self.feature_budget_bytes = other.views_per_batch, other.feature_budget_bytes

    def drop_weights(self) -> None:
        """Free the memory of all members' weights: whoever still holds one of them keeps its name and uses alone."""
        for member in self.members:
            member.detector.to("meta")

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory layout of the networks' tensors."""
        return memory_format_of(self.device, self.dtype)

    def arithmetic(self) -> torch.autocast:
        """The context in which networks compute in the ensemble's dtype."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def compute_features(self, member: Member, images: torch.Tensor) -> ViewFeatures:
        """A member's features, float32, of normalised images (V, 3, H, W).

        Raises:
            NotFiniteError: numbers overflow.
        """
        features = self.unchecked_features(member, images)
        require_finite(f"features of {member.name}", features.tensors)
        return features

    def unchecked_features(self, member: Member, images: torch.Tensor) -> ViewFeatures:
        """`compute_features`, whatever the numbers are."""
        with self.arithmetic():
            computed = compute_features(member.detector, images)
        semantic = None if computed.semantic is None else self.lay_out(computed.semantic)
        return ViewFeatures(tuple(self.lay_out(level) for level in computed.levels), semantic)

    def lay_out(self, fmap: torch.Tensor) -> torch.Tensor:
        """A feature map as the RoI extractors take it: float32, and on a GPU contiguous.

        RoIAlign would otherwise copy it for each batch of boxes.
        """
        return fmap.float().contiguous() if self.device.type == "cuda" else fmap.float()

    def view_batches(self, all_views: bool) -> tuple[tuple[View, ...], ...]:
        """The views of a stage in batches: all four, or identity alone.

        Identity is always a batch of its own: proposals need it without the others.
        """
        flips = ALL_VIEWS[1:] if all_views else ()
        step = self.views_per_batch
        return ((IDENTITY,), *(tuple(flips[i : i + step]) for i in range(0, len(flips), step)))


def memory_format_of(device: torch.device, dtype: torch.dtype) -> torch.memory_format:
    """The memory layout in which networks on a device are fastest in a dtype.

    Channels last is faster on CPUs, and on a GPU in 16 bits, by its tensor cores; cuDNN's float32 convolutions are
    slower with it (pytorch/pytorch issue 44943).
    """
    is_exact_on_gpu = device.type == "cuda" and dtype == torch.float32
    return torch.contiguous_format if is_exact_on_gpu else torch.channels_last


def require_finite(what: str, tensors: Sequence[torch.Tensor]) -> None:
    """Raise NotFiniteError where a tensor holds NaN or infinity: it passes no threshold, so its cells would be lost.

    A tensor's sum is finite only if all its numbers are, so one pass and one answer of the device suffice.
    """
    if not torch.stack([tensor.sum() for tensor in tensors]).isfinite().all():
        raise NotFiniteError(f"not all numbers are finite in the {what}")
