"""The project as an installed package: hatchling's build hook, by which `pip install .` and `python -m build` go.

The checkout has the top-level folders that its user asked for, `kernel` and `bundle`; an installed package must not
have such names, which anything may have. So the wheel holds the same files as one package, `inside_ensemble`, with
`bundle`'s beside them in it, and each import says so. Nothing else is changed: what is tested here is what is
installed.
"""

from __future__ import annotations

import ast
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOT = Path(__file__).resolve().parents[1]
#: Import name of the package, and the name of its command.
PACKAGE, COMMAND = "inside_ensemble", "inside-ensemble"
#: What runs from the installed package, beside `kernel`: the module that builds and installs the vendored wheels.
BUNDLE_ENTRY = "bundle.site"
#: The package's own `__init__.py`. In the checkout that of `kernel` holds nothing, as it is inlined into the script.
PUBLIC_NAMES = "bundle/public_names.py"
#: The members that come with the program. Those of bundle/synthetic are for tests, and are not installed.
MEMBERS = "bundle/members"
#: Read as they are, and packed into the vendored wheels, whose hashes are in the lock.
VERBATIM = ("bundle/mmcv_ops.py", "bundle/fcn_mask_head.py", "bundle/wheels.lock.json")
#: A module's name as a whole string, as for `python -m`.
MODULE_NAME = re.compile(r"(kernel|bundle)(\.\w+)*")
#: How texts for people name the command line.
COMMAND_LINE = re.compile(r"python -m kernel\b")


class DistributionHook(BuildHookInterface):
    """Gives hatchling the files of the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the package into a folder of its own, and name that."""
        if version == "editable":
            raise RuntimeError(
                f"an editable install would need {PACKAGE} in the checkout, whose folder is `kernel`: work in the "
                "checkout as README.md says, or install it without -e"
            )
        self.folder = Path(tempfile.mkdtemp())
        write_package(self.folder / PACKAGE)
        build_data["force_include"][str(self.folder / PACKAGE)] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder)


def write_package(out: Path) -> None:
    """Write the package `inside_ensemble` to the new folder `out`."""
    shutil.copytree(ROOT / "kernel", out, ignore=shutil.ignore_patterns("__pycache__"))
    (out / "bundle").mkdir()
    for name in ("bundle/__init__.py", *VERBATIM, *bundle_modules([BUNDLE_ENTRY])):
        shutil.copyfile(ROOT / name, out / name)
    if (ROOT / MEMBERS).is_dir():
        shutil.copytree(ROOT / MEMBERS, out / MEMBERS)
    shutil.copyfile(ROOT / PUBLIC_NAMES, out / "__init__.py")
    (out / "py.typed").touch()
    verbatim = {out / name for name in VERBATIM}
    for path in sorted(set(out.rglob("*.py")) - verbatim):
        source = path.read_text(encoding="utf-8")
        path.write_text(renamed(source), encoding="utf-8", newline="\n")


def bundle_modules(wanted: Iterable[str]) -> list[str]:
    """The files of the modules `wanted` of `bundle`, and of those of `bundle` that they import, from the root."""
    found: dict[str, None] = {}
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        path = f"{name.replace('.', '/')}.py"
        if path in found or path in VERBATIM:
            continue
        found[path] = None
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        waiting += [
            node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("bundle.")
        ]
    return list(found)


def renamed(source: str) -> str:
    """The source with its imports of `kernel` and `bundle`, and its words about the command line, as the package's."""
    lines = source.splitlines(keepends=True)
    changes: list[tuple[int, int, int, str, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("kernel", "bundle"):
            start = node.col_offset + len("from ")
            changes.append((node.lineno, start, start + len(node.module), node.module, installed_name(node.module)))
        elif isinstance(node, ast.Import):
            raise_for_plain_import(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and MODULE_NAME.fullmatch(node.value):
            if "." in node.value and is_module(node.value):
                start = node.col_offset + 1  # after the quote
                changes.append((node.lineno, start, start + len(node.value), node.value, installed_name(node.value)))
    for line, start, end, old, new in sorted(changes, reverse=True):
        text = lines[line - 1].encode("utf-8")  # offsets are in bytes
        if text[start:end].decode("utf-8") != old:
            raise RuntimeError(f"line {line} is not as expected: {lines[line - 1]!r} should have {old} at {start}")
        lines[line - 1] = (text[:start] + new.encode("utf-8") + text[end:]).decode("utf-8")
    return COMMAND_LINE.sub(COMMAND, "".join(lines))


def is_module(name: str) -> bool:
    """Whether the checkout has a module or package of this name, as against a key of a manifest, say."""
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def installed_name(module: str) -> str:
    """A module of the checkout by its name in the package."""
    top, _, rest = module.partition(".")
    inner = rest if top == "kernel" else module
    return f"{PACKAGE}.{inner}" if inner else PACKAGE


def raise_for_plain_import(node: ast.Import) -> None:
    """`import kernel.x` would need its uses renamed too: the project does without it."""
    for alias in node.names:
        if alias.name.split(".")[0] in ("kernel", "bundle"):
            raise RuntimeError(f"line {node.lineno}: write `from {alias.name} import ...`, not `import {alias.name}`")
