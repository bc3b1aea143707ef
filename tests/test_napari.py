"""napari's widget, in a viewer without a screen; skipped where napari is not installed (`pip install .[napari]`)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kernel.api import Cells
from kernel.errors import InputError
from kernel.masks.instances import CellMasks

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")  # before Qt starts
ROOT = Path(__file__).resolve().parents[1]
SHAPE = (60, 80)


def two_cells() -> Cells:
    crops = np.ones((10, 12), bool), np.ones((4, 5), bool)
    places = np.array([[5, 6], [40, 50]])
    return Cells(CellMasks(crops, places, np.zeros((2, 4)), np.array([0.9, 0.5]), np.array([1, 1]), SHAPE, "astro"))


class FakeSegmenter:
    """Notes what it is asked, and finds the same two cells in each plane, none in black ones."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, ...], dict[str, Any]]] = []
        self.cancel: Any = None

    def segment(self, image: np.ndarray, **wanted: Any) -> Cells:
        self.asked.append((image.shape, wanted))
        if self.cancel is not None:
            self.cancel()
        if image.max() == 255:
            raise InputError("a white image")
        return two_cells() if image.any() else Cells(CellMasks.empty(SHAPE))


pytest.importorskip("napari")
pytest.importorskip("pytestqt")


@pytest.fixture
def viewer() -> Any:
    """A viewer without its window, which would need OpenGL: layers and their events are the same."""
    from napari.components import ViewerModel

    return ViewerModel()


def make_widget(viewer: Any, qtbot: Any) -> tuple[Any, FakeSegmenter]:
    from kernel.napari_widget import CellsWidget

    segmenter = FakeSegmenter()
    loaded = []

    def load(*words: Path, **wanted: str) -> FakeSegmenter:
        assert (words, wanted) not in loaded  # once, however many runs
        loaded.append((words, wanted))
        return segmenter

    widget = CellsWidget(viewer, load)
    widget.asked_to_load = loaded
    qtbot.addWidget(widget)
    return widget, segmenter


def run_widget(widget: Any, qtbot: Any) -> None:
    widget.run_button.click()
    assert not widget.run_button.isEnabled() and widget.cancel_button.isEnabled()
    qtbot.waitUntil(lambda: widget.worker is None, timeout=20_000)
    assert widget.run_button.isEnabled() and not widget.cancel_button.isEnabled()


def test_labels_with_their_table_over_the_image(viewer: Any, qtbot: Any) -> None:
    widget, segmenter = make_widget(viewer, qtbot)
    widget.run_button.click()
    assert widget.told.text() == "open an image first"
    gray = np.full(SHAPE, 7, np.uint8)
    viewer.add_image(gray, name="cells", scale=(0.65, 0.65), translate=(3, 4), units=("um", "um"))
    assert widget.images.currentText() == "cells" and widget.pixel_size.value() == 0.65
    run_widget(widget, qtbot)
    assert segmenter.asked == [(SHAPE, {"pixel_um": (0.65, 0.65)})]
    layer = viewer.layers["cells cells"]
    np.testing.assert_array_equal(layer.data, two_cells().labels)
    np.testing.assert_array_equal(layer.scale, (0.65, 0.65))
    np.testing.assert_array_equal(layer.translate, (3, 4))
    assert layer.features["index"].tolist() == [1, 2] and layer.features["area_px"].tolist() == [120, 20]
    assert layer.features["score"].tolist() == pytest.approx([0.9, 0.5])
    assert set(layer.features["cell_type"]) == {"astro"}
    assert layer.features["area_um2"].tolist() == pytest.approx([120 * 0.65**2, 20 * 0.65**2])
    assert layer.features["centre_x"].tolist() == [12, 52.5]  # from the corner of the image, as in cells.csv
    assert layer.features["centre_y"].tolist() == [10, 42]
    assert widget.told.text() == "2 cells" and widget.progress.value() == 1


@pytest.mark.parametrize(
    ("scale", "units", "sides"),
    [
        ((0.5, 0.25), ("um", "um"), (0.5, 0.25)),
        ((108.33, 108.33), ("nm", "nm"), (0.10833, 0.10833)),
        ((6.5e-4, 6.5e-4), ("mm", "mm"), (0.65, 0.65)),
        ((0.65, 0.65), ("pixel", "pixel"), None),
        ((5, 0.108334567, 0.108334567), ("s", "um", "um"), (0.108334567, 0.108334567)),
    ],
)
def test_pixels_of_any_unit_that_may_not_be_square(
    viewer: Any, qtbot: Any, scale: tuple[float, ...], units: tuple[str, ...], sides: tuple[float, float] | None
) -> None:
    widget, segmenter = make_widget(viewer, qtbot)
    viewer.add_image(np.full((1,) * (len(scale) - 2) + SHAPE, 7, np.uint8), name="cells", scale=scale, units=units)
    run_widget(widget, qtbot)
    ((_, asked),) = segmenter.asked
    assert asked == {"pixel_um": None if sides is None else pytest.approx(sides)}
    table = viewer.layers["cells cells"].features
    if sides is None:
        assert widget.pixel_size.value() == 0 and "area_um2" not in table
        return
    assert widget.pixel_size.value() == pytest.approx((sides[0] * sides[1]) ** 0.5, abs=1e-5)
    assert table["area_um2"].tolist() == pytest.approx([area * sides[0] * sides[1] for area in (120, 20)])
    rows, columns = 10 * sides[0], 12 * sides[1]  # of the first cell
    low, high = sorted((rows, columns))
    assert table["eccentricity"][0] == pytest.approx((1 - (low / high) ** 2) ** 0.5, abs=0.02)
    widget.pixel_size.setValue(0.7)
    run_widget(widget, qtbot)
    assert segmenter.asked[-1][1] == {"pixel_um": (0.7, 0.7)}


def test_pixels_that_are_not_square_are_told(viewer: Any, qtbot: Any) -> None:
    widget, _ = make_widget(viewer, qtbot)
    viewer.add_image(np.full(SHAPE, 7, np.uint8), name="square", scale=(0.5, 0.5), units=("um", "um"))
    assert widget.told.text() == ""
    viewer.add_image(np.full(SHAPE, 7, np.uint8), name="flat", scale=(0.5, 0.25), units=("um", "um"))
    widget.images.setCurrentText("flat")
    assert widget.told.text() == "its pixels are of 0.25 x 0.5 um"


def test_a_pixel_size_that_was_typed_stays_until_another_image_is_chosen(viewer: Any, qtbot: Any) -> None:
    widget, segmenter = make_widget(viewer, qtbot)
    gray = np.full(SHAPE, 7, np.uint8)
    viewer.add_image(gray, name="first")
    widget.pixel_size.setValue(0.5)
    for _ in range(2):  # each run adds a layer
        run_widget(widget, qtbot)
    assert segmenter.asked == [(SHAPE, {"pixel_um": (0.5, 0.5)})] * 2 and widget.pixel_size.value() == 0.5
    viewer.add_image(gray, name="second", scale=(0.65, 0.65), units=("um", "um"))
    assert widget.images.currentText() == "first" and widget.pixel_size.value() == 0.5
    widget.images.setCurrentText("second")
    assert widget.pixel_size.value() == 0.65
    widget.pixel_size.setValue(0.7)
    viewer.layers.remove("first")
    assert widget.images.currentText() == "second" and widget.pixel_size.value() == 0.7
    viewer.add_image(gray, name="third")
    viewer.layers.remove("second")
    assert widget.images.currentText() == "third" and widget.pixel_size.value() == 0


def test_planes_of_a_stack_and_colours(viewer: Any, qtbot: Any) -> None:
    widget, segmenter = make_widget(viewer, qtbot)
    stack = np.full((3, *SHAPE), 9, np.uint16)
    stack[1] = 0
    viewer.add_image(stack, name="stack")
    run_widget(widget, qtbot)
    layer = viewer.layers["stack cells"]
    one = two_cells().labels
    np.testing.assert_array_equal(layer.data, [one, one * 0, one + 2 * (one > 0)])
    assert layer.features["index"].tolist() == [1, 2, 3, 4] and layer.features["axis_0"].tolist() == [0, 0, 2, 2]
    assert segmenter.asked == [(SHAPE, {"pixel_um": None})] * 3 and widget.progress.value() == 3
    viewer.add_image(np.full((*SHAPE, 4), 9, np.uint8), name="colours", rgb=True)
    viewer.add_image(np.zeros(SHAPE), name="black")
    for name, count in (("colours", 2), ("black", 0)):
        widget.images.setCurrentText(name)
        run_widget(widget, qtbot)
        assert len(viewer.layers[f"{name} cells"].features) == count and widget.told.text() == f"{count} cells"
    assert segmenter.asked[3] == ((*SHAPE, 3), {"pixel_um": None})


def test_cancel_ends_after_the_plane_and_adds_nothing(viewer: Any, qtbot: Any) -> None:
    widget, segmenter = make_widget(viewer, qtbot)
    viewer.add_image(np.full((5, *SHAPE), 9, np.uint8), name="stack")
    segmenter.cancel = lambda: widget.worker.quit()
    run_widget(widget, qtbot)
    assert len(segmenter.asked) == 1 and "stack cells" not in viewer.layers and widget.told.text() == "cancelled"
    segmenter.cancel = None
    run_widget(widget, qtbot)
    assert "stack cells" in viewer.layers


def test_presets_and_other_members(viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qtpy.QtWidgets import QFileDialog

    widget, _ = make_widget(viewer, qtbot)
    viewer.add_image(np.full(SHAPE, 9, np.uint8), name="gray")
    assert widget.members.currentText() == "balanced"
    for _ in range(2):
        run_widget(widget, qtbot)
    widget.members.setCurrentText("fast")
    run_widget(widget, qtbot)
    (tmp_path / "manifest.json").write_text("{}", encoding="utf-8")
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(tmp_path))
    widget.members.setCurrentText("other members ...")
    widget.choose_members()
    assert widget.members.currentText() == str(tmp_path)
    run_widget(widget, qtbot)
    assert widget.asked_to_load == [
        ((), {"preset": "balanced"}),
        ((), {"preset": "fast"}),
        ((tmp_path / "manifest.json", tmp_path / "weights"), {}),
    ]


def test_what_is_wrong_is_shown(viewer: Any, qtbot: Any) -> None:
    widget, _ = make_widget(viewer, qtbot)
    viewer.add_image(np.full(SHAPE, 255, np.uint8), name="white")
    run_widget(widget, qtbot)
    assert widget.told.text() == "a white image" and "white cells" not in viewer.layers
    widget.members.insertItem(0, "/nowhere")
    widget.members.setCurrentIndex(0)
    run_widget(widget, qtbot)
    assert "no manifest.json" in widget.told.text()


def test_the_manifest_names_what_is_there() -> None:
    npe2 = pytest.importorskip("npe2")
    manifest = npe2.PluginManifest.from_file(ROOT / "kernel" / "napari.yaml")
    (command,) = manifest.contributions.commands
    (widget,) = manifest.contributions.widgets
    assert widget.command == command.id and manifest.name == "inside-ensemble"
    module, name = str(command.python_name).split(":")
    from kernel import napari_widget

    assert module == "inside_ensemble.napari_widget" and hasattr(napari_widget, name)


def test_the_package_tells_napari_of_it() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["entry-points"]["napari.manifest"] == {"inside-ensemble": "inside_ensemble:napari.yaml"}
    assert any(name.startswith("napari") for name in project["optional-dependencies"]["napari"])
    told = yaml.safe_load((ROOT / "kernel" / "napari.yaml").read_text(encoding="utf-8"))
    assert told["name"] == project["name"]
