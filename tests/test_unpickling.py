"""The code-free unpickler builds what plain containers hold, and neither calls nor changes anything of a program."""

from __future__ import annotations

import copyreg
import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar

import pytest

from kernel.unpickling import CodeFreeUnpickler, Maker, StandIn, make_dict

PLAIN = {
    "texts": ["a", "ä" * 300],
    "numbers": (1, -(2**70), 2.5, True),
    "none": None,
    7: [[], {}, ()],
    "more": [0] * 2000,
}


class Listing(list):
    """Of no module that a reader has."""


def read(content: bytes) -> Any:
    return CodeFreeUnpickler(io.BytesIO(content)).load()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_containers_are_read_as_pickle_reads_them(protocol: int) -> None:
    assert read(pickle.dumps([PLAIN, PLAIN], protocol)) == [PLAIN, PLAIN]


def test_bytes_and_sets_are_read_where_pickles_have_operations_for_them() -> None:
    value = [b"bytes" * 100, bytearray(b"more"), {1, "two"}, frozenset({3})]
    assert read(pickle.dumps(value, 5)) == value


@pytest.mark.parametrize("protocol", range(6))
def test_objects_become_stand_ins_with_their_state(protocol: int) -> None:
    error = ValueError("text")
    error.note = PLAIN  # type: ignore[attr-defined]
    held = read(pickle.dumps({"path": Path("a"), "error": error, "listing": Listing("ab"), "class": Path}, protocol))
    assert all(type(value) is StandIn for value in held.values())
    assert held["error"].held == {"note": PLAIN}


#: The function that the pickles below name, each by another operation.
SYSTEM = b"cos\nmkdir\n"
WORDS = b"(\x8c\x05taken"


@pytest.mark.parametrize(
    "content",
    [
        SYSTEM + WORDS + b"tR.",
        SYSTEM + WORDS + b"t\x81.",
        SYSTEM + WORDS + b"t}\x92.",
        b"(" + SYSTEM + WORDS[1:] + b"o.",
        WORDS + b"ios\nmkdir\n.",
        b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + WORDS + b"tR.",
        b"\x80\x04\x8c\x06kernel\x8c\x13unpickling.os.mkdir\x93" + WORDS + b"tR.",
        b"cbuiltins\ngetattr\n(cos\nsystem\n\x8c\x08__call__tR" + WORDS + b"tR.",
    ],
)
def test_no_operation_calls_what_it_names(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert type(read(content)) is StandIn
    assert not list(tmp_path.iterdir())


def test_what_was_registered_by_numbers_is_not_found() -> None:
    copyreg.add_extension("os", "mkdir", 7)
    copyreg._extension_cache[7] = os.mkdir  # type: ignore[attr-defined]  (as after it was pickled once)
    try:
        with pytest.raises(LookupError):
            read(b"\x82\x07.")
    finally:
        copyreg.remove_extension("os", "mkdir", 7)


class Whole:
    """What an unpickler might hand out."""


class Careless(CodeFreeUnpickler):
    known: ClassVar = {
        ("a", "Whole"): Whole,
        ("a", "whole"): Whole(),
        ("a", "dict"): Maker(make_dict),
        ("a", "size"): (1, 2),
    }


@pytest.mark.parametrize("name", ["Whole", "whole", "dict", "size"])
@pytest.mark.parametrize(
    "change",
    [
        b"}\x8c\x04markK\x05sb",  # a state of attributes
        b"N}\x8c\x04markK\x05s\x86b",  # one of slots
        b"\x8c\x04markK\x05s",
        b"(\x8c\x04markK\x05u",
        b"K\x05a",
        b"(K\x05e",
        b"(K\x05\x90",
    ],
)
def test_nothing_that_is_handed_out_can_be_changed(name: str, change: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"it (fills|changes)"):
        Careless(io.BytesIO(b"\x80\x04ca\n" + name.encode() + b"\n" + change + b".")).load()
    assert not hasattr(Whole, "mark") and vars(Careless.known[("a", "whole")]) == {}


@pytest.mark.parametrize("name", ["Whole", "whole", "size"])
@pytest.mark.parametrize("call", [b")R", b")\x81"])
def test_nothing_that_is_handed_out_can_be_called_but_makers(name: str, call: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it calls"):
        Careless(io.BytesIO(b"\x80\x04ca\n" + name.encode() + b"\n" + call + b".")).load()


def test_an_ordered_dict_is_a_dict_without_attributes() -> None:
    class Ordered(CodeFreeUnpickler):
        known: ClassVar = {("collections", "OrderedDict"): Maker(make_dict)}

    value = OrderedDict(a=1, b=2)
    value._metadata = {"": {"version": 1}}  # type: ignore[attr-defined]
    content = pickle.dumps(value, 2)
    assert b"_metadata" in content
    found = Ordered(io.BytesIO(content)).load()
    assert type(found) is dict and list(found.items()) == [("a", 1), ("b", 2)]
    assert make_dict([["a", 1]]) == {"a": 1}
    for odd in (7, {"a": 1}, ["ab"], [StandIn()]):
        with pytest.raises(pickle.UnpicklingError, match="no pairs"):
            make_dict(odd)
