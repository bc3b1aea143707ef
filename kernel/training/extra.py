"""Extra data: images of LIVECell or pseudo-labelled ones, mixed in often at first and not at all towards the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from kernel.data.annotated import AnnotatedImage, list_annotated
from kernel.data.splits import belongs_to
from kernel.errors import InputError
from kernel.log import LOG
from kernel.training.samples import TrainingImage, read_entries


@dataclass(frozen=True)
class ExtraSchedule:
    """The chance that a crop is one of an extra image: it falls linearly to zero."""

    share: float  # at the start of the run
    until: float  # part of the run after which it is zero

    def chance(self, progress: float) -> float:
        """The chance after `progress` of the run, 0 to 1."""
        return self.share * max(0.0, 1 - progress / self.until)


def label_table(extra_classes: Sequence[str], classes: Sequence[str], num_classes: int) -> tuple[int | None, ...]:
    """The label of each class of an extra folder in a detector of `num_classes` trained on `classes`; None: no label.

    Classes are the same where their names are: pseudo-labels keep the competition's labels, and LIVECell's shsy5y,
    its eighth class, becomes the competition's first, which is the same cell line. Any other class must not take the
    index of one of `classes`, since the labels of these decide scores and cell type: it keeps its own index where that
    is above theirs, else it gets the last one. So of LIVECell's, in a detector of eight classes finetuned on the
    competition's three, bv2, mcf7, bt474 and skov3 keep the indices 3 to 6, and skbr3, a172 and huh7, whose indices the
    competition's types have, share 7, which shsy5y left. Those three can then not be told apart, which costs nothing:
    inference counts the first three classes alone. What an index meant in pretraining does not matter, since finetuning
    draws the layers that tell classes apart anew.

    A detector with no more classes than `classes` has no index for the others: None, and images of them are left out,
    since unlabelled cells would be learnt as background.
    """
    table: list[int | None] = []
    for index, name in enumerate(extra_classes):
        if name in classes:
            table.append(list(classes).index(name))
        elif num_classes > len(classes):
            table.append(index if len(classes) <= index < num_classes else num_classes - 1)
        else:
            table.append(None)
    return tuple(table)


def read_extra_images(
    folders: Sequence[Path],
    count: int,
    seed: int,
    classes: Sequence[str],
    num_classes: int,
    held_out: Collection[str] = (),
    held_out_groups: Collection[str] = (),
) -> list[TrainingImage]:
    """At most `count` annotated images of `folders`, drawn by `seed`, with labels of `label_table`.

    Args:
        folders: as `list_annotated` takes them, all folds of each.
        count: all images are taken where there are no more.
        seed: the draw follows from it and from what the folders list.
        classes: those of the data trained on, in the order of their labels.
        num_classes: of the detector.
        held_out: ids of the validation images: an extra image of the same id is left out, whoever annotated it.
        held_out_groups: their wells and samples (`belongs_to`): an extra image of one of these is left out as well.

    Raises:
        InputError: as `list_annotated` and `read_image` do; or no image is left of a folder.
    """
    usable: list[tuple[AnnotatedImage, tuple[int | None, ...]]] = []
    for folder in folders:
        left_out = Counter[str]()
        entries = list_annotated(folder)
        before = len(usable)
        for entry in entries:
            table = label_table(entry.class_names, classes, num_classes)
            foreign = classes_without_place(entry, table)
            if entry.image_id in held_out:
                left_out["the validation fold has them too"] += 1
            elif belongs_to(entry.annotations) in held_out_groups:
                left_out["the validation fold has their wells or samples"] += 1
            elif foreign:
                left_out[f"the detector's {num_classes} classes have no place for {', '.join(foreign)}"] += 1
            else:
                usable.append((entry, table))
        reasons = "; ".join(f"{number} left out, for {reason}" for reason, number in left_out.items())
        if len(usable) == before:
            raise InputError(f"--extra {folder}: none of its {len(entries)} annotated images can be used: {reasons}")
        LOG.info("%s: %d of %d images. %s", folder, len(usable) - before, len(entries), reasons)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(usable))[:count])
    return relabelled([usable[index] for index in chosen])


def read_entries_as(entries: Sequence[AnnotatedImage], classes: Sequence[str], num_classes: int) -> list[TrainingImage]:
    """The pixels and cells of `entries` with labels of `label_table`, for a detector that knows `classes` already.

    Raises:
        InputError: as `read_entries`; or cells of a class that the detector has no place for.
    """
    tables = [label_table(entry.class_names, classes, num_classes) for entry in entries]
    for entry, table in zip(entries, tables, strict=True):
        foreign = classes_without_place(entry, table)
        if foreign:
            raise InputError(
                f"image '{entry.image_id}' has cells of {', '.join(foreign)}, and the detector's {num_classes} "
                f"classes are {', '.join(classes)}: give images of these"
            )
    return relabelled(list(zip(entries, tables, strict=True)))


def classes_without_place(entry: AnnotatedImage, table: Sequence[int | None]) -> list[str]:
    """The classes of an image's cells, by name, for which a `label_table` has no label."""
    return sorted({entry.class_names[label] for label in set(entry.labels.tolist()) if table[label] is None})


def relabelled(tabled: Sequence[tuple[AnnotatedImage, Sequence[int | None]]]) -> list[TrainingImage]:
    """`read_entries` of images, with each one's labels by its table."""
    images = read_entries([entry for entry, _ in tabled])
    return [
        replace(image, labels=np.array([table[label] for label in image.labels.tolist()], np.int64))
        for image, (_, table) in zip(images, tabled, strict=True)
    ]
