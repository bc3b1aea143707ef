from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracles import decode_rle, full_rle

from kernel.errors import InputError
from kernel.masks.rle import decode_rle_crop, encode_rle, parse_rle

crops = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8))
margins = st.tuples(*[st.integers(0, 3)] * 4)


@given(crops, margins)
def test_round_trip_and_oracle(crop, margin):
    top, left, bottom, right = margin
    frame = np.pad(crop, ((top, bottom), (left, right)))
    text = encode_rle(crop, (top, left), frame.shape)
    assert text == full_rle(frame)
    np.testing.assert_array_equal(decode_rle(text, frame.shape), frame)
    tight, (y, x) = decode_rle_crop(text, frame.shape)
    np.testing.assert_array_equal(frame[y : y + tight.shape[0], x : x + tight.shape[1]], tight)
    assert tight.sum() == frame.sum()
    if tight.size:
        assert tight[0].any() and tight[-1].any() and tight[:, 0].any() and tight[:, -1].any()


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (np.zeros((2, 3), bool), ""),
        (np.ones((2, 3), bool), "1 6"),  # one run over both rows
        (np.array([[0, 0, 1], [1, 0, 0]], bool), "3 2"),  # touching across the row's end
        (np.array([[1, 0, 1], [0, 0, 1]], bool), "1 1 3 1 6 1"),
        (np.array([[0, 1], [0, 1]], bool), "2 1 4 1"),  # row-major, not column-major
    ],
)
def test_known_texts(frame, text):
    assert encode_rle(frame, (0, 0), frame.shape) == text
    np.testing.assert_array_equal(decode_rle(text, frame.shape), frame)


def test_empty():
    assert encode_rle(np.zeros((0, 0), bool), (0, 0), (5, 5)) == ""
    assert decode_rle_crop("", (5, 5))[0].shape == (0, 0)
    assert decode_rle("", (5, 5)).sum() == 0
    assert parse_rle("  ", (5, 5))[0].size == 0


def test_touching_runs_of_others_are_read():
    assert decode_rle("1 2 3 1", (1, 4)).tolist() == [[True, True, True, False]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "pairs"),
        ("1 2 3", "pairs"),
        ("1 x", "whole numbers"),
        ("1.0 2", "whole numbers"),
        ("9" * 30 + " 1", "whole numbers"),
        ("0 1", "leaves the image"),
        ("12 2", "leaves the image"),
        ("1 9223372036854775807", "leaves the image"),
        ("1 0", "length 0"),
        ("1 -2", "length -2"),
        ("5 1 1 1", "increasing"),
        ("1 3 3 1", "overlap"),
    ],
)
def test_malformed_texts_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        decode_rle_crop(text, (3, 4))
