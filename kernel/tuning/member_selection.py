"""Which members to use for a cell type: greedy forward selection, and what each step costs in time.

It starts with the best single member and adds, round by round, the one that raises the mean score most, until none does
(Caruana et al., Ensemble selection from libraries of models, ICML 2004, without replacement). The scores are of the
images selected on, so they are too good.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from kernel.data.annotated import AnnotatedImage
from kernel.ensemble.boxes import Detections
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.fallbacks import with_fallbacks
from kernel.ensemble.features import ImageFeatures
from kernel.ensemble.members import Member, weigh
from kernel.errors import InputError
from kernel.manifest.types import MASK_KINDS
from kernel.masks.instances import CellMasks
from kernel.runtime.memory import free_memory
from kernel.scoring.metric import image_score
from kernel.scoring.scores import refuse_other_types
from kernel.segment import finish_prediction
from kernel.settings import CELL_TYPES, CLS_USE, FIRST_PASS_STAGES, STAGES, types_differ

#: Means of the same scores in another order may differ by so much.
ROUNDING = 1e-12


@dataclass(frozen=True)
class MemberCost:
    """Seconds per image of one member alone: the median over images, so that a slow first one does not count."""

    features: float
    heads: Mapping[str, float]  # of each of STAGES at which the member has a weight

    @property
    def seconds(self) -> float:
        return self.features + sum(self.heads.values())


@dataclass(frozen=True)
class MemberSet:
    """A set of members that was scored."""

    members: tuple[str, ...]  # names, in the order in which they were added
    scores: tuple[float, ...]  # of the cell type's images, in their order
    features_seconds: float  # per image
    heads_seconds: float

    @property
    def score(self) -> float:
        """The mean over the images."""
        return float(np.mean(self.scores))

    @property
    def seconds(self) -> float:
        return self.features_seconds + self.heads_seconds


@dataclass(frozen=True)
class Selection:
    """The selection for one cell type."""

    cell_type: str
    images: int
    costs: Mapping[str, MemberCost]  # of every member of the ensemble, by name
    rounds: tuple[tuple[MemberSet, ...], ...]  # all that were tried, by round: one member, two, ...
    steps: tuple[MemberSet, ...]  # the best of each round that gained; the last one is the selection

    @property
    def members(self) -> tuple[str, ...]:
        return self.steps[-1].members

    @property
    def tried(self) -> list[MemberSet]:
        """All sets that were scored, in order."""
        return [each for sets in self.rounds for each in sets]


#: Ensembles, each with the images of one cell type that it is to predict: one with all images, or, out of fold, one for
#: the images of each fold. They have the same members and settings. Every round iterates over them once.
Ensembles = Iterable[tuple[Ensemble, Sequence[AnnotatedImage]]]


def select_members(by_type: Mapping[str, Ensembles], max_members: int | None = None) -> dict[str, Selection]:
    """Choose, for each cell type, among all members of the ensemble, whatever they are used for now.

    The annotated cell type is taken as known: no first pass is made.

    Args:
        by_type: for each cell type, ensembles with annotated images, at least one.
        max_members: at most so many for a type; None: as many as raise the score.

    Raises:
        InputError: an image cannot be read or is of another cell type, or no member has a weight at all stages.
    """
    for ensembles in by_type.values():
        ensemble, images = next(iter(ensembles))
        refuse_other_types(ensemble.settings.thresholds, images)
    return {cell_type: select_for_type(ensembles, cell_type, max_members) for cell_type, ensembles in by_type.items()}


def select_for_type(ensembles: Ensembles, cell_type: str, max_members: int | None = None) -> Selection:
    """`select_members` for one cell type, of which there is at least one image.

    Raises:
        InputError: as `select_members`.
    """
    members = next(iter(ensembles))[0].members
    costs, alone = score_alone(ensembles, cell_type, members)
    singles = [make_member_set((m.name,), alone[m.name], costs) for m in members if counts_everywhere(m)]
    if not singles:
        raise InputError(
            "the selection starts with one member, and none has a weight above 0 at each of "
            f"{', '.join(STAGES)}: give one such weights in the manifest"
        )
    rounds, steps = [tuple(singles)], [best_member_set(singles)]
    while max_members is None or len(steps[-1].members) < max_members:
        sets = [(*steps[-1].members, m.name) for m in members if m.name not in steps[-1].members]
        if not sets:
            break
        scores = score_sets(ensembles, cell_type, sets)
        tried = [make_member_set(names, score, costs) for names, score in zip(sets, scores.T.tolist(), strict=True)]
        rounds.append(tuple(tried))
        best = best_member_set(tried)
        if best.score <= steps[-1].score + ROUNDING:
            break
        steps.append(best)
    images = len(next(iter(alone.values())))
    return Selection(cell_type, images, costs, tuple(rounds), tuple(steps))


def make_member_set(names: tuple[str, ...], scores: Sequence[float], costs: Mapping[str, MemberCost]) -> MemberSet:
    """A set of members with its images' scores. Its time is the members' own, added up."""
    features = sum(costs[name].features for name in names)
    heads = sum(sum(costs[name].heads.values()) for name in names)
    return MemberSet(names, tuple(scores), features, heads)


def best_member_set(sets: Sequence[MemberSet]) -> MemberSet:
    """The best score; of equally good ones the cheapest; of those the first."""
    best = max(each.score for each in sets)
    return min((each for each in sets if each.score >= best - ROUNDING), key=lambda each: each.seconds)


def counts_everywhere(member: Member) -> bool:
    """Whether the member has a weight above 0 at each ensembling stage, so that it can predict alone."""
    return all(weigh([member], stage) for stage in STAGES)


def score_alone(
    ensembles: Ensembles, cell_type: str, members: Sequence[Member]
) -> tuple[dict[str, MemberCost], dict[str, list[float]]]:
    """Each member's seconds and its images' scores alone, by name; of a mask network the seconds."""
    seconds: dict[str, list[Mapping[str, float]]] = {member.name: [] for member in members}
    scores: dict[str, list[float]] = {member.name: [] for member in members if member.kind not in MASK_KINDS}
    for ensemble, images in ensembles:
        lone = {name: ensemble.alone(name) for name in scores}
        adding = [member for member in ensemble.members if member.name not in scores]
        for entry in tqdm(images, unit="image", mininterval=2, desc=f"{cell_type}, alone"):
            image, truth = entry.read(), entry.masks()
            for name, alone in lone.items():
                found = with_fallbacks(alone, partial(alone.predict, image, cell_type))
                seconds[name].append(found.seconds)
                scores[name].append(prediction_score(alone, found, truth))
            boxes = Detections(found.boxes_xyxy, found.scores, found.labels)
            for member in adding:
                mask = partial(seconds_of_masks, ensemble, member, image, boxes)
                seconds[member.name].append(with_fallbacks(ensemble, mask))
    costs = {
        member.name: MemberCost(
            median_seconds(seconds[member.name], "features"),
            {stage: median_seconds(seconds[member.name], stage) for stage in STAGES if weigh([member], stage)},
        )
        for member in members
    }
    return costs, scores


def seconds_of_masks(
    ensemble: Ensemble, member: Member, image_bgr: np.ndarray, boxes: Detections
) -> Mapping[str, float]:
    """The seconds by stage that a mask network takes for the boxes, on the CPU, of an image (H, W, 3) uint8 BGR."""
    features = ensemble.image_features(image_bgr)
    ensemble.mask(features, [member], boxes.to(ensemble.device))
    return dict(features.clock.seconds)


def median_seconds(images: Sequence[Mapping[str, float]], stage: str) -> float:
    """The median over images of a stage's seconds."""
    return float(np.median([seconds.get(stage, 0.0) for seconds in images]))


def score_sets(ensembles: Ensembles, cell_type: str, sets: Sequence[tuple[str, ...]]) -> np.ndarray:
    """(images, sets) float64: each image's score with each set of members, by names.

    All sets share an image's features and RPN maps; what follows them depends on the set.
    """
    rows: list[list[float]] = []
    for ensemble, images in ensembles:
        each_set = [ensemble.of_members(names) for names in sets]
        for entry in tqdm(images, unit="image", mininterval=2, desc=f"{cell_type}, {len(sets[0])} members"):
            predict = partial(predict_each, ensemble, each_set, entry.read(), cell_type)
            truth, found = entry.masks(), with_fallbacks(ensemble, predict)
            rows.append([prediction_score(s, each, truth) for s, each in zip(each_set, found, strict=True)])
    return np.array(rows)


def predict_each(
    ensemble: Ensemble, each_set: Sequence[Ensemble], image_bgr: np.ndarray, cell_type: str
) -> list[Prediction]:
    """What each of several sets of an ensemble's members, run as it is, finds in an image (H, W, 3) uint8 BGR."""
    # All members' features at once may need more than the kernel keeps for one set of them.
    features = ImageFeatures(ensemble, image_bgr, free_memory(ensemble.device) // 2)
    for one in each_set:
        one.run_as(ensemble)
    return [one.predict(features, cell_type) for one in each_set]


def prediction_score(ensemble: Ensemble, found: Prediction, truth: CellMasks) -> float:
    """The score of the submission's masks that a prediction gives."""
    return image_score(finish_prediction(found, ensemble.settings.thresholds).masks, truth)


# --- the ensemble with the selected members ---------------------------------------------------------------------


def uses_of_selections(ensemble: Ensemble, selections: Mapping[str, Selection]) -> dict[str, tuple[str, ...]]:
    """What each member is to be used for, by name; () for nothing.

    Types without a selection keep their members. Where the types' members differ, a first pass must find out the cell
    type. It is made by the selected members that are marked "cls" already. Where these have no say in one of its
    stages, one more is marked: the member that most types use, and of equals the cheapest.
    """
    uses: dict[str, tuple[str, ...]] = {}
    for member in ensemble.members:
        types = tuple(
            cell_type
            for cell_type in CELL_TYPES
            if (
                member.name in selections[cell_type].members if cell_type in selections else cell_type in member.use_for
            )
        )
        uses[member.name] = (*types, CLS_USE) if types and CLS_USE in member.use_for else types
    used = {name: each for name, each in uses.items() if each}
    if types_differ(used.values()):
        costs = next(iter(selections.values())).costs
        able = [name for name in used if costs[name].heads.keys() >= set(FIRST_PASS_STAGES)]
        told = {stage for name, each in used.items() if CLS_USE in each for stage in costs[name].heads}
        if able and not told >= set(FIRST_PASS_STAGES):
            name = min(able, key=lambda name: (-len(used[name]), costs[name].seconds))
            uses[name] = tuple(dict.fromkeys((*uses[name], CLS_USE)))
    return uses


def seconds_of_type(selection: Selection, uses: Mapping[str, Sequence[str]]) -> float:
    """Seconds per image of the selection's cell type, including the first pass where the ensemble needs one.

    Args:
        selection: of one cell type.
        uses: of all members, by name, as `uses_of_selections` gives them.
    """
    seconds = selection.steps[-1].seconds
    if not types_differ(each for each in uses.values() if each):
        return seconds
    for name in (name for name, each in uses.items() if CLS_USE in each):
        cost = selection.costs[name]
        seconds += cost.heads.get("boxes", 0.0)
        if name not in selection.members:  # else its features and RPN maps are there already
            seconds += cost.features + cost.heads.get("proposals", 0.0)
    return seconds
