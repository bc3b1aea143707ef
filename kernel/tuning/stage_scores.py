"""Scores of settings of the ensembling stages, which need the network.

These are thresholds of proposals and boxes, views of the masks, and members of a cell type.

The members' answer to a proposal and the mask of a final box do not depend on what else they are asked. So all settings
can share one run of an image: its features and RPN maps once; boxes once for the union of the settings' proposals;
masks once for the union of their final boxes. A setting then only selects, by the ensemble's own functions, from what
is known, and its result is that of an ensemble with these settings.

Settings are tried for the cell type that the unchanged ensemble takes an image for, whatever is annotated. Where all
members are used for all types, that is the type of the counts. No setting changes it, and those of other types do not
touch the image: what is chosen for each type scores together what it scored alone. With a first pass that holds only
where all agree on the type, before and after: its counts, its labels, and the counts of the type's own members. For
proposals follow the counts, and the first pass is by the thresholds chosen, too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from kernel.data.annotated import AnnotatedImage
from kernel.ensemble.boxes import Detections, MergedBoxes
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.fallbacks import with_fallbacks
from kernel.ensemble.features import ImageFeatures
from kernel.ensemble.members import Member, weighted_mean
from kernel.ensemble.proposals import Proposals, RpnMaps
from kernel.ensemble.views import View
from kernel.errors import InputError
from kernel.masks.instances import CellMasks
from kernel.scoring.metric import image_score
from kernel.scoring.scores import refuse_other_types, tell_mistaken_types
from kernel.segment import finish_prediction
from kernel.settings import CLS_USE, EnsembleSettings, Thresholds

#: The thresholds that need the network.
RPN_THRESHOLDS = ("rpn_nms_pre", "rpn_iou_threshold", "rpn_score_threshold", "rpn_max_per_img")
STAGE_THRESHOLDS = (*RPN_THRESHOLDS[:3], "rcnn_iou_threshold", "rcnn_score_threshold", "mask_box_scale")
MASK_VIEWS = "use_tta_masks"

#: What `python -m kernel tune --stages` tries by default: every combination, and the manifest's own settings.
DEFAULT_STAGE_GRID: Mapping[str, tuple[Any, ...]] = {
    "rpn_iou_threshold": (0.6, 0.75),
    "rpn_score_threshold": (0.5, 0.8, 0.95),
    "rcnn_iou_threshold": (0.5, 0.7, 0.9),
    "rcnn_score_threshold": (0.15, 0.3, 0.5),
}


@dataclass(frozen=True)
class StagePoint:
    """Settings to try for one cell type."""

    use_tta_masks: bool
    thresholds: Mapping[str, float] = field(default_factory=dict)  # of STAGE_THRESHOLDS; others stay
    members: tuple[str, ...] | None = None  # names of those used for the type; None: as they are

    def thresholds_of(self, base: Thresholds) -> Thresholds:
        """`base` with this point's put in."""
        return replace(base, **self.thresholds)

    def apply(self, ensemble: Ensemble, cell_type: str) -> ReplayedEnsemble:
        """The ensemble with these settings for `cell_type`; all else, and the detectors themselves, are shared.

        Raises:
            InputError: the ensemble lacks one of the point's members; or with them the cell types would use different
                members, while none is marked "cls".
        """
        settings, members = ensemble.settings, ensemble.members
        thresholds = {**settings.thresholds, cell_type: self.thresholds_of(settings.thresholds[cell_type])}
        if self.members is not None:
            known = [member.name for member in members]
            unknown = [name for name in self.members if name not in known]
            if unknown:
                raise InputError(f"no member is called {', '.join(unknown)}; the ensemble's are {', '.join(known)}")
            members = use_members(members, cell_type, self.members)
        return ReplayedEnsemble.like(
            ensemble, members, replace(settings, thresholds=thresholds, use_tta_masks=self.use_tta_masks)
        )


def use_members(members: Sequence[Member], cell_type: str, names: Sequence[str]) -> tuple[Member, ...]:
    """The members, `cell_type` now using those with `names` alone; without members that are then used for nothing."""
    changed = (
        replace(member, use_for=member.use_for - {cell_type} | ({cell_type} if member.name in names else set()))
        for member in members
    )
    return tuple(member for member in changed if member.use_for)


def stage_points(
    grid: Mapping[str, Sequence[Any]], settings: EnsembleSettings, members: Sequence[tuple[str, ...]] = ()
) -> list[StagePoint]:
    """The settings as they are, those but for the masks' views, then every combination of the grid's values.

    Args:
        grid: values by name, of STAGE_THRESHOLDS and "use_tta_masks".
        settings: the ensemble's own.
        members: sets of members to try beside the present one.
    """
    points = [StagePoint(views) for views in dict.fromkeys((settings.use_tta_masks, *grid.get(MASK_VIEWS, ())))]
    for names in (None, *members):
        for values in product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True))
            views = chosen.pop(MASK_VIEWS, settings.use_tta_masks)
            point = StagePoint(views, chosen, names)
            if point not in points:
                points.append(point)
    return points


class RowAnswers:
    """A cache of a network's answers to rows of tensors (N, k), where the answer to a row depends on that row alone.

    Rows are compared by their bits, and none is asked about twice.
    """

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._answers: tuple[torch.Tensor, ...] = ()

    def get(
        self, rows: torch.Tensor, ask: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    ) -> tuple[torch.Tensor, ...]:
        """The answers (N, ...) to rows (N, k); `ask` is called with those that are not known yet, if any."""
        keys = [row.tobytes() for row in rows.cpu().numpy()]
        new = {key: index for index, key in enumerate(keys) if key not in self._places}
        if new or not self._answers:
            asked = ask(rows[torch.tensor(list(new.values()), dtype=torch.int64, device=rows.device)])
            if self._answers:
                asked = tuple(torch.cat(pair) for pair in zip(self._answers, asked, strict=True))
            self._answers = asked
            for key in new:
                self._places[key] = len(self._places)
        places = torch.tensor([self._places[key] for key in keys], dtype=torch.int64, device=rows.device)
        return tuple(answers[places] for answers in self._answers)


class StageCache(ImageFeatures):
    """An image's features and what followed from them, shared by ensembles that differ only in their `StagePoint`."""

    def __init__(self, ensemble: Ensemble, image_bgr: np.ndarray):
        super().__init__(ensemble, image_bgr)
        self.merged_maps: dict[tuple[str, ...], RpnMaps] = {}
        self.proposals: dict[tuple[Any, ...], Proposals] = {}
        self.answers: defaultdict[tuple[Any, ...], RowAnswers] = defaultdict(RowAnswers)


class ReplayedEnsemble(Ensemble):
    """An ensemble that takes what it can from a `StageCache`, and asks the network for the rest."""

    def merge_maps(self, features: ImageFeatures, members: Sequence[Member]) -> RpnMaps:
        cache = cache_of(features)
        if names_of(members) not in cache.merged_maps:
            cache.merged_maps[names_of(members)] = super().merge_maps(features, members)
        return cache.merged_maps[names_of(members)]

    def propose(self, features: ImageFeatures, members: Sequence[Member]) -> Proposals:
        cache = cache_of(features)
        by_type = self.settings.thresholds.values()
        limits = tuple(getattr(thresholds, name) for thresholds in by_type for name in RPN_THRESHOLDS)
        key = (names_of(members), limits)
        if key not in cache.proposals:
            cache.proposals[key] = super().propose(features, members)
        return cache.proposals[key]

    def box(self, features: ImageFeatures, members: Sequence[Member], boxes_xyxy: torch.Tensor) -> MergedBoxes:
        ask_network = super().box

        def ask(boxes: torch.Tensor) -> tuple[torch.Tensor, ...]:
            merged = ask_network(features, members, boxes)
            return merged.boxes_xyxy, merged.scores

        answers = cache_of(features).answers["boxes", names_of(members)]
        return MergedBoxes(*answers.get(boxes_xyxy, ask))

    def mask(
        self,
        features: ImageFeatures,
        members: Sequence[Member],
        boxes: Detections,
        batches: Sequence[tuple[View, ...]] | None = None,
    ) -> torch.Tensor:
        ask_network = super().mask
        if batches is None:
            batches = self.view_batches(self.settings.use_tta_masks)
        # The identity view apart, so that masks with and without the flips share it.
        parts = [part for part in (batches[:1], batches[1:]) if part]
        rows = torch.cat([boxes.boxes_xyxy, boxes.labels[:, None].to(boxes.boxes_xyxy.dtype)], dim=1)
        masks = []
        for part in parts:

            def ask(new: torch.Tensor, part: Sequence[tuple[View, ...]] = part) -> tuple[torch.Tensor, ...]:
                asked = Detections(new[:, :4], new.new_zeros(len(new)), new[:, 4].long())
                return (ask_network(features, members, asked, part),)

            (found,) = cache_of(features).answers["masks", names_of(members), tuple(part)].get(rows, ask)
            masks.append((sum(len(views) for views in part), found))
        return weighted_mean(masks)


def cache_of(features: ImageFeatures) -> StageCache:
    """`features`, which must be a cache."""
    if not isinstance(features, StageCache):
        raise TypeError(f"a ReplayedEnsemble works on a StageCache, not on {type(features).__name__}")
    return features


def names_of(members: Iterable[Member]) -> tuple[str, ...]:
    """The names of members: in one image's cache, a name stands for a detector and its weights."""
    return tuple(member.name for member in members)


def taken_type(ensemble: ReplayedEnsemble, cache: StageCache) -> str:
    """The cell type whose members and thresholds the ensemble takes for an image."""
    cell_type, members = ensemble.choose_members(cache)
    return cell_type or ensemble.propose(cache, members).cell_type


@torch.inference_mode()
def replay(ensembles: Sequence[ReplayedEnsemble], cache: StageCache) -> Iterator[Prediction]:
    """Predict one image with each of the ensembles, in order.

    For each stage and set of members the network is asked once, about everything that any of the ensembles needs and
    the cache lacks.

    Args:
        ensembles: one ensemble with different points applied.
        cache: of the image.
    """
    ask_boxes(cache, [(each, each.members_for(CLS_USE)) for each in ensembles if each.needs_first_pass])
    ask_boxes(cache, [(each, each.choose_members(cache)[1]) for each in ensembles])
    ask_masks(cache, ensembles)
    for each in ensembles:
        yield each.predict(cache)


def ask_boxes(cache: StageCache, asking: Sequence[tuple[ReplayedEnsemble, tuple[Member, ...]]]) -> None:
    """Have each set of members answer the union of the proposals that the ensembles make with it."""
    groups: dict[tuple[str, ...], list[tuple[ReplayedEnsemble, tuple[Member, ...]]]] = {}
    for ensemble, members in asking:
        groups.setdefault(names_of(members), []).append((ensemble, members))
    for group in groups.values():
        wanted = torch.cat([ensemble.propose(cache, members).boxes_xyxy for ensemble, members in group])
        ensemble, members = group[0]
        ensemble.box(cache, members, wanted.unique(dim=0))


def ask_masks(cache: StageCache, ensembles: Sequence[ReplayedEnsemble]) -> None:
    """Have each set of members mask the union of the final boxes that the ensembles select with it."""
    groups: dict[tuple[tuple[str, ...], bool], list[tuple[ReplayedEnsemble, tuple[Member, ...], Detections]]] = {}
    for ensemble in ensembles:
        cell_type, members = ensemble.choose_members(cache)
        proposals = ensemble.propose(cache, members)
        boxes = ensemble.detect(cache, members, proposals, cell_type or proposals.cell_type)
        groups.setdefault((names_of(members), ensemble.settings.use_tta_masks), []).append((ensemble, members, boxes))
    for group in groups.values():
        boxes = torch.cat([boxes.boxes_xyxy for _, _, boxes in group])
        labels = torch.cat([boxes.labels for _, _, boxes in group])
        wanted = torch.cat([boxes, labels[:, None].to(boxes.dtype)], dim=1).unique(dim=0)
        ensemble, members, _ = group[0]
        ensemble.mask(cache, members, Detections(wanted[:, :4], wanted.new_zeros(len(wanted)), wanted[:, 4].long()))


def score_points(ensembles: Sequence[ReplayedEnsemble], cache: StageCache, truth: CellMasks) -> np.ndarray:
    """The score of an image's submission with each of `ensembles`, (points,) float64.

    They must agree in the thresholds of the post-processing: equal predictions are scored once.
    """
    scores, known = [], {}
    for ensemble, found in zip(ensembles, replay(ensembles, cache), strict=True):
        tensors = (found.boxes_xyxy, found.scores, found.labels, found.mask_probs)
        key = tuple(tensor.numpy().tobytes() for tensor in tensors)
        if key not in known:
            done = finish_prediction(found, ensemble.settings.thresholds)
            known[key] = image_score(done.masks, truth)
        scores.append(known[key])
    return np.array(scores, dtype=np.float64)


def score_image(
    unchanged: ReplayedEnsemble,
    with_points: Mapping[str, Sequence[ReplayedEnsemble]],
    image_bgr: np.ndarray,
    truth: CellMasks,
) -> tuple[str, np.ndarray]:
    """The cell type that the ensemble takes an image for, and the score with each point applied for that type.

    Args:
        unchanged: the ensemble without a point; the others are run as it is.
        with_points: by cell type, the ensemble with each of the points.
        image_bgr: (H, W, 3) uint8.
        truth: what is annotated.

    Returns:
        The type, and (points,) float64.
    """
    cache = StageCache(unchanged, image_bgr)
    cell_type = taken_type(unchanged, cache)
    for each in with_points[cell_type]:
        each.run_as(unchanged)
    return cell_type, score_points(with_points[cell_type], cache, truth)


@dataclass(frozen=True, eq=False)
class StageScores:
    """The scores of the n images that the unchanged ensemble takes for one cell type, at P points."""

    image_ids: tuple[str, ...]
    scores: np.ndarray  # (n, P) float64


def score_stages(
    ensembles: Iterable[tuple[Ensemble, Sequence[AnnotatedImage]]], points: Sequence[StagePoint]
) -> dict[str, StageScores]:
    """Score each image with each of the points, applied for the cell type that the unchanged ensemble takes it for.

    Args:
        ensembles: each with the images that it is to predict: one with all, or, out of fold, one for each fold's.
        points: settings to try.

    Returns:
        By that cell type, of those that have an image.

    Raises:
        InputError: an image cannot be read, the ensemble has no thresholds of a cell type, or as `StagePoint.apply`.
    """
    scores: dict[str, list[tuple[str, np.ndarray]]] = {}
    counted: list[tuple[AnnotatedImage, str]] = []
    for ensemble, images in ensembles:
        thresholds = ensemble.settings.thresholds
        refuse_other_types(thresholds, images)
        unchanged = ReplayedEnsemble.like(ensemble, ensemble.members)
        with_points = {name: [point.apply(ensemble, name) for point in points] for name in thresholds}
        for entry in tqdm(images, unit="image", mininterval=2):
            score = partial(score_image, unchanged, with_points, entry.read(), entry.masks())
            cell_type, found = with_fallbacks(unchanged, score)
            counted.append((entry, cell_type))
            scores.setdefault(cell_type, []).append((entry.image_id, found))
    tell_mistaken_types(counted)
    return {
        cell_type: StageScores(tuple(image_id for image_id, _ in rows), np.stack([found for _, found in rows]))
        for cell_type, rows in scores.items()
    }
