"""Which members to use for a cell type: greedy forward selection, and what each step costs in time.

It starts with the best single member and adds, round by round, the one that raises the mean score most, until none does
(Caruana et al., Ensemble selection from libraries of models, ICML 2004, without replacement). The scores are of the
images selected on, so they are too good.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from kernel.data.annotated import AnnotatedImage
from kernel.ensemble.ensemble import Ensemble, ImageFeatures, Member, Prediction, StageClock, weigh
from kernel.errors import InputError
from kernel.postprocess.instances import CellMasks
from kernel.runtime.memory import free_memory
from kernel.segment import finish_prediction
from kernel.settings import CELL_TYPES, CLS_USE, FIRST_PASS_STAGES, STAGES
from kernel.validation.metric import image_score
from kernel.validation.validate import lone_member, refuse_other_types

#: Means of the same scores in another order may differ by so much.
ROUNDING = 1e-12


@dataclass(frozen=True)
class MemberCost:
    """Seconds per image of one member alone: the median over images, so that a slow first one does not count."""

    features: float
    heads: Mapping[str, float]  # of each of STAGES in which the member counts

    @property
    def seconds(self) -> float:
        return self.features + sum(self.heads.values())


@dataclass(frozen=True)
class Candidate:
    """A set of members that was scored."""

    members: tuple[str, ...]  # names, in the order in which they were added
    score: float  # mean over the type's images
    features_seconds: float  # per image
    heads_seconds: float

    @property
    def seconds(self) -> float:
        return self.features_seconds + self.heads_seconds


@dataclass(frozen=True)
class Selection:
    """The selection for one cell type."""

    cell_type: str
    images: int
    costs: Mapping[str, MemberCost]  # of every member of the ensemble, by name
    rounds: tuple[tuple[Candidate, ...], ...]  # all that were tried, by round: one member, two, ...
    steps: tuple[Candidate, ...]  # the best of each round that gained; the last one is the selection

    @property
    def members(self) -> tuple[str, ...]:
        return self.steps[-1].members


#: Ensembles with the images of one cell type that each is to predict, of the same members and settings: one with all
#: images, or, out of fold, one for each fold's. They are gone through once in every round.
Ensembles = Iterable[tuple[Ensemble, Sequence[AnnotatedImage]]]


def select_members(by_type: Mapping[str, Ensembles], max_members: int | None = None) -> dict[str, Selection]:
    """Per cell type: the members to use of all those there are, whatever they are used for now.

    Images are segmented as images of their annotated type, as the first pass would find it.

    Args:
        by_type: the members, their weights and the settings, and annotated images, at least one, of each type.
        max_members: at most so many for a type; None: as long as it gains.

    Raises:
        InputError: an image cannot be read or is of another cell type, or no member counts at all stages by itself.
    """
    for ensembles in by_type.values():
        ensemble, images = next(iter(ensembles))
        refuse_other_types(ensemble.settings.thresholds, images)
    return {cell_type: select_for_type(ensembles, cell_type, max_members) for cell_type, ensembles in by_type.items()}


def select_for_type(ensembles: Ensembles, cell_type: str, max_members: int | None = None) -> Selection:
    """`select_members` for one cell type, of which there is at least one image."""
    members = next(iter(ensembles))[0].members
    costs, alone = score_alone(ensembles, cell_type, members)
    singles = [make_candidate((m.name,), alone[m.name], costs) for m in members if stands([m])]
    if not singles:
        raise InputError(
            "the selection starts with one member, and none has a weight above 0 at each of "
            f"{', '.join(STAGES)}: give one such weights in the manifest"
        )
    rounds, steps = [tuple(singles)], [best_candidate(singles)]
    while max_members is None or len(steps[-1].members) < max_members:
        sets = [(*steps[-1].members, m.name) for m in members if m.name not in steps[-1].members]
        if not sets:
            break
        scores = score_sets(ensembles, cell_type, sets)
        tried = [make_candidate(names, score, costs) for names, score in zip(sets, scores.T.tolist(), strict=True)]
        rounds.append(tuple(tried))
        best = best_candidate(tried)
        if best.score <= steps[-1].score + ROUNDING:
            break
        steps.append(best)
    images = len(next(iter(alone.values())))
    return Selection(cell_type, images, costs, tuple(rounds), tuple(steps))


def make_candidate(names: tuple[str, ...], scores: Sequence[float], costs: Mapping[str, MemberCost]) -> Candidate:
    """A set of members with its images' scores. Its time is the members' own, added up."""
    features = sum(costs[name].features for name in names)
    heads = sum(sum(costs[name].heads.values()) for name in names)
    return Candidate(names, float(np.mean(scores)), features, heads)


def best_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """The best score; of equally good ones the cheapest; of those the first."""
    best = max(candidate.score for candidate in candidates)
    return min((each for each in candidates if each.score >= best - ROUNDING), key=lambda each: each.seconds)


def stands(members: Sequence[Member]) -> bool:
    """Whether at each stage some of the members count."""
    return all(weigh(members, stage) for stage in STAGES)


def score_alone(
    ensembles: Ensembles, cell_type: str, members: Sequence[Member]
) -> tuple[dict[str, MemberCost], dict[str, list[float]]]:
    """Each member's seconds and its images' scores alone, by name."""
    seconds: dict[str, list[Mapping[str, float]]] = {member.name: [] for member in members}
    scores: dict[str, list[float]] = {member.name: [] for member in members}
    for ensemble, images in ensembles:
        lone = {name: lone_member(ensemble, name) for name in scores}
        for entry in tqdm(images, unit="image", mininterval=2, desc=f"{cell_type}, alone"):
            image, truth = entry.read(), entry.masks()
            for name, alone in lone.items():
                found = alone.predict_features(alone.image_features(image), cell_type)
                seconds[name].append(found.seconds)
                scores[name].append(prediction_score(alone, found, truth))
    costs = {
        member.name: MemberCost(
            median_seconds(seconds[member.name], "features"),
            {stage: median_seconds(seconds[member.name], stage) for stage in STAGES if weigh([member], stage)},
        )
        for member in members
    }
    return costs, scores


def median_seconds(images: Sequence[Mapping[str, float]], stage: str) -> float:
    """The median over images of a stage's seconds."""
    return float(np.median([seconds.get(stage, 0.0) for seconds in images]))


def score_sets(ensembles: Ensembles, cell_type: str, sets: Sequence[tuple[str, ...]]) -> np.ndarray:
    """(images, sets) float64: each image's score with each set of members, by names.

    All sets share an image's features and RPN maps; what follows them depends on the set.
    """
    rows: list[list[float]] = []
    for ensemble, images in ensembles:
        each_set = [ensemble_of(ensemble, names) for names in sets]
        for entry in tqdm(images, unit="image", mininterval=2, desc=f"{cell_type}, {len(sets[0])} members"):
            image, truth = entry.read(), entry.masks()
            # All members' features at once may need more than the kernel keeps for one set of them.
            features = ImageFeatures(ensemble, image, StageClock(ensemble.device), free_memory(ensemble.device) // 2)
            rows.append([prediction_score(s, s.predict_features(features, cell_type), truth) for s in each_set])
    return np.array(rows)


def ensemble_of(ensemble: Ensemble, names: Sequence[str]) -> Ensemble:
    """The members with `names`, used for everything, in the order of `ensemble` and with its settings."""
    every_use = frozenset((*CELL_TYPES, CLS_USE))
    return Ensemble(
        [replace(member, use_for=every_use) for member in ensemble.members if member.name in names],
        ensemble.settings,
        ensemble.device,
        ensemble.dtype,
        ensemble.views_per_batch,
        ensemble.feature_budget_bytes,
    )


def prediction_score(ensemble: Ensemble, found: Prediction, truth: CellMasks) -> float:
    """The score of the submission's masks that a prediction gives."""
    masks = finish_prediction(found, ensemble.settings.thresholds).masks
    return image_score(masks.masks, truth)


# --- what comes of it ------------------------------------------------------------------------------------------


def uses_of_selections(ensemble: Ensemble, selections: Mapping[str, Selection]) -> dict[str, tuple[str, ...]]:
    """What each member is then used for, by name; () for nothing.

    Types without a selection keep their members. Where the types' members differ, some must find out the type first:
    those of the selected that are marked for it already, or else the one that most types use, the cheapest of those.
    """
    uses: dict[str, tuple[str, ...]] = {}
    for member in ensemble.members:
        types = tuple(
            kind
            for kind in CELL_TYPES
            if (member.name in selections[kind].members if kind in selections else kind in member.use_for)
        )
        uses[member.name] = (*types, CLS_USE) if types and CLS_USE in member.use_for else types
    used = {name: each for name, each in uses.items() if each}
    differ = not all(set(each).issuperset(CELL_TYPES) for each in used.values())
    if differ and not any(CLS_USE in each for each in used.values()):
        costs = next(iter(selections.values())).costs
        able = [name for name in used if costs[name].heads.keys() >= set(FIRST_PASS_STAGES)]
        if able:
            name = min(able, key=lambda name: (-len(used[name]), costs[name].seconds))
            uses[name] = (*uses[name], CLS_USE)
    return uses


def seconds_of_type(selection: Selection, uses: Mapping[str, Sequence[str]]) -> float:
    """Seconds per image of the selection's type in the whole ensemble, the first pass included where there is one."""
    seconds = selection.steps[-1].seconds
    used = [name for name, each in uses.items() if each]
    if all(set(uses[name]).issuperset(CELL_TYPES) for name in used):
        return seconds
    for name in (name for name in used if CLS_USE in uses[name]):
        cost = selection.costs[name]
        seconds += cost.heads.get("boxes", 0.0)
        if name not in selection.members:  # else its features and RPN maps are there already
            seconds += cost.features + cost.heads.get("proposals", 0.0)
    return seconds


def describe_selection(selection: Selection, budget: float) -> list[str]:
    """The lines of a table: a row per step. `budget`: seconds that there are for an image."""
    width = max(len(name) for name in selection.costs) + 2
    lines = [
        f"{selection.cell_type}, {selection.images} images",
        f"  {'member':<{width}} {'score':>7} {'gain':>8} {'s/image':>8} = features + heads",
    ]
    before = None
    for step in selection.steps:
        gain = "" if before is None else f"{step.score - before:+.4f}"
        fits = "fits" if step.seconds <= budget else "too slow"
        sign = " " if before is None else "+"
        lines.append(
            f"  {sign + ' ' + step.members[-1]:<{width}} {step.score:7.4f} {gain:>8} {step.seconds:8.2f} = "
            f"{step.features_seconds:.2f} + {step.heads_seconds:.2f}, {fits}"
        )
        before = step.score
    if len(selection.rounds) > len(selection.steps):
        best = best_candidate(selection.rounds[-1])
        lines.append(f"  no gain by another: at best {best.score:.4f} with {best.members[-1]}")
    return lines


def selections_to_csv(selections: Mapping[str, Selection], budget: float) -> str:
    """All sets that were tried as CSV text, a row each."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(
        ["cell_type", "count", "members", "score", "seconds", "features_seconds", "heads_seconds", "fits", "chosen"]
    )
    for selection in selections.values():
        for candidate in (candidate for tried in selection.rounds for candidate in tried):
            times = (candidate.seconds, candidate.features_seconds, candidate.heads_seconds)
            writer.writerow(
                [
                    selection.cell_type,
                    len(candidate.members),
                    " ".join(candidate.members),
                    f"{candidate.score:.6f}",
                    *(f"{seconds:.3f}" for seconds in times),
                    int(candidate.seconds <= budget),
                    int(candidate in selection.steps),
                ]
            )
    return stream.getvalue()


def draw_selections(path: Path, selections: Mapping[str, Selection], budget: float) -> None:
    """Draw score against time into a PNG: all sets that were tried as points, the steps as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(selections), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for place, selection in enumerate(selections.values(), start=1):
        axes = figure.add_subplot(1, len(selections), place)
        tried = [candidate for candidates in selection.rounds for candidate in candidates]
        axes.plot([c.seconds for c in tried], [c.score for c in tried], "o", color="#bbbbbb", label="tried")
        steps = selection.steps
        axes.plot([c.seconds for c in steps], [c.score for c in steps], "o-", color="#1f77b4", label="chosen")
        for number, step in enumerate(steps):
            name = step.members[-1] if number == 0 else f"+ {step.members[-1]}"
            axes.annotate(name, (step.seconds, step.score), xytext=(4, -11), textcoords="offset points", fontsize=8)
        if budget <= 2 * max(candidate.seconds for candidate in tried):  # else it would squeeze the rest
            axes.axvline(budget, color="#d62728", linestyle="--", label="budget")
        axes.set(title=f"{selection.cell_type}, {selection.images} images", xlabel="seconds per image", ylabel="score")
        axes.legend(fontsize=8)
    figure.savefig(path, format="png", dpi=120)
