"""Each export is read back by the library that defines its format, and is the same, pixel for pixel."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import full_frames
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from kernel.errors import InputError
from kernel.export.coco import coco_cells, coco_file
from kernel.export.formats import MEASUREMENT_COLUMNS
from kernel.export.label_images import is_outline, write_ome_tiff, write_ome_zarr, write_seg_npy
from kernel.export.measurements import measure_cells
from kernel.export.rois import LARGEST_SIDE, write_rois
from kernel.images.pixel_size import PixelSize
from kernel.masks.instances import CellMasks
from kernel.masks.labels import label_image
from kernel.settings import CELL_TYPES

SHAPE = (40, 50)


def random_cells(seed: int, count: int = 6) -> CellMasks:
    """Cells of odd shapes, with holes, pieces that touch at corners, and some on the border; none overlaps another."""
    rng = np.random.default_rng(seed)
    free = np.ones(SHAPE, bool)
    crops, offsets = [], []
    for _ in range(count):
        height, width = rng.integers(1, 14, 2)
        y, x = rng.integers(0, SHAPE[0] - height + 1), rng.integers(0, SHAPE[1] - width + 1)
        crop = (rng.random((height, width)) < 0.7) & free[y : y + height, x : x + width]
        if crop.any():
            free[y : y + height, x : x + width] &= ~crop
            crops.append(crop)
            offsets.append((y, x))
    number = len(crops)
    return CellMasks(
        tuple(crops), np.array(offsets).reshape(-1, 2), np.zeros((number, 4)),
        np.linspace(1, 0.5, number), np.arange(number) % 3, SHAPE, "cort",
    )  # fmt: skip


NOTHING = CellMasks.empty(SHAPE)


def drawn(paths: list[np.ndarray]) -> np.ndarray:
    """(H, W) bool: pixels whose centre lies in an odd number of the rings, as ImageJ fills a path."""
    filled = np.zeros(SHAPE, int)
    ys, xs = np.mgrid[: SHAPE[0], : SHAPE[1]] + 0.5
    for ring in paths:
        for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            if x0 == x1:  # rings run along pixels' edges
                filled += (min(y0, y1) < ys) & (ys < max(y0, y1)) & (xs > x0)
    return filled % 2 == 1


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_imagej_rois_are_read_back_pixel_for_pixel(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    from roifile import roiread

    masks = random_cells(seed)
    path = tmp_path_factory.mktemp("rois") / "RoiSet.zip"
    write_rois(masks, path)
    write_rois(masks, path)  # an earlier one is replaced
    rois = roiread(path)
    assert [roi.name for roi in rois] == [f"cell {number}" for number in range(1, len(masks) + 1)]
    for roi, frame in zip(rois, full_frames(masks), strict=True):
        rings = roi.coordinates(multi=True)
        rings = rings if isinstance(rings, list) else [rings]
        np.testing.assert_array_equal(drawn(rings), frame)


def test_no_cells_and_too_large_an_image(tmp_path: Path) -> None:
    from roifile import roiread

    write_rois(NOTHING, tmp_path / "RoiSet.zip")
    assert roiread(tmp_path / "RoiSet.zip") == []
    with pytest.raises(InputError, match="larger than ImageJ's"):
        write_rois(CellMasks.empty((10, LARGEST_SIDE + 1)), tmp_path / "large.zip")


@pytest.mark.parametrize("masks", [random_cells(3), NOTHING])
def test_ome_tiff_with_the_size_of_its_pixels(tmp_path: Path, masks: CellMasks) -> None:
    write_ome_tiff(masks, tmp_path / "labels.ome.tif", PixelSize(0.65, 0.325, "a test"))
    with tifffile.TiffFile(tmp_path / "labels.ome.tif") as file:
        np.testing.assert_array_equal(file.asarray(), label_image(masks))
        described = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert (described["PhysicalSizeX"], described["PhysicalSizeY"], described["Type"]) == (0.325, 0.65, "uint16")
    write_ome_tiff(masks, tmp_path / "unknown.ome.tif")
    with tifffile.TiffFile(tmp_path / "unknown.ome.tif") as file:
        assert "PhysicalSizeX" not in file.ome_metadata


def test_more_cells_than_sixteen_bits_number() -> None:
    side = 257
    ones = (np.ones((1, 1), bool),) * side**2
    places = np.stack(np.divmod(np.arange(side**2), side), axis=1)
    masks = CellMasks(ones, places, np.zeros((side**2, 4)), np.ones(side**2), np.zeros(side**2), (side, side))
    assert label_image(masks).dtype == np.uint32 and label_image(masks).max() == side**2


@pytest.mark.parametrize("masks", [random_cells(5), NOTHING])
def test_the_file_that_cellpose_corrects(tmp_path: Path, masks: CellMasks) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*SHAPE, 3)).astype(np.uint8)
    write_seg_npy(image, masks, tmp_path / "cells_seg.npy", tmp_path / "cells.png")
    assert [path.name for path in tmp_path.iterdir()] == ["cells_seg.npy"]
    told = np.load(tmp_path / "cells_seg.npy", allow_pickle=True).item()
    np.testing.assert_array_equal(told["masks"], label_image(masks))
    np.testing.assert_array_equal(told["img"][..., ::-1], image)
    assert len(told["ismanual"]) == told["masks"].max() and told["est_diam"] > 0
    inside = told["outlines"] == 0
    for number, frame in enumerate(full_frames(masks), start=1):
        kept = cv2.erode(np.pad(frame.astype(np.uint8), 1), np.ones((3, 3), np.uint8))[1:-1, 1:-1] > 0
        np.testing.assert_array_equal((told["masks"] == number) & inside, kept)
    assert is_outline(np.ones((1, 1), np.uint16)).all()


@pytest.mark.parametrize("masks", [random_cells(7), NOTHING])
@pytest.mark.parametrize("pixel", [None, PixelSize(1.24, 0.62, "a test")])
def test_ome_zarr_with_its_label(tmp_path: Path, masks: CellMasks, pixel: PixelSize | None) -> None:
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    gray = np.random.default_rng(1).integers(0, 255, SHAPE).astype(np.uint8)
    for name, image in (("gray", np.repeat(gray[..., None], 3, axis=2)), ("colour", gray[..., None] // [1, 2, 3])):
        path = tmp_path / f"{name}.ome.zarr"
        write_ome_zarr(image.astype(np.uint8), masks, path, pixel)
        nodes = list(Reader(parse_url(path))())
        image_node, labels_node = nodes[0], next(node for node in nodes if "labels/cells" in str(node))
        np.testing.assert_array_equal(np.asarray(labels_node.data[0]), label_image(masks))
        expected = np.moveaxis(image[..., ::-1] if name == "colour" else image[..., :1], -1, 0)
        np.testing.assert_array_equal(np.asarray(image_node.data[0]), expected)
        scale = image_node.metadata["coordinateTransformations"][0][0]
        assert scale["scale"][1:] == ([pixel.y_um, pixel.x_um] if pixel else [1.0, 1.0])
        assert len(image_node.data) == len(labels_node.data) == 1  # small: there is no smaller copy


@pytest.mark.filterwarnings("error:Scale value not provided", "error:Dimension")
@pytest.mark.parametrize("pixel", [None, PixelSize(1.24, 0.62, "a test")])
def test_an_ome_zarr_label_has_the_levels_of_its_image(tmp_path: Path, pixel: PixelSize | None) -> None:
    import zarr

    for shape, levels in (((5, 300), 1), ((300, 301), 1), ((1030, 1290), 3)):
        crops = (np.ones((5, 200), bool),)
        masks = CellMasks(crops, np.zeros((1, 2), int), np.zeros((1, 4)), [1.0], [0], shape, "cort")
        path = tmp_path / f"{shape}.ome.zarr"
        write_ome_zarr(np.full((*shape, 3), 7, np.uint8), masks, path, pixel)
        group = zarr.open_group(str(path), mode="r")
        of_image, of_labels = (
            [(level["path"], level["coordinateTransformations"][0]["scale"][-2:]) for level in told["datasets"]]
            for told in (each.attrs["multiscales"][0] for each in (group, group["labels/cells"]))
        )
        assert of_image == of_labels and len(of_image) == levels
        for name, _ in of_image:
            small = np.asarray(group[f"labels/cells/{name}"])
            assert group[name].shape[1:] == small.shape and set(np.unique(small)) == {0, 1}  # numbers stay whole


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1))
def test_coco_is_read_back_pixel_for_pixel(seed: int) -> None:
    masks = random_cells(seed)
    told = COCO()
    pairs = (("a.png", NOTHING), ("b.png", masks))
    size = {"height": SHAPE[0], "width": SHAPE[1]}
    told.dataset = coco_file([({"file_name": name, **size}, coco_cells(each)) for name, each in pairs])
    told.createIndex()
    assert [image["file_name"] for image in told.loadImgs([1, 2])] == ["a.png", "b.png"]
    assert told.getAnnIds(imgIds=1) == []
    cells = told.loadAnns(told.getAnnIds(imgIds=2))
    frames = full_frames(masks)
    assert len(cells) == len(masks)
    for cell, frame, label in zip(cells, frames, masks.labels, strict=True):
        np.testing.assert_array_equal(told.annToMask(cell), frame)
        expected = coco_mask.encode(np.asfortranarray(frame.astype(np.uint8)))
        assert cell["segmentation"]["counts"].encode() == expected["counts"]
        assert cell["area"] == frame.sum() and cell["bbox"] == coco_mask.toBbox(expected).tolist()
        assert cell["category_id"] == CELL_TYPES.index("cort") + 1 and cell["cell_label"] == CELL_TYPES[label]


def measured(masks: CellMasks, image: np.ndarray, pixel: PixelSize | None = None) -> list[dict[str, str]]:
    return [dict(zip(MEASUREMENT_COLUMNS, row, strict=True)) for row in measure_cells(masks, image, pixel)]


def test_measurements_of_a_rectangle_and_a_pixel() -> None:
    bar, dot = np.ones((3, 12), bool), np.ones((1, 1), bool)
    masks = CellMasks((bar, dot), np.array([[10, 5], [39, 0]]), np.zeros((2, 4)), [1, 1], [0, 0], SHAPE)
    image = np.zeros((*SHAPE, 3), np.uint8)
    image[10:13, 5:11] = 100
    one, two = measured(masks, image)
    assert (one["orientation_degrees"], one["solidity"], one["on_border"]) == ("0.0", "1.0000", 0)
    assert (one["mean_intensity"], one["intensity_deviation"]) == ("50.00", "50.00")
    assert float(one["equivalent_diameter_px"]) == pytest.approx(2 * (36 / np.pi) ** 0.5, abs=0.01)
    assert float(one["major_axis_px"]) > 4 * float(one["minor_axis_px"]) > 0
    assert two["on_border"] == 1 and float(two["minor_axis_px"]) >= 0
    assert measured(NOTHING, image) == []


def test_shapes_are_those_of_the_cell_where_pixels_are_not_square() -> None:
    """Of the same cell in square pixels: each row of the distorted picture stands for three."""
    rows, columns = np.mgrid[:60, :60] - 29.5
    turned = rows * np.cos(0.5) + columns * np.sin(0.5), columns * np.cos(0.5) - rows * np.sin(0.5)
    whole = (turned[0] / 12) ** 2 + (turned[1] / 24) ** 2 < 1

    def told(crop: np.ndarray, pixel: PixelSize | None) -> tuple[float, float]:
        masks = CellMasks((crop,), np.zeros((1, 2), int), np.zeros((1, 4)), [1], [0], crop.shape)
        (row,) = measured(masks, np.zeros((*crop.shape, 1), np.uint8), pixel)
        return float(row["eccentricity"]), float(row["orientation_degrees"])

    distorted, square = whole[1::3], PixelSize(0.65, 0.65, "a test")
    eccentricity, degrees = told(whole, square)
    assert told(whole, None) == (eccentricity, degrees)
    assert told(distorted, PixelSize(1.95, 0.65, "a test")) == (
        pytest.approx(eccentricity, abs=0.01), pytest.approx(degrees, abs=1),
    )  # fmt: skip
    assert abs(told(distorted, None)[1] - degrees) > 5  # in pixels, for nothing tells that they are not square


def test_intensities_are_of_the_values_as_stored() -> None:
    masks = random_cells(11)
    rng = np.random.default_rng(2)
    eight = rng.integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    gray = cv2.cvtColor(eight, cv2.COLOR_BGR2GRAY)
    for row, again, frame in zip(
        measured(masks, eight), measured(masks, gray[..., None]), full_frames(masks), strict=True
    ):
        expected = f"{gray[frame].mean():.2f}", f"{gray[frame].std():.2f}"
        for each in (row, again):
            assert (each["mean_intensity"], each["intensity_deviation"]) == expected
    deep = eight.astype(np.uint16) * 257
    for row, again in zip(measured(masks, deep), measured(masks, eight), strict=True):
        assert float(row["mean_intensity"]) == pytest.approx(257 * float(again["mean_intensity"]), abs=257)
    small = np.full((*SHAPE, 1), 0.00123456789, np.float32)
    assert {row["mean_intensity"] for row in measured(masks, small)} == {"0.00123457"}
    gaps = np.where(np.arange(SHAPE[1])[:, None] % 2, np.inf, small)
    assert {row["mean_intensity"] for row in measured(masks, gaps)} <= {"0.00123457", ""}
    assert {row["mean_intensity"] for row in measured(masks, np.full_like(small, np.nan))} == {""}


@pytest.mark.parametrize(("turn", "degrees"), [(0, 90.0), (1, 0.0)])
def test_the_orientation_is_that_of_the_long_axis(turn: int, degrees: float) -> None:
    image = np.zeros((*SHAPE, 3), np.uint8)
    bar = np.rot90(np.ones((9, 2), bool), turn)
    slope = np.eye(9, dtype=bool)[::-1]  # up to the right, as the image is shown
    for crop, expected in ((bar, degrees), (slope, 45)):
        masks = CellMasks((crop,), np.array([[4, 4]]), np.zeros((1, 4)), [1], [0], SHAPE)
        (row,) = measured(masks, image)
        assert abs(float(row["orientation_degrees"])) == expected
