"""The prepared form: a folder with annotations.json, COCO with run lengths, written and read.

    {"info": ..., "categories": [{"id": 1, "name": "shsy5y", ...}, ...],
     "images": [{"id": 1, "file_name": "../cells/train/0030fd0e6378.png", "width": 704, "height": 520,
                 "cell_type": "shsy5y"}, ...],
     "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "area": 312,
                      "segmentation": {"size": [520, 704], "counts": "..."}, "iscrowd": 0}, ...]}

COCO's run lengths are column-major, here compressed to ASCII as pycocotools does; the competition's are row-major.
An image's id here is a number, as COCO's tools want it; its name in this project is its file's name without ending.
A category's id is its label + 1. Where the side of a pixel is known, in micrometres, an image has it as
"pixel_size_um". One record a line, images sorted by name: the same data gives the same bytes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernel.data.coco_masks import decode_columns, encode_crop
from kernel.data.image_names import composed
from kernel.data.json_files import read_json
from kernel.data.tables import whole_text
from kernel.data.twins import part_twins, warn_of_twins
from kernel.errors import InputError
from kernel.files import reading
from kernel.masks.instances import CellMasks, tight_window

#: The file that makes a folder a prepared one.
PREPARED_NAME = "annotations.json"
#: The folder in it for what members are shown of images otherwise than these lie there.
SHOWN_FOLDER = "shown"


@dataclass(frozen=True)
class PreparedCell:
    """One mask of at least one pixel."""

    label: int  # place of its class among the dataset's
    bbox_xywh: tuple[int, int, int, int]  # tight: left, top, width, height
    area: int  # pixels
    counts: str  # COCO's compressed run lengths over the whole image


@dataclass(frozen=True)
class PreparedImage:
    """An image file and its cells, ready for training: holes filled, corrections applied."""

    path: Path
    cell_type: str
    image_shape: tuple[int, int]  # height, width
    cells: tuple[PreparedCell, ...]
    sample_id: str = ""  # "" where unknown
    pixel_um: float | None = None  # the side of a pixel of `path`, as members are shown it; None: not known

    @property
    def image_id(self) -> str:
        return composed(self.path.stem)

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 of the cells, in the file's order."""
        return np.array([cell.label for cell in self.cells], np.int64)

    def masks(self, *, fill_holes: bool = False) -> CellMasks:
        """The cells as crops, in the file's order. Scores are 1, boxes the masks' own (x1 and y1 exclusive).

        Args:
            fill_holes: changes nothing. The preparation filled them, and what a correction cleared afterwards, inside
                a cell too, is to stay cleared.

        Raises:
            InputError: run lengths that cannot be read.
        """
        crops = []
        for number, cell in enumerate(self.cells, start=1):
            x, y, width, height = cell.bbox_xywh
            try:
                columns, area = decode_columns(cell.counts, self.image_shape, x, width)
            except InputError as error:
                raise InputError(f"image '{self.image_id}', annotation {number}: {error}") from error
            crop = columns[y : y + height]
            if not np.count_nonzero(crop) == area == cell.area:
                raise InputError(
                    f"image '{self.image_id}', annotation {number}: its mask is not the one that its box and area "
                    f"describe; {PREPARED_NAME} was changed, prepare it again"
                )
            crops.append(crop.copy())
        boxes = np.array([cell.bbox_xywh for cell in self.cells], np.int64).reshape(-1, 4)
        return CellMasks(
            crops=tuple(crops),
            offsets_yx=boxes[:, [1, 0]],
            boxes_xyxy=np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1),
            scores=np.ones(len(crops)),
            labels=self.labels,
            image_shape=self.image_shape,
        )


@dataclass(frozen=True)
class PreparedDataset:
    """What annotations.json holds."""

    class_names: tuple[str, ...]  # a class's place is its label
    images: tuple[PreparedImage, ...]


def encode_cell(
    crop: np.ndarray, offset_yx: tuple[int, int], image_shape: tuple[int, int], label: int
) -> PreparedCell | None:
    """A cell of its mask: crop (h, w) bool and the crop's top left pixel in the image. None for an empty mask."""
    y0, x0, y1, x1 = tight_window(crop)
    if y1 == y0:
        return None
    top, left = int(offset_yx[0]) + y0, int(offset_yx[1]) + x0
    box = (left, top, x1 - x0, y1 - y0)
    rle = encode_crop(crop[y0:y1, x0:x1], (top, left, top + y1 - y0, left + x1 - x0), image_shape)
    return PreparedCell(label, box, int(np.count_nonzero(crop)), rle["counts"].decode("ascii"))


def write_prepared(
    folder: Path, dataset: PreparedDataset, description: str, at_last: Callable[[], None] | None = None
) -> None:
    """Write annotations.json into `folder` (made if need be), whole or not at all.

    Images are named by their path relative to the folder, absolute only where there is none (another drive).

    Args:
        folder, dataset: see above.
        description: what the file says of itself.
        at_last: called where all is written that can fail, before the file is put in its place.

    Raises:
        InputError: the folder cannot be written.
        RunError: the disk is full.
    """
    parts = {
        "categories": (
            {"id": label + 1, "name": name, "supercategory": "cell"} for label, name in enumerate(dataset.class_names)
        ),
        "images": _image_records(folder, dataset),
        "annotations": _cell_records(dataset),
    }
    with whole_text(folder / PREPARED_NAME) as stream:
        stream.write('{\n"info": ' + json.dumps({"description": description, "version": "1"}))
        for name, records in parts.items():
            stream.write(f',\n"{name}": [')
            for number, record in enumerate(records):
                stream.write((",\n" if number else "\n") + json.dumps(record))
            stream.write("\n]")
        stream.write("\n}\n")
        stream.flush()
        if at_last is not None:
            at_last()


def prepared_description(path: Path) -> str:
    """What an annotations.json says of itself in the line that `write_prepared` begins it with; "" where it has none.

    Raises:
        InputError: it cannot be read.
    """
    with reading(path), path.open(encoding="utf-8", errors="replace") as stream:
        stream.readline()
        line = stream.readline(1000).strip().removeprefix('"info": ').removesuffix(",")
    try:
        return str(json.loads(line)["description"])
    except (ValueError, LookupError, TypeError):
        return ""


def prepared_names(path: Path) -> list[str]:
    """The ids of the images in an annotations.json as `write_prepared` wrote it, without reading their cells.

    Raises:
        InputError: it cannot be read.
    """
    names = []
    with reading(path), path.open(encoding="utf-8", errors="replace") as stream:
        for line in itertools.takewhile(lambda line: not line.startswith('"annotations"'), stream):
            if '"file_name"' in line:
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    name = json.loads(line.rstrip().removesuffix(","))["file_name"]
                    names.append(composed(Path(_own_separators(path.parent, name)).stem))
    return names


def _sorted_images(dataset: PreparedDataset) -> list[PreparedImage]:
    return sorted(dataset.images, key=lambda image: (image.image_id, str(image.path)))


def _image_records(folder: Path, dataset: PreparedDataset) -> Iterator[dict[str, Any]]:
    for number, image in enumerate(_sorted_images(dataset), start=1):
        height, width = image.image_shape
        file_name = _path_from(folder, image.path)
        sample = {"sample_id": image.sample_id} if image.sample_id else {}
        pixel = {"pixel_size_um": image.pixel_um} if image.pixel_um is not None else {}
        yield {
            "id": number, "file_name": file_name, "width": width, "height": height, "cell_type": image.cell_type,
            **sample, **pixel,
        }  # fmt: skip


def _cell_records(dataset: PreparedDataset) -> Iterator[dict[str, Any]]:
    number = 0
    for image_number, image in enumerate(_sorted_images(dataset), start=1):
        for cell in image.cells:
            number += 1
            yield {
                "id": number,
                "image_id": image_number,
                "category_id": cell.label + 1,
                "bbox": list(cell.bbox_xywh),
                "area": cell.area,
                "segmentation": {"size": list(image.image_shape), "counts": cell.counts},
                "iscrowd": 0,
            }


def _path_from(folder: Path, path: Path) -> str:
    # An image that is a link keeps its own name, by which it is known.
    path = path.parent.resolve() / path.name
    try:
        return Path(os.path.relpath(path, folder.resolve())).as_posix()
    except ValueError:  # on Windows, between drives
        return path.as_posix()


def read_prepared(folder: Path) -> PreparedDataset:
    """Read what `write_prepared` wrote. Masks stay run lengths until asked for; image files are not looked at.

    Raises:
        InputError: no such file, or not of that form.
    """
    path = folder / PREPARED_NAME
    data = read_json(path, "prepared annotations")
    real_folder = folder.resolve()  # what `..` in the images' paths starts from
    place = "the file"
    try:
        names = []
        for label, category in enumerate(data["categories"]):
            place = f"category {label + 1}"
            if category["id"] != label + 1:
                raise ValueError(f"its id is {category['id']}, expected {label + 1}")
            names.append(str(category["name"]))
        heads: dict[int, tuple[Path, str, tuple[int, int]]] = {}
        samples: dict[int, str] = {}
        pixels: dict[int, float | None] = {}
        cells: dict[int, list[PreparedCell]] = {}
        place = "the file"
        for number, image in enumerate(data["images"], start=1):
            place = f"image {number}"
            file_name = os.path.normpath(real_folder / _own_separators(real_folder, image["file_name"]))
            heads[image["id"]] = Path(file_name), str(image["cell_type"]), (int(image["height"]), int(image["width"]))
            samples[image["id"]] = str(image.get("sample_id", ""))
            pixels[image["id"]] = _pixel_of_record(image)
            cells[image["id"]] = []
        place = "the file"
        for number, annotation in enumerate(data["annotations"], start=1):
            place = f"annotation {number}"
            cell = _cell_of_record(annotation, heads[annotation["image_id"]][2], len(names))
            cells[annotation["image_id"]].append(cell)
    except KeyError as error:
        raise InputError(f"{path}: {place} has no {error}: it is not what `python -m kernel prepare` writes") from error
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {place}: {error}: it is not what `python -m kernel prepare` writes") from error
    images, repeated = [], []
    for number, found in cells.items():
        kept, twins = part_twins(found, lambda cell: (cell.bbox_xywh, cell.counts))
        images.append(PreparedImage(*heads[number], tuple(kept), samples[number], pixels[number]))
        repeated += [f"one at x, y {twin.bbox_xywh[:2]} ('{images[-1].image_id}')" for twin, _ in twins]
    warn_of_twins(path, repeated)
    return PreparedDataset(tuple(names), tuple(images))


def _own_separators(folder: Path, name: str) -> str:
    """A path of another system in this one's form; as it is, where there is such a file."""
    return name if "\\" not in name or (folder / name).exists() else name.replace("\\", "/")


def _pixel_of_record(record: dict[str, Any]) -> float | None:
    told = record.get("pixel_size_um")
    if told is not None and not 0 < (told := float(told)) < math.inf:
        raise ValueError(f"its pixel_size_um is {told}")
    return told


def _cell_of_record(record: dict[str, Any], image_shape: tuple[int, int], classes: int) -> PreparedCell:
    label = record["category_id"] - 1
    if not 0 <= label < classes:
        raise ValueError(f"category {record['category_id']} is not one of the {classes}")
    if record["segmentation"]["size"] != list(image_shape):
        raise ValueError(f"its size is {record['segmentation']['size']}, its image's {list(image_shape)}")
    x, y, width, height = (int(side) for side in record["bbox"])
    if min(x, y) < 0 or min(width, height) < 1 or x + width > image_shape[1] or y + height > image_shape[0]:
        raise ValueError(f"its box {record['bbox']} leaves the image of {image_shape[0]} x {image_shape[1]}")
    counts = record["segmentation"]["counts"]
    if not isinstance(counts, str):
        raise ValueError("its run lengths are not compressed")
    return PreparedCell(label, (x, y, width, height), int(record["area"]), counts)
