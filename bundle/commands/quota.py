"""Say how many hours of GPU and TPU are left this week."""

from __future__ import annotations

import argparse

from bundle.client import log_in
from bundle.commands.common import print_table


def add_options(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(options: argparse.Namespace) -> int:
    """Print the quota. Returns the exit code."""
    quotas = log_in().quotas()
    if not quotas:
        print("Kaggle does not say")
        return 0
    rows = [
        [
            quota.name,
            f"{quota.used:.1f}",
            f"{max(0.0, quota.total - quota.used):.1f}",
            f"{quota.total:.1f}",
            quota.renewed,
        ]
        for quota in quotas
    ]
    print_table(["", "used, h", "left, h", "of, h", "renewed"], rows)
    return 0
