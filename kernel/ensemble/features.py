"""The members' features of one image: computed once for all stages, as far as memory allows."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch

from kernel.ensemble.members import Member
from kernel.ensemble.networks import NetworkRunner
from kernel.ensemble.proposals import RpnMaps, compute_rpn_maps
from kernel.ensemble.views import IDENTITY, View, view_images
from kernel.models.detectors import ViewFeatures


class StageClock:
    """Measures the seconds of each stage. On a GPU it waits for the device, so that each stage has its own work."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds inside the context to `name`, without those of stages nested in it."""
        start, before = time.perf_counter(), sum(self.seconds.values())
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start - (sum(self.seconds.values()) - before)


class ImageFeatures:
    """The members' features of one image: computed when first asked for, then kept for later stages.

    Features beyond the budget are computed anew each time, which costs time and changes nothing else. RPN maps, which
    are small, are always kept.

    Args:
        networks: who computes them, and on which device.
        image_bgr: (H, W, 3) uint8 BGR.
        budget_bytes: how many bytes are kept; None: the budget of `networks`.
    """

    def __init__(self, networks: NetworkRunner, image_bgr: np.ndarray, budget_bytes: int | None = None):
        self.networks = networks
        self.image_bgr = image_bgr
        self.image_shape: tuple[int, int] = image_bgr.shape[:2]
        self.clock = StageClock(networks.device)
        self.budget_bytes = networks.feature_budget_bytes if budget_bytes is None else budget_bytes
        self.used: list[str] = []  # names of the members that were run
        self._kept: dict[tuple[str, tuple[View, ...]], ViewFeatures] = {}
        self._rpn_maps: dict[str, RpnMaps] = {}
        self._inputs: dict[tuple[View, ...], torch.Tensor] = {}

    def get(self, member: Member, views: tuple[View, ...]) -> ViewFeatures:
        """The member's features, the views as one batch.

        Raises:
            NotFiniteError: numbers overflow.
        """
        key = (member.name, views)
        if key in self._kept:
            return self._kept[key]
        if member.name not in self.used:
            self.used.append(member.name)
        with self.clock.stage("features"):
            if views not in self._inputs:
                self._inputs[views] = view_images(self.image_bgr, views, self.networks.device).contiguous(
                    memory_format=self.networks.memory_format
                )
            features = self.networks.compute_features(member, self._inputs[views])
        size = features_bytes(features)
        if size <= self.budget_bytes:
            self.budget_bytes -= size
            self._kept[key] = features
        return features

    def rpn_maps(self, member: Member) -> RpnMaps:
        """The member's RPN maps of the identity view.

        Raises:
            NotFiniteError: numbers overflow.
        """
        if member.name not in self._rpn_maps:
            levels = self.get(member, (IDENTITY,)).levels
            with self.networks.arithmetic():
                self._rpn_maps[member.name] = compute_rpn_maps(member.detector, levels)
        return self._rpn_maps[member.name]


def features_bytes(features: ViewFeatures) -> int:
    """Bytes that features take."""
    return sum(t.numel() * t.element_size() for t in features.tensors)
