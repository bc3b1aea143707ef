"""JSON files in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kernel.errors import InputError
from kernel.text import parse_json, read_any_text


def read_json(path: Path, what: str) -> dict[str, Any]:
    """A JSON file that holds an object.

    Args:
        path: the file.
        what: is read from it ("annotations"), for messages.

    Raises:
        InputError: no such file, or something else.
    """
    try:
        data = parse_json(read_any_text(path))
    except OSError as error:
        raise InputError(f"cannot read {what} from {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{path} holds no JSON object, and {what} are one")
    return data
