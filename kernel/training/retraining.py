"""Members that are there already, trained on: with few images, from their own weights, classes included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from kernel.data.json_files import read_json
from kernel.data.toml_files import read_toml
from kernel.errors import InputError
from kernel.files import file_sha256
from kernel.local_weights import resolve_weights
from kernel.log import LOG
from kernel.manifest.presets import MANIFEST_NAME, WEIGHTS_NAME, members_folder, weights_folder
from kernel.manifest.reader import parse_manifest, read_manifest
from kernel.manifest.types import MemberEntry
from kernel.models.checkpoints import read_claimed
from kernel.models.configs import DetectorSpec
from kernel.training.manifests import leave_manifest
from kernel.training.recipe import Recipe, recipe_of_tables
from kernel.training.run import TrainingRun
from kernel.training.samples import TrainingImage
from kernel.training.trainer import train_detector

#: For few images; it has no table of the detector, which the weights tell.
FEW_RECIPE = Path(__file__).with_name("recipes") / "few.toml"


@dataclass(frozen=True)
class StartMember:
    """A member to train on: its entry in its manifest, and its weights."""

    entry: MemberEntry
    weights: Path

    @cached_property
    def detector(self) -> DetectorSpec:
        """What the weights hold, with the stride that the manifest states; errors as `read_claimed`."""
        entry = self.entry
        return read_claimed(self.weights, entry.kind, entry.encoder, stem_stride=entry.stem_stride)[0]

    def recipe(self, path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Recipe:
        """The recipe `path`, or FEW_RECIPE, with the detector that the weights hold in the place of its own.

        Raises:
            InputError: as `recipe_of_tables` and `read_claimed`.
        """
        path = path or FEW_RECIPE
        tables = {**read_toml(path, "recipe"), "detector": asdict(self.detector)}
        return recipe_of_tables(tables, str(path), overrides or {})


def start_members(name: str, kinds: Sequence[str] | None = None) -> list[StartMember]:
    """The members to train on, in their manifest's order.

    Args:
        name: "shipped", or a folder of manifest.json and weights, as `weights_folder` finds them.
        kinds: those of these detector kinds alone; None: all.

    Raises:
        InputError: as `members_folder` and `resolve_weights`; or there is none of a kind.
    """
    folder = members_folder(name)
    manifest, found = resolve_weights(read_manifest(folder / MANIFEST_NAME), weights_folder(folder))
    members = [StartMember(weights.member, weights.path) for weights in found]
    if kinds is None:
        return members
    lacking = [kind for kind in kinds if kind not in {member.entry.kind for member in members}]
    if lacking:
        there = ", ".join(dict.fromkeys(member.kind for member in manifest.members))
        raise InputError(f"--from {name}: there is no {' or '.join(lacking)} among its members, only {there}")
    return [member for member in members if member.entry.kind in kinds]


def start_member(name: str, kind: str | None) -> StartMember:
    """The first member to train on of a detector kind, or the first of all; errors as `start_members`."""
    return start_members(name, None if kind is None else [kind])[0]


@dataclass(frozen=True)
class RetrainingPlan:
    """Which members to train on, with what, and where to.

    Attributes:
        start: as `start_members` takes it.
        members: of it.
        images: to train on.
        out: then holds manifest.json and `weights`.
        recipe: a file; None: FEW_RECIPE.
        iterations: of each member, instead of the recipe's.
    """

    start: str
    members: Sequence[StartMember]
    images: Sequence[TrainingImage]
    out: Path
    recipe: Path | None = None
    iterations: int | None = None
    device: str = "cpu"

    def weights(self, member: StartMember) -> Path:
        """Where a member is written."""
        return self.out / WEIGHTS_NAME / f"{member.entry.name}.safetensors"

    def runs(self) -> list[TrainingRun]:
        """A run for each member."""
        made = []
        for number, member in enumerate(self.members):
            recipe = member.recipe(self.recipe, {"iterations": self.iterations, "seed": number})
            made.append(
                TrainingRun(
                    spec=recipe.detector,
                    settings=recipe.training,
                    images=self.images,
                    out=self.weights(member),
                    init=member.weights,
                    keep_classes=True,
                    device=self.device,
                    half=True,
                    resume=True,
                )
            )
        return made


def retrain_members(plan: RetrainingPlan) -> Path:
    """Train each member on, unless that is done, and write their manifest; returns its path.

    Raises:
        InputError: what cannot be trained.
        RunError: a training fails or is stopped; the same call goes on from there.
    """
    runs = plan.runs()
    if (plan.out / MANIFEST_NAME).resolve() == (members_folder(plan.start) / MANIFEST_NAME).resolve():
        raise InputError(f"--out {plan.out} is the folder of the members to start from: name another")
    path = plan.out / MANIFEST_NAME
    parse_manifest(json.dumps(retrained_manifest(plan, is_trained=False)), str(path))  # now, and not after the training
    for run in runs:
        LOG.info("%s: %s %s from %s", run.out, run.spec.kind, run.spec.encoder, run.init)
        train_detector(run)
    leave_manifest(path, retrained_manifest(plan))
    return path


def retrained_manifest(plan: RetrainingPlan, *, is_trained: bool = True) -> dict[str, Any]:
    """The manifest that the members started from, with the new files, and with these members alone.

    It may not be valid: where a cell type has no member left, for one.

    Args:
        plan: the training.
        is_trained: whether the new files are there; else they have no sums yet.
    """
    data = read_json(members_folder(plan.start) / MANIFEST_NAME, "members")
    data.pop("$schema", None)  # a path from there
    data["notes"] = f"Trained on from the members {plan.start!r} by python -m kernel train-members."
    entries = {entry["name"]: entry for entry in data["members"]}
    data["members"] = [
        entries[member.entry.name]
        | {"file": path.name, "sha256": file_sha256(path) if is_trained else None, "dataset": None}
        for member, path in ((member, plan.weights(member)) for member in plan.members)
    ]
    return data
