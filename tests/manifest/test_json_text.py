"""A JSON text after a value was set: that has changed, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel.manifest.json_text import list_spans, object_spans, set_value

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@given(
    st.dictionaries(st.text(max_size=3), values, max_size=4),
    st.lists(st.text(max_size=3), min_size=1, max_size=3),
    values,
    st.sampled_from([None, 1, 4, "\t"]),
)
def test_any_value_of_any_text(data: dict[str, Any], path: list[str], value: Any, indent: Any) -> None:
    expected = json.loads(json.dumps(data))
    place = expected
    for key in path[:-1]:
        if not isinstance(place, dict):
            break
        place = place.setdefault(key, {})
    text = json.dumps(data, indent=indent)
    if not isinstance(place, dict):
        with pytest.raises(ValueError, match="expected an object"):
            set_value(text, tuple(path), value)
        return
    place[path[-1]] = value
    found = set_value(text, tuple(path), value)
    assert json.loads(found) == expected


@given(st.lists(values, max_size=4), st.dictionaries(st.text(max_size=3), values, max_size=4),
       st.sampled_from([None, 1, "\t"]))  # fmt: skip
def test_spans_are_where_the_values_stand(items: list[Any], data: dict[str, Any], indent: Any) -> None:
    text = " " + json.dumps(items, indent=indent)
    assert [json.loads(text[span.start : span.end]) for span in list_spans(text, 1)] == items
    text = json.dumps(data, indent=indent)
    assert {key: json.loads(text[span.start : span.end]) for key, span in object_spans(text, 0).items()} == data
