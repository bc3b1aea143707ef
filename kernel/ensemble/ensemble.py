"""The ensemble: members, which of them an image needs, and the stages from image to mask probabilities."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from kernel.ensemble.boxes import Detections, MergedBoxes, merge_boxes, predict_view_boxes, scale_boxes, select_boxes
from kernel.ensemble.masks import merge_masks, predict_view_masks, score_masks
from kernel.ensemble.proposals import Proposals, RpnMaps, compute_rpn_maps, merge_rpn_maps, select_proposals
from kernel.ensemble.views import ALL_VIEWS, IDENTITY, View, view_images
from kernel.errors import InputError
from kernel.models.detectors import Detector, ViewFeatures, compute_features, mask_size
from kernel.settings import (
    CELL_TYPES,
    CLS_USE,
    EQUAL_WEIGHTS,
    EnsembleSettings,
    StageWeights,
    needed_stages,
    types_differ,
)


class NotFiniteError(RuntimeError):
    """Numbers went beyond a dtype's range, or weights are broken."""


@dataclass(frozen=True)
class Member:
    """A loaded detector and what it is used for."""

    name: str
    kind: str  # a key of DETECTOR_KINDS
    detector: Detector
    use_for: frozenset[str]  # of CELL_TYPES and "cls"
    weights: StageWeights = EQUAL_WEIGHTS  # in the averages with other members


@dataclass(frozen=True)
class Prediction:
    """What the ensemble says of one image. N cells, best first; all tensors float32 on the CPU, labels int64."""

    image_shape: tuple[int, int]  # (H, W)
    cell_type: str  # whose members and thresholds were used
    level_counts: tuple[int, ...]  # confident positions per FPN level
    boxes_xyxy: torch.Tensor  # (N, 4) pixels; those that the masks fill
    scores: torch.Tensor  # (N,)
    labels: torch.Tensor  # (N,) indices into CELL_TYPES
    mask_probs: torch.Tensor  # (N, 28, 28) probability of the box's own class
    members: tuple[str, ...]  # the names of the members that were run
    seconds: Mapping[str, float]  # per stage: features, proposals, boxes, masks


@dataclass(frozen=True)
class FoundBoxes:
    """An image's final boxes, and how they came about."""

    cell_type: str  # whose members and thresholds were used
    members: tuple[Member, ...]
    proposals: Proposals
    boxes: Detections  # in which masks are to be predicted: `mask_box_scale` times as large as the members said


class StageClock:
    """Adds up seconds per stage. On a GPU it waits for the device, so that each stage is charged its own work."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Charge the body to `name`, less what nested stages are charged."""
        start, charged = time.perf_counter(), sum(self.seconds.values())
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start - (sum(self.seconds.values()) - charged)


class ImageFeatures:
    """The members' features of one image: computed when first asked for, kept for the later stages within a budget.

    Beyond `budget_bytes` features are computed anew each time, which costs time and changes nothing else. The maps of
    their RPNs, which are small, are always kept.
    """

    def __init__(self, ensemble: Ensemble, image_bgr: np.ndarray, clock: StageClock, budget_bytes: int):
        self.ensemble = ensemble
        self.image_bgr = image_bgr
        self.image_shape: tuple[int, int] = image_bgr.shape[:2]
        self.clock = clock
        self.budget_bytes = budget_bytes
        self.used: list[str] = []
        self._kept: dict[tuple[str, tuple[View, ...]], ViewFeatures] = {}
        self._rpn_maps: dict[str, RpnMaps] = {}
        self._inputs: dict[tuple[View, ...], torch.Tensor] = {}

    def get(self, member: Member, views: tuple[View, ...]) -> ViewFeatures:
        """The member's features of `views` as one batch."""
        key = (member.name, views)
        if key in self._kept:
            return self._kept[key]
        if member.name not in self.used:
            self.used.append(member.name)
        with self.clock.stage("features"):
            if views not in self._inputs:
                self._inputs[views] = view_images(self.image_bgr, views, self.ensemble.device).contiguous(
                    memory_format=self.ensemble.memory_format
                )
            features = self.ensemble.compute_features(member, self._inputs[views])
        size = features_bytes(features)
        if size <= self.budget_bytes:
            self.budget_bytes -= size
            self._kept[key] = features
        return features

    def rpn_maps(self, member: Member) -> RpnMaps:
        """What the member's RPN says of the identity view."""
        if member.name not in self._rpn_maps:
            levels = self.get(member, (IDENTITY,)).levels
            with self.ensemble.arithmetic():
                self._rpn_maps[member.name] = compute_rpn_maps(member.detector, levels)
        return self._rpn_maps[member.name]


def features_bytes(features: ViewFeatures) -> int:
    """The memory that features take."""
    return sum(t.numel() * t.element_size() for t in features.tensors)


class Ensemble:
    """Members that are averaged inside the network.

    Parameters:
        members: at least one for each cell type. They must agree on anchors, number of classes and mask size.
        settings: thresholds per cell type and what is averaged over which views.
        device: where the members run.
        dtype: of the networks' arithmetic, encoder to heads. float32 is exact; float16 (CUDA) and bfloat16 run them
            under autocast. What counts pixels or averages stays float32: RoIAlign, softmax and sigmoid, decoded boxes.
        views_per_batch: how many views go through a network at once; 1 needs the least memory.
        feature_budget_bytes: features kept between the stages of one image; more are computed anew.

    Raises InputError where members do not fit together.
    """

    def __init__(
        self,
        members: Sequence[Member],
        settings: EnsembleSettings,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        views_per_batch: int = 1,
        feature_budget_bytes: int = 4 << 30,
    ):
        check_members_agree(members, settings)
        self.settings = settings
        self.dtype = dtype
        self.views_per_batch = views_per_batch
        self.feature_budget_bytes = feature_budget_bytes
        self.members = tuple(members)
        self.move_to(device)

    def move_to(self, device: torch.device | str) -> None:
        """Move all members to a device, and run there from now on."""
        self.device = torch.device(device)
        for member in self.members:
            member.detector.to(self.device, memory_format=self.memory_format).eval()

    @property
    def memory_format(self) -> torch.memory_format:
        """How the networks' tensors lie. Channels last is faster on CPUs, and on a GPU in short dtypes, where its
        tensor cores want it so; cuDNN's float32 convolutions are slower by it (pytorch/pytorch issue 44943).
        """
        is_exact_on_gpu = self.device.type == "cuda" and self.dtype == torch.float32
        return torch.contiguous_format if is_exact_on_gpu else torch.channels_last

    def members_for(self, use: str) -> tuple[Member, ...]:
        """The members used for a cell type, or for "cls"."""
        return tuple(member for member in self.members if use in member.use_for)

    @property
    def needs_first_pass(self) -> bool:
        """Whether the cell type must be known before the members can be: where they differ by type."""
        return types_differ(member.use_for for member in self.members)

    def arithmetic(self) -> torch.autocast:
        """The context in which networks compute in the ensemble's dtype."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def compute_features(self, member: Member, images: torch.Tensor) -> ViewFeatures:
        """A member's features of normalised images (V, 3, H, W), as float32. Raises NotFiniteError."""
        with self.arithmetic():
            computed = compute_features(member.detector, images)
        semantic = None if computed.semantic is None else self.lay_out(computed.semantic)
        features = ViewFeatures(tuple(self.lay_out(level) for level in computed.levels), semantic)
        require_finite(f"features of {member.name}", features.tensors)
        return features

    def lay_out(self, level: torch.Tensor) -> torch.Tensor:
        """A feature map as the RoI extractors take it: float32, and on a GPU contiguous, which its RoIAlign would
        otherwise make it anew for each batch of boxes."""
        return level.float().contiguous() if self.device.type == "cuda" else level.float()

    def view_batches(self, all_views: bool) -> tuple[tuple[View, ...], ...]:
        """The views of a stage in batches: the four, or identity alone.

        Identity is always a batch of its own, since proposals need it without the others.
        """
        flips = ALL_VIEWS[1:] if all_views else ()
        step = self.views_per_batch
        return ((IDENTITY,), *(tuple(flips[i : i + step]) for i in range(0, len(flips), step)))

    def image_features(self, image_bgr: np.ndarray) -> ImageFeatures:
        """Start on an image (H, W, 3) uint8 BGR: what `propose`, `box` and `mask` take."""
        return ImageFeatures(self, image_bgr, StageClock(self.device), self.feature_budget_bytes)

    def merge_maps(self, features: ImageFeatures, members: Sequence[Member]) -> RpnMaps:
        """The members' averaged RPN maps of the identity view. Raises NotFiniteError."""
        merged = merge_rpn_maps((weight, features.rpn_maps(member)) for weight, member in weigh(members, "proposals"))
        require_finite("merged RPN maps", [*merged.scores, *merged.deltas])
        return merged

    def propose(self, features: ImageFeatures, members: Sequence[Member]) -> Proposals:
        """Proposals of the members' averaged RPN maps on the identity view."""
        with features.clock.stage("proposals"):
            return select_proposals(
                self.merge_maps(features, members),
                members[0].detector.rpn_head,
                features.image_shape,
                self.settings.cell_type_rule,
                self.settings.thresholds,
            )

    def box(self, features: ImageFeatures, members: Sequence[Member], boxes_xyxy: torch.Tensor) -> MergedBoxes:
        """The members' and views' averaged answer to proposals (N, 4). Raises NotFiniteError."""
        with features.clock.stage("boxes"):
            if len(boxes_xyxy) == 0:
                return MergedBoxes(boxes_xyxy, boxes_xyxy.new_zeros((0, self.settings.num_classes)))
            merged = merge_boxes(
                (
                    weight * len(views),
                    self.box_in_views(features, member, views, boxes_xyxy),
                )
                for weight, member in weigh(members, "boxes")
                for views in self.view_batches(self.settings.use_tta)
            )
            require_finite("merged boxes", [merged.boxes_xyxy, merged.scores])
            return merged

    def box_in_views(
        self, features: ImageFeatures, member: Member, views: tuple[View, ...], boxes_xyxy: torch.Tensor
    ) -> MergedBoxes:
        """One member's mean answer of some views to proposals (N, 4)."""
        view_features = features.get(member, views)
        with self.arithmetic():
            return predict_view_boxes(
                member.kind,
                member.detector,
                view_features,
                views,
                boxes_xyxy,
                features.image_shape,
                self.settings.num_classes,
            )

    def mask(
        self,
        features: ImageFeatures,
        members: Sequence[Member],
        boxes: Detections,
        batches: Sequence[tuple[View, ...]] | None = None,
    ) -> torch.Tensor:
        """The members' and views' averaged mask probabilities (N, 28, 28) of final boxes.

        `batches` are those of `view_batches`, or some of them; None: all that the settings want. Raises NotFiniteError.
        """
        if batches is None:
            batches = self.view_batches(self.settings.use_tta_masks)
        with features.clock.stage("masks"):
            if len(boxes.boxes_xyxy) == 0:
                return boxes.boxes_xyxy.new_zeros((0, *mask_size(members[0].detector)))
            merged = merge_masks(
                (
                    weight * len(views),
                    self.mask_in_views(features, member, views, boxes),
                )
                for weight, member in weigh(members, "masks")
                for views in batches
            )
            require_finite("merged masks", [merged])
            return merged

    def mask_in_views(
        self, features: ImageFeatures, member: Member, views: tuple[View, ...], boxes: Detections
    ) -> torch.Tensor:
        """One member's mean mask probabilities (N, 28, 28) of some views for final boxes."""
        view_features = features.get(member, views)
        with self.arithmetic():
            return predict_view_masks(
                member.kind,
                member.detector,
                view_features,
                views,
                boxes.boxes_xyxy,
                boxes.labels,
                features.image_shape,
            )

    @torch.inference_mode()
    def decide_cell_type(self, features: ImageFeatures) -> str:
        """The first pass, by the members marked "cls": the most frequent label among their boxes.

        Where they find no box, what the counts of their maps say.
        """
        members = self.members_for(CLS_USE)
        proposals = self.propose(features, members)
        merged = self.box(features, members, proposals.boxes_xyxy)
        boxes = select_boxes(merged, self.settings.thresholds[proposals.cell_type], self.settings.bbox_nms)
        if len(boxes.labels) == 0:
            return proposals.cell_type
        return CELL_TYPES[int(boxes.labels.bincount().argmax())]

    def choose_members(self, features: ImageFeatures) -> tuple[str | None, tuple[Member, ...]]:
        """The cell type, by the first pass, and its members; None and all of them where all types share all."""
        if not self.needs_first_pass:
            return None, self.members
        cell_type = self.decide_cell_type(features)
        return cell_type, self.members_for(cell_type)

    @torch.inference_mode()
    def detect(self, features: ImageFeatures, cell_type: str | None = None) -> FoundBoxes:
        """The final boxes of an image that `image_features` has begun. `cell_type`: where it is known; no first pass
        is made then."""
        if cell_type is None:
            cell_type, members = self.choose_members(features)
        else:
            members = self.members_for(cell_type)
        proposals = self.propose(features, members)
        cell_type = cell_type or proposals.cell_type
        merged = self.box(features, members, proposals.boxes_xyxy)
        thresholds = self.settings.thresholds[cell_type]
        boxes = select_boxes(merged, thresholds, self.settings.bbox_nms)
        boxes_xyxy = scale_boxes(boxes.boxes_xyxy, thresholds.mask_box_scale, features.image_shape)
        return FoundBoxes(cell_type, members, proposals, replace(boxes, boxes_xyxy=boxes_xyxy))

    @torch.inference_mode()
    def predict(self, image_bgr: np.ndarray) -> Prediction:
        """Find the cells of an image (H, W, 3) uint8 BGR of any size. Only the members that it needs are run.

        Raises NotFiniteError rather than finding nothing.
        """
        return self.predict_features(self.image_features(image_bgr))

    @torch.inference_mode()
    def predict_features(self, features: ImageFeatures, cell_type: str | None = None) -> Prediction:
        """As `predict`, from features that may have been used before; as `detect` where the cell type is known."""
        found = self.detect(features, cell_type)
        masks = self.mask(features, found.members, found.boxes)
        boxes, masks = score_masks(found.boxes, masks, self.settings.mask_score_power)
        return Prediction(
            image_shape=features.image_shape,
            cell_type=found.cell_type,
            level_counts=found.proposals.level_counts,
            boxes_xyxy=boxes.boxes_xyxy.cpu(),
            scores=boxes.scores.cpu(),
            labels=boxes.labels.cpu(),
            mask_probs=masks.cpu(),
            members=tuple(features.used),
            seconds=dict(features.clock.seconds),
        )


def require_finite(what: str, tensors: Sequence[torch.Tensor]) -> None:
    """Raise NotFiniteError where a number is none: no threshold is below it, so that its cells would vanish unseen.

    Sums tell, in one pass and one answer from the device: nothing added to NaN or infinity is finite.
    """
    if not torch.stack([tensor.sum() for tensor in tensors]).isfinite().all():
        raise NotFiniteError(f"not all numbers are finite in the {what}")


def weigh(members: Sequence[Member], stage: str) -> list[tuple[float, Member]]:
    """The members that count at a stage, a field of `StageWeights`, with their weights there; the largest is 1.

    Scaled so, equal weights are exactly 1, and what is averaged by them is the plain mean to the last bit.
    """
    weights = [float(getattr(member.weights, stage)) for member in members]
    return [(weight / max(weights), member) for weight, member in zip(weights, members, strict=True) if weight > 0]


def check_members_agree(members: Sequence[Member], settings: EnsembleSettings) -> None:
    """Raise InputError unless all members can be averaged: same anchors, classes, mask size; each type has some, and
    some that count at each stage."""
    for use, stages in needed_stages(member.use_for for member in members).items():
        users = [member for member in members if use in member.use_for]
        if not users:
            raise InputError(f"no member is used for {use!r}: add it to some member's `use_for` in the manifest")
        idle = next((stage for stage in stages if not weigh(users, stage)), None)
        if idle is not None:
            raise InputError(
                f"all members used for {use!r} have the weight 0 for {idle}: give at least one of them more in the "
                "manifest"
            )
    names = [member.name for member in members]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"two members are called {twice!r}: give each its own name")
    first = members[0]
    for member in members:
        ours, theirs = averaging_signature(first.detector), averaging_signature(member.detector)
        for what, expected in ours.items():
            if theirs[what] != expected:
                raise InputError(
                    f"members {first.name} and {member.name} cannot be averaged: their {what} differ "
                    f"({expected} and {theirs[what]})"
                )
        if theirs["number of classes"] < settings.num_classes:
            raise InputError(
                f"member {member.name} knows {theirs['number of classes']} classes, "
                f"the ensemble needs {settings.num_classes}"
            )


def averaging_signature(detector: Detector) -> dict[str, Any]:
    """What members must have in common to be averaged."""
    generator = detector.rpn_head.prior_generator
    heads = detector.roi_head.bbox_head
    box_head = heads[0] if isinstance(heads, nn.ModuleList) else heads
    return {
        "anchors": [anchors.tolist() for anchors in generator.base_anchors],
        "strides": [tuple(stride) for stride in generator.strides],
        "number of classes": box_head.num_classes,
        "mask size": mask_size(detector),
    }
