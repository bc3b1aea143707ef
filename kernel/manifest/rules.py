"""What each field of a manifest may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kernel.manifest.types import (
    ACCELERATOR_NAMES,
    DOCKER_PINNING_NAMES,
    ENCODER_NAMES,
    MASK_KINDS,
    MEMBER_KINDS,
    PLAIN_ENCODER,
    TIMM_PREFIX,
    WEIGHT_SUFFIXES,
)
from kernel.settings import CELL_TYPES, NETWORK_DTYPES, StageWeights

OWNER_SLUG_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]*/[a-z0-9][a-z0-9-]{4,49}"
DATASET_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_-]*/[a-z0-9][a-z0-9-]{5,49}"
COMPETITION_PATTERN = r"[a-z0-9][a-z0-9-]*"
MEMBER_NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
DOCKER_IMAGE_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._/:@-]*"
TIMM_ENCODER_PATTERN = TIMM_PREFIX + r"[a-z0-9_]+(\.[a-z0-9_]+)?"
SHA256_PATTERN = r"[0-9a-f]{64}"


@dataclass(frozen=True)
class FieldRule:
    """What a field may be."""

    allows: Callable[[Any], bool]
    description: str  # of what is allowed, for messages
    choices: tuple[str, ...] = ()  # where they are few: messages suggest the nearest


def rule_pattern(pattern: str, description: str) -> FieldRule:
    """A string that matches all of `pattern`."""
    return FieldRule(lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None, description)


def rule_choice(choices: Sequence[str]) -> FieldRule:
    """One of `choices`."""
    return FieldRule(
        lambda value: isinstance(value, str) and value in choices,
        f"one of {', '.join(choices)}",
        tuple(choices),
    )


def rule_number(lowest: float, highest: float, whole: bool = False) -> FieldRule:
    """A number, bounds included; `whole`: an integer."""
    types = (int,) if whole else (int, float)
    description = f"{'an integer' if whole else 'a number'} from {lowest:g} to {highest:g}"
    return FieldRule(
        lambda value: isinstance(value, types) and not isinstance(value, bool) and lowest <= value <= highest,
        description,
    )


def rule_or_null(rule: FieldRule) -> FieldRule:
    """What `rule` allows, or null."""
    return FieldRule(lambda value: value is None or rule.allows(value), f"{rule.description}, or null", rule.choices)


def is_weight_path(value: Any) -> bool:
    """Whether `value` is a relative path, with forward slashes, of a weight file inside a dataset."""
    return (
        isinstance(value, str)
        and value.endswith(WEIGHT_SUFFIXES)
        and "\\" not in value
        and not any(character < " " or "\ud800" <= character <= "\udfff" for character in value)
        and all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in value.split("/"))
    )


RULE_TEXT = FieldRule(lambda value: isinstance(value, str), "a text")
RULE_TITLE = FieldRule(
    # Kaggle makes a slug of the title; for characters beyond ASCII it cannot be foreseen.
    lambda value: isinstance(value, str) and len(value.strip()) >= 5 and value.isascii() and value.isprintable(),
    "a title of at least 5 printable ASCII characters",
)
RULE_SWITCH = FieldRule(lambda value: isinstance(value, bool), "true or false")
RULE_FRACTION = rule_number(0, 1)
RULE_COUNT = rule_number(0, 10_000_000, whole=True)
RULE_DATASET = rule_pattern(
    DATASET_PATTERN,
    "a dataset as owner/slug, as in its address kaggle.com/datasets/owner/slug (slug: 6 to 50 lower-case "
    "letters, digits and hyphens)",
)
RULE_ENCODER = FieldRule(
    lambda value: (
        isinstance(value, str)
        and (value in (*ENCODER_NAMES, PLAIN_ENCODER) or re.fullmatch(TIMM_ENCODER_PATTERN, value) is not None)
    ),
    f"one of {', '.join(ENCODER_NAMES)}, {TIMM_PREFIX}NAME for a network of timm, {TIMM_PREFIX}convnext_tiny say, or "
    f"{PLAIN_ENCODER} of a {' or '.join(MASK_KINDS)}",
    (*ENCODER_NAMES, PLAIN_ENCODER),
)
RULE_WEIGHT_FILE = FieldRule(
    is_weight_path,
    f"a file's path inside its dataset, ending in {', '.join(WEIGHT_SUFFIXES)}",
)


KERNEL_RULES: dict[str, FieldRule] = {
    "id": rule_pattern(
        OWNER_SLUG_PATTERN,
        "the kernel as owner/slug, the owner being your Kaggle user name (slug: 5 to 50 lower-case letters, "
        "digits and hyphens)",
    ),
    "title": RULE_TITLE,
    "competition": rule_pattern(
        COMPETITION_PATTERN, "a competition's slug, as in its address kaggle.com/competitions/slug"
    ),
    "accelerator": rule_choice(ACCELERATOR_NAMES),
    "private": RULE_SWITCH,
    "docker_image": rule_or_null(rule_pattern(DOCKER_IMAGE_PATTERN, "a container image, as the log of a run names it")),
    "docker_pinning": rule_choice(DOCKER_PINNING_NAMES),
}


MEMBER_RULES: dict[str, FieldRule] = {
    "name": rule_pattern(MEMBER_NAME_PATTERN, "letters, digits, dots, hyphens and underscores"),
    "kind": rule_choice(MEMBER_KINDS),
    "encoder": RULE_ENCODER,
    "dataset": rule_or_null(RULE_DATASET),
    "file": rule_or_null(RULE_WEIGHT_FILE),
    "sha256": rule_or_null(rule_pattern(SHA256_PATTERN, "the file's SHA-256 as 64 lower-case hexadecimal digits")),
    "stem_stride": rule_or_null(rule_number(1, 2, whole=True)),
    "worth": rule_or_null(rule_number(-1e9, 1e9)),
    "notes": RULE_TEXT,
}


STAGE_WEIGHT_RULES: dict[str, FieldRule] = {part.name: rule_number(0, 1000) for part in fields(StageWeights)}


THRESHOLD_RULES: dict[str, FieldRule] = {
    "rpn_nms_pre": rule_number(1, 10_000_000, whole=True),
    "rpn_iou_threshold": RULE_FRACTION,
    "rpn_score_threshold": RULE_FRACTION,
    "rpn_max_per_img": rule_or_null(rule_number(1, 10_000_000, whole=True)),
    "rcnn_iou_threshold": RULE_FRACTION,
    "rcnn_score_threshold": RULE_FRACTION,
    "mask_box_scale": rule_number(1, 2),
    "mask_threshold": RULE_FRACTION,
    "mask_nms_threshold": RULE_FRACTION,
    "confidence": RULE_FRACTION,
    "min_size": RULE_COUNT,
    "corrupt": RULE_SWITCH,
}


CELL_TYPE_RULE_RULES: dict[str, FieldRule] = {
    "score": RULE_FRACTION,
    "astro_above": RULE_COUNT,
    "cort_below_total": RULE_COUNT,
    "cort_below_second": RULE_COUNT,
}


ENSEMBLE_RULES: dict[str, FieldRule] = {
    "use_tta": RULE_SWITCH,
    "use_tta_masks": RULE_SWITCH,
    "bbox_nms": RULE_SWITCH,
    "mask_score_power": rule_number(0, 16),
    # The labels 0, 1, 2 are the cell types: with other counts the most frequent label names no type.
    "num_classes": FieldRule(
        lambda value: type(value) is int and value == len(CELL_TYPES),
        f"{len(CELL_TYPES)}, one class per cell type",
    ),
}


MANIFEST_RULES: dict[str, FieldRule] = {
    "wheels_dataset": RULE_DATASET,
    "time_limit_hours": rule_number(0.01, 24),
    "time_margin_hours": rule_number(0, 24),
    "dtype": rule_choice(NETWORK_DTYPES),
    "notes": RULE_TEXT,
}
