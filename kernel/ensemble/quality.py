"""Quality levels: what an ensemble leaves out, step by step, when time is short.

A level is settings and a choice of members, nothing more: an image done at a level has the result of an `Ensemble`
with those settings and members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.views import ALL_VIEWS
from kernel.manifest import MemberEntry
from kernel.settings import CELL_TYPES, CLS_USE, EnsembleSettings, StageWeights, needed_stages, types_differ


@dataclass(frozen=True)
class Lowering:
    """One way to save time."""

    told: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # of EnsembleSettings
    drops_members: bool = False  # one for each use, the least worthy; again and again, until one is left


#: In this order: what costs least quality for the time it saves comes first.
LOWERINGS = (
    Lowering("masks from the identity view alone", {"use_tta_masks": False}),
    Lowering("boxes from the identity view alone", {"use_tta": False, "use_tta_masks": False}),
    Lowering("fewer members", drops_members=True),
)


@dataclass(frozen=True)
class QualityLevel:
    """Settings, and what each member is still used for."""

    name: str
    settings: EnsembleSettings
    uses: Mapping[str, frozenset[str]]  # by member, in the manifest's order; members without any use are not in it
    weights: Mapping[str, StageWeights]  # of all members

    def stage_work(self, cell_type: str) -> dict[str, float]:
        """How much is to be done per stage on an image of a cell type, in runs of a member on a view.

        Members cost alike, those with the weight 0 nothing. What does not depend on the level (reading,
        post-processing) is "other".
        """

        def asked(names: set[str], stage: str) -> int:
            return sum(getattr(self.weights[name], stage) > 0 for name in names)

        typed = {name for name, uses in self.uses.items() if cell_type in uses}
        has_first_pass = types_differ(self.uses.values())
        first = {name for name, uses in self.uses.items() if CLS_USE in uses} if has_first_pass else set()
        box_views = len(ALL_VIEWS) if self.settings.use_tta else 1
        mask_views = len(ALL_VIEWS) if self.settings.use_tta_masks else 1
        return {
            "features": len(typed) * max(box_views, mask_views) + len(first - typed) * box_views,
            "proposals": asked(typed, "proposals") + asked(first, "proposals"),
            "boxes": (asked(typed, "boxes") + asked(first, "boxes")) * box_views,
            "masks": asked(typed, "masks") * mask_views,
            "other": 1,
        }


def quality_levels(members: Sequence[MemberEntry], settings: EnsembleSettings) -> tuple[QualityLevel, ...]:
    """All levels of a manifest's ensemble, from its full quality down to one member and one view.

    Steps that change nothing (an ensemble without flips has none to leave out) are passed over.
    """
    weights = {member.name: member.weights for member in members}
    levels = [QualityLevel("full", settings, uses_left(members, 0), weights)]
    most = max(sum(use in member.use_for for member in members) for use in (*CELL_TYPES, CLS_USE))
    dropped = 0
    for lowering in LOWERINGS:
        settings = replace(settings, **lowering.changes)
        for dropped in range(dropped + 1, most) if lowering.drops_members else [dropped]:  # noqa: B020
            uses = uses_left(members, dropped)
            if (settings, uses) != (levels[-1].settings, levels[-1].uses):
                kept = max(sum(cell_type in left for left in uses.values()) for cell_type in CELL_TYPES)
                told = f"at most {kept} member(s)" if lowering.drops_members else lowering.told
                levels.append(QualityLevel(told, settings, uses, weights))
    return tuple(levels)


def uses_left(members: Sequence[MemberEntry], dropped: int) -> dict[str, frozenset[str]]:
    """What each member is used for when the `dropped` least worthy ones of each use do without; one stays for each.

    Those without a `worth` go first, and among equals the last of the manifest. Where those that stay have the weight 0
    in an average, the worthiest that counts there stays as well.
    """
    ranked = sorted(members, key=lambda member: (member.worth is None, -(member.worth or 0.0)))  # a stable sort
    left: dict[str, set[str]] = {member.name: set() for member in members}
    for use, stages in needed_stages(member.use_for for member in members).items():
        used = [member for member in ranked if use in member.use_for]
        kept = used[: max(1, len(used) - dropped)]
        for stage in stages:
            counting = [member for member in used if getattr(member.weights, stage) > 0]
            if counting and not any(member in kept for member in counting):
                kept.append(counting[0])
        for member in kept:
            left[member.name].add(use)
    return {name: frozenset(uses) for name, uses in left.items() if uses}


def ensemble_at(ensemble: Ensemble, level: QualityLevel) -> Ensemble:
    """The ensemble at a level; it shares the detectors, and what is planned of memory."""
    return Ensemble(
        [replace(member, use_for=level.uses[member.name]) for member in ensemble.members if member.name in level.uses],
        level.settings,
        ensemble.device,
        ensemble.dtype,
        ensemble.views_per_batch,
        ensemble.feature_budget_bytes,
    )
