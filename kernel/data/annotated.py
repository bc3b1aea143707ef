"""A folder of annotated images in the competition's layout: train.csv and train/<id>.png."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kernel.data.annotations import ImageAnnotations, read_annotations
from kernel.data.images import list_images
from kernel.errors import InputError


@dataclass(frozen=True)
class AnnotatedImage:
    """An image file and what is annotated in it."""

    path: Path
    annotations: ImageAnnotations

    @property
    def image_id(self) -> str:
        return self.annotations.image_id

    @property
    def cell_type(self) -> str:
        return self.annotations.cell_type


def list_annotated(folder: Path) -> list[AnnotatedImage]:
    """The annotated images of `folder`, in train.csv's order.

    Images without annotations are passed over; train.csv must not name images that are not there.

    Raises:
        InputError: no train.csv, no images, or an annotated image is missing.
    """
    annotations = read_annotations(folder / "train.csv")
    paths = {path.stem: path for path in list_images(folder / "train")}
    missing = [image_id for image_id in annotations if image_id not in paths]
    if missing:
        raise InputError(
            f"{folder / 'train.csv'} names {len(missing)} image(s) that are not in {folder / 'train'}, "
            f"{missing[0]!r} first: put them there, or take their rows out"
        )
    return [AnnotatedImage(paths[image_id], entry) for image_id, entry in annotations.items()]
