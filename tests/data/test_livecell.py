"""LIVECell's COCO files, and others in their form: every cell prepared, or dropped by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from oracles import full_frames
from prepared_frames import assert_every_row_is_told, assert_same_frames, frames_of
from pycocotools import mask as mask_utils
from scipy.ndimage import binary_fill_holes
from test_export_formats import SHAPE, random_cells

from kernel.__main__ import main
from kernel.data.annotated import list_annotated
from kernel.data.livecell import LIVECELL_CLASSES, read_livecell
from kernel.data.prepare import prepare
from kernel.data.prepare_report import PrepareReport
from kernel.data.prepared import read_prepared
from kernel.data.sources import Source
from kernel.errors import InputError
from kernel.export.coco import coco_cells, coco_file
from kernel.settings import CELL_TYPES

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def livecell_json(tmp_path: Path, name: str = "coco.json") -> Path:
    """Three images in sub-folders, with annotations of every kind; their pixels are 6 x 10."""
    images = ["BT474_Phase_D3_1_02d16h00m_1.tif", "SkBr3_Phase_G3_2_00d16h00m_4.tif", "other.tif"]
    for number, file_name in enumerate(images):
        path = tmp_path / "images" / f"part{number}" / file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.arange(60, dtype=np.uint8).reshape(6, 10))
    square = [[2, 1, 6, 1, 6, 4, 2, 4]]
    annotations = [
        {"id": 1, "image_id": 10, "category_id": 4, "segmentation": square, "iscrowd": 0},
        {"id": 2, "image_id": 10, "category_id": 4, "segmentation": {"size": [6, 10], "counts": [0, 60]}, "iscrowd": 1},
        {"id": 3, "image_id": 20, "category_id": 4, "segmentation": square},
        {"id": 4, "image_id": 20, "category_id": 2, "segmentation": {"size": [6, 10], "counts": [7, 2, 51]}},
        {"id": 5, "image_id": 30, "category_id": 9, "segmentation": square, "iscrowd": 0},
        {"id": 6, "image_id": 30, "category_id": 4, "segmentation": square, "iscrowd": 0},
        {"id": 7, "image_id": 99, "category_id": 4, "segmentation": square, "iscrowd": 0},
        {"id": 8, "image_id": 10, "category_id": 5, "segmentation": square, "iscrowd": 0},
        {"id": 9, "image_id": 10, "category_id": 4, "segmentation": [[1, 2, 3]], "iscrowd": 0},
        {"id": 10, "image_id": 10, "category_id": 4, "segmentation": [[2, 2, 2, 2, 2, 2]], "iscrowd": 0},
        {"id": 11, "image_id": 40, "category_id": 4, "segmentation": square, "iscrowd": 0},
    ]
    data = {
        "images": [
            {"id": (number + 1) * 10, "file_name": name, "height": 6, "width": 10}
            for number, name in enumerate([*images, "MCF7_Phase_A1_1_00d00h00m_1.tif"])
        ],
        "categories": [
            {"id": 4, "name": "cell"},
            {"id": 2, "name": "SHSY5Y"},
            {"id": 9, "name": "a172"},
            {"id": 5, "name": "yeast"},
        ],
        "annotations": annotations,
    }
    path = tmp_path / name
    path.write_text(json.dumps(data))
    return path


def test_livecell_by_hand(tmp_path: Path) -> None:
    source = read_livecell([livecell_json(tmp_path)], tmp_path / "images")
    report = prepare(source, tmp_path / "out", split=None)
    dataset = read_prepared(tmp_path / "out")
    assert dataset.class_names == LIVECELL_CLASSES
    assert LIVECELL_CLASSES == ("skbr3", "a172", "huh7", "bv2", "mcf7", "bt474", "skov3", "shsy5y")
    data = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert [(one["id"], one["name"]) for one in data["categories"]] == list(enumerate(LIVECELL_CLASSES, start=1))
    assert {one["iscrowd"] for one in data["annotations"]} == {0}
    square = np.zeros((6, 10), bool)
    square[1:4, 2:6] = True
    runs = np.zeros((6, 10), bool)
    runs[1:3, 1] = True  # column-major: pixels 7 and 8, from 0
    found = {image.image_id: image for image in dataset.images}
    bt474, skbr3, other = (found[key] for key in sorted(found))
    assert (bt474.cell_type, skbr3.cell_type, other.cell_type) == ("bt474", "skbr3", "a172")
    assert [image.masks().labels.tolist() for image in (bt474, skbr3, other)] == [[5], [0, 7], [1]]
    np.testing.assert_array_equal(full_frames(bt474.masks()), [square])
    np.testing.assert_array_equal(full_frames(skbr3.masks()), [square, runs])
    told = {cell.place: cell.reason for cell in report.dropped_cells}
    assert set(told) == {"annotation 2", "annotation 6", "annotation 7", "annotation 8", "annotation 9"}
    for place, reason in (
        ("annotation 2", "a crowd, not a cell"),
        ("annotation 6", "begins with none of skbr3"),
        ("annotation 7", "its image (99) is not among those of coco.json"),
        ("annotation 8", "its category is 'yeast'"),
        ("annotation 9", "three corners"),
    ):
        assert reason in told[place]
    assert [cell.place for cell in report.empty_masks] == ["annotation 10"]
    (lost,) = report.dropped_images
    assert (lost.image_id, lost.rows) == ("MCF7_Phase_A1_1_00d00h00m_1", 1) and "no image of this name" in lost.reason
    assert_every_row_is_told(report)


def test_livecell_files_that_repeat_and_images_found_twice(tmp_path: Path) -> None:
    one, two = livecell_json(tmp_path), livecell_json(tmp_path, "again.json")
    report = prepare(read_livecell([one, two], tmp_path / "images"), tmp_path / "out", split=None)
    assert (report.images, report.cells, report.rows_read) == (3, 4, 22)
    assert sum("once more" in image.reason for image in report.dropped_images) == 4
    assert_every_row_is_told(report)
    shutil.copytree(tmp_path / "images" / "part0", tmp_path / "images" / "copy")
    source = read_livecell([one], tmp_path / "images")
    assert any("two images have this name" in image.reason for image in source.dropped_images)


def images_of_plates(tmp_path: Path, names: list[str]) -> tuple[Path, Path]:
    """A COCO file of images of plates, each with a cell of its own width, and the folder of the plates' images."""
    for number, name in enumerate(("ctrl", "drug")):
        path = tmp_path / "plates" / name / "A1.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), np.full((6, 10), number, np.uint8))
    records = [{"id": number, "file_name": name, "height": 6, "width": 10} for number, name in enumerate(names)]
    cells = [
        {
            "id": number,
            "image_id": number,
            "category_id": 1,
            "segmentation": {"size": [6, 10], "counts": [0, n, 60 - n]},
        }
        for number, n in enumerate(range(6, 60, 6)[: len(names)])
    ]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": records, "annotations": cells, "categories": [{"id": 1, "name": "astro"}]}))
    return path, tmp_path / "plates"


@pytest.mark.parametrize(
    ("names", "area", "dropped"),
    [
        (["ctrl/A1.png", "drug/A1.png"], 12, ["ctrl/A1"]),
        (["A1.png", "plates\\drug/A1.png", "./drug/A1.png"], 12, ["A1", "drug/A1"]),
        (["/data/ctrl/A1.png", "/data/drug/A1.png"], 0, ["data/ctrl/A1", "data/drug/A1"]),
        (["elsewhere/A1.png"], 6, []),
    ],
)
def test_an_image_has_the_cells_of_its_own_plate(
    tmp_path: Path, names: list[str], area: int, dropped: list[str]
) -> None:
    path, plates = images_of_plates(tmp_path, names)
    source = read_livecell([path], plates / "drug")
    assert [image.image_id for image in source.dropped_images] == dropped
    assert [image.rows for image in source.dropped_images] == [1] * len(dropped)
    assert [cell.outline["counts"][1] for image in source.images for cell in image.cells] == [area] * bool(area)
    if not area:
        assert "2 images are called so, data/ctrl/A1, data/drug/A1, and none" in source.dropped_images[0].reason


def test_masks_are_of_the_plane_and_scale_that_predict_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """predict's coco.json tells frames apart; without an option the first one is taken, at the size of its pixels."""
    stack = np.random.default_rng(0).integers(90, 110, (3, 60, 80)).astype(np.uint8)
    stack[1, 20:40, 20:60] = 200
    told = {"axes": "TYX", "PhysicalSizeX": 0.62, "PhysicalSizeY": 0.62}
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.ome.tif", stack, ome=True, photometric="minisblack", metadata=told)
    box = [[0, 0, 10, 0, 10, 10, 0, 10]], [[20, 20, 60, 20, 60, 40, 20, 40]]
    data = {
        "images": [
            {"id": number, "file_name": "a.ome.tif", "height": 60, "width": 80, "frame": number} for number in (0, 1)
        ],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1, "segmentation": box[number]} for number in (0, 1)
        ],
        "categories": [{"id": 1, "name": "astro"}],
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(data))
    words = ["prepare", "--livecell-annotations", str(path), "--livecell-images", str(tmp_path / "images")]
    words += ["--split", "none", "--out", str(tmp_path / "out")]
    for frame, mean in ((["--frame", "1"], 200), ([], 100)):
        assert main([*words, *frame]) == 0
        (image,) = list_annotated(tmp_path / "out")
        ((y0, x0, y1, x1),) = image.masks().windows.tolist()
        assert abs(float(image.read()[y0:y1, x0:x1].mean()) - mean) < 3
        assert (image.masks().image_shape, image.pixel_um) == ((30, 40), 1.24)
        assert "a.ome: its masks are of frame" in capsys.readouterr().out
    assert main([*words, "--zoom", "1"]) == 0
    (image,) = list_annotated(tmp_path / "out")
    assert image.masks().image_shape == (60, 80)


def test_livecell_images_need_ids_of_their_own(tmp_path: Path) -> None:
    path = livecell_json(tmp_path)
    data = json.loads(path.read_text())
    data["images"][1]["id"] = 10
    data["images"][2]["id"] = [30]
    data["images"][3]["height"] = 0
    data["annotations"][7]["category_id"] = [4]
    path.write_text(json.dumps(data))
    source = read_livecell([path], tmp_path / "images")
    assert [image.image_id for image in source.images] == ["BT474_Phase_D3_1_02d16h00m_1"]
    told = {image.image_id: image.reason for image in source.dropped_images}
    assert "the id 10, which must be" in told["SkBr3_Phase_G3_2_00d16h00m_4"]
    assert "the id [30]" in told["other"] and "are 0 and 10" in told["coco.json, image 4"]
    assert any("its category is [4]" in cell.reason for cell in source.dropped_cells)
    assert_every_row_is_told(prepare(source, tmp_path / "out", split=None))


def test_livecell_files_that_are_none(tmp_path: Path) -> None:
    path = livecell_json(tmp_path)
    with pytest.raises(InputError, match="cannot read annotations"):
        read_livecell([tmp_path / "none.json"], tmp_path / "images")
    with pytest.raises(InputError, match="no folder"):
        read_livecell([path], tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in"):
        read_livecell([path], tmp_path / "empty")
    path.write_text('{"images": [], "categories": []}')
    with pytest.raises(InputError, match='no list "annotations"'):
        read_livecell([path], tmp_path / "images")
    # Some of LIVECell's files number their annotations.
    path.write_text('{"images": [], "categories": [], "annotations": {"1": {"id": 1, "image_id": 2}}}')
    assert read_livecell([path], tmp_path / "images").rows == 1


def changed_livecell(tmp_path: Path, change: Callable[[dict[str, list[dict[str, Any]]]], object]) -> PrepareReport:
    """The report of `livecell_json`'s file after a change, without a split, in tmp_path / out."""
    path = livecell_json(tmp_path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    report = prepare(read_livecell([path], tmp_path / "images"), tmp_path / "out", split=None, replace=True)
    assert_every_row_is_told(report)
    return report


def set_all(records: list[dict[str, Any]], key: str, change: Callable[[Any], object]) -> None:
    for record in records:
        record[key] = change(record.get(key))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: set_all(data["images"], "id", str),
        lambda data: set_all(data["images"], "id", lambda one: f" {one} "),
        lambda data: set_all(data["annotations"], "image_id", str),
        lambda data: set_all(data["annotations"], "image_id", float),
        lambda data: set_all(data["categories"], "id", str),
        lambda data: set_all(data["annotations"], "category_id", float),
        lambda data: set_all(data["images"], "height", float),
        lambda data: set_all(data["images"], "width", str),
        lambda data: set_all(data["images"], "file_name", lambda name: f"images\\{name}"),
        lambda data: set_all(data["images"], "file_name", lambda name: f"C:\\Users\\me\\My images\\{name}"),
        lambda data: set_all(data["images"], "file_name", lambda name: f"\\\\server\\share/{name}"),
        lambda data: set_all(data["images"], "file_name", lambda name: f"/home/me/{name} "),
        lambda data: set_all(data["categories"], "name", lambda name: f" {name.upper()} "),
        lambda data: set_all(data["annotations"], "iscrowd", lambda crowd: str(crowd or 0)),
        lambda data: set_all(data["annotations"], "iscrowd", bool),
    ],
)
def test_livecell_in_other_words_is_the_same(change: Callable[[Any], object], tmp_path: Path) -> None:
    expected = changed_livecell(tmp_path / "one", lambda data: None)
    assert changed_livecell(tmp_path / "two", change).cells == expected.cells == 4
    frames = [frames_of(tmp_path / name / "out") for name in ("one", "two")]
    assert_same_frames(frames[1], frames[0])


def test_coco_of_predict_is_read_back_pixel_for_pixel(tmp_path: Path) -> None:
    masks = {
        f"{kind} 1": replace(random_cells(seed), cell_type=kind)
        for seed, kind in enumerate(("astro", "cort", "shsy5y"))
    }
    size = {"height": SHAPE[0], "width": SHAPE[1]}
    for number, name in enumerate(masks):
        (tmp_path / "images" / "plate").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "images" / "plate" / f"{name}.png"), np.full(SHAPE, number, np.uint8))
    path = tmp_path / "coco.json"
    of_images = (({"file_name": f"plate/{name}.png", **size}, coco_cells(each)) for name, each in masks.items())
    path.write_text(json.dumps(coco_file(of_images)), encoding="utf-8")
    words = ["--livecell-annotations", str(path), "--livecell-images", str(tmp_path / "images"), "--workers", "1"]
    assert main(["prepare", *words, "--split", "none", "--out", str(tmp_path / "out")]) == 0
    assert read_prepared(tmp_path / "out").class_names == CELL_TYPES
    found = {image.image_id: image for image in list_annotated(tmp_path / "out")}
    assert {name: image.cell_type for name, image in found.items()} == {name: name.split()[0] for name in masks}
    for name, each in masks.items():
        expected = [binary_fill_holes(frame) for frame in full_frames(each)]
        assert {frame.tobytes() for frame in full_frames(found[name].masks())} == {e.tobytes() for e in expected}
        assert {CELL_TYPES[label] for label in found[name].labels} == {found[name].cell_type}


def test_categories_of_lines_and_of_types(tmp_path: Path) -> None:
    """shsy5y is both: the other categories tell which is meant. Of both kinds, types are named as before."""

    def renamed(names: dict[str, str]) -> Source:
        path = livecell_json(tmp_path / "-".join(names.values()))
        data = json.loads(path.read_text())
        set_all(data["categories"], "name", lambda name: names.get(name, name))
        path.write_text(json.dumps(data))
        return read_livecell([path], path.parent / "images")

    types = renamed({"a172": "Astro"})
    assert types.class_names == CELL_TYPES and types.name == "COCO annotations"
    assert {image.image_id: [cell.label for cell in image.cells] for image in types.images} == {
        "SkBr3_Phase_G3_2_00d16h00m_4": [0], "other": [1],
    }  # fmt: skip
    assert any("must be 'cell' or one of shsy5y, astro, cort" in cell.reason for cell in types.dropped_cells)
    both = renamed({"yeast": "astro"})
    assert both.class_names == LIVECELL_CLASSES and both.name == "livecell"
    assert any("its category is 'astro'" in cell.reason for cell in both.dropped_cells)
    assert renamed({"a172": "shsy5y"}).class_names == LIVECELL_CLASSES


def test_the_only_category_is_a_cell_type(tmp_path: Path) -> None:
    """As a biologist exports cells of one kind: shsy5y then is the competition's, whose label members give it."""
    path = livecell_json(tmp_path)
    data = json.loads(path.read_text())
    set_all(data["categories"], "name", lambda _: "shsy5y")
    path.write_text(json.dumps(data))
    source = read_livecell([path], tmp_path / "images")
    assert source.class_names == CELL_TYPES
    assert {cell.label for image in source.images for cell in image.cells} == {0}


def test_types_that_are_given_count_whatever_the_categories(tmp_path: Path) -> None:
    path, images = livecell_json(tmp_path), tmp_path / "images"
    source = read_livecell([path], images, cell_types="cort")
    assert source.class_names == CELL_TYPES and source.name == "COCO annotations"
    assert {image.cell_type for image in source.images} == {"cort"}
    assert [[cell.label for cell in image.cells] for image in source.images] == [[2] * 4, [2] * 2, [2] * 2]
    assert source.notes == (
        "categories that are no cell types, so that the cells count as their image: 'a172' (1), 'yeast' (1)",
    )
    table = tmp_path / "types.csv"
    table.write_text("id,cell_type\nSkBr3_Phase_G3_2_00d16h00m_4,astro\nother,neuron\n", encoding="utf-8")
    source = read_livecell([path], images, cell_types=str(table))
    assert [(image.cell_type, len(image.cells)) for image in source.images] == [("astro", 2)]
    told = {cell.place: cell.reason for cell in source.dropped_cells}
    assert told["annotation 1"] == f"its cell type is not in {table}; it must be one of shsy5y, astro, cort"
    assert told["annotation 5"].startswith(f"its cell type is 'neuron' in {table}; ")


def test_other_categories_are_told_which_there_may_be(tmp_path: Path) -> None:
    path = livecell_json(tmp_path)
    data = json.loads(path.read_text())
    set_all(data["categories"], "name", lambda name: "cell" if name == "cell" else "neuron")
    path.write_text(json.dumps(data))
    told = {cell.place: cell.reason for cell in read_livecell([path], tmp_path / "images").dropped_cells}
    for place in ("annotation 5", "annotation 6"):  # a strange category, and "cell" in an image of a strange name
        assert "one of skbr3, a172, huh7, bv2, mcf7, bt474, skov3, shsy5y, astro, cort" in told[place]
        assert "give all cells one type, shsy5y, astro, cort, or each image's, by --cell-type" in told[place]


def test_brush_masks_are_cells(tmp_path: Path) -> None:
    def as_cvat(data: dict[str, list[dict[str, Any]]]) -> None:
        for annotation in data["annotations"]:
            annotation["iscrowd"] = int(isinstance(annotation["segmentation"], dict))

    report = changed_livecell(tmp_path, as_cvat)
    assert "coco.json: all 2 run lengths have iscrowd 1: taken as cells" in report.describe()
    assert [len(frames) for frames in frames_of(tmp_path / "out").values()] == [2, 2, 1]  # one more than by hand
    # A crowd that is outlined by polygons is one all the same.
    report = changed_livecell(tmp_path, lambda data: set_all(data["annotations"], "iscrowd", lambda _: 1))
    told = [cell.reason for cell in report.dropped_cells if "a crowd" in cell.reason]
    assert (report.images, report.cells, len(told)) == (2, 2, 8)


def test_a_bad_polygon_is_left_out_of_its_cell(tmp_path: Path) -> None:
    bad = [[], [1, 2], [1, 1, 3, 3], [1, 1, 3, 1, 3, 3, 2], [1, 1, None, 1, 3, 3], [1, 1, 1e9, 1, 3, 3], "x", None]
    places = [(y, x) for y in range(3) for x in range(6)][: 2 * len(bad) + 1]  # of identical cells all but one go
    squares = np.zeros((len(places), 6, 10), bool)
    for square, (y, x) in zip(squares, places, strict=True):
        square[y : y + 3, x : x + 4] = True

    def beside_good_ones(data: dict[str, list[dict[str, Any]]]) -> None:
        good = [[x, y, x + 4, y, x + 4, y + 3, x, y + 3] for y, x in places]
        pairs = [(bad[index // 2], [good[index], bad[index // 2]]) for index in range(2 * len(bad))]
        outlines = [[polygon, *rest] if index % 2 else rest for index, (polygon, rest) in enumerate(pairs)]
        data["annotations"] = [
            data["annotations"][0] | {"id": number, "segmentation": outline}
            for number, outline in enumerate([*outlines, [good[-1]]])
        ]

    report = changed_livecell(tmp_path, beside_good_ones)
    (frames,) = frames_of(tmp_path / "out").values()
    np.testing.assert_array_equal(np.stack(frames), squares)
    assert len(report.cells_in_part) == 2 * len(bad) and not report.dropped_cells
    reasons = [cell.reason for cell in report.cells_in_part]
    assert "three corners, got []" in reasons[0] and "odd number of values (7)" in reasons[6]
    assert "got None" in reasons[8] and "far outside" in reasons[10]
    assert "cells kept in part: 16" in report.describe()


@pytest.mark.parametrize(
    ("segmentation", "told"),
    [
        ([], "its segmentation is missing or empty, only a box, which is no mask"),
        (None, "missing or empty, only a box"),
        ({}, "missing or empty, only a box"),
        ([[]], "missing or empty, only a box"),
        ("12 3", "neither a list of polygons nor run lengths, but '12 3'"),
        (7, "neither a list of polygons nor run lengths"),
        ([2, 1, 6, 1, 6, 4], r"a segmentation is a list of polygons, [[x, y, ...], ...]"),
        ([[2, 1, 6, 1, 6, 4, 3]], "odd number of values (7)"),
        ([[2, 1, float("nan"), 1, 6, 4]], "corners are numbers, got nan"),
        ({"size": [10, 6], "counts": [7, 2, 51]}, "run lengths that fill the image of 6 x 10"),
        ({"size": [6, 10], "counts": "\u00e9"}, "no compressed run lengths"),
    ],
)
def test_segmentations_that_are_none_are_told(segmentation: object, told: str, tmp_path: Path) -> None:
    change = {"segmentation": segmentation, "bbox": [2, 1, 4, 3]}
    report = changed_livecell(tmp_path, lambda data: data["annotations"][0].update(change))
    (reason,) = (cell.reason for cell in report.dropped_cells if cell.place == "annotation 1")
    assert told in reason


def test_what_is_no_record_is_told(tmp_path: Path) -> None:
    def break_some(data: dict[str, list[Any]]) -> None:
        data["annotations"] += ["x", None, {"image_id": 10, "category_id": 4, "segmentation": [[1, 1]]}]
        data["images"].append(7)
        data["categories"].append([])

    report = changed_livecell(tmp_path, break_some)
    assert (report.images, report.cells, report.rows_read) == (3, 4, 14)
    told = {cell.place: cell.reason for cell in report.dropped_cells if "without id" in cell.place}
    assert sorted(told) == [f"annotation without id, number {number} of coco.json" for number in (12, 13, 14)]
    assert ("coco.json, image 5", "its file_name is None") in [
        (image.image_id, image.reason) for image in report.dropped_images
    ]


def test_own_names_are_told_what_is_missing(tmp_path: Path) -> None:
    def own(data: dict[str, list[dict[str, Any]]]) -> None:
        set_all(data["images"], "file_name", lambda name: f"exp3_{name}")
        set_all(data["annotations"], "category_id", lambda _: 4)

    with pytest.raises(InputError) as told:
        changed_livecell(tmp_path, own)
    assert "the image's name begins with none of skbr3" in str(told.value)
    assert "give the category its cell line's name" in str(told.value)
    assert "none of its cells can be used" in str(told.value)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["cells"] == 0


def test_livecell_images_in_hidden_folders_and_circles_are_not_seen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = livecell_json(tmp_path)
    images = tmp_path / "images"
    for name in (".AppleDouble", ".snapshot", "part0/.thumbs", "__MACOSX"):
        shutil.copytree(images / "part0", images / name / "part0", ignore=lambda *_: [".thumbs"])
    (images / "circle").symlink_to(images)
    (images / "part1" / "notes.txt").write_text("")
    with caplog.at_level("WARNING", "kernel"):
        source = read_livecell([path], images)
    assert [image.path.parent.name for image in source.images] == ["part0", "part1", "part2"]
    (line,) = caplog.messages
    assert "2 entries are passed over: 1 link to a folder (circle/), 1 of another format (part1/notes.txt)" in line


@pytest.mark.skipif(not (SHARED / "livecell").is_dir(), reason="the LIVECell images are not on this machine")
def test_real_livecell(tmp_path: Path) -> None:
    files = sorted((SHARED / "livecell").glob("*.json"))
    report = prepare(read_livecell(files, SHARED / "livecell" / "images"), tmp_path / "out", folds=3)
    assert (report.images, report.cells, report.dropped_cells, report.dropped_images) == (15, 3701, (), ())
    images = {image.image_id: image for image in list_annotated(tmp_path / "out")}
    data = json.loads(files[0].read_text())
    record = data["images"][0]
    masks = images[Path(record["file_name"]).stem].masks()
    polygons = [one["segmentation"] for one in data["annotations"] if one["image_id"] == record["id"]]
    assert len(masks) == len(polygons)
    for frame, polygon in zip(full_frames(masks)[:20], polygons, strict=False):
        slow = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(polygon, 520, 704)))
        np.testing.assert_array_equal(frame, binary_fill_holes(slow))
    assert {LIVECELL_CLASSES[label] for label in masks.labels} == {record["file_name"].split("_")[0].lower()}
