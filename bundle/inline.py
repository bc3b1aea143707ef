"""Modules to one script: the source of a package, flattened in dependency order, readable, nothing encoded.

A Kaggle script kernel is a single file. The flattened script must mean what the package means, so the modules
keep to rules that make that so, and whatever breaks one is refused with file and line:

- our own modules import each other only by `from kernel.x.y import name`, at the top of the file, each name
  from where it is defined, without circles;
- top-level names are unique over all modules, hide no builtin, and mean one thing where they are imports;
- each module defines or imports every name that it uses;
- only what Kaggle's image holds is imported at the top; what the vendored wheels hold, inside functions;
- importing a module does nothing but define; no `exec`, no `__file__`, no `__name__`.

Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bundle.modules import Package
from bundle.rules import check_package
from bundle.script import write_script
from kernel.errors import InputError

#: The server refuses 1,000,000 bytes and more, and only at the push.
MAX_SCRIPT_BYTES = 900_000


def inline_package(entry: Path, embedded: Mapping[str, str]) -> str:
    """Flatten the package that `entry` belongs to (`<package>/main.py`) into one script.

    Same inputs, same text.

    Args:
        entry: the package's main.py, whose `main` takes the embedded texts in their order.
        embedded: texts that the script carries, by the name of the constant that holds them.

    Raises:
        InputError: lists, with file and line, whatever breaks the rules of this module's docstring; or the script is
            too large.
    """
    package = Package(entry)
    check_package(package, embedded)
    if package.problems:
        listed = sorted(package.problems)
        raise InputError(
            f"{entry}: the package cannot be flattened into a script, {len(listed)} problem(s):\n"
            + "\n".join(f"  - {shown}:{line}: {problem}" for shown, line, problem in listed)
        )
    modules = list(package.modules.values())
    script = write_script(modules, embedded)
    check_script(script, entry)
    size = len(script.encode("utf-8"))
    if size >= MAX_SCRIPT_BYTES:
        sizes = sorted(((len(module.text.encode()), module.shown) for module in modules), reverse=True)
        raise InputError(
            f"the script would take {size:,} bytes; Kaggle takes less than 1,000,000 and we stay below "
            f"{MAX_SCRIPT_BYTES:,}: shorten the manifest's notes, or what was added to the modules; the largest parts: "
            + ", ".join(f"{shown} {count:,}" for count, shown in sizes[:5])
            + f"; embedded texts {sum(len(text.encode()) for text in embedded.values()):,}"
        )
    return script


def check_script(script: str, entry: Path) -> None:
    """Refuse a script that does not compile, whatever made it so.

    Raises:
        InputError: names the line, and the module that it comes from.
    """
    try:
        compile(script, "kernel.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        line = error.lineno or 1
        sections = re.findall(r"^# (\S+\.py)$", "\n".join(script.split("\n")[:line]), flags=re.MULTILINE)
        place = f", in the section of {sections[-1]}" if sections else ""
        source = script.split("\n")[line - 1].strip()
        raise InputError(
            f"{entry}: the flattened script does not compile: line {line}{place}: {error.msg}: {source}"
        ) from error
