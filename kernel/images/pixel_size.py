"""The size of a pixel, as files tell it: OME-XML, ImageJ's texts, resolution tags."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

#: Micrometres in a unit of length, by the names that OME-XML, ImageJ and OME-Zarr give it; in lower case.
UNITS_UM = {
    **dict.fromkeys(("µm", "μm", "um", "micron", "microns", "micrometer", "micrometre", "micrometers"), 1.0),
    **dict.fromkeys(("nm", "nanometer", "nanometre"), 1e-3),
    **dict.fromkeys(("å", "angstrom"), 1e-4),
    **dict.fromkeys(("mm", "millimeter", "millimetre"), 1e3),
    **dict.fromkeys(("cm", "centimeter", "centimetre"), 1e4),
    **dict.fromkeys(("m", "meter", "metre"), 1e6),
    **dict.fromkeys(("in", "inch", "inches"), 25400.0),
}
#: A microscope's pixels are within these. What lies beyond, as the 72 dots an inch of pictures, tells of no microscope.
SMALLEST_UM, LARGEST_UM = 0.01, 10.0
#: Sides that differ by less than this share are those of a square.
SQUARE_TOLERANCE = 0.01


@dataclass(frozen=True)
class PixelSize:
    """The sides of a pixel in micrometres, and who says so."""

    y_um: float
    x_um: float
    source: str

    @property
    def is_square(self) -> bool:
        """Whether a length means the same in each direction."""
        return abs(self.y_um / self.x_um - 1) < SQUARE_TOLERANCE

    @property
    def area_um2(self) -> float:
        """In square micrometres."""
        return self.y_um * self.x_um

    @property
    def side_um(self) -> float:
        """Of the square of the same area."""
        return math.sqrt(self.area_um2)

    @property
    def is_likely(self) -> bool:
        """Whether it is the size of a microscope's pixel."""
        return all(SMALLEST_UM <= side <= LARGEST_UM for side in (self.y_um, self.x_um))

    def __str__(self) -> str:
        sides = f"{self.x_um:.4g}" if self.is_square else f"{self.x_um:.4g} x {self.y_um:.4g}"
        return f"{sides} um"


def counted_pixel(told: PixelSize | None, given_um: float | None) -> PixelSize | None:
    """The size that counts: as it is given by --pixel-size, else as the file tells it, if it is a microscope's."""
    if given_um is not None:
        return PixelSize(given_um, given_um, "--pixel-size")
    return told if told is not None and told.is_likely else None


def pixel_size(y: Any, x: Any, unit_y: str, unit_x: str, source: str) -> PixelSize | None:
    """The size of numbers (or their texts) and units; None where either number, or a unit, tells no size."""
    y_um, x_um = length_um(y, unit_y), length_um(x, unit_x)
    return None if y_um is None or x_um is None else PixelSize(y_um, x_um, source)


def length_um(value: Any, unit: str) -> float | None:
    """A number (or its text) of a unit in micrometres; None where it is no length above 0."""
    factor = UNITS_UM.get(unit.strip().lower())
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if factor is None or not math.isfinite(number * factor) or number * factor <= 0:
        return None
    return number * factor


def ome_pixel_size(xml: str) -> PixelSize | None:
    """That of the first image of an OME-XML text; None where it tells none, or is no XML."""
    try:
        pixels = next((each for each in ElementTree.fromstring(xml).iter() if local_name(each.tag) == "Pixels"), None)
    except ElementTree.ParseError:
        return None
    if pixels is None:
        return None
    sides = [(pixels.get(f"PhysicalSize{side}"), pixels.get(f"PhysicalSize{side}Unit", "µm")) for side in "YX"]
    known = [side for side in sides if side[0] is not None]
    if not known:
        return None
    (y, unit_y), (x, unit_x) = known[0], known[-1]  # where one is missing, it is as the other
    return pixel_size(y, x, unit_y, unit_x, "OME-XML")


def ome_channel_names(xml: str) -> tuple[str, ...]:
    """The names of the channels of the first image of an OME-XML text; empty where not all have one."""
    try:
        pixels = next((each for each in ElementTree.fromstring(xml).iter() if local_name(each.tag) == "Pixels"), None)
    except ElementTree.ParseError:
        return ()
    names = [each.get("Name") for each in pixels if local_name(each.tag) == "Channel"] if pixels is not None else []
    return tuple(name for name in names if name) if all(names) else ()


def local_name(tag: str) -> str:
    """An element's name without its name space."""
    return tag.rpartition("}")[2]


def imagej_pixel_size(unit: str, y_per_unit: float | None, x_per_unit: float | None) -> PixelSize | None:
    """ImageJ's: the unit of its text, written as it may be with escapes, and pixels a unit from the resolution tags."""
    if not y_per_unit or not x_per_unit:
        return None
    unit = unit.replace("\\u00B5", "µ")
    return pixel_size(1 / y_per_unit, 1 / x_per_unit, unit, unit, "ImageJ")


def tags_pixel_size(unit: int, y_per_unit: float | None, x_per_unit: float | None) -> PixelSize | None:
    """TIFF's resolution tags: `unit` 2 is the inch, 3 the centimetre, anything else none."""
    name = {2: "inch", 3: "cm"}.get(unit)
    if name is None or not y_per_unit or not x_per_unit:
        return None
    return pixel_size(1 / y_per_unit, 1 / x_per_unit, name, name, "its resolution tags")
