"""The widget for napari: the cells of an image layer as a labels layer, with a row of its features table for each cell.

`napari.yaml` beside this file names it. It calls `kernel.api` in a thread of its own, a plane of the image at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

import numpy as np
from napari.layers import Image
from napari.qt.threading import thread_worker
from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import (
    QComboBox,
    QDoubleSpinBox,
    QFileDialog,
    QFormLayout,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QWidget,
)
from skimage.measure import regionprops_table

from kernel.api import Cells, Segmenter, load
from kernel.errors import InputError, RunError
from kernel.images.pixel_size import PixelSize, pixel_size
from kernel.manifest.presets import (
    DEFAULT_PRESET,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    members_folder,
    read_presets,
    shipped_members,
    weights_folder,
)

#: The choice of members by their folder.
OTHER_MEMBERS = "other members ..."
#: Columns of the table, by scikit-image's names of them.
MEASURED = {
    "label": "index",  # by which napari finds a label's row
    "area": "area_px",
    "centroid-0": "centre_y",
    "centroid-1": "centre_x",
    "equivalent_diameter_area": "diameter_px",
    "eccentricity": "eccentricity",
    "solidity": "solidity",
}
#: From the centre of a pixel, where scikit-image counts from, to its corner, where the tables of `predict` do.
HALF_PIXEL = 0.5


class CellsWidget(QWidget):
    """Choose image, preset and pixel size; run, watch, cancel.

    Args:
        viewer: napari's.
        load_members: as `kernel.api.load`; for tests.
    """

    def __init__(self, viewer: Any, load_members: Callable[..., Segmenter] = load) -> None:
        super().__init__()
        self.viewer, self.load_members = viewer, load_members
        self.loaded: tuple[str, Segmenter] | None = None  # the preset or folder of the last run, and its members
        self.worker: Any = None
        self.images, self.members = QComboBox(), QComboBox()
        presets = list_presets()
        self.members.addItems([*presets, OTHER_MEMBERS])
        if DEFAULT_PRESET in presets:
            self.members.setCurrentText(DEFAULT_PRESET)
        self.pixel: PixelSize | None = None  # what the field shows, by a layer: exactly, and of each side
        self.pixel_size = QDoubleSpinBox()
        self.pixel_size.setDecimals(5)
        self.pixel_size.setRange(0, 1000)
        self.pixel_size.setSuffix(" µm")
        self.pixel_size.setSpecialValueText("not known")
        self.run_button, self.cancel_button = QPushButton("Run"), QPushButton("Cancel")
        self.cancel_button.setEnabled(False)
        self.progress, self.told = QProgressBar(), QLabel()
        self.told.setWordWrap(True)
        layout, buttons = QFormLayout(self), QHBoxLayout()
        for name, field in (("Image", self.images), ("Preset", self.members), ("Pixel size", self.pixel_size)):
            layout.addRow(name, field)
        for button in (self.run_button, self.cancel_button):
            buttons.addWidget(button)
        layout.addRow(buttons)
        layout.addRow(self.progress)
        layout.addRow(self.told)
        self.images.currentTextChanged.connect(self.take_pixel_size)
        self.pixel_size.valueChanged.connect(self.type_pixel_size)
        self.members.activated.connect(self.choose_members)
        self.run_button.clicked.connect(self.run)
        self.cancel_button.clicked.connect(self.cancel)
        for changed in (viewer.layers.events.inserted, viewer.layers.events.removed):
            changed.connect(self.list_images)
        self.list_images()

    def list_images(self, _event: object = None) -> None:
        """Let the choice of images be the viewer's image layers; the pixel size stays while the choice does."""
        chosen = self.images.currentText()
        names = [layer.name for layer in self.viewer.layers if isinstance(layer, Image)]
        with QSignalBlocker(self.images):  # while it is filled anew, it tells of choices that nobody has made
            self.images.clear()
            self.images.addItems(names)
            if chosen in names:
                self.images.setCurrentText(chosen)
        if self.images.currentText() != chosen:
            self.take_pixel_size(self.images.currentText())

    def take_pixel_size(self, name: str) -> None:
        """Take the pixel size that an image layer knows, and show it: the side of a square of the same area."""
        if name not in self.viewer.layers:
            return
        self.pixel = layer_pixel(self.viewer.layers[name])
        with QSignalBlocker(self.pixel_size):  # nobody has typed it
            self.pixel_size.setValue(0 if self.pixel is None else self.pixel.side_um)
        if self.pixel is not None and not self.pixel.is_square:
            self.told.setText(f"its pixels are of {self.pixel}")

    def type_pixel_size(self, side_um: float) -> None:
        """Take the pixel size that somebody types instead: of a square, or none."""
        self.pixel = PixelSize(side_um, side_um, "the field Pixel size") if side_um else None

    def choose_members(self) -> None:
        """Ask for a folder of members, where others than those listed are wanted."""
        if self.members.currentText() != OTHER_MEMBERS:
            return
        folder = QFileDialog.getExistingDirectory(self, f"A folder of {MANIFEST_NAME} and {WEIGHTS_NAME}")
        if folder:
            self.members.insertItem(0, folder)
        self.members.setCurrentIndex(0)  # the folder, or where none was chosen the first preset

    def run(self) -> None:
        """Segment the chosen image, in a thread."""
        if self.worker is not None:
            return
        name = self.images.currentText()
        if name not in self.viewer.layers:
            self.told.setText("open an image first")
            return
        layer = self.viewer.layers[name]
        planes = Planes(layer)
        self.progress.setRange(0, len(planes))
        self.progress.setValue(0)
        self.told.setText("loading the members")
        self.run_button.setEnabled(False)
        self.cancel_button.setEnabled(True)
        self.worker = self.segment(planes, self.members.currentText(), self.pixel)
        self.worker.yielded.connect(self.show_progress)
        self.worker.returned.connect(lambda found: self.take_result(layer, found))
        self.worker.errored.connect(lambda error: self.told.setText(f"failed: {error}"))
        self.worker.aborted.connect(lambda: self.told.setText("cancelled"))
        self.worker.finished.connect(self.end)
        self.worker.start()

    def cancel(self) -> None:
        """End the run after the plane that the networks are at; nothing is added."""
        if self.worker is not None:
            self.told.setText("cancelling, after this plane")
            self.worker.quit()

    @thread_worker
    def segment(self, planes: Planes, members: str, pixel: PixelSize | None) -> Any:
        """Yields how many planes are done; returns the label image and its table, or what the user can mend."""
        try:
            return (yield from self.segment_planes(planes, members, pixel))
        except (InputError, RunError, ValueError) as error:
            return str(error)  # raised, it would be shown once more, with its traceback

    def segment_planes(
        self, planes: Planes, members: str, pixel: PixelSize | None
    ) -> Generator[int, None, tuple[np.ndarray, dict[str, np.ndarray]]]:
        """As `segment`; errors as `kernel.api.load` and `Segmenter.segment`."""
        if self.loaded is None or self.loaded[0] != members:
            self.loaded = members, self.load(members)
        segmenter = self.loaded[1]
        yield 0
        sides = None if pixel is None else (pixel.y_um, pixel.x_um)
        labels = np.zeros(planes.shape, np.uint32)
        tables = []
        count = 0
        for number, (place, pixels) in enumerate(planes, start=1):
            cells = segmenter.segment(pixels, pixel_um=sides)
            found = cells.labels.astype(np.uint32)
            labels[place] = found + np.uint32(count) * (found > 0)  # a number is one cell of one plane
            tables.append(cell_table(cells, place, count, pixel))
            count += len(cells)
            yield number
        return labels, {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}

    def load(self, members: str) -> Segmenter:
        """The members of a preset, or of a folder; errors as `kernel.api.load`."""
        if members in list_presets():
            return self.load_members(preset=members)
        folder = members_folder(members)
        return self.load_members(folder / MANIFEST_NAME, weights_folder(folder))

    def show_progress(self, done: int) -> None:
        """Show how many planes are done."""
        self.progress.setValue(done)
        if done < self.progress.maximum():
            self.told.setText(f"segmenting plane {done + 1} of {self.progress.maximum()}")

    def take_result(self, layer: Any, found: tuple[np.ndarray, dict[str, np.ndarray]] | str) -> None:
        """Add the labels over the image, where and as large as it is; or show what is wrong."""
        if isinstance(found, str):
            self.told.setText(found)
            return
        labels, table = found
        placed = {name: getattr(layer, name) for name in ("scale", "translate", "rotate", "shear", "affine", "units")}
        self.viewer.add_labels(labels, name=f"{layer.name} cells", features=table, **placed)
        count = len(table["index"])
        self.told.setText(f"{count} cell{'' if count == 1 else 's'}")

    def end(self) -> None:
        """Be ready for the next run."""
        self.worker = None
        self.run_button.setEnabled(True)
        self.cancel_button.setEnabled(False)


def list_presets() -> list[str]:
    """The presets of the members that come with the program; none where there are no such members."""
    try:
        return list(read_presets(shipped_members()))
    except InputError:
        return []


class Planes:
    """The planes of an image layer, each with its place along the axes before rows and columns."""

    def __init__(self, layer: Any) -> None:
        self.data = layer.data[0] if layer.multiscale else layer.data
        self.is_rgb = bool(layer.rgb)
        self.shape = tuple(self.data.shape[:-1] if self.is_rgb else self.data.shape)

    def __len__(self) -> int:
        return int(np.prod(self.shape[:-2]))

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
        for place in np.ndindex(self.shape[:-2]):
            plane = np.asarray(self.data[place])
            yield place, plane[..., :3] if self.is_rgb else plane  # without alpha


def layer_pixel(layer: Any) -> PixelSize | None:
    """The size of a layer's pixels, where its units are lengths."""
    (y, x), (unit_y, unit_x) = layer.scale[-2:], map(str, layer.units[-2:])
    return pixel_size(y, x, unit_y, unit_x, "its layer")


def cell_table(cells: Cells, place: tuple[int, ...], count: int, pixel: PixelSize | None) -> dict[str, np.ndarray]:
    """A plane's part of the table: a row for each cell, by columns.

    Args:
        cells: of the plane.
        place: of the plane in the image, for a column of each axis.
        count: cells of the planes before, by which numbers are raised.
        pixel: its size, where known: for areas in micrometres, and the shape of the cell itself.
    """
    properties = tuple(dict.fromkeys(name.removesuffix("-0").removesuffix("-1") for name in MEASURED))
    measured = regionprops_table(cells.labels, properties=properties)
    table = {shown: np.asarray(measured[name]) for name, shown in MEASURED.items()}
    table["index"] = table["index"] + count
    for name in ("centre_y", "centre_x"):
        table[name] = table[name] + HALF_PIXEL
    table["score"] = np.asarray(cells.scores, float)
    table["cell_type"] = np.array([cells.cell_type or ""] * len(cells), dtype=object)
    if pixel is not None:
        table["area_um2"] = table["area_px"] * pixel.area_um2
    if pixel is not None and not pixel.is_square:
        table |= regionprops_table(cells.labels, properties=("eccentricity",), spacing=(pixel.y_um, pixel.x_um))
    for axis, at in enumerate(place):
        table[f"axis_{axis}"] = np.full(len(cells), at)
    return table
