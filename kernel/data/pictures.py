"""Which pictures are the same, under whatever ids: by their pixels, and nearly, by how they look.

A picture that is trained on and scored promises too much, also as a copy under another name, as JPEG, brighter or at
half the size. How a picture looks is a difference hash: it is averaged down to 33 x 32 gray values, what varies slowly
is taken away, and a bit says for each pair of neighbours in a row which is brighter. What varies slowly is mostly the
microscope's light: it would be the look of all its pictures of few cells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

#: Rows, and bits of each.
_LOOK_SIDE = 32
#: The degree of the polynomial that is taken away.
_SHADING_DEGREE = 4
#: Of 1024 bits, those that two nearly equal pictures may differ in. On the real and synthetic images at hand, copies
#: differ by 75 or less where they are brighter, 200 where they are of half the size or another gamma, and in the median
#: by 140 with noise of 3 gray levels, by 200 as JPEG of quality 60; different pictures differ by 410 or more, also with
#: half of the light gone in the corners, and by 300 where they have the very same cells. Older files of weights keep
#: looks that nothing was taken away from: of the same picture they differ by 50 or less, with shading by 125.
LOOK_TOLERANCE = 220
#: Mean difference of neighbours, in gray levels, below which a picture is so flat that its look says nothing.
_FLAT = 0.02


@dataclass(frozen=True)
class Picture:
    """What an image is recognised by."""

    image_id: str
    pixels: str  # 16 hexadecimal digits of the SHA-256 of size and pixels
    look: str  # 256 hexadecimal digits; "" where the picture is flat, or of no more than 32 pixels a side


def picture_of(image_id: str, image_bgr: np.ndarray) -> Picture:
    """What the image (H, W, 3) uint8 is recognised by."""
    digest = hashlib.sha256(repr(image_bgr.shape).encode() + np.ascontiguousarray(image_bgr).tobytes())
    gray = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    small = cv2.resize(gray, (_LOOK_SIDE + 1, _LOOK_SIDE), interpolation=cv2.INTER_AREA)
    basis = _shadings()
    steps = np.diff(small - (basis @ (small.ravel() @ basis)).reshape(small.shape), axis=1)
    # A smaller picture is stretched: its steps lie in few columns, and most bits are equal of any two.
    says_nothing = min(gray.shape) <= _LOOK_SIDE or bool(np.abs(steps).mean() < _FLAT)
    return Picture(image_id, digest.hexdigest()[:16], "" if says_nothing else np.packbits(steps > 0).tobytes().hex())


@cache
def _shadings() -> np.ndarray:
    """(32 * 33, N) float32: an orthonormal basis of the shadings that are taken away."""
    y, x = np.mgrid[-1 : 1 : _LOOK_SIDE * 1j, -1 : 1 : (_LOOK_SIDE + 1) * 1j]
    powers = [(i, j) for i in range(_SHADING_DEGREE + 1) for j in range(_SHADING_DEGREE + 1 - i)]
    return np.linalg.qr(np.stack([(x**i * y**j).ravel() for i, j in powers], axis=1))[0].astype(np.float32)


class PictureIndex:
    """Finds pictures among many."""

    def __init__(self, pictures: Iterable[Picture]) -> None:
        self.pictures = list(pictures)
        self._by_pixels: dict[str, int] = {}
        for place, picture in enumerate(self.pictures):
            self._by_pixels.setdefault(picture.pixels, place)
        self._places = np.array([place for place, picture in enumerate(self.pictures) if picture.look], np.int64)
        self._looks = _bits([self.pictures[place].look for place in self._places.tolist()])

    def same(self, picture: Picture) -> list[int]:
        """The places of all pictures that are equal or nearly equal to this one, those of equal pixels first."""
        found = [place for place, other in enumerate(self.pictures) if other.pixels == picture.pixels]
        if picture.look and len(self._places):
            differing = np.count_nonzero(self._looks != _bits([picture.look]), axis=1)
            near = self._places[differing <= LOOK_TOLERANCE].tolist()
            found += [place for place in near if place not in found]
        return found

    def find(self, picture: Picture) -> Picture | None:
        """One that is equal to this picture, or else the first that nearly is."""
        if picture.pixels in self._by_pixels:
            return self.pictures[self._by_pixels[picture.pixels]]
        near = self.same(picture) if picture.look else []
        return self.pictures[near[0]] if near else None


def same_pictures(pictures: Sequence[Picture]) -> list[list[int]]:
    """The places of pictures that are the same, group by group; a picture that is alone is in none."""
    index = PictureIndex(pictures)
    group_of = list(range(len(pictures)))

    def root(place: int) -> int:
        while group_of[place] != place:
            place = group_of[place]
        return place

    for place, picture in enumerate(pictures):
        for other in index.same(picture):
            one, two = sorted((root(place), root(other)))
            group_of[two] = one
    groups: dict[int, list[int]] = {}
    for place in range(len(pictures)):
        groups.setdefault(root(place), []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def _bits(looks: Sequence[str]) -> np.ndarray:
    """(N, 1024) uint8 of N looks."""
    rows = np.array([list(bytes.fromhex(look)) for look in looks], np.uint8)
    return np.unpackbits(rows.reshape(len(looks), _LOOK_SIDE * _LOOK_SIDE // 8), axis=1)
