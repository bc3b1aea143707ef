"""Text files that people write, in the encodings that their editors give them."""

from __future__ import annotations

import json
from pathlib import Path


def text_encoding(head: bytes) -> str:
    """The encoding of a text by its first four bytes or more.

    UTF-8, or what Windows' programs make: UTF-8 with a byte order mark, UTF-16, UTF-32. Found as `json.loads` finds
    it: by the mark, or by the zeros that the first characters, which are ASCII here, have beside them.
    """
    return json.detect_encoding(head)


def read_any_text(path: Path) -> str:
    """A file's text without a byte order mark, its line ends as they are.

    Raises:
        OSError: as reading does.
        UnicodeDecodeError: it is none of the encodings of `text_encoding`.
    """
    content = path.read_bytes()
    return content.decode(text_encoding(content))
