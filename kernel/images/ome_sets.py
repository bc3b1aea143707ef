"""OME-TIFF in several files: the text of each tells of all planes and where they lie; one is read by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

import numpy as np

from kernel.images.pixel_size import local_name


@dataclass(frozen=True)
class OwnPart:
    """What the OME-XML of several files tells of one of them.

    Attributes:
        text: OME-XML of the images that the file has planes of, and of none of another file.
        has_axes: whether its planes have places along the axes; else the text tells of more planes than the file has.
    """

    text: str
    has_axes: bool


def own_part(xml: str, file_name: str, page_count: int) -> OwnPart | None:
    """What an OME-XML text tells of the file that it is in.

    Args:
        xml: the text.
        file_name: of the file, without its folder.
        page_count: how many pages it has.

    Returns:
        None where the text names no other file, or is no XML.

    Raises:
        ValueError, TypeError: the text breaks the rules of OME-XML.
    """
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError:
        return None
    files: dict[str | None, str] = {}  # names by their UUID
    for data in root.iter():
        if local_name(data.tag) == "TiffData":
            for uuid in children(data, "UUID"):
                files.setdefault(uuid.text, uuid.get("FileName", ""))
    told = root.get("UUID")
    # Some programs write the same text, with the first file's UUID, into all: the name says more, until it is changed.
    own = next((uuid for uuid, name in files.items() if name.lower() == file_name.lower()), None)
    if set(files) <= {told or own}:
        return None
    if own is None:
        own = told if told in files else next(iter(files)) if len(files) == 1 else None
    has_axes = True
    for image in children(root, "Image"):
        for pixels in children(image, "Pixels"):
            planes = [data for data in children(pixels, "TiffData") if uuid_of(data) in (None, own)]
            if planes:
                has_axes = keep_planes(pixels, planes, page_count) and has_axes
            else:
                root.remove(image)
    if not children(root, "Image"):
        return OwnPart(xml, has_axes=False)
    for notes in children(root, "StructuredAnnotations"):
        root.remove(notes)  # they may divide an axis by the size that it has in all files
    return OwnPart(ElementTree.tostring(root, "unicode"), has_axes)


def keep_planes(pixels: ElementTree.Element, planes: Sequence[ElementTree.Element], page_count: int) -> bool:
    """Make a Pixels element tell of one file's planes alone, counted from its first ones.

    Args:
        pixels: the element; it is changed.
        planes: those of its TiffData elements that tell of the file.
        page_count: how many pages the file has; what would lie behind them is not there.

    Returns:
        Whether the planes fill a block of places; else nothing is changed.
    """
    order = [axis for axis in pixels.attrib["DimensionOrder"] if axis not in "XY"]
    channels = children(pixels, "Channel")
    samples = int(channels[0].get("SamplesPerPixel", 1)) if channels else 1
    shape = [int(pixels.attrib[f"Size{axis}"]) // (samples if axis == "C" else 1) for axis in order]
    pages: dict[tuple[int, ...], int] = {}  # by the place along each axis
    for data in planes:
        page = int(data.get("IFD", 0))
        count = data.get("PlaneCount", data.get("NumPlanes"))
        steps = range(min(page_count - page, int(count or (1 if "IFD" in data.attrib else page_count))))
        first = np.ravel_multi_index([int(data.get(f"First{axis}", 0)) for axis in order], shape, order="F")
        places = np.stack(np.unravel_index(first + np.array(steps, int), shape, order="F"), axis=1)
        pages.update((tuple(place), page + step) for place, step in zip(places.tolist(), steps, strict=True))
    lowest = np.min(list(pages), axis=0)
    sizes = np.max(list(pages), axis=0) - lowest + 1
    if int(np.prod(sizes)) != len(pages):
        return False
    for axis, low, size in zip(order, lowest.tolist(), sizes.tolist(), strict=True):
        pixels.set(f"Size{axis}", str(size * (samples if axis == "C" else 1)))
        for channel in (*channels[:low], *channels[low + size :]) if axis == "C" else ():
            pixels.remove(channel)
    for data in children(pixels, "TiffData"):
        pixels.remove(data)
    for place, page in pages.items():
        firsts = {f"First{axis}": str(at - low) for axis, at, low in zip(order, place, lowest.tolist(), strict=True)}
        ElementTree.SubElement(pixels, planes[0].tag, {"IFD": str(page), "PlaneCount": "1", **firsts})
    return True


def children(element: ElementTree.Element, name: str) -> list[ElementTree.Element]:
    """The elements of a name directly in another one, whatever their name space."""
    return [each for each in element if local_name(each.tag) == name]


def uuid_of(data: ElementTree.Element) -> str | None:
    """The UUID of the file that a TiffData element tells of; None: the one that the text is in."""
    return next((uuid.text for uuid in children(data, "UUID")), None)
