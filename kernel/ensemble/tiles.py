"""Images too large for the memory: predicted in tiles that overlap, as if they were whole.

Tiles have cores, which meet without gap or overlap: a cell comes from the tile in whose core its box's centre lies.
Where that is at the border of two cores both tiles give the cell, and NMS leaves one. Around its core a tile has a
margin, in which the networks see what is beside a cell. The cell type is one decision for the whole image: by the
confident positions, or the labels, of all cores together.

To rounding, this equals the prediction of the whole image where the networks look no farther than the margin: the
borders of tiles lie on the grid of the coarsest feature map, also in the flipped views. These differ all the same:

- EfficientNet's squeeze and excitation takes means over all that it is given;
- HTC's semantic head resizes its maps from corner to corner, by a factor that depends on their size;
- a cell longer than two margins is cut where its tile ends;
- limits on the number of proposals hold for each tile, by its own area.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchvision.ops import nms

from kernel.ensemble.boxes import Detections
from kernel.ensemble.ensemble import Ensemble, Prediction
from kernel.ensemble.features import ImageFeatures
from kernel.ensemble.masks import score_by_masks
from kernel.ensemble.members import Member, proposing
from kernel.ensemble.networks import Tiling
from kernel.ensemble.proposals import cell_type_of_counts, count_confident_positions
from kernel.ensemble.views import PAD_MULTIPLE
from kernel.log import LOG
from kernel.postprocess.clean import most_frequent_cell_type
from kernel.settings import CLS_USE

#: The margin is this part of a tile's side, and at least so many pixels: cells and what the networks look at around
#: them are as large in small tiles.
MARGIN_PART = 8
LEAST_MARGIN = 128
#: No tile is smaller: its margins would take more than half of each side.
LEAST_TILE_SIDE = 512
#: A tile also gives the cells whose centres lie so few pixels outside its core: two tiles do not see quite the same, so
#: that each may place a cell in the other's core. Of the cells that both give, NMS leaves one.
SEAM_PIXELS = 2.0


@dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels of the image; ends are exclusive."""

    start: int
    stop: int
    core_start: int
    core_stop: int
    grid: int = PAD_MULTIPLE  # starts and inner borders are multiples of it: the stride of the coarsest feature map

    def core_slice(self, stride: int) -> slice:
        """The core's positions on the tile's feature map of a stride, those that pad the image included."""
        stop = -(-(self.core_stop - self.start) // self.grid) * self.grid
        return slice((self.core_start - self.start) // stride, stop // stride)


@dataclass(frozen=True)
class Tile:
    """A part of an image that is predicted at once."""

    rows: Span
    columns: Span

    def cut(self, image: np.ndarray) -> np.ndarray:
        """The tile's pixels (h, w, ...) of an image (H, W, ...)."""
        return image[self.rows.start : self.rows.stop, self.columns.start : self.columns.stop]

    def cut_core(self, maps: Sequence[torch.Tensor], strides: Sequence[int]) -> list[torch.Tensor]:
        """The positions of the tile's maps (..., h, w), one a stride, that lie in its core; what pads the image belongs
        to the last core."""
        return [
            level[..., self.rows.core_slice(stride), self.columns.core_slice(stride)]
            for level, stride in zip(maps, strides, strict=True)
        ]

    def is_in_core(self, boxes_xyxy: torch.Tensor, beyond: float = 0.0) -> torch.Tensor:
        """(N,) bool: whether the centres of boxes (N, 4), in pixels of the tile, lie in its core, or `beyond` it by no
        more than so many pixels."""
        inside = torch.ones(len(boxes_xyxy), dtype=torch.bool, device=boxes_xyxy.device)
        for axis, span in ((0, self.columns), (1, self.rows)):
            centres = (boxes_xyxy[:, axis] + boxes_xyxy[:, axis + 2]) / 2 + span.start
            inside &= (centres >= span.core_start - beyond) & (centres < span.core_stop + beyond)
        return inside

    def into_image(self, boxes: Detections) -> Detections:
        """Boxes in pixels of the tile as boxes in pixels of the image, on the CPU."""
        shift = torch.tensor([self.columns.start, self.rows.start] * 2, dtype=torch.float32)
        return Detections(boxes.boxes_xyxy.cpu() + shift, boxes.scores.cpu(), boxes.labels.cpu())


def lay_spans(length: int, side: int, grid: int = PAD_MULTIPLE) -> list[Span]:
    """Tiles of at most `side` pixels along an axis of `length` pixels, with overlap; one where `length` fits.

    All starts are multiples of `grid`, the coarsest stride, and so are the distances of all ends from the axis's own
    end: the feature maps of a tile, flipped or not, are parts of those of the whole image. Cores are bounded by such
    multiples.
    """
    if length <= side:
        return [Span(0, length, 0, length, grid)]
    margin = max(LEAST_MARGIN, side // MARGIN_PART)
    side -= (side - length) % grid
    step = (side - 2 * margin) // grid - 1  # in strides, as all that follows; one less, as borders are rounded
    last = (length - side) // grid
    gaps = -(-last // step)
    starts = [grid * (place * last // gaps) for place in range(gaps + 1)]
    borders = [grid * round((before + side + start) / (2 * grid)) for before, start in itertools.pairwise(starts)]
    return [
        Span(start, start + side, core_start, core_stop, grid)
        for start, core_start, core_stop in zip(starts, [0, *borders], [*borders, length], strict=True)
    ]


def lay_tiles(image_shape: tuple[int, int], side: int, grid: int = PAD_MULTIPLE) -> list[Tile]:
    """The tiles of an image (H, W), row by row; sides and `grid` as `lay_spans` has them."""
    height, width = image_shape
    return [Tile(rows, columns) for rows in lay_spans(height, side, grid) for columns in lay_spans(width, side, grid)]


def needs_tiles(image_shape: tuple[int, int], tiling: Tiling) -> bool:
    """Whether an image (H, W) is too large to be predicted whole."""
    height, width = (-(-side // PAD_MULTIPLE) * PAD_MULTIPLE for side in image_shape)
    return height * width > tiling.whole_pixels and max(image_shape) > tiling.side


class TiledImage:
    """One image's prediction in tiles.

    Args:
        ensemble: predicts it.
        image_bgr: (H, W, 3) uint8 BGR.
        tiling: how large tiles are, and how many bytes of one's features are kept.
    """

    def __init__(self, ensemble: Ensemble, image_bgr: np.ndarray, tiling: Tiling):
        self.ensemble = ensemble
        self.image_bgr = image_bgr
        self.image_shape: tuple[int, int] = image_bgr.shape[:2]
        self.strides = [stride for stride, _ in proposing(ensemble.members).rpn_head.prior_generator.strides]
        self.tiles = lay_tiles(self.image_shape, tiling.side, max(PAD_MULTIPLE, *self.strides))
        self.budget_bytes = min(ensemble.feature_budget_bytes, tiling.feature_bytes)
        self.used: list[str] = []  # as in `ImageFeatures`, of all tiles
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @torch.inference_mode()
    def predict(self, cell_type: str | None = None) -> Prediction:
        """What `Ensemble.predict` would find in the image; `cell_type` as there.

        All tiles are gone through twice: for the number of confident positions, then for boxes and masks.

        Raises:
            NotFiniteError: numbers overflow.
        """
        ensemble = self.ensemble
        if cell_type is None and ensemble.needs_first_pass:
            cell_type = self.decide_cell_type()
        members = ensemble.members if cell_type is None else ensemble.members_for(cell_type)
        counts, rpn_type = self.count_positions(members)
        cell_type = cell_type or rpn_type
        thresholds = ensemble.settings.thresholds[cell_type]
        found: list[TileCells] = []
        for tile, features in self.each_tile():
            chosen = self.boxes_in_core(tile, features, members, rpn_type, cell_type)
            boxes = ensemble.enlarge_for_masks(chosen, cell_type, features.image_shape)
            masks = ensemble.mask(features, members, boxes)
            found.append(TileCells(tile.into_image(chosen), tile.into_image(boxes), masks.cpu()))
        boxes, masks = join_cells(found, thresholds.rcnn_iou_threshold if ensemble.settings.bbox_nms else None)
        boxes, masks = score_by_masks(boxes, masks, ensemble.settings.mask_score_power)
        return Prediction(
            image_shape=self.image_shape,
            cell_type=cell_type,
            level_counts=counts,
            boxes_xyxy=boxes.boxes_xyxy,
            scores=boxes.scores,
            labels=boxes.labels,
            mask_probs=masks,
            members=tuple(self.used),
            seconds=dict(self.seconds),
            dtype=ensemble.dtype,
        )

    def decide_cell_type(self) -> str:
        """The first pass over all tiles, as `Ensemble.decide_cell_type` is over an image."""
        members = self.ensemble.members_for(CLS_USE)
        _, rpn_type = self.count_positions(members)
        labels = torch.cat(
            [
                self.boxes_in_core(tile, features, members, rpn_type, rpn_type).labels.cpu()
                for tile, features in self.each_tile()
            ]
        )
        return most_frequent_cell_type(labels.numpy()) or rpn_type

    def count_positions(self, members: Sequence[Member]) -> tuple[tuple[int, ...], str]:
        """Per FPN level the confident positions of all cores, and the cell type that they show."""
        rule = self.ensemble.settings.cell_type_rule
        counts = [0] * len(self.strides)
        for tile, features in self.each_tile():
            with features.clock.stage("proposals"):
                scores = tile.cut_core(self.ensemble.merge_maps(features, members).scores, self.strides)
                counts = [a + b for a, b in zip(counts, count_confident_positions(scores, rule.score), strict=True)]
        return tuple(counts), cell_type_of_counts(counts, rule, self.image_shape)

    def boxes_in_core(
        self, tile: Tile, features: ImageFeatures, members: Sequence[Member], rpn_type: str, cell_type: str
    ) -> Detections:
        """The final boxes of a tile whose centres lie in its core or at its borders, in pixels of the tile."""
        proposals = self.ensemble.propose(features, members, rpn_type)
        boxes = self.ensemble.choose_boxes(features, members, proposals, cell_type)
        mine = tile.is_in_core(boxes.boxes_xyxy, SEAM_PIXELS if self.ensemble.settings.bbox_nms else 0.0)
        return Detections(boxes.boxes_xyxy[mine], boxes.scores[mine], boxes.labels[mine])

    def each_tile(self) -> Iterator[tuple[Tile, ImageFeatures]]:
        """Each tile with its features; what they took is added up."""
        for tile in self.tiles:
            features = ImageFeatures(self.ensemble, tile.cut(self.image_bgr), self.budget_bytes)
            yield tile, features
            self.used += [name for name in features.used if name not in self.used]
            for stage, seconds in features.clock.seconds.items():
                self.seconds[stage] += seconds


@dataclass(frozen=True)
class TileCells:
    """The N cells of one tile's core, on the CPU, in pixels of the image."""

    chosen: Detections  # the boxes that NMS compares
    boxes: Detections  # those that the masks fill
    masks: torch.Tensor  # (N, 28, 28)


def join_cells(tiles: list[TileCells], iou_threshold: float | None) -> tuple[Detections, torch.Tensor]:
    """The cells of all tiles, best first, their boxes once more compared with each other.

    Near a border of cores, two tiles may place the same cell in either core where they do not see it quite alike. Where
    they do, this NMS finds nothing: it has been done in each tile.

    Args:
        tiles: at least one; the list is emptied, so that masks are not held twice.
        iou_threshold: of the NMS; None: there is none.

    Returns:
        Boxes, and masks (N, 28, 28).
    """
    chosen, boxes = join_detections([each.chosen for each in tiles]), join_detections([each.boxes for each in tiles])
    order = chosen.scores.argsort(descending=True, stable=True)
    if iou_threshold is not None:
        order = nms(chosen.boxes_xyxy, chosen.scores, iou_threshold)
    place = torch.full((len(chosen.scores),), -1)
    place[order] = torch.arange(len(order))
    masks = torch.empty((len(order), *tiles[0].masks.shape[1:]))
    first = 0
    while tiles:
        part = tiles.pop(0).masks
        into = place[first : first + len(part)]
        first += len(part)
        masks[into[into >= 0]] = part[into >= 0]
    return Detections(boxes.boxes_xyxy[order], boxes.scores[order], boxes.labels[order]), masks


def join_detections(parts: Sequence[Detections]) -> Detections:
    """Several boxes after one another."""
    return Detections(
        torch.cat([part.boxes_xyxy for part in parts]),
        torch.cat([part.scores for part in parts]),
        torch.cat([part.labels for part in parts]),
    )


def predict_whole_or_tiled(ensemble: Ensemble, image_bgr: np.ndarray) -> Prediction:
    """Find the cells of an image (H, W, 3) uint8 BGR: at once, or in tiles where `ensemble.tiling` says so.

    Raises:
        NotFiniteError: numbers overflow.
    """
    tiling = ensemble.tiling
    height, width, _ = image_bgr.shape
    if tiling is None or not needs_tiles((height, width), tiling):
        return ensemble.predict(image_bgr)
    tiled = TiledImage(ensemble, image_bgr, tiling)
    LOG.info("%d x %d pixels (height x width): predicted in %d tiles", height, width, len(tiled.tiles))
    return tiled.predict()
