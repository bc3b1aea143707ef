"""Cells that are annotated twice: identical masks of an image, as joined files have them, count once.

Twice in the truth, a cell lifts the score of whoever finds it; twice in training, it weighs double. Every reader of
annotations leaves the second one out and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from kernel.log import LOG
from kernel.text import first_names

Cell = TypeVar("Cell")

#: Twins that a message names.
_NAMED = 10


def part_twins(
    cells: Iterable[Cell], mask_of: Callable[[Cell], Hashable]
) -> tuple[list[Cell], list[tuple[Cell, Cell]]]:
    """The cells of one image, each once, in their order; and each cell left out, with the one that it repeats.

    Args:
        cells: of one image.
        mask_of: what is equal for two cells where their masks are.
    """
    first: dict[Hashable, Cell] = {}
    kept, twins = [], []
    for cell in cells:
        earlier = first.setdefault(mask_of(cell), cell)
        if earlier is cell:
            kept.append(cell)
        else:
            twins.append((cell, earlier))
    return kept, twins


def warn_of_twins(source: object, twins: Sequence[str]) -> None:
    """Say in one line of the log which cells of `source` were left out, if there are any."""
    if twins:
        cells = "1 cell is" if len(twins) == 1 else f"{len(twins)} cells are"
        LOG.warning("%s: %s annotated twice and counted once: %s", source, cells, first_names(twins, _NAMED))


def same_run_lengths(text: str) -> Hashable:
    """What is equal for run lengths of the same mask, however they are written; the text itself where they are none.

    Runs that follow each other without a gap are one, and "07" is 7.
    """
    words = text.split()
    if len(words) % 2 or not all(word.isascii() and word.isdigit() for word in words):
        return text
    numbers = list(map(int, words))
    if 0 in numbers:
        return text
    runs: list[list[int]] = []
    for start, length in sorted(zip(numbers[::2], numbers[1::2], strict=True)):
        if runs and start == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += length
        else:
            runs.append([start, length])
    return tuple(map(tuple, runs))
