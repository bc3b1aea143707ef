"""Settings and members written into a manifest file, all else in it untouched.

Every edit goes the same way: the text is changed in its place, read as a manifest again, and only then written.
"""

from __future__ import annotations

import difflib
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from kernel.errors import InputError, RunError
from kernel.files import file_sha256, whole_file, writing
from kernel.locks import sole_writer
from kernel.manifest.json_text import set_value
from kernel.manifest.member_text import put_member, set_member, set_uses
from kernel.manifest.reader import parse_manifest, read_manifest
from kernel.settings import Thresholds
from kernel.text import name_hint, text_encoding


def read_text(path: Path) -> str:
    """A file's text with its line ends and, as the first character, UTF-8's byte order mark."""
    content = path.read_bytes()
    encoding = text_encoding(content)
    return content.decode("utf-8" if encoding == "utf-8-sig" else encoding)


def changed_text(path: Path, change: Callable[[str], str], change_name: str) -> tuple[str, str]:
    """The text of a manifest file after `change`, and how it differs from the file, which is not written.

    Args:
        path: the manifest.
        change: makes the new text of the old one, both without a byte order mark.
        change_name: what messages call it, after "with".

    Returns:
        The text, with a byte order mark if the file has one, and a unified diff.

    Raises:
        InputError: the file is no manifest, or would be none after the change.
    """
    read_manifest(path)
    old = read_text(path)
    mark = "\ufeff" if old.startswith("\ufeff") else ""
    text = change(old.removeprefix(mark))
    try:
        parse_manifest(text, f"{path} with {change_name}")
    except InputError as error:
        raise InputError(f"{path} is left as it is: with {change_name} it would be wrong: {error}") from error
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), (mark + text).splitlines(keepends=True), f"a/{path.name}", f"b/{path.name}"
    )
    return mark + text, "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def change_manifest(path: Path, change: Callable[[str], str], change_name: str) -> str:
    """Change a manifest file, whole or not at all; returns how it differs. Arguments as `changed_text`.

    Raises:
        InputError: as `changed_text` and `replaced_manifest` do.
    """
    read_manifest(path)  # one that is missing is told as such
    with sole_writer(path.resolve()):
        text, difference = changed_text(path, change, change_name)
        with _staged(path, text):
            pass
    return difference


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
    now = read_manifest(path).ensemble.thresholds
    for cell_type in tuned:
        if now[cell_type] != base[cell_type]:
            raise InputError(
                f"{path} has other {cell_type} thresholds than those that the tuning began with and is left as it is: "
                "tune again"
            )

    def change(text: str) -> str:
        for cell_type, thresholds in tuned.items():
            for field in fields(thresholds):
                value = getattr(thresholds, field.name)
                if value != getattr(base[cell_type], field.name):
                    text = set_value(text, ("ensemble", "thresholds", cell_type, field.name), value)
        for name, value in (switches or {}).items():
            text = set_value(text, ("ensemble", name), value)
        return set_uses(text, uses or {})

    text, difference = changed_text(path, change, "these settings")
    written = parse_manifest(text.removeprefix("\ufeff"), str(path)).ensemble.thresholds
    if any(written[cell_type] != thresholds for cell_type, thresholds in tuned.items()):
        raise RunError(f"{path} is left as it is: the new text would not hold the thresholds that were tuned")
    return text, difference


def member_name(file: Path) -> str:
    """The name of a member for a file: what its name has of allowed characters."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", file.stem).lstrip("_.-") or "member"


def manifest_entry(weights: Path, kind: str, encoder: str, use_for: Sequence[str]) -> dict[str, Any]:
    """The entry of a trained member for a manifest's list of members; its dataset is not known yet."""
    return {
        "name": member_name(weights),
        "kind": kind,
        "encoder": encoder,
        "use_for": list(use_for),
        "dataset": None,
        "file": weights.name,
        "sha256": file_sha256(weights),
    }


def add_to_manifest(path: Path, entry: Mapping[str, Any]) -> str:
    """Put a member's entry into a manifest file; a member of that name keeps what the entry leaves open.

    Returns how the file differs.

    Raises:
        InputError: the manifest is wrong, or would be with the entry; the file stays as it is.
    """
    return change_manifest(path, lambda text: put_member(text, entry), "the new member")


def set_in_manifest(path: Path, name: str, values: Mapping[str, Any]) -> str:
    """Set values of the member `name` in its place; returns how the file differs.

    Raises:
        InputError: there is no such member, or the manifest is wrong, or would be with these values.
    """
    require_member(path, name)
    return change_manifest(path, lambda text: set_member(text, name, values), f"these values of {name}")


def remove_from_manifest(path: Path, name: str) -> str:
    """Take the member `name` out; returns how the file differs.

    Raises:
        InputError: there is no such member, or the manifest is wrong, or would be without it.
    """
    require_member(path, name)
    return change_manifest(path, lambda text: set_uses(text, {name: ()}), f"{name} taken out")


def require_member(path: Path, name: str) -> None:
    """Raise InputError where a manifest has no member `name`, with those that it has."""
    names = [member.name for member in read_manifest(path).members]
    if name not in names:
        raise InputError(f"{path} has no member {name!r}: {name_hint(name, names, 'it has')}")


def check_addition(path: Path, entry: Mapping[str, Any]) -> None:
    """Raise InputError as `add_to_manifest` would; nothing is written."""
    changed_text(path, lambda text: put_member(text, entry), "the new member")


@contextmanager
def replaced_manifest(path: Path, text: str) -> Iterator[None]:
    """Write a manifest file in UTF-8, and put it in its place at the end of the block; where that fails, it stays.

    What a link leads to is written, and keeps its permissions.

    Raises:
        InputError: the file is read-only, its folder cannot be written, or another process writes it just now.
    """
    with sole_writer(path.resolve()), _staged(path, text):
        yield


@contextmanager
def _staged(path: Path, text: str) -> Iterator[None]:
    """As `replaced_manifest`, by who has the lock."""
    place = path.resolve()
    mode = stat.S_IMODE(place.stat().st_mode) if place.exists() else None
    if mode is not None and not mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(f"{path} is read-only and stays as it is: allow writing it, or name a copy by --manifest")
    with ExitStack() as stack:
        with writing(path):
            stack.enter_context(whole_file(place)).write_bytes(text.encode("utf-8"))
        yield
        with writing(path):
            stack.close()
            if mode is not None:
                place.chmod(mode)
