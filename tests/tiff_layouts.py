"""TIFFs of every layout that tifffile and imagecodecs write, with the pixels that each must be read as."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

SHAPE = (37, 53)
#: The colours of each kind, further samples, and PhotometricInterpretation.
KINDS: dict[str, tuple[int, tuple[int, ...], str]] = {
    "gray": (1, (), "minisblack"),
    "white is zero": (1, (), "miniswhite"),
    "gray, alpha": (1, (2,), "minisblack"),
    "gray, two more": (1, (0, 0), "minisblack"),
    "RGB": (3, (), "rgb"),
    "RGBA": (3, (2,), "rgb"),
    "RGBA premultiplied": (3, (1,), "rgb"),
    "RGB, two more": (3, (0, 0), "rgb"),
    "palette": (1, (), "palette"),
    "green table": (1, (), "palette"),
}
DTYPES = ("bool", "u1", "u1", "u1", "u2", "u2", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f4", "f8")
COMPRESSIONS: dict[str | None, dict[str, Any]] = {
    None: {}, "zlib": {}, "adobe_deflate": {}, "lzw": {}, "packbits": {}, "lzma": {}, "zstd": {}, "png": {},
    "lerc": {}, "jpeg2000": {}, "jpegxl": {"lossless": True}, "jpegxr": {"level": 1.0}, "webp": {"lossless": True},
    "jpeg": {"level": 98}, "ccitt": {},
}  # fmt: skip
LOSSY = ("jpeg",)


@dataclass(frozen=True)
class Layout:
    """One combination."""

    kind: str
    dtype: str
    compression: str | None
    predictor: bool
    planar: bool
    tiled: bool
    byteorder: str
    big: bool
    orientation: int
    pages: int
    bits: int | None  # of values packed more closely than their type

    def write(self, path: Path, rng: np.random.Generator) -> np.ndarray:
        """Write a file, and return its gray or R, G, B as (H, W, 1) or (H, W, 3), before any mapping of depths.

        Raises:
            Exception: the combination cannot be written.
        """
        colours, extra, photometric = KINDS[self.kind]
        samples = colours + len(extra)
        values = made_values(rng, (self.pages, *SHAPE, samples), self.dtype, self.bits)
        stored = np.moveaxis(values, -1, 1) if self.planar and samples > 1 else values
        stored = stored[..., 0] if samples == 1 else stored
        options: dict[str, Any] = {}
        table = None
        if photometric == "palette":
            if self.dtype not in ("u1", "u2"):
                raise ValueError("no table is that long")
            entries = 1 << (8 * np.dtype(self.dtype).itemsize)
            table = rng.integers(0, 256, (3, entries)).astype(np.uint16) * 257
            if self.kind == "green table":
                table[:] = 0
                table[1] = np.linspace(0, 65535, entries).astype(np.uint16)
            options["colormap"] = table
        if samples > 1:
            options |= {"planarconfig": "separate" if self.planar else "contig", "extrasamples": extra}
        if self.tiled:
            options["tile"] = (16, 32)
        elif self.pages == 1 and self.compression != "ccitt":
            options["rowsperstrip"] = 10
        if self.bits:
            options["bitspersample"] = self.bits
        tifffile.imwrite(
            path, stored, photometric=photometric, compression=self.compression, predictor=self.predictor or None,
            compressionargs=COMPRESSIONS[self.compression] or None, byteorder=self.byteorder, bigtiff=self.big,
            extratags=[(274, "H", 1, self.orientation, True)] if self.orientation != 1 else (), metadata=None,
            **options,
        )  # fmt: skip
        shown = values[0, ..., :colours]
        if self.bits and self.bits < 8:
            shown = np.rint(shown * (255 / ((1 << self.bits) - 1))).astype(np.uint8)
        elif self.dtype == "bool":
            shown = shown.astype(np.uint8) * np.uint8(255)
        if photometric == "miniswhite":
            shown = 255 - shown if shown.dtype == np.uint8 else -shown.astype(np.float64)
        if self.kind == "palette" and table is not None:
            shown = (table.T[shown[..., 0]] // 257).astype(np.uint8)
        return shown


def made_values(rng: np.random.Generator, shape: tuple[int, ...], dtype: str, bits: int | None) -> np.ndarray:
    """Noise within the type's range, without constant areas; colours differ in their mean."""
    noise = rng.normal(size=shape) + np.arange(shape[-1]) / 2
    if dtype == "bool":
        return noise > 0
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return (noise * 3 + 10).astype(kind)
    bits = bits or kind.itemsize * 8
    middle = 0 if kind.kind == "i" else 1 << (min(bits, 32) - 1)
    return np.clip(np.rint(middle + noise * 2.0 ** (min(bits, 32) - 4)), *value_range(kind, bits)).astype(kind)


def value_range(kind: np.dtype, bits: int) -> tuple[float, float]:
    """The lowest and the highest value."""
    if kind.kind == "i":
        return float(-(2.0 ** (bits - 1))), float(2.0 ** (min(bits, 53) - 1) - 1)
    return 0.0, float(2.0 ** min(bits, 53) - 1)


def layouts(count: int, seed: int = 0) -> Iterator[Layout]:
    """Combinations by chance, each once."""
    draw = random.Random(seed)
    seen = set()
    for _ in range(count):
        dtype = draw.choice(DTYPES)
        made = Layout(
            kind=draw.choice(list(KINDS)),
            dtype=dtype,
            compression=draw.choice(list(COMPRESSIONS)),
            predictor=draw.random() < 0.4,
            planar=draw.random() < 0.4,
            tiled=draw.random() < 0.4,
            byteorder=draw.choice("<>"),
            big=draw.random() < 0.3,
            orientation=draw.choice((1, 1, *range(2, 9))),
            pages=draw.choice((1, 1, 3)),
            bits=draw.choice((None, None, None, *{"u1": (2, 4, 6), "u2": (10, 12, 14), "u4": (20, 24)}.get(dtype, ()))),
        )
        if made.bits and KINDS[made.kind][2] == "palette":
            continue  # its table would not be of these bits
        # tifffile writes these with their bytes in the wrong order.
        swapped = made.bits if made.compression is None else made.compression == "jpeg2000"
        if made not in seen and not (made.byteorder == ">" and swapped and np.dtype(dtype).itemsize > 1):
            seen.add(made)
            yield made


def oracle(shown: np.ndarray) -> np.ndarray:
    """What `read_image` makes of gray or R, G, B of any depth, (H, W, 3) in B, G, R; slow and plain."""
    if shown.dtype != np.uint8:
        values = shown.astype(np.float64)
        low, high = np.percentile(values, (0.5, 99.5))
        usual = np.clip(values, low, high)
        shown = np.clip(np.rint(128 + 12 * (values - usual.mean()) / usual.std()), 0, 255).astype(np.uint8)
    return np.repeat(shown, 3, axis=2) if shown.shape[2] == 1 else shown[..., ::-1]
