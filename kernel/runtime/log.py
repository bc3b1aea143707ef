"""The one logger of the project."""

from __future__ import annotations

import logging

LOG = logging.getLogger("kernel")
