"""Predictions made in one go, and compared bit by bit."""

from __future__ import annotations

from kernel.scoring.predictions import SoftPrediction


def assert_same(found: SoftPrediction, expected: SoftPrediction) -> None:
    """Equal in every bit."""
    assert (found.cell_type, found.level_counts) == (expected.cell_type, expected.level_counts)
    assert found.seconds == expected.seconds
    one, other = found.instances, expected.instances
    assert one.image_shape == other.image_shape and len(one) == len(other)
    for name in ("offsets_yx", "boxes_xyxy", "scores", "labels"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes()), name
    for ours, theirs in zip(one.crops, other.crops, strict=True):
        assert (ours.dtype, ours.shape, ours.tobytes()) == (theirs.dtype, theirs.shape, theirs.tobytes())
