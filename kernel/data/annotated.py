"""Folders of annotated images: as the competition has them (train.csv and train/<id>.png), or prepared."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from kernel.data.annotations import images_of_table, read_annotations
from kernel.data.image_names import present_form
from kernel.data.prepared import PREPARED_NAME, read_prepared
from kernel.data.splits import FOLDS_NAME, belongs_to, other_folds, read_folds, select_folds, torn_groups
from kernel.errors import InputError
from kernel.images.reading import read_image
from kernel.log import LOG
from kernel.masks.instances import CellMasks
from kernel.patience import patiently
from kernel.settings import CELL_TYPES
from kernel.text import first_names


class Annotations(Protocol):
    """The annotated cells of one image: an `ImageAnnotations` of train.csv, or a `PreparedImage`."""

    @property
    def image_id(self) -> str: ...

    @property
    def cell_type(self) -> str: ...

    @property
    def image_shape(self) -> tuple[int, int]: ...

    @property
    def sample_id(self) -> str: ...

    @property
    def pixel_um(self) -> float | None: ...

    @property
    def labels(self) -> np.ndarray: ...

    def masks(self, *, fill_holes: bool = False) -> CellMasks: ...


@dataclass(frozen=True)
class AnnotatedImage:
    """An image file and what is annotated in it."""

    path: Path
    annotations: Annotations
    class_names: tuple[str, ...] = CELL_TYPES  # of its dataset; a class's place is its label

    @property
    def image_id(self) -> str:
        return self.annotations.image_id

    @property
    def cell_type(self) -> str:
        return self.annotations.cell_type

    @property
    def pixel_um(self) -> float | None:
        """The side of a pixel in micrometres; None: not known."""
        return self.annotations.pixel_um

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 of the cells, without decoding them."""
        return self.annotations.labels

    def read(self) -> np.ndarray:
        """The pixels, (H, W, 3) uint8 BGR. Where the system cannot read them just now, that is tried again for a while.

        Raises:
            InputError: the image cannot be read, or is of another size than its annotations.
        """
        pixels, expected = patiently(lambda: read_image(self.path)), self.annotations.image_shape
        if pixels.shape[:2] != expected:
            raise InputError(
                f"{self.path} has {pixels.shape[0]} rows and {pixels.shape[1]} columns, its annotations are of "
                f"{expected[0]} and {expected[1]}: put the annotated image there"
            )
        return pixels

    def masks(self, *, fill_holes: bool = False) -> CellMasks:
        """The cells as crops; labels are places among the dataset's classes (the competition's: CELL_TYPES).

        Args:
            fill_holes: as for training; without, a competition folder gives the metric's truth. A prepared folder
                gives its cells as they were prepared either way, which is filled.

        Raises:
            InputError: run lengths that cannot be read.
        """
        return self.annotations.masks(fill_holes=fill_holes)


def check_readable(images: Sequence[AnnotatedImage]) -> None:
    """Read each image and its cells once.

    Raises:
        InputError: as `AnnotatedImage.read` and `.masks`.
    """
    for image in tqdm(images, unit="image", desc="checking", mininterval=1, disable=not images):
        image.read()
        image.masks()


def list_annotated(
    folder: Path, folds: Collection[int] | None = None, folds_csv: Path | None = None, *, warns: bool = True
) -> list[AnnotatedImage]:
    """The annotated images of `folder`, in the order of its train.csv or annotations.json.

    Images without annotations are passed over; train.csv and annotations.json must not name images that are not there.

    Args:
        folder: holds train.csv and train/, or annotations.json; not both.
        folds: only images of these folds; None: all.
        folds_csv: says which image is in which fold; None: folds.csv in `folder`.
        warns: say, with folds, which images are in none, and which wells lie in several.

    Raises:
        InputError: neither or both of the two files, no images, or an annotated image is missing; for folds: no
            folds.csv, a fold that it does not have, or none of its images in `folder`.
    """
    images = _read_annotated(folder)
    if folds is not None:
        path = folds_csv or folder / FOLDS_NAME
        if warns:
            _warn_of_folds(images, folder, path)
        images = _of_folds(images, folder, path, folds)
    return _present(images, folder)


def list_around_fold(folder: Path, fold: int, folds_csv: Path) -> tuple[list[AnnotatedImage], list[AnnotatedImage]]:
    """The images to train on where a fold is left out, and those of the fold.

    What belongs together with an image of the fold (`belongs_to`) is not trained on either, whatever fold the file,
    which may be made elsewhere, puts it in; a warning names these images.

    Raises:
        InputError: as `list_annotated` and `other_folds`; or no image is left to train on.
    """
    images = _read_annotated(folder)  # of many cells it takes a while
    _warn_of_folds(images, folder, folds_csv)
    held_out = _present(_of_folds(images, folder, folds_csv, [fold]), folder)
    others = _present(_of_folds(images, folder, folds_csv, other_folds(folds_csv, fold)), folder)
    groups = groups_of(held_out)
    training = [image for image in others if belongs_to(image.annotations) not in groups]
    if others and not training:
        raise InputError(
            f"{folds_csv}: each of the {len(others)} images that are not in fold {fold} is of a well or sample that is "
            "in it too, so that none is left to train on: make folds by `prepare --split group`"
        )
    if len(training) < len(others):
        kept = {image.image_id for image in training}
        LOG.warning(
            "%d images are not trained on, as their wells or samples are in fold %d too: %s",
            len(others) - len(training), fold, first_names([i.image_id for i in others if i.image_id not in kept]),
        )  # fmt: skip
    return training, held_out


def groups_of(images: Iterable[AnnotatedImage]) -> set[str]:
    """What these images belong to, as far as it is known."""
    found = (belongs_to(image.annotations) for image in images)
    return {group for group in found if group is not None}


_REMEDIES = {"train.csv": "take their rows out", PREPARED_NAME: "prepare the folder again"}


def _read_annotated(folder: Path) -> list[AnnotatedImage]:
    """What `folder` annotates, whether its images are there or not."""
    table, prepared = folder / "train.csv", folder / PREPARED_NAME
    if prepared.exists() and table.exists():
        raise InputError(f"{folder} holds both {table.name} and {prepared.name}: which one is meant? Move one away")
    if prepared.exists():
        dataset = read_prepared(folder)
        return [AnnotatedImage(image.path, image, dataset.class_names) for image in dataset.images]
    if not table.exists():
        raise InputError(
            f"cannot read annotations from {table}: no such file; expected the competition's train.csv and train, or a "
            "folder that `prepare` has made (of images and masks: `prepare --annotated`)"
        )
    paths = images_of_table(folder)
    annotations = read_annotations(table, names=paths)
    nowhere = folder / "train"
    return [
        AnnotatedImage(paths.get(image_id, nowhere / f"{image_id}.png"), entry)
        for image_id, entry in annotations.items()
    ]


def _present(images: Sequence[AnnotatedImage], folder: Path) -> list[AnnotatedImage]:
    """The images of `folder`, each by its name as the file system has it.

    Raises:
        InputError: one is not there.
    """
    images = [replace(image, path=present_form(image.path)) for image in images]
    missing = [image for image in images if not image.path.is_file()]
    if missing:
        prepared = folder / PREPARED_NAME
        named = prepared if prepared.exists() else folder / "train.csv"
        place = missing[0].path.parent
        raise InputError(
            f"{named} names {len(missing)} image(s) that are not in {place}, "
            f"{missing[0].image_id!r} first: put them there, or {_REMEDIES[named.name]}"
        )
    return images


def _warn_of_folds(images: Sequence[AnnotatedImage], folder: Path, folds_csv: Path) -> None:
    """Say which images are in no fold, and so left out, and which wells lie in several folds."""
    fold_of = read_folds(folds_csv, {image.image_id for image in images})
    nowhere = [image.image_id for image in images if image.image_id not in fold_of]
    if nowhere:
        LOG.warning(
            "%d of %d images of %s are in no fold of %s, and left out: %s",
            len(nowhere), len(images), folder, folds_csv, first_names(nowhere),
        )  # fmt: skip
    torn = torn_groups([image.annotations for image in images], fold_of)
    if torn:
        LOG.warning(
            "%d wells or samples lie in several folds of %s, %s: training without a fold leaves out all of their "
            "images where one is in it; weights trained otherwise have seen what they are judged on. "
            "`prepare --split group` keeps them together",
            len(torn), folds_csv, first_names(list(torn), 5),
        )  # fmt: skip


def _of_folds(
    images: list[AnnotatedImage], folder: Path, folds_csv: Path, folds: Collection[int]
) -> list[AnnotatedImage]:
    wanted = select_folds(folds_csv, folds, {image.image_id for image in images})
    chosen = [image for image in images if image.image_id in wanted]
    if len(chosen) < len(wanted):
        absent = sorted(wanted - {image.image_id for image in chosen})
        raise InputError(
            f"{folds_csv} has {len(wanted)} images in the folds {', '.join(map(str, sorted(folds)))}, and "
            f"{len(absent)} of them are not annotated in {folder}, '{absent[0]}' first: is this their folds.csv?"
        )
    return chosen
