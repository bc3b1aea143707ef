"""What is left of an ensemble without some members: every use has members that count at every stage."""

from __future__ import annotations

import itertools
import random

from kernel.ensemble.leaving_out import take_over_uses, with_uses_taken_over
from kernel.manifest.types import MemberEntry
from kernel.settings import CELL_TYPES, CLS_USE, STAGES, StageWeights, needed_stages


def test_every_use_keeps_members_that_count_whichever_are_left() -> None:
    draw = random.Random(3)
    every_use = [*CELL_TYPES, CLS_USE]
    for _ in range(300):
        members = [
            MemberEntry(
                f"m{number}", "htc", "resnet50", tuple(draw.sample(every_use, draw.randint(1, 4))),
                weights=StageWeights(*(draw.choice([0.0, 1.0, 2.0]) for _ in STAGES)),
            )
            for number in range(draw.randint(1, 4))
        ]  # fmt: skip
        left = with_uses_taken_over(members)
        assert [member.name for member in left] == [member.name for member in members]
        for use, stages in needed_stages(member.use_for for member in left).items():
            for stage in stages:
                assert any(use in member.use_for and getattr(member.weights, stage) > 0 for member in left), members
        for before, after in zip(members, left, strict=True):
            assert set(before.use_for) <= set(after.use_for)


def test_members_that_suffice_stay_as_they_are() -> None:
    uses = {"a": frozenset({"shsy5y", "astro"}), "b": frozenset({"cort", CLS_USE})}
    weights = dict.fromkeys(uses, StageWeights())
    assert take_over_uses(uses, weights) == uses
    for gone in itertools.chain(uses):
        (left,) = take_over_uses({name: own for name, own in uses.items() if name != gone}, weights).values()
        assert left >= set(CELL_TYPES)
