"""Tiles: how they are laid, and that their cells are those of the whole image where the networks see all they need."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_detectors import tiny_detector
from torchvision.ops import box_iou

from kernel.data.synthetic.generate import generate_image
from kernel.ensemble.boxes import Detections
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.fallbacks import predict_image
from kernel.ensemble.load import load_ensemble
from kernel.ensemble.members import Member
from kernel.ensemble.networks import NotFiniteError, Tiling
from kernel.ensemble.tiles import (
    LEAST_MARGIN,
    LEAST_TILE_SIDE,
    TileCells,
    join_cells,
    lay_spans,
    lay_tiles,
    needs_tiles,
    predict_whole_or_tiled,
)
from kernel.ensemble.views import PAD_MULTIPLE
from kernel.local_weights import resolve_weights
from kernel.manifest.reader import read_manifest
from kernel.masks.rle import parse_rle
from kernel.postprocess.submission import check_image_rles
from kernel.segment import segment_image
from kernel.settings import CELL_TYPES, CLS_USE, COMPETITION_SHAPE, DEFAULT_THRESHOLDS, EnsembleSettings, Thresholds

pytestmark = pytest.mark.usefixtures("wheels_site", "one_thread")

DEMO = Path(__file__).resolve().parents[2] / "bundle" / "synthetic"
ALL_TYPES = frozenset(CELL_TYPES)
SMALL = Tiling(whole_pixels=0, side=LEAST_TILE_SIDE, feature_bytes=1 << 30)


# --- how they are laid -------------------------------------------------------------------------------------------


@given(
    length=st.integers(1, 12_000),
    side=st.sampled_from([512, 640, 768, 1024, 1536, 2048]),
    grid=st.sampled_from([PAD_MULTIPLE, 64]),  # the coarsest stride of stems of stride 1 and 2
)
def test_tiles_cover_an_axis_and_lie_on_the_grid_of_the_whole(length: int, side: int, grid: int) -> None:
    spans = lay_spans(length, side, grid)
    assert (spans[0].start, spans[0].core_start, spans[-1].stop, spans[-1].core_stop) == (0, 0, length, length)
    for span in spans:
        assert 0 < span.stop - span.start <= side and span.start <= span.core_start < span.core_stop <= span.stop
        # Both ends: a flipped view is padded at the other side.
        assert span.start % grid == 0 and (length - span.stop) % grid == 0
    for one, other in itertools.pairwise(spans):
        assert one.core_stop == other.core_start and one.core_stop % grid == 0
        assert min(one.stop - one.core_stop, other.core_start - other.start) >= LEAST_MARGIN
    assert len(spans) == 1 or length > side
    padded = -(-length // PAD_MULTIPLE) * PAD_MULTIPLE
    for stride in (grid // 16, grid // 2, grid):
        of_cores = 0
        for span in spans:
            positions = -(-(-(-(span.stop - span.start) // PAD_MULTIPLE) * PAD_MULTIPLE) // stride)
            of_cores += len(range(positions)[span.core_slice(stride)])
        assert of_cores == -(-padded // stride)


@given(height=st.integers(1, 3000), width=st.integers(1, 3000))
def test_each_pixel_is_in_the_core_of_one_tile(height: int, width: int) -> None:
    tiles = lay_tiles((height, width), 512)
    area = sum((t.rows.core_stop - t.rows.core_start) * (t.columns.core_stop - t.columns.core_start) for t in tiles)
    assert area == height * width
    points = torch.tensor([[0.0, 0.0], [width - 1, height - 1], [width / 2, height / 2], [width / 3, height - 0.5]])
    homes = torch.zeros(len(points))
    for tile in tiles:
        shift = torch.tensor([tile.columns.start, tile.rows.start])
        homes += tile.is_in_core(torch.cat([points - shift - 1, points - shift + 1], dim=1))
    assert homes.tolist() == [1, 1, 1, 1]


def test_what_is_tiled() -> None:
    tiling = Tiling(whole_pixels=1 << 20, side=512, feature_bytes=0)
    assert not needs_tiles((1024, 1024), tiling) and needs_tiles((1024, 1025), tiling)
    assert needs_tiles((1, 40_000), tiling)
    assert not needs_tiles((512, 512), replace(tiling, whole_pixels=0))  # it would be one tile


# --- as if they were whole ---------------------------------------------------------------------------------------


def demo(*names: str) -> Ensemble:
    """The demo's members of these names, with limits on the number of proposals that these images do not reach."""
    manifest = read_manifest(DEMO / "manifest.json")
    manifest = replace(manifest, members=tuple(each for each in manifest.members if each.name in names))
    manifest, found = resolve_weights(manifest, DEMO / "weights")
    ensemble = load_ensemble(manifest, {weights.member.name: weights.path for weights in found}, "cpu")
    thresholds = {
        cell_type: replace(each, rpn_nms_pre=100_000) for cell_type, each in ensemble.settings.thresholds.items()
    }
    ensemble.settings = replace(ensemble.settings, thresholds=thresholds)
    return ensemble


def cells_image(cell_type: str, shape: tuple[int, int], seed: int = 3) -> np.ndarray:
    return np.repeat(generate_image(cell_type, seed, shape).image[..., None], 3, axis=2)


def in_tiles(ensemble: Ensemble, image: np.ndarray) -> Prediction:
    ensemble.tiling = SMALL
    try:
        return predict_whole_or_tiled(ensemble, image)
    finally:
        ensemble.tiling = None


def assert_matching_boxes(found: Prediction, whole: Prediction, score_tolerance: float) -> None:
    """Each box of the whole image has one of the tiles, of the same class and score."""
    iou = box_iou(whole.boxes_xyxy.double(), found.boxes_xyxy.double())
    close = (whole.scores[:, None] - found.scores[None]).abs() <= score_tolerance
    matches = (iou > 0.99) & close & (whole.labels[:, None] == found.labels[None])
    assert len(found.scores) == len(whole.scores) and matches.any(dim=1).all() and matches.any(dim=0).all()


def test_where_the_networks_see_no_farther_than_the_margin_tiles_are_equal() -> None:
    """To rounding: a convolution of another size may add in another order."""
    ensemble, image = demo("maskrcnn"), cells_image("shsy5y", (64, 1003))
    whole, found = ensemble.predict(image), in_tiles(ensemble, image)
    assert len(lay_tiles((64, 1003), LEAST_TILE_SIDE)) > 2 and len(whole.scores) > 20
    assert found.level_counts == whole.level_counts
    assert_matching_boxes(found, whole, score_tolerance=1e-4)
    torch.testing.assert_close(found.scores, whole.scores, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("cell_type", "names", "shape", "tta"),
    [
        ("shsy5y", ("htc",), (96, 803), True),  # sides that are no multiples of 32: each view has its own grid
        ("cort", ("maskrcnn",), (801, 97), True),
        ("astro", ("maskrcnn", "cascade"), (64, 832), False),
        ("shsy5y", ("maskrcnn",), (640, 610), False),  # borders that cross
    ],
)
def test_tiles_give_what_the_whole_image_gives(
    cell_type: str, names: tuple[str, ...], shape: tuple[int, int], tta: bool
) -> None:
    """HTC's semantic head resizes by a factor that depends on the tile: its scores differ a little, rarely a pixel."""
    ensemble = demo(*names)
    ensemble.settings = replace(ensemble.settings, use_tta=tta, use_tta_masks=tta)
    image = cells_image(cell_type, shape)
    whole, found = ensemble.predict(image), in_tiles(ensemble, image)
    assert len(lay_tiles(shape, LEAST_TILE_SIDE)) > 1 and len(whole.scores) > 3
    assert (found.cell_type, found.level_counts, found.members) == (whole.cell_type, whole.level_counts, whole.members)
    assert found.image_shape == shape and set(found.seconds) == set(whole.seconds)
    assert (found.scores.diff() <= 0).all() and found.mask_probs.dtype == torch.float32
    assert_matching_boxes(found, whole, score_tolerance=1e-2 if "htc" in names else 1e-4)
    whole_masks = segment_image(ensemble, image).masks
    ensemble.tiling = SMALL
    masks = segment_image(ensemble, image).masks
    assert len(masks) == len(whole_masks)
    check_image_rles("tiled", masks.rles(), shape)
    frames = [np.zeros(shape, bool).ravel() for _ in range(2)]
    for frame, rles in zip(frames, (masks.rles(), whole_masks.rles()), strict=True):
        for text in rles:
            for start, end in zip(*parse_rle(text, shape), strict=True):
                frame[start:end] = True
    assert (frames[0] != frames[1]).sum() <= 0.001 * frames[1].sum()


def typed(name: str, *uses: str, label: int | None = None) -> Member:
    """A tiny detector; with `label`, all of whose boxes get it."""
    detector = tiny_detector("maskrcnn", len(name))
    if label is not None:
        detector.roi_head.bbox_head.fc_cls.bias.data[label] += 50
    return Member(name, "maskrcnn", detector, frozenset(uses))


LIMITS = Thresholds(rpn_max_per_img=40, rcnn_iou_threshold=0.5, rcnn_score_threshold=0.1)
SETTINGS = EnsembleSettings(
    thresholds=dict.fromkeys(CELL_TYPES, LIMITS), use_tta=False, use_tta_masks=False, mask_score_power=0
)


def noise(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3)).astype(np.uint8)


def test_the_cell_type_is_one_decision_for_all_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass names astro: its member alone predicts every tile, whatever each one shows by itself."""
    members = [typed("first", CLS_USE, label=1), typed("astro one", "astro"), typed("other", "shsy5y", "cort")]
    ensemble = Ensemble(members, SETTINGS)
    asked: list[tuple[str, str]] = []
    choose = Ensemble.choose_boxes

    def noted(self: Ensemble, features: object, members: object, proposals: object, cell_type: str) -> Detections:
        asked.append((members[0].name, cell_type))  # type: ignore[index]
        return choose(self, features, members, proposals, cell_type)  # type: ignore[arg-type]

    monkeypatch.setattr(Ensemble, "choose_boxes", noted)
    found = in_tiles(ensemble, noise((40, 900)))
    assert found.cell_type == "astro" and set(found.members) == {"first", "astro one"} and len(found.scores) > 3
    count = len(lay_tiles((40, 900), LEAST_TILE_SIDE))
    assert [name for name, _ in asked] == ["first"] * count + ["astro one"] * count
    assert {cell_type for _, cell_type in asked[count:]} == {"astro"}


@pytest.mark.parametrize("bbox_nms", [True, False])
def test_an_image_without_cells_has_none_in_tiles(bbox_nms: bool) -> None:
    thresholds = dict.fromkeys(CELL_TYPES, replace(LIMITS, rpn_score_threshold=1.0))
    settings = replace(SETTINGS, thresholds=thresholds, bbox_nms=bbox_nms)
    found = in_tiles(Ensemble([typed("first", *ALL_TYPES, CLS_USE)], settings), noise((40, 900)))
    assert found.boxes_xyxy.shape == (0, 4) and found.mask_probs.shape == (0, 28, 28) and len(found.labels) == 0


def test_numbers_that_overflow_in_one_tile_are_told() -> None:
    member = typed("first", *ALL_TYPES, CLS_USE)
    member.detector.roi_head.bbox_head.fc_cls.bias.data[0] = float("nan")
    with pytest.raises(NotFiniteError):
        in_tiles(Ensemble([member], SETTINGS), noise((40, 900)))


def test_where_memory_is_missing_after_all_tiles_get_smaller(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As small as can be: half of the planned side may be more than the image has, and all would be as before."""
    planned, room = Tiling(1 << 24, 2048, 1 << 30), 700
    ensemble = Ensemble([typed("first", *ALL_TYPES, CLS_USE)], SETTINGS, tiling=planned)
    features = Ensemble.compute_features

    def limited(self: Ensemble, member: Member, images: torch.Tensor) -> object:
        if images.shape[-1] > room:
            raise MemoryError
        return features(self, member, images)

    monkeypatch.setattr(Ensemble, "compute_features", limited)
    for width in (900, 1500):
        assert len(predict_image(ensemble, noise((40, width))).scores) > 3
        assert "trying again in smaller tiles" in caplog.text and ensemble.tiling == planned
        caplog.clear()
    room = 400
    with pytest.raises(MemoryError):
        predict_image(ensemble, noise((40, 900)))


def test_a_cell_that_each_tile_sees_in_the_others_core_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = Ensemble([typed("first", *ALL_TYPES, CLS_USE)], SETTINGS)
    first, second = lay_tiles((40, 600), LEAST_TILE_SIDE)
    border = first.columns.core_stop
    centres = iter([border + 0.2, border - 0.2 - second.columns.start])

    def chosen(*_: object) -> Detections:
        x = next(centres)
        return Detections(torch.tensor([[x - 10, 5, x + 10, 25]]), torch.tensor([0.9]), torch.tensor([0]))

    monkeypatch.setattr(Ensemble, "choose_boxes", chosen)
    assert len(in_tiles(ensemble, noise((40, 600))).scores) == 1


@pytest.mark.parametrize("tiling", [None, SMALL])
def test_a_large_image_keeps_the_cells_that_its_parts_have(tiling: Tiling | None) -> None:
    """The same field four times: limits that are meant for one do not take cells of the four."""
    ensemble = demo("maskrcnn")
    limits = {each: replace(DEFAULT_THRESHOLDS[each], rpn_nms_pre=400) for each in CELL_TYPES}
    ensemble.settings = replace(ensemble.settings, use_tta=False, use_tta_masks=False, thresholds=limits)
    field = cells_image("shsy5y", COMPETITION_SHAPE)
    alone = ensemble.predict(field)
    ensemble.tiling = tiling
    four = predict_whole_or_tiled(ensemble, np.tile(field, (2, 2, 1)))
    assert four.cell_type == alone.cell_type and len(alone.scores) > 50
    assert len(four.scores) > 0.95 * 4 * len(alone.scores)


# --- the joint ---------------------------------------------------------------------------------------------------


def tile_cells(*rows: tuple[float, float, float, float, float]) -> TileCells:
    """Cells of x1, y1, x2, y2 and score; each mask is filled with its score."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    boxes = Detections(values[:, :4], values[:, 4], torch.zeros(len(values), dtype=torch.int64))
    return TileCells(boxes, boxes, values[:, 4, None, None].expand(-1, 28, 28).clone())


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.5, [0.9, 0.8, 0.7]), (None, [0.9, 0.8, 0.7, 0.6]), (0.99, [0.9, 0.8, 0.7, 0.6])]
)
def test_a_cell_that_two_tiles_have_is_one(threshold: float | None, kept: list[float]) -> None:
    tiles = [
        tile_cells((0, 0, 20, 20, 0.7), (90, 0, 120, 30, 0.6)),
        tile_cells(),
        tile_cells((91, 0, 121, 30, 0.9), (150, 0, 170, 20, 0.8)),
    ]
    boxes, masks = join_cells(tiles, threshold)
    assert boxes.scores.tolist() == pytest.approx(kept) and boxes.boxes_xyxy.shape == (len(kept), 4)
    torch.testing.assert_close(masks[:, 5, 5], boxes.scores)
    assert tiles == []
