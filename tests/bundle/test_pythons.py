"""Grammar that only newer Pythons have is found by any of them."""

from __future__ import annotations

import ast

import pytest

from bundle.pythons import newer_syntax

#: Python 3.11 parses these, and no one may take them for newer.
OLD = [
    "",
    "x = 1\n",
    "try:\n    pass\nexcept* (OSError, ValueError) as group:\n    pass\n",
    "match x:\n    case {'a': [1, *rest], **others}:\n        pass\n",
    "with (open(a) as b, open(c) as d):\n    pass\n",
    "type = 1\ntype(type)\nmatch, case, _ = 1, 2, 3\n",
    "print(f'{a} {b[\"x\"]} \\n {c:>{d}} {e!r:\\t>5} {{}}')\n",
    "print(f'''{a['x']} {f\"{b}\"}\n\\{c} # {d}''')\n",
    "print(rf'\\d{a}' f\"{b}\" 'c{')\n",
    "print(f\"{'#'} {'{'}\", f'a\\\n{b}')\n",
]
#: These it does not; by the line that is to be told.
NEW = [
    ("x = 1\ntype Pair = int\n", 2),
    ("\ndef first[T](items: list[T]) -> T:\n    return items[0]\n", 2),
    ("class Box[T]:\n    pass\n", 1),
    ("x = f'{a['x']}'\n", 1),
    ("\n\nx = f\"{'\\n'.join(a)}\"\n", 3),
    ("x = f'''{\na  # a comment\n}'''\n", 1),
    ("x = f'{\na}'\n", 1),
    ("x = f'{f'{a}'}'\n", 1),
    ("x = [f'{a}',\n     f'''{b} {f\"{'''c'''}\"}''']\n", 2),
    ("x = f'{a + \\\nb}'\n", 1),
]


@pytest.mark.parametrize("source", OLD)
def test_old_grammar_passes(source: str) -> None:
    assert newer_syntax(source) is None


@pytest.mark.parametrize(("source", "line"), NEW)
def test_new_grammar_is_found(source: str, line: int) -> None:
    try:
        ast.parse(source)
    except SyntaxError:
        with pytest.raises(SyntaxError):  # this Python is older than the syntax: it refuses itself
            compile(source, "older", "exec")
        return
    found = newer_syntax(source)
    assert found is not None and found[0] == line and "only supported in Python 3." in found[1]
