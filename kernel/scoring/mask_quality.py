"""What people ask beside the competition's metric: precision, recall, AP, counts and how well boundaries are met.

Predictions and truths are matched one to one, by COCO's rule: from the best score down, a prediction takes the free
truth of the highest IoU, if that is *at least* the threshold. (The metric asks for strictly more and knows no
ranking.) One category: the class is not scored. No limit on detections, no areas left out.

Sets of images are judged by all their cells together, as COCO does, so an image with many cells weighs more; only the
metric's own score is a mean over images. AP is COCO's: the precision, made falling, read at 101 recalls from 0 to 1
and averaged. It ranks the masks as submitted, so recall ends where the confidence threshold cut.

What would divide by nothing is NaN: precision where nothing is found, recall and AP where nothing is annotated,
boundaries where nothing is matched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import cv2
import numpy as np

from kernel.masks.instances import CellMasks
from kernel.postprocess.mask_nms import CropWindow
from kernel.scoring.lost_points import MendedScores, mended_scores
from kernel.scoring.metric import IOU_THRESHOLDS, iou_matrix, score_from_iou

#: Pixels by which two boundaries may differ and still be the same: what two annotators of one cell differ by, and
#: small beside the smallest cells, which are about 12 pixels across. (Boundary IoU's usual 2 % of the image's diagonal
#: would be 17 pixels here: more than the cells.)
BOUNDARY_TOLERANCE = 2.0

#: Where AP reads the precision, as pycocotools does.
_RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True, eq=False)
class ImageQuality:
    """The figures of one image with P predictions and T truths.

    Attributes:
        score: the competition's, 0 to 1.
        mended: the same with one kind of error mended.
        cells: T, annotated.
        found_cells: P.
        ranking: (P,) float32 scores, best first.
        hits: (thresholds, P) bool, which predictions, in that order, took a truth at each of IOU_THRESHOLDS.
        matches: (M, 2) int64, indices of prediction and truth of the pairs at the lowest threshold, 0.5.
        match_iou: (M,) float64 IoU of these pairs.
        match_boundary_f: (M,) float64, see `boundary_f`.
    """

    score: float
    mended: MendedScores
    cells: int
    found_cells: int
    ranking: np.ndarray
    hits: np.ndarray
    matches: np.ndarray
    match_iou: np.ndarray
    match_boundary_f: np.ndarray


@dataclass(frozen=True, eq=False)
class QualitySummary:
    """The figures of a set of images, or of one. See the module on NaN.

    Attributes:
        images: how many.
        score: mean of the competition's scores.
        mended: means of the scores with one kind of error mended.
        cells, found_cells: annotated and found, in all images.
        precision, recall, average_precision: (thresholds,) float64, at each of IOU_THRESHOLDS.
        count_bias: mean over images of found - annotated: above 0, too many are found.
        count_error: mean over images of |found - annotated|.
        relative_count_error: the same as a share of the annotated cells of an average image.
        mean_iou: of the pairs matched at an IoU of 0.5.
        boundary_f: mean `boundary_f` of these pairs.
    """

    images: int
    score: float
    mended: MendedScores
    cells: int
    found_cells: int
    precision: np.ndarray
    recall: np.ndarray
    average_precision: np.ndarray
    count_bias: float
    count_error: float
    relative_count_error: float
    mean_iou: float
    boundary_f: float


def match_cells(iou: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which truth each prediction takes at each of IOU_THRESHOLDS.

    Args:
        iou: (P, T) IoU of predictions and truths.
        scores: (P,); the best chooses first, of equal ones the first.

    Returns:
        (thresholds, P) int64, indices of truths; -1 for none.
    """
    taken = np.full((len(IOU_THRESHOLDS), len(iou)), -1, dtype=np.int64)
    order = np.argsort(-scores, kind="stable").tolist()
    rivals = [[(ious[truth], truth) for truth in np.flatnonzero(ious >= IOU_THRESHOLDS[0]).tolist()] for ious in iou]
    for row, threshold in enumerate(IOU_THRESHOLDS):
        gone: set[int] = set()
        for index in order:
            free = [pair for pair in rivals[index] if pair[0] >= threshold and pair[1] not in gone]
            if free:
                taken[row, index] = truth = max(free)[1]  # of equal IoU the last, as pycocotools
                gone.add(truth)
    return taken


def boundary_f(
    crop: np.ndarray, window: CropWindow, other_crop: np.ndarray, other: CropWindow, tolerance: float
) -> float:
    """The F-measure of two masks' boundaries (Martin, Fowlkes and Malik 2004; Csurka et al. 2013).

    2 p r / (p + r), where p is the share of the first mask's boundary pixels no farther than `tolerance` pixels
    (Euclidean, centre to centre) from one of the other's, and r the reverse. Boundary pixels are those of the mask
    with one of their four neighbours outside it; what is outside the image is outside the mask.

    Args:
        crop, other_crop: the masks (h, w) bool.
        window, other: y0, x0, y1, x1 of each crop in the image, the end exclusive.
        tolerance: pixels, from 0 on.

    Returns:
        0 to 1; 1 where each boundary lies within the tolerance of the other.
    """
    top, left = min(window[0], other[0]), min(window[1], other[1])
    shape = max(window[2], other[2]) - top, max(window[3], other[3]) - left
    reach = int(tolerance)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (rows**2 + columns**2 <= tolerance**2).astype(np.uint8)
    boundaries = [
        _boundary(mask, (place[0] - top, place[1] - left), shape)
        for mask, place in ((crop, window), (other_crop, other))
    ]
    shares = []
    for ours, theirs in (boundaries, boundaries[::-1]):
        pixels = np.count_nonzero(ours)
        shares.append(np.count_nonzero(ours & cv2.dilate(theirs, disk)) / pixels if pixels else 0.0)
    total = sum(shares)
    return 2 * shares[0] * shares[1] / total if total else 0.0


def _boundary(crop: np.ndarray, offset_yx: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """(h + 2, w + 2) uint8, 1 on the boundary of the mask in a frame of `shape` with a margin of one pixel."""
    frame = np.zeros((shape[0] + 2, shape[1] + 2), np.uint8)
    top, left = offset_yx[0] + 1, offset_yx[1] + 1
    frame[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return frame & ~cv2.erode(frame, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)))


def measure_image(pred: CellMasks, truth: CellMasks) -> ImageQuality:
    """Compare one image's predictions with its truth, which may overlap.

    Raises:
        ValueError: the images differ in shape.
    """
    iou = iou_matrix(pred, truth)
    taken = match_cells(iou, pred.scores)
    matched = np.flatnonzero(taken[0] >= 0)
    matches = np.stack([matched, taken[0, matched]], axis=1)
    order = np.argsort(-pred.scores, kind="stable")
    windows, truth_windows = pred.windows.tolist(), truth.windows.tolist()
    boundaries = [
        boundary_f(pred.crops[one], windows[one], truth.crops[other], truth_windows[other], BOUNDARY_TOLERANCE)
        for one, other in matches.tolist()
    ]
    return ImageQuality(
        score=score_from_iou(iou),
        mended=mended_scores(iou),
        cells=len(truth),
        found_cells=len(pred),
        ranking=pred.scores[order],
        hits=taken[:, order] >= 0,
        matches=matches,
        match_iou=iou[matches[:, 0], matches[:, 1]],
        match_boundary_f=np.array(boundaries, dtype=np.float64),
    )


def precision_recall(images: Sequence[ImageQuality]) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall of the best 1, 2, ... P predictions of all images together.

    Returns:
        Two arrays (thresholds, P) float64, best score first; equal scores stay in the order of the images. Recall is
        NaN where nothing is annotated.
    """
    ranking = np.concatenate([np.zeros(0, np.float32), *(image.ranking for image in images)])
    hits = np.concatenate([np.zeros((len(IOU_THRESHOLDS), 0), bool), *(image.hits for image in images)], axis=1)
    found = np.cumsum(hits[:, np.argsort(-ranking, kind="stable")], axis=1, dtype=np.float64)
    cells = sum(image.cells for image in images)
    return found / np.arange(1, len(ranking) + 1), found / (cells or np.nan)


def average_precision(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """COCO's AP, (thresholds,), of the two curves of `precision_recall` for a set with annotated cells."""
    falling = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    result = np.zeros(len(precision))
    for row in range(len(precision)):
        places = np.searchsorted(recall[row], _RECALLS, side="left")
        reached = places[places < recall.shape[1]]  # recalls that are never reached count with a precision of 0
        result[row] = falling[row, reached].sum() / len(_RECALLS)
    return result


def summarise_quality(images: Sequence[ImageQuality]) -> QualitySummary:
    """The figures of a set of images, by all their cells together; of one image, or of none, too."""
    cells, found = sum(image.cells for image in images), sum(image.found_cells for image in images)
    hits = np.sum([image.hits.sum(axis=1) for image in images], axis=0) if images else np.zeros(len(IOU_THRESHOLDS))
    errors = np.array([image.found_cells - image.cells for image in images], dtype=np.float64)
    nothing = np.full(len(IOU_THRESHOLDS), np.nan)
    return QualitySummary(
        images=len(images),
        score=_mean([image.score for image in images]),
        mended=MendedScores(
            *(_mean([getattr(image.mended, field.name) for image in images]) for field in fields(MendedScores))
        ),
        cells=cells,
        found_cells=found,
        precision=hits / found if found else nothing,
        recall=hits / cells if cells else nothing,
        average_precision=average_precision(*precision_recall(images)) if cells else nothing,
        count_bias=_mean(errors),
        count_error=_mean(np.abs(errors)),
        relative_count_error=float(np.abs(errors).sum() / cells) if cells else float("nan"),
        mean_iou=_mean(np.concatenate([np.zeros(0), *(image.match_iou for image in images)])),
        boundary_f=_mean(np.concatenate([np.zeros(0), *(image.match_boundary_f for image in images)])),
    )


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
