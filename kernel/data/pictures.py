"""Which pictures are the same, under whatever ids: by their pixels, and nearly, by how they look.

A picture that is trained on and scored promises too much, also as a copy under another name, as JPEG, brighter or at
half the size. How a picture looks is a difference hash: it is averaged down to 33 x 32 gray values, what varies slowly
is taken away, and a bit says for each pair of neighbours in a row which is brighter. What varies slowly is mostly the
microscope's light: it would be the look of all its pictures of few cells.

Pictures of other cells look alike, too, where all show the same thing: a round field of view, a frame, a chamber's
edge. So pictures that look alike are compared by their detail as well. It is a hash of 65 x 64 gray values without what
a median of 5 x 5 leaves, which are edges and slopes, and clipped, so that nothing strong decides. Of the pairs of
neighbours those count that differ more than most do, in both pictures.
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
#: Rows of gray values that detail is made of, of which every second pair of neighbours in every second row is kept.
_DETAIL_SIDE = 64
#: How many times their median gray values may be away from zero.
_DETAIL_CLIP = 3
#: The share of neighbours that have to agree on which is brighter. On the images at hand copies agree by 0.86 or more,
#: altered as above, with a black frame and outside of a round field by 0.74, and different pictures by 0.68 or less.
DETAIL_AGREEMENT = 0.71
#: Pairs of neighbours that have to count in both pictures: fewer say nothing, and looks alone decide.
_LEAST_DETAIL = 40
#: Mean difference of neighbours, in gray levels, below which a picture is so flat that its look says nothing.
_FLAT = 0.02
#: The detail of a picture whose own is not known: no pair counts.
_UNTOLD = "0" * 512


@dataclass(frozen=True)
class Picture:
    """What an image is recognised by."""

    image_id: str
    pixels: str  # 16 hexadecimal digits of the SHA-256 of size and pixels
    look: str  # 256 hexadecimal digits; "" where the picture is flat, or of no more than 32 pixels a side
    detail: str = ""  # 512 digits: which neighbour is brighter, then which pairs count; "": not known, as of old files


def picture_of(image_id: str, image_bgr: np.ndarray) -> Picture:
    """What the image (H, W, 3) uint8 is recognised by."""
    digest = hashlib.sha256(repr(image_bgr.shape).encode() + np.ascontiguousarray(image_bgr).tobytes())
    gray = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY).astype(np.float32)
    small = cv2.resize(gray, (_LOOK_SIDE + 1, _LOOK_SIDE), interpolation=cv2.INTER_AREA)
    basis = _shadings()
    steps = np.diff(small - (basis @ (small.ravel() @ basis)).reshape(small.shape), axis=1)
    # A smaller picture is stretched: its steps lie in few columns, and most bits are equal of any two.
    if min(gray.shape) <= _LOOK_SIDE or np.abs(steps).mean() < _FLAT:
        return Picture(image_id, digest.hexdigest()[:16], "")
    return Picture(image_id, digest.hexdigest()[:16], np.packbits(steps > 0).tobytes().hex(), _detail(gray))


def _detail(gray: np.ndarray) -> str:
    """A picture's detail, of its gray values (H, W) float32; "" where it is of no more than 64 pixels a side."""
    if min(gray.shape) <= _DETAIL_SIDE:
        return ""
    small = cv2.resize(gray, (_DETAIL_SIDE + 1, _DETAIL_SIDE), interpolation=cv2.INTER_AREA)
    texture = small - cv2.medianBlur(small, 5)
    most = _DETAIL_CLIP * np.median(np.abs(texture[texture != 0])) if texture.any() else 0.0
    steps = np.diff(texture.clip(-most, most), axis=1)
    sizes = np.abs(steps[np.abs(steps) > _FLAT])
    counts = np.abs(steps) >= (np.median(sizes) if len(sizes) else np.inf)
    return np.packbits([(steps > 0)[::2, ::2], counts[::2, ::2]]).tobytes().hex()


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
        self._by_pixels: dict[str, list[int]] = {}
        for place, picture in enumerate(self.pictures):
            self._by_pixels.setdefault(picture.pixels, []).append(place)
        self._places = np.array([place for place, picture in enumerate(self.pictures) if picture.look], np.int64)
        known = [self.pictures[place] for place in self._places.tolist()]
        self._looks = _words([picture.look for picture in known])
        self._details = _words([picture.detail or _UNTOLD for picture in known])

    def same(self, picture: Picture) -> list[int]:
        """The places of all pictures that are equal or nearly equal to this one, those of equal pixels first."""
        found = list(self._by_pixels.get(picture.pixels, ()))
        if picture.look and len(self._places):
            alike = _count(self._looks ^ _words([picture.look])) <= LOOK_TOLERANCE
            alike[alike] = _same_detail(self._details[alike], _words([picture.detail or _UNTOLD]))
            found += sorted(set(self._places[alike].tolist()).difference(found))
        return found

    def find(self, picture: Picture) -> Picture | None:
        """One that is equal to this picture, or else the first that nearly is."""
        if picture.pixels in self._by_pixels:
            return self.pictures[self._by_pixels[picture.pixels][0]]
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


def _same_detail(details: np.ndarray, detail: np.ndarray) -> np.ndarray:
    """(N,) bool: whether details (N, 32) of pictures that look like the one of `detail` agree, or do not tell."""
    brighter, counts = np.split(details, 2, axis=-1)
    own_brighter, own_counts = np.split(detail, 2, axis=-1)
    common = counts & own_counts
    compared, differing = _count(common), _count((brighter ^ own_brighter) & common)
    return (compared < _LEAST_DETAIL) | (differing <= (1 - DETAIL_AGREEMENT) * compared)


def _count(words: np.ndarray) -> np.ndarray:
    """(N,) how many bits of words (N, M) are set."""
    return np.bitwise_count(words).sum(axis=-1, dtype=np.int64)


def _words(hashes: Sequence[str]) -> np.ndarray:
    """(N, M) uint64 of N hashes of 16 M hexadecimal digits each."""
    words = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint64)
    return words.reshape(len(hashes), -1 if len(hashes) else 1)
