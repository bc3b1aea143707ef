"""Cells of images held in memory: numpy arrays in, numpy arrays out.

    from inside_ensemble import load

    segmenter = load("manifest.json", weights="weights")  # or load(preset="fast"), by the members that come with it
    cells = segmenter.segment(image)
    cells.labels, cells.scores, cells.cell_types, cells.outlines

In a checkout the package is called `kernel`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernel.errors import InputError
from kernel.images.gray_levels import to_eight_bit
from kernel.masks.instances import CellMasks
from kernel.masks.labels import label_image
from kernel.postprocess.outlines import Ring, mask_polygons
from kernel.settings import CELL_TYPES

if TYPE_CHECKING:
    from kernel.ensemble.ensemble import Ensemble


@dataclass(frozen=True, eq=False)
class Cells:
    """The N cells of one image of H x W pixels, best first; no two overlap.

    Attributes:
        crops: the masks, each as an array of its own and its place.
    """

    crops: CellMasks

    def __len__(self) -> int:
        return len(self.crops)

    @property
    def labels(self) -> np.ndarray:
        """(H, W) uint16, uint32 above 65535 cells: 0 background, n the n-th cell counted from 1."""
        return label_image(self.crops)

    @property
    def masks(self) -> np.ndarray:
        """(N, H, W) bool."""
        frames = np.zeros((len(self), *self.crops.image_shape), bool)
        for frame, crop, (y0, x0, y1, x1) in zip(frames, self.crops.crops, self.crops.windows, strict=True):
            frame[y0:y1, x0:x1] = crop
        return frames

    @property
    def scores(self) -> np.ndarray:
        """(N,) float32, 0 to 1."""
        return self.crops.scores

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Of each cell, as its detectors see it alone."""
        return tuple(CELL_TYPES[label] for label in self.crops.labels.tolist())

    @property
    def cell_type(self) -> str | None:
        """Of the image, by the vote of its cells: what members and thresholds it was segmented by. None: no cells."""
        return self.crops.cell_type

    @property
    def outlines(self) -> list[list[list[Ring]]]:
        """Of each cell its pieces, of each piece the exterior, then holes: rings [x, y] along the pixels' edges.

        Pixel (x, y) is the square from (x, y) to (x + 1, y + 1).
        """
        return [
            mask_polygons(crop, offset) for crop, offset in zip(self.crops.crops, self.crops.offsets_yx, strict=True)
        ]


class Segmenter:
    """An ensemble, loaded on its device. See `load`."""

    def __init__(self, ensemble: Ensemble):
        self.ensemble = ensemble
        self._planned_pixels = 0  # of the largest image so far, for which the memory is planned

    def segment(self, image: np.ndarray) -> Cells:
        """Find the cells of an image.

        Args:
            image: (H, W) gray or (H, W, 3) RGB, of any real dtype. uint8 is taken as it is; other values are brought
                to the gray levels that members know, as those of files are.

        Raises:
            ValueError: another shape or dtype, or no pixel.
        """
        from kernel.runtime.memory import apply_plan, free_memory, plan_memory
        from kernel.segment import segment_image

        pixels = as_bgr(image)
        height, width, _ = pixels.shape
        if height * width > self._planned_pixels:
            apply_plan(self.ensemble, plan_memory(self.ensemble, (height, width), free_memory(self.ensemble.device)))
            self._planned_pixels = height * width
        return Cells(segment_image(self.ensemble, pixels).masks)

    def segment_many(self, images: Iterable[np.ndarray]) -> Iterator[Cells]:
        """The cells of each image, one after the other, as they are asked for."""
        return (self.segment(image) for image in images)


def load(
    manifest: str | os.PathLike[str] | None = None,
    weights: str | os.PathLike[str] | None = None,
    *,
    preset: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> Segmenter:
    """Load the ensemble of a manifest, or a preset of the members that come with the program.

    The first call on a machine prepares mmdet's packages, which needs a network.

    Args:
        manifest: its file; None: the members that come with the program.
        weights: folder with the members' files; None: `weights` beside the manifest.
        preset: of the members that come with the program: "best", "balanced" or "fast"; None: "balanced".
        device: "cpu", "cuda", "cuda:1", ...; None: the first GPU, or the CPU.
        dtype: of the networks: float32, float16 or bfloat16; None: the preset's, or float32.

    Raises:
        InputError: the manifest, a preset, a weight file or the device cannot be used.
        RunError: mmdet's packages cannot be prepared.
    """
    from kernel.commands.common import check_device, find_ensemble, shipped_ensemble
    from kernel.manifest.reader import read_manifest
    from kernel.settings import NETWORK_DTYPES
    from kernel.vendored import use_vendored_packages

    if dtype is not None and dtype not in NETWORK_DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(NETWORK_DTYPES)}")
    use_vendored_packages()
    if manifest is None:
        if weights is not None:
            raise InputError(f"weights {weights} without a manifest, which says what they are")
        files = shipped_ensemble(preset, dtype).files()
    else:
        if preset is not None:
            raise InputError(f"preset {preset!r} is of the members that come with the program: give no manifest")
        path = Path(manifest)
        folder = path.parent / "weights" if weights is None else Path(weights)
        files = find_ensemble(read_manifest(path), folder, dtype or NETWORK_DTYPES[0])
    return Segmenter(files.load(check_device(device)))


def as_bgr(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 of B, G, R, as members see an image; arguments and errors as `Segmenter.segment`."""
    pixels = np.asarray(image)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise ValueError(
            f"the image has the shape {pixels.shape}: give one of (H, W), or of (H, W, 3) for RGB; of stacks and of "
            "several channels, one plane"
        )
    if not (np.issubdtype(pixels.dtype, np.integer) or np.issubdtype(pixels.dtype, np.floating)):
        raise ValueError(f"the image holds {pixels.dtype}: give integers or floats")
    channels = to_eight_bit(pixels.reshape(*pixels.shape[:2], -1))
    return np.repeat(channels, 3, axis=2) if channels.shape[2] == 1 else np.ascontiguousarray(channels[..., ::-1])
