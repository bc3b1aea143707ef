"""The project's logger, and how its messages are shown."""

from __future__ import annotations

import logging
import warnings
from typing import TextIO

LOG = logging.getLogger("kernel")


def show_log(stream: TextIO, pattern: str = "%(asctime)s %(levelname)s %(message)s") -> None:
    """Show the project's messages from INFO on, and hide mmcv's and mmdet's warnings about themselves.

    The logger gets a handler of its own: mmcv silences those of the root logger when it is first used.

    Args:
        stream: where they are written.
        pattern: the format of a line, as `logging.Formatter` takes it.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter(pattern))
    LOG.handlers = [handler]
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    # The name of a compiled module is its path.
    warnings.filterwarnings("ignore", module=r"(.*/)?mm(cv|det)\b")
    warnings.filterwarnings("ignore", message=r"On January 1, 2023, MMCV")
