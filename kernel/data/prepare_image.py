"""The preparation of one image: its masks decoded, mended and encoded again."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_fill_holes

from kernel.data.coco_masks import decode_segmentation, sound_polygons
from kernel.data.pictures import Picture, picture_of
from kernel.data.prepared import PreparedImage, encode_cell
from kernel.data.sources import DroppedCell, SourceCell, SourceImage
from kernel.data.twins import part_twins
from kernel.errors import InputError
from kernel.images.gray_matching import matched_grays
from kernel.images.pixel_size import counted_pixel
from kernel.images.planes import PlaneChoice
from kernel.images.reading import read_image
from kernel.images.stacks import read_picture
from kernel.images.writing import write_image_file
from kernel.images.zoom import (
    NO_ZOOM,
    Zoom,
    resized,
    shown_pixel_um,
    zoom_of,
    zoom_text,
    zoomed_mask,
    zoomed_shape,
)
from kernel.masks.rle import decode_rle_crop


@dataclass(frozen=True)
class PreparedResult:
    """What came of one image."""

    image: PreparedImage | None  # None: dropped
    reason: str = ""  # why
    dropped: tuple[DroppedCell, ...] = ()
    partial: tuple[DroppedCell, ...] = ()  # cells that are kept without a part that cannot be read
    empty: tuple[DroppedCell, ...] = ()  # masks without a pixel, from the start or after the correction
    filled_cells: int = 0
    filled_pixels: int = 0
    cleared_cells: int = 0
    cleared_pixels: int = 0
    corrected: bool = False
    correction_flaw: str = ""  # why the image's correction was not applied
    picture: Picture | None = None  # what a kept image is recognised by
    told: str = ""  # how it is shown to members, where that is not as its file is read


def prepare_image(task: SourceImage) -> PreparedResult:
    """Read an image, decode its masks, fill their holes, apply its correction, encode them again.

    An image that members are shown otherwise than its file is read is written as they see it; its masks are of that.
    So is one that is not called as its file, for by their files' names prepared images are known.

    Raises:
        RunError: it cannot be written.
    """
    try:
        pixels, zoom, pixel_um, told = _read_shown(task)
    except InputError as error:
        return PreparedResult(None, str(error))
    if task.is_renamed:
        told = ", ".join(filter(None, [told, "names with their folders"]))
    height, width = pixels.shape[:2]
    shown_shape = zoomed_shape((height, width), zoom)
    if task.image_shape not in (None, (height, width)):
        return PreparedResult(None, f"the file is {height} x {width}, and annotated as {task.image_shape}")
    outside, flaw = _outside_correction(task, (height, width))
    cells, dropped, empty = [], [], []
    filled, cleared = Counter[str](), Counter[str]()
    for cell in task.cells:
        try:
            crop, offset, unread = _decode(cell, (height, width))
        except InputError as error:
            dropped.append(DroppedCell(task.image_id, cell.place, str(error)))
            continue
        reason = "its mask has no pixel"
        if crop.size:
            whole = binary_fill_holes(crop)
            assert whole is not None
            _count(filled, np.count_nonzero(whole) - np.count_nonzero(crop))
            crop = whole
            if outside is not None:
                y, x = offset
                left = crop & ~outside[y : y + crop.shape[0], x : x + crop.shape[1]]
                _count(cleared, np.count_nonzero(crop) - np.count_nonzero(left))
                crop, reason = left, "the corrected mask has none of its pixels"
        if crop.any() and shown_shape != (height, width):
            crop, reason = zoomed_mask(crop, offset, (height, width), shown_shape), "nothing is left of it at this zoom"
            offset = (0, 0)
        encoded = encode_cell(crop, offset, shown_shape, cell.label)
        if encoded is None:
            empty.append(DroppedCell(task.image_id, cell.place, reason))
        else:
            cells.append((cell.place, encoded, unread))
    cells, twins = part_twins(cells, lambda cell: (cell[1].bbox_xywh, cell[1].counts))
    partial = [DroppedCell(task.image_id, place, unread) for place, _, unread in cells if unread]
    dropped += [DroppedCell(task.image_id, twin[0], f"it is the same cell as {first[0]}") for twin, first in twins]
    is_kept = bool(cells) or not task.cells  # in an image without cells nothing was annotated
    path = task.path
    if told and is_kept:
        assert task.shown_path is not None
        path, pixels = task.shown_path, resized(pixels, shown_shape)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image_file(path, pixels)
    kept = tuple(cell for _, cell, _ in cells)
    made = PreparedImage(path, task.cell_type, shown_shape, kept, task.sample_id, pixel_um)
    return PreparedResult(
        image=made if is_kept else None,
        reason="" if is_kept else "no cell is left",
        dropped=tuple(dropped),
        partial=tuple(partial),
        empty=tuple(empty),
        filled_cells=filled["cells"],
        filled_pixels=filled["pixels"],
        cleared_cells=cleared["cells"],
        cleared_pixels=cleared["pixels"],
        corrected=outside is not None,
        correction_flaw=flaw,
        picture=picture_of(task.image_id, pixels) if is_kept else None,
        told=told if is_kept else "",
    )


def _read_shown(task: SourceImage) -> tuple[np.ndarray, Zoom, float | None, str]:
    """The image, the zoom at which members are shown it, the side of a pixel that they then see (`shown_pixel_um`), and
    what is to be told of that; errors as `read_picture`."""
    showing = task.showing
    if showing is None:
        return read_image(task.path), NO_ZOOM, None, ""
    picture = read_picture(task.path, showing.choice)
    image_bgr = matched_grays(picture.image_bgr) if showing.match_gray else picture.image_bgr
    pixel = counted_pixel(picture.pixel, showing.pixel_um)
    zoom = zoom_of(pixel, showing.member_um, showing.zoom)
    told = []
    if showing.choice != PlaneChoice():
        told.append("the plane that is asked for")
    elif picture.told:  # of a stack, where that may be another than the first, which is read else
        told.append("the plane that predict takes")
    if zoom != NO_ZOOM:
        of = "" if showing.zoom is not None else f", of pixels of {pixel}"
        told.append(f"zoom {zoom_text(zoom)}{of}")
    if image_bgr is not picture.image_bgr:
        told.append("gray levels that they know")
    return image_bgr, zoom, shown_pixel_um(pixel, showing.member_um, showing.zoom), ", ".join(told)


def _count(counter: Counter[str], pixels: int) -> None:
    counter["cells"] += pixels > 0
    counter["pixels"] += int(pixels)


def _decode(cell: SourceCell, image_shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int], str]:
    """The mask's crop and its top left pixel, and what is wrong with polygons that were left out of it, or ""."""
    if isinstance(cell.outline, str):
        return *decode_rle_crop(cell.outline, image_shape), ""
    outline, flaws = cell.outline, []
    if isinstance(outline, list):
        sound, flaws = sound_polygons(outline, image_shape)
        outline = sound or outline  # of which the decoding says what is wrong, if none is sound
    return *decode_segmentation(outline, image_shape), "; ".join(flaws)


def _outside_correction(task: SourceImage, image_shape: tuple[int, int]) -> tuple[np.ndarray | None, str]:
    """Where the corrected mask has no cell, (H, W) bool, or None; and why it could not be applied, or "".

    Of the file as OpenCV reads it, B, G, R, the third channel counts: red.
    """
    if task.correction is None:
        return None, ""
    try:
        pixels = read_image(task.correction, only_eight_bit=True)
    except InputError as error:
        return None, str(error)
    if pixels.shape[:2] != image_shape:
        return None, f"{task.correction} is {pixels.shape[0]} x {pixels.shape[1]}, its image {image_shape}"
    return pixels[..., 2] == 0, ""
