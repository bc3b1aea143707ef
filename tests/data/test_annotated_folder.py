"""Masks of other programs are read with the pixels that these mean, and paired with their images by what lies there."""

from __future__ import annotations

import bz2
import csv
import io
import json
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from cases import GRID, draw_image
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import full_frames
from skimage.draw import polygon2mask
from test_export_formats import NOTHING, SHAPE, random_cells

from kernel.__main__ import main
from kernel.data.annotated import list_annotated
from kernel.data.annotated_folder import DEFAULT_CELL_TYPE, read_annotated_folder
from kernel.data.mask_files import imagej_rois, rings
from kernel.data.mask_files.cell_masks import read_cell_masks
from kernel.data.mask_files.forms import MASK_FORMS
from kernel.data.mask_files.found import FoundMasks
from kernel.data.mask_files.geojson import read_geojson
from kernel.data.mask_files.imagej_rois import read_imagej_rois
from kernel.data.mask_files.label_arrays import cells_of_labels
from kernel.data.mask_files.label_images import read_label_image
from kernel.data.mask_files.ome_zarr import read_ome_zarr
from kernel.data.mask_files.pairing import pair_masks
from kernel.data.mask_files.rings import fill_rings
from kernel.data.mask_files.seg_npy import ArrayUnpickler, array_or_value, read_seg_npy
from kernel.data.mask_files.taken import TakenPlane
from kernel.data.splits import read_folds, torn_groups
from kernel.errors import InputError
from kernel.export.folder import image_file, image_rows, write_image
from kernel.export.inputs import list_inputs
from kernel.export.kinds import IMAGE_EXPORTS, FoundCells
from kernel.images.gray_matching import matched_grays
from kernel.images.planes import PlaneChoice
from kernel.masks.instances import CellMasks
from kernel.masks.labels import label_image
from kernel.postprocess.outlines import mask_polygons

ROOT = Path(__file__).resolve().parents[2]
#: The exports of `predict` that hold masks.
MASK_EXPORTS = ("labels", "geojson", "rois", "seg-npy", "ome-tiff", "ome-zarr")


def frames_of(found: FoundMasks, shape: tuple[int, int] = SHAPE) -> list[np.ndarray]:
    """The cells' masks (H, W)."""
    frames = []
    for cell in found.cells:
        frame = np.zeros(shape, bool)
        (y, x), (height, width) = cell.offset_yx, cell.crop.shape
        frame[y : y + height, x : x + width] = cell.crop
        frames.append(frame)
    return frames


def grid_labels(side: int = 160) -> np.ndarray:
    """(side, side) uint16: the cells of GRID, numbered."""
    labels = np.zeros((side, side), np.uint16)
    for number, (y, x, height, width) in enumerate(GRID, start=1):
        labels[y : y + height, x : x + width] = number
    return labels


def write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)


def prepared_cells(*words: object) -> dict[str, int]:
    """Run prepare --annotated; how many cells each image then has."""
    *words, out = words
    assert main(["prepare", *map(str, words), "--out", str(out), "--workers", "1"]) == 0
    return {image.image_id: len(image.labels) for image in list_annotated(Path(str(out)))}


@pytest.fixture
def export(tmp_path: Path) -> Callable[[CellMasks, str], Path]:
    """Writes an export of `predict`, and gives the file."""

    def write(masks: CellMasks, name: str) -> Path:
        (tmp_path / IMAGE_EXPORTS[name].folder).mkdir(exist_ok=True)
        image = np.zeros((*SHAPE, 3), np.uint8)
        found = FoundCells(tmp_path / "a.png", "a", image, image, masks)
        write_image(found, [name], tmp_path)
        return image_file(name, "a", tmp_path)

    return write


@pytest.mark.parametrize("seed", range(4))
def test_every_export_is_read_back_pixel_for_pixel(tmp_path: Path, export: Any, seed: int) -> None:
    masks = random_cells(seed)
    write_png(tmp_path / "images" / "a.png", np.zeros(SHAPE, np.uint8))
    expected = sorted(image.tobytes() for image in full_frames(masks))
    for name in MASK_EXPORTS:
        file = export(masks, name)
        source = read_annotated_folder(tmp_path / "images", file.parent, cell_types="cort")
        (image,) = source.images
        from kernel.masks.rle import decode_rle_crop

        found = []
        for cell in image.cells:
            crop, (y, x) = decode_rle_crop(cell.outline, SHAPE)
            frame = np.zeros(SHAPE, bool)
            frame[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
            found.append(frame.tobytes())
        assert sorted(found) == expected, name
    # All of them at once say the same.
    assert len(read_annotated_folder(tmp_path / "images", tmp_path, cell_types="cort").images[0].cells) == len(masks)


def test_an_export_without_cells(tmp_path: Path, export: Any) -> None:
    write_png(tmp_path / "images" / "a.png", np.zeros(SHAPE, np.uint8))
    for name in MASK_EXPORTS:
        folder = export(NOTHING, name).parent
        source = read_annotated_folder(tmp_path / "images", folder)
        assert not source.images and "--keep-empty" in source.dropped_images[0].reason
        (image,) = read_annotated_folder(tmp_path / "images", folder, keep_empty=True).images
        assert image.cells == ()


# Outlines


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1.0, 3.7, 40.0]))
def test_polygons_hold_the_pixels_whose_centres_lie_inside(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    ring = rng.normal(20, scale, (rng.integers(3, 9), 2))
    crop, (y, x) = fill_rings([ring], SHAPE)
    frame = np.zeros(SHAPE, bool)
    frame[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    np.testing.assert_array_equal(frame, polygon2mask(SHAPE, ring[:, ::-1] - 0.5))


def test_outlines_of_many_corners_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at together makes no difference to the pixels, but to the memory: here 800,000 crossings."""
    ring = np.stack([np.linspace(-3, 40, 400), np.where(np.arange(400) % 2, -10, 3000)], axis=1)
    ring = np.concatenate([ring, [[60, 2000], [30, -40]]])
    expected = fill_rings([ring], (2048, 50))
    monkeypatch.setattr(rings, "MOST_CROSSINGS", 1 << 12)
    tracemalloc.start()
    try:
        crop, offset = fill_rings([ring], (2048, 50))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert offset == expected[1]
    np.testing.assert_array_equal(crop, expected[0])
    np.testing.assert_array_equal(crop, polygon2mask((2048, 50), ring[:, ::-1] - 0.5)[:, : crop.shape[1]])


def test_cells_with_a_common_outline_share_no_pixel() -> None:
    left = np.array([[2.5, 3.5], [9.5, 3.5], [6.5, 20.5], [2.5, 20.5]])
    right = np.array([[9.5, 3.5], [15.5, 3.5], [15.5, 20.5], [6.5, 20.5]])
    both = np.array([[2.5, 3.5], [15.5, 3.5], [15.5, 20.5], [2.5, 20.5]])
    one, two, all_of_them = (fill_rings([ring], SHAPE)[0].sum() for ring in (left, right, both))
    assert one + two == all_of_them == 13 * 17


def test_rings_beyond_the_image_and_without_area() -> None:
    assert fill_rings([np.array([[-5, -5], [500, -5], [500, 500], [-5, 500]])], SHAPE)[0].all()
    for ring in ([[100, 100], [120, 100], [120, 130]], [[1, 1], [5, 5]], np.zeros((0, 2))):
        assert fill_rings([np.array(ring, float)], SHAPE)[0].size == 0
    assert fill_rings([], SHAPE)[0].size == 0


# ImageJ


def write_zip(path: Path, rois: list[Any]) -> Path:
    from roifile import roiwrite

    roiwrite(path, rois, name=[f"{number:04}" for number in range(len(rois))], mode="w")
    return path


def test_imagej_shapes(tmp_path: Path) -> None:
    from roifile import ROI_TYPE, ImagejRoi

    corners = np.array([[3, 4], [20, 8], [16, 22], [6, 18]])
    rois, expected = [], []
    for kind in (ROI_TYPE.POLYGON, ROI_TYPE.FREEHAND, ROI_TYPE.TRACED):
        roi = ImagejRoi.frompoints(corners)
        roi.roitype = kind
        rois.append(roi)
        expected.append(polygon2mask(SHAPE, corners[:, ::-1] - 0.5))
    finer = corners + np.array([[0.3, 0.4], [0.1, -0.2], [0.6, 0.7], [-0.9, 0.2]])
    rois.append(ImagejRoi.frompoints(finer.astype(np.float32)))
    expected.append(polygon2mask(SHAPE, finer[:, ::-1] - 0.5))
    rois.append(ImagejRoi(roitype=ROI_TYPE.RECT, left=5, top=6, right=17, bottom=20))
    rectangle = np.zeros(SHAPE, bool)
    rectangle[6:20, 5:17] = True
    expected.append(rectangle)
    rois.append(ImagejRoi(roitype=ROI_TYPE.OVAL, left=5, top=6, right=30, bottom=20))
    ys, xs = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    expected.append(((xs - 17.5) / 12.5) ** 2 + ((ys - 13) / 7) ** 2 < 1)
    found = read_imagej_rois(write_zip(tmp_path / "RoiSet.zip", rois), SHAPE)
    assert found.flaws == () and len(found.cells) == len(expected)
    for frame, mask in zip(frames_of(found), expected, strict=True):
        np.testing.assert_array_equal(frame, mask)


def test_imagej_shapes_without_area_and_of_other_slices_are_named(tmp_path: Path) -> None:
    from roifile import ROI_TYPE, ImagejRoi

    rois = []
    for kind in (ROI_TYPE.POINT, ROI_TYPE.POLYLINE, ROI_TYPE.FREELINE, ROI_TYPE.ANGLE):
        roi = ImagejRoi.frompoints(np.array([[1, 2], [10, 12], [20, 3]]))
        roi.roitype = kind
        rois.append(roi)
    rois.append(ImagejRoi(roitype=ROI_TYPE.RECT, left=5, top=6, right=17, bottom=20, position=3))
    rois.append(ImagejRoi(roitype=ROI_TYPE.RECT, left=5, top=6, right=17, bottom=20, position=1))
    path = write_zip(tmp_path / "rois.zip", rois)
    found = read_imagej_rois(path, SHAPE)
    assert len(found.cells) == 1 and len(found.flaws) == 5
    assert "which has no area" in found.flaws[0][1] and "slice 3" in found.flaws[4][1]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="no readable zip"):
        read_imagej_rois(path, SHAPE)
    (tmp_path / "one.roi").write_bytes(rois[-1].tobytes())
    assert len(read_imagej_rois(tmp_path / "one.roi", SHAPE).cells) == 1
    (tmp_path / "bad.roi").write_bytes(b"Iout" + bytes(10))
    assert len(read_imagej_rois(tmp_path / "bad.roi", SHAPE).flaws) == 1


def zip_that_lies(path: Path, method: int, packed: bytes) -> Path:
    """A zip of one ROI in a few packed bytes, which it says are 10."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.roi", packed)
    content = bytearray(path.read_bytes())
    central = content.index(b"PK\x01\x02")
    for place, size in ((8, 22), (central + 10, central + 24)):  # in the entry's own head, and in the list of all
        struct.pack_into("<H", content, place, method)
        struct.pack_into("<I", content, size, 10)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("method", "pack", "message"),
    [
        (zipfile.ZIP_DEFLATED, lambda data: zlib.compress(data, wbits=-15), "Bad CRC"),
        (zipfile.ZIP_BZIP2, bz2.compress, "another method than deflate"),
    ],
)
def test_no_more_of_a_roi_is_unpacked_than_it_says_it_has(
    tmp_path: Path, method: int, pack: Callable[[bytes], bytes], message: str
) -> None:
    path = zip_that_lies(tmp_path / "a.zip", method, pack(bytes(50 << 20)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match=message):
            read_imagej_rois(path, SHAPE)
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


def test_rois_of_more_bytes_than_outlines_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from roifile import ROI_TYPE, ImagejRoi

    roi = ImagejRoi(roitype=ROI_TYPE.RECT, left=5, top=6, right=17, bottom=20)
    path = write_zip(tmp_path / "a.zip", [roi] * 3)
    size = len(roi.tobytes())
    monkeypatch.setattr(imagej_rois, "LARGEST_ROIS", 3 * size)
    assert len(read_imagej_rois(path, SHAPE).cells) == 3
    monkeypatch.setattr(imagej_rois, "LARGEST_ROIS", 3 * size - 1)
    with pytest.raises(InputError, match="its ROIs are larger"):
        read_imagej_rois(path, SHAPE)
    monkeypatch.setattr(imagej_rois, "LARGEST_ROI", size - 1)
    with pytest.raises(InputError, match="a ROI in it is larger"):
        read_imagej_rois(path, SHAPE)


# GeoJSON


def feature(mask: np.ndarray, **properties: Any) -> dict[str, Any]:
    polygons = mask_polygons(mask)
    geometry = {"type": "MultiPolygon", "coordinates": polygons}
    if len(polygons) == 1:
        geometry = {"type": "Polygon", "coordinates": polygons[0]}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def disc(y: int, x: int, radius: int) -> np.ndarray:
    ys, xs = np.mgrid[: SHAPE[0], : SHAPE[1]]
    return (ys - y) ** 2 + (xs - x) ** 2 <= radius**2


def test_geojson_forms_classes_and_holes(tmp_path: Path) -> None:
    ring = disc(15, 15, 9) & ~disc(15, 15, 4)
    pair = disc(30, 10, 4) | disc(30, 40, 4)
    features = [
        feature(ring, objectType="annotation", classification={"name": "Astro", "colorRGB": -3140401}),
        feature(pair, objectType="annotation", classification={"names": ["cort"], "color": [1, 2, 3]}),
        feature(disc(8, 40, 3), classification="shsy5y"),
        feature(disc(20, 40, 3)),
    ]
    path = tmp_path / "a.geojson"
    for content in ({"type": "FeatureCollection", "features": features}, features):
        path.write_text(json.dumps(content), encoding="utf-8")
        found = read_geojson(path, SHAPE)
        for frame, mask in zip(frames_of(found), [ring, pair, disc(8, 40, 3), disc(20, 40, 3)], strict=True):
            np.testing.assert_array_equal(frame, mask)
        assert [cell.class_name for cell in found.cells] == ["Astro", "cort", "shsy5y", ""]
    path.write_text(json.dumps(features[0]), encoding="utf-8")
    assert len(read_geojson(path, SHAPE).cells) == 1
    write_png(tmp_path / "a.png", np.zeros(SHAPE, np.uint8))
    path.write_text(json.dumps(features), encoding="utf-8")
    (image,) = read_annotated_folder(tmp_path).images
    assert image.cell_type == "shsy5y" and [cell.label for cell in image.cells] == [1, 2, 0, 0]
    (image,) = read_annotated_folder(tmp_path, cell_types="cort").images
    assert image.cell_type == "cort" and {cell.label for cell in image.cells} == {2}


def test_what_is_no_cell_in_geojson_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    region = feature(disc(20, 20, 19), objectType="annotation")
    features = [
        region,
        feature(disc(15, 15, 3), objectType="detection"),
        feature(disc(25, 25, 3), objectType="cell"),
        feature(disc(10, 42, 3), objectType="annotation"),  # drawn by hand, where none was detected
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": None},
        {"type": "Feature", "geometry": None},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1, "a"], [2, 3], [4, 5]]]}},
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[1e400, 1], [2, 3], [4, 5]]]}},
        7,
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[10**400, 1], [2, 3], [4, 5]]]}},
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    found = read_geojson(path, SHAPE)
    assert [cell.place for cell in found.cells] == ["feature 2", "feature 3", "feature 4"]
    assert {place for place, _ in found.flaws} == {"feature 1", *(f"feature {n}" for n in range(5, 11))}
    path.write_text(json.dumps([region]), encoding="utf-8")
    assert len(read_geojson(path, SHAPE).cells) == 1
    for content in ("{", '{"type": "Polygon"}', "[1]", '{"type": "FeatureCollection"}'):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(InputError):
            read_geojson(path, SHAPE)


def test_a_region_around_drawn_cells_is_no_cell(tmp_path: Path, export: Any) -> None:
    """Whether somebody draws a region beside what `predict` found, or around cells of their own."""
    masks = random_cells(1)
    path = export(masks, "geojson")
    drawn = json.loads(path.read_text(encoding="utf-8"))
    cells = [frame for frame in frames_of(read_geojson(path, SHAPE)) if frame.sum() < np.prod(SHAPE) / 4]
    features = [feature(cell, objectType="annotation", classification={"name": "cort"}) for cell in cells]
    assert len(cells) > 3 and {each["properties"]["objectType"] for each in drawn["features"]} == {"annotation"}
    features.insert(1, feature(np.ones(SHAPE, bool), objectType="annotation"))
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), encoding="utf-8")
    found = read_geojson(path, SHAPE)
    assert [frame.tobytes() for frame in frames_of(found)] == [cell.tobytes() for cell in cells]
    ((place, reason),) = found.flaws
    assert place == "feature 2" and f"surrounds {len(cells)} shapes" in reason


def test_cells_over_each_other_are_no_regions(tmp_path: Path) -> None:
    path = tmp_path / "a.geojson"
    far = [disc(3, x, 2) for x in range(3, 48, 6)] + [disc(37, x, 2) for x in range(3, 48, 6)]
    for together in (
        [disc(20, 20, 14), disc(20, 22, 3)],  # one in the other
        [disc(20, 20, 14), disc(20, 13, 8), disc(20, 27, 8)],  # and two that are not far smaller
        [disc(20, 20, 14), disc(20, 14, 3), disc(20, 26, 3), *far],  # a large cell of many lies over two small ones
    ):
        path.write_text(json.dumps([feature(each, objectType="annotation") for each in together]), encoding="utf-8")
        assert len(read_geojson(path, SHAPE).cells) == len(together)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": [], "annotations": [], "categories": []}, r"COCO annotations.*--livecell-annotations"),
        ({"version": "5", "shapes": [], "imagePath": "a.png"}, r"LabelMe's shapes.*--livecell-annotations"),
        ({"exposure": 3}, "FeatureCollection"),
    ],
)
def test_other_json_is_called_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: dict[str, Any], message: str
) -> None:
    write_png(tmp_path / "in" / "a.png", draw_image(0, GRID))
    words = ["prepare", "--annotated", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    path = tmp_path / "in" / "a.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert main(words) == 2
    assert re.search(rf"a\.json: it is no GeoJSON of objects: .*{message}", capsys.readouterr().err)
    path.rename(path.with_name("instances_default.json"))  # as CVAT calls it
    assert main(words) == 2 and "--livecell-annotations" in capsys.readouterr().err


# Label images


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.float32, np.int64])
def test_label_tiffs_of_any_type(tmp_path: Path, dtype: Any) -> None:
    labels = label_image(random_cells(1)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", labels, compression="zlib")
    frames = frames_of(read_label_image(tmp_path / "a.tif", SHAPE))
    assert len(frames) == labels.max()
    for number, frame in enumerate(frames, start=1):
        np.testing.assert_array_equal(frame, labels == number)


def test_labels_are_the_stored_values_whatever_the_palette(tmp_path: Path) -> None:
    from PIL import Image

    labels = label_image(random_cells(2)).astype(np.uint8)
    colours = np.random.default_rng(0).integers(0, 255, (256, 3)).astype(np.uint8)
    picture = Image.fromarray(labels)
    picture.putpalette(colours.ravel().tolist())
    picture.save(tmp_path / "palette.png")
    tifffile.imwrite(
        tmp_path / "palette.tif", labels, photometric="palette", colormap=colours.T.astype(np.uint16) * 257
    )
    tifffile.imwrite(tmp_path / "white.tif", labels, photometric="miniswhite")
    for name in ("palette.png", "palette.tif", "white.tif"):
        frames = frames_of(read_label_image(tmp_path / name, SHAPE))
        assert len(frames) == labels.max()
        np.testing.assert_array_equal(sum(frame * number for number, frame in enumerate(frames, start=1)), labels)


def test_label_values_may_be_anything_but_background() -> None:
    labels = np.zeros((9, 9), np.uint32)
    labels[:3, :3], labels[5:, 5:], labels[0, 8] = 4_000_000_000, 17, 17
    found = cells_of_labels(labels, (9, 9))
    assert [cell.place for cell in found.cells] == ["value 17", "value 4000000000"]
    assert [int(cell.crop.sum()) for cell in found.cells] == [17, 9]
    assert len(cells_of_labels(np.full((4, 5), 3), (4, 5)).cells) == 1
    assert cells_of_labels(np.zeros((4, 5)), (4, 5)).cells == ()
    assert len(cells_of_labels(labels[None, ..., None], (9, 9)).cells) == 2
    assert len(cells_of_labels(np.repeat(labels[..., None], 3, axis=2), (9, 9)).cells) == 2


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((5, 4), int), "it is 5 x 4"),
        (np.full((4, 5), 0.5), "no whole numbers"),
        (np.full((4, 5), np.nan), "no whole numbers"),
        (np.full((4, 5), -3), "negative"),
        (np.eye(4, 5, dtype=np.uint8)[[0, 3, 1, 3]] * 255, "number them"),
        (np.zeros((2, 4, 5), int), "single plane"),
        (np.random.default_rng(0).integers(0, 9, (4, 5, 3)), "colours"),
        (np.zeros(20, int), "single plane"),
    ],
)
def test_what_is_no_label_image_is_refused(labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cells_of_labels(labels, (4, 5))


def numbered_discs() -> np.ndarray:
    """(120, 160) uint8: 12 cells apart from each other."""
    ys, xs = np.mgrid[:120, :160]
    labels = np.zeros((120, 160), np.uint8)
    for number, (y, x) in enumerate(((y, x) for y in (20, 60, 100) for x in (20, 60, 100, 140)), start=1):
        labels[(ys - y) ** 2 + (xs - x) ** 2 < 144] = number
    return labels


def classes_of_pixels() -> dict[str, tuple[np.ndarray, str]]:
    """Pictures that programs export beside label images, of `numbered_discs`; and what is said of each."""
    found = (numbered_discs() > 0).astype(np.uint8)
    inner = cv2.erode(found, np.ones((5, 5)))
    return {
        "cell and border": (found * 2 - inner, "2 values mark 24 pieces, value 1 alone 12"),
        "cell and border as gray levels": (found * 128 + inner * 127, "classes"),
        "smoothed": (cv2.GaussianBlur(found * 255, (5, 5), 0), "shades of a smoothed mask"),
        "Ilastik's 1 and 2": (2 - found, "value 2 covers 73% of the image"),
        "Ilastik's 2 and 1": (1 + found, "value 1 covers 73% of the image"),
        "numbered, on a background of 255": (np.where(found, numbered_discs(), 255), "value 255 covers 73%"),
    }


@pytest.mark.parametrize("what", list(classes_of_pixels()))
def test_classes_of_pixels_are_no_cells(what: str) -> None:
    labels, message = classes_of_pixels()[what]
    with pytest.raises(InputError, match=rf"{message}.*export instance labels"):
        cells_of_labels(labels, labels.shape)


@pytest.mark.parametrize(
    ("cell", "border", "message"),
    [
        (1, 1, "all its 2 pieces have the value 1: .*number them, .*the number 2"),
        (255, 255, "all its 2 pieces have the value 255: .*number them"),
        (255, 128, "2 values mark 4 pieces, .*classes"),
        (1, 2, "2 values mark 4 pieces, .*classes"),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_two_cells_of_one_value_are_no_single_one(cell: int, border: int, message: str, dtype: Any) -> None:
    found = np.isin(numbered_discs(), (1, 7)).astype(np.uint8)
    labels = np.where(cv2.erode(found, np.ones((5, 5))) > 0, cell, found * border).astype(dtype)
    with pytest.raises(InputError, match=message):
        cells_of_labels(labels, labels.shape)
    numbered = np.where(labels > 0, 2, 0)  # a single cell, of any other number, may be in two pieces
    assert len(cells_of_labels(numbered.astype(dtype), labels.shape).cells) == 1


def squares(side: int) -> np.ndarray:
    """(20 side, 20 side) int: side x side cells of 12 x 12, numbered from 1."""
    ys, xs = np.mgrid[: 20 * side, : 20 * side]
    return np.where((ys % 20 < 12) & (xs % 20 < 12), ys // 20 * side + xs // 20 + 1, 0)


@pytest.mark.parametrize("in_8_bits", [lambda labels: labels % 256, lambda labels: np.minimum(labels, 255)])
@pytest.mark.parametrize("side", [17, 19, 40])
def test_more_cells_than_8_bits_number_are_refused(side: int, in_8_bits: Callable[[np.ndarray], np.ndarray]) -> None:
    labels = squares(side)
    assert len(cells_of_labels(labels.astype(np.uint16), labels.shape).cells) == side**2
    with pytest.raises(InputError, match="16 bits"):
        cells_of_labels(in_8_bits(labels).astype(np.uint8), labels.shape)


def test_label_images_of_odd_cells_are_read() -> None:
    labels = numbered_discs()
    labels[8:33, 18:22] = 0  # over the first cell lies another: it is in two pieces
    labels[50:54, 40:80] = 13  # and one over the sixth and beyond its edges
    labels[60, 60], labels[60, 0], labels[0, 60], labels[110, 80] = 5, 5, 5, 5  # single pixels, far away
    labels[0, 159], labels[119, 0], labels[119, 159], labels[80, 80], labels[2, 2] = (
        99,
        99,
        99,
        99,
        99,
    )  # and of these only
    labels[90:110, 112:130] = 11  # touches the twelfth
    assert len(cells_of_labels(labels, labels.shape).cells) == 14
    whole = squares(16)
    whole[whole == 256] = 0
    whole[2:10, 5:8], whole[22:30, 5:8] = 255, 255  # as many as 8 bits number, and three of them in two pieces
    assert len(cells_of_labels(whole.astype(np.uint8), whole.shape).cells) == 255
    one = np.zeros((60, 60), np.uint8)
    one[5:35, 5:35], one[5, 37], one[40, 40] = 1, 1, 1  # the only cell, and specks
    assert len(cells_of_labels(one, one.shape).cells) == 1
    one[40:50, 40:50], one[40:50, 20:29] = 1, 1  # two that are each small beside a clump
    with pytest.raises(InputError, match="number them"):
        cells_of_labels(one, one.shape)
    tiles = np.arange(12).reshape(3, 4).repeat(40, axis=0).repeat(40, axis=1) + 1  # no background
    assert len(cells_of_labels(tiles, tiles.shape).cells) == 12


def test_files_that_are_no_label_images(tmp_path: Path) -> None:
    write_png(tmp_path / "a.jpg", np.zeros(SHAPE, np.uint8))
    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, *SHAPE), np.uint8))
    (tmp_path / "empty.png").touch()
    for name, message in (("a.jpg", "JPEG"), ("stack.tif", "5 pages"), ("empty.png", "empty")):
        with pytest.raises(InputError, match=message):
            read_label_image(tmp_path / name, SHAPE)


def test_odd_ome_zarrs(tmp_path: Path, export: Any) -> None:
    import zarr

    path = export(random_cells(1), "ome-zarr")
    labels = zarr.open_group(str(path), mode="a")["labels"]
    shutil.copytree(path / "labels" / "cells", path / "labels" / "nuclei")
    assert len(read_ome_zarr(path, SHAPE).cells) == len(random_cells(1))
    shutil.move(path / "labels" / "cells", path / "labels" / "other")
    with pytest.raises(InputError, match="several label images"):
        read_ome_zarr(path, SHAPE)
    del labels.attrs["labels"]
    for odd in ("nothing.zarr", "text.zarr"):
        (tmp_path / odd).mkdir()
        (tmp_path / odd / ".zgroup").write_text("{", encoding="utf-8")
        with pytest.raises(InputError, match="no OME-Zarr with labels"):
            read_ome_zarr(tmp_path / odd, SHAPE)
    array = zarr.create_array(str(tmp_path / "array.zarr" / "labels"), shape=SHAPE, dtype="u2")
    array[:] = 1
    with pytest.raises(InputError, match="no OME-Zarr with labels"):
        read_ome_zarr(tmp_path / "array.zarr", SHAPE)


def test_ome_zarr_labels_of_another_shape_are_refused_unread(tmp_path: Path, export: Any) -> None:
    import zarr

    path = export(random_cells(1), "ome-zarr")
    labels = zarr.open_group(str(path / "labels" / "cells"), mode="a", zarr_format=2)
    (place, *_) = (scale["path"] for scale in labels.attrs["multiscales"][0]["datasets"])
    labels.create_array(place, shape=(1 << 31, 1 << 31), chunks=(64, 64), dtype="u1", overwrite=True)
    with pytest.raises(InputError, match=f"it is {1 << 31} x {1 << 31}, and its image {SHAPE[0]} x {SHAPE[1]}"):
        read_ome_zarr(path, SHAPE)


def test_masks_that_do_not_fit_into_the_memory_cost_their_image_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, image_shape: tuple[int, int], _plane: TakenPlane) -> FoundMasks:
        if path.name.startswith("large"):
            raise MemoryError
        return read_label_image(path, image_shape)

    monkeypatch.setitem(MASK_FORMS, "labels", replace(MASK_FORMS["labels"], read=read))
    for name in ("large", "small"):
        write_png(tmp_path / f"{name}.png", draw_image(1, GRID))
        write_png(tmp_path / f"{name}_masks.png", grid_labels())
    source = read_annotated_folder(tmp_path)
    assert [image.image_id for image in source.images] == ["small"]
    (dropped,) = source.dropped_images
    assert dropped.reason == "large_masks.png cannot be read: what it holds does not fit into the memory"


# Cellpose


def save_seg(path: Path, **content: Any) -> Path:
    np.save(path, content, allow_pickle=True)  # type: ignore[arg-type]  (a dict, as Cellpose does it)
    return path


def strokes_around(y: int, x: int, size: int) -> np.ndarray:
    """(N, 4) points of plane, row, column and pen around a square."""
    edge = np.arange(size)
    rows = np.concatenate([0 * edge, edge, 0 * edge + size, size - edge]) + y
    columns = np.concatenate([edge, 0 * edge + size, size - edge, 0 * edge]) + x
    return np.stack([0 * rows, rows, columns, 0 * rows + 1], axis=1)


def test_cellpose_layouts_of_all_times(tmp_path: Path) -> None:
    masks = random_cells(3)
    labels = label_image(masks)
    expected = [frame.tobytes() for frame in full_frames(masks)]
    common = {"outlines": labels, "filename": "a.png", "flows": [[], [], [], [], [[]]], "est_diam": np.float64(3)}
    layouts: Mapping[str, Mapping[str, Any]] = {
        "4": {**common, "masks": labels, "normalize_params": {"lowhigh": None}, "ratio": 1.0, "diameter": None},
        "plane of one": {**common, "masks": labels[None].astype(np.uint32)},
        "background of -1": {**common, "masks": labels.astype(np.int32) - 1},
        "objects of other packages": {**common, "masks": labels, "model": tmp_path, "flows": [Stranger()]},
    }
    for name, content in layouts.items():
        found = read_seg_npy(save_seg(tmp_path / "a_seg.npy", **content), SHAPE)
        assert [frame.tobytes() for frame in frames_of(found)] == expected, name
    np.save(tmp_path / "a_seg.npy", labels)
    assert len(read_seg_npy(tmp_path / "a_seg.npy", SHAPE).cells) == len(masks)
    (tmp_path / "a_seg.npy").write_bytes(numpy_one_pickle(labels))
    assert len(read_seg_npy(tmp_path / "a_seg.npy", SHAPE).cells) == len(masks)


def numpy_one_pickle(labels: np.ndarray) -> bytes:
    """A `_seg.npy` as numpy 1 writes it: its names of modules differ."""
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    array = np.array({"masks": labels, "outlines": labels}, dtype=object)
    return header + pickle.dumps(array, protocol=2).replace(b"numpy._core.", b"numpy.core.")


class Stranger:
    """An object of a package that is not there."""

    def __reduce__(self) -> Any:
        return (print, ("code of the file ran",))


def test_cellpose_outlines_of_the_first_time(tmp_path: Path) -> None:
    outlines = [[[point] for point in strokes_around(3, 4, 8)], [strokes_around(20, 10, 10)], strokes_around(8, 8, 9)]
    outlines += [np.array([[1, 2, 3, 4]]), "none", strokes_around(4, 5, 2)]  # the last one has no pixel left
    path = tmp_path / "a_seg.npy"
    np.save(path, np.array({"outlines": outlines, "colors": []}, dtype=object), allow_pickle=True)
    found = read_seg_npy(path, SHAPE)
    first, second, third, last = frames_of(found)
    assert not last.any() and found.cells[3].crop.size == 0
    assert first[3:12, 4:13].all() and first.sum() == 81 and second[20:31, 10:21].all() and second.sum() == 121
    assert third.sum() == 100 - 4 * 5 and not (third & first).any()
    assert [cell.crop.shape for cell in found.cells[:3]] == [(9, 9), (11, 11), (10, 10)]  # no more is held of a cell
    assert [place for place, _ in found.flaws] == ["outline 4", "outline 5"]


@pytest.mark.parametrize("far", [-1e8, 1e8, -(2.0**33), 2.0**33 + 5])
@pytest.mark.parametrize("column", [1, 2])
def test_strokes_far_outside_the_image_are_named(tmp_path: Path, far: float, column: int) -> None:
    outline = strokes_around(3, 4, 8).astype(float)
    outline[5, column] = far
    near = strokes_around(-3, 4, 8)
    np.save(tmp_path / "a_seg.npy", np.array({"outlines": [outline, near]}, dtype=object), allow_pickle=True)
    found = read_seg_npy(tmp_path / "a_seg.npy", SHAPE)
    assert found.flaws == (("outline 1", "a point of it lies far outside the image"),)
    assert [int(frame.sum()) for frame in frames_of(found)] == [6 * 9]


def test_no_code_of_a_seg_npy_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_seg(tmp_path / "a_seg.npy", masks=Stranger(), outlines=Stranger())
    with pytest.raises(InputError, match="no array of numbers"):
        read_seg_npy(path, SHAPE)
    assert capsys.readouterr().out == ""
    for content in (b"", b"\x93NUMPY\x01\x00", path.read_bytes()[:200], b"\x93NUMPY\x07\x00" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"no readable \.npy file"):
            read_seg_npy(path, SHAPE)
    with pytest.raises(InputError, match="neither masks nor outlines"):
        read_seg_npy(save_seg(path, img=np.zeros(3)), SHAPE)
    stack = np.zeros((4, *SHAPE), np.uint16)
    with pytest.raises(InputError, match="single plane"):
        read_seg_npy(save_seg(path, masks=stack, outlines=stack), SHAPE)


@pytest.mark.parametrize(
    ("protocol", "core"),
    [*((number, b"numpy._core.") for number in range(6)), (2, b"numpy.core."), (3, b"numpy.core.")],
)
def test_arrays_of_all_pickles_are_read(protocol: int, core: bytes) -> None:
    """As numpy 2 and numpy 1 write them."""
    numbers = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    whole = [numbers, numbers.T, numbers[:0], numbers[0, 0, 1], numbers.astype(">i4"), numbers > 3, np.asarray(7.5)]
    whole += [numbers.astype(kind) for kind in ("u1", "i8", "f2", "f8", "c16")]
    listed = np.array([numbers, "text", [1], None], dtype=object)
    content = pickle.dumps([*map(np.asarray, whole), listed, whole[0]], protocol).replace(b"numpy._core.", core)
    *found, objects, again = map(array_or_value, ArrayUnpickler(io.BytesIO(content)).load())
    for array, expected in zip([*found, again, array_or_value(objects[0])], [*whole, numbers, numbers], strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == np.asarray(expected).dtype
    assert objects[1:].tolist() == ["text", [1], None]
    others = [np.array(["text"]), np.array("2020", "M8[D]"), np.zeros(2, "u1,f4")]
    assert not any(map(array_or_value, ArrayUnpickler(io.BytesIO(pickle.dumps(others, protocol))).load()))


#: A dtype of objects that says of itself that it holds none, and numbers in the place of their addresses.
FORGED = b"cnumpy\ndtype\n(\x8c\x02O8\x89\x88tR(K\x03\x8c\x01|NNN\x8a\x01\xff\x8a\x01\xffK\x00tb"
ADDRESS = b"C\x08AAAAAAAA"
#: A record that lies far outside of its bytes.
RECORD = (
    b"cnumpy\ndtype\n(\x8c\x02V8\x89\x88tR(K\x03\x8c\x01|N\x8c\x01f\x85}\x8c\x01fcnumpy\ndtype\n(\x8c\x02u8\x89\x88tR"
    b"\x8a\x08\x00\x00\x00\x00\x00\x01\x00\x00\x86sK\x08K\x01K\x00tb"
)
HOSTILE_PICKLES = [
    *(b"cnumpy\nndarray\n(K\x01\x85" + dtype + ADDRESS + b"tR" for dtype in (FORGED, RECORD)),
    *(
        b"cnumpy._core.numeric\n_frombuffer\n(" + ADDRESS + dtype + b"K\x01\x85\x8c\x01CtR"
        for dtype in (FORGED, RECORD, b"N")
    ),
    *(
        b"cnumpy._core.multiarray\n_reconstruct\n)R(K\x01K\x01\x85" + dtype + b"\x89" + ADDRESS + b"tb"
        for dtype in (FORGED, RECORD, b"N")
    ),
    b"cnumpy._core.multiarray\nscalar\n(" + FORGED + ADDRESS + b"tR",
    b"cnumpy._core.numeric\n_frombuffer\n}\x8c\x08__code__Nsb",
    b"cnumpy._core.numeric\n_frombuffer\nN}\x8c\x08__code__Ns\x86b",
    b"cnumpy\ndtype\n(\x8c\x02u8\x89\x88tR(K\x03K\x05tb",
    b"]\x94h\x00a",  # a list that holds itself
]


def test_no_pickle_makes_arrays_of_other_memory(tmp_path: Path) -> None:
    """In a process of its own: what makes Python's objects of numbers ends it."""
    header = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '|O', 'fortran_order': False, 'shape': (), }".ljust(117) + b"\n"
    for number, content in enumerate(HOSTILE_PICKLES):
        for name in ("masks", "outlines"):
            told = b"\x80\x04}\x8c" + bytes([len(name)]) + name.encode() + content + b"s."
            (tmp_path / f"{number}_{name}_seg.npy").write_bytes(header + told)
    code = (
        "import sys; from pathlib import Path; from kernel.data.mask_files.seg_npy import read_seg_npy\n"
        "from kernel.errors import InputError\n"
        "for path in sorted(Path(sys.argv[1]).iterdir()):\n"
        "    try:\n"
        "        assert not read_seg_npy(path, (4, 4)).cells\n"
        "    except InputError:\n"
        "        print(path.name)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    flawed = {f"{len(HOSTILE_PICKLES) - 1}_outlines_seg.npy"}  # a list of outlines of which each has its flaw
    assert {path.name for path in tmp_path.iterdir()} - set(done.stdout.split()) == flawed


def test_cellpose_reads_our_file(tmp_path: Path, export: Any) -> None:
    cellpose_io = pytest.importorskip("cellpose.io")
    masks = random_cells(4)
    shutil.copyfile(export(masks, "seg-npy"), tmp_path / "a_seg.npy")
    write_png(tmp_path / "a.png", np.zeros(SHAPE, np.uint8))
    names, _ = cellpose_io.get_label_files([str(tmp_path / "a.png")], "_seg.npy")
    told = np.load(names[0], allow_pickle=True).item()
    np.testing.assert_array_equal(told["masks"], label_image(masks))
    # Its own file, made of the same masks, is read as ours is.
    shape = (*SHAPE, 3)
    cellpose_io.masks_flows_to_seg(
        np.zeros(shape, np.uint8), told["masks"], [np.zeros(shape), np.zeros((2, *SHAPE)), np.zeros(SHAPE)],
        str(tmp_path / "b.png"),
    )  # fmt: skip
    for frame, mask in zip(frames_of(read_seg_npy(tmp_path / "b_seg.npy", SHAPE)), full_frames(masks), strict=True):
        np.testing.assert_array_equal(frame, mask)


# Pairing


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.png", "a_masks.tif"),
        ("a.tif", "a_cp_masks.png"),
        ("a.tif", "a_mask.TIF"),
        ("a_img.png", "a_masks.png"),
        ("images/a.png", "masks/a.tif"),
        ("images/a.png", "labels/a.png"),
        ("Images/plate 1/a.png", "Labels/plate 1/a_label.png"),
        ("images/a.ome.tif", "masks/a.tif"),
        ("images/a.png", "masks/a.ome.tif"),
        ("images/a.png", "masks/a.png.tif"),
        ("train/a.png", "train/masks/a.png"),
        ("café.png", "cafe\u0301_masks.png"),
    ],
)
def test_names_that_belong_together(tmp_path: Path, image: str, mask: str) -> None:
    write_png(tmp_path / "in" / image, draw_image(1, GRID))
    write_png(tmp_path / "in" / mask, grid_labels())
    cells = prepared_cells("--annotated", tmp_path / "in", tmp_path / "out")
    assert cells == {Path(image).stem: len(GRID)}


def write_cell_masks(folder: Path, labels: np.ndarray) -> None:
    """A black and white mask for each cell, under names that say nothing."""
    for number in range(1, int(labels.max()) + 1):
        write_png(folder / f"{number * 7919:08x}.png", (labels == number).astype(np.uint8) * 255)


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("{0}/images/{0}.png", "{0}/masks"),  # the Data Science Bowl of 2018
        ("{0}/image.png", "{0}/masks"),
        ("{0}.png", "masks/{0}"),
        ("images/{0}.png", "masks/{0}"),
        ("images/{0}.png", "labels/{0}/masks"),
    ],
)
def test_a_mask_file_for_each_cell(tmp_path: Path, images: str, masks: str, capsys: pytest.CaptureFixture[str]) -> None:
    labels = {"a": grid_labels(), "b": grid_labels() * (grid_labels() < 3)}
    for number, (name, of_image) in enumerate(labels.items()):
        write_png(tmp_path / "in" / images.format(name), draw_image(number, GRID))
        write_cell_masks(tmp_path / "in" / masks.format(name), of_image)
    cells = prepared_cells("--annotated", tmp_path / "in", tmp_path / "out")
    names = {name: Path(images.format(name)).stem.replace("image", f"{name}_image") for name in labels}
    assert cells == {names["a"]: len(GRID), names["b"]: 2}
    assert "2 images with a mask file for each cell" in capsys.readouterr().out
    by_name = {image.image_id: image.masks() for image in list_annotated(tmp_path / "out")}
    for name, of_image in labels.items():
        np.testing.assert_array_equal(label_image(by_name[names[name]]) > 0, of_image > 0)


def test_a_cell_s_mask_file_that_cannot_be_one_is_left_out_by_name(tmp_path: Path) -> None:
    write_cell_masks(tmp_path / "masks", grid_labels())
    write_png(tmp_path / "masks" / "z1.png", grid_labels())
    write_png(tmp_path / "masks" / "z2.png", np.zeros((160, 160), np.uint8))
    write_png(tmp_path / "masks" / "z3.png", np.full((9, 9), 255, np.uint8))
    write_png(tmp_path / "masks" / "z4.png", (grid_labels() > 0).astype(np.uint8) * 255)
    (tmp_path / "masks" / "z5.png").write_bytes(b"\x89PNG")
    found = read_cell_masks(tmp_path / "masks", (160, 160))
    assert len(found.cells) == len(GRID)
    reasons = dict(found.flaws)
    assert list(reasons) == [f"z{number}.png" for number in range(1, 6)]
    assert f"{len(GRID)} values beside 0" in reasons["z1.png"]
    assert "no pixel" in reasons["z2.png"]
    assert "9 x 9" in reasons["z3.png"]
    assert f"in {len(GRID)} pieces" in reasons["z4.png"]


def test_masks_of_other_images_are_not_those_of_the_only_one(tmp_path: Path) -> None:
    """Two images have the folder of masks beside them, so it is nobody's, as before."""
    for number, name in enumerate(("a", "b")):
        write_png(tmp_path / "in" / "images" / f"{name}.png", draw_image(number, GRID))
    write_png(tmp_path / "in" / "masks" / "a.png", grid_labels())
    write_png(tmp_path / "in" / "masks" / "c.png", grid_labels())
    assert prepared_cells("--annotated", tmp_path / "in", tmp_path / "out") == {"a": len(GRID)}
    pairing = pair_masks(tmp_path / "in")
    assert [file.path.name for file in pairing.without_image] == ["c.png"]


def test_masks_of_an_ome_tiff_are_not_those_of_its_plain_neighbour(tmp_path: Path) -> None:
    for number, name in enumerate(("a.tif", "a.ome.tif", "b.ome.tif")):
        write_png(tmp_path / "images" / name, draw_image(number, GRID))
    for name in ("a.ome.tif", "b_masks.ome.tif"):
        write_png(tmp_path / "labels" / name, grid_labels())
    words = ("--annotated", tmp_path / "images", "--masks", tmp_path / "labels")
    assert prepared_cells(*words, tmp_path / "out") == {"a.ome": len(GRID), "b.ome": len(GRID)}
    write_png(tmp_path / "labels" / "a.tif", grid_labels() * (grid_labels() < 3))
    assert prepared_cells(*words, tmp_path / "out") == {"a": 2, "a.ome": len(GRID), "b.ome": len(GRID)}


@pytest.mark.parametrize(("name", "shown"), [("a", "a"), ("a.b", "a_b"), ("a.ome", "a_ome"), ("a.ome", "a.ome")])
def test_masks_of_one_frame_of_many_that_predict_wrote(tmp_path: Path, name: str, shown: str) -> None:
    pixels = [draw_image(number, GRID) for number in range(2)]
    (tmp_path / "in").mkdir()
    is_ome = name.endswith(".ome")
    tifffile.imwrite(
        tmp_path / "in" / f"{name}.tif", np.stack(pixels), imagej=not is_ome, ome=is_ome, metadata={"axes": "TYX"}
    )
    for frame in range(2):
        write_png(tmp_path / "labels" / f"{shown}_t0{frame}.tif", grid_labels() * frame)
    words = ("--annotated", tmp_path / "in", "--masks", tmp_path / "labels", "--frame", "1")
    assert prepared_cells(*words, tmp_path / "out") == {name: len(GRID)}
    (image,) = list_annotated(tmp_path / "out")
    np.testing.assert_array_equal(image.read()[..., 0], pixels[1])


def test_what_was_found_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    for number, name in enumerate(("a", "b", "alone")):
        write_png(folder / "images" / f"{name}.png", draw_image(number, GRID))
    for name in ("a", "b", "lost"):
        write_png(folder / "masks" / f"{name}.png", grid_labels())
    write_png(folder / "originals" / "a.png", draw_image(0, GRID))  # neither an image nor a mask
    assert prepared_cells("--annotated", folder, "--cell-type", "astro", tmp_path / "out") == dict.fromkeys(
        "ab", len(GRID)
    )
    told = capsys.readouterr().out
    assert (
        "pairing: 2 images with label images (a.png with masks/a.png); images without masks: 1; masks without image: 1"
    ) in told
    assert "alone" in told and "lost.png: no image of this name" in told
    assert {image.cell_type for image in list_annotated(tmp_path / "out")} == {"astro"}
    assert not (tmp_path / "out" / "folds.csv").exists()


def test_a_mask_by_its_mark_beside_no_image_of_its_name_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    for number, name in enumerate(("a", "alone")):
        write_png(folder / f"{name}.png", draw_image(number, GRID))
    for name in ("a_masks.png", "lost_masks.png"):
        write_png(folder / name, grid_labels())
    for name in ("lost_rois.zip", "papers.zip", "notes_labels.json"):  # the latter two may be anything
        (folder / name).write_bytes(b"")
    assert prepared_cells("--annotated", folder, tmp_path / "out") == {"a": len(GRID)}
    told = capsys.readouterr().out
    assert "images without masks: 1; masks without image: 2" in told
    assert "lost_masks.png: no image of this name" in told and "papers.zip" not in told


def test_all_that_cellpose_writes_beside_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    write_png(folder / "a.tif", draw_image(0, GRID))
    write_png(folder / "a_cp_masks.png", grid_labels())
    save_seg(folder / "a_seg.npy", masks=grid_labels(), outlines=grid_labels())
    for name in ("a_flows.tif", "a_cp_output.png", "a_outlines.png"):
        write_png(folder / name, draw_image(1, GRID))
    (folder / "a_cp_outlines.txt").write_text("1,2,3,4", encoding="utf-8")
    assert prepared_cells("--annotated", folder, tmp_path / "out") == {"a": len(GRID)}
    assert "images without masks: 0; masks without image: 0" in capsys.readouterr().out


def test_links_to_folders_are_named_as_predict_names_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, place in enumerate(("in/a", "elsewhere/b")):
        write_png(tmp_path / f"{place}.png", draw_image(number, GRID))
        write_png(tmp_path / f"{place}_masks.png", grid_labels())
    (tmp_path / "in" / "plate2").symlink_to(tmp_path / "elsewhere")
    assert list(pair_masks(tmp_path / "in").masks) == ["a"]
    assert "1 entry is passed over: 1 link to a folder (plate2/)" in caplog.text


def test_types_by_folder_by_table_and_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    for number, name in enumerate(("Astro/a", "cort/b", "other/c")):
        write_png(folder / f"{name}.png", draw_image(number, GRID))
        write_png(folder / f"{name}_masks.png", grid_labels())

    def types(*words: object) -> dict[str, str]:
        prepared_cells("--annotated", folder, "--replace", *words, tmp_path / "out")
        return {image.image_id: image.cell_type for image in list_annotated(tmp_path / "out")}

    assert types() == {"a": "astro", "b": "cort", "c": DEFAULT_CELL_TYPE}
    assert f"so they count as {DEFAULT_CELL_TYPE}" in capsys.readouterr().out
    table = tmp_path / "types.csv"
    table.write_text("id,cell_type\na.png,cort\nb,astro\nc,cort\n", encoding="utf-8")
    assert types("--cell-types", table) == {"a": "cort", "b": "astro", "c": "cort"}
    table.write_text("id,cell_type\na,Astro\nb,CORT\nc,astro\n", encoding="utf-8")  # as classes in files of masks
    assert types("--cell-types", table) == {"a": "astro", "b": "cort", "c": "astro"}
    table.write_text("image,cell_type\na,cort\nb,Neuron\n", encoding="utf-8")
    assert types("--cell-types", table) == {"a": "cort"}
    assert "'Neuron'" in capsys.readouterr().out
    (folder / "images.csv").write_text("image,file,cell_type\na,a.png,cort\nc,c.png,astro\n", encoding="utf-8")
    assert types() == {"a": "astro", "b": "cort", "c": "astro"}
    of_plates = "image,file,cell_type\nctrl/c,c.png,astro\ndrug/c,c.png,cort\n"  # nobody knows which one c is
    (folder / "images.csv").write_text(of_plates, encoding="utf-8")
    assert types() == {"a": "astro", "b": "cort", "c": DEFAULT_CELL_TYPE}
    table.write_text("name,cell_type\na,cort\n", encoding="utf-8")
    assert main(["prepare", "--annotated", str(folder), "--cell-types", str(table), "--out", str(tmp_path / "no")]) == 2


@pytest.mark.parametrize(
    ("rows", "flaw"),
    [
        ("a,cort,\nb,astro,\na.png,astro,\n", "row 4: the image a has the cell_type 'astro' here and 'cort' in row 2"),
        ("a,cort,1\nb,astro,\na,cort,2\n", "row 4: the image a has the sample_id '2' here and '1' in row 2"),
        ("a,cort,\nb,astro,\na,Cort,1\na,,\n", ""),
        ("z,cort,1\nb,astro,\nz,astro,1\na,cort,\n", ""),  # none of the images
    ],
)
def test_rows_of_types_that_contradict_each_other_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: str, flaw: str
) -> None:
    for number, name in enumerate(("a", "b")):
        write_png(tmp_path / "in" / f"{name}.png", draw_image(number, GRID))
        write_png(tmp_path / "in" / f"{name}_masks.png", grid_labels())
    table = tmp_path / "types.csv"
    table.write_text(f"id,cell_type,sample_id\n{rows}", encoding="utf-8")
    words = ["prepare", "--annotated", str(tmp_path / "in"), "--cell-types", str(table), "--out", str(tmp_path / "out")]
    assert main([*words, "--workers", "1"]) == (2 if flaw else 0)
    assert flaw in capsys.readouterr().err


def test_wells_are_told_by_names_or_by_the_table_of_types(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing tells an image's well or sample, that is said, and what is advised is possible."""
    wells = [f"shsy5y_{well}-{place}_Vessel-714_Ph_3" for well in ("E10", "E11", "F1") for place in (1, 2, 3)]
    names = [*wells, "alone1", "alone2"]
    folder, out = tmp_path / "in", tmp_path / "out"
    for number, name in enumerate(names):
        write_png(folder / f"{name}.png", draw_image(number, GRID))
        write_png(folder / f"{name}_masks.png", grid_labels())
    words = ("--annotated", folder, "--folds", 3)
    prepared_cells(*words, "--split", "stratified", out)
    assert "sample: nothing says that of 2 of 11 images, so each of these counts by itself\n" in capsys.readouterr().out
    folds = read_folds(out / "folds.csv")
    assert set(folds.values()) == {0, 1, 2}
    assert not torn_groups([image.annotations for image in list_annotated(out)], folds)
    assert all(len({folds[name] for name in wells[start : start + 3]}) == 1 for start in (0, 3, 6))

    group = [str(word) for word in (*words, "--split", "group", "--out", out)]
    assert main(["prepare", *group]) == 2
    advice = "'alone1' is empty, and its name says no plate and well; give samples in a column sample_id of the CSV of "
    assert advice in (told := capsys.readouterr().err) and "choose the split 'stratified', or let the next" in told

    table = tmp_path / "types.csv"
    rows = "".join(f"{name}.png,cort,{'dish 1' if name in names[8:] else ''}\n" for name in names)
    table.write_text(f"id,cell_type,sample_id\n{rows}", encoding="utf-8")
    prepared_cells(*words, "--split", "stratified-group", "--cell-types", table, out)
    assert "sample:" not in capsys.readouterr().out
    folds = read_folds(out / "folds.csv")
    assert len({folds[name] for name in names[8:]}) == 1  # what the table says counts instead of the name
    assert {image.annotations.sample_id for image in list_annotated(out)} == {"", "dish 1"}


def test_types_of_names_that_predict_writes_with_an_apostrophe(tmp_path: Path) -> None:
    names = {"-DOX 1": "cort", "+DOX 1": "astro", "=DOX": "cort", "@1": "astro", "DOX": "cort", "-7": "astro"}
    for number, name in enumerate(names):
        write_png(tmp_path / "images" / f"{name}.png", draw_image(number, GRID))
        write_png(tmp_path / "found" / "labels" / f"{name}.png", grid_labels())
    images = list_inputs([str(tmp_path / "images")], PlaneChoice())
    told = {"height": 160, "width": 160, "cells": 9, "confluence": 0.2, "pixel": None, "zoom": "1", "seconds": 1}
    records = {image.name: {**told, "cell_type": names[image.name]} for image in images}
    table = tmp_path / "found" / "images.csv"
    with table.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows(image_rows(images, records, {}))
    assert "'-DOX 1,'-DOX 1.png," in table.read_text(encoding="utf-8")
    for words in ([], ["--cell-types", table]):
        folders = ["--annotated", tmp_path / "images", "--masks", tmp_path / "found" / "labels"]
        prepared_cells(*folders, *words, tmp_path / "out")
        assert {image.image_id: image.cell_type for image in list_annotated(tmp_path / "out")} == names


#: Of two plates: where the images lie, where their masks do, and what of it --annotated and --masks name.
PLATES = {
    "masks of predict": ("images/{}/A1.png", "runs/plates/labels/{}/A1.tif", "images", "runs/plates/labels"),
    "its results as a whole": ("images/{}/A1.png", "runs/plates/labels/{}/A1.tif", "images", "runs"),
    "masks of predict on the folder around": ("images/{}/A1.png", "found/labels/images/{}/A1.tif", "images", "found"),
    "images in folders of plates": ("p/{}/images/A1.png", "found/labels/{}/images/A1.tif", "p", "found/labels"),
    "deeper images": ("all/plates/{}/A1.png", "found/{}/A1.tif", "all", "found"),
    "one frame": ("images/{}/A1.png", "found/{}/A1_t0.tif", "images", "found"),
    "a folder of masks beside that of images": ("in/images/{}/A1.png", "in/masks/{}/A1.png", "in", None),
    "a folder of masks in each plate": ("in/{}/A1.png", "in/{}/labels/A1.png", "in", None),
    "both folders in each plate": ("in/{}/images/A1.png", "in/{}/masks/A1.png", "in", None),
    "masks beside images": ("in/{}/A1.png", "in/{}/A1_masks.tif", "in", None),
    "Cellpose's names": ("in/{}/A1_img.png", "in/{}/A1_masks.png", "in", None),
    "the folder named that the images are in": ("in/{}/A1.png", "in/{}/A1_masks.tif", "in", "in"),
}


def write_plates(folder: Path, layout: str, cells: Mapping[str, int]) -> list[object]:
    """Write an image for each plate, masks where it is of some cells; the words that `prepare` is given."""
    image, masks, annotated, masks_folder = PLATES[layout]
    for number, (plate, count) in enumerate(cells.items()):
        write_png(folder / image.format(plate), draw_image(number, GRID))
        labels = grid_labels()
        if count:
            write_png(folder / masks.format(plate), np.where(labels <= count, labels, 0).astype(np.uint16))
    words: list[object] = ["--annotated", folder / annotated]
    return [*words, *(["--masks", folder / masks_folder] if masks_folder else [])]


@pytest.mark.parametrize("layout", PLATES)
def test_images_of_one_name_in_several_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str) -> None:
    words = write_plates(tmp_path, layout, {"ctrl": 3, "drug": 5, "neither": 0})
    words += ["--frame", 0] if layout == "one frame" else []
    stem = Path(PLATES[layout][0]).stem
    around = "plates_" if layout == "deeper images" else ""
    names = [f"{around}{plate}_{stem}" for plate in ("ctrl", "drug")]
    out = tmp_path / "out"
    assert prepared_cells(*words, "--folds", 2, "--split", "stratified", out) == dict(zip(names, (3, 5), strict=True))
    told = capsys.readouterr().out
    assert "images without masks: 1; masks without image: 0" in told and f"{around}neither_{stem}" in told
    for number, image in enumerate(list_annotated(out)):
        assert image.path == out / "shown" / f"{image.image_id}.png"
        assert np.array_equal(image.read()[..., 0], draw_image(number, GRID))
        found = np.zeros((160, 160), int)
        for place, frame in enumerate(full_frames(image.masks()), start=1):
            found[frame] = place
        assert np.array_equal(found > 0, (grid_labels() > 0) & (grid_labels() <= (3, 5)[number]))
    assert set(read_folds(out / "folds.csv", names)) == set(names)
    assert prepared_cells(*words, "--folds", 2, "--split", "stratified", out)  # over what is there


def test_types_of_images_of_one_name(tmp_path: Path) -> None:
    words = write_plates(tmp_path, "masks of predict", {"ctrl": 3, "drug": 5})
    write_png(tmp_path / "images" / "drug" / "B2.png", draw_image(7, GRID))
    write_png(tmp_path / "runs" / "plates" / "labels" / "drug" / "B2.tif", grid_labels())
    rows = "image,file,cell_type\nctrl/A1,ctrl/A1.png,cort\ndrug/A1,drug/A1.png,astro\ndrug/B2,drug/B2.png,cort\n"
    (tmp_path / "runs" / "plates" / "images.csv").write_text(rows, encoding="utf-8")
    table = tmp_path / "types.csv"
    table.write_text("id,cell_type\nimages\\drug\\A1.png,cort\nctrl_A1,astro\nB2,astro\n", encoding="utf-8")
    for more, types in (([], ("cort", "astro", "cort")), (["--cell-types", table], ("astro", "cort", "astro"))):
        prepared_cells(*words, *more, tmp_path / "out")
        of_images = {image.image_id: image.cell_type for image in list_annotated(tmp_path / "out")}
        assert of_images == dict(zip(("ctrl_A1", "drug_A1", "B2"), types, strict=True))
    assert {image.path.parent.name for image in list_annotated(tmp_path / "out")} == {"shown", "drug"}


def test_a_folder_of_masks_beside_that_of_the_images_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_png(tmp_path / "images" / "a.png", draw_image(0, GRID))
    words = ["prepare", "--annotated", str(tmp_path / "images"), "--out", str(tmp_path / "out")]
    assert main(words) == 2 and "lies beside it" not in capsys.readouterr().err
    write_png(tmp_path / "masks" / "a.png", grid_labels())
    assert main(words) == 2
    assert f"{tmp_path / 'masks'} lies beside it: --masks names it" in capsys.readouterr().err
    assert main([*words, "--masks", str(tmp_path / "masks")]) == 0


def test_masks_of_another_plate_or_of_none_are_given_to_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where several images have a name, masks are theirs whose folders are called the same."""
    images, masks = tmp_path / "images", tmp_path / "masks"
    for name in ("A1", "ctrl/A1", "drug/A1"):
        write_png(images / f"{name}.png", draw_image(len(name), GRID))
    for number, name in enumerate(("new/A1", "drug/A1")):
        write_png(masks / f"{name}.tif", np.where(grid_labels() > number, grid_labels(), 0).astype(np.uint16))
    words = ["--annotated", images, "--masks", masks]
    assert prepared_cells(*words, "--split", "none", tmp_path / "out") == {"drug_A1": len(GRID) - 1}
    told = capsys.readouterr().out
    assert "A1.tif: several images have this name, and none of them lies in folders called as those of" in told
    write_png(masks / "A1.tif", grid_labels())  # of the image that is in no folder
    assert prepared_cells(*words, "--split", "none", "--replace", tmp_path / "out") == {
        "A1": len(GRID),
        "drug_A1": len(GRID) - 1,
    }
    write_png(images / "ctrl" / "A1.tif", draw_image(1, GRID))
    assert main(["prepare", *map(str, words), "--out", str(tmp_path / "no")]) == 2
    assert "two images have the same name" in capsys.readouterr().err


def test_several_masks_of_one_image_must_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    write_png(folder / "a.png", draw_image(0, GRID))
    write_png(folder / "a_cp_masks.png", grid_labels())
    (folder / "a.json").write_text('{"exposure": 3}', encoding="utf-8")  # of a microscope
    save_seg(folder / "a_seg.npy", masks=grid_labels(), outlines=grid_labels())
    assert prepared_cells("--annotated", folder, tmp_path / "out") == {"a": len(GRID)}
    corrected = grid_labels()
    corrected[corrected == 3] = 0
    save_seg(folder / "a_seg.npy", masks=corrected, outlines=corrected)
    capsys.readouterr()
    assert main(["prepare", "--annotated", str(folder), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "a_seg.npy" in error and "a_cp_masks.png" in error and "--mask-form" in error
    assert prepared_cells("--annotated", folder, "--mask-form", "seg-npy", tmp_path / "out") == {"a": len(GRID) - 1}


def test_the_roi_manager_s_own_name_beside_the_only_image(tmp_path: Path) -> None:
    from roifile import ROI_TYPE, ImagejRoi

    rois = [ImagejRoi(roitype=ROI_TYPE.RECT, left=5, top=6, right=30, bottom=30)]
    for number, name in enumerate("ab"):
        write_png(tmp_path / "in" / name / f"{name}.png", draw_image(number, GRID))
        write_zip(tmp_path / "in" / name / "RoiSet.zip", rois)
    assert prepared_cells("--annotated", tmp_path / "in", tmp_path / "out") == {"a": 1, "b": 1}


def test_a_file_that_cannot_be_used_costs_its_image_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "in"
    for number, name in enumerate("abc"):
        write_png(folder / f"{name}.png", draw_image(number, GRID))
        write_png(folder / f"{name}_masks.png", grid_labels())
    (folder / "b_masks.png").write_bytes(b"nothing")
    write_png(folder / "c_masks.png", grid_labels()[:100])
    assert prepared_cells("--annotated", folder, tmp_path / "out") == {"a": len(GRID)}
    told = capsys.readouterr().out
    assert "b_masks.png: it is no PNG or TIFF" in told and "it is 100 x 160, and its image 160 x 160" in told


@pytest.mark.parametrize(
    "words",
    [
        ("--annotated", "nowhere"),
        ("--annotated", "empty"),
        ("--annotated", "images"),
        ("--annotated", "images", "--masks", "nowhere"),
        ("--annotated", "images", "--mask-form", "rois"),
        ("--annotated", "images", "--cell-types", "neuron"),
        ("--annotated", "images", "--member-pixel-size", "0.65", "--zoom", "1"),
        ("--competition", "images", "--member-pixel-size", "0.65"),
        ("--competition", "images", "--masks", "images"),
        ("--competition", "images", "--cell-type", "astro"),
        ("--pseudo-labels", "s.csv", "--images", "images"),
    ],
)
def test_wrong_words_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    write_png(Path("images/a.png"), draw_image(0, GRID))
    write_png(Path("images/b.png"), draw_image(1, GRID))
    if "--cell-types" in words:
        write_png(Path("images/a_masks.png"), grid_labels())
    assert main(["prepare", *words, "--out", "out"]) == 2
    assert not Path("out").exists()


def test_a_pixel_of_no_size_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "--annotated", str(tmp_path), "--member-pixel-size", "0", "--out", str(tmp_path / "out")])
    assert ended.value.code == 2 and "--member-pixel-size" in (told := capsys.readouterr().err) and "above 0" in told
    assert not (tmp_path / "out").exists()


def test_members_learn_from_what_predict_shows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At half the size of the file's pixels, the image and its cells are half as large, and of the same places."""
    pixels = draw_image(1, GRID)
    labels = grid_labels()
    told = {"axes": "YX", "PhysicalSizeX": 0.62, "PhysicalSizeY": 0.62}
    (tmp_path / "tiff").mkdir()
    tifffile.imwrite(tmp_path / "tiff" / "a.ome.tif", pixels, metadata=told, ome=True)
    write_png(tmp_path / "png" / "a.png", pixels)
    ways = {
        "by-the-file": ("tiff", []),
        "by-size": ("png", ["--pixel-size", "0.62"]),
        "by-zoom": ("png", ["--zoom", "0.5"]),
        "as-it-is": ("png", ["--pixel-size", "1.24"]),
        "nothing-known": ("png", []),
        "for-finer-members": ("tiff", ["--member-pixel-size", "0.62"]),
        "at-the-files-own": ("tiff", ["--zoom", "1"]),
    }
    found = {}
    for name, (folder, words) in ways.items():
        write_png(tmp_path / folder / ("a.ome_masks.png" if folder == "tiff" else "a_masks.png"), labels)
        out = tmp_path / name
        prepared_cells("--annotated", tmp_path / folder, "--cell-type", "cort", *words, out)
        printed = capsys.readouterr().out
        assert ("shown to members by zoom 0.5" in printed) == (name.startswith("by-")), printed
        (found[name],) = list_annotated(out)
        assert (out / "shown").is_dir() == name.startswith("by-")
    assert {name: image.pixel_um for name, image in found.items()} == {
        "by-the-file": 1.24, "by-size": 1.24, "by-zoom": None, "as-it-is": 1.24, "nothing-known": None,
        "for-finer-members": 0.62, "at-the-files-own": 0.62,
    }  # fmt: skip
    for name in ("for-finer-members", "at-the-files-own"):
        assert found[name].path == tmp_path / "tiff" / "a.ome.tif"
    for name in ("as-it-is", "nothing-known"):
        assert found[name].path == tmp_path / "png" / "a.png"
        assert found[name].masks().image_shape == labels.shape
    quarters = np.stack([labels[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    for name in ("by-the-file", "by-size", "by-zoom"):
        image = found[name]
        assert image.path.parent == tmp_path / name / "shown"
        shown = cv2.imread(str(image.path), cv2.IMREAD_GRAYSCALE)
        np.testing.assert_allclose(shown, pixels.reshape(80, 2, 80, 2).mean(axis=(1, 3)), atol=1)
        frames = full_frames(image.masks())
        assert len(frames) == len(GRID)
        for number, frame in enumerate(frames, start=1):
            np.testing.assert_array_equal(frame, (quarters == number).sum(axis=0) >= 2)


@pytest.mark.parametrize("place", ["prepared", "."])
def test_what_was_prepared_among_the_images_is_none_of_them(tmp_path: Path, place: str) -> None:
    """A second run finds what the first has shown beside the images that this was made of."""
    write_png(tmp_path / "a.png", draw_image(1, GRID))
    write_png(tmp_path / "a_masks.png", grid_labels())
    for _ in range(2):
        prepared_cells("--annotated", tmp_path, "--cell-type", "cort", "--zoom", "0.5", tmp_path / place)
        (image,) = list_annotated(tmp_path / place)
        assert image.path == tmp_path / place / "shown" / "a.png"


def test_members_learn_from_the_gray_levels_that_predict_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dim = draw_image(1, GRID) // 4
    write_png(tmp_path / "in" / "dim.png", dim)
    write_png(tmp_path / "in" / "deep.png", dim.astype(np.uint16) * 100)
    for name in ("dim", "deep"):
        write_png(tmp_path / "in" / f"{name}_masks.png", grid_labels())
    words = ("--annotated", tmp_path / "in", "--cell-type", "cort")
    prepared_cells(*words, tmp_path / "as-it-is")
    assert not (tmp_path / "as-it-is" / "shown").exists()
    capsys.readouterr()
    prepared_cells(*words, "--match-gray", tmp_path / "matched")
    assert "shown to members by gray levels that they know: 1 images" in capsys.readouterr().out
    images = {image.image_id: image for image in list_annotated(tmp_path / "matched")}
    assert images["dim"].path == tmp_path / "matched" / "shown" / "dim.png"
    assert images["deep"].path == tmp_path / "in" / "deep.png"
    np.testing.assert_array_equal(images["dim"].read(), matched_grays(np.dstack([dim] * 3)))
    np.testing.assert_allclose(images["dim"].read(), images["deep"].read().astype(float), atol=1)
    assert len(images["dim"].masks()) == len(GRID)


def test_a_plane_of_a_stack_is_prepared_as_predict_took_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = draw_image(1, GRID)
    stack = np.stack([np.zeros_like(pixels), pixels])
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", stack, imagej=True, metadata={"axes": "TYX"})
    write_png(tmp_path / "images" / "a_masks.png", grid_labels())
    words = ["--annotated", tmp_path / "images", "--cell-type", "cort"]
    prepared_cells(*words, "--frame", "1", tmp_path / "second")
    (image,) = list_annotated(tmp_path / "second")
    assert image.path == tmp_path / "second" / "shown" / "a.png"
    np.testing.assert_array_equal(cv2.imread(str(image.path), cv2.IMREAD_GRAYSCALE), pixels)
    depth = np.stack([np.zeros_like(pixels), pixels, np.zeros_like(pixels)])
    tifffile.imwrite(tmp_path / "images" / "a.tif", depth, imagej=True, metadata={"axes": "ZYX"})
    prepared_cells(*words, tmp_path / "middle")  # which predict takes where nothing is said
    (image,) = list_annotated(tmp_path / "middle")
    np.testing.assert_array_equal(cv2.imread(str(image.path), cv2.IMREAD_GRAYSCALE), pixels)
    tifffile.imwrite(tmp_path / "images" / "a.tif", stack, imagej=True, metadata={"axes": "TYX"})
    shown = ["--annotated", tmp_path / "second" / "shown", "--masks", tmp_path / "images", "--zoom", "2"]
    capsys.readouterr()
    assert main(["prepare", *map(str, shown), "--out", str(tmp_path / "second")]) == 2
    assert "is read, and would be lost" in capsys.readouterr().err
    assert main(["prepare", *map(str, words), "--frame", "all", "--out", str(tmp_path / "no")]) == 2
    assert "masks are of one frame each" in capsys.readouterr().err
    assert main(["prepare", *map(str, words), "--frame", "2", "--out", str(tmp_path / "no")]) == 2
    assert "no image is left to prepare" in capsys.readouterr().err
    competition = ["prepare", "--competition", str(tmp_path), "--zoom", "2", "--out", str(tmp_path / "no")]
    assert main(competition) == 2 and "--zoom belongs to --annotated" in capsys.readouterr().err


def test_what_was_shown_stays_where_a_later_preparation_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second frames are one picture, as is known only when all are read: no split parts them."""
    for number, name in enumerate("abc"):
        stack = np.stack([draw_image(number, GRID), draw_image(9, GRID)])
        (tmp_path / "in").mkdir(exist_ok=True)
        tifffile.imwrite(tmp_path / "in" / f"{name}.tif", stack, imagej=True, metadata={"axes": "TYX"})
        write_png(tmp_path / "in" / f"{name}_masks.png", grid_labels())
    out = tmp_path / "out"
    words = ["--annotated", tmp_path / "in", "--cell-type", "cort", "--split", "stratified", "--folds", "3"]
    prepared_cells(*words, "--frame", "0", out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in before} == {
        "annotations.json", "folds.csv", "report.json", "a.png", "b.png", "c.png",
    }  # fmt: skip
    assert main(["prepare", *map(str, words), "--frame", "1", "--out", str(out)]) == 2
    assert "only 1 of the pictures are different, and 3 folds" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    prepared_cells(*words[:-4], "--frame", "1", out)
    assert (out / "shown" / "a.png").read_bytes() == (out / "shown" / "b.png").read_bytes()
    assert {path.name for path in out.iterdir()} == {"annotations.json", "report.json", "shown"}


@pytest.mark.parametrize("axes", ["YXZ", "XY", "ZXY"])
def test_planes_of_other_axes_are_prepared_as_predict_shows_them(tmp_path: Path, axes: str) -> None:
    pixels = draw_image(1, GRID)
    pixels[:, :40] = 0  # it is not the same on its side
    values = {"YXZ": np.dstack([pixels] * 3), "XY": pixels.T, "ZXY": np.stack([pixels.T] * 3)}[axes]
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", values, photometric="minisblack", metadata={"axes": axes})
    write_png(tmp_path / "in" / "a_masks.png", grid_labels())
    prepared_cells("--annotated", tmp_path / "in", "--cell-type", "cort", tmp_path / "out")
    (image,) = list_annotated(tmp_path / "out")
    np.testing.assert_array_equal(image.read()[..., 0], pixels)
    assert len(image.masks()) == len(GRID)


def told_planes(form: str, planes: list[dict[str, int]], path: Path) -> None:
    """Write a square for each plane that it tells, its number as the side: ImageJ's ROIs, or QuPath's GeoJSON."""
    from roifile import ROI_TYPE, ImagejRoi

    if form == "rois":
        boxes = [dict(left=5, top=5, right=5 + side, bottom=5 + side) for side in range(1, len(planes) + 1)]
        rois = [ImagejRoi(roitype=ROI_TYPE.RECT, **box, **plane) for box, plane in zip(boxes, planes, strict=True)]
        write_zip(path / "a.zip", rois)
        return
    squares_of = [np.pad(np.ones((side, side), bool), ((5, 99), (5, 99))) for side in range(1, len(planes) + 1)]
    features = [feature(square, objectType="annotation") for square in squares_of]
    for each, plane in zip(features, planes, strict=True):
        each["geometry"] |= {"plane": {"c": -1, "z": 0, "t": 0, **plane}} if plane else {}
    (path / "a.geojson").write_text(json.dumps(features), encoding="utf-8")


@pytest.mark.parametrize(
    ("axes", "sizes", "words", "form", "planes", "taken"),
    [
        ("ZYX", (5,), [], "rois", [{"position": n} for n in range(6)], [0, 3]),  # 0 tells nothing
        ("ZYX", (5,), ["--z", "0"], "rois", [{"position": n} for n in range(6)], [0, 1]),
        ("ZYX", (5,), ["--frame", "0"], "rois", [{"position": n} for n in range(6)], [0, 1]),
        ("ZYX", (5,), ["--frame", "4"], "geojson", [{"z": z} for z in range(5)] + [{}], [4, 5]),
        ("ZYX", (5,), ["--z", "max"], "rois", [{"position": n} for n in range(7)], [0, 1, 2, 3, 4, 5]),
        ("TYX", (3,), ["--frame", "1"], "rois", [{"position": n} for n in range(4)], [0, 2]),
        ("QYX", (4,), ["--frame", "2"], "rois", [{"position": n} for n in range(5)], [0, 3]),
        ("CYX", (2,), [], "rois", [{"position": n} for n in range(4)], [0, 1, 2]),  # a cell is in each channel
        ("TZCYX", (2, 3, 2), ["--frame", "1"], "rois", [{"position": n} for n in range(13)], [0, 9, 10]),
        (
            "TZCYX", (2, 3, 2), ["--frame", "1", "--channel", "1"], "rois",
            [{"z_position": z, "t_position": t, "c_position": 1} for t in (0, 1, 2) for z in (0, 1, 2, 3)],
            [0, 2, 8, 10],
        ),
        ("TYX", (5,), [], "geojson", [{"t": t} for t in range(5)] + [{}], [0, 5]),
        ("TYX", (5,), ["--frame", "3"], "geojson", [{"t": t} for t in range(5)] + [{}], [3, 5]),
        ("ZYX", (5,), [], "geojson", [{"z": z} for z in range(5)] + [{}], [2, 5]),
        ("TZYX", (2, 3), [], "geojson", [{"z": z, "t": t} for t in (0, 1) for z in range(3)], [1]),
    ],
)  # fmt: skip
def test_shapes_of_the_plane_that_is_taken_count(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    axes: str,
    sizes: tuple[int, ...],
    words: list[str],
    form: str,
    planes: list[dict[str, int]],
    taken: list[int],
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    stack = np.stack([draw_image(1, GRID)] * int(np.prod(sizes))).reshape(*sizes, 160, 160)
    told: dict[str, Any] = (
        {"photometric": "minisblack"} if "Q" in axes else {"imagej": True, "metadata": {"axes": axes}}
    )
    tifffile.imwrite(folder / "a.tif", stack, **told)
    told_planes(form, planes, folder)
    prepared_cells("--annotated", folder, "--cell-type", "cort", *words, tmp_path / "out")
    (image,) = list_annotated(tmp_path / "out")
    assert sorted(image.annotations.masks().sizes.tolist()) == [(place + 1) ** 2 for place in taken]
    printed = capsys.readouterr().out
    left_out = len(planes) - len(taken)
    assert f"cells dropped: {left_out}" in printed or not left_out
    assert ("taken, counted from" in printed) == bool(left_out), printed


def test_a_plane_that_is_none_and_strokes_of_other_planes(tmp_path: Path) -> None:
    square = feature(disc(15, 15, 4))
    for odd in ({"z": "1"}, "1", [0, 1], {"z": 0, "t": 0.5}):
        geometry = square["geometry"] | {"plane": odd}
        (tmp_path / "a.geojson").write_text(json.dumps({**square, "geometry": geometry}), encoding="utf-8")
        assert "whole numbers z and t" in read_geojson(tmp_path / "a.geojson", SHAPE).flaws[0][1]
    outlines = [strokes_around(3, 4, 8) + np.array([plane, 0, 0, 0]) for plane in range(3)]
    np.save(tmp_path / "a_seg.npy", np.array({"outlines": outlines}, dtype=object), allow_pickle=True)
    found = read_seg_npy(tmp_path / "a_seg.npy", SHAPE, TakenPlane(z=(2,), positions=(2,)))
    assert [cell.place for cell in found.cells] == ["outline 3"]
    assert [flaw for _, flaw in found.flaws] == [
        f"it lies on slice {n} of a stack, and 3 is taken, counted from 1 (see --z, --frame)" for n in (1, 2)
    ]
