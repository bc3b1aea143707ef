"""What can be set: the thresholds of each cell type, how much members count, and the switches of the ensemble.

Defaults without another origin are those of the published solution (its last ensemble).

An ensemble averages its members at three stages: proposals, boxes and masks. A manifest says for each member what it is
used for: cell types, and "cls".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields

#: The competition's cell types; the index is the label.
CELL_TYPES = ("shsy5y", "astro", "cort")
#: Height and width of the competition's images in pixels: limits that are numbers of positions are meant for these.
COMPETITION_SHAPE = (520, 704)
#: The dtypes that networks can compute in; float32 is the one that the others approximate.
NETWORK_DTYPES = ("float32", "float16", "bfloat16")
#: ImageNet's mean and standard deviation in RGB, on the 0 to 255 scale: by them an image's pixels are normalised.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
#: A member with this use takes part in the first pass, which finds an image's cell type.
CLS_USE = "cls"
#: The uses of a member that is run for every image.
EVERY_USE = (*CELL_TYPES, CLS_USE)
#: The averages of the first pass, which needs no masks.
FIRST_PASS_STAGES = ("proposals", "boxes")


@dataclass(frozen=True)
class Thresholds:
    """Every threshold of one cell type, from proposals to the finished mask."""

    rpn_nms_pre: int = 5000  # the best positions kept per FPN level before NMS
    rpn_iou_threshold: float = 0.7  # proposals overlapping more than this (box IoU) are merged by NMS
    rpn_score_threshold: float = 0.9  # proposals must score above this
    rpn_max_per_img: int | None = None  # at most this many proposals; None: all
    rcnn_iou_threshold: float = 0.7  # high on purpose: the mask NMS decides
    rcnn_score_threshold: float = 0.2  # boxes must score above this
    mask_box_scale: float = 1.0  # masks are predicted in boxes this many times as large: a tight box cuts off a cell
    mask_threshold: float = 0.45  # a pixel is inside above this probability
    mask_nms_threshold: float = 0.1  # a mask whose IoU with a better one is above this goes; 0: no mask NMS
    confidence: float = 0.3  # masks of a lower score go
    min_size: int = 70  # masks of this many pixels or fewer go
    corrupt: bool = False  # fill each outline as if it were convex: the astro annotations are like that


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
    """A member's weight in each of the three averages; with 0 it is not run there."""

    proposals: float = 1.0
    boxes: float = 1.0
    masks: float = 1.0


#: The names of the three averages.
STAGES = tuple(stage.name for stage in fields(StageWeights))


def types_differ(uses_of_members: Iterable[Collection[str]]) -> bool:
    """Whether members differ in the cell types that they are used for: then a first pass must find an image's type.

    Args:
        uses_of_members: what each member is used for; together, every cell type.
    """
    return len({frozenset(uses) - {CLS_USE} for uses in uses_of_members}) > 1


def needed_stages(uses_of_members: Iterable[Collection[str]]) -> dict[str, tuple[str, ...]]:
    """By use, the averages in which at least one of its members must have a weight above 0.

    The uses are the cell types, and "cls" where there is a first pass. The argument is that of `types_differ`.
    """
    first_pass = {CLS_USE: FIRST_PASS_STAGES} if types_differ(uses_of_members) else {}
    return {**dict.fromkeys(CELL_TYPES, STAGES), **first_pass}


#: The weights of members that count alike.
EQUAL_WEIGHTS = StageWeights()
#: Those of a member that makes masks alone.
MASKS_ALONE = StageWeights(proposals=0.0, boxes=0.0)


@dataclass(frozen=True)
class CellTypeRule:
    """The cell type by the number of confident positions of the averaged RPN maps."""

    score: float = 0.7  # a position counts when its best anchor scores above this
    astro_above: int = 10  # more than this on the two coarsest FPN levels together: astro
    cort_below_total: int = 4500  # otherwise fewer than this in all ...
    cort_below_second: int = 750  # ... and fewer than this on the second FPN level: cort; else shsy5y


@dataclass(frozen=True)
class EnsembleSettings:
    """How the members of an ensemble are averaged."""

    use_tta: bool = True  # boxes are averaged over the four flips; False: from the identity view alone
    use_tta_masks: bool = True  # masks as well
    bbox_nms: bool = True  # without it boxes only need a score above the threshold
    mask_score_power: float = 0.0  # a score is the box's times its mask's to this power; 0: the box's alone
    num_classes: int = len(CELL_TYPES)  # of the detectors' classes the first ones count, this many
    thresholds: dict[str, Thresholds] = field(default_factory=lambda: dict(DEFAULT_THRESHOLDS))
    cell_type_rule: CellTypeRule = CellTypeRule()
