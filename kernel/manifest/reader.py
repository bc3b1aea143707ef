"""JSON text to a `Manifest`; or all that is wrong with it, each problem with its place, such as `members[2].encoder`.

Standard library only: the builder reads manifests on a bare Python.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from kernel.errors import InputError
from kernel.manifest.rules import (
    CELL_TYPE_RULE_RULES,
    ENSEMBLE_RULES,
    KERNEL_RULES,
    MANIFEST_RULES,
    MEMBER_RULES,
    RULE_DATASET,
    RULE_TEXT,
    STAGE_WEIGHT_RULES,
    THRESHOLD_RULES,
    FieldRule,
    rule_choice,
)
from kernel.manifest.types import (
    FOLD_PLACEHOLDER,
    MASK_KINDS,
    PLAIN_ENCODER,
    KernelIdentity,
    Manifest,
    MemberEntry,
    usual_weights,
)
from kernel.settings import (
    CELL_TYPES,
    CLS_USE,
    DEFAULT_THRESHOLDS,
    EVERY_USE,
    CellTypeRule,
    EnsembleSettings,
    StageWeights,
    Thresholds,
    needed_stages,
    types_differ,
)
from kernel.text import parse_json, read_any_text

#: How many problems a message lists.
MOST_PROBLEMS = 50


def same_sums(sums: Sequence[str | None]) -> list[tuple[int, int]]:
    """Pairs of places with the same checksum, the first one and each later one."""
    firsts: dict[str, int] = {}
    pairs = ((firsts.setdefault(value, place), place) for place, value in enumerate(sums) if value is not None)
    return [(first, place) for first, place in pairs if first != place]


def read_manifest(path: Path) -> Manifest:
    """Read a manifest file.

    Raises:
        InputError: it is missing, or `parse_manifest` refuses it.
    """
    try:
        return parse_manifest(read_any_text(path), str(path))
    except FileNotFoundError as error:
        raise InputError(f"no manifest {path}: name one that is there, weights_manifest.json for example") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no manifest, which is a JSON file: {error}") from error


def parse_manifest(text: str, source: str) -> Manifest:
    """Read a manifest from JSON text. `source` names the text in messages: the file's path, for example.

    Raises:
        InputError: every problem is listed, with its JSON path.
    """
    reader = ManifestReader()
    try:
        data = parse_json(text, reader.object_of_pairs, reader.refuse_constant)
    except json.JSONDecodeError as error:
        hint = json_hint(text, error.pos)
        raise InputError(f"{source}:{error.lineno}:{error.colno}: not JSON: {error.msg}{hint}") from error
    except ValueError as error:
        raise InputError(f"{source}: no manifest: {error}") from error
    try:
        manifest = reader.manifest(data)
    except RecursionError as error:  # of a value that could be read, and cannot be shown
        raise InputError(f"{source}: no manifest: it is nested too deeply") from error
    if reader.problems or manifest is None:
        listed = [f"  - {problem}" for problem in reader.problems[:MOST_PROBLEMS]]
        if len(reader.problems) > MOST_PROBLEMS:
            listed.append(f"  and {len(reader.problems) - MOST_PROBLEMS} more")
        raise InputError(
            f"{source}: {len(reader.problems)} problem(s); the format is documented in "
            "bundle/manifest.schema.json\n" + "\n".join(listed)
        )
    return manifest


def json_hint(text: str, place: int) -> str:
    """What may have been meant where a text is no JSON, to end a message with."""
    before, rest = text[:place].rstrip(), text[place:].lstrip()
    if not text.strip():
        return "; the file is empty"
    if rest.startswith(("//", "/*", "#")):
        return "; JSON has no comments, they go into `notes`"
    if rest.startswith(("'", "“", "”")):
        return "; quotes are plain double ones"
    # From Python 3.13 on the place is that of the comma.
    if re.match(r"\s*,\s*[]}]", text[len(before.removesuffix(",")) :]):
        return "; no comma after the last entry"
    return ""


class ManifestReader:
    """Reads a manifest and collects all problems, so that one message tells them all."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def object_of_pairs(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """Called by json for each object, to note keys that are given twice: json would keep the last one."""
        counts = Counter(key for key, _ in pairs)
        for key in sorted(key for key, count in counts.items() if count > 1):
            self.problems.append(f"the key {key!r} is given twice in one object: remove one")
        return dict(pairs)

    def refuse_constant(self, constant: str) -> float:
        """Called by json for NaN and infinities, which it reads although they are no JSON."""
        self.problems.append(f"{constant} is no JSON number: give a number")
        return 0.0

    def manifest(self, data: Any) -> Manifest | None:
        """Read the whole manifest; None where a field is wrong."""
        seen = len(self.problems)
        values = self.values(data, "", Manifest, MANIFEST_RULES, extra=("$schema",))
        if values is None:
            return None
        if not RULE_TEXT.allows(values.pop("$schema", "")):
            self.problems.append(f"$schema: found {shorten_json(data['$schema'])}, expected {RULE_TEXT.description}")
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
        """Check an object's fields.

        Args:
            data: what should be the object.
            path: where it is in the manifest.
            target: the dataclass whose fields it may have.
            rules: by field; fields without a rule are the caller's to check.
            extra: keys that are allowed besides.

        Returns:
            The values of known keys; None where `data` is no object.
        """
        if not isinstance(data, dict):
            self.problems.append(f"{path or 'the manifest'}: found {shorten_json(data)}, expected an object {{...}}")
            return None
        known = [*(part.name for part in fields(target)), *extra]
        for key in data:
            if key not in known:
                nearest = self.nearest(key, known)
                hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
                if "notes" in known and key.lower().startswith(("_", "#", "//", "comment")):
                    hint = "words for people go into `notes`"
                self.problems.append(f"{join_path(path, key)}: unknown key; {hint}")
        for part in fields(target):
            if part.name in data:
                if part.name in rules:
                    self.check(data[part.name], join_path(path, part.name), rules[part.name])
            elif part.default is MISSING and part.default_factory is MISSING:
                wanted = f": give {rules[part.name].description}" if part.name in rules else ""
                self.problems.append(f"{join_path(path, part.name)}: missing{wanted}")
        return {key: value for key, value in data.items() if key in known}

    def nearest(self, word: str, known: Sequence[str]) -> list[str]:
        """The known word that may have been meant, if any; of problems that are not listed, none is looked for."""
        return [] if len(self.problems) >= MOST_PROBLEMS else difflib.get_close_matches(word, known, n=1)

    def check(self, value: Any, path: str, rule: FieldRule) -> bool:
        """Whether `rule` allows `value`; otherwise a problem is noted."""
        if rule.allows(value):
            return True
        nearest = self.nearest(value, rule.choices) if isinstance(value, str) else []
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        self.problems.append(f"{path}: found {shorten_json(value)}, expected {rule.description}{hint}")
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
            given = self.values(values.get("weights", {}), f"{path}.weights", StageWeights, STAGE_WEIGHT_RULES)
            values["weights"] = replace(usual_weights(str(values.get("kind"))), **(given or {}))
            if len(self.problems) == seen:
                member = MemberEntry(**values)
                self.check_mask_kind(member, path)
                members.append(member)
        self.check_names([entry.get("name") for entry in data if isinstance(entry, dict)])
        return tuple(members)

    def check_mask_kind(self, member: MemberEntry, path: str) -> None:
        """A mask network has the one encoder that no other kind has, and counts for masks alone."""
        makes_masks_alone = member.kind in MASK_KINDS
        if makes_masks_alone != (member.encoder == PLAIN_ENCODER):
            self.problems.append(
                f"{path}.encoder: found {shorten_json(member.encoder)} for a {member.kind}; {PLAIN_ENCODER!r} is that "
                f"of a {' or '.join(MASK_KINDS)}, and of no other kind"
            )
        if makes_masks_alone and (member.weights.proposals or member.weights.boxes):
            self.problems.append(
                f"{path}.weights: a {member.kind} makes masks alone: give 0 for proposals and boxes, or leave them out"
            )

    def check_names(self, names: Sequence[Any]) -> None:
        """Each member needs a name of its own."""
        first: dict[str, int] = {}
        for index, name in enumerate(names):
            if isinstance(name, str) and first.setdefault(name, index) != index:
                self.problems.append(
                    f"members[{index}].name: {name!r} is the name of members[{first[name]}] as well: "
                    "give each member its own"
                )

    def use_for(self, data: Any, path: str) -> tuple[str, ...]:
        """Read what a member is used for."""
        rule = rule_choice(EVERY_USE)
        if not isinstance(data, list) or not data:
            self.problems.append(f"{path}: found {shorten_json(data)}, expected a list, each {rule.description}")
            return ()
        seen: set[str] = set()
        for index, use in enumerate(data):
            if not self.check(use, f"{path}[{index}]", rule):
                continue
            if use in seen:
                self.problems.append(f"{path}[{index}]: {use!r} is listed twice: remove one")
            seen.add(use)
        return tuple(use for use in data if isinstance(use, str))

    def dataset_list(self, data: Any) -> tuple[str, ...]:
        """Read the datasets that hold weights."""
        if not isinstance(data, list):
            self.problems.append(f"weight_datasets: found {shorten_json(data)}, expected a list of owner/slug")
            return ()
        seen: set[str] = set()
        for index, name in enumerate(data):
            if not self.check(name, f"weight_datasets[{index}]", RULE_DATASET):
                continue
            if name in seen:
                self.problems.append(f"weight_datasets[{index}]: {name!r} is listed twice: remove one")
            seen.add(name)
        return tuple(name for name in data if isinstance(name, str))

    def ensemble(self, data: Any) -> EnsembleSettings | None:
        """Read the ensemble's settings; those not given have the published values, also per cell type."""
        values = self.values(data, "ensemble", EnsembleSettings, ENSEMBLE_RULES)
        if values is None:
            return None
        seen = len(self.problems)
        rule = self.values(
            values.pop("cell_type_rule", {}), "ensemble.cell_type_rule", CellTypeRule, CELL_TYPE_RULE_RULES
        )
        thresholds = self.thresholds(values.pop("thresholds", {}))
        if len(self.problems) > seen or rule is None:
            return None
        known = {part.name for part in fields(EnsembleSettings)}
        return EnsembleSettings(
            thresholds=thresholds,
            cell_type_rule=CellTypeRule(**rule),
            **{key: value for key, value in values.items() if key in known},
        )

    def thresholds(self, data: Any) -> dict[str, Thresholds]:
        """Read the thresholds by cell type."""
        seen = len(self.problems)
        thresholds = dict(DEFAULT_THRESHOLDS)
        if not isinstance(data, dict):
            self.problems.append(
                f"ensemble.thresholds: found {shorten_json(data)}, expected an object, a key per cell type"
            )
            return thresholds
        for cell_type, entry in data.items():
            path = join_path("ensemble.thresholds", cell_type)
            if cell_type not in CELL_TYPES:
                self.problems.append(f"{path}: unknown cell type; known are {', '.join(CELL_TYPES)}")
                continue
            checked = self.values(entry, path, Thresholds, THRESHOLD_RULES)
            if checked is not None and len(self.problems) == seen:
                thresholds[cell_type] = replace(DEFAULT_THRESHOLDS[cell_type], **checked)
        return thresholds

    def check_whole(self, manifest: Manifest) -> None:
        """Check what no field shows by itself."""
        self.check_uses(manifest)
        self.check_weights(manifest)
        self.check_files(manifest)
        if manifest.time_margin_hours >= manifest.time_limit_hours:
            self.problems.append(
                f"time_margin_hours: {manifest.time_margin_hours:g} leaves nothing of time_limit_hours "
                f"{manifest.time_limit_hours:g}: give less"
            )

    def check_uses(self, manifest: Manifest) -> None:
        """Each cell type needs members; where these differ by type, the first pass does too."""
        for cell_type in CELL_TYPES:
            if not manifest.members_for(cell_type):
                self.problems.append(
                    f"members: none is used for {cell_type!r}: add it to the `use_for` of at least one member"
                )
        # Where all members skip the same type, which is noted above, no first pass would help.
        if types_differ(member.use_for for member in manifest.members) and not manifest.members_for(CLS_USE):
            self.problems.append(
                f"members: the cell types use different members, so some must find out the type first: add "
                f"{CLS_USE!r} to the `use_for` of at least one member"
            )

    def check_files(self, manifest: Manifest) -> None:
        """Each member needs a dataset, and a file of its own where it names one."""
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
                    f"members[{index}].file: {member.file!r} holds braces, of which only {FOLD_PLACEHOLDER} has a "
                    "meaning: write that, or the file's plain name"
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
        self.problems += [
            f"members[{second}].sha256: that of members[{first}] as well: both are the same file, whatever it is "
            "called, and the same detector counted twice adds nothing"
            for first, second in same_sums([member.sha256 for member in manifest.members])
        ]

    def check_weights(self, manifest: Manifest) -> None:
        """Each averaging stage needs a member with a weight: three stages per cell type, two in the first pass."""
        stages_of_uses = needed_stages(member.use_for for member in manifest.members)
        for use, stage in [(use, stage) for use, stages in stages_of_uses.items() for stage in stages]:
            users = [index for index, member in enumerate(manifest.members) if use in member.use_for]
            if users and not any(getattr(manifest.members[index].weights, stage) > 0 for index in users):
                self.problems.append(
                    f"members[{users[0]}].weights.{stage}: all members used for {use!r} have 0 here, so there "
                    "is nothing to average: give at least one of them more"
                )


def join_path(path: str, key: str) -> str:
    """The JSON path of `key` inside `path`."""
    return f"{path}.{key}" if path else key


def shorten_json(value: Any) -> str:
    """A value as JSON for messages, cut to about 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:60] + "..."
