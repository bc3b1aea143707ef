"""The prepared form: what is written is COCO that pycocotools reads, and comes back as it was."""

from __future__ import annotations

import errno
import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from oracles import full_frames
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from kernel.data.coco_masks import decode_counts, decode_segmentation, parse_counts
from kernel.data.prepared import (
    PREPARED_NAME,
    PreparedDataset,
    PreparedImage,
    encode_cell,
    read_prepared,
    write_prepared,
)
from kernel.data.tables import whole_text
from kernel.errors import InputError, RunError

SHAPE = (9, 12)


def column_major_runs(mask: np.ndarray) -> list[int]:
    """COCO's run lengths, pixel by pixel: down the columns, the first run of zeros."""
    runs, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if int(pixel) != value:
            runs.append(0)
            value = int(pixel)
        runs[-1] += 1
    return runs


def dataset(folder: Path) -> PreparedDataset:
    """Two images, one without cells; one of the three cells has a hole, two overlap."""
    ring = np.ones((4, 5), bool)
    ring[1:3, 1:4] = False
    cells = (
        encode_cell(ring, (2, 3), SHAPE, 1),
        encode_cell(np.ones((1, 1), bool), (8, 11), SHAPE, 0),
        encode_cell(np.ones(SHAPE, bool), (0, 0), SHAPE, 1),
    )
    assert all(cells)
    return PreparedDataset(
        ("shsy5y", "astro"),
        (
            PreparedImage(folder / "z.png", "astro", SHAPE, cells),  # type: ignore[arg-type]
            PreparedImage(folder / "a.png", "shsy5y", SHAPE, (), pixel_um=0.65),
        ),
    )


@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 7))), st.integers(0, 3), st.integers(0, 5))
def test_any_mask_comes_back(crop: np.ndarray, top: int, left: int) -> None:
    cell = encode_cell(crop, (top, left), SHAPE, 2)
    frame = np.zeros(SHAPE, bool)
    frame[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    if not crop.any():
        assert cell is None
        return
    assert cell is not None and cell.label == 2 and cell.area == frame.sum()
    np.testing.assert_array_equal(decode_counts(cell.counts, SHAPE), frame)
    rle = {"size": list(SHAPE), "counts": cell.counts.encode("ascii")}
    assert list(cell.bbox_xywh) == mask_utils.toBbox(rle).tolist()
    slow = mask_utils.frPyObjects({"size": list(SHAPE), "counts": column_major_runs(frame)}, *SHAPE)
    assert slow["counts"].decode("ascii") == cell.counts
    masks = PreparedImage(Path("a.png"), "cort", SHAPE, (cell,)).masks()
    np.testing.assert_array_equal(full_frames(masks)[0], frame)
    np.testing.assert_array_equal(masks.boxes_xyxy[0], masks.windows[0][[1, 0, 3, 2]])


def test_a_dataset_comes_back_and_pycocotools_reads_it(tmp_path: Path) -> None:
    made = dataset(tmp_path / "images")
    write_prepared(tmp_path / "prepared", made, "a test")
    read = read_prepared(tmp_path / "prepared")
    assert read.class_names == made.class_names
    assert read.images == made.images[::-1]  # sorted by name
    coco = COCO(tmp_path / "prepared" / PREPARED_NAME)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(made.class_names)
    (image,) = (entry for entry in coco.imgs.values() if entry["cell_type"] == "astro")
    assert image["file_name"] == "../images/z.png"
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
    frames = full_frames(made.images[0].masks())
    assert len(annotations) == len(frames) == 3
    for annotation, frame in zip(annotations, frames, strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), frame)
        assert annotation["area"] == frame.sum() and annotation["iscrowd"] == 0


def test_holes_that_the_preparation_left_stay(tmp_path: Path) -> None:
    image = dataset(tmp_path).images[0]
    assert image.masks(fill_holes=True).sizes.tolist() == image.masks().sizes.tolist() == [14, 1, 108]


def test_same_data_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    made = dataset(tmp_path)
    write_prepared(tmp_path / "one", made, "a test")
    write_prepared(tmp_path / "two", PreparedDataset(made.class_names, made.images[::-1]), "a test")
    assert (tmp_path / "one" / PREPARED_NAME).read_bytes() == (tmp_path / "two" / PREPARED_NAME).read_bytes()


def test_folders_move_together(tmp_path: Path) -> None:
    write_prepared(tmp_path / "data" / "prepared", dataset(tmp_path / "data" / "images"), "a test")
    shutil.move(tmp_path / "data", tmp_path / "moved")
    (first, _) = read_prepared(tmp_path / "moved" / "prepared").images
    assert first.path == tmp_path / "moved" / "images" / "a.png"


def test_images_that_are_links_keep_their_names(tmp_path: Path) -> None:
    for folder in ("store", "images", "disk/deep"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "store" / "0001.png").touch()
    made = dataset(tmp_path / "images")
    for image in made.images:
        image.path.symlink_to(tmp_path / "store" / "0001.png")
    (tmp_path / "prepared").symlink_to(tmp_path / "disk" / "deep")  # `..` in it is not the link's
    write_prepared(tmp_path / "prepared", made, "a test")
    read = read_prepared(tmp_path / "prepared").images
    assert [image.image_id for image in read] == ["a", "z"]
    assert [image.path for image in read] == [image.path for image in made.images[::-1]]


def test_a_full_disk_is_no_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot write .*No space left"), whole_text(tmp_path / "a.csv") as stream:
        stream.write("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    (tmp_path / PREPARED_NAME).write_text("before")
    broken = PreparedDataset(("a",), (PreparedImage(Path("a.png"), "a", SHAPE, (None,)),))  # type: ignore[arg-type]
    with pytest.raises(AttributeError):
        write_prepared(tmp_path, broken, "a test")
    assert [path.name for path in tmp_path.iterdir()] == [PREPARED_NAME]
    assert (tmp_path / PREPARED_NAME).read_text() == "before"
    with pytest.raises(InputError, match="cannot write"):
        write_prepared(tmp_path / PREPARED_NAME, dataset(tmp_path), "a test")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("images"), "the file has no 'images'"),
        (lambda data: data["categories"][1].update(id=7), "category 2: its id is 7, expected 2"),
        (lambda data: data["images"][0].pop("cell_type"), "image 1 has no 'cell_type'"),
        (lambda data: data["images"][0].update(pixel_size_um=0), "image 1: its pixel_size_um is 0"),
        (lambda data: data["images"][0].update(pixel_size_um="x"), "image 1: could not convert"),
        (lambda data: data["annotations"][1].update(image_id=9), "annotation 2 has no 9"),
        (lambda data: data["annotations"][1].update(category_id=3), "annotation 2: category 3 is not one of the 2"),
        (lambda data: data["annotations"][2].update(bbox=[5, 0, 12, 9]), "annotation 3: its box .* leaves the image"),
        (lambda data: data["annotations"][0].update(segmentation=[[1, 1, 3, 1, 3, 3]]), "annotation 1: "),
        (lambda data: data["annotations"][0]["segmentation"].update(size=[9, 13]), "its size is"),
    ],
)
def test_other_files_are_told(tmp_path: Path, change, message: str) -> None:
    write_prepared(tmp_path, dataset(tmp_path), "a test")
    data = json.loads((tmp_path / PREPARED_NAME).read_text())
    change(data)
    (tmp_path / PREPARED_NAME).write_text(json.dumps(data))
    with pytest.raises(InputError, match=f"{message}"):
        read_prepared(tmp_path)


@pytest.mark.parametrize(("key", "value"), [("area", 13), ("bbox", [3, 2, 5, 3])])
def test_a_mask_that_is_not_what_it_says(tmp_path: Path, key: str, value: object) -> None:
    write_prepared(tmp_path, dataset(tmp_path), "a test")
    data = json.loads((tmp_path / PREPARED_NAME).read_text())
    data["annotations"][0][key] = value
    (tmp_path / PREPARED_NAME).write_text(json.dumps(data))
    with pytest.raises(InputError, match="image 'z', annotation 1: its mask is not the one"):
        read_prepared(tmp_path).images[1].masks()


def test_cells_of_a_large_image_take_little_memory() -> None:
    """A frame for each cell would take 64 MiB and most of the time, for writing and for reading."""
    shape = (8192, 8192)
    tracemalloc.start()
    cell = encode_cell(np.ones((30, 20), bool), (4000, 8172), shape, 0)
    assert cell is not None
    masks = PreparedImage(Path("a.png"), "cort", shape, (cell,)).masks()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert masks.crops[0].shape == (30, 20) and masks.crops[0].all() and most < 8 << 20
    outside = replace(cell, bbox_xywh=(0, 4000, 20, 30))
    with pytest.raises(InputError, match="its mask is not the one"):
        PreparedImage(Path("a.png"), "cort", shape, (outside,)).masks()


def test_no_file_and_no_json(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read prepared annotations"):
        read_prepared(tmp_path)
    for text, message in (("{", "is not JSON"), ("[]", "holds no JSON object")):
        (tmp_path / PREPARED_NAME).write_text(text)
        with pytest.raises(InputError, match=message):
            read_prepared(tmp_path)


@pytest.mark.parametrize("counts", ["", "11", "~~~~", "zzzz9999", "é", " ", "n", "O", "o" * 20 + "0"])
def test_run_lengths_of_no_or_another_image(counts: str) -> None:
    with pytest.raises(InputError, match="run lengths"):
        decode_counts(counts, SHAPE)


def test_run_lengths_of_64_bits_are_the_longest() -> None:
    """What goes on and on would take time with the square of its length."""
    assert parse_counts("P" * 12 + "?") == [15 << 60]
    with pytest.raises(InputError, match="no compressed run lengths"):
        parse_counts("P" * 13 + "0")


def test_run_lengths_are_read_as_pycocotools_writes_them() -> None:
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        mask = np.asfortranarray((rng.random((97, 131)) < density).astype(np.uint8))
        counts = mask_utils.encode(mask)["counts"].decode("ascii")
        flat = mask.ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        expected = np.diff([0, *edges, flat.size]).tolist()
        assert parse_counts(counts) == ([0, *expected] if flat[0] else expected)
        np.testing.assert_array_equal(decode_counts(counts, mask.shape), mask.astype(bool))


def test_three_forms_of_a_segmentation() -> None:
    square = [[2, 1, 6, 1, 6, 4, 2, 4]]  # corners between pixels: columns 2 to 5, rows 1 to 3
    frame = np.zeros(SHAPE, bool)
    frame[1:4, 2:6] = True
    runs = {"size": list(SHAPE), "counts": column_major_runs(frame)}
    compressed = {"size": list(SHAPE), "counts": mask_utils.frPyObjects(runs, *SHAPE)["counts"].decode("ascii")}
    for segmentation in (square, runs, compressed):
        crop, offset = decode_segmentation(segmentation, SHAPE)
        assert crop.shape == (3, 4) and crop.all() and offset == (1, 2)
    two = decode_segmentation([*square, [9, 6, 12, 6, 12, 9, 9, 9]], SHAPE)
    assert two[0].shape == (8, 10) and two[0].sum() == 12 + 9
    assert decode_segmentation([[2, 2, 2, 2, 2, 2]], SHAPE)[0].size == 0


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "a segmentation must be"),
        ([], "a segmentation must be"),
        ([1, 1, 3, 1, 3, 3], "at least three corners, got 1"),
        ([[1, 1, 3, 3]], "at least three corners"),  # pycocotools would take it for a box
        ([[1, 1, 3, 1, 3]], "at least three corners"),
        ([[1, 1, 3, 1, 3, "3"]], "corners are numbers, got '3'"),
        ([[1, 1, float("nan"), 1, 3, 3]], "corners are numbers, got nan"),
        ([[1, 1, 1e9, 1, 3, 3]], "far outside"),  # pycocotools would draw the line in memory
        ({"size": [9, 13], "counts": [117]}, "a segmentation must be"),
        ({"size": [9, 12], "counts": [100]}, "that fill the image of 9 x 12"),
        ({"size": [9, 12], "counts": [-1, 109]}, "that fill the image of 9 x 12"),
    ],
)
def test_no_segmentation(segmentation: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode_segmentation(segmentation, SHAPE)
