"""The members that come with the program, and presets of them: which are asked, by how many views, in what arithmetic.

Their folder holds `manifest.json`, the weight files (in it or in `weights`), `presets.toml`, and `model_card.json` with
what was measured of each preset, where it was:

    {"presets": {"best": {"score": 0.32, "low": 0.29, "high": 0.35, "images": 47, "seconds": 21.5,
                          "types": {"astro": {"score": 0.18, "low": 0.15, "high": 0.21, "images": 14}}}}}

`validate --card` writes such figures. Beside `images` it tells `seen`, how many of them the members have learned from,
and `left_out`, how many more there were that do not count as the members have learned from them. `untold` names the
members whose files do not say what they have learned from: it may be any of these images. `timed` tells of how many
images `seconds` is the mean: of those that were predicted by that very command, not read from `--predictions`.

A preset states in a manifest's terms what differs from `manifest.json`. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel.errors import InputError
from kernel.manifest.reader import parse_manifest, read_manifest
from kernel.manifest.types import Manifest
from kernel.text import name_hint, parse_json, parse_toml, read_any_text

#: The folder of the members; `bundle` is beside `kernel` in a checkout, and in the installed package.
MEMBERS_FOLDER = "bundle/members"
MANIFEST_NAME, WEIGHTS_NAME = "manifest.json", "weights"
#: How options call the folder of the members.
SHIPPED = "shipped"
#: The preset that is taken where none is named.
DEFAULT_PRESET = "balanced"
#: What a preset may state.
PRESET_KEYS = ("members", "dtype", "ensemble")
#: What a model card says of a preset, and of each cell type; null or absent: not measured.
FIGURES = ("score", "low", "high", "images", "seconds")
NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class ShippedMembers:
    """The folder of the members that come with the program."""

    folder: Path

    @property
    def manifest_path(self) -> Path:
        return self.folder / MANIFEST_NAME

    @property
    def weights(self) -> Path:
        return weights_folder(self.folder)


@dataclass(frozen=True)
class Preset:
    """A choice of the shipped members, and how they are run."""

    name: str
    manifest: Manifest  # of the chosen members, with the preset's settings
    measured: Mapping[str, Any]  # by the model card; empty: not measured

    def describe(self) -> str:
        """The members, the views and the arithmetic."""
        settings, names = self.manifest.ensemble, [member.name for member in self.manifest.members]
        views = {(True, True): "4 views", (False, False): "1 view", (True, False): "4 views, 1 for masks"}
        return f"{', '.join(names)}; {views.get((settings.use_tta, settings.use_tta_masks), '4 views for masks')}; " + (
            self.manifest.dtype
        )

    def describe_measured(self) -> str:
        """The score and the time, as far as they were measured."""
        score, seconds = (self.measured.get(key) for key in ("score", "seconds"))
        told_score = f"score {NOT_MEASURED}" if score is None else f"score {score:.3f}"
        return f"{told_score}, {f'time {NOT_MEASURED}' if seconds is None else f'{seconds:.1f} s an image'}"


def shipped_members() -> ShippedMembers:
    """The members that come with the program.

    Raises:
        InputError: this installation has none.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package, package.parent):
        if (root / MEMBERS_FOLDER / "presets.toml").is_file():
            return ShippedMembers(root / MEMBERS_FOLDER)
    raise InputError(
        "no members come with this installation: name your own by --manifest and --weights-dir (in Python: "
        'load("manifest.json"))'
    )


def members_folder(name: str) -> Path:
    """The folder of the shipped members, or another one like it, of a manifest and `weights`, by its path.

    Raises:
        InputError: as `shipped_members`, or that folder is none of members, or a file.
    """
    if name == SHIPPED:
        return shipped_members().folder
    folder = Path(name)
    if folder.is_file():
        is_manifest = folder.name == MANIFEST_NAME
        place = f"its folder, {folder.parent}" if is_manifest else f"a folder of {MANIFEST_NAME} and {WEIGHTS_NAME}"
        raise InputError(
            f"{folder} is a file: give {SHIPPED!r}, or {place}; a weight file alone can start a training by "
            "`train --init FILE`"
        )
    if not (folder / MANIFEST_NAME).is_file():
        raise InputError(
            f"no {MANIFEST_NAME} in {folder}: give {SHIPPED!r}, or a folder of {MANIFEST_NAME} and {WEIGHTS_NAME}"
        )
    return folder


def weights_folder(folder: Path) -> Path:
    """Where a folder of members has their weight files: in its `weights`, where there is one, else beside the manifest.

    `train-members` leaves them in either place: in `weights` with `--from`, beside the manifest with `--competition`.
    """
    inner = folder / WEIGHTS_NAME
    return inner if inner.is_dir() else folder


def read_presets(shipped: ShippedMembers) -> dict[str, Preset]:
    """The presets by name, in the file's order.

    Raises:
        InputError: a file cannot be read, or a preset is none.
    """
    path = shipped.folder / "presets.toml"
    try:
        tables = parse_toml(read_any_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table of presets: {error}") from error
    measured = read_model_card(shipped)
    read_manifest(shipped.manifest_path)  # with its own messages
    data = json.loads(read_any_text(shipped.manifest_path))
    presets = {
        name: make_preset(data, table, f"{path} [{name}]", name, measured.get(name, {}))
        for name, table in tables.items()
    }
    if DEFAULT_PRESET not in presets:
        raise InputError(f"{path}: lacks the preset {DEFAULT_PRESET}, which is taken where none is named")
    return presets


def read_model_card(shipped: ShippedMembers) -> dict[str, dict[str, Any]]:
    """What was measured, by preset; nothing where there is no card.

    Raises:
        InputError: the card is damaged.
    """
    path = shipped.folder / "model_card.json"
    if not path.is_file():
        return {}
    try:
        presets = parse_json(read_any_text(path))["presets"]
        for figures in presets.values():
            for row in (figures, *figures.get("types", {}).values()):
                for key in FIGURES:
                    if not isinstance(row.get(key, 0), int | float | None):
                        raise ValueError(f"{key} is {row[key]!r}, expected a number or null")
        return {name: dict(figures) for name, figures in presets.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no model card, which has an object `presets` of figures ({error})") from error


def make_preset(data: Mapping[str, Any], table: Any, source: str, name: str, measured: Mapping[str, Any]) -> Preset:
    """A preset of its table.

    Args:
        data: the manifest of the shipped members, as JSON has it.
        table: what differs from it.
        source: what messages call the table.
        name: of the preset.
        measured: by the model card.

    Raises:
        InputError: it is no table of `PRESET_KEYS`, names members that there are not, or is refused as a manifest.
    """
    if not isinstance(table, dict):
        raise InputError(f"{source}: found {table!r}, expected a table")
    for key in table:
        if key not in PRESET_KEYS:
            raise InputError(f"{source}: unknown key {key!r}; {name_hint(key, PRESET_KEYS)}")
    known = [member["name"] for member in data["members"]]
    wanted = table.get("members", known)
    if not isinstance(wanted, list) or not wanted:
        raise InputError(f"{source} members: found {wanted!r}, expected a list of names; there are {', '.join(known)}")
    for member in wanted:
        if member not in known:
            raise InputError(f"{source} members: no member {member!r}; {name_hint(str(member), known)}")
    changed = {
        **data,
        "members": [member for member in data["members"] if member["name"] in wanted],
        "dtype": table.get("dtype", data.get("dtype", Manifest.dtype)),
        "ensemble": merged(data.get("ensemble", {}), table.get("ensemble", {})),
    }
    return Preset(name, parse_manifest(json.dumps(changed), source), measured)


def merged(values: Any, changes: Any) -> Any:
    """Nested dictionaries with the changes in them."""
    if not (isinstance(values, dict) and isinstance(changes, dict)):
        return changes
    return {**values, **{key: merged(values.get(key), change) for key, change in changes.items()}}


def choose_preset(shipped: ShippedMembers, name: str | None) -> Preset:
    """The preset of this name; None: `DEFAULT_PRESET`.

    Raises:
        InputError: there is none of this name, or as `read_presets`.
    """
    presets = read_presets(shipped)
    name = DEFAULT_PRESET if name is None else name
    if name not in presets:
        raise InputError(f"no preset {name!r}; {name_hint(name, presets, 'there are')}")
    return presets[name]


def describe_presets() -> list[str]:
    """What `--help` says of the presets: a line for each."""
    try:
        shipped = shipped_members()
        presets = read_presets(shipped)
    except InputError as error:
        return [f"presets: {error}"]
    width = max(map(len, presets))
    lines = [f"presets of the members that come with the program, {MEMBERS_FOLDER} (default: {DEFAULT_PRESET}):"]
    lines += [f"  {name:{width}}  {each.describe()}; {each.describe_measured()}" for name, each in presets.items()]
    return lines
