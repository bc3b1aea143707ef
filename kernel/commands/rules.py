"""What a command's options are to each other: which do nothing together, and which name what would be written over.

Every command says it by a `CommandRules`, and the command line keeps to it before the command begins.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from kernel.errors import InputError
from kernel.folders import refuse_to_lose

#: Where `StoreWritten` notes names, among the options.
WRITTEN = "written"


def flag(name: str) -> str:
    """An option as it is written on the command line; `from_` is called so because Python has a word for itself."""
    return "--" + name.rstrip("_").replace("_", "-")


def join_flags(names: Sequence[str], word: str, options: argparse.Namespace | None = None) -> str:
    """Options in a sentence, `word` between them; of `options` as they were written, where that is known."""
    written: Mapping[str, str] = getattr(options, WRITTEN, {})
    return f" {word} ".join(written.get(name, flag(name)) for name in names)


class StoreWritten(argparse.Action):
    """Stores an option that has two names, and for messages by which one it was given."""

    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        setattr(namespace, self.dest, values)
        setattr(namespace, WRITTEN, {**getattr(namespace, WRITTEN, {}), self.dest: option_string or flag(self.dest)})


def is_given(options: argparse.Namespace, name: str, default: Any = None) -> bool:
    """Whether an option is on the command line, with another value than its default."""
    value = getattr(options, name, default)
    return value is not None and value is not False and value != [] and value != default


def given_of(names: Sequence[str], options: argparse.Namespace, default_of: Callable[[str], Any]) -> list[str]:
    """Those of the options that are on the command line."""
    return [name for name in names if is_given(options, name, default_of(name))]


def no_default(name: str) -> None:
    """The default of options that have none before `CommandRules` gives it to them."""


class Effect(Protocol):
    """What options need to do anything."""

    def check(self, options: argparse.Namespace, default_of: Callable[[str], Any] = no_default) -> None:
        """Raises InputError where one of them is given, that is not its default, and does nothing."""


@dataclass(frozen=True)
class Needs:
    """Options that do nothing without another one, one of `needed`; the message ends with the hint."""

    names: Sequence[str]
    needed: Sequence[str]
    hint: str = ""

    def check(self, options: argparse.Namespace, default_of: Callable[[str], Any] = no_default) -> None:
        given = given_of(self.names, options, default_of)
        if given and not given_of(self.needed, options, default_of):
            belong = "belongs" if len(given) == 1 else "belong"
            lacking = "which is not given" if len(self.needed) == 1 else "and none of these is given"
            raise InputError(
                f"{join_flags(given, 'and', options)} {belong} to {join_flags(self.needed, 'or')}, {lacking}{self.hint}"
            )


@dataclass(frozen=True)
class Excludes:
    """Options that do nothing beside those of `others`; the message ends with the hint."""

    names: Sequence[str]
    others: Sequence[str]
    hint: str = ""

    def check(self, options: argparse.Namespace, default_of: Callable[[str], Any] = no_default) -> None:
        given = given_of(self.names, options, default_of)
        others = given_of(self.others, options, default_of)
        if given and others:
            do = "does" if len(given) == 1 else "do"
            raise InputError(f"{join_flags(given, 'and')} {do} nothing beside {join_flags(others, 'and')}{self.hint}")


@dataclass(frozen=True)
class Idle:
    """Options that do nothing in some case; the message says why, or what to do."""

    names: Sequence[str]
    where: Callable[[argparse.Namespace], object]
    why: str

    def check(self, options: argparse.Namespace, default_of: Callable[[str], Any] = no_default) -> None:
        given = given_of(self.names, options, default_of)
        if given and self.where(options):
            raise InputError(f"{join_flags(given, 'or')} {self.why}")


def writes_nothing(options: argparse.Namespace) -> Iterator[Path]:
    """Of a command that writes no file over another."""
    yield from ()


@dataclass(frozen=True)
class CommandRules:
    """What one command's options are to each other."""

    effects: Sequence[Effect] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of options that the parser leaves at None
    reads: Sequence[str] = ()  # the options that name files and folders which are read
    unflagged: Sequence[str] = ()  # those of them that are written without a flag
    #: The files, and the folders replaced as a whole, that it writes.
    writes: Callable[[argparse.Namespace], Iterable[Path]] = writes_nothing

    def checked(self, options: argparse.Namespace) -> argparse.Namespace:
        """The options with their defaults.

        Raises:
            InputError: an option does nothing, or what is read would be written over.
        """
        for effect in self.effects:
            effect.check(options)
        refuse_to_lose(self._read_paths(options), self.writes(options))
        given = {name: value for name, value in vars(options).items() if value is not None}
        return argparse.Namespace(**{**vars(options), **self.defaults, **given})

    def _read_paths(self, options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
        for name in self.reads:
            value = getattr(options, name)
            for path in value if isinstance(value, list) else [value]:
                if path is not None:
                    yield name if name in self.unflagged else flag(name), Path(path)
