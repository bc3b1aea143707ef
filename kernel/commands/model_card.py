"""The table of a model card: scores by cell type with intervals, and the time; measured, beside what the card says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kernel.data.tables import whole_text
from kernel.manifest.presets import NOT_MEASURED

if TYPE_CHECKING:
    from kernel.scoring.scores import ImageResult


def card_of(results: Sequence[ImageResult], untold: Sequence[str] = ()) -> dict[str, Any]:
    """What a model card says of a preset, by scored images: as in `kernel.manifest.presets`.

    The time is that of the images that were predicted in this run, `timed` of them: a stored prediction tells of the
    machine that made it. Of the members `untold` it is not known which images they have learned from: those may be
    more than are told here.

    Where some images were learned from and others were not, only the latter count. Intervals hold 95 %, by a percentile
    bootstrap over wells or samples, or over images where these are not known; a bound of fewer than two is None.
    """
    unseen = [result for result in results if not result.seen_by]
    counted = unseen or results
    by_type = {name: [each for each in counted if each.cell_type == name] for name in cell_types(counted)}
    timed = [result.seconds for result in counted if not result.is_stored]
    return {
        **score_of(counted),
        "seen": len(counted) - len(unseen),
        "untold": list(untold),
        "left_out": len(results) - len(counted),
        "seconds": round(sum(timed) / len(timed), 2) if timed else None,
        "timed": len(timed),
        "types": {name: score_of(own) for name, own in by_type.items()},
    }


def cell_types(results: Sequence[ImageResult]) -> list[str]:
    """The images' true cell types, in the alphabet's order."""
    return sorted({result.cell_type for result in results})


def score_of(results: Sequence[ImageResult]) -> dict[str, Any]:
    """The mean score of some images, its interval, and their number."""
    import numpy as np

    from kernel.tuning.choosing import estimate_mean, number_units

    units = number_units([result.group or number for number, result in enumerate(results)])
    found = estimate_mean(np.array([result.score for result in results]), units=units)
    values = {"score": found.mean, "low": found.low, "high": found.high}
    return {
        **{key: None if math.isnan(value) else round(value, 4) for key, value in values.items()},
        "images": len(results),
    }


def describe_card(found: Mapping[str, Any], told: Mapping[str, Any]) -> list[str]:
    """The table's lines: a row per cell type, one for all images, and the time.

    Args:
        found: of `card_of`.
        told: what the model card says, in the same form; empty: nothing was measured.
    """
    told_types = told.get("types", {})
    counted = "unseen" if found["left_out"] else "seen" if found["seen"] else "images"
    rows = [["", counted, "score and 95 % interval", "model card"]]
    for name, here, there in [
        *((name, figures, told_types.get(name, {})) for name, figures in found["types"].items()),
        ("all", found, told),
    ]:
        rows.append([name, str(here["images"]), describe_score(here), describe_score(there)])
    rows.append(["seconds an image", str(found["timed"]), *(describe_seconds(figures) for figures in (found, told))])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def describe_score(figures: Mapping[str, Any]) -> str:
    """A score with its interval."""
    if figures.get("score") is None:
        return NOT_MEASURED
    bounds = [figures.get("low"), figures.get("high")]
    interval = "" if None in bounds else f" [{bounds[0]:.4f}, {bounds[1]:.4f}]"
    return f"{figures['score']:.4f}{interval}"


def describe_seconds(figures: Mapping[str, Any]) -> str:
    seconds = figures.get("seconds")
    return NOT_MEASURED if seconds is None else f"{seconds:.2f}"


def write_card(figures: Mapping[str, Any], path: Path) -> None:
    """Write what `card_of` has measured, as a model card has it of one preset.

    Raises:
        InputError: the file cannot be written.
    """
    with whole_text(path) as stream:
        stream.write(json.dumps(figures, indent=2) + "\n")
