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

import ast
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bundle.pythons import BUILTIN_NAMES, OLDEST_PYTHON, STANDARD_MODULES, newer_syntax
from bundle.scopes import top_names
from kernel.errors import InputError

#: The server refuses 1,000,000 bytes and more, and only at the push.
MAX_SCRIPT_BYTES = 900_000
LINE_LENGTH = 110
#: What counts as printable in embedded texts. The present version's idea of it changes from Python to Python.
FROZEN_UNICODE = unicodedata.ucd_3_2_0

#: What Kaggle's image holds, as far as a kernel may need it.
IMAGE_PACKAGES = frozenset(
    ("cv2", "numpy", "pycocotools", "safetensors", "scipy", "timm", "torch", "torchvision", "tqdm")
)
#: What the vendored wheels bring. Installed while the script runs, so not importable at its top.
VENDORED_PACKAGES = frozenset({"mmcv", "mmdet"})
#: What the image may hold or not: the code that needs it asks first, and imports it inside a function.
OPTIONAL_PACKAGES = frozenset({"tifffile"})
#: Parts of the package that are never inlined: they need more than the image holds, or no kernel needs them.
NOT_INLINED = ("training", "validation", "commands", "data.synthetic")

#: Names that mean another thing in a flattened script than in a module.
MODULE_NAMES = frozenset(
    ("__file__", "__name__", "__package__", "__spec__", "__loader__", "__path__", "__cached__", "__all__", "__doc__")
) | {"__module__", "__annotations__", "__annotate__"}
#: Builtins that run text as code or reach a module's names behind our back.
FORBIDDEN_BUILTINS = frozenset({"exec", "eval", "compile", "__import__", "globals", "__builtins__"})


@dataclass(frozen=True, order=True)
class ImportedName:
    """One name that an import statement binds."""

    module: str  # "numpy"; for `import a.b` without `as`: the package that it binds, "a"
    attribute: str  # "" for `import module`
    name: str  # what it is called here


@dataclass
class ModuleSource:
    """One module, taken apart."""

    name: str  # "kernel.models.encoders"
    path: Path
    shown: str  # the path in messages and banners, relative to the package's parent
    text: str
    tree: ast.Module
    ours: dict[str, list[ast.ImportFrom]] = field(default_factory=dict)  # by imported module
    futures: set[str] = field(default_factory=set)
    hoisted: list[ast.Import | ast.ImportFrom] = field(default_factory=list)
    cut: list[ast.stmt] = field(default_factory=list)  # statements that the script does not repeat
    defined: dict[str, int] = field(default_factory=dict)  # top-level names but imports, with their line
    imported: dict[str, tuple[ImportedName, int]] = field(default_factory=dict)  # imported names and their line
    looked_up: dict[str, int] = field(default_factory=dict)  # names that must be top-level names or builtins


def inline_package(entry: Path, embedded: Mapping[str, str]) -> str:
    """Flatten the package that `entry` belongs to (`<package>/main.py`) into one script.

    `embedded` are texts that the script carries, by the name of the constant that holds them; `entry` must
    define `main` taking them in that order. Same inputs, same text.

    Raises InputError that lists, with file and line, whatever breaks the rules of this module's docstring, or
    says that the script is too large.
    """
    reader = PackageReader(entry)
    order = reader.read()
    reader.check_together(order, embedded)
    if reader.problems:
        listed = sorted(reader.problems)
        raise InputError(
            f"{entry}: the package cannot be flattened into a script, {len(listed)} problem(s):\n"
            + "\n".join(f"  - {shown}:{line}: {problem}" for shown, line, problem in listed)
        )
    script = write_script(order, entry, embedded)
    check_script(script, entry)
    size = len(script.encode("utf-8"))
    if size >= MAX_SCRIPT_BYTES:
        sizes = sorted(((len(module.text.encode()), module.shown) for module in order), reverse=True)
        raise InputError(
            f"the script would take {size:,} bytes; Kaggle takes less than 1,000,000 and we stay below "
            f"{MAX_SCRIPT_BYTES:,}. The largest parts: "
            + ", ".join(f"{shown} {count:,}" for count, shown in sizes[:5])
            + f"; embedded texts {sum(len(text.encode()) for text in embedded.values()):,}"
        )
    return script


class PackageReader:
    """Reads the modules that an entry reaches, and collects what breaks the rules."""

    def __init__(self, entry: Path) -> None:
        if not entry.is_file():
            raise InputError(f"no file {entry}: the entry must be the package's main.py")
        self.entry = entry
        self.package = entry.parent.name
        self.root = entry.parent.parent
        self.modules: dict[str, ModuleSource] = {}
        self.problems: set[tuple[str, int, str]] = set()

    def read(self) -> list[ModuleSource]:
        """Read the entry and all that it imports; returns them so that each comes after what it imports."""
        order: list[ModuleSource] = []
        self.visit(f"{self.package}.{self.entry.stem}", [], order)
        return order

    def path_of(self, name: str) -> Path:
        """The file of the module `name`."""
        return self.root.joinpath(*name.split(".")).with_suffix(".py")

    def visit(self, name: str, above: list[str], order: list[ModuleSource]) -> None:
        """Put `name` after all that it imports. `above` are the modules whose imports led here."""
        module = self.load(name)
        trail = [*above, name]
        for imported, statements in module.ours.items():
            if imported in trail:
                circle = " -> ".join([*trail[trail.index(imported) :], imported])
                self.problem(module, statements[0], f"circular import: {circle}")
            elif imported not in self.modules:
                self.visit(imported, trail, order)
        order.append(module)

    def load(self, name: str) -> ModuleSource:
        """Parse one module and check what can be checked in it alone."""
        path = self.path_of(name)
        shown = path.relative_to(self.root).as_posix()
        text, tree = read_module(path)
        module = ModuleSource(name, path, shown, text, tree)
        self.modules[name] = module
        for statement in tree.body:
            self.read_statement(module, statement)
        top_imports = set(map(id, [*module.hoisted, *module.cut]))
        for node in ast.walk(tree):
            self.check_node(module, node, at_top=id(node) in top_imports)
        self.check_names(module)
        newer = newer_syntax(text)
        if newer is not None:
            line, told = newer
            self.problem(module, line, f"{told}: the kernel must run on every Python from {OLDEST_PYTHON} on")
        return module

    def read_statement(self, module: ModuleSource, statement: ast.stmt) -> None:
        """Sort one top-level statement: ours, third-party, a definition, or nothing that belongs there."""
        if isinstance(statement, ast.Import | ast.ImportFrom):
            self.read_import(module, statement)
            self.check_own_lines(module, statement)
            return
        names = top_names([statement])
        if is_main_guard(statement):
            module.cut.append(statement)
            if module.path != self.entry:
                self.problem(module, statement, f"only {self.entry.name} may have a guard on `__name__`")
            names.looked_up = {name: line for name, line in names.looked_up.items() if name not in names.defined}
            names.defined.clear()
        if isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant):
            self.problem(module, statement, "a module may only define: move what it does into a function")
        if isinstance(statement, ast.For | ast.While | ast.With | ast.Assert | ast.Delete | ast.Raise):
            self.problem(module, statement, "a module may only define: move what it does into a function")
        for name, line in names.looked_up.items():
            module.looked_up.setdefault(name, line)
        for name, line in names.defined.items():
            module.defined.setdefault(name, line)
            if name in BUILTIN_NAMES or name in MODULE_NAMES:
                self.problem(module, line, f"the top-level name {name!r} hides a builtin for all modules: rename it")

    def read_import(self, module: ModuleSource, statement: ast.Import | ast.ImportFrom) -> None:
        """Sort one top-level import."""
        if isinstance(statement, ast.ImportFrom) and statement.module == "__future__" and not statement.level:
            module.futures.update(alias.name for alias in statement.names)
            module.cut.append(statement)
            return
        if self.is_ours(statement):
            module.cut.append(statement)
            if isinstance(statement, ast.ImportFrom) and self.check_ours(module, statement):
                module.ours.setdefault(str(statement.module), []).append(statement)
                for alias in statement.names:
                    module.imported[alias.name] = (
                        ImportedName(str(statement.module), alias.name, alias.name),
                        statement.lineno,
                    )
            return
        module.hoisted.append(statement)
        for alias in statement.names:
            origin = imported_name(statement, alias)
            known = module.imported.setdefault(origin.name, (origin, statement.lineno))
            if known[0] != origin:
                self.problem(module, statement, f"{origin.name!r} is imported twice, from different places")

    def is_ours(self, statement: ast.Import | ast.ImportFrom) -> bool:
        """Whether an import reaches into the package."""
        if isinstance(statement, ast.ImportFrom):
            return statement.level > 0 or str(statement.module).split(".")[0] == self.package
        return any(alias.name.split(".")[0] == self.package for alias in statement.names)

    def check_ours(self, module: ModuleSource, statement: ast.ImportFrom) -> bool:
        """Whether an import of ours has the one form that can be flattened; notes what is wrong with it."""
        target = str(statement.module)
        inner = target.removeprefix(f"{self.package}.")
        wrong = ""
        if statement.level:
            wrong = f"relative import: write `from {self.package}.x.y import name`"
        elif any(alias.name == "*" for alias in statement.names):
            wrong = "star import: name what you import"
        elif any(alias.asname for alias in statement.names):
            wrong = "import of ours under another name: use the name it has"
        elif any(inner == part or inner.startswith(f"{part}.") for part in NOT_INLINED):
            wrong = f"{target} is never inlined: the kernel must not need it"
        elif target == self.package or (self.root.joinpath(*target.split(".")) / "__init__.py").is_file():
            wrong = f"{target} is a package: import names from the module that defines them"
        elif not self.path_of(target).is_file():
            wrong = f"no module {target}"
        if wrong:
            self.problem(module, statement, wrong)
        return not wrong

    def check_own_lines(self, module: ModuleSource, statement: ast.stmt) -> None:
        """An import is cut out by whole lines, so it must have them for itself."""
        lines = module.text.split("\n")
        first, last = lines[statement.lineno - 1], lines[(statement.end_lineno or statement.lineno) - 1]
        rest = last.encode()[statement.end_col_offset :].decode().strip()
        if first.encode()[: statement.col_offset].strip() or (rest and not rest.startswith("#")):
            self.problem(module, statement, "an import must have its line for itself")

    def check_node(self, module: ModuleSource, node: ast.AST, at_top: bool) -> None:
        """What is refused wherever in a module it stands."""
        if isinstance(node, ast.Import | ast.ImportFrom):
            ours = self.is_ours(node)
            if ours and not at_top:
                self.problem(module, node, "import of ours inside a function or a block: move it to the top")
            elif ours and isinstance(node, ast.Import):
                self.problem(
                    module,
                    node,
                    f"`import {node.names[0].name}`: write `from {self.package}.x.y import name`",
                )
            elif not ours:
                self.check_third_party(module, node, at_top)
            if isinstance(node, ast.ImportFrom) and not ours and any(a.name == "*" for a in node.names):
                self.problem(module, node, "star import: name what you import")
        elif isinstance(node, ast.Global):
            self.problem(module, node, "`global`: rebinding a top-level name is not seen where it was imported")
        elif isinstance(node, ast.Name):
            if node.id in FORBIDDEN_BUILTINS:
                self.problem(module, node, f"`{node.id}`: the kernel's code must be there to be read")
            elif node.id in MODULE_NAMES and not self.in_guard(module, node):
                self.problem(module, node, f"`{node.id}` means another thing in the built script: do without it")

    def check_third_party(self, module: ModuleSource, node: ast.Import | ast.ImportFrom, at_top: bool) -> None:
        """Refuse imports of what is not there when the script runs."""
        names = [str(node.module)] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for package in sorted({name.split(".")[0] for name in names}):
            if package in STANDARD_MODULES or package in IMAGE_PACKAGES:
                continue
            if (self.root / package).is_dir() or (self.root / f"{package}.py").is_file():
                self.problem(module, node, f"{package} is not part of the kernel and is never inlined")
            elif package not in VENDORED_PACKAGES | OPTIONAL_PACKAGES:
                allowed = ", ".join(sorted(IMAGE_PACKAGES))
                self.problem(
                    module,
                    node,
                    f"{package} is not in Kaggle's image; allowed are the standard library, {allowed}",
                )
            elif at_top:
                self.problem(module, node, f"{package} may not be there yet: import it inside a function")

    def in_guard(self, module: ModuleSource, node: ast.expr) -> bool:
        """Whether `node` stands in a guard on `__name__`, which is cut out as a whole."""
        return any(
            isinstance(part, ast.If) and part.lineno <= node.lineno <= (part.end_lineno or part.lineno)
            for part in module.cut
        )

    def check_names(self, module: ModuleSource) -> None:
        """Refuse names that are used but neither defined nor imported in the module, and double meanings."""
        for name, (_, line) in module.imported.items():
            if name in module.defined:
                self.problem(
                    module,
                    module.defined[name],
                    f"{name!r} is defined here and imported in line {line}: rename one",
                )
        known = {*module.defined, *module.imported, *BUILTIN_NAMES, *MODULE_NAMES}
        for name, line in module.looked_up.items():
            if name not in known:
                self.problem(module, line, f"the name {name!r} is never defined or imported")

    def check_together(self, order: list[ModuleSource], embedded: Mapping[str, str]) -> None:
        """What only shows over all modules: colliding names, imports of nothing, the entry's `main`."""
        for module in order:
            for target, statements in module.ours.items():
                for statement in statements:
                    for alias in statement.names:
                        self.check_imported(module, statement, self.modules[target], alias.name)
        self.check_collisions(order, embedded)
        self.check_init_files(order)
        entry = order[-1]
        found = [node for node in entry.tree.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        wanted = ", ".join(name.lower() for name in embedded)
        if not found:
            self.problem(entry, 1, f"no function `main({wanted}) -> int`, which the script calls")
        elif not takes_arguments(found[-1].args, len(embedded)):
            self.problem(entry, found[-1], f"`main` must take the {len(embedded)} argument(s) ({wanted})")

    def check_imported(self, module: ModuleSource, statement: ast.ImportFrom, target: ModuleSource, name: str) -> None:
        """Refuse an import of a name that its module does not define itself."""
        if name in target.defined:
            return
        if name in target.imported:
            origin = target.imported[name][0].module
            self.problem(module, statement, f"{target.name} only imports {name!r}: import it from {origin}")
        else:
            self.problem(module, statement, f"{target.name} defines no {name!r}")

    def check_collisions(self, order: list[ModuleSource], embedded: Mapping[str, str]) -> None:
        """Refuse a top-level name with two meanings."""
        definitions: dict[str, tuple[str, int]] = dict.fromkeys(embedded, ("the script's embedded texts", 0))
        imports: dict[str, tuple[ImportedName, str, int]] = {}
        for module in order:
            for name, line in module.defined.items():
                other, other_line = definitions.setdefault(name, (module.shown, line))
                if other != module.shown:
                    where = f"{other}:{other_line}" if other_line else other
                    self.problem(module, line, f"the top-level name {name!r} is defined in {where} too: rename one")
        for module in order:
            for name, (origin, line) in module.imported.items():
                if origin.module in self.modules:
                    continue
                if name in definitions:
                    other, other_line = definitions[name]
                    self.problem(
                        module,
                        line,
                        f"the imported name {name!r} is defined in {other}:{other_line} too: rename one",
                    )
                first, other, other_line = imports.setdefault(name, (origin, module.shown, line))
                if first != origin:
                    self.problem(
                        module,
                        line,
                        f"{name!r} means {told_origin(origin)} here and {told_origin(first)} in "
                        f"{other}:{other_line}: call one of them otherwise",
                    )

    def check_init_files(self, order: list[ModuleSource]) -> None:
        """Refuse packages whose `__init__.py` does anything: the script would not do it."""
        folders = {parent for module in order for parent in module.path.parents if self.root in parent.parents}
        for folder in sorted(folders):
            init = folder / "__init__.py"
            if not init.is_file():
                continue
            for statement in read_module(init)[1].body:
                if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                    shown = init.relative_to(self.root).as_posix()
                    self.problems.add(
                        (
                            shown,
                            statement.lineno,
                            "a package's __init__.py may hold a docstring and nothing else",
                        )
                    )
                    break

    def problem(self, module: ModuleSource, where: ast.AST | int, told: str) -> None:
        """Note a problem at a node or a line of `module`."""
        line = where if isinstance(where, int) else getattr(where, "lineno", 1)
        self.problems.add((module.shown, line, told))


def read_module(path: Path) -> tuple[str, ast.Module]:
    """A module's text and syntax tree. Raises InputError for one that does not compile."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # a mark at its start would be an error amid the script
        tree = ast.parse(text, filename=str(path))
        compile(text, str(path), "exec", dont_inherit=True)  # what only shows then: a `return` outside a function, say
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error})") from error
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno or 1}: {error.msg}") from error
    return text, tree


def is_main_guard(statement: ast.stmt) -> bool:
    """Whether a statement is `if __name__ == "__main__"`."""
    match statement:
        case ast.If(
            test=ast.Compare(left=ast.Name(id="__name__"), ops=[ast.Eq()], comparators=[ast.Constant(value="__main__")])
        ):
            return True
    return False


def imported_name(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> ImportedName:
    """What a single name of a third-party import binds."""
    if isinstance(statement, ast.ImportFrom):
        return ImportedName(str(statement.module), alias.name, alias.asname or alias.name)
    if alias.asname:
        return ImportedName(alias.name, "", alias.asname)
    package = alias.name.split(".")[0]
    return ImportedName(package, "", package)


def told_origin(origin: ImportedName) -> str:
    """An import in words, for messages."""
    return f"{origin.module}.{origin.attribute}" if origin.attribute else f"the module {origin.module}"


def takes_arguments(arguments: ast.arguments, count: int) -> bool:
    """Whether a function can be called with `count` positional arguments."""
    positional = len(arguments.posonlyargs) + len(arguments.args)
    needed = positional - len(arguments.defaults)
    forced = any(default is None for default in arguments.kw_defaults)
    return needed <= count and (count <= positional or arguments.vararg is not None) and not forced


def write_script(order: list[ModuleSource], entry: Path, embedded: Mapping[str, str]) -> str:
    """Put the checked modules together."""
    futures = sorted({name for module in order for name in module.futures})
    parts = [script_docstring(order, entry, embedded)]
    if futures:
        parts.append(f"from __future__ import {', '.join(futures)}")
    parts.extend(hoisted_imports(order))
    head = "\n\n".join(parts)
    sections = [
        "\n".join([banner("embedded", "what this kernel was built with"), ""])
        + "\n"
        + "\n\n".join(f"{name} = {text_literal(text)}" for name, text in embedded.items())
    ]
    for module in order:
        sections.append(f"{banner(module.shown)}\n\n{section_text(module)}")
    call = f'if __name__ == "__main__":\n    raise SystemExit(main({", ".join(embedded)}))'
    return "\n\n\n".join([head, *sections, call]) + "\n"


def check_script(script: str, entry: Path) -> None:
    """Refuse a script that does not compile, whatever made it so. Raises InputError."""
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


def script_docstring(order: list[ModuleSource], entry: Path, embedded: Mapping[str, str]) -> str:
    """What the script says of itself at its top."""
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


def banner(title: str, told: str = "") -> str:
    """The heading of a section."""
    rule = "# " + "=" * (LINE_LENGTH - 2)
    return f"{rule}\n# {title}{': ' + told if told else ''}\n{rule}"


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


def hoisted_imports(order: list[ModuleSource]) -> list[str]:
    """The third-party imports of all modules, each once: standard library first, plain imports first."""
    plain: set[tuple[str, str]] = set()
    named: dict[str, set[tuple[str, str]]] = {}
    for module in order:
        for statement in module.hoisted:
            for alias in statement.names:
                if isinstance(statement, ast.Import):
                    plain.add((alias.name, alias.asname or ""))
                else:
                    named.setdefault(str(statement.module), set()).add((alias.name, alias.asname or ""))
    blocks = []
    tests: tuple[Callable[[str], bool], ...] = (is_standard, lambda name: not is_standard(name))
    for belongs in tests:
        lines = [f"import {told_alias(pair)}" for pair in sorted(plain) if belongs(pair[0])]
        for source in sorted(filter(belongs, named)):
            names = [told_alias(pair) for pair in sorted(named[source])]
            line = f"from {source} import {', '.join(names)}"
            if len(line) > LINE_LENGTH:
                line = f"from {source} import (\n" + "".join(f"    {name},\n" for name in names) + ")"
            lines.append(line)
        if lines:
            blocks.append("\n".join(lines))
    return blocks


def is_standard(name: str) -> bool:
    """Whether a module belongs to the standard library."""
    return name.split(".")[0] in STANDARD_MODULES


def told_alias(pair: tuple[str, str]) -> str:
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
