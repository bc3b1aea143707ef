"""Chosen settings into a manifest file with nothing else touched, so that the difference is these and no more."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from kernel.errors import InputError, RunError
from kernel.manifest import parse_manifest
from kernel.runtime.files import whole_file
from kernel.runtime.text import text_encoding
from kernel.settings import Thresholds
from kernel.validation.json_text import set_value
from kernel.validation.uses import set_uses


def read_text(path: Path) -> str:
    """A file's text with its line ends as they are; UTF-8's byte order mark stays as its first character."""
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
    """The text of the manifest file with new settings, and its difference to the file as a unified diff.

    Args:
        path: the manifest.
        base: its thresholds by cell type, which those of `tuned` began with.
        tuned: the new ones, of any of the types. Only fields in which they differ from `base` are written.
        switches: of the ensemble, by name.
        uses: what members, by name, are used for; those that are used for nothing are taken out.

    Raises:
        InputError: the file is no manifest, or would be none with these settings, or its thresholds are no longer
            `base`.
    """
    base, tuned = base or {}, tuned or {}
    old = read_text(path)
    mark = "\ufeff" if old.startswith("\ufeff") else ""
    text = old.removeprefix(mark)
    now = parse_manifest(text, str(path)).ensemble.thresholds
    for cell_type, thresholds in tuned.items():
        if now[cell_type] != base[cell_type]:
            raise InputError(
                f"{path} has other {cell_type} thresholds than those that the tuning began with; it is left as it is: "
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
        raise InputError(f"{path} is left as it is, for with these settings it would be wrong: {error}") from error
    if any(written[cell_type] != thresholds for cell_type, thresholds in tuned.items()):
        raise RunError(f"{path} would not say the thresholds that were tuned; it is left as it is")
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), (mark + text).splitlines(keepends=True), f"a/{path.name}", f"b/{path.name}"
    )
    return mark + text, "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )


def write_manifest(path: Path, text: str) -> None:
    """Put `text` into the manifest file as UTF-8, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
