"""What people name is found, each image once, and each has a name of its own that every file can be called by."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from kernel.data.mask_files.pairing import pair_masks
from kernel.errors import InputError
from kernel.export.inputs import InputImage, list_inputs, named, same_file
from kernel.files import WRITTEN_NAME
from kernel.images.planes import PlaneChoice

ANY = PlaneChoice()
PNG = cv2.imencode(".png", np.zeros((4, 5), np.uint8))[1].tobytes()


def write(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)


def names(images: list[InputImage]) -> list[str]:
    return [image.name for image in images]


@pytest.fixture
def plates(tmp_path: Path) -> Path:
    home = tmp_path / "plates"
    write(home / "top.png", home / "p1" / "a.png", home / "p1" / "b.png", home / "p2" / "a.png")
    return home


def test_a_file_several_a_folder_and_a_pattern(plates: Path) -> None:
    assert names(list_inputs([str(plates / "p1" / "a.png")], ANY)) == ["a"]
    both = [str(plates / "p2" / "a.png"), str(plates / "p1" / "a.png")]
    assert names(list_inputs(both, ANY)) == ["p2/a", "p1/a"]
    assert names(list_inputs([str(plates)], ANY)) == ["top"]
    assert names(list_inputs([str(plates)], ANY, recursive=True)) == ["p1/a", "p1/b", "p2/a", "top"]
    assert names(list_inputs([str(plates / "p1"), str(plates / "p2")], ANY)) == ["p1/a", "p1/b", "p2/a"]
    assert names(list_inputs([str(plates / "p*" / "a.png")], ANY)) == ["p1/a", "p2/a"]
    assert names(list_inputs([str(plates / "p*")], ANY)) == ["p1/a", "p1/b", "p2/a"]  # folders match as well
    assert names(list_inputs([str(plates / "**" / "*.png")], ANY)) == ["p1/a", "p1/b", "p2/a", "top"]
    assert names(list_inputs([str(plates / "p[2]" / "?.png")], ANY)) == ["a"]


def test_what_is_named_twice_is_taken_once(plates: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(plates)
    given = ["p1/a.png", str(plates / "p1"), "p2/../p1/a.png", "p1/*.png"]
    assert names(list_inputs(given, ANY)) == ["a", "b"]
    assert names(list_inputs(["."], ANY, recursive=True)) == ["p1/a", "p1/b", "p2/a", "top"]


def test_a_path_with_the_signs_of_a_pattern_is_a_path(tmp_path: Path) -> None:
    write(tmp_path / "well[1]" / "a*.png" if os.name == "posix" else tmp_path / "well[1]" / "a.png")
    write(tmp_path / "well1" / "other.png")
    (image,) = list_inputs([str(tmp_path / "well[1]")], ANY)
    assert image.name.startswith("a")
    assert list_inputs([str(image.path)], ANY)[0].path == image.path


def test_the_same_stem_twice_keeps_its_endings(tmp_path: Path) -> None:
    write(
        tmp_path / "a.png", tmp_path / "a.tif", tmp_path / "a.png.jpg", tmp_path / "b.PNG", tmp_path / "sub" / "a.png"
    )
    images = list_inputs([str(tmp_path)], ANY, recursive=True)
    assert {image.file: image.name for image in images} == {
        "a.png": "a.png",
        "a.tif": "a.tif",
        "a.png.jpg": "a.png.jpg",  # its stem is the other's whole name
        "b.PNG": "b",
        "sub/a.png": "sub/a",
    }


def test_masks_beside_their_image_are_no_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they lie there once masks were corrected; the cells of such a file would be called as masks of the image."""
    caplog.set_level(logging.INFO, "kernel")
    masks = [
        "a_masks.tif", "a_cp_masks.png", "cell one_cp_masks.png", "cell one_cp_outlines.png", "well_mask.ome.tif",
        "raw_masks.png", "a.png_labels.tif", "\u00e4_Masks.png",
    ]  # fmt: skip
    images = ["a.png", "b_mask.png", "b.png.jpg", "cell one.tif", "raw_img.png", "a\u0308.png", "well.ome.tif"]
    write(*(tmp_path / name for name in (*masks, *images, "deep/c_masks.png", "deep/a.png")))
    monkeypatch.chdir(tmp_path)
    for named_by in (".", "*"):
        caplog.clear()
        files = {image.file for image in list_inputs([named_by], ANY)}
        assert files >= set(images) and not files.intersection(masks)
        assert f"{len(masks)} with masks or outlines of other images (" in caplog.text
        assert "a_cp_masks.png" in caplog.text
    below = {image.file for image in list_inputs(["."], ANY, recursive=True)}
    assert below == {*images, "deep/c_masks.png", "deep/a.png"}  # c.png is not there
    assert names(list_inputs(["a_masks.tif"], ANY)) == ["a_masks"]
    assert names(list_inputs(["a.png", "a_masks.tif"], ANY)) == ["a", "a_masks"]
    assert names(list_inputs(["a_*masks.*"], ANY)) == ["a_cp_masks", "a_masks"]  # a pattern of masks alone


def test_folders_of_masks_beside_their_images_are_no_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `prepare` takes them; a folder that is merely called so is somebody's."""
    caplog.set_level(logging.INFO, "kernel")
    images = ["images/a.png", "images/b.png", "day2/Images/deep/c_img.png"]
    images += ["plate/labels/a.png", "plate/images/other.png", "plate/sub/masks/other.png", "alone/masks/a.png"]
    masks = ["masks/a.tif", "masks/without_image.tif", "day2/Masks/deep/c_mask.png", "day2/labels/c.ome.tif"]
    write(*(tmp_path / name for name in (*images, *masks)))
    monkeypatch.chdir(tmp_path)
    for named_by in (".", "**/*.*"):
        caplog.clear()
        assert {image.file for image in list_inputs([named_by], ANY, recursive=True)} == set(images)
        told = "3 entries are passed over: 3 folders of masks of the images beside them (day2/Masks/, day2/labels/, "
        assert f"{told}masks/)" in caplog.text
    assert names(list_inputs(["masks"], ANY)) == ["a", "without_image"]
    assert names(list_inputs(["images", "masks"], ANY)) == ["images/a", "images/b", "masks/a", "masks/without_image"]


def test_masks_of_single_cells_are_no_images(tmp_path: Path) -> None:
    """The Data Science Bowl's folder for each image, and a folder of cells for each image; labels may be anything."""
    images = ["x1/images/x1.png", "x2/images/x2.png", "images/a.png", "images/b.png", "x3/images/x3.png"]
    images += ["x3/labels/day1.png"]
    masks = ["x1/masks/7f.png", "x1/masks/80.png", "x2/masks/81.png", "masks/a/1.png", "masks/a/2.png", "masks/b/1.png"]
    write(*(tmp_path / name for name in (*images, *masks)))
    found = list_inputs([str(tmp_path)], ANY, recursive=True)
    assert {image.path for image in found} == {tmp_path / name for name in images}


def test_prepare_finds_the_same_images_where_masks_lie_beside_them(tmp_path: Path) -> None:
    write(*(tmp_path / name for name in ("images/a.png", "images/b.png", "masks/a.png", "masks/b_mask.png")))
    prepared = pair_masks(tmp_path)
    assert set(prepared.masks) == {"a", "b"}
    found = list_inputs([str(tmp_path)], ANY, recursive=True)
    assert {image.path for image in found} == set(prepared.images.values())


FILE_NAMES = st.lists(
    st.sampled_from(["a", "A", "ä", "a\u0308", "a.png", "a.tif", "b/a", "a_t1", "a~2"]).flatmap(
        lambda stem: st.sampled_from([f"{stem}.png", f"{stem}.tif", f"{stem}.PNG"])
    ),
    unique=True,
    max_size=12,
)


@given(files=FILE_NAMES, framed=st.sets(st.integers(0, 11)))
def test_no_two_images_have_the_same_name(files: list[str], framed: set[int]) -> None:
    images = []
    for number, file in enumerate(files):
        frames = range(3) if number in framed else [None]
        images += [InputImage(Path(file), file, "", frame) for frame in frames]
    result = named(images)
    assert len({same_file(image.name) for image in result}) == len(images)
    for image in result:
        assert Path(image.name).parent == Path(image.file).parent
        assert image.frame is None or "." not in Path(image.name).name
    assert named(images) == result


def test_frames_are_images_of_their_own(tmp_path: Path) -> None:
    stack = np.zeros((12, 6, 7), np.uint8)
    tifffile.imwrite(tmp_path / "movie.tif", stack, imagej=True, metadata={"axes": "TYX"})
    write(tmp_path / "still.png", tmp_path / "movie_t03.png")
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    every = PlaneChoice(frame="all")
    images = list_inputs([str(tmp_path)], every)
    frames = [image for image in images if image.path.name == "movie.tif"]
    assert [image.frame for image in frames] == list(range(12))
    assert names(frames)[:3] == ["movie_t00", "movie_t01", "movie_t02"]
    assert frames[3].name == "movie_tif_t03"  # as a file is called as the frame would be
    assert {"still", "broken", "movie_t03.png"} <= set(names(images))
    assert names(list_inputs([str(tmp_path / "movie.tif")], ANY)) == ["movie"]
    tifffile.imwrite(tmp_path / "slices.tif", stack[:3], imagej=True, metadata={"axes": "ZYX"})
    assert names(list_inputs([str(tmp_path / "slices.tif")], every)) == ["slices_t0", "slices_t1", "slices_t2"]
    assert names(list_inputs([str(tmp_path / "slices.tif")], PlaneChoice(z="max", frame="all"))) == ["slices"]


def test_results_inside_the_images_are_no_images(
    plates: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = plates / "out"
    write(out / "pictures" / "top.png", out / "labels" / "top.tif")
    (out / "cells.csv").touch()
    caplog.set_level(logging.INFO, "kernel")
    assert names(list_inputs([str(plates)], ANY, recursive=True, leave_out=[out])) == ["p1/a", "p1/b", "p2/a", "top"]
    assert "cells.csv" not in caplog.text
    monkeypatch.chdir(plates)
    assert names(list_inputs(["**/*.png"], ANY, leave_out=[Path("out")])) == ["p1/a", "p1/b", "p2/a", "top"]


def test_results_of_other_runs_are_no_images(
    plates: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their note tells them; they are told, and taken where they are named."""
    for run in ("run1", "p1/run2"):
        write(plates / run / "pictures" / "top.png", plates / run / "labels" / "top.tif")
        (plates / run / WRITTEN_NAME).touch()
    found = ["p1/a", "p1/b", "p2/a", "top"]
    assert names(list_inputs([str(plates)], ANY, recursive=True)) == found
    assert "2 folders of results (run1/, p1/run2/)" in caplog.text
    monkeypatch.chdir(plates)
    caplog.clear()
    assert names(list_inputs(["**/*.png"], ANY)) == found
    assert "**/*.png: 2 entries are passed over: 2 folders of results (p1/run2/, run1/)" in caplog.text
    assert names(list_inputs(["*"], ANY, recursive=True)) == found
    assert names(list_inputs(["run1/pictures"], ANY)) == names(list_inputs(["run1/**/*.png"], ANY)) == ["top"]
    with pytest.raises(
        InputError, match=r"no image matches 'run\*/\*/\*.png'.*; it holds 1 folder of results \(run1/\)"
    ):
        list_inputs(["run*/*/*.png"], ANY)


def test_a_folder_of_zarr_is_one_image(tmp_path: Path) -> None:
    write(tmp_path / "a.ome.zarr" / "thumbnail.png", tmp_path / "b.png")
    (tmp_path / "a.ome.zarr" / ".zattrs").write_text("{}", encoding="utf-8", newline="\n")
    assert names(list_inputs([str(tmp_path)], ANY, recursive=True)) == ["a.ome", "b"]
    assert names(list_inputs([str(tmp_path)], ANY)) == ["a.ome", "b"]
    assert names(list_inputs([str(tmp_path / "a.ome.zarr")], ANY)) == ["a.ome"]
    assert names(list_inputs([str(tmp_path / "**" / "*.*")], ANY)) == ["a.ome", "b"]


def test_fields_of_a_plate(tmp_path: Path) -> None:
    for field in ("A/1/0", "A/2/0"):
        (tmp_path / "plate.zarr" / field).mkdir(parents=True)
        (tmp_path / "plate.zarr" / field / ".zattrs").write_text("{}", encoding="utf-8", newline="\n")
    (tmp_path / "plate.zarr" / ".zattrs").write_text("{}", encoding="utf-8", newline="\n")
    assert names(list_inputs([str(tmp_path / "plate.zarr" / "*" / "*" / "0")], ANY)) == ["1/0", "2/0"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("gone", "no file or folder gone"),
        ("gone.png", "no file or folder"),
        ("*.png", "no image matches '*.png': 0 file"),
        ("*.txt", "no image matches '*.txt': 1 file"),
        ("empty", "no image in empty: it is empty"),
        ("deep", "--recursive looks into sub-folders"),
        ("", "an empty text"),
    ],
)
def test_what_names_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, told: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "deep" / "er" / "a.png")
    (tmp_path / "notes.txt").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        list_inputs([given], ANY)
    assert told in str(error.value)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX alone")
def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/a\xff.png"))
    try:
        write(path)
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(InputError, match="no text in UTF-8"):
        list_inputs([str(path)], ANY)
