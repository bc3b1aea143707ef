"""The manifest: which members an ensemble has, where their weights lie, and what the kernel is called.

`parse_manifest` turns its JSON into frozen dataclasses or says everything that is wrong with it, each problem
with its place (`members[2].encoder`), what is allowed and what to do. `bundle/manifest.schema.json` documents
the same format. Standard library only: the builder reads manifests on a bare Python.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from kernel.errors import InputError
from kernel.runtime.text import read_any_text
from kernel.settings import (
    CELL_TYPES,
    CLS_USE,
    DEFAULT_THRESHOLDS,
    EQUAL_WEIGHTS,
    NETWORK_DTYPES,
    CellTypeRule,
    EnsembleSettings,
    StageWeights,
    Thresholds,
    needed_stages,
    types_differ,
)

KIND_NAMES = ("maskrcnn", "cascade", "htc")
ENCODER_NAMES = (
    "resnet50",
    "resnet101",
    "resnext50",
    "resnext101",  # 32x4d
    "resnext101_64x4",
    "resnext101_32x8",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_lite0",  # small: for the demo and for tests
    "resnet18_narrow",  # small: for the demo and for tests
)
#: Kaggle's accelerators that this kernel can use; its P100 is retired.
ACCELERATOR_NAMES = ("NvidiaTeslaT4",)
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
#: In a member's `file`: the number of the fold that its training left out. Only out-of-fold validation takes it.
FOLD_PLACEHOLDER = "{fold}"

OWNER_SLUG_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]*/[a-z0-9][a-z0-9-]{4,49}"
DATASET_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]*/[a-z0-9][a-z0-9-]{5,49}"
COMPETITION_PATTERN = r"[a-z0-9][a-z0-9-]*"
MEMBER_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
SHA256_PATTERN = r"[0-9a-f]{64}"


@dataclass(frozen=True)
class KernelIdentity:
    """The kernel as Kaggle knows it."""

    id: str  # "owner/slug"
    title: str  # its slug is the id's slug
    competition: str
    accelerator: str = "NvidiaTeslaT4"  # two T4
    private: bool = True


@dataclass(frozen=True)
class MemberEntry:
    """One detector of the ensemble."""

    name: str
    kind: str  # one of KIND_NAMES
    encoder: str  # one of ENCODER_NAMES
    use_for: tuple[str, ...]  # cell types whose images it is run on, and "cls"
    dataset: str | None = None  # "owner/slug"; None: any of the manifest's weight_datasets
    file: str | None = None  # path inside the dataset, "{fold}" in it for a file per fold; None: not known yet
    sha256: str | None = None  # checked before use; None: not known yet
    weights: StageWeights = EQUAL_WEIGHTS  # in the averages of its cell types' members
    worth: float | None = None  # the least worthy are left out first when time is short; None: before all others
    notes: str = ""


@dataclass(frozen=True)
class Manifest:
    """Everything that a kernel is built from, but for the code."""

    kernel: KernelIdentity
    wheels_dataset: str  # "owner/slug"
    members: tuple[MemberEntry, ...]
    weight_datasets: tuple[str, ...] = ()  # where members without a dataset are looked for
    time_limit_hours: float = 9.0  # the competition's
    time_margin_hours: float = 0.5  # kept back: images not begun by then get an empty row
    dtype: str = "float32"  # one of NETWORK_DTYPES
    ensemble: EnsembleSettings = field(default_factory=EnsembleSettings)
    notes: str = ""

    def members_for(self, cell_type: str) -> tuple[MemberEntry, ...]:
        """The members that images of `cell_type` are run with, in the manifest's order."""
        return tuple(member for member in self.members if cell_type in member.use_for)

    def datasets_for(self, member: MemberEntry) -> tuple[str, ...]:
        """The datasets in which `member`'s file may lie, the likeliest first."""
        return (member.dataset,) if member.dataset is not None else self.weight_datasets

    @property
    def all_weight_datasets(self) -> tuple[str, ...]:
        """Every dataset that the kernel needs weights from, each once, in the manifest's order."""
        named = [name for member in self.members for name in self.datasets_for(member)]
        return tuple(dict.fromkeys(named))


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a file. Raises InputError where there is none, or it is wrong."""
    try:
        return parse_manifest(read_any_text(path), str(path))
    except FileNotFoundError as error:
        raise InputError(f"no manifest {path}: give one by --manifest, weights_manifest.json for example") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no manifest, which is a JSON file: {error}") from error


def parse_manifest(text: str, source: str) -> Manifest:
    """Read a manifest from JSON text. `source` names the text in messages, e.g. the file's path.

    Raises InputError that lists every problem with its JSON path.
    """
    reader = ManifestReader()
    try:
        data = json.loads(text, object_pairs_hook=reader.object_of_pairs, parse_constant=reader.refuse_constant)
    except json.JSONDecodeError as error:
        raise InputError(f"{source}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error
    manifest = reader.manifest(data)
    if reader.problems or manifest is None:
        raise InputError(
            f"{source}: {len(reader.problems)} problem(s); the format is documented in "
            "bundle/manifest.schema.json\n" + "\n".join(f"  - {problem}" for problem in reader.problems)
        )
    return manifest


def refuse_fold_files(manifest: Manifest) -> None:
    """Raise InputError where a member's `file` stands for a file per fold: there must be plain files to run."""
    per_fold = [member for member in manifest.members if member.file is not None and FOLD_PLACEHOLDER in member.file]
    if per_fold:
        told = ", ".join(f"{member.name} ({member.file})" for member in per_fold)
        example = str(per_fold[0].file).replace(FOLD_PLACEHOLDER, "0")
        raise InputError(
            f"these members have a file per fold, which `python -m kernel validate --out-of-fold` alone takes: {told}. "
            f"Here each needs one file: name that of one fold, {example} for example"
        )


def manifest_to_json(manifest: Manifest) -> str:
    """The manifest as JSON that `parse_manifest` reads back as an equal one. Same manifest, same text."""
    return json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"


@dataclass(frozen=True)
class FieldRule:
    """What a field must be."""

    allows: Callable[[Any], bool]
    told: str  # what is said where it is not
    choices: tuple[str, ...] = ()  # to suggest the nearest of


def rule_pattern(pattern: str, told: str) -> FieldRule:
    """A string that matches all of `pattern`."""
    return FieldRule(lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, told)


def rule_choice(choices: Sequence[str]) -> FieldRule:
    """One of `choices`."""
    return FieldRule(
        lambda value: isinstance(value, str) and value in choices,
        f"one of {', '.join(choices)}",
        tuple(choices),
    )


def rule_number(lowest: float, highest: float, whole: bool = False) -> FieldRule:
    """A number, bounds included; `whole`: an integer."""
    kinds = (int,) if whole else (int, float)
    told = f"{'an integer' if whole else 'a number'} from {lowest:g} to {highest:g}"
    return FieldRule(
        lambda value: isinstance(value, kinds) and not isinstance(value, bool) and lowest <= value <= highest,
        told,
    )


def rule_or_null(rule: FieldRule) -> FieldRule:
    """What `rule` allows, or null."""
    return FieldRule(lambda value: value is None or rule.allows(value), f"{rule.told}, or null", rule.choices)


def is_weight_path(value: Any) -> bool:
    """Whether `value` is a relative path, with forward slashes, of a weight file inside a dataset."""
    return (
        isinstance(value, str)
        and value.endswith(WEIGHT_SUFFIXES)
        and "\\" not in value
        and all(part not in ("", ".", "..") for part in value.split("/"))
    )


RULE_TEXT = FieldRule(lambda value: isinstance(value, str), "a text")
RULE_TITLE = FieldRule(
    # Kaggle makes a slug of the title; of other letters than ASCII it would be hard to foresee.
    lambda value: isinstance(value, str) and len(value.strip()) >= 5 and value.isascii(),
    "a title of at least 5 ASCII characters",
)
RULE_SWITCH = FieldRule(lambda value: isinstance(value, bool), "true or false")
RULE_FRACTION = rule_number(0, 1)
RULE_COUNT = rule_number(0, 10_000_000, whole=True)
RULE_DATASET = rule_pattern(
    DATASET_PATTERN,
    "a dataset as owner/slug, as in its address kaggle.com/datasets/owner/slug (slug: 6 to 50 lower-case "
    "letters, digits and hyphens)",
)
RULE_WEIGHT_FILE = FieldRule(
    is_weight_path,
    f"a file's path inside its dataset, ending in {', '.join(WEIGHT_SUFFIXES)}",
)

KERNEL_RULES: dict[str, FieldRule] = {
    "id": rule_pattern(
        OWNER_SLUG_PATTERN,
        "the kernel as owner/slug, the owner being your Kaggle user name (slug: 5 to 50 lower-case letters, "
        "digits and hyphens)",
    ),
    "title": RULE_TITLE,
    "competition": rule_pattern(
        COMPETITION_PATTERN, "a competition's slug, as in its address kaggle.com/competitions/slug"
    ),
    "accelerator": rule_choice(ACCELERATOR_NAMES),
    "private": RULE_SWITCH,
}
MEMBER_RULES: dict[str, FieldRule] = {
    "name": rule_pattern(MEMBER_NAME_PATTERN, "letters, digits, dots, hyphens and underscores"),
    "kind": rule_choice(KIND_NAMES),
    "encoder": rule_choice(ENCODER_NAMES),
    "dataset": rule_or_null(RULE_DATASET),
    "file": rule_or_null(RULE_WEIGHT_FILE),
    "sha256": rule_or_null(rule_pattern(SHA256_PATTERN, "the file's SHA-256 as 64 lower-case hexadecimal digits")),
    "worth": rule_or_null(rule_number(-1e9, 1e9)),
    "notes": RULE_TEXT,
}
STAGE_WEIGHT_RULES: dict[str, FieldRule] = {part.name: rule_number(0, 1000) for part in fields(StageWeights)}
THRESHOLD_RULES: dict[str, FieldRule] = {
    "rpn_nms_pre": rule_number(1, 10_000_000, whole=True),
    "rpn_iou_threshold": RULE_FRACTION,
    "rpn_score_threshold": RULE_FRACTION,
    "rpn_max_per_img": rule_or_null(rule_number(1, 10_000_000, whole=True)),
    "rcnn_iou_threshold": RULE_FRACTION,
    "rcnn_score_threshold": RULE_FRACTION,
    "mask_box_scale": rule_number(1, 2),
    "mask_threshold": RULE_FRACTION,
    "mask_nms_threshold": RULE_FRACTION,
    "confidence": RULE_FRACTION,
    "min_size": RULE_COUNT,
    "corrupt": RULE_SWITCH,
}
CELL_TYPE_RULE_RULES: dict[str, FieldRule] = {
    "score": RULE_FRACTION,
    "astro_above": RULE_COUNT,
    "cort_below_total": RULE_COUNT,
    "cort_below_second": RULE_COUNT,
}
ENSEMBLE_RULES: dict[str, FieldRule] = {
    "use_tta": RULE_SWITCH,
    "use_tta_masks": RULE_SWITCH,
    "bbox_nms": RULE_SWITCH,
    "mask_score_power": rule_number(0, 16),
    # The labels 0, 1, 2 are the cell types: with other counts the most frequent label names no type.
    "num_classes": FieldRule(
        lambda value: type(value) is int and value == len(CELL_TYPES),
        f"{len(CELL_TYPES)}, one class per cell type",
    ),
}
MANIFEST_RULES: dict[str, FieldRule] = {
    "wheels_dataset": RULE_DATASET,
    "time_limit_hours": rule_number(0.01, 24),
    "time_margin_hours": rule_number(0, 24),
    "dtype": rule_choice(NETWORK_DTYPES),
    "notes": RULE_TEXT,
}


class ManifestReader:
    """Collects what is wrong while it reads, so that one run tells all."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def object_of_pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """What json calls for every object: a key given twice is a mistake that it would hide."""
        keys = [key for key, _ in pairs]
        for key in sorted({key for key in keys if keys.count(key) > 1}):
            self.problems.append(f"the key {key!r} is given twice in one object: remove one")
        return dict(pairs)

    def refuse_constant(self, constant: str) -> float:
        """What json calls for NaN and infinities, which are no JSON."""
        self.problems.append(f"{constant} is no JSON number: give a number")
        return 0.0

    def manifest(self, data: Any) -> Manifest | None:
        """Read the whole; None where it is too broken to be built."""
        seen = len(self.problems)
        values = self.values(data, "", Manifest, MANIFEST_RULES, extra=("$schema",))
        if values is None:
            return None
        values.pop("$schema", None)
        kernel = None
        if "kernel" in values:
            kernel = self.values(values.pop("kernel"), "kernel", KernelIdentity, KERNEL_RULES)
        members = self.members(values.pop("members")) if "members" in values else ()
        datasets = self.dataset_list(values.pop("weight_datasets", []))
        ensemble = self.ensemble(values.pop("ensemble", {}))
        if len(self.problems) > seen or kernel is None or ensemble is None:
            return None
        manifest = Manifest(
            kernel=KernelIdentity(**kernel),
            members=members,
            weight_datasets=datasets,
            ensemble=ensemble,
            **values,
        )
        self.check_whole(manifest)
        return manifest

    def values(
        self,
        data: Any,
        path: str,
        target: type,
        rules: dict[str, FieldRule],
        extra: Collection[str] = (),
    ) -> dict[str, Any] | None:
        """The object `data`, checked against `target`'s fields and `rules`; None where it is no object.

        A field without a rule is only checked to be there: the caller reads it.
        """
        if not isinstance(data, dict):
            self.problems.append(f"{path or 'the manifest'}: found {shorten_json(data)}, expected an object {{...}}")
            return None
        known = [*(part.name for part in fields(target)), *extra]
        for key in data:
            if key not in known:
                nearest = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
                self.problems.append(f"{join_path(path, key)}: unknown key; {hint}")
        for part in fields(target):
            if part.name in data:
                if part.name in rules:
                    self.check(data[part.name], join_path(path, part.name), rules[part.name])
            elif part.default is MISSING and part.default_factory is MISSING:
                told = f": give {rules[part.name].told}" if part.name in rules else ""
                self.problems.append(f"{join_path(path, part.name)}: missing{told}")
        return {key: value for key, value in data.items() if key in known}

    def check(self, value: Any, path: str, rule: FieldRule) -> bool:
        """Note a problem unless `value` is what `rule` allows."""
        if rule.allows(value):
            return True
        nearest = difflib.get_close_matches(value, rule.choices, n=1) if isinstance(value, str) else []
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        self.problems.append(f"{path}: found {shorten_json(value)}, expected {rule.told}{hint}")
        return False

    def members(self, data: Any) -> tuple[MemberEntry, ...]:
        """Read the list of members."""
        if not isinstance(data, list) or not data:
            self.problems.append(f"members: found {shorten_json(data)}, expected a list of at least one member")
            return ()
        members = []
        for index, entry in enumerate(data):
            path = f"members[{index}]"
            seen = len(self.problems)
            values = self.values(entry, path, MemberEntry, MEMBER_RULES)
            if values is None:
                continue
            if "use_for" in values:
                values["use_for"] = self.use_for(values["use_for"], f"{path}.use_for")
            if "weights" in values:
                given = self.values(values["weights"], f"{path}.weights", StageWeights, STAGE_WEIGHT_RULES)
                values["weights"] = StageWeights(**(given or {}))
            if len(self.problems) == seen:
                members.append(MemberEntry(**values))
        names = [entry.get("name") for entry in data if isinstance(entry, dict)]
        for index, name in enumerate(names):
            if isinstance(name, str) and name in names[:index]:
                self.problems.append(
                    f"members[{index}].name: {name!r} is the name of members[{names.index(name)}] as well: "
                    "give each member its own"
                )
        return tuple(members)

    def use_for(self, data: Any, path: str) -> tuple[str, ...]:
        """Read what a member is used for."""
        rule = rule_choice((*CELL_TYPES, CLS_USE))
        if not isinstance(data, list) or not data:
            self.problems.append(f"{path}: found {shorten_json(data)}, expected a list, each {rule.told}")
            return ()
        for index, use in enumerate(data):
            if self.check(use, f"{path}[{index}]", rule) and use in data[:index]:
                self.problems.append(f"{path}[{index}]: {use!r} is listed twice: remove one")
        return tuple(use for use in data if isinstance(use, str))

    def dataset_list(self, data: Any) -> tuple[str, ...]:
        """Read the datasets that hold weights."""
        if not isinstance(data, list):
            self.problems.append(f"weight_datasets: found {shorten_json(data)}, expected a list of owner/slug")
            return ()
        for index, name in enumerate(data):
            if self.check(name, f"weight_datasets[{index}]", RULE_DATASET) and name in data[:index]:
                self.problems.append(f"weight_datasets[{index}]: {name!r} is listed twice: remove one")
        return tuple(name for name in data if isinstance(name, str))

    def ensemble(self, data: Any) -> EnsembleSettings | None:
        """Read the ensemble's settings; what is not given keeps the published value, per cell type."""
        values = self.values(data, "ensemble", EnsembleSettings, ENSEMBLE_RULES)
        if values is None:
            return None
        seen = len(self.problems)
        given = values.pop("thresholds", {})
        rule = self.values(
            values.pop("cell_type_rule", {}), "ensemble.cell_type_rule", CellTypeRule, CELL_TYPE_RULE_RULES
        )
        thresholds = dict(DEFAULT_THRESHOLDS)
        if not isinstance(given, dict):
            self.problems.append(
                f"ensemble.thresholds: found {shorten_json(given)}, expected an object, a key per cell type"
            )
            given = {}
        for cell_type, entry in given.items():
            path = join_path("ensemble.thresholds", cell_type)
            if cell_type not in CELL_TYPES:
                self.problems.append(f"{path}: unknown cell type; known are {', '.join(CELL_TYPES)}")
                continue
            checked = self.values(entry, path, Thresholds, THRESHOLD_RULES)
            if checked is not None and len(self.problems) == seen:
                thresholds[cell_type] = replace(DEFAULT_THRESHOLDS[cell_type], **checked)
        if len(self.problems) > seen or rule is None:
            return None
        known = {part.name for part in fields(EnsembleSettings)}
        return EnsembleSettings(
            thresholds=thresholds,
            cell_type_rule=CellTypeRule(**rule),
            **{key: value for key, value in values.items() if key in known},
        )

    def check_whole(self, manifest: Manifest) -> None:
        """What no field shows by itself."""
        for cell_type in CELL_TYPES:
            if not manifest.members_for(cell_type):
                self.problems.append(
                    f"members: none is used for {cell_type!r}: add it to the `use_for` of at least one member"
                )
        # Where all members skip the same type, which is told above, no first pass would help.
        if types_differ(member.use_for for member in manifest.members) and not manifest.members_for(CLS_USE):
            self.problems.append(
                f"members: the cell types use different members, so some must find out the type first: add "
                f"{CLS_USE!r} to the `use_for` of at least one member"
            )
        self.check_weights(manifest)
        for index, member in enumerate(manifest.members):
            if not manifest.datasets_for(member):
                self.problems.append(
                    f"members[{index}].dataset: {member.name!r} names no dataset, and `weight_datasets` is "
                    "empty: fill in one of them"
                )
            if member.file is None and member.sha256 is not None:
                self.problems.append(f"members[{index}].sha256: given without `file`: name the file as well")
            plain = (member.file or "").replace(FOLD_PLACEHOLDER, "")
            if "{" in plain or "}" in plain:
                self.problems.append(
                    f"members[{index}].file: {member.file!r} holds braces, of which only {FOLD_PLACEHOLDER} stands for "
                    "something: write that, or the file's plain name"
                )
            if plain != (member.file or "") and member.sha256 is not None:
                self.problems.append(
                    f"members[{index}].sha256: {member.file!r} stands for a file per fold, and this is the sum of one: "
                    "leave `sha256` out, or name one file"
                )
        files: dict[tuple[str | None, str], int] = {}
        for index, member in enumerate(manifest.members):
            if member.file is None:
                continue
            first = files.setdefault((member.dataset, member.file), index)
            if first != index:
                self.problems.append(
                    f"members[{index}].file: {member.file!r} is the file of members[{first}] as well: give "
                    "each member its own, the same detector counted twice adds nothing"
                )
        if manifest.time_margin_hours >= manifest.time_limit_hours:
            self.problems.append(
                f"time_margin_hours: {manifest.time_margin_hours:g} leaves nothing of time_limit_hours "
                f"{manifest.time_limit_hours:g}: give less"
            )

    def check_weights(self, manifest: Manifest) -> None:
        """Every average needs a member that counts in it: all three for each cell type, two in the first pass."""
        stages_of_uses = needed_stages(member.use_for for member in manifest.members)
        for use, stage in [(use, stage) for use, stages in stages_of_uses.items() for stage in stages]:
            users = [index for index, member in enumerate(manifest.members) if use in member.use_for]
            if users and not any(getattr(manifest.members[index].weights, stage) > 0 for index in users):
                self.problems.append(
                    f"members[{users[0]}].weights.{stage}: all members used for {use!r} have 0 here, and nothing would "
                    "be left to average: give at least one of them more"
                )


def join_path(path: str, key: str) -> str:
    """The JSON path of `key` inside `path`."""
    return f"{path}.{key}" if path else key


def shorten_json(value: Any, limit: int = 60) -> str:
    """`value` as JSON for a message, cut to about `limit` characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[:limit] + "..."
