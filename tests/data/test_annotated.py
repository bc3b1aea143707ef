"""A folder in the competition's layout: every annotated image with its file, or what is missing told."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from kernel.data.annotated import list_annotated
from kernel.data.synthetic.generate import write_dataset
from kernel.errors import InputError
from kernel.images.reading import read_image
from kernel.settings import CELL_TYPES

SHAPE = (64, 80)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("annotated")
    write_dataset(folder, {"shsy5y": 1, "astro": 2, "cort": 1}, seed=4, shape=SHAPE)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(made, tmp_path / "data")


def ids_of(folder: Path) -> list[str]:
    """Image ids in train.csv's order."""
    rows = (folder / "train.csv").read_text(encoding="utf-8").splitlines()[1:]
    return list(dict.fromkeys(row.split(",")[0] for row in rows))


def test_every_annotated_image_is_listed_in_the_order_of_the_file(folder: Path) -> None:
    images = list_annotated(folder)
    assert [image.image_id for image in images] == ids_of(folder)
    assert [image.cell_type for image in images] == ["shsy5y", "astro", "astro", "cort"]
    for image in images:
        assert image.path == folder / "train" / f"{image.image_id}.png"
        assert read_image(image.path).shape == (*SHAPE, 3)
        masks = image.annotations.masks()
        assert masks.image_shape == SHAPE
        assert len(masks) > 0
        assert set(masks.labels.tolist()) == {CELL_TYPES.index(image.cell_type)}


def test_an_image_without_annotations_is_passed_over(folder: Path) -> None:
    expected = [image.image_id for image in list_annotated(folder)]
    shutil.copy(folder / "train" / f"{expected[0]}.png", folder / "train" / "unknown.png")
    assert [image.image_id for image in list_annotated(folder)] == expected


def test_an_image_may_be_of_another_format(folder: Path) -> None:
    path = list_annotated(folder)[1].path
    path.rename(path.with_suffix(".tif"))
    assert list_annotated(folder)[1].path.suffix == ".tif"


@pytest.mark.parametrize("removed", [1, 2, 3])
def test_missing_images_are_counted_and_the_first_is_named(folder: Path, removed: int) -> None:
    ids = ids_of(folder)
    for image_id in ids[1 : 1 + removed]:
        (folder / "train" / f"{image_id}.png").unlink()
    with pytest.raises(InputError, match=f"names {removed} image.* that are not in .*train, '{ids[1]}' first"):
        list_annotated(folder)


def test_no_annotations_file(folder: Path) -> None:
    (folder / "train.csv").unlink()
    told = r"annotations from .*train\.csv.* or a folder that `prepare` has made \(.*`prepare --annotated`"
    with pytest.raises(InputError, match=told):
        list_annotated(folder)


def test_no_folder_of_images(folder: Path) -> None:
    shutil.rmtree(folder / "train")
    with pytest.raises(InputError, match=r"no folder .*train"):
        list_annotated(folder)


def test_no_row_lists_nothing(folder: Path) -> None:
    path = folder / "train.csv"
    path.write_text(path.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")
    assert list_annotated(folder) == []
