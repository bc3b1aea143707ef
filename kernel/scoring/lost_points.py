"""Where an image's points are lost: its score with one kind of error mended and all others left.

The question is that of TIDE (Bolya et al., 2020), asked of the competition's metric. A found cell and an annotated one
are a pair where their IoU is above FOUND_ABOVE, the highest first: low enough that a cell with a poor mask counts as
found, with a mask to mend, and not as a false alarm beside a miss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernel.scoring.metric import score_from_iou

FOUND_ABOVE = 0.3


@dataclass(frozen=True)
class MendedScores:
    """The score of an image, 0 to 1, with one kind of error mended. The differences to its score do not add up."""

    exact_masks: float  # each pair's found mask is the annotated one
    no_false_alarms: float  # found cells without a partner are taken away
    nothing_missed: float  # annotated cells without a partner are found, exactly


def pair_cells(iou: np.ndarray) -> np.ndarray:
    """Pairs of found and annotated cells, each in one pair at most, from the highest IoU down to FOUND_ABOVE.

    Args:
        iou: (P, T).

    Returns:
        (M, 2) int64 indices; of equal IoU the pair of lower indices first.
    """
    candidates = np.argwhere(iou > FOUND_ABOVE)
    order = np.argsort(-iou[candidates[:, 0], candidates[:, 1]], kind="stable")
    pairs: list[tuple[int, int]] = []
    found, annotated = set[int](), set[int]()
    for one, other in candidates[order].tolist():
        if one not in found and other not in annotated:
            pairs.append((one, other))
            found.add(one)
            annotated.add(other)
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def mended_scores(iou: np.ndarray) -> MendedScores:
    """What an image would score, from the IoU (P, T) of predictions and truths."""
    pairs = pair_cells(iou)
    exact = iou.copy()
    exact[pairs[:, 0]] = 0
    exact[:, pairs[:, 1]] = 0
    exact[pairs[:, 0], pairs[:, 1]] = 1
    missed = np.setdiff1d(np.arange(iou.shape[1]), pairs[:, 1])
    return MendedScores(
        exact_masks=score_from_iou(exact),
        no_false_alarms=score_from_iou(iou[np.sort(pairs[:, 0])]),
        nothing_missed=score_from_iou(np.concatenate([iou, np.eye(iou.shape[1])[missed]])),
    )
