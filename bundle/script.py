"""Checked modules as one script: a section each, word for word, the imports of all together at the top."""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Mapping, Sequence

from bundle.modules import ModuleSource
from bundle.pythons import STANDARD_MODULES
from bundle.rules import VENDORED_NEEDS, VENDORED_PACKAGES
from kernel.errors import InputError

LINE_LENGTH = 110
#: Stands before all other imports.
ENDED_AT_ONCE = """\
import os
import signal

# While all below is imported, a signal ends this at once: an exception in an import is a page of traceback.
# A notebook, which has no file, keeps its own ways.
if __name__ == "__main__" and "__file__" in globals():
    for heard in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, heard) and signal.getsignal(getattr(signal, heard)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, heard), lambda number, frame: os._exit(128 + number))
    del heard"""
#: Stands between the imports of the standard library and those of torch.
TEMPORARY_FOLDER = """\
# torch wants a folder for temporary files when it is imported. Where there is none, that is the working folder.
try:
    tempfile.gettempdir()
except FileNotFoundError:
    os.environ["TMPDIR"] = tempfile.tempdir = os.environ.get("KERNEL_WORKING", "/kaggle/working")"""
#: What counts as printable in embedded texts. The present version's idea of it changes from Python to Python.
FROZEN_UNICODE = unicodedata.ucd_3_2_0


def write_script(order: Sequence[ModuleSource], embedded: Mapping[str, str]) -> str:
    """Put the checked modules together, each after what it imports; the last one is the entry."""
    futures = sorted({name for module in order for name in module.futures})
    parts = [script_docstring(order, embedded)]
    if futures:
        parts.append(f"from __future__ import {', '.join(futures)}")
    parts.extend(hoisted_imports(order))
    head = "\n\n".join(parts)
    constants = "\n\n".join(f"{name} = {text_literal(text)}" for name, text in embedded.items())
    sections = [f"{banner('embedded', 'what this kernel was built with')}\n\n{constants}"]
    for module in order:
        sections.append(f"{banner(module.shown)}\n\n{section_text(module)}")
    call = f'if __name__ == "__main__":\n    raise SystemExit(main({", ".join(embedded)}))'
    return "\n\n\n".join([head, *sections, call]) + "\n"


def script_docstring(order: Sequence[ModuleSource], embedded: Mapping[str, str]) -> str:
    """The script's own docstring: what it is, and what it was built from."""
    documented = (ast.get_docstring(order[-1].tree) or "A kernel.").splitlines()[0]
    listing = "\n".join(f"    {module.shown}" for module in order)
    return (
        f'"""{escape_docstring(documented)}\n\n'
        "Built by build_kernel.py from the modules below, in this order, one section each; change those,\n"
        f"not this file. What it was built with is in {' and '.join(embedded) or 'the sections'}.\n\n"
        f"{listing}\n\n"
        "On Kaggle it runs as it is, offline. Elsewhere, with the inputs laid out as Kaggle mounts them:\n\n"
        "    KERNEL_INPUT_ROOT=INPUTS KERNEL_WORKING=OUTPUTS python kernel.py\n"
        '"""'
    )


def escape_docstring(text: str) -> str:
    """A line of text as it must stand inside a docstring."""
    return text.replace("\\", "\\\\").replace('"""', r"\"\"\"")


def banner(title: str, note: str = "") -> str:
    """The heading of a section."""
    rule = "# " + "=" * (LINE_LENGTH - 2)
    return f"{rule}\n# {title}{': ' + note if note else ''}\n{rule}"


def section_text(module: ModuleSource) -> str:
    """A module's source, word for word, without the imports and the guard that the script has elsewhere."""
    lines = module.text.split("\n")
    dropped: set[int] = set()
    for statement in [*module.cut, *module.hoisted]:
        dropped.update(range(statement.lineno - 1, statement.end_lineno or statement.lineno))
    for index in sorted(dropped):  # the blank lines after what is cut go with it
        below = index + 1
        while below < len(lines) and below not in dropped and not lines[below].strip():
            dropped.add(below)
            below += 1
    kept: list[str] = []
    for index, line in enumerate(lines):
        if index in dropped:
            continue
        if kept and index - 1 in dropped:
            while kept and not kept[-1].strip():
                kept.pop()
            kept.extend(["", ""])
        kept.append(line)
    return "\n".join(kept).strip("\n")


def hoisted_imports(order: Sequence[ModuleSource]) -> list[str]:
    """The third-party imports of all modules, each once: standard library first, plain imports first.

    Where torch's are among them, signals are seen to before all, and before torch's a folder for temporary files.
    """
    plain: set[tuple[str, str]] = set()
    named: dict[str, set[tuple[str, str]]] = {}
    for module in order:
        for statement in module.hoisted:
            for alias in statement.names:
                if isinstance(statement, ast.Import):
                    plain.add((alias.name, alias.asname or ""))
                else:
                    named.setdefault(str(statement.module), set()).add((alias.name, alias.asname or ""))
    imports_torch = any(name.split(".")[0] == "torch" for name in [*named, *(name for name, _ in plain)])
    if imports_torch:
        plain |= {("os", ""), ("tempfile", "")}
    needed = needed_packages(order)
    if needed:
        plain |= {("importlib.util", ""), ("sys", "")}
    blocks = [ENDED_AT_ONCE] if imports_torch else []
    for standard in (True, False):
        lines = [f"import {alias_text(pair)}" for pair in sorted(plain) if is_standard(pair[0]) == standard]
        for source in sorted(name for name in named if is_standard(name) == standard):
            names = [alias_text(pair) for pair in sorted(named[source])]
            line = f"from {source} import {', '.join(names)}"
            if len(line) > LINE_LENGTH:
                line = f"from {source} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
            lines.append(line)
        if lines:
            blocks.append("\n".join(lines))
        if standard and imports_torch:
            blocks.append(TEMPORARY_FOLDER)
        if standard and needed:
            blocks.append(missing_packages_check(needed))
    return blocks


def needed_packages(order: Sequence[ModuleSource]) -> list[str]:
    """What must be installed for the script to run, beside the vendored packages, which it installs itself."""
    hoisted = {name for module in order for statement in module.hoisted for name in imported_packages(statement)}
    imports = [
        node for module in order for node in ast.walk(module.tree) if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    if any(VENDORED_PACKAGES & imported_packages(node) for node in imports):
        hoisted |= VENDORED_NEEDS
    return sorted((name for name in hoisted if not is_standard(name)), key=str.lower)


def imported_packages(statement: ast.Import | ast.ImportFrom) -> set[str]:
    """The top-level packages that an import names."""
    names = [str(statement.module)] if isinstance(statement, ast.ImportFrom) else [a.name for a in statement.names]
    return {name.split(".")[0] for name in names}


def missing_packages_check(needed: Sequence[str]) -> str:
    """Lines that name all packages that are missing in one message, and end the script, before an import fails."""
    listed = "".join(f'    "{name}",\n' for name in needed)
    return (
        f"if missing_packages := [name for name in (\n{listed}) if importlib.util.find_spec(name) is None]:\n"
        "    print(f\"not installed here, and needed: {', '.join(missing_packages)}; choose an image that has them\")\n"
        "    raise SystemExit(2)\n"
        "del missing_packages"
    )


def is_standard(name: str) -> bool:
    """Whether a module belongs to the standard library."""
    return name.split(".")[0] in STANDARD_MODULES


def alias_text(pair: tuple[str, str]) -> str:
    """An imported name as it is written in an import."""
    name, alias = pair
    return f"{name} as {alias}" if alias else name


def text_literal(text: str) -> str:
    """A Python literal of `text` that keeps its lines apart and reads like it, whatever `text` holds."""
    escaped = []
    # A quote before another, or at the end, is escaped: three bare ones would end the literal.
    for character in re.sub(r'"(?="|\Z)', r'\\"', text.replace("\\", "\\\\")):
        if character in "\n " or FROZEN_UNICODE.category(character)[0] not in "CZ":
            escaped.append(character)
        else:
            escaped.append(character.encode("unicode_escape", "surrogatepass").decode("ascii"))
    body = "".join(escaped)
    literal = f'"""\\\n{body}"""'
    if ast.literal_eval(literal) != text:
        raise InputError("an embedded text cannot be written as a Python literal: keep it to printable text")
    return literal
