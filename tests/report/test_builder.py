from __future__ import annotations

import csv
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from report.example_report import GRID, SHAPE, NoiseImage, example_report, report_image, squares, surface

from kernel.export.svg import encode_jpeg
from kernel.masks.instances import CellMasks
from kernel.report.builder import ReportBuilder
from kernel.report.pictures import OUTLINE_STYLES, Example, to_svg, write_png
from kernel.report.plots import DARK, LIGHT
from kernel.report.surfaces import surface_plots
from kernel.scoring.mask_quality import measure_image
from kernel.settings import Thresholds
from kernel.tuning.surface import ThresholdSurface


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def shown(builder: ReportBuilder) -> set[str]:
    data = builder.data()
    return {record.image_id for record in data.records if record.number in data.examples}


@pytest.mark.parametrize("seed", range(4))
def test_the_worst_and_the_best_of_each_type_are_kept_and_no_other_is_read_in_the_end(seed: int) -> None:
    rng = np.random.default_rng(seed)
    builder = ReportBuilder(examples=2)
    scores: dict[str, dict[str, int]] = {"shsy5y": {}, "cort": {}}
    for number, hits in enumerate(rng.permutation(np.arange(1, 21)).tolist()):
        cell_type = ("shsy5y", "cort")[number % 2]
        scores[cell_type][f"image{number}"] = hits
        builder.add(report_image(f"image{number}", cell_type, hits=hits, misses=21 - hits))
        assert len(builder.data().examples) <= 8
    expected = set()
    for hits_by_name in scores.values():
        ranked = sorted(hits_by_name, key=hits_by_name.__getitem__)
        expected |= {*ranked[:2], *ranked[-2:]}
    assert shown(builder) == expected


def test_pixels_are_read_only_of_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = ReportBuilder(examples=1)
    read, really = [], NoiseImage.read
    monkeypatch.setattr(NoiseImage, "read", lambda image: read.append(image.image_id) or really(image))
    for name, hits in (("low", 2), ("high", 9), ("middle", 5), ("lowest", 1), ("another", 5)):
        builder.add(report_image(name, "cort", hits=hits, misses=10 - hits))
    assert read == ["low", "high", "lowest"]
    assert shown(builder) == {"high", "lowest"}
    none = ReportBuilder(examples=0)
    none.add(report_image("unseen", "cort", hits=3, misses=7))
    assert shown(none) == set() and read[-1] == "lowest"


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match="examples is -1"):
        ReportBuilder(examples=-1)
    with pytest.raises(ValueError, match="scores of shape"):
        ThresholdSurface("cort", GRID, np.zeros((2, 2)))


def test_tables_say_what_the_images_were(tmp_path: Path) -> None:
    page = example_report().write(tmp_path)
    assert page == tmp_path / "report.html"
    summary = {row["cell_type"]: row for row in table(tmp_path / "report" / "summary.csv")}
    assert list(summary) == ["all", "shsy5y", "astro", "cort"]
    # shsy5y: 11 hits, 7 misses, 4 false alarms; counts off by 0, -1 and -2.
    of = summary["shsy5y"]
    assert (of["images"], of["cells"], of["found_cells"]) == ("3", "18", "15")
    assert float(of["precision_50"]) == pytest.approx(11 / 15, abs=1e-6)
    assert float(of["recall_50"]) == pytest.approx(11 / 18, abs=1e-6)
    assert float(of["count_error"]) == 1 and float(of["count_bias"]) == -1
    assert float(of["score"]) == pytest.approx((1 + 4 / 7 + 1 / 9) / 3, abs=1e-6)
    assert (of["boundary_f"], of["mean_iou"]) == ("1.000000", "1.000000")
    assert summary["astro"]["precision_50"] == summary["astro"]["boundary_f"] == ""  # nothing is found
    images = {row["id"]: row for row in table(tmp_path / "report" / "images.csv")}
    assert len(images) == 6
    assert images["empty"]["score"] == "1.000000" and images["empty"]["recall_50"] == ""
    assert images["middling"]["precision_95"] == "0.800000"
    assert [row["iou"] for row in table(tmp_path / "report" / "iou.csv")[:3]] == ["0.50", "0.55", "0.60"]
    confusion = table(tmp_path / "report" / "confusion.csv")
    assert confusion[1] == {"cell_type": "astro", "shsy5y": "0", "astro": "0", "cort": "0", "nothing": "2"}
    assert confusion[2] == {"cell_type": "cort", "shsy5y": "0", "astro": "1", "cort": "0", "nothing": "0"}


def test_pictures_lie_beside_the_page_under_names_of_their_own(tmp_path: Path) -> None:
    example_report().write(tmp_path, [surface("shsy5y")])
    names = sorted(path.name for path in (tmp_path / "report").glob("*.png"))
    assert [name for name in names if name.startswith("image_")] == [
        "image_1_shsy5y_good.png",
        "image_3_shsy5y__img_src_x_onerror_alert_1_.png",
        "image_4_astro_empty.png",
        "image_5_astro_lost.png",
        "image_6_cort_.._taken_for_another.png",
    ]
    assert {"scores.png", "precision.png", "recall.png", "average_precision.png", "counts.png"} <= set(names)
    assert "tuning_shsy5y_mask_threshold_confidence.png" in names
    for name in names:
        assert cv2.imread(str(tmp_path / "report" / name)) is not None, name


def test_what_images_are_called_is_text_and_never_markup(tmp_path: Path) -> None:
    text = example_report().write(tmp_path).read_text(encoding="utf-8")
    assert "<img src=x" not in text and "<noise>" not in text
    assert "&lt;img src=x onerror=&quot;alert(1)&quot;&gt;" in text and "Squares &amp; &lt;noise&gt;" in text


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = example_report().write(tmp_path).read_text(encoding="utf-8")
    without_data = re.sub(r"data:[a-z/]*[;,][\w+/=,;]*", "", text)
    assert re.findall(r"(?:src|srcset|href)=\"(?!#)([^\"]+)", without_data) == []
    assert not re.search(r"https?://|@import|url\(", without_data)
    assert "default-src 'none'" in text


def test_size_is_bounded_for_hundreds_of_images(tmp_path: Path) -> None:
    sizes = []
    for count in (20, 320):
        builder = ReportBuilder(examples=1)
        for number in range(count):
            builder.add(report_image(f"{number}", "cort", hits=1 + number % 9, misses=3))
        (tmp_path / str(count)).mkdir()
        sizes.append(builder.write(tmp_path / str(count)).stat().st_size)
    assert sizes[1] - sizes[0] < 300 * 1000  # a row per image, no picture
    assert len(list((tmp_path / "320" / "report").glob("image_*.png"))) == 2


def test_nothing_at_all(tmp_path: Path) -> None:
    text = ReportBuilder().write(tmp_path).read_text(encoding="utf-8")
    assert "No image was scored." in text and "<img" not in text
    assert [row["images"] for row in table(tmp_path / "report" / "summary.csv")] == ["0"]
    assert table(tmp_path / "report" / "images.csv") == []
    (tmp_path / "tuned").mkdir()
    text = ReportBuilder().write(tmp_path / "tuned", [surface("cort")]).read_text(encoding="utf-8")
    assert "Thresholds only" in text and text.count("<img") == 2


def test_each_cell_is_drawn_once_in_its_style() -> None:
    image = report_image("image", "cort", hits=3, misses=2, false_alarms=1)
    example = Example(image.entry.read(), image.masks, image.truth, measure_image(image.masks, image.truth))
    styles = [outline.style.name for outline in example.outlines()]
    assert styles == ["truth"] * 3 + ["hit"] * 3 + ["miss"] * 2 + ["false"]
    svg = to_svg(example)
    assert svg.count("<path") == 9
    # The first square covers rows and columns 2 to 13; its outline runs through the outermost pixels' centres.
    assert '<path class="hit" d="M2 2l0 11 11 0 0 -11z"><title>hit: score 0.90, IoU 1.00</title></path>' in svg
    assert f'viewBox="-0.5 -0.5 {SHAPE[1]} {SHAPE[0]}"' in svg


def test_outlines_of_dots_holes_and_nothing(tmp_path: Path) -> None:
    ring = np.ones((9, 9), bool)
    ring[3:6, 3:6] = False
    truth = CellMasks(
        (np.ones((1, 1), bool), ring, np.zeros((0, 0), bool)), np.array([[5, 6], [20, 30], [0, 0]]),
        np.zeros((3, 4)), np.ones(3), np.zeros(3), SHAPE,
    )  # fmt: skip
    none = CellMasks.empty(SHAPE)
    example = Example(np.full((*SHAPE, 3), 90, np.uint8), none, truth, measure_image(none, truth))
    dot, hollow = example.outlines()  # the empty mask has none
    assert dot.centre_xy == (6, 5) and [len(ring) for ring in dot.rings] == [1]
    assert len(hollow.rings) == 2
    assert 'd="M6 5l0 0z"' in to_svg(example)
    write_png(tmp_path / "holes.png", example)
    picture = cv2.imread(str(tmp_path / "holes.png"))
    scale = picture.shape[1] // SHAPE[1]
    assert (picture[: SHAPE[0] * scale] == np.array([66, 228, 240])).all(axis=2).sum() > 50


def test_pngs_show_each_style_in_its_colour(tmp_path: Path) -> None:
    image = report_image("image", "cort", hits=2, misses=1, false_alarms=1)
    shifted = squares([(3, 2), (2, 22), (2, 62)])  # the first hit beside its truth, so that both lines show
    example = Example(image.entry.read(), shifted, image.truth, measure_image(shifted, image.truth))
    write_png(tmp_path / "styles.png", example)
    picture = cv2.imread(str(tmp_path / "styles.png"))[..., ::-1]
    scale = picture.shape[1] // SHAPE[1]
    for style in OUTLINE_STYLES:
        pixels = (picture[: SHAPE[0] * scale] == np.frombuffer(bytes.fromhex(style.colour[1:]), np.uint8)).all(axis=2)
        assert pixels.sum() > 20, style.name


def test_pictures_of_the_page_are_of_sane_size() -> None:
    large = np.random.default_rng(0).integers(0, 255, (3000, 2000, 3)).astype(np.uint8)
    decoded = cv2.imdecode(np.frombuffer(encode_jpeg(large), np.uint8), cv2.IMREAD_UNCHANGED)
    assert decoded.shape == (1400, 933, 3)
    gray = cv2.imdecode(np.frombuffer(encode_jpeg(np.full((40, 50, 3), 7, np.uint8)), np.uint8), cv2.IMREAD_UNCHANGED)
    assert gray.shape == (40, 50)


def test_surfaces_name_the_best_point_as_the_grid_counts_it(tmp_path: Path) -> None:
    tuned = surface("astro", (0, 2, 1, 1))
    chosen = GRID.thresholds_at(int(tuned.scores.argmax()), Thresholds())
    assert tuned.best == (0, 2, 1, 1)
    assert [tuned.values[axis][place] for axis, place in enumerate(tuned.best)] == [
        chosen.mask_threshold, chosen.mask_nms_threshold, chosen.min_size, chosen.confidence,
    ]  # fmt: skip
    assert [tuned.at_edge(axis) for axis in range(4)] == [True, True, True, False]
    assert not surface("astro", (0, 0, 0, 0)).at_edge(2)  # no size is below 0
    assert not ThresholdSurface("astro", GRID, np.ones(GRID.shape)).at_edge(3)  # level: nothing rises
    assert tuned.spread(1) == pytest.approx(0.1)

    surfaces = [tuned, ThresholdSurface("cort", GRID, np.full(GRID.shape, np.nan))]
    assert [plot.name for plot in surface_plots(surfaces)] == [
        "tuning_astro_mask_threshold_confidence",
        "tuning_astro_mask_NMS_minimum_size",
    ]
    example_report().write(tmp_path, surfaces)
    rows = table(tmp_path / "report" / "tuning.csv")
    assert len(rows) == 2 * tuned.scores.size
    best = max((row for row in rows if row["score"]), key=lambda row: float(row["score"]))
    assert (best["mask_threshold"], best["mask_NMS"], best["minimum_size"], best["confidence"], best["score"]) == (
        "0.4", "0.2", "70", "0.3", "0.800000",
    )  # fmt: skip
    assert {row["score"] for row in rows if row["cell_type"] == "cort"} == {""}
    assert surface_plots([]) == []


def test_plots_are_drawn_in_both_themes() -> None:
    (plot, _) = surface_plots([surface("cort")])
    assert "0.800" in plot.alt and "confidence 0.5" in plot.alt
    for theme in (LIGHT, DARK):
        corner = cv2.imdecode(np.frombuffer(plot.render(theme), np.uint8), cv2.IMREAD_COLOR)[0, 0]
        assert corner[::-1].tobytes() == bytes.fromhex(theme.background[1:])
