"""On which plane of a stack shapes must lie to be an image's cells: the one that members are shown."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from kernel.images.planes import ROLES, PlaneChoice, axes_roles, choose_planes
from kernel.images.stacks import open_stack

#: The axes of ImageJ's stacks, the slowest first.
STACK_ORDER = "TZC"


@dataclass(frozen=True)
class TakenPlane:
    """What is taken of an image, counted from 0: of a projection each of its planes. A cell is in every channel.

    Attributes:
        z: along the depth.
        frames: along the time.
        positions: in the whole stack, as ImageJ counts its slices.
    """

    z: Collection[int] = (0,)
    frames: Collection[int] = (0,)
    positions: Collection[int] = (0,)

    def flaw(self, z: int | None = None, frame: int | None = None, position: int | None = None) -> str:
        """Why a shape that tells its plane so, or None for what it does not tell, is not on this one; else ""."""
        if z is not None and z not in self.z:
            return f"it lies on z {z}, and {named(self.z)} is taken, counted from 0 (see --z)"
        if frame is not None and frame not in self.frames:
            return f"it lies on frame {frame}, and {named(self.frames)} is taken, counted from 0 (see --frame)"
        if position is not None and position not in self.positions:
            taken = named([place + 1 for place in self.positions])
            return (
                f"it lies on slice {position + 1} of a stack, and {taken} is taken, counted from 1 (see --z, --frame)"
            )
        return ""


#: Of a file that is read as an image of one plane.
FIRST_PLANE = TakenPlane()


def named(places: Collection[int]) -> str:
    """The first of few places, in a message."""
    return ", ".join(map(str, sorted(places)[:3])) + (", ..." if len(places) > 3 else "")


def taken_plane(path: Path, choice: PlaneChoice) -> TakenPlane:
    """What is taken of an image file; errors as `read_picture`, whose pixels it tells of."""
    stack = open_stack(path, choice)
    places = choose_planes(stack.axes, stack.sizes, choice, stack.channel_names).places
    roles = axes_roles(stack.axes, stack.sizes, choice)
    letters = [  # what shapes tell of the depth is of the depth, also where it counts as frames
        ROLES[role] if role and letter not in STACK_ORDER else letter
        for role, letter in zip(roles, stack.axes, strict=True)
    ]

    def along(letter: str) -> frozenset[int]:
        return frozenset(place[letters.index(letter)] if letter in letters else 0 for place in places)

    channels = stack.sizes[letters.index("C")] if "C" in letters else 1
    positions = set()
    for place, channel in itertools.product(places, range(channels)):
        position = 0
        for axis in sorted(range(len(letters)), key=lambda axis: STACK_ORDER.find(letters[axis])):
            position = position * stack.sizes[axis] + (channel if letters[axis] == "C" else place[axis])
        positions.add(position)
    return TakenPlane(along("Z"), along("T"), frozenset(positions))
