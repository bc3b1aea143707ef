"""Images at the scale that members know: what the networks see, and masks in the image's own pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import load_file

from kernel.__main__ import main
from kernel.api import load
from kernel.data.learned import MemberRecord
from kernel.ensemble.ensemble import Prediction
from kernel.errors import InputError
from kernel.images.pixel_size import PixelSize
from kernel.images.zoom import COMPETITION_PIXEL_UM, NO_ZOOM, zoom_of
from kernel.local_weights import FoundWeights, check_claims
from kernel.manifest.reader import read_manifest
from kernel.masks.choosing import keep_cells
from kernel.masks.instances import CellMasks
from kernel.masks.labels import label_image
from kernel.scale import PIXEL_SIZE_KEY, ScaledEnsemble, cell_size, member_pixel_um, told_pixel_um
from kernel.settings import Thresholds
from kernel.training.state import save_weights

DEMO = Path(__file__).resolve().parents[1] / "bundle" / "synthetic"


@pytest.mark.parametrize(
    ("pixel", "given", "zoom"),
    [
        (None, None, NO_ZOOM),
        (PixelSize(0.62, 0.62, "a test"), None, (0.5, 0.5)),
        (PixelSize(2.48, 1.24, "a test"), None, (2.0, 1.0)),
        (PixelSize(1.25, 1.25, "a test"), None, NO_ZOOM),  # as good as theirs
        (PixelSize(0.62, 0.62, "a test"), 3.0, (3.0, 3.0)),
        (None, 1.01, (1.01, 1.01)),
    ],
)
def test_the_zoom(pixel: PixelSize | None, given: float | None, zoom: tuple[float, float]) -> None:
    assert zoom_of(pixel, 1.24, given) == pytest.approx(zoom)


def test_zooms_that_show_no_cells() -> None:
    for pixel, given, told in (
        (None, 100.0, "asked for"),
        (PixelSize(0.01, 0.01, "a test"), None, "pixels are of 0.01 um, by a test"),
        (PixelSize(1.24, 1000, "a test"), None, "1000 x 1.24 um"),
    ):
        with pytest.raises(InputError) as error:
            zoom_of(pixel, 1.24, given)
        assert told in str(error.value)


def write_member(path: Path, told: str | None) -> Path:
    save_file({"weight": np.zeros(3, np.float32)}, path, None if told is None else {PIXEL_SIZE_KEY: told})
    return path


def test_what_members_tell_of_their_pixels(tmp_path: Path) -> None:
    silent = write_member(tmp_path / "silent.safetensors", None)
    fine = write_member(tmp_path / "fine.safetensors", "0.65")
    (tmp_path / "old.pth").touch()
    assert member_pixel_um({"a": silent, "b": tmp_path / "old.pth"}) == COMPETITION_PIXEL_UM
    assert member_pixel_um({"a": fine, "b": fine}) == 0.65 and member_pixel_um({}) == COMPETITION_PIXEL_UM
    with pytest.raises(InputError, match=r"\(a 0.65, b 1.24 um\)"):
        member_pixel_um({"a": fine, "b": silent})
    for wrong in ("", "x", "0", "-1", "nan", "inf"):
        with pytest.raises(InputError, match="no size in micrometres"):
            member_pixel_um({"a": write_member(tmp_path / "wrong.safetensors", wrong)})


def test_a_trainings_record_tells_the_size_of_pixels(tmp_path: Path) -> None:
    trained, noted = tmp_path / "trained.safetensors", tmp_path / "noted.safetensors"
    state = load_file(DEMO / "weights" / "maskrcnn.safetensors")
    for told, expected in ((0.65, 0.65), (None, None)):
        save_weights(state, trained, record=MemberRecord("0" * 16, 1, 1, (), pixel_size_um=told))
        assert told_pixel_um(trained) == expected
    save_weights(state, trained, record=MemberRecord("0" * 16, 1, 1, (), pixel_size_um=0.65))
    assert main(["convert", str(trained), str(noted), "--pixel-size", "0.5"]) == 0
    assert told_pixel_um(noted) == 0.5  # a correction
    save_weights(state, trained, record=MemberRecord("0" * 16, 1, 1, (), pixel_size_um=-1))
    with pytest.raises(InputError, match="no size in micrometres"):
        told_pixel_um(trained)


def test_convert_notes_the_size_of_pixels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noted, again = tmp_path / "noted.safetensors", tmp_path / "again.safetensors"
    assert main(["convert", str(DEMO / "weights" / "maskrcnn.safetensors"), str(noted), "--pixel-size", "0.65"]) == 0
    assert main(["convert", str(noted), str(again)]) == 0
    assert told_pixel_um(noted) == told_pixel_um(again) == 0.65
    with pytest.raises(SystemExit, match="2"):
        main(["convert", str(noted), str(tmp_path / "no.safetensors"), "--pixel-size", "0"])
    assert "--pixel-size: '0' is not a number above 0" in capsys.readouterr().err


@pytest.mark.usefixtures("wheels_site")
def test_a_build_tells_that_members_know_pixels_of_another_size(tmp_path: Path) -> None:
    """The kernel shows its images as they are; what size those of other competitions have is not known."""
    manifest = read_manifest(DEMO / "manifest.json")
    silent = DEMO / "weights" / "maskrcnn.safetensors"
    told = tmp_path / "told.safetensors"
    assert main(["convert", str(silent), str(told), "--pixel-size", "0.65"]) == 0
    entry = replace(manifest.members[0], sha256=None, stem_stride=1)
    one, other = (FoundWeights(replace(entry, name=name), told) for name in ("one", "other"))
    alike = replace(manifest, members=(one.member, other.member))
    (point,) = check_claims(alike, [one, other])
    assert "learned from pixels of 0.65 um" in point and "cells of 0.52 times the diameter" in point
    elsewhere = replace(alike, kernel=replace(manifest.kernel, competition="cells"))
    assert check_claims(elsewhere, [one, other]) == []
    with pytest.raises(InputError, match=r"\(one 0.65, other 1.24 um\), and cannot be averaged"):
        check_claims(elsewhere, [one, replace(other, path=silent)])


class SeenEnsemble:
    """In an ensemble's place: keeps what it was shown, and finds one square cell there, at given edges."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, box: tuple[float, float, float, float], min_size: int = 0):
        thresholds = Thresholds(confidence=0.1, min_size=min_size)
        self.settings = SimpleNamespace(thresholds={"cort": thresholds})
        self.device = torch.device("cpu")
        self.box = box
        self.seen: list[np.ndarray] = []
        self.planned: list[tuple[int, int]] = []
        monkeypatch.setattr("kernel.scale.predict_image", self.predict)
        monkeypatch.setattr("kernel.segment.predict_image", self.predict)
        monkeypatch.setattr("kernel.scale.apply_plan", lambda ensemble, plan: self.planned.append(plan))
        monkeypatch.setattr("kernel.scale.plan_memory", lambda ensemble, shape, free: shape)
        monkeypatch.setattr("kernel.scale.free_memory", lambda device: 0)

    def predict(self, ensemble: Any, image: np.ndarray) -> Prediction:
        self.seen.append(image)
        return Prediction(
            image.shape[:2], "cort", (), torch.tensor([self.box]), torch.ones(1), torch.tensor([2]),
            torch.ones(1, 28, 28), (), {}, torch.float32,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "zoom", "seen"),
    [
        ((40, 60), (2.0, 2.0), (80, 120)),
        ((41, 63), (0.5, 0.5), (20, 32)),  # rounded: the label image still has the image's very size
        ((40, 60), (2.0, 1.0), (80, 60)),
        ((40, 60), NO_ZOOM, (40, 60)),
        ((1, 1), (0.1, 0.1), (1, 1)),
    ],
)
def test_masks_lie_in_the_images_own_pixels(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], zoom: tuple[float, float], seen: tuple[int, int]
) -> None:
    """The cell covers the second quarter of the rows, and the third of the columns, of whatever the networks see."""
    box = (seen[1] / 2, seen[0] / 4, seen[1] * 3 / 4, seen[0] / 2)
    networks = SeenEnsemble(monkeypatch, box)
    ensemble: Any = networks
    image = np.zeros((*shape, 3), np.uint8)
    masks = ScaledEnsemble(ensemble).segment(image, zoom).masks
    assert networks.seen[0].shape == (*seen, 3) and networks.planned == [seen]
    labels = label_image(masks)
    assert labels.shape == shape and masks.cell_type == "cort"
    if min(shape) > 1:
        rows, columns = np.flatnonzero(labels.any(axis=1)), np.flatnonzero(labels.any(axis=0))
        expected = shape[0] / 4, shape[0] / 2, shape[1] / 2, shape[1] * 3 / 4
        found = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        np.testing.assert_allclose(found, expected, atol=1)


@pytest.mark.parametrize(("min_size", "count"), [(99, 1), (101, 0)])
def test_the_least_size_is_in_the_pixels_that_members_know(
    monkeypatch: pytest.MonkeyPatch, min_size: int, count: int
) -> None:
    """10 x 10 pixels for them, 5 x 5 of the image's. (The largest cell stays, so there is a second one.)"""
    ensemble: Any = SeenEnsemble(monkeypatch, (20, 20, 30, 30), min_size)
    one = ensemble.predict

    def two(given: Any, image: np.ndarray) -> Prediction:
        small, large = one(given, image), torch.tensor([[0.0, 0.0, 16.0, 16.0]])
        return Prediction(
            small.image_shape, "cort", (), torch.cat([small.boxes_xyxy, large]), torch.ones(2), torch.tensor([2, 2]),
            torch.ones(2, 28, 28), (), {}, torch.float32,
        )  # fmt: skip

    monkeypatch.setattr("kernel.scale.predict_image", two)
    masks = ScaledEnsemble(ensemble).segment(np.zeros((40, 40, 3), np.uint8), (2.0, 2.0)).masks
    assert len(masks) == 1 + count and max(masks.sizes) == 64
    assert ensemble.settings.thresholds["cort"].min_size == min_size


def test_memory_is_planned_for_larger_images_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = SeenEnsemble(monkeypatch, (0, 0, 4, 4))
    ensemble: Any = networks
    scaled = ScaledEnsemble(ensemble)
    scaled.plan((20, 20))
    for shape, zoom in (((10, 10), NO_ZOOM), ((30, 30), NO_ZOOM), ((20, 20), (2.0, 2.0)), ((40, 40), NO_ZOOM)):
        scaled.segment(np.zeros((*shape, 3), np.uint8), zoom)
    assert networks.planned == [(20, 20), (30, 30), (40, 40)]


def squares(sides: list[int], places: list[tuple[int, int]], shape: tuple[int, int] = (200, 200)) -> CellMasks:
    count = len(sides)
    crops = tuple(np.ones((side, side), bool) for side in sides)
    offsets = np.array(places).reshape(-1, 2)
    return CellMasks(crops, offsets, np.zeros((count, 4)), np.ones(count), np.full(count, 2), shape, "cort")


def test_cells_far_from_the_usual_size() -> None:
    def far(side: int, count: int = 10) -> bool:
        masks = squares([side] * count, [(0, 15 * number) for number in range(count)], (400, 400))
        size = cell_size(masks, 1.24)
        assert size is not None and size.usual_px == pytest.approx(16.2, abs=0.1)
        return size.is_far

    assert [far(side) for side in (7, 14, 20, 29)] == [True, False, False, True]
    assert not far(29, count=9)  # too few to say
    assert cell_size(CellMasks.empty((5, 5)), 1.24) is None


def test_cells_at_the_edge_and_small_ones() -> None:
    masks = squares([3, 2, 3, 2, 2], [(0, 5), (50, 0), (197, 9), (70, 198), (90, 90)])
    assert keep_cells(masks).sizes.tolist() == [9, 4, 9, 4, 4]
    assert keep_cells(masks, min_area=5).sizes.tolist() == [9, 9]
    assert keep_cells(masks, exclude_edges=True).offsets_yx.tolist() == [[90, 90]]
    hollow = np.zeros((4, 4), bool)
    hollow[1:3, 1:3] = True  # a crop may be wider than its mask
    inside = CellMasks((hollow,), np.array([[0, 0]]), np.zeros((1, 4)), [1], [2], (4, 4), "cort")
    assert len(keep_cells(inside, exclude_edges=True)) == 1
    nothing = keep_cells(CellMasks.empty((5, 5)), exclude_edges=True, min_area=3)
    assert len(nothing) == 0 and nothing.image_shape == (5, 5)


def f1_at_half(labels: np.ndarray, others: np.ndarray) -> float:
    """The F1 of two label images of the same shape: cells match that have an IoU above 0.5."""
    shared = np.zeros((labels.max() + 1, others.max() + 1))
    np.add.at(shared, (labels.ravel(), others.ravel()), 1)
    union = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0, keepdims=True) - shared
    matches = (shared[1:, 1:] > 0.5 * union[1:, 1:]).sum()
    return 2 * matches / (labels.max() + others.max())


@pytest.mark.parametrize(("name", "share"), [("f3cf87709777", 0.5), ("6da59d890357", 0.5**0.5)])
def test_the_same_image_at_fewer_pixels_has_the_same_cells(
    wheels_site: Path, one_thread: None, name: str, share: float
) -> None:
    """The cells of astro at half the height and width, the far smaller ones of shsy5y at half the number of pixels."""
    image = cv2.imread(str(DEMO / "images" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
    segmenter = load(DEMO / "manifest.json", device="cpu")
    smaller = cv2.resize(image, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
    cells = segmenter.segment(smaller, pixel_um=COMPETITION_PIXEL_UM / share)
    assert cells.labels.shape == smaller.shape and cells.zoom == pytest.approx((1 / share, 1 / share))
    enlarged = cv2.resize(cells.labels, image.shape[::-1], interpolation=cv2.INTER_NEAREST)
    assert f1_at_half(segmenter.segment(image).labels, enlarged) > 0.9
