"""Command lines: numbers refused in plain words, options that do nothing without others, commands nearly named.

Standard library only: a build takes a bare Python.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

from kernel.commands.rules import Effect, Excludes, Needs
from kernel.text import name_hint


class CommandParser(argparse.ArgumentParser):
    """argparse's parser, which also refuses options that would do nothing, and knows what was nearly named.

    Sub-commands get the same parser. An option counts as given where its value is not the default.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._effects: list[Effect] = []

    def needs(self, names: Sequence[str], needed: Sequence[str], hint: str = "") -> None:
        """Refuse any option of `names` without one of `needed`; the message ends with the hint."""
        self._effects.append(Needs(names, needed, hint))

    def excludes(self, names: Sequence[str], others: Sequence[str]) -> None:
        """Refuse options of `names`, which do nothing beside those of `others`."""
        self._effects.append(Excludes(names, others))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; then the options are looked at together.

        Raises:
            InputError: one does nothing beside or without others.
        """
        options, rest = super().parse_known_args(args, namespace)
        for effect in self._effects:
            effect.check(options, self.get_default)
        return options, rest

    def error(self, message: str) -> Any:
        """As argparse does; what was nearly named is named."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)$", message)
        unknown = re.search(r"unrecognized arguments: (--[^ =]+)", message)
        hint = ""
        if choice is not None:
            hint = nearest_hint(choice[1], re.split(r", ", choice[2].replace("'", "")))
        elif unknown is not None:
            hint = nearest_hint(unknown[1], re.findall(r"--[a-z][a-z0-9-]*", self.format_help()))
        super().error(message + hint)


def nearest_hint(word: str, known: Collection[str]) -> str:
    """The known word that was likely meant, as the end of a message; empty where none is near."""
    hint = name_hint(word, [name for name in known if name != word])
    return f"; {hint}" if hint.startswith("did you mean") else ""


def whole_number(lowest: int | None = None, highest: int | None = None) -> Callable[[str], int]:
    """What reads a whole number for argparse, bounds included."""
    return _reader_of(int, "a whole number", lowest, highest)


def number(lowest: float | None = None, highest: float | None = None) -> Callable[[str], float]:
    """What reads a finite number for argparse, bounds included."""
    return _reader_of(float, "a number", lowest, highest)


def positive_number() -> Callable[[str], float]:
    """What reads a finite number above 0 for argparse."""
    return _reader_of(float, "a number", 0, None, above=True)


def _reader_of(
    kind: Callable[[str], Any], what: str, lowest: float | None, highest: float | None, *, above: bool = False
) -> Any:
    """What reads a text as `kind`, and refuses in words one that is none, or out of the bounds.

    The lower one is included, unless `above`.
    """
    low = "" if lowest is None else f" {'above' if above else 'from'} {lowest:g}"
    high = "" if highest is None else f" up to {highest:g}"
    allowed = f"{what}{low}{high or (' on' if low and not above else '')}"
    low_bound, high_bound = -math.inf if lowest is None else lowest, math.inf if highest is None else highest

    def read(text: str) -> Any:
        try:
            value = kind(text)
            if not math.isfinite(value) or not low_bound <= value <= high_bound or (above and value == low_bound):
                raise ValueError(text)
        except (ValueError, OverflowError) as error:
            hint = decimal_hint(text) if kind is float else ""
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {allowed}{hint}") from error
        return value

    return read


def decimal_hint(text: str) -> str:
    """What to say of a number with a decimal comma, as the end of a message; empty of any other text."""
    is_one = re.fullmatch(r"[+-]?\d{0,9},\d{1,9}", text.strip())
    return f": write it with a decimal point, as {text.strip().replace(',', '.')}" if is_one else ""
