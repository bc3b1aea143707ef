"""Text files that people write, in the encodings that their editors give them."""

from __future__ import annotations

import json
from pathlib import Path


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
