"""Settings and members written into a manifest file, all else in it untouched."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from kernel.errors import InputError, RunError
from kernel.files import file_sha256, whole_file
from kernel.manifest.json_text import set_value
from kernel.manifest.member_text import put_member, set_uses
from kernel.manifest.reader import parse_manifest, read_manifest
from kernel.settings import Thresholds
from kernel.text import text_encoding


def read_text(path: Path) -> str:
    """A file's text with its line ends and, as the first character, UTF-8's byte order mark."""
    content = path.read_bytes()
    encoding = text_encoding(content)
    return content.decode("utf-8" if encoding == "utf-8-sig" else encoding)


def edited_manifest(
    path: Path,
    base: Mapping[str, Thresholds] | None = None,
    tuned: Mapping[str, Thresholds] | None = None,
    switches: Mapping[str, bool] | None = None,
    uses: Mapping[str, Sequence[str]] | None = None,
) -> tuple[str, str]:
    """The text of a manifest file with new settings, and how it differs from the file.

    Args:
        path: the manifest.
        base: the thresholds by cell type that the tuning began with; the file must still have them.
        tuned: new ones, for any of the types. Only fields that differ from `base` are written.
        switches: of the ensemble, by name.
        uses: what members are used for, by name; those used for nothing are taken out.

    Returns:
        The text and a unified diff.

    Raises:
        InputError: the file is no manifest, would be none with these settings, or no longer has `base`'s thresholds.
        RunError: the text would not give the tuned thresholds back.
    """
    base, tuned = base or {}, tuned or {}
    old = read_text(path)
    mark = "\ufeff" if old.startswith("\ufeff") else ""
    text = old.removeprefix(mark)
    now = parse_manifest(text, str(path)).ensemble.thresholds
    for cell_type, thresholds in tuned.items():
        if now[cell_type] != base[cell_type]:
            raise InputError(
                f"{path} has other {cell_type} thresholds than those that the tuning began with and is left as it is: "
                "tune again"
            )
        for field in fields(thresholds):
            value = getattr(thresholds, field.name)
            if value != getattr(base[cell_type], field.name):
                text = set_value(text, ("ensemble", "thresholds", cell_type, field.name), value)
    for name, value in (switches or {}).items():
        text = set_value(text, ("ensemble", name), value)
    text = set_uses(text, uses or {})
    try:
        written = parse_manifest(text, f"{path} with these settings").ensemble.thresholds
    except InputError as error:
        raise InputError(f"{path} is left as it is: with these settings it would be wrong: {error}") from error
    if any(written[cell_type] != thresholds for cell_type, thresholds in tuned.items()):
        raise RunError(f"{path} is left as it is: the new text would not hold the thresholds that were tuned")
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), (mark + text).splitlines(keepends=True), f"a/{path.name}", f"b/{path.name}"
    )
    return mark + text, "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def manifest_entry(weights: Path, kind: str, encoder: str, use_for: Sequence[str]) -> dict[str, Any]:
    """The entry of a trained member for a manifest's list of members; its dataset is not known yet."""
    return {
        "name": weights.stem,
        "kind": kind,
        "encoder": encoder,
        "use_for": list(use_for),
        "dataset": None,
        "file": weights.name,
        "sha256": file_sha256(weights),
    }


def add_to_manifest(path: Path, entry: Mapping[str, Any]) -> None:
    """Put a member's entry into a manifest file; a member of that name keeps what the entry leaves open.

    Raises:
        InputError: the manifest is wrong, or would be with the entry; the file stays as it is.
    """
    write_manifest(path, text_with_member(path, entry))


def text_with_member(path: Path, entry: Mapping[str, Any]) -> str:
    """A manifest file's text with a member's entry, which is not written.

    Raises:
        InputError: as `add_to_manifest`.
    """
    read_manifest(path)
    old = read_text(path)
    mark = "\ufeff" if old.startswith("\ufeff") else ""
    text = put_member(old.removeprefix(mark), entry)
    try:
        parse_manifest(text, f"{path} with {entry['name']}")
    except InputError as error:
        raise InputError(f"{path} is left as it is: with the new member it would be wrong: {error}") from error
    return mark + text


def write_manifest(path: Path, text: str) -> None:
    """Write a manifest file in UTF-8, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
