"""What a module's names mean, worked out the same way by every Python."""

from __future__ import annotations

import ast
import json
import subprocess

import pytest
from interpreters import SOUGHT, find_interpreters

from build_kernel import ROOT
from bundle.pythons import BUILTIN_NAMES
from bundle.scopes import top_names

#: Sources, and what they look up that is neither theirs nor a builtin, with its line.
PLANTED: list[tuple[str, dict[str, int]]] = [
    ("", {}),
    ("A = 1\nB = A + C\n", {"C": 2}),
    # comprehensions
    ("def f(parts):\n    return [part for part in parts if part]\n", {}),
    ("A = [x for x in range(3)]\nB = x\n", {"x": 2}),
    ("A = [\n    y\n    for x in range(3)\n]\n", {"y": 2}),
    ("A = {k: [v for v in w if k] for k, *w in [(1, 2)]}\n", {}),
    ("A = {k: [v for v in w if k] for k in w}\n", {"w": 1}),
    ("A = [x for x in x]\n", {"x": 1}),
    ("A = [y for x in [[1]] for y in x]\n", {}),
    ("A = [y for y in x for x in [[1]]]\n", {"x": 1}),
    ("def f():\n    return [x for x in y], lambda: x\n", {"y": 2, "x": 2}),
    ("async def f(a):\n    return {x async for x in a}, {z async for x in a}\n", {"z": 2}),
    ("A = (lambda: [x for _ in 'ab'])\n", {"x": 1}),
    # walrus: bound outside of comprehensions, inside of lambdas
    ("A = [(last := x) for x in range(3)]\nB = last\n", {}),
    ("def f(a):\n    any((hit := x) for x in a)\n    return hit\n", {}),
    ("def f(a):\n    any((hit := x) for x in a)\n\n\nA = hit\n", {"hit": 5}),
    ("A = lambda: (x := 1)\nB = x\n", {"x": 2}),
    ("def f(a=(x := 1)):\n    pass\n\n\nB = x\n", {}),
    ("if (x := 1) and (y := x):\n    A = y\n", {}),
    # functions
    ("def f(a, /, b, *c, d, **e):\n    return a, b, c, d, e, g\n", {"g": 2}),
    ("def f(a=a, *, b=lambda c=c: c):\n    return a\n", {"a": 1, "c": 1}),
    ("@cached(\n    size=size\n)\ndef f():\n    pass\n", {"cached": 1, "size": 2}),
    ("def f():\n    def g():\n        return later\n    later = 1\n    return g\n", {}),
    ("def f():\n    x = 1\n\n\ndef g():\n    return x\n", {"x": 6}),
    ("def top(self, which):\n    return self, which\n", {}),  # `top`, which symtable takes for a module
    ("def f():\n    x = 1\n    def g():\n        nonlocal x\n        x += 1\n    return g, x\n", {}),
    ("def f():\n    global x\n    x = 1\n    return lambda: x\n", {"x": 4}),
    ("x = 1\n\n\ndef f():\n    global x\n    x += 1\n", {}),
    ("def f():\n    del x\n    return x\n", {}),
    (
        "def f():\n    import os.path as p, sys\n    from a import b as c\n    return p, sys, c, os, b\n",
        {"os": 4, "b": 4},
    ),
    ("def f():\n    return recursive()\n\n\ndef recursive():\n    return f()\n", {}),
    # classes
    ("class A:\n    x = 1\n    y = x\n\n    def f(self):\n        return x\n", {"x": 6}),
    ("class A:\n    x = 1\n    y = [x for _ in 'ab']\n", {"x": 3}),
    ("class A:\n    x = 'ab'\n    y = [z for z in x]\n", {}),
    ("class A:\n    x = lambda: y\n    y = 1\n", {"y": 2}),
    ("class A:\n    size = size\n", {"size": 2}),
    ("def f():\n    size = 1\n    class A:\n        size = size\n", {"size": 4}),
    ("def f():\n    size = 1\n    class A:\n        other = size\n", {}),
    ("class A(B, metaclass=M):\n    pass\n", {"B": 1, "M": 1}),
    ("class A:\n    class B:\n        def f(self):\n            return __class__, super().f()\n", {}),
    ("class A:\n    x = __qualname__\n    y = __class__\n", {"__class__": 3}),
    ("class _A:\n    def f(self):\n        return __x, __y__\n\n\n__x = _A__x = 1\n", {"__y__": 3}),
    ("class A:\n    def f(self):\n        return __x\n\n\n__x = 1\n", {"_A__x": 3}),
    ("class A:\n    def __f(self):\n        pass\n    g = __f\n", {}),
    ("@B\nclass A:\n    @B.c\n    def f(self): ...\n", {"B": 1}),
    # annotations, evaluated or not
    ("x: int = 1\ny: Size = x\n", {"Size": 2}),
    ("x: int\ny = x\n", {"x": 2}),
    ("def f(a: A, *b: B, c: C = 1, **d: D) -> E:\n    x: F = a\n", {"A": 1, "B": 1, "C": 1, "D": 1, "E": 1, "F": 2}),
    ("from __future__ import annotations\n\n\ndef f(a: A) -> f: ...\n", {"A": 4}),
    ("class A:\n    T = int\n    x: T\n    def f(self) -> U: ...\n    U = int\n    def g(self) -> A: ...\n", {}),
    ("def f():\n    T = int\n    class A:\n        x: T\n", {}),
    ("def f():\n    x: int\n    return lambda: x\n", {}),
    ("if A:\n    x: int = 1\nelse:\n    y: B\n", {"A": 1, "B": 4}),
    ("x: 'Anything at all'\n", {}),
    # statements that bind
    ("(a, *b), [c.d, e[0]] = c = e = 1\nA = a, b\n", {}),
    ("for i, (j, *k) in z:\n    A = i, j, k\nelse:\n    B = i\n", {"z": 1}),
    ("with a as (b, c), d(b) as e:\n    A = b, c, e\n", {"a": 1, "d": 1}),
    ("try:\n    pass\nexcept A as a:\n    B = a\n", {"A": 3}),
    ("try:\n    pass\nexcept* (A, OSError) as a:\n    B = a.exceptions, b\n", {"A": 3, "b": 4}),
    ("total += 1\n", {"total": 1}),
    ("def f():\n    total = 0\n    total += x\n", {"x": 3}),
    ("a.b[c] += d\n", {"a": 1, "c": 1, "d": 1}),
    (
        "def f(x):\n    match x:\n        case P(a, b=[c, *d]) | {M.K: c, **e} if a and g:\n"
        "            return b, c, d, e\n"
        "        case (1 | N.O) as h:\n            return h\n        case other:\n            return other\n",
        {"P": 3, "M": 3, "g": 3, "b": 4, "N": 5},
    ),
    # f-strings
    ("def f(a):\n    return f'{a!r:>{w}} {{b}}'\n", {"w": 2}),
    ("A = f'''\n{x}\n{\n y:{\nz}}'''\n", {"x": 2, "y": 4, "z": 5}),
    ("A = (f'a'\n     f'{x}' 'b'\n     f'{[y for y in f\"{z}\"]}')\n", {"x": 2, "z": 3}),
]
#: Type parameters, for those who parse them.
PLANTED_NEW: list[tuple[str, dict[str, int]]] = [
    ("def f[T: B](a: T = D) -> list[T]:\n    x: T = a\n    return T, U\n", {"B": 1, "D": 1, "U": 3}),
    ("def f[*Ts, **P](*a: *Ts, **k: P.kwargs) -> P: ...\n\n\nA = Ts\n", {"Ts": 4}),
    ("class A[T](Base[T], key=T):\n    x: T\n    def f(self) -> T: return T\n\n\nB = T\n", {"Base": 1, "T": 6}),
    ("@T\nclass A[T]: ...\n", {"T": 1}),
    ("type X[T] = dict[T, X] | Y\nA = X\n", {"Y": 1}),
    ("class A:\n    K = int\n    type X = K\n    def f[T: K](self) -> K: return K\n", {"K": 4}),
    ("def f[T](a=[T for _ in 'a']): ...\n", {"T": 1}),
    ("A = f'{a['x']} {f'{b}'}'\n", {"a": 1, "b": 1}),
]


def undefined(source: str) -> dict[str, int]:
    """The names that a source looks up in vain, with their line."""
    names = top_names(ast.parse(source).body)
    return {
        name: line for name, line in names.looked_up.items() if name not in names.defined and name not in BUILTIN_NAMES
    }


@pytest.mark.parametrize(("source", "expected"), PLANTED)
def test_names_looked_up_in_vain(source: str, expected: dict[str, int]) -> None:
    assert undefined(source) == expected


def test_what_is_defined_and_where() -> None:
    source = (
        "import a.b, c as d\nfrom e import f as g\nX = Y = 1\nX = 2\nZ: int = 1\nW: int\nV += 1\n"
        "def h(i=(j := 1)): k = 1\nclass L: m = 1\nN = [o for o in 'ab' if (p := o)]\nq = lambda r: (s := r)\n"
    )
    assert top_names(ast.parse(source).body).defined == {
        **{"a": 1, "d": 1, "g": 2, "X": 3, "Y": 3, "Z": 5},
        **{"h": 8, "j": 8, "L": 9, "N": 10, "p": 10, "q": 11},
    }


ASK = """
import ast, json, sys
from bundle.scopes import top_names
answers = []
for source in json.load(sys.stdin):
    try:
        names = top_names(ast.parse(source).body)
    except SyntaxError:
        answers.append(None)
    else:
        answers.append([names.defined, names.looked_up])
json.dump(answers, sys.stdout)
"""


@pytest.mark.parametrize("version", SOUGHT)
def test_every_python_says_the_same(version: str) -> None:
    """Of the planted sources, and of all of ours."""
    interpreter = find_interpreters().get(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} on PATH or among pyenv's")
    old = [source for source, _ in PLANTED]
    old += [path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("kernel/**/*.py"))]
    new = [source for source, _ in PLANTED_NEW]
    done = subprocess.run(
        [interpreter, "-c", ASK], input=json.dumps(old + new), cwd=ROOT, capture_output=True, text=True, check=True
    )
    answers = json.loads(done.stdout)
    for source, answer in zip(old, answers[: len(old)], strict=True):
        names = top_names(ast.parse(source).body)
        assert answer == [names.defined, names.looked_up], source
    for (source, expected), answer in zip(PLANTED_NEW, answers[len(old) :], strict=True):
        if answer is None:
            assert version == "3.11", source
            continue
        defined, looked_up = answer
        found = {name: line for name, line in looked_up.items() if name not in {*defined, *BUILTIN_NAMES}}
        assert found == expected, source
