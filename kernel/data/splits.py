"""Cross-validation folds: which images are held out together, and folds.csv.

Pictures of one well resemble each other more than pictures of two: a fold that shares wells with the training images
promises too much. So no split parts what is known to belong together. The best one needs to know plate and well of
every image, the next one its sample; the last takes images of which neither is known as being alone. Where nobody
says an image's sample, its name may: a plate and well in it is its sample.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from kernel.data.image_names import known_name
from kernel.data.tables import read_table, whole_number, whole_text
from kernel.errors import InputError
from kernel.log import LOG

FOLDS_NAME = "folds.csv"
#: How many folds there are where nobody says.
FOLDS = 5

#: Names of the splits, the best first: by plate and well; by cell type, all samples known; by cell type.
SPLIT_NAMES = ("group", "stratified-group", "stratified")

_FOLD_COLUMNS = ("id", "fold", "cell_type", "group")

#: How the samples of a train.csv are told, for messages.
COLUMN_REMEDY = "fill in the column sample_id (as shsy5y[diff]_E10-4_Vessel-714_Ph_3)"

#: Sample ids, and names of images, that say plate and well: the competition's, as "shsy5y[diff]_E10-4_Vessel-714_Ph_3",
#: where -4 is a place in the well; and LIVECell's, as "BT474_Phase_D3_1", which know the plate by its cell line.
_SAMPLE_PATTERNS = (
    re.compile(r"_(?P<well>[A-Z]+\d+)(?:-\d+)?_(?P<plate>Vessel-\d+)(?:_|$)"),
    re.compile(r"^(?P<plate>[^_]+)_Phase_(?P<well>[A-Z]+\d+)(?:_|$)"),
)


class Sampled(Protocol):
    """An image of which a sample may be known."""

    @property
    def image_id(self) -> str: ...

    @property
    def sample_id(self) -> str: ...


@dataclass(frozen=True)
class SampledImage:
    """What a split knows of an image."""

    image_id: str
    cell_type: str
    sample_id: str  # "" where unknown
    same_as: str = ""  # of pictures that are the same, the first one's id: whatever the split, they stay together


@dataclass(frozen=True)
class FoldRow:
    """One row of folds.csv."""

    image_id: str
    fold: int  # from 0
    cell_type: str
    group: str  # what was kept together; "" where nothing was


@dataclass(frozen=True)
class Split:
    """The folds of a dataset and how they came about."""

    name: str  # one of SPLIT_NAMES
    folds: int
    rows: tuple[FoldRow, ...]  # sorted by image
    passed_over: tuple[str, ...]  # why each better split was not possible


def plate_and_well(sample_id: str) -> str | None:
    """The group of a sample id, as "Vessel-714_E10"; None where it does not say plate and well."""
    for pattern in _SAMPLE_PATTERNS:
        found = pattern.search(sample_id)
        if found:
            return f"{found['plate']}_{found['well']}"
    return None


def make_split(
    images: Sequence[SampledImage],
    name: str,
    folds: int,
    *,
    or_next_best: bool = False,
    sample_remedy: str = COLUMN_REMEDY,
) -> Split:
    """Distribute images over folds. The result does not depend on the order of `images` and draws nothing.

    What belongs together stays together in every split: wells that are known, samples, and pictures that are the same
    (`SampledImage.same_as`), of which the first one's fold is theirs, whatever their own sample ids say.

    Args:
        images: with ids that differ.
        name: one of SPLIT_NAMES. group: GroupKFold by plate and well; stratified-group: StratifiedGroupKFold by cell
            type, all samples being known; stratified: the same, where images may be alone, or StratifiedKFold where
            all are.
        folds: how many, at least 2.
        or_next_best: where the split is not possible, take the next one of SPLIT_NAMES that is, with a warning.
        sample_remedy: how the images' samples can be told, for messages.

    Raises:
        InputError: fewer than 2 folds, fewer images than folds, or the split is not possible.
    """
    if name not in SPLIT_NAMES:
        raise InputError(f"split '{name}' is not one of {', '.join(SPLIT_NAMES)}")
    if folds < 2:
        raise InputError(f"{folds} folds: at least 2 are needed, one to train on and one to validate")
    if len(images) < folds:
        raise InputError(
            f"{len(images)} images cannot be split into {folds} folds: ask for fewer (--folds), "
            "give more images, or make none (--split none)"
        )
    images = sorted(images, key=lambda image: image.image_id)
    copies = [image for image in images if image.same_as not in ("", image.image_id)]
    try:
        different = _split_different(set(images) - set(copies), name, folds, or_next_best, sample_remedy)
        return _with_copies(different, copies)
    except InputError as error:
        if not copies:
            raise
        try:  # with copies counted, a cell type may have images enough to be balanced
            return _split_different(_in_samples(images), name, folds, or_next_best, sample_remedy)
        except InputError:
            raise error from None


def _in_samples(images: Sequence[SampledImage]) -> list[SampledImage]:
    """The images, those that are one picture being of one sample: the first one's, or one of their own."""
    sample_ids = {image.image_id: image.sample_id for image in images}
    first = {image.same_as for image in images if image.same_as not in ("", image.image_id)}
    return [
        # What the first one's name says of its plate and well, it says with an end of its own, too.
        replace(image, sample_id=sample_ids.get(own, "") or f"{own}_picture") if own in first else image
        for image in images
        for own in [image.same_as or image.image_id]
    ]


def _with_copies(split: Split, copies: Sequence[SampledImage]) -> Split:
    """The split with images that are copies of others in it."""
    rows = {row.image_id: row for row in split.rows}
    of_copies = [replace(rows[copy.same_as], image_id=copy.image_id, cell_type=copy.cell_type) for copy in copies]
    return replace(split, rows=tuple(sorted([*split.rows, *of_copies], key=lambda row: row.image_id)))


def _split_different(
    given: Collection[SampledImage], name: str, folds: int, or_next_best: bool, sample_remedy: str
) -> Split:
    """`make_split` of images that are all different."""
    images = sorted(given, key=lambda image: image.image_id)
    if len(images) < folds:
        raise InputError(f"only {len(images)} of the pictures are different, and {folds} folds are asked for")
    passed_over: list[str] = []
    for candidate in SPLIT_NAMES[SPLIT_NAMES.index(name) :]:
        reason, groups, assigned = _try_split(images, candidate, folds)
        if not reason:
            rows = tuple(
                FoldRow(image.image_id, fold, image.cell_type, group or "")
                for image, fold, group in zip(images, assigned, groups, strict=True)
            )
            return Split(candidate, folds, rows, tuple(passed_over))
        if not or_next_best or candidate == SPLIT_NAMES[-1]:
            raise InputError(f"{reason}; {_advice(images, candidate, folds, sample_remedy)}")
        LOG.warning("%s: the next best split is tried", reason)
        passed_over.append(reason)
    raise AssertionError("the loop returns or raises")


def _try_split(images: Sequence[SampledImage], name: str, folds: int) -> tuple[str, list[str | None], list[int]]:
    """Why a split is not possible, or ""; else what is kept together, and each image's fold."""
    groups = _groups(images, name)
    reason = _obstacle(images, groups, name, folds)
    if reason:
        return reason, groups, []
    assigned = _assign_folds(images, [belongs_to(image) for image in images], name, folds)
    if len(set(assigned)) < folds:
        return f"split '{name}' leaves one of the {folds} folds empty", groups, []
    return "", groups, assigned


def well_of(image: Sampled) -> str | None:
    """The plate and well that an image's sample id says, or its name where it has none; None where that says none."""
    return plate_and_well(image.sample_id or image.image_id)


def sample_of(image: Sampled) -> str | None:
    """An image's sample: by its id, else the plate and well of its name; None where neither is known."""
    return image.sample_id or well_of(image)


def belongs_to(image: Sampled) -> str | None:
    """What an image is never parted from: its plate and well, else its sample; None where neither is known."""
    return well_of(image) or image.sample_id or None


def _count(groups: Sequence[str | None]) -> int:
    """How many groups there are; an image without one is alone."""
    return len({group for group in groups if group is not None}) + sum(group is None for group in groups)


def torn_groups(images: Iterable[Sampled], folds: Mapping[str, int]) -> dict[str, set[int]]:
    """What belongs together and lies in several of the `folds`, with these, by image: they may be made elsewhere."""
    folds_of: dict[str, set[int]] = {}
    for image in images:
        group = belongs_to(image)
        if group is not None and image.image_id in folds:
            folds_of.setdefault(group, set()).add(folds[image.image_id])
    return {group: found for group, found in folds_of.items() if len(found) > 1}


def _groups(images: Sequence[SampledImage], name: str) -> list[str | None]:
    if name == "group":
        return [well_of(image) for image in images]
    if name == "stratified-group":
        return [sample_of(image) for image in images]
    return [belongs_to(image) for image in images]


def _obstacle(images: Sequence[SampledImage], groups: Sequence[str | None], name: str, folds: int) -> str:
    """Why a split is not possible; "" where it is."""
    if name != "stratified":
        lacking = [image for image, group in zip(images, groups, strict=True) if group is None]
        if lacking:
            first = lacking[0]
            named = f"'{first.sample_id}', which" if first.sample_id else "empty, and its name"
            return (
                f"split '{name}' needs the sample id of every image, and {len(lacking)} of {len(images)} lack it: "
                f"that of '{first.image_id}' is {named} says no plate and well"
            )
    count = _count([belongs_to(image) for image in images])
    if count < folds:
        what = "plates and wells" if name == "group" else "plates, wells and samples"
        return f"split '{name}' keeps {what} together, and there are only {count} for {folds} folds"
    if name != "group":
        most = max(Counter(image.cell_type for image in images).values())
        if most < folds:
            return f"split '{name}' balances cell types, and none has {folds} images, one for each fold"
    return ""


def _advice(images: Sequence[SampledImage], name: str, folds: int, sample_remedy: str) -> str:
    """What can be done where a split is not possible: of the next ones only those that are possible help."""
    lacks_samples = name != SPLIT_NAMES[-1] and None in _groups(images, name)
    told = [sample_remedy if lacks_samples else "ask for fewer folds (--folds)"]
    others = [
        f"'{other}'"
        for other in SPLIT_NAMES[SPLIT_NAMES.index(name) + 1 :]
        if not _obstacle(images, _groups(images, other), other, folds)
    ]
    if others:
        told += [f"choose the split {' or '.join(others)}", "let the next best split be taken (--or-next-best)"]
    else:
        told.append("make none (--split none)")
    return f"{', '.join(told[:-1])}, or {told[-1]}"


def _assign_folds(images: Sequence[SampledImage], groups: Sequence[str | None], name: str, folds: int) -> list[int]:
    # Here, because it takes a second to import and folds.csv is read without it.
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, StratifiedKFold

    # An image that is alone is a group of its own, by a name that no sample has.
    named = [f"\0{image.image_id}" if group is None else group for image, group in zip(images, groups, strict=True)]
    has_groups = len(set(named)) < len(named)
    stratified = StratifiedGroupKFold if has_groups or name == "stratified-group" else StratifiedKFold
    splitter = GroupKFold if name == "group" else stratified
    cell_types = [image.cell_type for image in images]
    if name != "group":
        rare = sorted(cell_type for cell_type, count in Counter(cell_types).items() if count < folds)
        if rare:
            LOG.warning("%s: fewer images than folds, so that some folds have none", ", ".join(rare))
    assigned = [0] * len(images)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # warned of above, by name
        for fold, (_, held_out) in enumerate(
            splitter(folds).split(cell_types, cell_types, None if splitter is StratifiedKFold else named)
        ):
            for index in held_out:
                assigned[index] = fold
    return assigned


def write_folds(path: Path, rows: Sequence[FoldRow]) -> None:
    """Write folds.csv, whole or not at all.

    Raises:
        InputError: the folder cannot be written.
        RunError: the disk is full.
    """
    with whole_text(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(_FOLD_COLUMNS)
        writer.writerows((row.image_id, row.fold, row.cell_type, row.group) for row in rows)


def read_folds(path: Path, names: Collection[str] = ()) -> dict[str, int]:
    """The fold of each image of a folds.csv.

    Args:
        path: the file.
        names: the images' ids: those of the file may be written otherwise, as `known_name` tells. What is not among
            them stays as it is written.

    Raises:
        InputError: no such file, a row that cannot be read, or an image that is named twice.
    """
    folds: dict[str, int] = {}
    for row in read_table(path, _FOLD_COLUMNS[:2], "folds", "the folds.csv that `prepare --split stratified` writes"):
        image_id, fold = known_name(row.values["id"], names), whole_number(row.values["fold"])
        if not image_id or fold is None:
            raise InputError(
                f"{path}, row {row.number}: expected an id and a fold from 0, got '{image_id}' and "
                f"'{row.values['fold']}'"
            )
        if image_id in folds:
            raise InputError(f"{path}, row {row.number}: image '{image_id}' is named twice")
        folds[image_id] = fold
    return folds


def select_folds(path: Path, wanted: Collection[int], names: Collection[str] = ()) -> set[str]:
    """The images of a folds.csv that are in one of the folds `wanted`; `names` as in `read_folds`.

    Raises:
        InputError: as `read_folds`; or a fold that the file does not have.
    """
    folds = read_folds(path, names)
    _check_folds(path, folds, wanted)
    return {image_id for image_id, fold in folds.items() if fold in wanted}


def other_folds(path: Path, fold: int) -> frozenset[int]:
    """All folds of a folds.csv but `fold`: those to train on.

    Raises:
        InputError: as `select_folds`.
    """
    folds = read_folds(path)
    _check_folds(path, folds, [fold])
    return frozenset(folds.values()) - {fold}


def _check_folds(path: Path, folds: dict[str, int], wanted: Collection[int]) -> None:
    known = sorted(set(folds.values()))
    for fold in wanted:
        if fold not in known:
            raise InputError(f"{path} has no fold {fold}; it has {', '.join(map(str, known)) or 'none'}")
