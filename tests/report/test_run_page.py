"""The page of a run of `predict`: its figures, and its pictures."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import cv2
import numpy as np
import pytest
from report.example_report import SHAPE, squares
from report.example_run import NASTY, draw, example_run, noise

from kernel.export.svg import contours_of, svg_picture
from kernel.masks.instances import CellMasks
from kernel.report.run_page import SHOWN_IMAGES, RunImage, write_run_page

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("masks", [squares([(2, 2), (40, 60)]), CellMasks.empty(SHAPE)])
def test_a_picture_is_xml_whose_paths_lie_around_the_cells(tmp_path: Path, masks: CellMasks) -> None:
    root = ElementTree.parse(draw(tmp_path / "x.svg", masks, NASTY)).getroot()
    assert root.get("aria-label") == NASTY and root.get("viewBox") == "-0.5 -0.5 120 90"
    paths = root.findall(f"{SVG}g/{SVG}path")
    assert len(paths) == len(masks)
    for number, (path, (top, left)) in enumerate(zip(paths, masks.offsets_yx.tolist(), strict=True), start=1):
        x, y, steps = re.fullmatch(r"M(\d+) (\d+)l(.*)z", path.get("d", "")).groups()
        corners = np.cumsum([[int(x), int(y)], *np.array(steps.split(), int).reshape(-1, 2)], axis=0)
        assert corners.min(axis=0).tolist() == [left, top] and corners.max(axis=0).tolist() == [left + 11, top + 11]
        assert path.findtext(f"{SVG}title").startswith(f"cell {number}: 144 pixels, score 0.")


def test_a_mask_without_a_pixel_has_no_line_and_one_of_a_pixel_a_dot() -> None:
    assert contours_of(np.zeros((3, 3), bool), (0, 0)) == []
    (dot,) = contours_of(np.ones((1, 1), bool), (4, 7))
    assert dot.tolist() == [[7, 4]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (3000, 40)])
def test_images_of_any_shape_are_pictures(shape: tuple[int, int]) -> None:
    text = svg_picture(noise(shape), CellMasks.empty(shape), "odd")
    pixels = re.search(r'base64,([^"]*)"', text)
    assert pixels is not None
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(pixels[1]), np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.shape[0] <= 1400 and decoded.shape[1] <= 1400
    assert f'width="{shape[1]}" height="{shape[0]}"' in text


def figures(page: Path) -> dict[str, str]:
    return dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)<small>", page.read_text(encoding="utf-8")))


def test_figures_are_those_of_the_images(tmp_path: Path) -> None:
    write_run_page(tmp_path / "r.html", "Run", example_run(tmp_path))
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "4 images, 3 cells; 1 image could not be segmented" in text
    told = figures(tmp_path / "r.html")
    assert told["Images"] == "3" and told["Cells"] == "3" and told["Confluence"] == "4.0 %"
    assert told["Diameter"] == "13.5"  # sqrt(4 * 144 / pi), of 144, 144 and 900
    assert "<script>alert" not in text and "a&lt;b&gt;&amp;" in text


def test_lengths_are_micrometres_where_every_image_has_a_pixel_size(tmp_path: Path) -> None:
    page = tmp_path / "r.html"
    sized = [RunImage("a", [144], "cort", 0.1, 2.0), RunImage("b", [144], "cort", 0.1, 0.5), RunImage("c", failure="x")]
    write_run_page(page, "Run", sized)
    assert figures(page)["Diameter"] == "16.9" and "µm" in page.read_text(encoding="utf-8")  # 27.1 and 6.8
    write_run_page(page, "Run", [*sized, RunImage("d", [144], "cort", 0.1)])
    assert figures(page)["Diameter"] == "13.5" and "µm" not in page.read_text(encoding="utf-8")


def test_cell_types_are_those_of_images_with_cells(tmp_path: Path) -> None:
    """Of an image in which cells were detected, and none left, the type is known as well."""
    page = tmp_path / "r.html"
    empty = RunImage("b", [], "astro")
    write_run_page(page, "Run", [RunImage("a", [144], "cort", 0.1), empty, RunImage("c", [9], "cort", 0.1)])
    text = page.read_text(encoding="utf-8")
    assert "cort: 2" in text and "astro: " not in text and figures(page)["Cell type"] == "1"
    write_run_page(page, "Run", [empty])
    assert "Cell type" not in figures(page)


@pytest.mark.parametrize("images", [[], [RunImage("a", failure="gone")], [RunImage("a")]])
def test_nothing_found_is_a_page_as_well(tmp_path: Path, images: list[RunImage]) -> None:
    write_run_page(tmp_path / "r.html", "Run", images)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "0 cells" in text and "nan" not in text
    assert re.findall("<h2.*?>(.*?)</h2>", text) == (["Figures", "Every image"] if images else [])


def test_the_page_shows_the_first_pictures_and_says_where_the_others_lie(tmp_path: Path) -> None:
    picture = draw(tmp_path / "x.svg", squares([(2, 2)]))
    write_run_page(
        tmp_path / "r.html", "Run", [RunImage(f"i{n}", [4], picture=picture) for n in range(SHOWN_IMAGES + 3)]
    )
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert text.count("<article") == SHOWN_IMAGES and "3 more lie in the folder" in text
    assert f'id="row-{SHOWN_IMAGES + 3}"' in text and f'href="#image-{SHOWN_IMAGES + 1}"' not in text
