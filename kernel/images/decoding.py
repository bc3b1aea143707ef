"""Decoders: OpenCV's, as far as they can be trusted, and those of packages that may be installed."""

from __future__ import annotations

import importlib.util
import lzma
import struct
import zlib

import cv2
import numpy as np

from kernel.log import LOG

#: What tifffile, imagecodecs and what they are made of raise over files that are damaged or beyond them.
DECODER_ERRORS = (
    ValueError, RuntimeError, LookupError, ArithmeticError, TypeError, AttributeError, AssertionError, ImportError,
    OSError, EOFError, struct.error, zlib.error, lzma.LZMAError,
)  # fmt: skip


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return importlib.util.find_spec(package) is not None


def decode_by_opencv(content: bytes | bytearray) -> np.ndarray | None:
    """The pixels of an image file as OpenCV reads them, (H, W) or (H, W, C); None where it cannot.

    A JPEG's orientation tag is ignored, a TIFF's is not.
    """
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:  # sizes beyond OpenCV's limits
        LOG.debug("OpenCV: %s", error)
        return None
    return pixels if pixels is not None and pixels.size else None


def without_alpha(pixels: np.ndarray) -> np.ndarray:
    """(H, W) or (H, W, C) with C from 1 to 4 as (H, W, 1) or (H, W, 3): alpha is the second or the fourth channel."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return pixels[..., :1] if pixels.shape[2] == 2 else pixels[..., :3]
