"""GeoJSON, as QuPath exports and imports objects: a FeatureCollection, a bare list of features, or a single one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kernel.data.mask_files.found import FoundMasks, MaskCell
from kernel.data.mask_files.rings import fill_rings
from kernel.data.mask_files.taken import FIRST_PLANE, TakenPlane
from kernel.errors import InputError
from kernel.text import parse_json, read_any_text

#: No pixel of any image lies as far out.
FARTHEST = 1e9
#: QuPath's objects that are no cells, whatever their shape.
NO_CELLS = ("root", "tile", "tma_core")
#: QuPath's objects that its detection of cells makes, within annotations that are regions.
DETECTED = ("detection", "cell")
#: How many times as large as the largest shape in it an annotation is where it is a region. Astrocytes are, too, over
#: small cells, but not over more than a few of an image's: so a region has more in it than MOST_OVERLAID, or no smaller
#: share of all shapes than REGION_SHARE.
REGION_TIMES = 4
MOST_OVERLAID = 3
REGION_SHARE = 0.25


def read_geojson(path: Path, image_shape: tuple[int, int], plane: TakenPlane = FIRST_PLANE) -> FoundMasks:
    """The cells of Polygons and MultiPolygons; other geometries, and those that tell another plane, are named.

    Errors as a `MaskForm`'s reader.

    An annotation that surrounds several of a file's shapes is the region that they were looked for or drawn in.
    """
    try:
        data = parse_json(read_any_text(path))
    except ValueError as error:
        raise InputError(f"it is not JSON: {error}") from error
    cells, flaws, kinds = [], [], []
    for number, feature in enumerate(features_of(data), start=1):
        place = f"feature {number}"
        properties = feature.get("properties") if isinstance(feature, Mapping) else None
        properties = properties if isinstance(properties, Mapping) else {}
        kind = str(properties.get("objectType", properties.get("object_type", ""))).lower()
        try:
            if kind in NO_CELLS:
                raise InputError(f"it is a {kind} of QuPath, and no cell")
            geometry = feature.get("geometry") if isinstance(feature, Mapping) else None
            refuse_other_plane(geometry, plane)
            crop, offset = fill_geometry(geometry, image_shape)
        except InputError as error:
            flaws.append((place, str(error)))
            continue
        cells.append(MaskCell(place, crop, offset, class_of(properties)))
        kinds.append(kind)
    regions = regions_among(cells, kinds)
    flaws += [
        (cells[index].place, f"it surrounds {count} shapes, so that it is their region, and no cell")
        for index, count in regions.items()
    ]
    return FoundMasks(tuple(cell for index, cell in enumerate(cells) if index not in regions), tuple(flaws))


def features_of(data: Any) -> list[Any]:
    """The features of a file.

    Raises:
        InputError: it has none of the three forms.
    """
    if isinstance(data, Mapping) and data.get("type") == "FeatureCollection" and isinstance(data.get("features"), list):
        return data["features"]
    if isinstance(data, Mapping) and data.get("type") == "Feature":
        return [data]
    if isinstance(data, list) and all(isinstance(each, Mapping) and each.get("type") == "Feature" for each in data):
        return data
    hint = "a FeatureCollection or a list of Features is expected"
    if isinstance(data, Mapping) and {"images", "annotations"} <= data.keys():
        hint = "it looks like COCO annotations, which prepare reads by --livecell-annotations and --livecell-images"
    elif isinstance(data, Mapping) and {"shapes", "imagePath"} <= data.keys():
        hint = "it looks like LabelMe's shapes; export them as COCO annotations, for --livecell-annotations"
    raise InputError(f"it is no GeoJSON of objects: {hint}")


def class_of(properties: Mapping[str, Any]) -> str:
    """The name of a feature's class, "" without one; of a derived class its parts, as QuPath shows it."""
    classification = properties.get("classification")
    if isinstance(classification, Mapping):
        names = classification.get("names")
        name = classification.get("name")
        return ": ".join(map(str, names)) if isinstance(names, list) and not name else str(name or "")
    return classification if isinstance(classification, str) else ""


def refuse_other_plane(geometry: Any, plane: TakenPlane) -> None:
    """Refuse a geometry that tells another plane of a stack, as QuPath does where it is not the first one.

    Raises:
        InputError: it does, or it tells none that can be read.
    """
    told = geometry.get("plane") if isinstance(geometry, Mapping) else None
    if told is None:
        return
    z, frame = (told.get("z"), told.get("t")) if isinstance(told, Mapping) else (None, None)
    if not isinstance(told, Mapping) or not all(each is None or isinstance(each, int) for each in (z, frame)):
        raise InputError(f"its plane is {str(told)[:60]!r}, and has no whole numbers z and t, as QuPath's have")
    if flaw := plane.flaw(z, frame):
        raise InputError(flaw)


def fill_geometry(geometry: Any, image_shape: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
    """The crop of a geometry, and its offset, as `fill_rings`.

    Raises:
        InputError: it is no Polygon or MultiPolygon.
    """
    kind = geometry.get("type") if isinstance(geometry, Mapping) else None
    if kind not in ("Polygon", "MultiPolygon"):
        raise InputError(f"its geometry is a {kind}, which has no area" if kind else "it has no geometry")
    coordinates = geometry.get("coordinates")
    pieces = [
        fill_rings(rings, image_shape) for rings in polygons_of([coordinates] if kind == "Polygon" else coordinates)
    ]
    pieces = [(crop, offset) for crop, offset in pieces if crop.size]
    if not pieces:
        return np.zeros((0, 0), bool), (0, 0)
    top, left = (min(offset[axis] for _, offset in pieces) for axis in (0, 1))
    bottom, right = (max(offset[axis] + crop.shape[axis] for crop, offset in pieces) for axis in (0, 1))
    whole = np.zeros((bottom - top, right - left), bool)
    for crop, (y, x) in pieces:
        whole[y - top : y - top + crop.shape[0], x - left : x - left + crop.shape[1]] |= crop
    return whole, (top, left)


def polygons_of(polygons: Any) -> Iterator[list[np.ndarray]]:
    """The rings (N, 2) of each polygon, its exterior first.

    Raises:
        InputError: they are no lists of x, y.
    """
    if not isinstance(polygons, list):
        raise InputError("its coordinates are no list")
    for polygon in polygons:
        if not isinstance(polygon, list) or not polygon:
            raise InputError("its coordinates are not as a polygon has them")
        rings = []
        for ring in polygon:
            if not isinstance(ring, list) or not all(map(is_point, ring)):
                raise InputError("its coordinates are not all numbers x, y")
            rings.append(np.array([point[:2] for point in ring], float).reshape(-1, 2))
        yield rings


def is_point(point: Any) -> bool:
    """Whether it is a list of at least two numbers that may be places."""
    return (
        isinstance(point, list)
        and len(point) >= 2
        and all(isinstance(value, (int, float)) and abs(value) <= FARTHEST for value in point)
    )


def regions_among(cells: list[MaskCell], kinds: list[str]) -> dict[int, int]:
    """The places of annotations that are regions, and how many shapes each surrounds.

    Two or more detections have their middle pixel in it, or two or more shapes that it is far larger than, and that are
    many or most.
    """
    sizes = np.array([np.count_nonzero(cell.crop) for cell in cells])
    found = np.flatnonzero(sizes)
    middles = np.array([middle_of(cells[index]) for index in found]).reshape(-1, 2)
    is_detected = np.array([kind in DETECTED for kind in kinds], bool)
    regions = {}
    for index in found[~is_detected[found]].tolist():
        places = middles - cells[index].offset_yx
        inside = ((places >= 0) & (places < cells[index].crop.shape)).all(axis=1) & (found != index)
        inside[inside] = cells[index].crop[tuple(places[inside].T)]
        within = found[inside]
        is_larger = len(within) > 1 and REGION_TIMES * sizes[within].max() <= sizes[index]
        has_many = len(within) > MOST_OVERLAID or len(within) >= REGION_SHARE * len(found)
        if is_detected[within].sum() > 1 or (is_larger and has_many):
            regions[index] = len(within)
    return regions


def middle_of(cell: MaskCell) -> tuple[int, int]:
    """A pixel of a cell, in the middle of its pixels' order."""
    ys, xs = np.nonzero(cell.crop)
    return cell.offset_yx[0] + int(ys[len(ys) // 2]), cell.offset_yx[1] + int(xs[len(xs) // 2])
