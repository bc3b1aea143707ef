"""Masks for other programs: label images, outlines, the table, and the command that writes them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from kernel.__main__ import main
from kernel.commands.written import WRITTEN_NAME
from kernel.data.synthetic.generate import generate_image
from kernel.errors import InputError
from kernel.export.formats import TABLE_COLUMNS, outlines_of, table_rows, write_labels
from kernel.export.kinds import IMAGE_EXPORTS, RESULT_NAMES, SET_EXPORTS, chosen_exports
from kernel.masks.instances import CellMasks
from kernel.masks.rle import decode_rle_crop
from kernel.postprocess.submitted import read_submission
from kernel.segment import segment_image
from kernel.text import spreadsheet_cell

DEMO = Path(__file__).resolve().parents[1] / "bundle" / "synthetic"


GRAY = np.zeros((8, 10, 3), np.uint8)


def two_cells() -> CellMasks:
    """A plus of five pixels, and two pieces of 1 x 2 and 1 x 1 pixels, in 8 x 10."""
    plus = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)
    pieces = np.array([[1, 1, 0, 1]], bool)
    return CellMasks((plus, pieces), np.array([[1, 2], [6, 5]]), np.zeros((2, 4)), [0.9, 0.5], [2, 0], (8, 10), "cort")


def polygon_area(ring: list[list[float]]) -> float:
    """By the shoelace formula."""
    x, y = np.array(ring).T
    return abs(float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))) / 2


def test_labels_number_the_cells(tmp_path: Path) -> None:
    write_labels(two_cells(), tmp_path / "labels.tif")
    labels = cv2.imread(str(tmp_path / "labels.tif"), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == np.uint16 and labels.shape == (8, 10)
    expected = np.zeros((8, 10), int)
    expected[2, 2:5] = expected[1:4, 3] = 1
    expected[6, [5, 6, 8]] = 2
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(("count", "dtype"), [(2**16 - 1, np.uint16), (2**16, np.float32), (70_000, np.float32)])
def test_a_large_image_has_more_cells_than_sixteen_bits_number(tmp_path: Path, count: int, dtype: type) -> None:
    one = np.ones((1, 1), bool)
    offsets = np.stack([np.zeros(count), np.arange(count)], axis=1)
    masks = CellMasks((one,) * count, offsets, np.zeros((count, 4)), np.ones(count), np.zeros(count), (1, count))
    write_labels(masks, tmp_path / "labels.tif")
    labels = cv2.imread(str(tmp_path / "labels.tif"), cv2.IMREAD_UNCHANGED)
    assert labels.dtype == dtype
    np.testing.assert_array_equal(labels[0], np.arange(1, count + 1))


def test_outlines_lie_around_the_pixels() -> None:
    plus, pieces = outlines_of(two_cells())["features"]
    assert plus["geometry"]["type"] == "Polygon" and pieces["geometry"]["type"] == "MultiPolygon"
    for cell, label in ((plus, "cort"), (pieces, "shsy5y")):  # the image's type, and what each cell looks like alone
        assert cell["properties"]["classification"] == {"name": "cort"}
        assert cell["properties"]["metadata"] == {"cell_label": label}
    assert plus["properties"]["measurements"] == {"score": 0.9, "area_px": 5}
    (ring,) = plus["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    assert np.min(ring, axis=0).tolist() == [2, 1] and np.max(ring, axis=0).tolist() == [5, 4]
    assert len(ring) == 13 and polygon_area(ring) == 5
    rings = [[[5, 6], [7, 6], [7, 7], [5, 7], [5, 6]], [[8, 6], [9, 6], [9, 7], [8, 7], [8, 6]]]
    assert pieces["geometry"]["coordinates"] == [[ring] for ring in rings]


def test_holes_of_outlines_are_rings_of_their_own() -> None:
    crop = np.ones((3, 4), bool)
    crop[1, 1] = False
    masks = CellMasks((crop,), np.array([[2, 1]]), np.zeros((1, 4)), [0.9], [1], (8, 10))
    (feature,) = outlines_of(masks)["features"]
    exterior = [[1, 2], [5, 2], [5, 5], [1, 5], [1, 2]]
    hole = [[2, 3], [2, 4], [3, 4], [3, 3], [2, 3]]
    assert feature["geometry"] == {"type": "Polygon", "coordinates": [exterior, hole]}
    assert feature["properties"]["measurements"]["area_px"] == 11


def test_the_table() -> None:
    first, second = table_rows("image", two_cells(), GRAY)
    assert len(first) == len(TABLE_COLUMNS)
    assert first[:12] == ["image", 1, "cort", "cort", "0.9000", 5, "3.50", "2.50", 2, 1, 5, 4]
    assert second[:6] == ["image", 2, "cort", "shsy5y", "0.5000", 3] and second[8:12] == [5, 6, 9, 7]


def test_the_box_in_the_table_is_that_of_the_pixels() -> None:
    """A mask keeps its crop where a better one has taken its pixels."""
    crop = np.zeros((4, 6), bool)
    crop[1:3, 2:4] = True
    masks = CellMasks((crop,), np.array([[10, 20]]), np.zeros((1, 4)), [0.9], [0], (40, 50))
    (row,) = table_rows("image", masks, np.zeros((40, 50, 3), np.uint8))
    assert row[6:12] == ["23.00", "12.00", 22, 11, 24, 13]


def test_no_cells(tmp_path: Path) -> None:
    nothing = CellMasks.empty((5, 6))
    write_labels(nothing, tmp_path / "labels.tif")
    assert not cv2.imread(str(tmp_path / "labels.tif"), cv2.IMREAD_UNCHANGED).any()
    assert outlines_of(nothing)["features"] == [] and table_rows("image", nothing, GRAY) == []


def test_a_name_too_long_for_what_is_written_is_shortened(wheels_site: Path, tmp_path: Path) -> None:
    """With .geojson it has more than the 255 bytes that file systems take; the table has the whole name."""
    (tmp_path / "images").mkdir()
    names = ("a", "n" * 250, "n" * 249 + "m", "\u00fc" * 125)
    picture = cv2.imencode(".png", generate_image("cort", 3, (96, 128)).image)[1].tobytes()
    for name in names:
        (tmp_path / "images" / f"{name}.png").write_bytes(picture)
    words = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights")]
    out = tmp_path / "masks"
    assert main(["predict", str(tmp_path / "images"), "--out", str(out), *words]) == 0
    for folder, ending in (("labels", ".tif"), ("outlines", ".geojson"), ("pictures", ".png")):
        written = {path.name.removesuffix(ending) for path in (out / folder).iterdir()}
        assert len(written) == 4 and "a" in written and all(len(name.encode()) <= 247 for name in written)
        assert len({name.partition("~")[2] for name in written}) == 4
    with (out / "cells.csv").open(encoding="utf-8", newline="") as stream:
        assert {row["image"] for row in csv.DictReader(stream)} == set(names)


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "-1+1", "@SUM(A1)", "\t=1", "\n=1", "\r=1"])
def test_what_a_spreadsheet_would_compute_is_text(name: str) -> None:
    assert spreadsheet_cell(name) == f"'{name}"
    assert [spreadsheet_cell(other) for other in ("a=1", "", "7", "+1", "'=1")] == ["a=1", "", "7", "+1", "'=1"]


def test_the_command(wheels_site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "cells.png"), generate_image("cort", 3, (128, 160)).image)
    (images / "broken.tif").write_bytes(b"II*\0")
    words = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights")]
    out = tmp_path / "masks"
    assert main(["predict", str(images), "--out", str(out), *words]) == 2
    assert "1 image(s) could not be read and are not there: broken" in capsys.readouterr().err
    rows = list(csv.DictReader((out / "cells.csv").open(encoding="utf-8")))
    labels = cv2.imread(str(out / "labels" / "cells.tif"), cv2.IMREAD_UNCHANGED)
    outlines = json.loads((out / "outlines" / "cells.geojson").read_text(encoding="utf-8"))
    assert len(rows) == labels.max() == len(outlines["features"]) > 0
    assert [int(row["area_px"]) for row in rows] == [int((labels == n + 1).sum()) for n in range(len(rows))]
    assert (out / "pictures" / "cells.png").is_file()

    (out / "mine.txt").touch()
    assert main(["predict", str(images), "--out", str(out), *words]) == 2
    assert "holds other files (mine.txt)" in capsys.readouterr().err and (out / "mine.txt").exists()


@pytest.mark.parametrize("stage", ["kernel.scale.segment_image", "kernel.export.folder.table_rows"])
def test_a_failing_image_costs_only_itself(
    wheels_site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    """The second of two images fails, in the network or after its files were written."""
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), generate_image("cort", 3, (96, 128)).image)
    original = segment_image if stage.endswith("segment_image") else table_rows
    calls = []

    def fail_second(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("an unlucky image")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(stage, fail_second)
    words = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights")]
    out = tmp_path / "masks"
    assert main(["predict", str(tmp_path / "images"), "--out", str(out), *words]) == 1
    told = capsys.readouterr().err
    assert "failed: 1 image(s) are not there, b for no fault of theirs" in told and "an unlucky image" in told
    assert [path.name for path in sorted(out.rglob("*.*"))] == [
        WRITTEN_NAME,
        "cells.csv",
        "images.csv",
        "a.tif",
        "a.geojson",
        "a.png",
    ]
    assert {row["image"] for row in csv.DictReader((out / "cells.csv").open(encoding="utf-8"))} == {"a"}


def test_everything_that_can_be_written(wheels_site: Path, tmp_path: Path) -> None:
    """One run, each kind: what they say of the cells is the same."""
    import roifile
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader
    from pycocotools.coco import COCO

    (tmp_path / "images").mkdir()
    shapes = {"cort": (96, 128), "nothing": (50, 70)}
    cell_image = generate_image("cort", 3, shapes["cort"]).image
    for name, image in (("cort", cell_image), ("nothing", np.full(shapes["nothing"], 128, np.uint8))):
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), image)
    (tmp_path / "images" / "broken.png").write_bytes(b"none")
    kinds = (*IMAGE_EXPORTS, *SET_EXPORTS)
    out = tmp_path / "out"
    words = ["--manifest", str(DEMO / "manifest.json"), "--weights-dir", str(DEMO / "weights"), "--device", "cpu"]
    given = ["predict", str(tmp_path / "images"), "--out", str(out), "--export", ",".join(kinds), *words]
    assert main(given) == 2  # for the broken one
    assert sorted(path.name for path in out.iterdir()) == sorted({*RESULT_NAMES, WRITTEN_NAME})
    for name, shape in shapes.items():
        labels = cv2.imread(str(out / "labels" / f"{name}.tif"), cv2.IMREAD_UNCHANGED)
        assert labels.shape == shape and bool(labels.max()) == (name == "cort")
        np.testing.assert_array_equal(tifffile.imread(out / "ome-tiff" / f"{name}.ome.tif"), labels)
        told = np.load(out / "seg-npy" / f"{name}_seg.npy", allow_pickle=True).item()
        np.testing.assert_array_equal(told["masks"], labels)
        nodes = list(Reader(parse_url(out / "ome-zarr" / f"{name}.ome.zarr"))())
        node = next(node for node in nodes if "labels/cells" in str(node))
        np.testing.assert_array_equal(np.asarray(node.data[0]), labels)
        assert len(roifile.roiread(out / "rois" / f"{name}.zip")) == labels.max()
        found = read_submission(out / "submission.csv")[name]
        assert len(found) == labels.max()
        for number, rle in enumerate(found, start=1):
            crop, (y, x) = decode_rle_crop(rle, shape)
            np.testing.assert_array_equal(crop, labels[y : y + crop.shape[0], x : x + crop.shape[1]] == number)
    coco = COCO(str(out / "coco.json"))
    assert [image["file_name"] for image in coco.loadImgs(coco.getImgIds())] == ["cort.png", "nothing.png"]
    labels = cv2.imread(str(out / "labels" / "cort.tif"), cv2.IMREAD_UNCHANGED)
    for number, cell in enumerate(coco.loadAnns(coco.getAnnIds(imgIds=1)), start=1):
        np.testing.assert_array_equal(coco.annToMask(cell) == 1, labels == number)
    assert coco.getAnnIds(imgIds=2) == [] and read_submission(out / "submission.csv")["broken"] == []
    rows = {row["image"]: row for row in csv.DictReader((out / "images.csv").open(encoding="utf-8", newline=""))}
    assert rows["cort"]["cells"] == str(labels.max()) and rows["cort"]["cell_type"] == "cort"
    assert float(rows["cort"]["confluence"]) == pytest.approx((labels > 0).mean(), abs=1e-4)
    assert "broken.png" in rows["broken"]["failure"] and rows["broken"]["cells"] == ""
    assert main(given) == 2  # an earlier result is replaced


@pytest.mark.parametrize(
    ("text", "told"), [("labels,masks", "masks is not one of labels, geojson"), (" , ", "nothing")]
)
def test_an_export_that_there_is_not(text: str, told: str) -> None:
    with pytest.raises(InputError) as error:
        chosen_exports(text)
    assert told in str(error.value)


def test_an_export_that_needs_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert chosen_exports("coco, labels,labels") == ("labels", "coco")
    with pytest.raises(InputError, match="pip install scikit-image"):
        chosen_exports("tables")
    with pytest.raises(InputError, match="pip install ome-zarr"):
        chosen_exports("ome-zarr")
