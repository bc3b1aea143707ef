"""Recipes: what detector to train and how, as a TOML file that can be read, kept and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm

from kernel.data.toml_files import read_toml
from kernel.errors import InputError
from kernel.log import LOG
from kernel.manifest.rules import RULE_ENCODER
from kernel.manifest.types import MASK_KINDS, MEMBER_KINDS, PLAIN_ENCODER, TIMM_PREFIX
from kernel.models.configs import NECK_NORM_GROUPS, DetectorSpec
from kernel.models.encoders import smallest_stem_stride
from kernel.text import name_hint
from kernel.training.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What detector to train, and how."""

    detector: DetectorSpec
    training: TrainSettings

    def check(self, source: str) -> None:
        """Refuse what cannot be trained; `source` names the recipe in the message.

        Raises:
            InputError: names each value that is wrong, and the allowed ones.
        """
        detector = self.detector
        if detector.kind not in MEMBER_KINDS:
            raise InputError(f"{source}: kind {detector.kind!r} is not one of {', '.join(MEMBER_KINDS)}")
        check_encoder(detector.encoder, f"{source}: encoder")
        if (detector.kind in MASK_KINDS) != (detector.encoder == PLAIN_ENCODER):
            raise InputError(
                f"{source}: a {detector.kind} cannot have the encoder {detector.encoder}: {PLAIN_ENCODER} is that of a "
                f"{' or '.join(MASK_KINDS)}, and of no other kind"
            )
        if detector.mask_channels < 1:
            raise InputError(f"{source}: mask_channels is {detector.mask_channels}, it must be at least 1")
        smallest = smallest_stem_stride(detector.encoder)
        if detector.stem_stride != smallest:
            raise InputError(
                f"{source}: stem_stride is {detector.stem_stride}: with the encoder {detector.encoder} members are "
                f"trained with {smallest}, the smallest that it allows, which finds the smallest cells; a manifest "
                "alone may state another"
            )
        if detector.kind == "htc" and detector.mask_channels != detector.neck_channels:
            raise InputError(
                f"{source}: mask_channels is {detector.mask_channels} and neck_channels {detector.neck_channels}; an "
                "htc's mask heads add one's features to the next one's input, so the two must be equal"
            )
        if detector.neck_norm and detector.neck_channels % NECK_NORM_GROUPS:
            raise InputError(
                f"{source}: neck_channels is {detector.neck_channels}; with neck_norm it must be a multiple of "
                f"{NECK_NORM_GROUPS}, the groups of GroupNorm"
            )
        self.training.check(source)


def check_encoder(encoder: str, place: str) -> None:
    """Refuse a name that no encoder has; whether timm knows it is asked later.

    Args:
        encoder: the name.
        place: where it is written, before the name in the message.

    Raises:
        InputError: names the encoder that was meant, where the name is its but for the case of letters or "timm:".
    """
    if not RULE_ENCODER.allows(encoder):
        meant = [name for name in (encoder.lower(), f"{TIMM_PREFIX}{encoder.lower()}") if is_encoder(name)]
        hint = f"; did you mean {meant[0]}?" if meant else ""
        raise InputError(f"{place} {encoder!r} is not {RULE_ENCODER.description}{hint}")


def is_encoder(name: str) -> bool:
    """Whether an encoder has this name; of timm's, whether timm has a network of it."""
    network = name.removeprefix(TIMM_PREFIX).partition(".")[0]
    return RULE_ENCODER.allows(name) and (not name.startswith(TIMM_PREFIX) or timm.is_model(network))


def read_recipe(path: Path, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe of two tables, `[detector]` and `[training]`, whose keys are the fields of the dataclasses.

    Args:
        path: TOML file.
        overrides: field names of either dataclass to values that replace the file's; None replaces nothing.

    Raises:
        InputError: a file that is no TOML, unknown tables and keys (with the nearest known one), values of a wrong type
            or name.
    """
    return recipe_of_tables(read_toml(path, "recipe"), str(path), overrides or {})


def recipe_of_tables(data: Mapping[str, Any], source: str, overrides: Mapping[str, Any]) -> Recipe:
    """As `read_recipe`, from parsed tables; `source` names them in messages."""
    tables = {"detector": DetectorSpec, "training": TrainSettings}
    refuse_unknown(data, tables, source, "table")
    made = {}
    for table, target in tables.items():
        known = {field.name: field for field in dataclasses.fields(target)}
        given = data.get(table, {})
        if not isinstance(given, Mapping):
            raise InputError(f"{source}: {table} is {given!r}, expected a table [{table}]")
        values = dict(given)
        refuse_unknown(values, known, f"{source} [{table}]", "key")
        values |= {key: value for key, value in overrides.items() if key in known and value is not None}
        for key, value in values.items():
            wanted = {"int": int, "float": (int, float), "str": str, "bool": bool}[str(known[key].type)]
            if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
                raise InputError(f"{source} [{table}] {key}: found {value!r}, expected {known[key].type}")
        missing = [key for key, field in known.items() if field.default is dataclasses.MISSING and key not in values]
        if missing:
            raise InputError(f"{source} [{table}]: {', '.join(missing)} must be given")
        made[table] = target(**values)
    detector = made["detector"]
    if "stem_stride" not in data.get("detector", {}):
        detector = with_smallest_stem(detector)
    recipe = Recipe(detector, made["training"])
    recipe.check(source)
    return recipe


def with_smallest_stem(detector: DetectorSpec) -> DetectorSpec:
    """A detector of one of timm's encoders with the smallest stride that its stem allows; told where that is not 1.

    Raises:
        InputError: as `smallest_stem_stride`.
    """
    is_timm = RULE_ENCODER.allows(detector.encoder) and detector.encoder.startswith(TIMM_PREFIX)
    stride = smallest_stem_stride(detector.encoder) if is_timm else detector.stem_stride
    if stride != detector.stem_stride:
        LOG.info("%s: its stem keeps its stride: stem_stride is %d", detector.encoder, stride)
    return dataclasses.replace(detector, stem_stride=stride)


def refuse_unknown(data: Mapping[str, Any], known: Mapping[str, Any], source: str, what: str) -> None:
    """Refuse a key of `data` that is not in `known`.

    Raises:
        InputError: names the nearest known one.
    """
    for key in data:
        if key not in known:
            raise InputError(f"{source}: unknown {what} {key!r}; {name_hint(key, known)}")
