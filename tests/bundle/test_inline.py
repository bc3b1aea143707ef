"""The script means what the package means; whatever would break that is refused by file and line."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.inline import MAX_SCRIPT_BYTES, inline_package
from bundle.script import text_literal
from kernel.errors import InputError

EMBEDDED = {"MANIFEST_JSON": '{"a": 1}\n', "WHEELS_LOCK_JSON": "{}\n"}

#: A package that keeps to the rules. Single lines are replaced by what breaks them.
FILES = {
    "__init__.py": '"""A package."""\n',
    "main.py": '''"""The story.

More of it.
"""

from __future__ import annotations

import json
import sys

import numpy as np

from kernel.parts.greet import GREETING, greet
from kernel.tools import (
    shout,  # a comment that is cut with its import
)


def main(manifest_json: str, wheels_lock_json: str) -> int:
    """Say hello."""
    # a comment that stays
    text = shout(greet(json.loads(manifest_json)["a"]))
    print(text, GREETING, int(np.sum([1, 2])), wheels_lock_json.strip())
    return 3


if __name__ == "__main__":
    sys.exit(main("", ""))
''',
    "tools.py": '''"""Tools."""

from __future__ import annotations

import json
import math

TEXT = """two blank lines


inside a string stay"""


def shout(text: str) -> str:
    return text.upper() + json.dumps([math.floor(1.5)]) + str(TEXT.count("\\n"))
''',
    "parts/__init__.py": "",
    "parts/greet.py": '''"""Greetings."""

from kernel.tools import shout

GREETING = shout("hey")


def greet(name: object) -> str:
    return f"hello {name}"
''',
}


def write_package(folder: Path, changes: dict[str, str] | None = None) -> Path:
    """Write the package of FILES, with changed files, and return its entry."""
    for name, text in {**FILES, **(changes or {})}.items():
        path = folder / "kernel" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / "kernel" / "main.py"


def run_script(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", str(path)], capture_output=True, text=True, check=False)


def test_script_runs_like_the_package(tmp_path: Path) -> None:
    entry = write_package(tmp_path)
    script = tmp_path / "script.py"
    script.write_text(inline_package(entry, EMBEDDED), encoding="utf-8")
    done = run_script(script)
    assert (done.returncode, done.stdout) == (3, "HELLO 1[1]3 HEY[1]3 3 {}\n"), done.stderr


def test_script_reads_well(tmp_path: Path) -> None:
    script = inline_package(write_package(tmp_path), EMBEDDED)
    assert (ast.get_docstring(ast.parse(script)) or "").startswith("The story.\n")
    banners = re.findall(r"^# ={9,}\n# (.*)\n# ={9,}$", script, flags=re.MULTILINE)
    assert banners[1:] == ["kernel/tools.py", "kernel/parts/greet.py", "kernel/main.py"]
    assert script.count("from __future__") == 1 and script.count("import json") == 1
    assert not re.search(r"^\s*(from|import) kernel", script, flags=re.MULTILINE)
    assert "# a comment that stays" in script and '"""Say hello."""' in script
    assert 'two blank lines\n\n\ninside a string stay"""' in script
    assert "\n\n\n\n" not in script
    assert script.endswith('if __name__ == "__main__":\n    raise SystemExit(main(MANIFEST_JSON, WHEELS_LOCK_JSON))\n')


def test_same_inputs_same_script(tmp_path: Path) -> None:
    one = inline_package(write_package(tmp_path / "one"), EMBEDDED)
    assert one == inline_package(write_package(tmp_path / "other" / "place"), EMBEDDED)


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


GREET, TOOLS, MAIN = FILES["parts/greet.py"], FILES["tools.py"], FILES["main.py"]


def greet_import(line: str) -> str:
    return GREET.replace("from kernel.tools import shout", line)


def in_tools(line: str) -> str:
    """tools.py with one more top-level statement, in line 14 and on."""
    return TOOLS.replace("def shout", f"{line}\n\n\ndef shout")


def tools_import(line: str) -> str:
    """tools.py with one more import, in line 7."""
    return TOOLS.replace("import math", f"import math\n{line}")


NO_MAIN = MAIN.replace("def main(", "def start(").replace("sys.exit(main", "sys.exit(start")
SHORT_MAIN = MAIN.replace(", wheels_lock_json: str", "").replace("wheels_lock_json.strip()", "1")
WRAPPED = "try:\n    from kernel.tools import shout\nexcept ImportError:\n    pass"

REFUSED = [
    # imports of ours
    ({"parts/greet.py": greet_import("from ..tools import shout")}, "parts/greet.py:3", "relative import"),
    ({"parts/greet.py": greet_import("from kernel.tools import *")}, "parts/greet.py:3", "star import"),
    (
        {"parts/greet.py": greet_import("from kernel.tools import shout as cry\nshout = cry")},
        "parts/greet.py:3",
        "another name",
    ),
    ({"parts/greet.py": greet_import("import kernel.tools")}, "parts/greet.py:3", "write `from kernel.x.y import"),
    ({"parts/greet.py": greet_import("from kernel import tools")}, "parts/greet.py:3", "is a package"),
    ({"parts/greet.py": greet_import("from kernel.gone import shout")}, "parts/greet.py:3", "no module kernel.gone"),
    (
        {"parts/greet.py": greet_import("from kernel.tools import shout, cry")},
        "parts/greet.py:3",
        "kernel.tools defines no 'cry'",
    ),
    (
        {"parts/greet.py": greet_import("from kernel.tools import math, shout")},
        "parts/greet.py:3",
        "only imports 'math': import it from math",
    ),
    (
        {"parts/greet.py": GREET + "    from kernel.tools import TEXT\n"},
        "parts/greet.py:10",
        "inside a function or a block",
    ),
    (
        {"parts/greet.py": greet_import(WRAPPED)},
        "parts/greet.py:4",
        "inside a function or a block",
    ),
    (
        {"parts/greet.py": greet_import("from kernel.training.loop import shout")},
        "parts/greet.py:3",
        "never inlined",
    ),
    ({"tools.py": TOOLS.replace("import math", "import math, bundle")}, "tools.py:6", "bundle is not"),
    (
        {"tools.py": in_tools("from kernel.parts.greet import GREETING")},
        "tools.py:14",
        "circular import: kernel.parts.greet -> kernel.tools -> kernel.parts.greet",
    ),
    ({"parts/greet.py": greet_import("from kernel.tools import shout; A = 1")}, "parts/greet.py:3", "line for itself"),
    # names
    ({"tools.py": in_tools("def greet(): ...")}, "parts/greet.py:8", "'greet' is defined in kernel/tools.py:14 too"),
    ({"tools.py": in_tools("GREETING, other = 1, 2")}, "parts/greet.py:5", "'GREETING' is defined in"),
    ({"tools.py": in_tools("if TEXT:\n    GREETING = 1")}, "parts/greet.py:5", "'GREETING' is defined in"),
    ({"tools.py": in_tools("np = 1")}, "main.py:11", "'np' is defined in kernel/tools.py:14 too"),
    ({"tools.py": TOOLS.replace("import math", "import cv2 as np, math")}, "main.py:11", "'np' means the module numpy"),
    (
        {"tools.py": tools_import("from torch import numpy as np")},
        "main.py:11",
        "torch.numpy in kernel/tools.py:7",
    ),
    ({"tools.py": in_tools("json = 1")}, "tools.py:14", "defined here and imported in line 5"),
    ({"tools.py": in_tools("MANIFEST_JSON = 1")}, "tools.py:14", "the script's embedded texts"),
    ({"tools.py": in_tools("def filter(): ...")}, "tools.py:14", "hides a builtin"),
    ({"tools.py": in_tools("def unsure():\n    return GREETING")}, "tools.py:15", "'GREETING' is never defined"),
    ({"tools.py": in_tools("SUM = sum(misspelt for _ in TEXT)")}, "tools.py:14", "'misspelt' is never defined"),
    (
        {"tools.py": in_tools("SUM = [\n    x\n    for _ in TEXT\n]\n\n\ndef f(x):\n    return [x for x in x]")},
        "tools.py:15",
        "'x' is never defined",
    ),
    ({"tools.py": in_tools("def f(a: Misspelt): ...")}, "tools.py:14", "'Misspelt' is never defined"),
    ({"tools.py": in_tools("class A:\n    TEXT = TEXT\n    size = size")}, "tools.py:16", "'size' is never defined"),
    ({"main.py": MAIN.replace('main("", "")', 'main("", misspelt)')}, "main.py:28", "'misspelt' is never defined"),
    ({"tools.py": in_tools("def put():\n    global TEXT")}, "tools.py:15", "`global`"),
    # what a script does not have, or must not do
    ({"tools.py": tools_import(f"import {'x' * 300}")}, "tools.py:7", "is not in Kaggle's image"),
    ({"tools.py": tools_import(f"from kernel.{'x' * 300} import a")}, "tools.py:7", "no module kernel.xxx"),
    ({"tools.py": in_tools("HERE = __file__")}, "tools.py:14", "`__file__` means another thing"),
    ({"tools.py": in_tools("LOG = dict(a=__name__)")}, "tools.py:14", "`__name__` means another thing"),
    ({"tools.py": in_tools("def told():\n    return __doc__")}, "tools.py:15", "`__doc__` means another thing"),
    ({"tools.py": in_tools("def told():\n    return __annotations__")}, "tools.py:15", "`__annotations__` means"),
    ({"tools.py": in_tools("__all__ = []")}, "tools.py:14", "`__all__`"),
    ({"tools.py": in_tools("if __name__ == '__main__':\n    shout('')")}, "tools.py:14", "only main.py"),
    ({"tools.py": in_tools("def run():\n    exec('1')")}, "tools.py:15", "`exec`"),
    ({"tools.py": in_tools("def run():\n    return eval('1')")}, "tools.py:15", "`eval`"),
    ({"tools.py": in_tools("json.dumps(1)")}, "tools.py:14", "only define"),
    ({"tools.py": in_tools("for letter in TEXT:\n    pass")}, "tools.py:14", "only define"),
    ({"parts/__init__.py": "\nHERE = 1\n"}, "parts/__init__.py:2", "docstring and nothing else"),
    # packages
    ({"tools.py": tools_import("import pandas")}, "tools.py:7", "not in Kaggle's image"),
    ({"tools.py": in_tools("def load():\n    import pandas")}, "tools.py:15", "not in Kaggle's image"),
    ({"tools.py": tools_import("import distutils")}, "tools.py:7", "not in Kaggle's image"),  # gone in 3.12
    ({"tools.py": tools_import("from compression import zstd")}, "tools.py:7", "not in Kaggle's image"),  # new in 3.14
    ({"tools.py": tools_import("import mmcv.ops")}, "tools.py:7", "inside a function"),
    ({"tools.py": tools_import("from cv2 import *")}, "tools.py:7", "star import"),
    # the entry
    ({"main.py": NO_MAIN}, "main.py:1", "no function `main(manifest_json, wheels"),
    ({"main.py": SHORT_MAIN}, "main.py:19", "must take the 2 argument(s)"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "place", "told"), REFUSED, ids=[told for _, _, told in REFUSED])
def test_refuses_by_file_and_line(tmp_path: Path, changes: dict[str, str], place: str, told: str) -> None:
    entry = write_package(tmp_path, changes)
    (tmp_path / "bundle").mkdir()
    with pytest.raises(InputError) as caught:
        inline_package(entry, EMBEDDED)
    lines = [line for line in str(caught.value).splitlines() if f"kernel/{place}: " in line]
    assert any(told in line for line in lines), str(caught.value)


@pytest.mark.parametrize(
    "part",
    [
        "training.loop",
        "scoring.score",
        "tuning.score",
        "report.page",
        "export.folder",
        "local_weights",
        "vendored",
        "commands.run",
        "data.synthetic",
    ],
)
def test_parts_that_no_kernel_needs_are_never_inlined(tmp_path: Path, part: str) -> None:
    """Even where the module is there and could be."""
    path = part.replace(".", "/") + ".py"
    told = rf"kernel/tools\.py:7: kernel\.{re.escape(part)} is never inlined"
    with pytest.raises(InputError, match=told):
        inline_package(
            write_package(tmp_path, {path: "MORE = 1\n", "tools.py": tools_import(f"from kernel.{part} import MORE")}),
            EMBEDDED,
        )


def test_a_part_of_a_similar_name_is_inlined(tmp_path: Path) -> None:
    imports = "from kernel.data.images import MORE\nfrom kernel.data.synthetic_light import LESS"
    files = {"data/images.py": "MORE = 1\n", "data/synthetic_light.py": "LESS = 1\n", "tools.py": tools_import(imports)}
    assert "MORE = 1" in inline_package(write_package(tmp_path, files), EMBEDDED)


def test_tells_all_problems_at_once(tmp_path: Path) -> None:
    entry = write_package(tmp_path, {"tools.py": in_tools("HERE = __file__\nTHERE = misspelt")})
    with pytest.raises(InputError, match="2 problem") as caught:
        inline_package(entry, EMBEDDED)
    assert "tools.py:14" in str(caught.value) and "tools.py:15" in str(caught.value)


def test_vendored_packages_inside_functions_pass(tmp_path: Path) -> None:
    entry = write_package(tmp_path, {"tools.py": in_tools("def build():\n    import mmdet.models\n    return mmdet")})
    assert "import mmdet.models" in inline_package(entry, EMBEDDED)


def test_form_feeds_and_separators_do_not_shift_lines(tmp_path: Path) -> None:
    tools = (
        '"""T."""\nODD = "a\u2028b"\n\x0c\nMORE = 2\nimport json\n\n\ndef shout(text):\n    return json.dumps(text)\n'
    )
    script = inline_package(write_package(tmp_path, {"tools.py": tools}), EMBEDDED)
    assert 'ODD = "a\u2028b"\n\x0c\nMORE = 2\n\n\ndef shout(text):\n' in script


def test_broken_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tools\.py:2: "):
        inline_package(write_package(tmp_path, {"tools.py": "A = 1\nB = (\n"}), EMBEDDED)


@pytest.mark.parametrize(
    "line",
    ["return 1", "def f():\n    nonlocal gone", "A = [break]", "def f(a, a): ...", "B = '\0'", "def f[T](a: T): ..."],
)
def test_source_that_does_not_run_on_every_python_is_named(tmp_path: Path, line: str) -> None:
    """Also what a parser alone lets pass, and what only a newer one does."""
    with pytest.raises(InputError, match=r"tools\.py:1[45]?: "):
        inline_package(write_package(tmp_path, {"tools.py": in_tools(line)}), EMBEDDED)


def test_script_that_does_not_compile_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the flattened script does not compile: line \d+: invalid syntax: not = "):
        inline_package(write_package(tmp_path), {"MANIFEST_JSON": "", "not": ""})


def test_modules_that_do_not_compile_together_are_named(tmp_path: Path) -> None:
    """An annotation that the `__future__` import of another module forbids; Python 3.14 forbids it by itself."""
    greet = GREET + "\n\ndef walk(step: (length := int)) -> None: ...\n"
    entry = write_package(tmp_path, {"parts/greet.py": greet})
    with pytest.raises(InputError, match=r"kernel/parts/greet\.py:(10:)? .*named expression.* within an annotation"):
        inline_package(entry, EMBEDDED)


def test_byte_order_marks_stay_out(tmp_path: Path) -> None:
    plain = inline_package(write_package(tmp_path / "plain"), EMBEDDED)
    marked = {name: "\ufeff" + text for name, text in FILES.items()}
    assert inline_package(write_package(tmp_path / "marked", marked), EMBEDDED) == plain


def test_missing_entry_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file .*main\.py"):
        inline_package(tmp_path / "kernel" / "main.py", EMBEDDED)


def test_too_large_a_script_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="900,000"):
        inline_package(write_package(tmp_path), {**EMBEDDED, "MANIFEST_JSON": "x" * MAX_SCRIPT_BYTES})


TRICKY = (
    *("", '"', '""', '"""', "'''", "\\", 'a\\"', 'a"', "a\n", "\r\n", "\x00\x1b", "\\N{x}"),
    "\u2028 é \ud800",
    '\\"""',
)


@pytest.mark.parametrize("text", TRICKY)
def test_text_literal_of_tricky_texts(text: str) -> None:
    assert ast.literal_eval(text_literal(text)) == text


def test_text_literal_does_not_know_this_pythons_unicode() -> None:
    """Letters since 15.0 and 16.0 are printable to some Pythons only."""
    assert text_literal("é Ω 日 \U0001fae8 \U00016d40") == '"""\\\né Ω 日 \\U0001fae8 \\U00016d40"""'


@given(st.text(alphabet=st.characters() | st.sampled_from('"\\\n\r')))
def test_text_literal_holds_any_text(text: str) -> None:
    literal = text_literal(text)
    assert ast.literal_eval(literal) == text
    literal.encode("utf-8")
