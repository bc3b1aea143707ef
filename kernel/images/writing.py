"""Images out: encoded here, so that names and errors are the operating system's own."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from kernel.errors import RunError
from kernel.files import writing


def write_image_file(path: Path, image: np.ndarray) -> None:
    """Write an image, (H, W) or (H, W, 3) uint8 of B, G, R, in the format that the file's name ends in.

    OpenCV's own writing takes no name on Windows with letters that its code page lacks, and tells no reason.

    Raises:
        RunError: it cannot be encoded or written.
    """
    written, encoded = cv2.imencode(path.suffix, image)
    if not written:
        raise RunError(f"OpenCV could not encode {path.name}")
    with writing(path, RunError):
        path.write_bytes(encoded.tobytes())
