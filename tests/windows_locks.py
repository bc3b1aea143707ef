"""What stands in for Windows' msvcrt: it locks a byte from where a file stands, and not the file."""

from __future__ import annotations

import os

LK_NBLCK = 2
#: The file and the byte that a descriptor has locked.
_LOCKED: dict[int, tuple[int, int, int]] = {}


def locking(descriptor: int, mode: int, count: int) -> None:
    """Lock one byte of an open file, at its position.

    Raises:
        PermissionError: another descriptor that is still open has it.
    """
    assert (mode, count) == (LK_NBLCK, 1)
    facts = os.fstat(descriptor)
    wanted = (facts.st_dev, facts.st_ino, os.lseek(descriptor, 0, os.SEEK_CUR))
    for other, locked in list(_LOCKED.items()):
        if other == descriptor or not _is_open(other, locked):
            del _LOCKED[other]
    if wanted in _LOCKED.values():
        raise PermissionError(13, "Permission denied")
    _LOCKED[descriptor] = wanted


def _is_open(descriptor: int, locked: tuple[int, int, int]) -> bool:
    try:
        facts = os.fstat(descriptor)
    except OSError:
        return False
    return (facts.st_dev, facts.st_ino) == locked[:2]
