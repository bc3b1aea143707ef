"""Quality levels: what an ensemble leaves out, step by step, when time is short.

A quality level is settings and a choice of members, nothing more: an image done at one has the result of an `Ensemble`
with these settings and members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from kernel.ensemble.ensemble import Ensemble
from kernel.ensemble.views import ALL_VIEWS
from kernel.manifest.types import MASK_KINDS, MemberEntry
from kernel.settings import CELL_TYPES, CLS_USE, EVERY_USE, EnsembleSettings, StageWeights, needed_stages, types_differ


@dataclass(frozen=True)
class QualityStep:
    """One way to save time."""

    description: str
    changes: Mapping[str, Any] = field(default_factory=dict)  # of EnsembleSettings
    drops_members: bool = False  # the least worthy of each use, one after another, until one is left


#: In this order: what costs least quality for the time it saves comes first.
QUALITY_STEPS = (
    QualityStep("masks from the identity view alone", {"use_tta_masks": False}),
    QualityStep("boxes from the identity view alone", {"use_tta": False, "use_tta_masks": False}),
    QualityStep("fewer members", drops_members=True),
)


@dataclass(frozen=True)
class QualityLevel:
    """Settings, and what each member is used for at this level."""

    name: str
    settings: EnsembleSettings
    uses: Mapping[str, frozenset[str]]  # by member that is used, in the manifest's order
    weights: Mapping[str, StageWeights]  # of all members
    mask_networks: frozenset[str] = frozenset()  # the members that make masks alone, from the image itself

    def stage_work(self, cell_type: str) -> dict[str, float]:
        """The work on an image of a cell type by stage, in runs of one member on one view.

        All members cost the same, and nothing at a stage where their weight is 0. Mask networks have no features. What
        is the same at all quality levels (reading, post-processing) is "other".
        """

        def asked(names: set[str], stage: str) -> int:
            return sum(getattr(self.weights[name], stage) > 0 for name in names)

        typed = {name for name, uses in self.uses.items() if cell_type in uses}
        has_first_pass = types_differ(self.uses.values())
        first = {name for name, uses in self.uses.items() if CLS_USE in uses} if has_first_pass else set()
        detectors = typed - self.mask_networks
        box_views = len(ALL_VIEWS) if self.settings.use_tta else 1
        mask_views = len(ALL_VIEWS) if self.settings.use_tta_masks else 1
        return {
            "features": len(detectors) * max(box_views, mask_views) + len(first - typed) * box_views,
            "proposals": asked(typed, "proposals") + asked(first, "proposals"),
            "boxes": (asked(typed, "boxes") + asked(first, "boxes")) * box_views,
            "masks": asked(typed, "masks") * mask_views,
            "other": 1,
        }


def quality_levels(members: Sequence[MemberEntry], settings: EnsembleSettings) -> tuple[QualityLevel, ...]:
    """All quality levels of a manifest's ensemble, from full quality down to one member and one view.

    Steps that change nothing are left out: an ensemble without flips has none to save.
    """
    weights = {member.name: member.weights for member in members}
    mask_networks = frozenset(member.name for member in members if member.kind in MASK_KINDS)
    levels = [QualityLevel("full", settings, uses_left(members, 0), weights, mask_networks)]
    most = max(sum(use in member.use_for for member in members) for use in EVERY_USE)
    dropped = 0
    for step in QUALITY_STEPS:
        settings = replace(settings, **step.changes)
        for dropped in range(dropped + 1, most) if step.drops_members else [dropped]:  # noqa: B020
            uses = uses_left(members, dropped)
            if (settings, uses) != (levels[-1].settings, levels[-1].uses):
                kept = max(sum(cell_type in left for left in uses.values()) for cell_type in CELL_TYPES)
                name = f"at most {kept} member(s)" if step.drops_members else step.description
                levels.append(QualityLevel(name, settings, uses, weights, mask_networks))
    return tuple(levels)


def uses_left(members: Sequence[MemberEntry], dropped: int) -> dict[str, frozenset[str]]:
    """What each member is used for when each use loses its `dropped` least worthy members. One at least stays.

    Members without a `worth` go first, among equals the last in the manifest. A mask network takes a fraction of a
    detector's time: it goes after all detectors but the last. Where none of those that stay has a weight at an
    averaging stage, the worthiest that has one stays as well.
    """
    ranked = sorted(members, key=lambda member: (member.worth is None, -(member.worth or 0.0)))  # a stable sort
    left: dict[str, set[str]] = {member.name: set() for member in members}
    for use, stages in needed_stages(member.use_for for member in members).items():
        detectors = [member for member in ranked if use in member.use_for and member.kind not in MASK_KINDS]
        networks = [member for member in ranked if use in member.use_for and member.kind in MASK_KINDS]
        used = [*detectors[:1], *networks, *detectors[1:]]
        kept = used[: max(1, len(used) - dropped)]
        for stage in stages:
            counting = [member for member in used if getattr(member.weights, stage) > 0]
            if counting and not any(member in kept for member in counting):
                kept.append(counting[0])
        for member in kept:
            left[member.name].add(use)
    return {name: frozenset(uses) for name, uses in left.items() if uses}


def ensemble_at(ensemble: Ensemble, level: QualityLevel) -> Ensemble:
    """The ensemble at a quality level. Detectors and memory plan are shared."""
    kept = [member for member in ensemble.members if member.name in level.uses]
    return Ensemble.like(
        ensemble, [replace(member, use_for=level.uses[member.name]) for member in kept], level.settings
    )
