"""Fuzzes of what people write and a build reads: manifests, JSON, TOML, the modules that are inlined.

Whatever is read gives a result, or an InputError that a person can read; nothing else is ever raised.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from faults.counting import count_input, torture
from hypothesis import given

from bundle.inline import inline_package
from bundle.script import text_literal
from kernel.data.json_files import read_json
from kernel.data.toml_files import read_toml
from kernel.errors import InputError
from kernel.manifest.json_text import set_value
from kernel.manifest.reader import parse_manifest
from kernel.manifest.types import manifest_to_json

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = json.loads((ROOT / "weights_manifest.json").read_text(encoding="utf-8"))

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\ud800", "{fold}.pt"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def places_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all that is in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places_of(each, (*path, key)))]


@st.composite
def changed_manifests(draw: st.DrawFn) -> str:
    """The published manifest with some values replaced, removed or repeated, as JSON text."""
    data = copy.deepcopy(MANIFEST)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.sampled_from(places_of(data)[1:]))
        holder = data
        for key in place[:-1]:
            holder = holder[key]
        change = draw(st.sampled_from(["replace", "remove", "rename"]))
        if change == "replace":
            holder[place[-1]] = draw(values)
        elif isinstance(holder, dict) and change == "rename":
            holder[draw(st.text())] = holder.pop(place[-1])
        else:
            del holder[place[-1]]
        if len(places_of(data)) < 2:
            break
    return json.dumps(data, ensure_ascii=draw(st.booleans()))


@torture()
@given(changed_manifests())
def test_a_changed_manifest_is_read_or_refused(text: str) -> None:
    count_input("manifests, changed")
    try:
        manifest = parse_manifest(text, "mine.json")
    except InputError as error:
        assert str(error).startswith("mine.json") and len(str(error).splitlines()) <= 52
        return
    embedded = manifest_to_json(manifest)
    assert parse_manifest(embedded, "again") == manifest
    text_literal(embedded).encode("utf-8")
    assert parse_manifest(set_value(text, ("notes",), "new"), "edited").notes == "new"


broken_texts = st.text() | st.tuples(st.sampled_from("[{\"'(.-0\\1=#\n"), st.integers(1, 200_000)).map(
    lambda drawn: drawn[0] * drawn[1]
)


@st.composite
def damaged_texts(draw: st.DrawFn, whole: str) -> str:
    """A text with pieces of others in it."""
    start, end = sorted(draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    return whole[:start] + draw(broken_texts) + whole[end:]


@torture()
@given(damaged_texts((ROOT / "bundle" / "synthetic" / "manifest.json").read_text(encoding="utf-8")))
def test_a_damaged_manifest_is_read_or_refused(text: str) -> None:
    count_input("manifests, damaged")
    try:
        parse_manifest(text, "mine.json")
    except InputError as error:
        assert str(error).startswith("mine.json")


@torture()
@given(content=st.binary() | damaged_texts('{"a": [1, {"b": "c"}], "d": 1e5}').map(lambda text: text.encode()))
def test_json_of_any_bytes_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    count_input("json")
    (tmp_path / "x.json").write_bytes(content)
    try:
        assert isinstance(read_json(tmp_path / "x.json", "annotations"), dict)
    except InputError as error:
        assert "x.json" in str(error)


@torture()
@given(
    content=st.binary() | damaged_texts('[detector]\nkind = "htc"\na.b.c = [1, 2]\n').map(lambda text: text.encode())
)
def test_toml_of_any_bytes_is_read_or_refused(content: bytes, tmp_path: Path) -> None:
    count_input("toml")
    (tmp_path / "x.toml").write_bytes(content)
    try:
        assert isinstance(read_toml(tmp_path / "x.toml", "recipe"), dict)
    except InputError as error:
        assert "x.toml" in str(error)


MODULE = '''"""Tools."""

from __future__ import annotations

import math

LIMIT = 3


def shout(text: str) -> str:
    """Shout."""
    return text.upper() + str([math.floor(each) for each in (1.5, LIMIT)])
'''
MAIN = '''"""A kernel."""

from __future__ import annotations

from kernel.tools import shout


def main(manifest_json: str) -> int:
    """Run."""
    print(shout(manifest_json))
    return 0
'''
pieces = st.sampled_from(
    [
        "from kernel.main import main\n",
        "import os as math\n",
        "x = lambda: (yield)\n",
        "class A[T]: pass\n",
        "    ",
        "\t",
        "print('hey')\n",
        "global x\n",
        "def f(): return __file__\n",
        "from . import a\n",
        "type X = int\n",
        "\f",
        "\r",
        "\0",
        "match 1:\n    case a: pass\n",
        "async def g():\n    [b async for b in g()]\n",
        "del math\n",
        "f'{1!r:>{2}}'\n",
        "\\\n",
    ]
)


@torture()
@given(
    module=st.lists(damaged_texts(MODULE), min_size=1, max_size=1).map(lambda texts: texts[0])
    | st.tuples(st.integers(0, len(MODULE)), pieces).map(
        lambda drawn: MODULE[: drawn[0]] + drawn[1] + MODULE[drawn[0] :]
    ),
    embedded=st.text(),
)
def test_any_module_is_inlined_or_refused(module: str, embedded: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    count_input("modules to inline")
    folder = tmp_path_factory.mktemp("package") / "kernel"
    folder.mkdir()
    (folder / "main.py").write_text(MAIN, encoding="utf-8", newline="\n")
    (folder / "tools.py").write_text(module, encoding="utf-8", errors="surrogatepass", newline="\n")
    try:
        script = inline_package(folder / "main.py", {"MANIFEST_JSON": embedded})
    except InputError as error:
        assert re.search(r"tools\.py|main\.py", str(error)) or "embedded" in str(error)
    else:
        compile(script, "kernel.py", "exec", dont_inherit=True)
