"""Folds: nothing that belongs together is torn apart, cell types are balanced, and what is not possible is told."""

from __future__ import annotations

import logging
import random
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from kernel.data.splits import (
    SPLIT_NAMES,
    FoldRow,
    SampledImage,
    belongs_to,
    make_split,
    other_folds,
    plate_and_well,
    read_folds,
    select_folds,
    torn_groups,
    write_folds,
)
from kernel.errors import InputError


def sampled(count: int = 90) -> list[SampledImage]:
    """Images of three types; five per well, of which two are of one place; wells of one name on two plates."""
    images = []
    for index in range(count):
        cell_type = ("shsy5y", "astro", "cort", "cort", "cort", "cort")[index // 5 % 6]
        well, place = f"{'ABC'[index // 5 % 3]}{1 + index // 30}", 1 + index % 5 // 2
        sample = f"{cell_type}[oka-high]_{well}-{place}_Vessel-{1 + index // 15 % 2}_Ph_{place}"
        images.append(SampledImage(f"image{index:03d}", cell_type, sample))
    return images


@pytest.mark.parametrize(
    ("sample_id", "group"),
    [
        ("shsy5y[diff]_E10-4_Vessel-714_Ph_3", "Vessel-714_E10"),
        ("cort[oka-high]_B5-4_Vessel-377_Ph_2", "Vessel-377_B5"),
        ("astros[cereb]_D8-1_Vessel-361_Ph_1", "Vessel-361_D8"),
        ("cort[debris]_D2-2_Vessel-357", "Vessel-357_D2"),
        ("BT474_Phase_D3_1", "BT474_D3"),
        ("A172_Phase_C7_2", "A172_C7"),
        ("mouse 3", None),
        ("", None),
    ],
)
def test_plate_and_well(sample_id: str, group: str | None) -> None:
    assert plate_and_well(sample_id) == group


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_every_image_is_in_one_fold_and_the_order_does_not_matter(name: str) -> None:
    images = sampled()
    split = make_split(images, name, 5)
    assert [row.image_id for row in split.rows] == [image.image_id for image in images]
    assert [row.cell_type for row in split.rows] == [image.cell_type for image in images]
    assert (split.name, split.folds, split.passed_over) == (name, 5, ())
    assert {row.fold for row in split.rows} == set(range(5))
    sizes = Counter(row.fold for row in split.rows)
    assert max(sizes.values()) - min(sizes.values()) <= 10
    shuffled = random.Random(1).sample(images, len(images))
    assert make_split(shuffled, name, 5) == split


@pytest.mark.parametrize(("name", "group_of"), [("group", plate_and_well), ("stratified-group", str)])
def test_no_group_is_in_two_folds(name: str, group_of) -> None:
    images = sampled()
    folds_of = defaultdict(set)
    for image, row in zip(images, make_split(images, name, 5).rows, strict=True):
        assert row.group == group_of(image.sample_id)
        folds_of[row.group].add(row.fold)
    assert len(folds_of) > 5
    assert all(len(folds) == 1 for folds in folds_of.values())


@pytest.mark.parametrize(("name", "slack", "samples"), [("stratified", 1, False), ("stratified", 5, True),
                                                       ("stratified-group", 5, True)])  # fmt: skip
def test_cell_types_are_balanced_as_far_as_wells_allow(name: str, slack: int, samples: bool) -> None:
    """Wells have five images, and the rare types three wells for five folds."""
    images = sampled() if samples else [replace(image, sample_id="") for image in sampled()]
    rows = make_split(images, name, 5).rows
    for cell_type in ("shsy5y", "astro", "cort"):
        counts = Counter(row.fold for row in rows if row.cell_type == cell_type)
        per_fold = [counts[fold] for fold in range(5)]
        assert max(per_fold) - min(per_fold) <= slack, (cell_type, per_fold)


def test_missing_sample_ids_are_told_with_what_to_do() -> None:
    images = sampled()
    images[7] = SampledImage("image007", "astro", "")
    images[9] = SampledImage("image009", "astro", "")
    with pytest.raises(InputError) as told:
        make_split(images, "group", 5)
    message = str(told.value)
    for part in ("2 of 90", "'image007'", "sample_id", "choose the split 'stratified', or", "--or-next-best"):
        assert part in message
    with pytest.raises(InputError, match=r"its name says no plate and well; tell them, choose the split 'stratified',"):
        make_split(images, "group", 5, sample_remedy="tell them")
    with pytest.raises(InputError, match="split 'stratified-group' needs the sample id of every image"):
        make_split(images, "stratified-group", 5)
    assert make_split(images, "stratified", 5).name == "stratified"
    images[7], images[9] = (replace(images[place], sample_id="mouse 3") for place in (7, 9))
    with pytest.raises(InputError, match="choose the split 'stratified-group' or 'stratified', or let"):
        make_split(images, "group", 5)


def test_the_next_best_split_if_asked(caplog: pytest.LogCaptureFixture) -> None:
    images = sampled()
    images[7] = SampledImage("image007", "astro", "mouse 3")
    caplog.set_level(logging.WARNING)
    split = make_split(images, "group", 5, or_next_best=True)
    assert split.name == "stratified-group"
    (reason,) = split.passed_over
    assert "'mouse 3', which says no plate and well" in reason and reason in caplog.text
    images[7] = SampledImage("image007", "astro", "")
    split = make_split(images, "group", 5, or_next_best=True)
    assert split.name == "stratified" and len(split.passed_over) == 2
    # Wells that are known stay together there too; the image without one is alone.
    group_of = {image.image_id: plate_and_well(image.sample_id) or "" for image in images}
    assert {row.image_id: row.group for row in split.rows} == group_of
    folds_of = defaultdict(set)
    for row in split.rows:
        folds_of[row.group].add(row.fold)
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert make_split(sampled(), "group", 5, or_next_best=True).passed_over == ()


def test_too_few_groups() -> None:
    images = [SampledImage(f"i{index}", "cort", f"cort_A{index % 3}-1_Vessel-1_Ph_1") for index in range(12)]
    with pytest.raises(InputError, match="only 3 for 5 folds"):
        make_split(images, "group", 5)
    assert make_split(images, "group", 3).name == "group"
    for name in SPLIT_NAMES:
        for or_next_best in (False, True):
            with pytest.raises(InputError, match="together, and there are only 3 for 5 folds"):
                make_split(images, name, 5, or_next_best=or_next_best)
        assert len({row.fold for row in make_split(images, name, 3).rows}) == 3


def test_a_rare_cell_type_is_told(caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder) -> None:
    images = [SampledImage(f"i{index}", "cort" if index else "astro", "") for index in range(12)]
    caplog.set_level(logging.WARNING)
    assert len(make_split(images, "stratified", 5).rows) == 12
    assert "astro: fewer images than folds" in caplog.text
    assert not [warning for warning in recwarn if "populated" in str(warning.message)]
    images = [SampledImage(f"i{index}", f"type{index}", "") for index in range(12)]
    with pytest.raises(InputError, match="none has 5 images"):
        make_split(images, "stratified", 5, or_next_best=True)


@pytest.mark.parametrize(
    ("count", "name", "folds", "message"),
    [
        (0, "group", 5, "0 images cannot be split into 5 folds"),
        (4, "stratified", 5, "4 images cannot be split"),
        (9, "stratified", 1, "at least 2"),
        (9, "random", 5, "split 'random' is not one of group, stratified-group, stratified"),
    ],
)
def test_no_split(count: int, name: str, folds: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_split(sampled(count), name, folds, or_next_best=True)


def test_folds_csv_comes_back(tmp_path: Path) -> None:
    rows = make_split(sampled(), "group", 5).rows
    path = tmp_path / "folds.csv"
    write_folds(path, rows)
    assert path.read_text().startswith("id,fold,cell_type,group\nimage000,")
    assert read_folds(path) == {row.image_id: row.fold for row in rows}
    assert select_folds(path, [2]) | select_folds(path, other_folds(path, 2)) == {row.image_id for row in rows}
    assert select_folds(path, [2]) == {row.image_id for row in rows if row.fold == 2}
    assert other_folds(path, 2) == {0, 1, 3, 4}
    assert select_folds(path, []) == set()


def test_wrong_folds_are_told(tmp_path: Path) -> None:
    path = tmp_path / "folds.csv"
    with pytest.raises(InputError, match=r"cannot read folds from .* expected the folds\.csv"):
        read_folds(path)
    write_folds(path, [FoldRow("a", 0, "cort", ""), FoldRow("b", 1, "cort", "")])
    for wanted in (lambda: select_folds(path, [0, 2]), lambda: other_folds(path, 2)):
        with pytest.raises(InputError, match="has no fold 2; it has 0, 1"):
            wanted()
    for text, message in (
        ("id,group\na,1\n", "lacks the columns fold"),
        ("id,fold\na,x\n", "row 2: expected an id and a fold from 0, got 'a' and 'x'"),
        ("id,fold\na,1\n\na,1\n", "row 4: image 'a' is named twice"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_folds(path)


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_copies_lie_in_the_fold_of_their_picture(name: str) -> None:
    images = sampled()
    # Copies of every third image, under ids and wells of their own.
    copies = [
        replace(image, image_id=f"z{image.image_id}", same_as=image.image_id, sample_id="cort_C9-1_Vessel-9_Ph_1")
        for image in images[::3]
    ]
    split = make_split([*copies, *images], name, 5)
    fold_of = {row.image_id: row.fold for row in split.rows}
    assert len(fold_of) == 120 and split.name == name
    assert all(fold_of[copy.image_id] == fold_of[copy.same_as] for copy in copies)
    assert {key: fold_of[key] for key in fold_of if key[0] == "i"} == {
        row.image_id: row.fold for row in make_split(images, name, 5).rows
    }


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_no_split_tears_what_is_known_to_belong_together(name: str) -> None:
    """Wells of several places; samples that say no well; images without a sample, where the split allows them."""
    images = sampled()
    if name != "group":
        images += [SampledImage(f"mouse{index:02d}", "cort", f"mouse {index // 4}") for index in range(40)]
    if name == "stratified":
        images += [SampledImage(f"alone{index:02d}", "astro", "") for index in range(15)]
    folds_of = defaultdict(set)
    split = make_split(images, name, 5)
    for image, row in zip(sorted(images, key=lambda image: image.image_id), split.rows, strict=True):
        folds_of[belongs_to(image) or image.image_id].add(row.fold)
    assert len(folds_of) == 18 + 10 * (name != "group") + 15 * (name == "stratified")
    assert all(len(folds) == 1 for folds in folds_of.values())
    assert not torn_groups(images, {row.image_id: row.fold for row in split.rows})


def named_by_wells(count: int = 90) -> list[SampledImage]:
    """The images of `sampled`, whose names alone say what their sample ids said."""
    return [
        replace(image, image_id=f"{image.sample_id}_{number:02d}", sample_id="")
        for number, image in enumerate(sampled(count))
    ]


@pytest.mark.parametrize("name", SPLIT_NAMES)
def test_wells_that_only_names_tell_stay_together(name: str) -> None:
    images = named_by_wells()
    if name == "stratified":
        images += [SampledImage(f"alone{index:02d}", "astro", "") for index in range(15)]
    if name != "group":  # what somebody says of an image counts instead of its name
        images += [replace(image, image_id=f"{image.image_id}_b", sample_id="mouse 3") for image in images[:6]]
    folds_of = defaultdict(set)
    for row in make_split(images, name, 5).rows:
        told = "mouse 3" if row.image_id.endswith("_b") else plate_and_well(row.image_id)
        assert row.group == (told or "")
        folds_of[told or row.image_id].add(row.fold)
    assert len(folds_of) == 18 + (name != "group") + 15 * (name == "stratified")
    assert all(len(folds) == 1 for folds in folds_of.values())


def test_copies_of_a_picture_whose_name_tells_its_well() -> None:
    """With its copies counted a type is in each fold; they are of the well that the first one's name tells."""
    first = [SampledImage(f"BT474_Phase_A1_{place}_00d00h00m_1", "cort", "") for place in (1, 2)]
    others = [SampledImage(f"x_C{index}-1_Vessel-7_Ph_1", f"type{index}", "") for index in range(3)]
    copies = [SampledImage(f"z{index}", "cort", "", same_as=first[0].image_id) for index in range(3)]
    for name in SPLIT_NAMES:
        split = make_split([*first, *others, *copies], name, 3)
        fold_of = {row.image_id: row.fold for row in split.rows}
        assert split.name == name and set(fold_of.values()) == {0, 1, 2}
        assert len({fold_of[image.image_id] for image in (*first, *copies)}) == 1
    groups = {row.image_id: row.group for row in split.rows}
    assert {groups[image.image_id] for image in (*first, *copies)} == {"BT474_A1"}


def test_torn_groups_of_folds_made_elsewhere() -> None:
    samples = {
        "a": "cort_A1-1_Vessel-1_Ph_1",
        "b": "cort_A1-2_Vessel-1_Ph_1",
        "c": "mouse 3",
        "d": "mouse 3",
        "e": "",
        "f": "",
        "cort_B1-1_Vessel-1_Ph_1": "",
        "cort_B1-2_Vessel-1_Ph_1": "",
    }
    images = [SampledImage(image_id, "cort", sample_id) for image_id, sample_id in samples.items()]
    folds = dict(zip(samples, (0, 1, 2, 2, 0, 1, 2, 0), strict=True))
    assert torn_groups(images, folds) == {"Vessel-1_A1": {0, 1}, "Vessel-1_B1": {0, 2}}
    assert torn_groups(images, {"a": 0}) == {} == torn_groups([], {})


def test_copies_are_never_parted() -> None:
    images = [SampledImage(f"i{index}", "cort", "cort_A1-1_Vessel-1_Ph_1") for index in range(6)]
    copies = [replace(image, image_id=f"z{image.image_id}", same_as=image.image_id) for image in images]
    with pytest.raises(InputError, match="there are only 1 for 3 folds"):
        make_split([*images, *copies], "group", 3)
    # With its copy a type has two images; no other split is possible here.
    three = [SampledImage(name, kind, "") for name, kind in (("a", "cort"), ("b", "astro"), ("c", "shsy5y"))]
    split = make_split([*three, SampledImage("d", "cort", "", same_as="a")], "group", 2, or_next_best=True)
    fold_of = {row.image_id: row.fold for row in split.rows}
    assert split.name == "stratified" and fold_of["a"] == fold_of["d"] and set(fold_of.values()) == {0, 1}
    with pytest.raises(InputError, match="none has 2 images"):
        make_split(three, "stratified", 2)
    # Two pictures, three folds.
    few = [replace(image, sample_id="", same_as=("i0", "i1")[number % 2]) for number, image in enumerate(images)]
    with pytest.raises(InputError, match="only 2 of the pictures are different, and 3 folds are asked for"):
        make_split(few, "stratified", 3)
    assert len({row.fold for row in make_split(few, "stratified", 2).rows}) == 2
