"""Arrays in, arrays out: the same cells as of a file."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

from kernel.api import Cells, Segmenter, as_bgr, load
from kernel.data.synthetic.generate import generate_image
from kernel.errors import InputError
from kernel.masks.instances import CellMasks
from kernel.segment import segment_image

DEMO = Path(__file__).resolve().parents[1] / "bundle" / "synthetic"


@pytest.fixture(scope="module")
def segmenter(wheels_site: Path, one_thread: None) -> Segmenter:
    return load(DEMO / "manifest.json", device="cpu")


def test_the_cells_of_an_array(segmenter: Segmenter) -> None:
    gray = generate_image("cort", 3, (160, 224)).image
    cells = segmenter.segment(gray)
    expected = segment_image(segmenter.ensemble, np.repeat(gray[..., None], 3, axis=2)).masks
    assert len(cells) == len(expected) > 0
    assert cells.labels.shape == gray.shape and cells.labels.max() == len(cells)
    for number, mask in enumerate(cells.masks, start=1):
        np.testing.assert_array_equal(mask, cells.labels == number)
    np.testing.assert_array_equal(cells.scores, expected.scores)
    assert set(cells.cell_labels) <= {"shsy5y", "astro", "cort"} and cells.cell_type == "cort"
    areas = [sum(ring_area(ring) for piece in outline for ring in piece) for outline in cells.outlines]
    assert areas == expected.sizes.tolist()
    # A generator takes one image at a time.
    many = segmenter.segment_many(iter([gray, np.full((40, 50), 128, np.uint8)]))
    np.testing.assert_array_equal(next(many).labels, cells.labels)
    assert len(next(many)) == 0


def test_planes_of_an_array_with_axes(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks see the very plane; a stack in memory and in a file is the same to them."""
    seen: list[np.ndarray] = []

    def segment(ensemble: object, image: np.ndarray, zoom: tuple[float, float]) -> SimpleNamespace:
        seen.append(image)
        return SimpleNamespace(masks=CellMasks.empty(image.shape[:2]))

    monkeypatch.setattr("kernel.scale.ScaledEnsemble.segment", segment)
    stack = np.random.default_rng(0).integers(0, 255, (2, 3, 4, 6, 7)).astype(np.uint8)
    segmenter.segment(stack, axes="TCZYX", channel=2, z=1, frame=1)
    segmenter.segment(stack.transpose(4, 3, 2, 1, 0), axes="xyzct", channel=2, z="max", frame=0)
    segmenter.segment(stack, axes=("T", "C", "Z", "Y", "X"))
    segmenter.segment(np.moveaxis(stack[0, :, 0], 0, -1), axes="YXS")
    for image, expected in zip(seen, (stack[1, 2, 1], stack[0, 2].max(axis=0), stack[0, 0, 2]), strict=False):
        np.testing.assert_array_equal(image, np.repeat(expected[..., None], 3, axis=2))
    np.testing.assert_array_equal(seen[3][..., 2], stack[0, 0, 0])  # red comes last
    seen.clear()
    every = list(segmenter.segment_many([stack, stack[:1]], axes="TCZYX", frame="all", z=0))
    assert len(every) == 3
    for image, frame in zip(seen, (0, 1, 0), strict=True):
        np.testing.assert_array_equal(image[..., 0], stack[frame, 0, 0])


def seen_by() -> tuple[Segmenter, list[np.ndarray]]:
    """A segmenter without networks, and the images that these would see."""
    seen: list[np.ndarray] = []

    def segment(image: np.ndarray, zoom: tuple[float, float]) -> SimpleNamespace:
        seen.append(image)
        return SimpleNamespace(masks=CellMasks.empty(image.shape[:2]))

    return Segmenter(cast(Any, SimpleNamespace(member_um=1.24, segment=segment))), seen


@pytest.mark.parametrize("axes", ["TYX", "tyx", "QYX", "IYX", "ZYX"])
def test_every_frame_whatever_its_axis_is_called(axes: str) -> None:
    segmenter, seen = seen_by()
    movie = np.stack([np.full((6, 7), value, np.uint8) for value in (10, 20, 30)])
    assert len(list(segmenter.segment_many([movie, movie[:2]], axes=axes, frame="all"))) == 5
    assert [int(image.mean()) for image in seen] == [10, 20, 30, 10, 20]
    segmenter.segment(movie, axes=axes, frame=2)
    assert int(seen[-1].mean()) == 30
    both = np.stack([movie, movie + 1], axis=1)  # the axis without a meaning is the one that is left
    assert len(list(segmenter.segment_many([both], axes="qcyx", frame="all", channel=1))) == 3
    assert [int(image.mean()) for image in seen[-3:]] == [11, 21, 31]
    assert len(list(segmenter.segment_many([movie[0]], axes="YX", frame="all"))) == 1


def test_one_image_is_not_several() -> None:
    segmenter, seen = seen_by()
    gray = np.zeros((6, 7), np.uint8)
    for one in (
        gray,
        np.dstack([gray] * 3),
        np.dstack([gray] * 4),
        Image.fromarray(gray),
        torch.from_numpy(gray),
        "a.png",
        Path("a.png"),
    ):
        with pytest.raises(ValueError, match="give a list of images"):
            next(segmenter.segment_many(cast(Any, one)))
    with pytest.raises(ValueError, match="give a list of images"):
        next(segmenter.segment_many(np.stack([gray] * 2), axes="ZYX"))
    assert not seen
    assert len(list(segmenter.segment_many(np.stack([gray] * 4)))) == 4  # an array of images
    assert len(list(segmenter.segment_many(np.stack([gray] * 4)[None], axes="ZYX"))) == 1
    with pytest.raises(ValueError, match=r"'a\.png' is a path: read the image first"):
        next(segmenter.segment_many(cast(Any, ["a.png"])))


def test_images_of_other_packages() -> None:
    segmenter, seen = seen_by()
    gray = np.random.default_rng(0).integers(0, 255, (6, 7)).astype(np.uint8)
    given = [Image.fromarray(gray), Image.fromarray(gray).convert("RGB"), torch.from_numpy(gray)]
    for image in given:
        segmenter.segment(cast(Any, image))
        np.testing.assert_array_equal(seen[-1], np.repeat(gray[..., None], 3, axis=2))
    values = torch.from_numpy(gray / 255.0)
    segmenter.segment(values.numpy())
    expected = seen[-1]
    segmenter.segment(cast(Any, values.clone().requires_grad_()))
    np.testing.assert_array_equal(seen[-1], expected)
    segmenter.segment(cast(Any, values.bfloat16()))
    assert np.abs(seen[-1].astype(int) - expected).max() < 4
    for mode in ("P", "CMYK", "HSV", "LA", "1"):
        with pytest.raises(ValueError, match=rf"mode {mode}: give image\.convert\('RGB'\)"):
            segmenter.segment(cast(Any, Image.fromarray(np.dstack([gray] * 3)).convert(mode)))
    for path in ("a.png", Path("a.png")):
        with pytest.raises(ValueError, match="is a path: read the image first"):
            segmenter.segment(cast(Any, path))


def test_gray_levels_that_members_do_not_know(caplog: pytest.LogCaptureFixture) -> None:
    """Said once, as it is likely true of the next image as well."""
    segmenter, seen = seen_by()
    dim = np.random.default_rng(0).normal(30, 3, (60, 70)).astype(np.uint8)
    known = (dim.astype(int) * 4).astype(np.uint8)
    segmenter.segment(known)
    segmenter.segment(dim, match_gray=True)
    assert abs(seen[-1].mean() - 128) < 1 and not caplog.messages
    segmenter.segment(dim.astype(float))
    assert abs(seen[-1].mean() - 128) < 1 and not caplog.messages
    assert len(list(segmenter.segment_many([dim, dim, dim]))) == 3
    (told,) = caplog.messages
    assert "far from what the members know (mean 29, spread" in told and "match_gray=True" in told
    np.testing.assert_array_equal(seen[-1], np.dstack([dim] * 3))


@pytest.mark.parametrize(
    "wrong",
    [
        *({"zoom": 0}, {"pixel_um": -1}, {"zoom": float("nan")}, {"pixel_um": "0.65"}),
        *({"pixel_um": pair} for pair in ((0.65, 0), (0.65,), [0.5] * 3, np.zeros(2), ("1", "1"), np.ones((2, 2)))),
    ],
)
def test_scales_that_mean_nothing(wrong: dict[str, Any]) -> None:
    segmenter, seen = seen_by()
    with pytest.raises(ValueError, match="must be a number above 0"):
        segmenter.segment(np.zeros((6, 7), np.uint8), **wrong)
    assert not seen
    segmenter.segment(np.zeros((6, 7), np.uint8), **{name: np.float32(0.5) for name in wrong})
    assert len(seen) == 1


@pytest.mark.parametrize("value", [True, 1.0, np.float32(1), [1]])
@pytest.mark.parametrize("role", ["channel", "z", "frame"])
def test_a_place_is_an_index(role: str, value: Any) -> None:
    segmenter, seen = seen_by()
    stack = np.stack([np.full((6, 7), level, np.uint8) for level in (10, 20, 30)])
    with pytest.raises(InputError, match=f"{role} .*give an index, counted from 0"):
        segmenter.segment(stack, axes="IYX", **{role: value})
    segmenter.segment(stack, axes="IYX", **{role: np.int64(1)})
    assert int(seen[-1].mean()) == 20


def test_the_scale_and_the_choice_of_cells(segmenter: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    zooms: list[tuple[float, float]] = []
    squares = tuple(np.ones((side, side), bool) for side in (4, 2, 4))
    masks = CellMasks(
        squares, np.array([[0, 0], [9, 9], [4, 14]]), np.zeros((3, 4)), [1] * 3, [2] * 3, (20, 30), "cort"
    )

    def segment(ensemble: object, image: np.ndarray, zoom: tuple[float, float]) -> SimpleNamespace:
        zooms.append(zoom)
        return SimpleNamespace(masks=masks)

    monkeypatch.setattr("kernel.scale.ScaledEnsemble.segment", segment)
    image = np.zeros((20, 30), np.uint8)
    assert segmenter.segment(image, pixel_um=0.62).zoom == (0.5, 0.5)
    for sides in ((2.48, 0.62), np.array([2.48, 0.62])):  # of rows, of columns
        assert segmenter.segment(image, pixel_um=sides).zoom == (2, 0.5)
    assert [len(segmenter.segment(image, **wanted)) for wanted in ({}, {"exclude_edges": True}, {"min_area": 5})] == [
        3,
        2,
        2,
    ]
    segmenter.segment(image, pixel_um=0.62, zoom=4)
    assert zooms == [(0.5, 0.5), (2, 0.5), (2, 0.5), *[(1, 1)] * 3, (4, 4)]


@pytest.mark.parametrize(
    ("wanted", "error", "told"),
    [
        ({"axes": "ZYX"}, ValueError, "do not fit the image's shape (4, 5)"),
        ({"axes": "YY"}, ValueError, "none twice"),
        ({"axes": ["time", "y", "x"]}, ValueError, "a letter for each dimension"),
        ({"axes": [0, 1]}, ValueError, "a letter for each dimension, as 'CZYX'"),
        ({"axes": 2}, ValueError, "a letter for each dimension, as 'CZYX'"),
        ({"axes": "CZ"}, ValueError, "with Y and X"),
        ({"channel": 1}, ValueError, "axes='CZYX'"),
        ({"axes": "YX", "channel": 1}, InputError, "no channel 1"),
        ({"axes": "YX", "z": "top"}, InputError, "z 'top'"),
        ({"axes": "YX", "frame": "all"}, ValueError, "segment_many"),
    ],
)
def test_axes_that_an_array_has_not(
    segmenter: Segmenter, wanted: dict[str, Any], error: type[Exception], told: str
) -> None:
    with pytest.raises(error) as raised:
        segmenter.segment(np.zeros((4, 5), np.uint8), **wanted)
    assert told in str(raised.value)


def ring_area(ring: list[list[int]]) -> float:
    """Signed: that of a hole is negative."""
    x, y = np.array(ring).T
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def test_no_cells() -> None:
    cells = Cells(CellMasks.empty((5, 7)))
    assert cells.masks.shape == (0, 5, 7) and cells.labels.shape == (5, 7) and not cells.labels.any()
    assert cells.outlines == [] and cells.cell_labels == () and cells.cell_type is None and len(cells.scores) == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32, np.float64])
def test_gray_and_colour_of_any_depth(dtype: type) -> None:
    gray = np.random.default_rng(0).normal(100, 10, (30, 40)).astype(dtype)
    colour = np.stack([gray, gray // 2, gray // 4], axis=2)
    assert as_bgr(gray).shape == (30, 40, 3) and as_bgr(gray).dtype == np.uint8
    if dtype == np.uint8:
        np.testing.assert_array_equal(as_bgr(colour), colour[..., ::-1])
        np.testing.assert_array_equal(as_bgr(gray), np.repeat(gray[..., None], 3, axis=2))
    else:
        assert abs(as_bgr(gray).mean() - 128) < 2
        assert as_bgr(colour)[..., 0].mean() < as_bgr(colour)[..., 2].mean()  # blue, the darkest, comes first


@pytest.mark.parametrize(
    ("image", "told"),
    [
        (np.zeros((3, 4, 5, 3)), "(3, 4, 5, 3)"),
        (np.zeros((4, 5, 2)), "(4, 5, 2)"),
        (np.zeros((4, 5, 4), np.uint8), "(4, 5, 4): if that is RGB and alpha, give image[..., :3]"),
        (np.zeros((0, 5)), "(0, 5)"),
        (np.zeros(7), "(7,)"),
        (np.zeros((4, 5), complex), "complex128"),
        (np.zeros((4, 5), bool), "bool: give integers or floats, as image.astype(float)"),
        (np.full((4, 5), "x"), "<U1"),
    ],
)
def test_other_arrays_are_refused(image: np.ndarray, told: str) -> None:
    with pytest.raises(ValueError) as error:
        as_bgr(image)
    assert told in str(error.value)


def test_what_is_wrong_with_the_files_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="int8"):
        load(DEMO / "manifest.json", dtype="int8")
    with pytest.raises(InputError, match=r"gone\.json: name one that is there"):
        load(tmp_path / "gone.json")
    with pytest.raises(InputError, match=r"no manifest\.json in "):
        load(tmp_path)
    with pytest.raises(InputError, match=r"^device gpu: "):
        load(DEMO, device="gpu")


@pytest.mark.parametrize("given", ["", "manifest.json"])
@pytest.mark.parametrize("place", ["weights", ""])
def test_members_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, place: str) -> None:
    """As `train-members` leaves them, in `weights` or beside the manifest."""
    asked: list[Path] = []

    def find(manifest: Any, folder: Path, dtype: str | None) -> Any:
        asked.append(folder)
        raise InputError("far enough")

    monkeypatch.setattr("kernel.commands.common.find_ensemble", find)
    monkeypatch.setattr("kernel.vendored.use_vendored_packages", lambda: None)
    (tmp_path / place).mkdir(exist_ok=True)
    shutil.copy(DEMO / "manifest.json", tmp_path)
    with pytest.raises(InputError, match="far enough"):
        load(tmp_path / given)
    assert asked == [tmp_path / place]
