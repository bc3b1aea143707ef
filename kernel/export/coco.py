"""Masks as COCO's annotations, with pycocotools' compressed run lengths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pycocotools import mask as coco_mask

from kernel.data.coco_masks import encode_crop
from kernel.export.formats import image_type
from kernel.masks.instances import CellMasks
from kernel.settings import CELL_TYPES


def coco_cells(masks: CellMasks) -> list[dict[str, Any]]:
    """The annotations of an image's cells, but for their numbers and the image's; categories as in `coco_file`.

    A cell's category is the image's cell type; `cell_label` is what its detectors see in it alone.
    """
    height, width = masks.image_shape
    cells = []
    for crop, window, score, label in zip(masks.crops, masks.windows.tolist(), masks.scores, masks.labels, strict=True):
        rle = encode_crop(crop, window, masks.image_shape)
        cells.append(
            {
                "category_id": CELL_TYPES.index(image_type(masks)) + 1,
                "cell_label": CELL_TYPES[int(label)],
                "segmentation": {"size": [height, width], "counts": rle["counts"].decode("ascii")},
                "area": int(coco_mask.area(rle)),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "iscrowd": 0,
                "score": round(float(score), 4),
            }
        )
    return cells


def coco_file(images: Iterable[tuple[Mapping[str, Any], Sequence[dict[str, Any]]]]) -> dict[str, Any]:
    """The content of a COCO file.

    Args:
        images: what is told of each, but for its number, and its `coco_cells`. They are numbered from 1, the cells
            too; a cell type's category is its place in CELL_TYPES, from 1.
    """
    told: list[dict[str, Any]] = []
    numbered: list[dict[str, Any]] = []
    for number, (image, cells) in enumerate(images, start=1):
        told.append({"id": number, **image})
        numbered += [
            {"id": place, "image_id": number, **cell} for place, cell in enumerate(cells, start=len(numbered) + 1)
        ]
    categories = [{"id": number, "name": name} for number, name in enumerate(CELL_TYPES, start=1)]
    return {"images": told, "annotations": numbered, "categories": categories}
