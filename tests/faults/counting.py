"""How many inputs the fuzzes try, by which seed, and where they tell their counts: all by environment variables.

TORTURE_EXAMPLES   inputs per fuzz (default: few, for the suite)
TORTURE_SEED       of hypothesis (default: 0, the same inputs each time)
TORTURE_COUNTS     a file to which each process appends "name count" lines at its end, pytest at that of its tests
"""

from __future__ import annotations

import atexit
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis

DEFAULT_EXAMPLES = 25
SEED = int(os.environ.get("TORTURE_SEED", "0"))
#: Inputs tried by this process, by the fuzz's name.
TRIED: Counter[str] = Counter()


def torture(share: float = 1.0) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a hypothesis test as a fuzz, with its share of the examples; its failures tell how to repeat them."""
    asked = int(os.environ.get("TORTURE_EXAMPLES", DEFAULT_EXAMPLES))
    chosen = hypothesis.settings(
        max_examples=max(1, round(asked * share)),
        print_blob=True,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        database=None,
    )
    return lambda test: hypothesis.seed(SEED)(chosen(test))


def count_input(name: str) -> None:
    """Count one input of a fuzz."""
    TRIED[name] += 1


def tell_counts() -> None:
    """Print what was tried since it was told last, and append it to the file of TORTURE_COUNTS."""
    for name, tried in sorted(TRIED.items()):
        sys.stdout.write(f"{name}: {tried} inputs, TORTURE_SEED={SEED}\n")
    target = os.environ.get("TORTURE_COUNTS")
    if target and TRIED:
        with Path(target).open("a", encoding="utf-8", newline="\n") as stream:
            stream.writelines(f"{name} {tried}\n" for name, tried in sorted(TRIED.items()))
    TRIED.clear()


atexit.register(tell_counts)
