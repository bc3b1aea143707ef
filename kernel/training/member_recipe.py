"""A member of a manifest as a recipe: its detector kind, its encoder, and the batch that its size allows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernel.errors import InputError
from kernel.manifest.reader import read_manifest
from kernel.manifest.types import MemberEntry
from kernel.text import name_hint
from kernel.training.recipe import Recipe, read_recipe

#: The published finetuning.
FINETUNE_RECIPE = Path(__file__).with_name("recipes") / "finetune.toml"

#: Crops per step. Published for 11 GB: 4, and 2 or 3 for the large encoders. Which of those had 2 was not published, so
#: the ones whose features take the most memory have 2 here. With more memory, `--batch-size 4` gives all members the
#: same batch; with less, `--accumulation` splits a step's crops and changes only the statistics of BatchNorm.
ENCODER_BATCHES: Mapping[str, int] = {
    "resnet18_narrow": 4,
    "efficientnet_lite0": 4,
    "resnet50": 4,
    "resnext50": 4,
    "efficientnet_b4": 4,
    "resnet101": 3,
    "resnext101": 3,
    "efficientnet_b5": 3,
    "resnext101_64x4": 2,
    "resnext101_32x8": 2,
    "efficientnet_b6": 2,
}


def find_member(manifest: Path, name: str) -> MemberEntry:
    """The member `name` of a manifest.

    Raises:
        InputError: the manifest is wrong or has no such member.
    """
    members = {member.name: member for member in read_manifest(manifest).members}
    if name not in members:
        raise InputError(f"--member {name}: {manifest} has no such member; {name_hint(name, members, 'it has')}")
    return members[name]


def member_recipe(
    member: MemberEntry, path: Path = FINETUNE_RECIPE, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """The recipe `path` for a member: its kind and encoder, and the batch of ENCODER_BATCHES where that is smaller.

    The epochs, which are published as multiples of the batch size, shrink with it, so that the iterations stay.

    Args:
        member: a manifest's.
        path: TOML file, as `read_recipe` takes it; its own kind and encoder do not count.
        overrides: as there. A batch size or epochs in it are taken as they are.

    Raises:
        InputError: as `read_recipe` does.
    """
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    given |= {"kind": member.kind, "encoder": member.encoder}
    recipe = read_recipe(path, given)
    batch, limit = recipe.training.batch_size, ENCODER_BATCHES.get(member.encoder, recipe.training.batch_size)
    if "batch_size" in given or limit >= batch:
        return recipe
    smaller = {"batch_size": limit, "epochs": max(recipe.training.epochs * limit // batch, 1)}
    return read_recipe(path, smaller | given)
