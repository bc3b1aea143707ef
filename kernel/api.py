"""Cells of images held in memory: numpy arrays in, numpy arrays out.

    from inside_ensemble import load

    segmenter = load("manifest.json", weights="weights")  # or load(preset="fast"), by the members that come with it
    cells = segmenter.segment(image)
    cells.labels, cells.scores, cells.cell_type, cells.outlines

In a checkout the package is called `kernel`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kernel.errors import InputError
from kernel.images.gray_levels import to_eight_bit
from kernel.images.gray_matching import KNOWN_GRAYS, far_grays, grays_text, matched_grays
from kernel.images.pixel_size import PixelSize
from kernel.images.planes import ALL_FRAMES, ROLES, PlaneChoice, choose_planes, count_frames
from kernel.images.stacks import PLANE_AXES
from kernel.log import LOG
from kernel.masks.choosing import keep_cells
from kernel.masks.instances import CellMasks
from kernel.masks.labels import label_image
from kernel.postprocess.outlines import Ring, mask_polygons
from kernel.settings import CELL_TYPES

if TYPE_CHECKING:
    from kernel.ensemble.ensemble import Ensemble
    from kernel.scale import ScaledEnsemble

#: Of Pillow's images those whose values are gray levels or RGB; those of a palette, for one, are numbers of colours.
PILLOW_MODES = ("L", "RGB", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")


@dataclass(frozen=True, eq=False)
class Cells:
    """The N cells of one image of H x W pixels, best first; no two overlap.

    Attributes:
        crops: the masks, each as an array of its own and its place.
        zoom: by how much rows and columns of the image were stretched for the members.
    """

    crops: CellMasks
    zoom: tuple[float, float] = (1.0, 1.0)

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
    def cell_type(self) -> str | None:
        """Of the image, and so of all its cells: the label that most of what was detected in it has.

        The thresholds of this type have decided which cells there are, and may have left none. None: nothing was
        detected at all.
        """
        return self.crops.cell_type

    @property
    def cell_labels(self) -> tuple[str, ...]:
        """What the detectors see in each cell alone: a vote of these is `cell_type`, and single ones may differ."""
        return tuple(CELL_TYPES[label] for label in self.crops.labels.tolist())

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

    def __init__(self, ensemble: ScaledEnsemble):
        self._scaled = ensemble
        self._has_told_grays = False

    @property
    def ensemble(self) -> Ensemble:
        """The networks."""
        return self._scaled.ensemble

    def segment(
        self,
        image: np.ndarray,
        *,
        axes: Sequence[str] | None = None,
        channel: int | None = None,
        z: int | str | None = None,
        frame: int | None = None,
        pixel_um: float | Sequence[float] | np.ndarray | None = None,
        zoom: float | None = None,
        match_gray: bool = False,
        exclude_edges: bool = False,
        min_area: int = 0,
    ) -> Cells:
        """Find the cells of an image.

        Args:
            image: (H, W) gray or (H, W, 3) RGB, of any real dtype; or of any shape, where `axes` says what it has.
                uint8 is taken as it is; other values are brought to the gray levels that members know, as those of
                files are. Images of Pillow, of gray or RGB, and tensors of torch do as well as arrays.
            axes: a letter for each dimension, as "TCZYX" or ("T", "C", "Z", "Y", "X"): T time, C channel, Z depth, Y
                rows, X columns, S the three samples of RGB.
            channel: which one, counted from 0. Default: the first.
            z: which one, "middle", or "max" for the largest value of each pixel. Default: the middle.
            frame: which one. Default: the first. Without T, and where no `z` is given, it is that of the depth.
            pixel_um: the side of a pixel in micrometres: the image is zoomed to the scale that the members know. Two,
                that of rows (y) and that of columns (x), where pixels are not square.
            zoom: by how much it is stretched instead; `pixel_um` then decides nothing.
            match_gray: bring uint8, too, to the gray levels that members know.
            exclude_edges: leave out cells that the image's edge cuts.
            min_area: leave out cells of fewer pixels of the image.

        Returns:
            Cells in the image's own pixels, whatever the zoom.

        Raises:
            ValueError: a path, another shape, dtype or mode of Pillow, no pixel, axes that do not fit, or a `pixel_um`
                or `zoom` that is no number above 0, nor two for `pixel_um`.
            InputError: a place along an axis that the image has not, or that is no index; or a zoom that shows no
                cells.
        """
        if frame == ALL_FRAMES:
            raise ValueError("all frames have a result each: segment_many gives them")
        pixels = array_plane(image, axes, PlaneChoice(channel, z, frame))
        image_bgr = as_bgr(pixels)
        if match_gray:
            image_bgr = matched_grays(image_bgr)
        else:
            self._warn_of_grays(image_bgr)
        if zoom is not None and not is_above_zero(zoom):
            raise ValueError(f"zoom is {zoom!r}: it must be a number above 0")
        return self._segment(image_bgr, given_pixel(pixel_um), zoom, exclude_edges, min_area)

    def segment_many(self, images: Iterable[np.ndarray], **wanted: Any) -> Iterator[Cells]:
        """The cells of each image, one after the other, as they are asked for.

        Args:
            images: as `segment` takes them, in a list or the like; an array of them has one more dimension.
            **wanted: the same for all, as `segment` takes it; with frame="all" each frame of an image is one more.

        Raises:
            ValueError: one image instead of several.
        """
        axes = wanted.get("axes")
        check_several(images, axes)
        choice = PlaneChoice(**{role: wanted.get(role) for role in ROLES})
        for image in images:
            if choice.frame != ALL_FRAMES:
                yield self.segment(image, **wanted)
                continue
            letters, sizes = ("", ()) if axes is None else stack_axes(as_array(image), axes)
            for frame in range(count_frames(letters, sizes, choice)):
                yield self.segment(image, **{**wanted, "frame": frame})

    def _warn_of_grays(self, image_bgr: np.ndarray) -> None:
        """Say once that an image has gray levels at which members are likely to miss cells: others may be alike."""
        grays = None if self._has_told_grays else far_grays(image_bgr)
        if grays is not None:
            self._has_told_grays = True
            LOG.warning(
                "an image's gray levels are far from what the members know (%s; they know %s), and cells are likely "
                "missed: give match_gray=True (others may be alike: this is said once)",
                grays_text(*grays), KNOWN_GRAYS,
            )  # fmt: skip

    def _segment(
        self, image_bgr: np.ndarray, pixel: PixelSize | None, given: float | None, exclude_edges: bool, min_area: int
    ) -> Cells:
        from kernel.images.zoom import zoom_of
        from kernel.scale import cell_size

        zoom = zoom_of(pixel, self._scaled.member_um, given)
        masks = self._scaled.segment(image_bgr, zoom).masks
        size = cell_size(masks, self._scaled.member_um) if pixel is None and given is None else None
        if size is not None and size.is_far:
            LOG.warning(
                "the cells are far from what the members know (median diameter %.0f pixels, usual %.0f): give pixel_um",
                size.diameter_px, size.usual_px,
            )  # fmt: skip
        return Cells(keep_cells(masks, exclude_edges, min_area), zoom)


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
        manifest: its file, or a folder of manifest.json and weights; None: the members that come with the program.
        weights: folder with the members' files; None: `weights` beside the manifest, or its folder without one.
        preset: of the members that come with the program: "best", "balanced" or "fast"; None: "balanced".
        device: "cpu", "cuda", "cuda:1", ...; None: the first GPU, or the CPU.
        dtype: of the networks: float32, float16 or bfloat16; None: the preset's, or the manifest's.

    Raises:
        InputError: the manifest, a preset, a weight file or the device cannot be used.
        RunError: mmdet's packages cannot be prepared.
    """
    from kernel.commands.common import check_device, find_ensemble, shipped_ensemble
    from kernel.manifest.presets import MANIFEST_NAME, members_folder, weights_folder
    from kernel.manifest.reader import read_manifest
    from kernel.scale import ScaledEnsemble, member_pixel_um
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
        given = Path(manifest)
        path = members_folder(str(given)) / MANIFEST_NAME if given.is_dir() else given
        folder = weights_folder(path.parent) if weights is None else Path(weights)
        files = find_ensemble(read_manifest(path), folder, dtype)
    return Segmenter(ScaledEnsemble(files.load(check_device(device)), member_pixel_um(files.paths)))


def given_pixel(pixel_um: Any) -> PixelSize | None:
    """The size of a pixel, of one side or of two; arguments and errors as `Segmenter.segment`."""
    if pixel_um is None:
        return None
    sides = tuple(pixel_um) if np.ndim(pixel_um) == 1 else (pixel_um, pixel_um)
    if len(sides) != 2 or not all(map(is_above_zero, sides)):
        raise ValueError(
            f"pixel_um is {pixel_um!r}: it must be a number above 0, or two, of rows and of columns, where pixels are "
            "not square"
        )
    return PixelSize(float(sides[0]), float(sides[1]), "pixel_um")


def is_above_zero(value: float) -> bool:
    """Whether a value is a number that a size or factor can be."""
    return isinstance(value, Real) and math.isfinite(value) and value > 0


def array_plane(image: Any, axes: Sequence[str] | None, choice: PlaneChoice) -> np.ndarray:
    """The plane of an array that is asked for, (H, W) or (H, W, 3); arguments and errors as `Segmenter.segment`."""
    array = as_array(image)
    if axes is None:
        if choice != PlaneChoice():
            raise ValueError("channel, z and frame are places along axes: give these too, as axes='CZYX'")
        return array
    others, sizes = stack_axes(array, axes)
    letters = axis_letters(axes)
    order = [*others, *(letter for letter in PLANE_AXES if letter in letters)]
    stack = array.transpose([letters.index(letter) for letter in order])
    planes = choose_planes(others, sizes, choice)
    return functools.reduce(np.fmax, (stack[place] for place in planes.places))


def axis_letters(axes: Sequence[str]) -> str:
    """The letters of axes that are given as a text, or as one text each.

    Raises:
        ValueError: they are neither.
    """
    letters = [axes] if isinstance(axes, str) else list(axes) if isinstance(axes, Iterable) else [axes]
    if not all(isinstance(letter, str) for letter in letters):
        raise ValueError(f"axes are {axes!r}: give a letter for each dimension, as 'CZYX'")
    return "".join(letters).upper()


def stack_axes(array: np.ndarray, axes: Sequence[str]) -> tuple[str, tuple[int, ...]]:
    """The letters of an array's axes but those of a plane, and the sizes of these.

    Raises:
        ValueError: the axes do not fit the array.
    """
    letters = axis_letters(axes)
    if len(letters) != array.ndim or len(set(letters)) != len(letters) or not {"Y", "X"} <= set(letters):
        raise ValueError(
            f"axes {axes!r} do not fit the image's shape {array.shape}: give a letter for each dimension, none twice, "
            "with Y and X among them"
        )
    others = "".join(letter for letter in letters if letter not in PLANE_AXES)
    return others, tuple(array.shape[letters.index(letter)] for letter in others)


def as_array(image: Any) -> np.ndarray:
    """The values of an image, of any shape; arguments and errors as `Segmenter.segment`."""
    import torch

    if isinstance(image, (str, os.PathLike)):
        raise ValueError(f"{os.fspath(image)!r} is a path: read the image first, and give its pixels")
    mode = getattr(image, "mode", None)
    if hasattr(image, "getbands") and mode not in PILLOW_MODES:
        raise ValueError(
            f"the image is one of Pillow's of mode {mode}: give image.convert('RGB'), or image.convert('L') for gray"
        )
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu()
        image = image.float() if image.dtype == torch.bfloat16 else image  # numpy has no such type
    return np.asarray(image)


def check_several(images: Any, axes: Sequence[str] | None) -> None:
    """Refuse one image where several are asked for: its rows would be taken for images.

    Raises:
        ValueError: it is one.
    """
    shape = getattr(images, "shape", None)
    if shape is None:
        is_one = isinstance(images, str) or not isinstance(images, Iterable)
    elif axes is None:
        is_one = len(shape) < 3 or (len(shape) == 3 and shape[2] in (3, 4))
    else:
        is_one = len(shape) <= len(axis_letters(axes))
    if is_one:
        what = type(images).__name__ if shape is None else f"an array of the shape {tuple(shape)}"
        raise ValueError(f"segment_many was given one image ({what}): give a list of images, as [image]")


def as_bgr(image: Any) -> np.ndarray:
    """(H, W, 3) uint8 of B, G, R, as members see an image; arguments and errors as `Segmenter.segment`."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        raise ValueError(
            f"the image has the shape {pixels.shape}: if that is RGB and alpha, give image[..., :3]; of four channels, "
            "one plane"
        )
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3) or not pixels.size:
        raise ValueError(
            f"the image has the shape {pixels.shape}: give one of (H, W), or of (H, W, 3) for RGB; of stacks and of "
            "several channels, one plane"
        )
    if not (np.issubdtype(pixels.dtype, np.integer) or np.issubdtype(pixels.dtype, np.floating)):
        raise ValueError(
            f"the image holds {pixels.dtype}: give integers or floats, as image.astype(float) if it has gray levels"
        )
    channels = to_eight_bit(pixels.reshape(*pixels.shape[:2], -1))
    return np.repeat(channels, 3, axis=2) if channels.shape[2] == 1 else np.ascontiguousarray(channels[..., ::-1])
