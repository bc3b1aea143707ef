"""What can be tuned: one frozen dataclass of thresholds per cell type, and the ensemble's switches.

Figures without another origin are those of the published solution (its last ensemble).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields

#: The competition's cell types; a type's place here is its label.
CELL_TYPES = ("shsy5y", "astro", "cort")
#: What networks can compute in, the exact one first.
NETWORK_DTYPES = ("float32", "float16", "bfloat16")
#: The use of a member that takes part in the first pass, which decides the cell type.
CLS_USE = "cls"
#: The averages that the first pass takes: it needs no masks.
FIRST_PASS_STAGES = ("proposals", "boxes")


@dataclass(frozen=True)
class Thresholds:
    """Every threshold of one cell type, from proposals to the finished mask."""

    rpn_nms_pre: int = 5000  # best positions kept per FPN level before NMS
    rpn_iou_threshold: float = 0.7  # proposals overlapping more than this (box IoU) are merged by NMS
    rpn_score_threshold: float = 0.9  # proposals must score above this
    rpn_max_per_img: int | None = None  # at most so many proposals; None: all
    rcnn_iou_threshold: float = 0.7  # high on purpose: the mask NMS decides
    rcnn_score_threshold: float = 0.2  # boxes must score above this
    mask_box_scale: float = 1.0  # masks are predicted in boxes so many times as large: a tight box cuts a cell off
    mask_threshold: float = 0.45  # a pixel is inside above this probability
    mask_nms_threshold: float = 0.1  # a mask whose IoU with a better one is above this goes; 0: no mask NMS
    confidence: float = 0.3  # masks of a lower score go
    min_size: int = 70  # masks of so many pixels or fewer go
    corrupt: bool = False  # fill each outline as if it were convex, as the astro annotations are


#: The published ensemble's thresholds, by cell type.
DEFAULT_THRESHOLDS = {
    "shsy5y": Thresholds(),
    "astro": Thresholds(
        rpn_nms_pre=2000, rpn_iou_threshold=0.75, rpn_score_threshold=0.9,
        rcnn_iou_threshold=0.9, rcnn_score_threshold=0.25,
        mask_nms_threshold=0.1, confidence=0.4, corrupt=True,
    ),
    "cort": Thresholds(
        rpn_nms_pre=1000, rpn_iou_threshold=0.6, rpn_score_threshold=0.95,
        rcnn_iou_threshold=0.6, rcnn_score_threshold=0.5,
        mask_nms_threshold=0.05, confidence=0.7,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class StageWeights:
    """How much a member counts in each of the three averages, against the others; 0: it is not asked there."""

    proposals: float = 1.0
    boxes: float = 1.0
    masks: float = 1.0


#: The averages, by name.
STAGES = tuple(stage.name for stage in fields(StageWeights))


def types_differ(uses_of_members: Iterable[Collection[str]]) -> bool:
    """Whether cell types, each of which has a member, have different ones: a first pass must tell the type then."""
    return len({frozenset(uses) - {CLS_USE} for uses in uses_of_members}) > 1


def needed_stages(uses_of_members: Iterable[Collection[str]]) -> dict[str, tuple[str, ...]]:
    """The averages in which somebody must count, for each use that matters: "cls" does where a first pass is made."""
    first_pass = {CLS_USE: FIRST_PASS_STAGES} if types_differ(uses_of_members) else {}
    return {**dict.fromkeys(CELL_TYPES, STAGES), **first_pass}


#: Of members that count alike.
EQUAL_WEIGHTS = StageWeights()


@dataclass(frozen=True)
class CellTypeRule:
    """How the cell type follows from the number of confident positions of the merged RPN maps."""

    score: float = 0.7  # a position counts when its best anchor scores above this
    astro_above: int = 10  # more than this on the two coarsest levels together: astro
    cort_below_total: int = 4500  # otherwise fewer than this in all ...
    cort_below_second: int = 750  # ... and fewer than this on the second level: cort; else shsy5y


@dataclass(frozen=True)
class EnsembleSettings:
    """How the members are averaged."""

    use_tta: bool = True  # boxes from the four flips, not from the identity view alone
    use_tta_masks: bool = True  # masks as well
    bbox_nms: bool = True  # without it boxes only need a score above the threshold
    mask_score_power: float = 0.0  # a final score is the box's times its mask's sureness to this power; 0: the box's
    num_classes: int = len(CELL_TYPES)  # the first so many of the detector's classes count
    thresholds: dict[str, Thresholds] = field(default_factory=lambda: dict(DEFAULT_THRESHOLDS))
    cell_type_rule: CellTypeRule = CellTypeRule()
