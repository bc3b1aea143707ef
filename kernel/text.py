"""Text files that people write, in the encodings that their editors give them; JSON and TOML, however hostile.

And words in messages: the first of many names, the first line of an error, a path to paste into a shell, and the name
that may have been meant.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

#: A dotted key of TOML. tomllib takes time with the square of its parts.
_DOTTED_KEY = re.compile(r"""(?<![\w"'-])(?:[\w"'-]+[ \t]*\.[ \t]*)+""")
MOST_KEY_PARTS = 1000
#: The escape of a code unit that is half a character, where the other half does not follow.
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
_NUMBER = re.compile(r"[+-](?:[0-9]+\.?[0-9]*(?:[eE][+-]?[0-9]+)?|inf|nan)")


def first_names(names: Sequence[str], most: int = 10) -> str:
    """The first names of many, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def first_line(error: BaseException) -> str:
    """An error's message as a single line without escape codes, for a message of ours."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return "".join(character for character in line if character.isprintable())[:200]


def name_hint(name: str, known: Iterable[str], otherwise: str = "known are") -> str:
    """The known name that may have been meant, or all of them, for a message on an unknown one."""
    names = list(known)
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {nearest[0]!r}?" if nearest else f"{otherwise} {', '.join(names)}"


def shell_word(word: object) -> str:
    """A path, or any other word, as the shell of this system takes it."""
    return shlex.quote(str(word)) if os.name == "posix" else subprocess.list2cmdline([str(word)])


def text_encoding(head: bytes) -> str:
    """The encoding of a text, by its first four bytes or more.

    It is UTF-8, or what Windows programs write: UTF-8 with a byte order mark, UTF-16 or UTF-32. `json.loads` finds it
    the same way: by the mark, or by the zero bytes beside the first characters, which are ASCII here.
    """
    return json.detect_encoding(head)


def read_any_text(path: Path) -> str:
    """A file's text without a byte order mark, its line ends as they are.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: the file has none of the encodings of `text_encoding`.
    """
    content = path.read_bytes()
    return content.decode(text_encoding(content))


def parse_json(
    text: str,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> Any:
    """What a JSON text holds; the hooks are those of `json.loads`.

    Raises:
        ValueError: it is no JSON (a JSONDecodeError), is nested too deeply, or holds a number of thousands of digits or
            half a character; the message says which.
    """
    try:
        data = json.loads(text, object_pairs_hook=object_pairs_hook, parse_constant=parse_constant)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(data, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError:
        raise
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start].encode("unicode_escape").decode("ascii")
        raise ValueError(f"it holds {half}, half a character: write the whole one, or neither half") from error
    except ValueError as error:
        raise ValueError("it holds a whole number of more digits than Python reads") from error
    return data


def parse_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        ValueError: it is no TOML (a TOMLDecodeError), is nested too deeply, or holds a number of thousands of digits;
            the message says which.
    """
    if any(found[0].count(".") >= MOST_KEY_PARTS for found in _DOTTED_KEY.finditer(text)):
        raise ValueError(f"it holds a key of more than {MOST_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError("it holds a whole number of more digits than Python reads") from error


def spreadsheet_cell(value: Any) -> Any:
    """A table's value as a spreadsheet must be given it: a text that it would take for a formula has ' before it.

    Image ids are whatever files are called, and a spreadsheet runs what begins with one of = + - @. Numbers stay.
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return value
    return value if _NUMBER.fullmatch(value) else f"'{value}"
