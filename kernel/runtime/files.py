"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A new file beside `path` to write into, put in its place at the end; if anything fails, `path` stays as it was.

    Raises OSError as writing does: where the folder is missing or cannot be written, or the disk is full.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as stream:  # Windows syncs only what may be written
            os.fsync(stream.fileno())
        temporary.chmod(0o644)  # mkstemp's file is for its owner only
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
