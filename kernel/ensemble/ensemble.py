"""The ensemble: members that are averaged inside the network, after each stage, and not only at the end.

    image            (H, W, 3)
      |              views: the image itself and its three flips, padded and normalised
      v
    features         FPN maps of each member in each view
      |              RPN maps of the image itself, averaged over members; their decoded boxes, and one NMS
      v
    proposals        boxes that all members are asked about; and the cell type, by the same RPN maps
      |              box heads, averaged over members and views; the cell type's thresholds, and one NMS
      v
    boxes            with scores and labels
      |              mask heads, averaged over members and views
      v
    masks            probabilities, 28 x 28 per box: a `Prediction`

Where cell types have members of their own, a first pass goes as far as the boxes, by the members marked "cls": the
most frequent label there is the cell type, and its members alone are run from the features on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch

from kernel.ensemble.boxes import Detections, MergedBoxes, merge_boxes, predict_view_boxes, scale_boxes, select_boxes
from kernel.ensemble.features import ImageFeatures
from kernel.ensemble.masks import predict_view_masks, score_by_masks
from kernel.ensemble.members import Member, check_members_agree, proposing, weigh, weighted_mean
from kernel.ensemble.networks import NetworkRunner, Tiling, require_finite
from kernel.ensemble.proposals import Proposals, RpnMaps, merge_rpn_maps, select_proposals
from kernel.ensemble.views import View
from kernel.manifest.types import usual_weights
from kernel.models.detectors import mask_size
from kernel.postprocess.clean import most_frequent_cell_type
from kernel.settings import CLS_USE, EVERY_USE, EnsembleSettings, types_differ


@dataclass(frozen=True)
class Prediction:
    """What the ensemble finds in one image: N cells, best first. All tensors are float32 on the CPU, labels int64."""

    image_shape: tuple[int, int]  # (H, W)
    cell_type: str  # whose members and thresholds were used
    level_counts: tuple[int, ...]  # confident positions per FPN level
    boxes_xyxy: torch.Tensor  # (N, 4) pixels; those that the masks fill
    scores: torch.Tensor  # (N,)
    labels: torch.Tensor  # (N,) indices into CELL_TYPES
    mask_probs: torch.Tensor  # (N, 28, 28) probability of the box's own class
    members: tuple[str, ...]  # the names of the members that were run
    seconds: Mapping[str, float]  # by stage: features, proposals, boxes, masks
    dtype: torch.dtype  # what the networks have computed in


class Ensemble(NetworkRunner):
    """Members that are averaged inside the network.

    Args:
        members: at least one for each cell type. They must agree on anchors, number of classes and mask size.
        settings: thresholds per cell type, and what is averaged over which views.
        device, dtype, views_per_batch, feature_budget_bytes, tiling: how the networks are run, as in `NetworkRunner`.

    Raises:
        InputError: the members do not fit together.
    """

    def __init__(
        self,
        members: Sequence[Member],
        settings: EnsembleSettings,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        views_per_batch: int = 1,
        feature_budget_bytes: int = 4 << 30,
        tiling: Tiling | None = None,
    ):
        check_members_agree(members, settings)
        super().__init__(members, device, dtype, views_per_batch, feature_budget_bytes, tiling)
        self.settings = settings

    @classmethod
    def like(cls, other: Ensemble, members: Sequence[Member], settings: EnsembleSettings | None = None) -> Self:
        """An ensemble of `members` that is run as `other` is, with its settings unless others are given."""
        return cls(
            members,
            other.settings if settings is None else settings,
            other.device,
            other.dtype,
            other.views_per_batch,
            other.feature_budget_bytes,
            other.tiling,
        )

    def of_members(self, names: Collection[str]) -> Ensemble:
        """The members called `names` and no others, in the ensemble's order, each used for every image."""
        every = frozenset(EVERY_USE)
        return Ensemble.like(self, [replace(each, use_for=every) for each in self.members if each.name in names])

    def alone(self, name: str) -> Ensemble:
        """The member called `name` and no other, used for every image and with a weight in every average.

        Raises:
            InputError: it is a mask network, which finds no boxes.
        """
        (member,) = (member for member in self.members if member.name == name)
        member = replace(member, use_for=frozenset(EVERY_USE), weights=usual_weights(member.kind))
        return Ensemble.like(self, [member])

    def members_for(self, use: str) -> tuple[Member, ...]:
        """The members used for a cell type, or for the first pass ("cls")."""
        return tuple(member for member in self.members if use in member.use_for)

    @property
    def needs_first_pass(self) -> bool:
        """Whether the members depend on the cell type, so that it must be found first."""
        return types_differ(member.use_for for member in self.members)

    # --- an image, from top to bottom ---

    @torch.inference_mode()
    def predict(self, image: np.ndarray | ImageFeatures, cell_type: str | None = None) -> Prediction:
        """Find the cells of an image. Only the members that it needs are run.

        Args:
            image: (H, W, 3) uint8 BGR, of any size; or its features, where they have been begun before.
            cell_type: the image's, where it is known; None: the networks decide.

        Raises:
            NotFiniteError: numbers overflow in a network; going on, the ensemble would find nothing.
        """
        features = image if isinstance(image, ImageFeatures) else self.image_features(image)
        cell_type, members = self.choose_members(features, cell_type)
        proposals = self.propose(features, members)
        cell_type = cell_type or proposals.cell_type
        boxes = self.detect(features, members, proposals, cell_type)
        masks = self.mask(features, members, boxes)
        boxes, masks = score_by_masks(boxes, masks, self.settings.mask_score_power)
        return Prediction(
            image_shape=features.image_shape,
            cell_type=cell_type,
            level_counts=proposals.level_counts,
            boxes_xyxy=boxes.boxes_xyxy.cpu(),
            scores=boxes.scores.cpu(),
            labels=boxes.labels.cpu(),
            mask_probs=masks.cpu(),
            members=tuple(features.used),
            seconds=dict(features.clock.seconds),
            dtype=self.dtype,
        )

    def choose_members(
        self, features: ImageFeatures, cell_type: str | None = None
    ) -> tuple[str | None, tuple[Member, ...]]:
        """The image's cell type and the members used for it.

        Unless `cell_type` is given, the first pass finds it. Where no first pass is needed it stays None: all members
        are used for every type.
        """
        if cell_type is None and self.needs_first_pass:
            cell_type = self.decide_cell_type(features)
        return cell_type, self.members if cell_type is None else self.members_for(cell_type)

    @torch.inference_mode()
    def decide_cell_type(self, features: ImageFeatures) -> str:
        """The first pass, by the members marked "cls": the most frequent label of their boxes.

        Where there is no box, the cell type of the proposals.
        """
        members = self.members_for(CLS_USE)
        proposals = self.propose(features, members)
        boxes = self.detect(features, members, proposals, proposals.cell_type)
        return most_frequent_cell_type(boxes.labels.cpu().numpy()) or proposals.cell_type

    # --- the stages ---

    def image_features(self, image_bgr: np.ndarray) -> ImageFeatures:
        """The features of an image (H, W, 3) uint8 BGR, computed when a stage asks for them."""
        return ImageFeatures(self, image_bgr)

    @torch.inference_mode()
    def propose(self, features: ImageFeatures, members: Sequence[Member], rpn_type: str | None = None) -> Proposals:
        """Proposals of the members' averaged RPN maps, by the thresholds of `rpn_type`; None: the type that they show.

        Raises:
            NotFiniteError: numbers overflow.
        """
        with features.clock.stage("proposals"):
            return select_proposals(
                self.merge_maps(features, members),
                proposing(members).rpn_head,
                features.image_shape,
                self.settings.cell_type_rule,
                self.settings.thresholds,
                rpn_type,
            )

    def merge_maps(self, features: ImageFeatures, members: Sequence[Member]) -> RpnMaps:
        """The members' averaged RPN maps of the identity view.

        Raises:
            NotFiniteError: numbers overflow.
        """
        merged = merge_rpn_maps((weight, features.rpn_maps(member)) for weight, member in weigh(members, "proposals"))
        require_finite("merged RPN maps", [*merged.scores, *merged.deltas])
        return merged

    @torch.inference_mode()
    def detect(
        self, features: ImageFeatures, members: Sequence[Member], proposals: Proposals, cell_type: str
    ) -> Detections:
        """The final boxes, by the thresholds of `cell_type`; as large as its `mask_box_scale` wants them for masks.

        Raises:
            NotFiniteError: numbers overflow.
        """
        boxes = self.choose_boxes(features, members, proposals, cell_type)
        return self.enlarge_for_masks(boxes, cell_type, features.image_shape)

    def choose_boxes(
        self, features: ImageFeatures, members: Sequence[Member], proposals: Proposals, cell_type: str
    ) -> Detections:
        """The final boxes, by the thresholds of `cell_type`, as the box heads give them.

        Raises:
            NotFiniteError: numbers overflow.
        """
        merged = self.box(features, members, proposals.boxes_xyxy)
        return select_boxes(merged, self.settings.thresholds[cell_type], self.settings.bbox_nms)

    def enlarge_for_masks(self, boxes: Detections, cell_type: str, image_shape: tuple[int, int]) -> Detections:
        """Boxes as large as the `mask_box_scale` of `cell_type` wants them for masks, clipped to the image (H, W)."""
        scale = self.settings.thresholds[cell_type].mask_box_scale
        return replace(boxes, boxes_xyxy=scale_boxes(boxes.boxes_xyxy, scale, image_shape))

    def box(self, features: ImageFeatures, members: Sequence[Member], boxes_xyxy: torch.Tensor) -> MergedBoxes:
        """The box heads' answers to proposals (N, 4), averaged over members and views.

        Raises:
            NotFiniteError: numbers overflow.
        """
        with features.clock.stage("boxes"):
            if len(boxes_xyxy) == 0:
                return MergedBoxes(boxes_xyxy, boxes_xyxy.new_zeros((0, self.settings.num_classes)))
            merged = merge_boxes(
                (weight * len(views), self.box_in_views(features, member, views, boxes_xyxy))
                for weight, member in weigh(members, "boxes")
                for views in self.view_batches(self.settings.use_tta)
            )
            require_finite("merged boxes", [merged.boxes_xyxy, merged.scores])
            return merged

    def box_in_views(
        self, features: ImageFeatures, member: Member, views: tuple[View, ...], boxes_xyxy: torch.Tensor
    ) -> MergedBoxes:
        """One member's answers to proposals (N, 4), averaged over some views."""
        view_features = features.get(member, views)
        with self.arithmetic():
            return predict_view_boxes(
                member, view_features, views, boxes_xyxy, features.image_shape, self.settings.num_classes
            )

    def mask(
        self,
        features: ImageFeatures,
        members: Sequence[Member],
        boxes: Detections,
        batches: Sequence[tuple[View, ...]] | None = None,
    ) -> torch.Tensor:
        """The mask heads' probabilities (N, 28, 28) for final boxes, averaged over members and views.

        Args:
            features, members, boxes: of the image, the members that are asked, and N boxes of any score.
            batches: some of `view_batches`; None: all that the settings want.

        Raises:
            NotFiniteError: numbers overflow.
        """
        if batches is None:
            batches = self.view_batches(self.settings.use_tta_masks)
        with features.clock.stage("masks"):
            if len(boxes.boxes_xyxy) == 0:
                return boxes.boxes_xyxy.new_zeros((0, *mask_size(members[0].detector)))
            merged = weighted_mean(
                (weight * len(views), self.mask_in_views(features, member, views, boxes))
                for weight, member in weigh(members, "masks")
                for views in batches
            )
            require_finite("merged masks", [merged])
            return merged

    def mask_in_views(
        self, features: ImageFeatures, member: Member, views: tuple[View, ...], boxes: Detections
    ) -> torch.Tensor:
        """One member's mask probabilities (N, 28, 28) for final boxes, averaged over some views."""
        view_features = features.get(member, views)
        with self.arithmetic():
            return predict_view_masks(
                member, view_features, views, boxes.boxes_xyxy, boxes.labels, features.image_shape
            )
