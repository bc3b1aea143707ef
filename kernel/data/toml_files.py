"""TOML files that people write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernel.errors import InputError
from kernel.text import parse_toml, read_any_text


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """The tables of a TOML file.

    Args:
        path: the file.
        what: it is ("recipe"), for messages.

    Raises:
        InputError: no such file, or something else.
    """
    try:
        return parse_toml(read_any_text(path))
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is no {what}, which is a TOML file: {error}") from error
