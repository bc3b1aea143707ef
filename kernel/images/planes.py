"""Which plane of an image of many dimensions is taken: its channel, its z, its frame.

Axes have letters, as OME has them: C is the channel, Z the depth, T the time. A file may have others, of pages for
example, whose meaning it does not tell: such an axis is what is asked for and has no axis of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from kernel.errors import InputError

#: What is chosen, and the letter of its axis.
ROLES = {"frame": "T", "z": "Z", "channel": "C"}
#: Words that stand for an index or several.
ALL_FRAMES, LARGEST, MIDDLE = "all", "max", "middle"


@dataclass(frozen=True)
class PlaneChoice:
    """What is asked for; None: nothing, so that the default is taken.

    Attributes:
        channel: its index; or a text, which is its name, where the file tells names, else an index. Default: the first.
        z: its index, "middle", or "max" for the largest value of each pixel. Default: the middle.
        frame: its index, or "all". Default: the first. Of an image without time, but with a depth of which nothing is
            asked, it is that of the depth: Fiji calls the frames of what it imports slices.
    """

    channel: int | str | None = None
    z: int | str | None = None
    frame: int | str | None = None

    def __post_init__(self) -> None:
        for role, words in (("channel", ()), ("z", (LARGEST, MIDDLE)), ("frame", (ALL_FRAMES,))):
            value = getattr(self, role)
            if value is None or (isinstance(value, str) and (value in words or not words)):
                continue
            if isinstance(value, bool) or not isinstance(value, Integral):
                raise InputError(
                    f"{role} {value!r}: give an index, counted from 0, or {' or '.join(words) or 'a name in quotes'}"
                )
            if int(value) < 0:
                raise InputError(f"{role} {value}: an index is counted from 0")


@dataclass(frozen=True)
class Planes:
    """What is taken: the places along the axes of one plane, or of several of which the largest values are taken."""

    places: tuple[tuple[int, ...], ...]
    told: str  # what was taken by default, or could have been meant otherwise; empty where nothing was


def choice_of_texts(channel: str | None, z: str | None, frame: str | None) -> PlaneChoice:
    """The choice of a command line's texts, in which an index is written as a number.

    That of a channel stays a text until the names of an image are known: wavelengths are numbers, too.
    """
    channel, z, frame = (None if text is None else text.strip() for text in (channel, z, frame))
    return PlaneChoice(channel, *(int(text) if text is not None and is_index(text) else text for text in (z, frame)))


def is_index(text: str) -> bool:
    """Whether a text is a whole number."""
    return text.removeprefix("-").isdecimal() and text.isascii()


def axes_roles(axes: str, sizes: Sequence[int], choice: PlaneChoice) -> list[str | None]:
    """For each axis what it is chosen by, a key of ROLES; None: by nothing, its first place is taken.

    Args:
        axes: a letter for each axis, those of rows, columns and colours left out.
        sizes: of the axes.
        choice: what is asked for.
    """
    letters = {letter: role for role, letter in ROLES.items()}
    roles: list[str | None] = [None] * len(axes)
    for place, (letter, size) in enumerate(zip(axes, sizes, strict=True)):
        if size > 1 and letter in letters and letters[letter] not in roles:
            roles[place] = letters[letter]
    waiting = [role for role in ROLES if getattr(choice, role) is not None and role not in roles]
    for place, (letter, size) in enumerate(zip(axes, sizes, strict=True)):
        if size > 1 and letter not in letters and waiting:
            roles[place] = waiting.pop(0)
    has_time = ROLES["frame"] in axes or "frame" in roles
    if choice.frame is not None and choice.z is None and not has_time and "z" in roles:
        roles[roles.index("z")] = "frame"
    return roles


def count_frames(axes: str, sizes: Sequence[int], choice: PlaneChoice) -> int:
    """How many results an image has."""
    roles = axes_roles(axes, sizes, choice)
    return sizes[roles.index("frame")] if choice.frame == ALL_FRAMES and "frame" in roles else 1


def choose_planes(
    axes: str, sizes: Sequence[int], choice: PlaneChoice, channel_names: Sequence[str] = (), frame: int | None = None
) -> Planes:
    """What is taken of an image.

    Args:
        axes: as in `axes_roles`.
        sizes: of the axes.
        choice: what is asked for.
        channel_names: of the channels, where they are known.
        frame: which one of all frames, where these are asked for.

    Raises:
        InputError: the image has not what is asked for.
    """
    roles = axes_roles(axes, sizes, choice)
    taken: list[Sequence[int]] = []
    defaults: list[str] = []
    for role, letter, size in zip(roles, axes, sizes, strict=True):
        if role is None:
            taken.append([0])
            if size > 1:
                defaults.append(f"the first of {size} along its axis {letter}")
            continue
        asked = frame if role == "frame" and choice.frame == ALL_FRAMES else getattr(choice, role)
        places = places_of(role, size, asked, channel_names)
        taken.append(places)
        if asked is None:
            defaults.append(f"{role} {places[0]} of {size}")
        elif str(asked) in map(str, set(range(size)) - set(places)):  # a name that is the index of another, too
            defaults.append(f"{role} {places[0]} of {size} by its name {asked}")
    for role in ROLES:
        if role not in roles:
            places_of(role, 1, getattr(choice, role), channel_names)
    told = ", ".join(defaults)
    if told:
        told = f"axes {axes}YX: {told} {'is' if len(defaults) == 1 else 'are'} taken, counted from 0; see " + ", ".join(
            f"--{role}" for role in reversed(ROLES)
        )
    if ("frame", ROLES["z"]) in zip(roles, axes, strict=True):
        depth = f"axes {axes}YX: there is no time axis, so the depth Z counts as frames, unless --z chooses along it"
        told = "; ".join(filter(None, (depth, told)))
    return Planes(tuple(itertools.product(*taken)), told)


def places_of(role: str, size: int, asked: Any, channel_names: Sequence[str]) -> Sequence[int]:
    """The indices that are asked for along an axis.

    Raises:
        InputError: there are none such.
    """
    if asked in (None, MIDDLE) and (role == "z" or asked is None):
        return [size // 2 if role == "z" else 0]
    if role == "z" and asked == LARGEST:
        return range(size)
    if role == "frame" and asked == ALL_FRAMES:
        return [0]
    index = channel_index(asked, channel_names) if isinstance(asked, str) else asked
    if not 0 <= index < size:
        having = "it has one" if size == 1 else f"it has {size}"
        named = f"; its channels are {', '.join(channel_names)}" if role == "channel" and channel_names else ""
        raise InputError(f"there is no {role} {asked}: {having}, counted from 0{named}")
    return [index]


def channel_index(asked: str, names: Sequence[str]) -> int:
    """The index of the one channel of a name, in letters of either case; of a number that is no name, that number.

    Raises:
        InputError: it is neither, or the name of several.
    """
    folded = [name.casefold() for name in names]
    count = folded.count(asked.casefold())
    if count == 0 and is_index(asked):
        return int(asked)
    if count != 1:
        known = f"its channels are {', '.join(names)}" if names else "its channels have no names"
        raise InputError(f"there is no one channel {asked!r}: {known}; an index is counted from 0")
    return folded.index(asked.casefold())
